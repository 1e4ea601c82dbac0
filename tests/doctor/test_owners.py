"""Who owns what: two owners or none, records of the map that contradict it, moves in which something was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.batch import LEAVE, OWN
from tests.doctor.builder import COIN, DataDirectoryBuilder
from tests.doctor.forge import Record, forge
from tests.doctor.story import USER, findings_of, scene


def test_two_owners_of_a_bucket(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.workers[2].shard.adopt(1, 1)
    builder.workers[2].commit()
    (finding,) = findings_of(builder.close().examine(), "owners")
    assert finding.text == (
        "bucket 1 has two owners at generation 1: shard 2, and the map says shard 1 at generation 1"
    )


def test_a_bucket_without_an_owner(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, trims=False).close()

    def without(position: int, records: list[Record]) -> list[Record]:
        return [record for record in records if record[:2] != (OWN, 3)]

    forge(builder, 1, without)
    (finding,) = findings_of(builder.examine(), "owners")
    assert finding.text == "bucket 3 is not held by its owner, the map says shard 1 at generation 1"


def test_a_bucket_at_another_generation_than_the_map_says(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.record(["assign", 1, 1, 2])
    (finding,) = findings_of(builder.close().examine(), "owners")
    assert finding.text == (
        "bucket 1 is held by shard 1 at generation 1, the map says shard 1 at generation 2: "
        "one of the two is an older backup"
    )


def test_an_emptied_shard(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.workers[2].shard.freeze(5)
    builder.workers[2].shard.leave(5)
    builder.workers[2].commit()
    (finding,) = findings_of(builder.close().examine(), "owners")
    assert finding.text == "bucket 5 is not held by its owner, the map says shard 2 at generation 1"


def test_an_entry_of_a_bucket_that_was_given_up(data_dir: Path) -> None:
    builder = scene(data_dir)
    given_up = False

    def leave_early(position: int, records: list[Record]) -> list[Record]:
        nonlocal given_up
        if given_up or position < 4:
            return records
        given_up = True
        return [*records, (LEAVE, 5, 1, b"")]

    forge(builder, 1, leave_early, lambda part: None)
    texts = [finding.text for finding in findings_of(builder.examine(), "owners")]
    assert "an entry of bucket 5 at generation 1, while the shard does not have it" in texts
    assert "bucket 5 is not held by its owner, the map says shard 1 at generation 1" in texts


def test_a_bucket_that_did_not_arrive_as_it_left(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.pay(USER, COIN)
    poor = BillingMachine(Rules(accrue=False, request_ids_per_bucket=50, restore=True))
    poor.create(5)
    giving, taking = builder.workers[2].shard, builder.workers[1].shard
    giving.freeze(5)
    taking.take_in(5, 2, poor.dump(5))
    builder.record(["assign", 5, 1, 2])
    taking.activate(5, builder.now_ns)
    giving.leave(5)
    (finding,) = findings_of(builder.close().examine(), "owners")
    assert finding.text == "bucket 5 did not arrive at generation 2 as it had left"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (["assign", 1, 2, 3], "bucket 1, now (1, 1), is given to shard 2 at 3"),
        (["retire", 1], "shard 1 is retired, which owns buckets"),
        (["create", 8, "crc32c-noxor", [1]], "the map is created a second time"),
        (["crown", 1], "a record of the unknown kind 'crown'"),
        (["assign", 1], "makes no sense"),
        (["anchor", b"BCA1"], "makes no sense"),
        (["clock", "id", b"BCA1"], "makes no sense"),
        (["own", 1, "1", "a", "id"], "of hosts that serve at once: own [1, '1', 'a', 'id'] cannot be"),
        (["at", 3, 1, "h:1", "h:2"], "at names shard 3, number 1"),
        (["wish", 1, 0, "id"], "wish names shard 1, number 0"),
        (["life", 9, 1, 1], "life names shard 9, number 1"),
    ],
)
def test_a_record_that_contradicts_the_map(data_dir: Path, record: list[Any], text: str) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.record(record)
    report = builder.close().examine()
    assert text in findings_of(report, "owners")[0].text
    assert findings_of(report, "owners")[0].position == 3


def test_what_is_said_of_hosts_that_serve_at_once_contradicts_nothing(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.record(
        ["host", "id", "a", 4],
        ["own", 1, 1, "a", "id"],
        ["life", 1, 1, 1],
        ["at", 1, 1, "h:1", "h:2"],
        ["wish", 1, 1, "other"],
    )
    builder.record(["own", 1, 2, "", ""], ["drained", "a", True], ["gone", "a"])
    assert not findings_of(builder.close().examine(), "owners")


def test_a_missing_directory(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir).close()
    (data_dir / "shard-2").rename(data_dir / "aside")
    assert findings_of(builder.examine(), "owners")[0].text == "the directory of shard 2 is missing"
