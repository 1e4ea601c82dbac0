"""The operators' record: each act once, in order, over restarts and torn lines; bounded, whoever fills it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from billing.audit import trail
from billing.audit.recorder import MINUTE_NS, REFUSALS_A_MINUTE, Recorder
from billing.audit.trail import FILES_KEPT, Trail, read_trails
from shards.system.disk import RealDisk

DISK = RealDisk()


def record(at_ns: int, act: str = "move_bucket") -> dict[str, object]:
    return {"at_ns": at_ns, "actor": "uid:0", "act": act, "details": {"bucket_id": 7, "shard_id": 2}}


def test_records_of_all_processes_are_read_by_their_instants(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    one, other = Trail(DISK, directory, "shard-1"), Trail(DISK, directory, "main")
    for at_ns in (1, 4, 6):
        one.append(record(at_ns))
    other.append(record(5, "reload"))
    again = Trail(DISK, directory, "shard-1")  # as after a restart
    again.append(record(7))
    records, faults = read_trails(DISK, directory)
    assert [(one["at_ns"], one["act"]) for one in records] == [
        (1, "move_bucket"), (4, "move_bucket"), (5, "reload"), (6, "move_bucket"), (7, "move_bucket"),
    ]  # fmt: skip
    assert (records[0], faults) == (record(1), [])
    for name in ("shard-1.jsonl", "main.jsonl"):
        assert (data_dir / "audit" / name).stat().st_mode & 0o777 == 0o600


def test_a_torn_line_harms_no_other_and_is_named(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    written = Trail(DISK, directory, "main")
    written.append(record(1))
    written.close()
    path = data_dir / "audit" / "main.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at_ns":2,"act')
    Trail(DISK, directory, "main").append(record(3))
    records, faults = read_trails(DISK, directory)
    assert [one["at_ns"] for one in records] == [1, 3]
    assert faults == [f"{path}:2 is no record"]


def test_files_are_ended_and_the_oldest_goes(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    written = Trail(DISK, directory, "main")
    details = {"text": "x" * (trail.FILE_BYTES_MAX // 2)}
    count = 2 * (FILES_KEPT + 4)
    for at_ns in range(count):
        written.append({"at_ns": at_ns, "actor": "", "act": "backup", "details": details})
    kept = [one["at_ns"] for one in read_trails(DISK, directory)[0]]
    assert kept == list(range(kept[0], count)), "the newest, without a gap"
    files = list((data_dir / "audit").iterdir())
    assert len(files) == FILES_KEPT + 1
    assert all(file.stat().st_size < 2 * trail.FILE_BYTES_MAX for file in files)


def test_without_a_record_there_is_nothing(data_dir: Path) -> None:
    assert read_trails(DISK, f"{data_dir}/audit") == ([], [])


async def test_an_act_begins_once_its_record_is_there_and_also_where_the_disk_takes_none(data_dir: Path) -> None:
    now_ns = [10]
    recorder = Recorder(DISK, str(data_dir), "main", lambda: now_ns[0])
    begun: list[int] = []
    done = asyncio.Event()

    def act() -> None:
        begun.append(len(read_trails(DISK, f"{data_dir}/audit")[0]))
        done.set()

    recorder.record("ops", "rebalance", {"plan": 0}, act)
    await asyncio.wait_for(done.wait(), 60)
    assert begun == [1]
    await recorder.close()
    (data_dir / "nowhere").write_text("a file is no directory")
    done.clear()
    other = Recorder(DISK, f"{data_dir}/nowhere", "main", lambda: now_ns[0])
    other.record("ops", "rebalance", {"plan": 0}, done.set)
    await asyncio.wait_for(done.wait(), 60)
    await other.close()


async def test_who_guesses_tokens_fills_no_disk(data_dir: Path) -> None:
    now_ns = [MINUTE_NS]
    recorder = Recorder(DISK, str(data_dir), "shard-1", lambda: now_ns[0])
    for _ in range(500):
        recorder.refused_sign_in("192.0.2.7")
    now_ns[0] += MINUTE_NS
    recorder.refused_sign_in("192.0.2.7")
    await recorder.close()
    records, _ = read_trails(DISK, f"{data_dir}/audit")
    assert len(records) == REFUSALS_A_MINUTE + 1
    assert records[-1]["details"] == {"from": "192.0.2.7", "and_more": 500 - REFUSALS_A_MINUTE}
