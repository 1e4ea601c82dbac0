"""The cost of the timing wheel: insert, re-arm and fire, in CPU microseconds each, with a million accounts armed.

The accounts are armed over 30 days, as balances are. The owner is two columns; its calls and the benchmark's own loop
are measured alone and subtracted. `fire` is everything that happens to an account on its way from a slot of level 0 to
the result of `advance`: out of the slot, through the heap, two calls of `due_of` and one of `moved`.

    python -m benchmarks.wheel [--accounts 1000000]
"""

import argparse
import json
import random
import time
from array import array
from collections.abc import Callable, Sequence

from billing.expirationd.wheel import Filing, Wheel

FOUND: dict[str, dict[str, float]] = {}  # the figures shown, for --json
DAY_NS = 86_400 * 10**9
LIMIT = 1024


class Owner:
    """The coming instants and the filed instants of all accounts, as columns."""

    def __init__(self, accounts: int) -> None:
        self.due_ns = array("q", [-1]) * accounts
        self.filed_ns = array("q", [-1]) * accounts
        self.moves = 0

    def due_of(self, filings: Sequence[Filing]) -> list[int]:
        due_column, filed_column = self.due_ns, self.filed_ns
        return [due_column[ref] if filed_column[ref] == filed_ns else -1 for ref, filed_ns in filings]

    def moved(self, filings: Sequence[Filing]) -> None:
        filed_column = self.filed_ns
        for ref, filed_ns in filings:
            filed_column[ref] = filed_ns
        self.moves += len(filings)


def cpu_us(count: int, work: Callable[[], None]) -> float:
    before = time.process_time_ns()
    work()
    return (time.process_time_ns() - before) / 1000 / count


def show(name: str, count: int, gross_us: float, alone_us: float) -> None:
    FOUND[name] = {"count": count, "gross_us": round(gross_us, 3), "net_us": round(gross_us - alone_us, 3)}
    print(
        f"{name:<32}{count:>9} x {gross_us:7.3f} us, of it benchmark and owner {alone_us:.3f}, wheel "
        f"{gross_us - alone_us:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="the figures once more, as JSON, on the last line")
    arguments = parser.parse_args()
    accounts = arguments.accounts
    rng = random.Random(1)
    start_ns = 1_700_000_000 * 10**9
    wheel = Wheel(start_ns)
    owner = Owner(accounts)
    due_column, filed_column = owner.due_ns, owner.filed_ns
    for ref in range(accounts):
        due_column[ref] = start_ns + rng.randrange(DAY_NS, 30 * DAY_NS)

    def insert() -> None:
        for ref in range(accounts):
            filed_column[ref] = wheel.insert(ref, due_column[ref])

    def insert_alone() -> None:
        for ref in range(accounts):
            filed_column[ref] = due_column[ref]

    alone_us = cpu_us(accounts, insert_alone)
    show("insert", accounts, cpu_us(accounts, insert), alone_us)

    # The sweep that a tripling of the filings causes, so that the figures below do not include it.
    def sweep() -> None:
        while 0 <= wheel.next_due_ns() <= start_ns + 60 * 10**9:
            wheel.advance(max(wheel.next_due_ns(), wheel.position_ns), owner.due_of, owner.moved, LIMIT)

    print(f"{'sweep, once per tripling':<32}{accounts:>9} x {cpu_us(accounts, sweep):7.3f} us")
    start_ns += 60 * 10**9
    wheel.advance(start_ns, owner.due_of, owner.moved, LIMIT)

    some = rng.sample(range(accounts), accounts // 10)

    def rearm_later() -> None:
        for ref in some:
            due_ns = due_column[ref] + 1_000_000
            due_column[ref] = due_ns
            if due_ns < filed_column[ref]:
                filed_column[ref] = wheel.insert(ref, due_ns)

    def rearm_earlier() -> None:
        for ref in some:
            due_ns = start_ns + (due_column[ref] - start_ns) // 4
            due_column[ref] = due_ns
            if due_ns < filed_column[ref]:
                filed_column[ref] = wheel.insert(ref, due_ns)

    later_us = cpu_us(len(some), rearm_later)
    show("re-arm later (a comparison)", len(some), later_us, later_us)
    show("re-arm earlier (a new filing)", len(some), cpu_us(len(some), rearm_earlier), later_us)

    soon = rng.sample(range(accounts), accounts // 5)
    for ref in soon:
        due_column[ref] = start_ns + 4_000_000 + rng.randrange(500_000_000)
        filed_column[ref] = wheel.insert(ref, due_column[ref])
    fired: list[int] = []

    def fire() -> None:
        now_ns = start_ns
        while now_ns < start_ns + 600_000_000:
            now_ns += 500_000
            while 0 <= wheel.next_due_ns() <= now_ns:
                fired.extend(wheel.advance(now_ns, owner.due_of, owner.moved, LIMIT))

    def fire_alone() -> None:
        for first in range(0, len(soon), LIMIT):
            filings = [(ref, filed_column[ref]) for ref in soon[first : first + LIMIT]]
            owner.due_of(filings)
            owner.moved(filings)
            owner.due_of(filings)

    alone_us = cpu_us(len(soon), fire_alone)
    show("fire, from level 0", len(soon), cpu_us(len(soon), fire), alone_us)
    assert sorted(fired) == sorted(soon)
    for ref in fired:
        filed_column[ref] = due_column[ref] = -1

    owner.moves = 0
    rest = accounts - len(fired)
    slices_ns: list[int] = []

    def month() -> None:
        while (wake_ns := wheel.next_due_ns()) >= 0:
            before = time.perf_counter_ns()
            for ref in wheel.advance(max(wake_ns, wheel.position_ns), owner.due_of, owner.moved, LIMIT):
                filed_column[ref] = due_column[ref] = -1
                fired.append(ref)
            slices_ns.append(time.perf_counter_ns() - before)

    month_us = cpu_us(rest, month)
    assert len(fired) == accounts
    slices_ns.sort()
    print(
        f"the whole way of an account alone in its millisecond: {month_us:.1f} us, {owner.moves / rest:.2f} moves, "
        f"{len(slices_ns) / rest:.2f} wake-ups"
    )
    print(
        f"a slice of {LIMIT}: p99.9 {slices_ns[len(slices_ns) * 999 // 1000] / 1000:.0f} us, "
        f"max {slices_ns[-1] / 1000:.0f} us"
    )
    if arguments.json:
        print(json.dumps(FOUND))


if __name__ == "__main__":
    main()
