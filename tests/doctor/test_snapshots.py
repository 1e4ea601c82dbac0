"""Snapshots that are wrong behind right checksums."""

from __future__ import annotations

from pathlib import Path

from billing.ledger.book import ROW
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from tests.doctor.builder import DataDirectoryBuilder
from tests.doctor.forge import forge
from tests.doctor.story import USER, findings_of, scene


def test_a_changed_balance_in_a_snapshot(data_dir: Path) -> None:
    builder = scene(data_dir)

    def richer(part: bytes) -> bytes:
        machine = BillingMachine(builder.rules)
        bucket_id = int.from_bytes(part[1:3], "little")
        machine.load(bucket_id, part[15:])
        book = machine.ledger.books[bucket_id]
        for slot in book.slots.values():
            settled_ns, nanos, *rest = ROW.unpack_from(book.rows, slot * ROW.size)
            ROW.pack_into(book.rows, slot * ROW.size, settled_ns, nanos + 1, *rest)
            book.totals.top_ups += 3600 * 10**9  # so that the snapshot does not contradict itself
        return part[:15] + machine.dump(bucket_id)

    forge(builder, 1, on_part=richer)
    report = builder.examine()
    texts = [finding.text for finding in findings_of(report, "snapshots") if finding.account == "7"]
    assert len(texts) == 1
    assert "the snapshot says balance " in texts[0]
    assert findings_of(report, "accounts") == []
    assert any("top_ups over all entries" in finding.text for finding in findings_of(report, "snapshots"))


def test_another_instant_of_a_2xx_in_a_snapshot_and_none_as_older_versions_wrote_it(data_dir: Path) -> None:
    builder = scene(data_dir)
    instants: list[tuple[int, int]] = []

    def with_instant(part: bytes, delivered_ns: int) -> bytes:
        machine = BillingMachine(builder.rules)
        bucket_id = int.from_bytes(part[1:3], "little")
        machine.load(bucket_id, part[15:])
        for extra in machine.ledger.books[bucket_id].extras.values():
            for cutoff in extra.cutoffs:
                if cutoff.delivered_ns:
                    instants.append((cutoff.delivered_ns, cutoff.restored_ns))
                    cutoff.delivered_ns = cutoff.restored_ns = delivered_ns
        return part[:15] + machine.dump(bucket_id)

    forge(builder, 1, on_part=lambda part: with_instant(part, 7))
    texts = {finding.text.partition(": ")[2] for finding in findings_of(builder.examine(), "snapshots")}
    delivered_ns, restored_ns = instants[0]
    assert texts == {
        f"the snapshot says the 2xx of cutoff 1 came at 7, worked out {delivered_ns}",
        f"the snapshot says the 2xx of the restore of cutoff 1 came at 7, worked out {restored_ns}",
    }
    forge(builder, 1, on_part=lambda part: with_instant(part, 0))
    assert findings_of(builder.examine(), "snapshots") == []


def test_a_snapshot_that_lost_request_ids(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, bucket_count=1, trims=False)
    for number in range(20):
        builder.pay(USER, 1, b"%d" % number)
    builder.workers[1].snapshot()
    builder.close()

    def forgetful(part: bytes) -> bytes:
        machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=50, restore=True))
        machine.load(1, part[15:])
        scratch = BillingMachine(builder.rules)
        scratch.load(1, part[15:])
        ids = scratch.ledger.books[1].ids
        packed = list(ids)
        ids.__init__()  # type: ignore[misc]
        for request_id in [*packed[:5], *packed[6:]]:
            ids.restore(request_id)
        return part[:15] + scratch.dump(1)

    forge(builder, 1, on_part=forgetful)
    (finding,) = findings_of(builder.examine(), "requests")
    assert "keeps other request ids than its entries say" in finding.text


def test_a_snapshot_without_one_of_the_buckets(data_dir: Path) -> None:
    builder = scene(data_dir)
    forge(builder, 1, on_part=lambda part: part if part[1:3] != b"\x05\x00" else None)
    report = builder.examine()
    assert "no part of bucket 5, which the shard holds at position" in findings_of(report, "snapshots")[0].text
