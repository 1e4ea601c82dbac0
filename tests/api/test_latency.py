"""Latency of requests: each is counted once, under its method, with the time from its read to its reply."""

from __future__ import annotations

from billing.api.latency import REQUEST_NS, Reads, RequestLatency

MS = 1_000_000


def counted(latency: RequestLatency, method: str) -> list[tuple[float, int]]:
    """(bound in ms, how many) of a method, where there are any; above the last bound it is infinite."""
    plain = latency.figures()["rpc"][method]
    bounds = [*(bound / MS for bound in plain["bounds"]), float("inf")]
    return [(bound, count) for bound, count in zip(bounds, plain["counts"], strict=True) if count]


def test_all_requests_of_a_read_took_as_long_as_the_slowest() -> None:
    latency, reads = RequestLatency(), Reads()
    reads.begin(0, 3, {b"top_up": 2, b"get_account": 1})
    reads.answered(4 * MS, 1, latency, "rpc")
    assert latency.figures() == {}, "one is still to be answered"
    reads.answered(7 * MS, 0, latency, "rpc")
    assert counted(latency, "top_up") == [(10, 2)]
    assert counted(latency, "get_account") == [(10, 1)]
    assert latency.figures()["rpc"]["top_up"]["sum"] == 14 * MS


def test_reads_are_answered_in_their_order() -> None:
    latency, reads = RequestLatency(), Reads()
    reads.begin(0, 2, {b"top_up": 2})
    reads.begin(5 * MS, 1, {b"debit": 1})
    reads.answered(6 * MS, 1, latency, "rpc")
    assert counted(latency, "top_up") == [(10, 2)]
    assert "debit" not in latency.figures()["rpc"]
    assert reads.under_way
    reads.answered(7 * MS, 0, latency, "rpc")
    assert counted(latency, "debit") == [(2.5, 1)]
    assert not reads.under_way


def test_what_was_answered_while_it_was_read_leaves_with_the_next_replies() -> None:
    latency, reads = RequestLatency(), Reads()
    reads.begin(0, 0, {b"history": 1})
    reads.answered(1 * MS, 0, latency, "rpc")
    assert counted(latency, "history") == [(1, 1)]


def test_what_takes_longer_than_the_last_bound_is_counted_behind_it() -> None:
    latency = RequestLatency()
    latency.note("rpc", b"debit", REQUEST_NS[-1] + 1)
    assert counted(latency, "debit") == [(float("inf"), 1)]
