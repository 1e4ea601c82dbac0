"""The rule of exhaustion: the first nanosecond at which nothing is left to spend. Pure arithmetic.

At an instant an account has `available` to spend, above zero, and spends `rate` of it in each nanosecond (both in
internal units, so that nothing is rounded). It runs out at

    E = at + ceil(available / rate)        the first nanosecond with  rate * (E - at) >= available

E is the same from whichever instant before it is computed. Credits that end make E earlier: the rest of a credit is
lost at the credit's end. `falls_ns` therefore goes from one end to the next, and uses the formula behind the last one.

Whoever changes this rule must change this module and its copy in `fast_path` (the tests compare the two), and then the
implementations that are independent on purpose and share no code with it: the doctor, the load test's verdict, and in
the tests the model and the simulation's auditor.
"""

from billing.ledger.credits import Credits, after_time
from billing.ledger.extra import NEVER_NS


def exhaustion_ns(at_ns: int, available: int, rate: int) -> int:
    """E, from `available` and `rate` above zero; may lie beyond 2**63-1."""
    return at_ns - (-available // rate)


def falls_ns(credits: Credits, rate: int, at_ns: int, available: int) -> int:
    """The first instant at which `available`, above zero now, is zero or below, because it was spent or credits ended.
    NEVER_NS if that never happens; may lie beyond 2**63-1.
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
