"""The rule of exhaustion: the first nanosecond at which nothing is left to spend. Pure arithmetic.

An account has `available` to spend at an instant, above zero, and spends `rate` of it in each nanosecond (both in
internal units, so that nothing is rounded). It runs out at

    E = at + ceil(available / rate)        the first nanosecond with  rate * (E - at) >= available

E does not depend on the instant before it from which it is worked out. Credits that end make it come earlier: what is
left of a credit at its end is lost, so time is walked from end to end, and the formula holds behind the last one.

A change of the rule changes this module and its copy in `fast_path` (the tests hold the two together), and then the
deliberate second implementations, which share nothing with it: the doctor, the load test's verdict, and in the tests
the model and the simulation's auditor.
"""

from billing.ledger.credits import Credits, after_time
from billing.ledger.extra import NEVER_NS


def exhaustion_ns(at_ns: int, available: int, rate: int) -> int:
    """E, from `available` and `rate` above zero; may lie beyond 2**63-1."""
    return at_ns - (-available // rate)


def falls_ns(credits: Credits, rate: int, at_ns: int, available: int) -> int:
    """The first instant at which `available`, above zero now, is zero or below: spent, or lost to ends of credits.
    NEVER_NS where it stays above; may lie beyond 2**63-1.
    """
    while credits:
        ends_ns = credits[0].ends_ns
        if rate * (ends_ns - at_ns) >= available:
            break
        credits, lost = after_time(credits, rate, at_ns, ends_ns)
        available -= rate * (ends_ns - at_ns) + lost
        at_ns = ends_ns
        if available <= 0:
            return ends_ns
    return exhaustion_ns(at_ns, available, rate) if rate else NEVER_NS
