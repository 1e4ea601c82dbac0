"""A follower's process logs from the level on that its worker has, from its start and after a reload."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from billing.follower.link import FollowedShard, Limits, command_of
from billing.history.link import HistoryLink
from tests.history.shard_driver import file_journal

PATIENT = Limits(answer_timeout_s=60.0, silent_s=60.0)


async def test_the_process_logs_from_the_level_of_its_worker_on(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = file_journal(data_dir / "shard-1")
    command = command_of("tests.follower.talkative")
    link = HistoryLink(FollowedShard(str(data_dir / "history"), 1, journal), limits=PATIENT, command=command)

    async def logged() -> list[str]:
        """What the process logs at one question; its records come before the answer."""
        caplog.clear()
        answer = asyncio.get_running_loop().create_future()
        link.reached(answer.set_result)
        await answer
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith("asked")]

    caplog.set_level(logging.DEBUG)
    link.start()
    assert await logged() == ["asked at INFO", "asked at DEBUG"]
    caplog.set_level(logging.INFO)
    link.tell_log_level()
    caplog.set_level(logging.DEBUG)  # what the process sends is now the process's own choice
    assert await logged() == ["asked at INFO"]
    link.tell_log_level()
    assert await logged() == ["asked at INFO", "asked at DEBUG"]
    await link.close()
    journal.close()
