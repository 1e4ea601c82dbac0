"""Data directories of each format there has been open in this version; one of a newer format is refused, unchanged.

The fixtures are made by `tests.fixtures.make`. When a format changes, its fixture stays, and either opens or is refused
with the command that converts it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from tests.archives import unpack
from tests.fixtures.make import FIXTURES, SETTINGS, facts
from tests.system.clock_step import ClockStep
from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc
from tests.system.test_start import serve

HOUR_S = 3600
FORMATS = sorted(path.name.removesuffix(".tar.gz") for path in FIXTURES.glob("*.tar.gz"))


def unpacked(name: str, directory: Path) -> Path:
    unpack(FIXTURES / f"{name}.tar.gz", directory)
    data = directory / "data"
    for path in (data, *data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return data


def daemon_on(name: str, directory: Path) -> Daemon:
    unpacked(name, directory)
    return Daemon(directory, cutoff__url="http://127.0.0.1:9/cutoff", **SETTINGS)


def test_there_is_a_fixture_of_the_present_format_and_all_are_small() -> None:
    assert "format-1" in FORMATS
    assert all((FIXTURES / f"{name}.tar.gz").stat().st_size < 100 << 10 for name in FORMATS)


@pytest.mark.parametrize("name", FORMATS)
async def test_it_opens_with_all_that_was_in_it(name: str, data_dir: Path) -> None:
    expected = json.loads((FIXTURES / f"{name}.json").read_text())
    daemon = daemon_on(name, data_dir)
    clock = ClockStep(data_dir)
    made_s = max(path.stat().st_mtime for path in (data_dir / "data").rglob("segment-*"))
    clock.to(made_s + HOUR_S - time.time())  # an answer is remembered for 7 days
    daemon.environment = clock.environment
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        assert await facts(rpc) == expected
        reply = await rpc.ask("top_up", "alice", "12.5", {"request_id": "invoice-1", "message": "the first"})
        assert reply["replayed"] is True
        assert reply["balance_nanos"] == 12_500_000_000
        assert sorted(row["user_id"] for row in await rpc.ask("pending_cutoffs")) == ["42", "carol"]
        assert (await rpc.ask("debit", "alice", 1))["balance_nanos"] == expected["accounts"]["alice"][
            "balance_nanos"
        ] - 1
        daemon.stop()
        daemon.start()  # and what this version wrote it reads as well
        rpc = await Rpc.connect(daemon.rpc_port)
        assert (await rpc.ask("get_account", "bob"))["balance_nanos"] == expected["accounts"]["bob"]["balance_nanos"]
    result = await asyncio.to_thread(carried_out, "doctor", "--config", daemon.config)
    assert result.returncode == 0, result.stdout + result.stderr


def manifest(data: Path, shard: str) -> Path:
    return data / shard / "manifest"


def segment(data: Path, shard: str) -> Path:
    return max((data / shard).glob("segment-" + "[0-9]" * 10))


def snapshot(data: Path, shard: str) -> Path:
    return max((data / shard).glob("snapshot-" + "[0-9]" * 20))


def raise_format(path: Path, length: int) -> None:
    """Version 2 where there was 1, with the checksum of a file that was written so."""
    content = bytearray(path.read_bytes())
    assert content[4:6] == b"\x01\x00"
    content[4] = 2
    content[length - 4 : length] = crc32c(bytes(content[: length - 4])).to_bytes(4, "little")
    path.write_bytes(content)


def state_of(data: Path) -> dict[str, str]:
    return {
        path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in data.rglob("*")
        if path.is_file() and path.name not in ("lock", "ballast", "spare") and "run" not in path.parts
    }


@pytest.mark.parametrize(("find", "length"), [(manifest, 72), (segment, 4096), (snapshot, 44)])
def test_a_newer_format_is_refused_and_says_what_to_do(
    data_dir: Path, find: Callable[[Path, str], Path], length: int
) -> None:
    daemon = daemon_on("format-1", data_dir)
    data = data_dir / "data"
    raise_format(find(data, "map" if find is not snapshot else "shard-1"), length)
    state = state_of(data)
    if find is snapshot:  # of one shard: that one is held, the other serves
        process = daemon.launch()
        with pytest.raises(AssertionError, match=r"shard 1: held: .*format 2.*start the version that wrote it"):
            daemon.wait_ready(60, unless="held")
        daemon.process = process
        daemon.kill()
        state_after = state_of(data)
        assert {k: v for k, v in state_after.items() if k.startswith("shard-1/")} == {
            k: v for k, v in state.items() if k.startswith("shard-1/")
        }
        return
    code, text = serve(daemon.config)
    assert code == 78
    assert "has format 2, and this version reads format 1" in text
    assert "start the version that wrote it, or restore a backup" in text
    assert "damaged" not in text
    assert state_of(data) == state
    assert os.listdir(data)


def test_data_whose_buckets_are_of_the_first_version_are_refused_with_the_way_to_convert_them(data_dir: Path) -> None:
    """The first version that ever landed wrote them. Nothing is damaged, and no worker ends with a bug."""
    unpacked("former/blocks-1", data_dir)
    daemon = Daemon(data_dir, cutoff__url="http://127.0.0.1:9/cutoff", **SETTINGS)
    code, text = serve(daemon.config)
    assert code == 78
    assert "as another version of billing wrote it" in text
    assert "`billing import`" in text
    assert "ends on a bug" not in text
