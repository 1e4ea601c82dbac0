"""When a delivered cutoff is looked at again, and how much an endpoint was seen to take."""

from __future__ import annotations

from billing.expirationd.recheck import Rechecks
from billing.expirationd.throughput import ANSWERS_MIN, WINDOW_NS, Throughput


def test_looks_come_in_order_and_only_the_latest_of_an_account_counts() -> None:
    rechecks = Rechecks(100)
    assert rechecks.next_ns() == -1
    rechecks.delivered(1, b"a", 1, 10)
    rechecks.delivered(1, b"b", 1, 20)
    rechecks.delivered(1, b"a", 1, 50)  # sent again meanwhile
    assert rechecks.next_ns() == 110
    assert rechecks.due(109, 10) == []
    assert rechecks.due(130, 10) == [(120, 1, b"b", 1)]
    assert rechecks.due(149, 10) == []
    assert rechecks.due(150, 10) == [(150, 1, b"a", 1)]
    assert rechecks.next_ns() == -1


def test_no_more_than_asked_for_at_once_and_nothing_where_it_is_off() -> None:
    rechecks = Rechecks(5)
    for number in range(10):
        rechecks.delivered(2, b"%d" % number, 1, number)
    assert [look[2] for look in rechecks.due(100, 4)] == [b"0", b"1", b"2", b"3"]
    off = Rechecks(0)
    off.delivered(1, b"a", 1, 10)
    assert off.next_ns() == -1


def test_what_an_endpoint_takes_is_seen_only_while_there_was_more_to_send() -> None:
    throughput = Throughput()
    for number in range(1000):  # one at a time: says nothing
        throughput.answered(1 + number * 10**6, False)
    assert throughput.per_second == -1
    start = 10**10
    for number in range(301):  # one each millisecond, all senders at work
        throughput.answered(start + number * 10**6, True)
    assert throughput.per_second == 1000
    assert WINDOW_NS < 301 * 10**6
    start = 10**11
    for number in range(ANSWERS_MIN + 1):  # a short burst that ends
        throughput.answered(start + number * 10**4, number < ANSWERS_MIN)
    assert throughput.per_second == 100_000
