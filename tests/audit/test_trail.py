"""The operators' record: each act once, in order, over restarts and torn lines; bounded, whoever fills it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from billing.audit import trail
from billing.audit.reading import TrailReader, UnknownCursor
from billing.audit.recorder import MINUTE_NS, REFUSALS_A_MINUTE, Recorder
from billing.audit.trail import FILES_KEPT, Record, Trail, copy_trails
from tests.shards.system.unsynced import UnsyncedDisk

DISK = UnsyncedDisk()


def record(at_ns: int, act: str = "move_bucket") -> dict[str, object]:
    return {"at_ns": at_ns, "actor": "uid:0", "act": act, "details": {"bucket_id": 7, "shard_id": 2}}


def read_all(directory: str) -> list[Record]:
    """All records, without their cursors."""
    return [{key: row[key] for key in row if key != "cursor"} for row in TrailReader(DISK, directory).records()]


def test_records_of_all_processes_are_read_by_their_instants(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    shard_trail, main_trail = Trail(DISK, directory, "shard-1"), Trail(DISK, directory, "main")
    for at_ns in (1, 4, 6):
        shard_trail.append(record(at_ns))
    main_trail.append(record(5, "reload"))
    again = Trail(DISK, directory, "shard-1")  # as after a restart
    again.append(record(7))
    records = read_all(directory)
    assert [(row["at_ns"], row["act"]) for row in records] == [
        (1, "move_bucket"), (4, "move_bucket"), (5, "reload"), (6, "move_bucket"), (7, "move_bucket"),
    ]  # fmt: skip
    assert records[0] == record(1)
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
    torn = {"process": "main", "file": 1, "before_byte": path.read_bytes().rindex(b"\n", 0, -1) + 1}
    unreadable = {"at_ns": 1, "actor": "", "act": "unreadable", "details": torn}
    assert read_all(directory) == [record(1), unreadable, record(3)]


def test_files_are_ended_and_the_oldest_goes(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    written = Trail(DISK, directory, "main")
    details = {"text": "x" * (trail.FILE_BYTES_MAX // 2)}
    count = 2 * (FILES_KEPT + 4)
    for at_ns in range(count):
        written.append({"at_ns": at_ns, "actor": "", "act": "backup", "details": details})
    instants = [row["at_ns"] for row in read_all(directory)]
    assert instants == list(range(instants[0], count)), "the newest, without a gap"
    files = list((data_dir / "audit").iterdir())
    assert len(files) == FILES_KEPT + 1
    assert all(file.stat().st_size < 2 * trail.FILE_BYTES_MAX for file in files)


def test_without_a_record_there_is_nothing(data_dir: Path) -> None:
    assert read_all(f"{data_dir}/audit") == []


async def test_an_act_begins_once_its_record_is_there_and_also_where_the_disk_takes_none(data_dir: Path) -> None:
    now_ns = [10]
    recorder = Recorder(DISK, str(data_dir), "main", lambda: now_ns[0])
    begun: list[int] = []
    done = asyncio.Event()

    def act() -> None:
        begun.append(len(read_all(f"{data_dir}/audit")))
        done.set()

    recorder.record("ops", "rebalance", {"plan": 0}, act)
    await asyncio.wait_for(done.wait(), 60)
    assert begun == [1]
    await recorder.close()
    (data_dir / "nowhere").write_text("a file is no directory")
    done.clear()
    recorder_nowhere = Recorder(DISK, f"{data_dir}/nowhere", "main", lambda: now_ns[0])
    recorder_nowhere.record("ops", "rebalance", {"plan": 0}, done.set)
    await asyncio.wait_for(done.wait(), 60)
    await recorder_nowhere.close()


async def test_who_guesses_tokens_fills_no_disk(data_dir: Path) -> None:
    now_ns = [MINUTE_NS]
    recorder = Recorder(DISK, str(data_dir), "shard-1", lambda: now_ns[0])
    for _ in range(500):
        recorder.refused_sign_in("192.0.2.7")
    now_ns[0] += MINUTE_NS
    recorder.refused_sign_in("192.0.2.7")
    await recorder.close()
    records = read_all(f"{data_dir}/audit")
    assert len(records) == REFUSALS_A_MINUTE + 1
    assert records[-1]["details"] == {"from": "192.0.2.7", "and_more": 500 - REFUSALS_A_MINUTE}


# -- as a feed ---------------------------------------------------------------------------------------------------------


def test_pages_give_each_record_once_while_it_is_written_and_files_are_ended(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    draw = random.Random(7)
    trails = [Trail(DISK, directory, name) for name in ("main", "shard-1", "shard-2")]
    reader, cursor = TrailReader(DISK, directory), ""
    written: list[int] = []
    read: list[int] = []
    for at_ns in range(600):
        written.append(at_ns)
        filler = {"text": "x" * draw.choice((1, 100, trail.FILE_BYTES_MAX // 3))}
        draw.choice(trails).append(
            {"at_ns": at_ns - draw.choice((0, 50)), "actor": str(at_ns), "act": "", "details": filler}
        )
        if draw.random() < 0.1:
            rows = reader.page(cursor, draw.randrange(1, 40))
            read += [int(row["actor"]) for row in rows]
            cursor = rows[-1]["cursor"] if rows else cursor
    while rows := reader.page(cursor, 100):
        read += [int(row["actor"]) for row in rows]
        cursor = rows[-1]["cursor"]
    assert len(read) == len(set(read))
    assert sorted(read) == written
    assert max(trail.numbered(DISK, directory, "main")) > 2


def test_only_some_are_read(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    written = Trail(DISK, directory, "main")
    for number in range(20):
        act = "reload" if number % 2 else "backup"
        written.append({"at_ns": number, "actor": f"a{number % 5}", "act": act, "details": {}})
    reader = TrailReader(DISK, directory)
    assert [row["at_ns"] for row in reader.page("", 100, "a3", "reload")] == [3, 13]
    first = reader.page("", 1, None, "reload")
    assert [row["at_ns"] for row in reader.page(first[0]["cursor"], 2, None, "reload")] == [3, 5]
    assert reader.page(first[0]["cursor"], 9, "nobody") == []


def test_cursors_of_another_daemon_and_what_is_none_are_refused(data_dir: Path) -> None:
    here, there = f"{data_dir}/here", f"{data_dir}/there"
    for directory, at_ns in ((here, 1), (there, 2)):
        for name in ("main", "shard-1"):
            Trail(DISK, directory, name).append(record(at_ns))
    Trail(DISK, there, "shard-9").append(record(3))
    reader = TrailReader(DISK, here)
    foreign_rows = TrailReader(DISK, there).page("", 9)
    for row in foreign_rows:
        with pytest.raises(UnknownCursor, match=r"begin again|another daemon"):
            reader.page(row["cursor"], 9)
    cursor = reader.page("", 1)[0]["cursor"]
    assert len(reader.page(cursor, 9)) == 1
    for text in (
        "?",
        "ä",
        cursor[:-3],
        "e30x",
        "W10",
        "eyJtYWluIjpbMSwtMSwwXX0",
        "eyJtYWluIjpbMV19",
        "eyJtYWluIjpbMSw5OTk5LDBdfQ",
        "W1tb" * 1000,
    ):
        with pytest.raises(UnknownCursor):
            reader.page(text, 9)


def test_a_cursor_before_files_that_went_is_refused(data_dir: Path) -> None:
    directory = f"{data_dir}/audit"
    written, reader = Trail(DISK, directory, "main"), TrailReader(DISK, directory)
    details = {"text": "x" * trail.FILE_BYTES_MAX}
    written.append({"at_ns": 0, "actor": "", "act": "backup", "details": details})
    cursor = reader.page("", 1)[0]["cursor"]
    for at_ns in range(FILES_KEPT + 1):
        written.append({"at_ns": at_ns, "actor": "", "act": "backup", "details": details})
    with pytest.raises(UnknownCursor, match="file 1 of the record of main is not here"):
        reader.page(cursor, 1)


def test_a_copy_has_the_records_and_takes_the_same_cursors(data_dir: Path) -> None:
    source, target = f"{data_dir}/audit", f"{data_dir}/copy"
    for name in ("main", "shard-1"):
        written = Trail(DISK, source, name)
        for at_ns in range(30):
            written.append({"at_ns": at_ns, "actor": name, "act": "", "details": {"text": "x" * 100_000}})
    cursor = TrailReader(DISK, source).page("", 13)[-1]["cursor"]
    DISK.mkdir(target)
    names = copy_trails(DISK, source, target)
    assert {"main.1.jsonl", "main.jsonl", "shard-1.jsonl"} <= set(names)
    assert TrailReader(DISK, target).page(cursor, 100) == TrailReader(DISK, source).page(cursor, 100)


async def test_a_page_is_read_beside_what_is_written(data_dir: Path) -> None:
    recorder = Recorder(DISK, str(data_dir), "shard-1", lambda: 5)
    done = asyncio.Event()
    recorder.record("ops", "backup", {"step": "begin"}, done.set)
    await asyncio.wait_for(done.wait(), 60)

    async def page(cursor: str, actor: str = "") -> list[Record] | Exception:
        result: asyncio.Future[list[Record] | Exception] = asyncio.get_running_loop().create_future()
        recorder.read(cursor, 10, actor, "", result.set_result)
        return await asyncio.wait_for(result, 60)

    rows = await page("")
    assert isinstance(rows, list)
    (row,) = rows
    assert (row["actor"], row["act"], row["details"]) == ("ops", "backup", {"step": "begin"})
    assert await page(row["cursor"]) == []
    assert await page("", "somebody") == []
    assert isinstance(await page("nothing that was given out"), UnknownCursor)
    await recorder.close()
