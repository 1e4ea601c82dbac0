"""`history.keep_days`: what is kept answers every question since the limit as all rows did, and the rest is gone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from billing.history.entries import UnknownCursor, page
from billing.history.retention import prune
from billing.history.store import rows_are_sound
from billing.ledger.commands import OF_LINES
from billing.ledger.money import INT64_MAX
from tests.history.books import Life, lives
from tests.history.scene import Scene
from tests.history.test_entries import end_of
from tests.history.test_period import File, answer_of, balance_at, life_of, shown, statement
from tests.history.test_store import opened, shelf_of
from tests.ledger.bank import HOUR, Bank


def kept_from(life: Life, limit_ns: int) -> int:
    """The entry_id of the first row that has to be kept: the newest before the limit, or one that set a line."""
    old = [row for row in life.rows if row[4] < limit_ns]
    if not old:
        return 1
    lines = {resource for resource in life.lines_before(limit_ns) if resource is not None}
    setting = [next(row[3] for row in reversed(old) if row[5] in OF_LINES and row[15] == line) for line in lines]
    return int(min([old[-1][3], *setting]))


@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_statements_since_the_limit_stay_as_they_were(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    life = max(lives(seed, 600), key=lambda life: len(life.points))
    file = File(tmp_path, life, life.timeline.entries[0].user_id)
    limit_ns = life.instants[len(life.instants) * 2 // 3]
    for _ in prune(file.store, limit_ns):
        pass
    ids = [entry_id for (entry_id,) in file.store.db.execute("SELECT entry_id FROM entries ORDER BY seq")]
    first = kept_from(life, limit_ns)
    assert ids == list(range(first, len(life.points) + 1)), "what goes is the beginning, and no more than may"
    assert rows_are_sound(file.store.db)
    for _ in range(100):
        from_ns, to_ns = sorted(max(at_ns, limit_ns) for at_ns in life.cuts(draw, 2))
        found = file.statement(from_ns, to_ns)
        del found["entries"]
        wanted = shown(file.user, life.period(from_ns, to_ns), False, [])
        del wanted["entries"]
        assert found == wanted
        then, behind = file.balance_at(from_ns), life.period(from_ns, from_ns + 1)
        assert int(then["exact_balance"]) == behind.opening + behind.credits - behind.debits


def test_a_row_stands_where_the_history_was_cut_and_says_from_when_it_is_whole(tmp_path: Path) -> None:
    bank = Bank()
    for number in range(10):
        bank.top_up("u", 100, at=10 * number)
    file = File(tmp_path, life_of(bank), b"u")
    for _ in prune(file.store, 55):
        pass
    rows = file.reader.history(1, b"u", INT64_MAX, 100).rows
    assert [row["entry_id"] for row in rows] == [10, 9, 8, 7, 6, 1]
    opening = rows[-1]
    assert (opening["operation"], opening["balance_after_nanos"], opening["whole_from_ns"]) == ("missing", 500, 50)
    found, _ = answer_of(statement(file.chain(), b"u", 0, 100, False, 100, INT64_MAX))
    assert found["whole_from_ns"] == 50
    assert int(answer_of(balance_at(file.chain(), b"u", 95, INT64_MAX))[0]["balance_nanos"]) == 1000


def test_a_machine_that_runs_since_before_the_limit_keeps_the_row_that_set_its_rate(tmp_path: Path) -> None:
    bank = Bank()
    bank.top_up("u", 10**12, at=0)
    bank.set_rate("u", HOUR, at=10, resource="gone")
    bank.set_rate("u", 0, at=20, resource="gone")
    bank.set_rate("u", 3 * HOUR, at=30, resource="vm")
    for number in range(20):
        bank.top_up("u", 1, at=100 + number)
    file = File(tmp_path, life_of(bank), b"u")
    for _ in prune(file.store, 115):
        pass
    kept = [entry_id for (entry_id,) in file.store.db.execute("SELECT entry_id FROM entries ORDER BY seq")]
    assert kept[0] == 4
    found = file.statement(116, 119)
    assert [(line["resource"], line["accrued_nanos"]) for line in found["resources"]] == [("vm", 9)]


def test_batches_come_in_between_and_the_feed_refuses_who_has_not_had_what_went(data_dir: Path) -> None:
    scene = Scene(users=5)
    store = opened(data_dir)
    store.take(1, scene.batch(200))
    store.flush()
    early = page(shelf_of(data_dir, store), "", 3, {}, all_written=True).rows[-1]["cursor"]
    late = end_of(store)
    limit_ns, position = scene.now_ns, 1
    newest_before = {user: rows[-1]["entry_id"] for user, rows in scene.rows.items()}
    for _ in prune(store, limit_ns):
        position += 1
        store.take(position, scene.batch(20))
    store.flush()
    shelf = shelf_of(data_dir, store)
    for user, entry_id in newest_before.items():
        rows = [row for row in shelf.history(1, user, INT64_MAX, 1000).rows if row["operation"] != "missing"]
        assert rows == scene.history(user)[: len(rows)]
        assert rows[-1]["entry_id"] <= entry_id
    with pytest.raises(UnknownCursor, match="keep_days"):
        page(shelf, early, 10, {}, all_written=True)
    assert page(shelf, late, 10, {}, all_written=True).rows
    everything = page(shelf, "", 10_000, {}, all_written=False)
    assert not everything.waits
    store.close()
    again = opened(data_dir, head=position)
    assert rows_are_sound(again.db)
