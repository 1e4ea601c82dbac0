"""What a silence says of a server, and what it does not: instants in, opinions out."""

from __future__ import annotations

from billing.expirationd.silence import SILENCE_NS, STRIKES_MAX, Silence

MS = 1_000_000


def used(at_ns: int) -> Silence:
    """Of a server that answers within a millisecond, as one call has shown."""
    silence = Silence()
    assert not silence.answered(at_ns - MS, at_ns, False)
    return silence


def test_a_call_that_waits_for_an_idle_connection_is_suspicious_and_its_answer_a_strike() -> None:
    silence, at_ns = used(100 * MS), 200 * MS
    for strikes in range(1, STRIKES_MAX + 1):
        assert not silence.is_suspicious(at_ns, at_ns + SILENCE_NS), "not yet: the usual time is a part of it"
        cleared_ns = at_ns + SILENCE_NS + 2 * MS
        assert silence.is_suspicious(at_ns, cleared_ns)
        silence.cleared(cleared_ns)
        assert silence.answered(at_ns, cleared_ns + MS, False)
        assert silence.strikes == strikes
        silence.answered(cleared_ns + MS, cleared_ns + 2 * MS, True)  # the usual time again
        at_ns += 1_000 * MS


def test_a_call_that_others_overtook_is_slow_and_no_evidence() -> None:
    silence = used(100 * MS)
    slow_ns = 200 * MS
    silence.answered(slow_ns + SILENCE_NS + MS, slow_ns + SILENCE_NS + 2 * MS, True)
    assert not silence.is_overtaken(slow_ns), "a connection that was accepted long ago says nothing of a new one"
    silence.answered(slow_ns + SILENCE_NS + 3 * MS, slow_ns + SILENCE_NS + 4 * MS, False)
    assert silence.is_overtaken(slow_ns)
    assert silence.is_suspicious(slow_ns, slow_ns + 5_000 * MS), "it may wait in another queue of the server's"
    silence.cleared(slow_ns + 5_000 * MS)
    assert not silence.answered(slow_ns, slow_ns + 5_001 * MS, False)
    assert silence.strikes == 0


def test_an_answer_after_five_seconds_is_no_strike_where_idle_connections_were_closed_a_moment_before() -> None:
    silence = used(100 * MS)
    slow_ns, at_ns = 200 * MS, 300 * MS
    for _ in range(10 * STRIKES_MAX):  # some calls take five seconds; between two others nothing is heard for 30 ms
        silence.answered(at_ns, at_ns + MS, False)
        assert silence.is_suspicious(slow_ns, at_ns + 35 * MS)
        silence.cleared(at_ns + 35 * MS)
        assert not silence.answered(slow_ns, at_ns + 40 * MS, False)
        silence.answered(at_ns + 41 * MS, at_ns + 42 * MS, True)
        slow_ns, at_ns = slow_ns + 100 * MS, at_ns + 100 * MS
    assert silence.strikes == 0


def test_a_slow_answer_is_measured_by_what_was_usual_before_it() -> None:
    silence = used(100 * MS)
    silence.cleared(230 * MS)
    assert not silence.answered(200 * MS, 230 * MS + SILENCE_NS + 3 * MS, False), "later than a server that was freed"
    assert silence.strikes == 0


def test_what_is_usual_comes_down_at_once_and_goes_up_slowly() -> None:
    silence = used(100 * MS)
    silence.answered(200 * MS, 216 * MS + MS, True)
    assert silence.patience_ns == SILENCE_NS + 2 * 2 * MS
    silence.answered(300 * MS, 301 * MS, True)
    assert silence.patience_ns == SILENCE_NS + 2 * MS


def test_an_answer_on_a_proved_connection_is_never_a_strike() -> None:
    silence = used(100 * MS)
    silence.cleared(230 * MS)
    assert not silence.answered(200 * MS, 231 * MS, True)
