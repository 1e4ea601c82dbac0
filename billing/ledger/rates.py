"""Commands about the rate (set_rate, change_rate) and the ends of leases. The account's rate is the sum of its lines.

A rate report states a fact, so the ledger accepts it also for an exhausted account. With `min_runway_ns` the caller
asks for admission instead: the ledger refuses the command if the money would not last that long at the new total rate;
on an exhausted account it always refuses, even for a runway of 0 (unless the total rate is then zero). `rate_seq` is
counted per line; a set_rate whose rate_seq is not newer is refused with `STALE_RATE`. A line at zero and its rate_seq
are forgotten after 7 days; a line at zero without a rate_seq is forgotten at once.

A *lease* ends a line: `ttl_ns` after a set_rate the line falls to zero, as if a report had said so, unless it was
reported again before. Each set_rate decides anew: with `ttl_ns` the lease begins again, without it the line has no
lease (or the one that the rules give). A change_rate keeps the lease; where the rules give a lease that ends later, the
end moves to that. A lease whose end lies beyond 2**63-1 counts as none. E, runway, thresholds and admission assume that
each lease will be renewed: they show what happens if all lines go on as last reported, and change when a line ends.
"""

from typing import Final

from billing.ledger import commands as ops
from billing.ledger.account import Account, Handlers, Rejected
from billing.ledger.commands import Command
from billing.ledger.entry import LIMITS
from billing.ledger.exhaustion import falls_ns
from billing.ledger.extra import NEVER_NS, Extra
from billing.ledger.money import INT64_MAX

LINES_MAX: Final = 10_000  # lines per account, including those at zero that are still remembered
QUIET_NS: Final = 7 * 24 * 3600 * 10**9

_RATE: Final = LIMITS.index("rate")
_LINES: Final = LIMITS.index("rate_lines")


def set_rate(account: Account, command: Command) -> None:
    """Sets one line to `a` nanos per hour; `b` is its rate_seq, `c` min_runway_ns, each -1 if not given."""
    _, _, rate, rate_seq, min_runway_ns, resource, _, _, packed, _ = command
    old_rate, old_seq = line(account, resource)
    if rate_seq >= 0:
        if rate_seq <= old_seq:
            raise Rejected("STALE_RATE", old_seq)
        old_seq = rate_seq
    ends_ns = _lease_end(account, packed) if packed and rate else NEVER_NS
    _set_line(account, resource, old_rate, rate, old_seq, min_runway_ns, ends_ns)


def change_rate(account: Account, command: Command) -> None:
    """Adds `a` nanos per hour, signed, to one line, which keeps its rate_seq."""
    _, _, delta, _, _, resource, _, _, packed, _ = command
    old_rate, old_seq = line(account, resource)
    if old_rate + delta < 0:
        raise Rejected("INVALID_RATE", old_rate)
    known_ns = account.extra.leases.get(resource, -1) if account.extra is not None else -1
    ends_ns = max(known_ns, _lease_end(account, packed) if packed else -1)
    _set_line(account, resource, old_rate, old_rate + delta, old_seq, -1, NEVER_NS if ends_ns < 0 else ends_ns)


def with_lease(command: Command, ttl_ns: int) -> Command:
    """The command with a lease of `ttl_ns` added, if it reports a rate and asks for no lease; else the same command."""
    op, _, rate, *_, packed, _ = command
    if packed or op not in ops.OF_LINES or (op == ops.SET_RATE and not rate):
        return command
    return (*command[:8], ops.number_option(ops.DEFAULT_TTL_NS, ttl_ns), command[9])


def _lease_end(account: Account, packed: bytes) -> int:
    """The end of a lease that begins now, from a command's options; NEVER_NS if they give no lease, or its end lies
    beyond 2**63-1.
    """
    options = ops.unpack_options(packed)
    ttl_ns = ops.number_of(options, ops.TTL_NS)
    if ttl_ns is None:
        ttl_ns = ops.number_of(options, ops.DEFAULT_TTL_NS)
    ends_ns = NEVER_NS if ttl_ns is None else account.settled_ns + ttl_ns
    return ends_ns if ends_ns <= INT64_MAX else NEVER_NS


def end_lease(account: Account, due_ns: int) -> tuple[bytes, int]:
    """Sets the line whose lease ends at `due_ns` to zero; of several such lines, only the first by name. Returns
    (resource, the rate that the line had).
    """
    extra = account.extra
    assert extra is not None, "an account without leases"
    ends_ns, resource = extra.next_lease() or (NEVER_NS, b"")
    assert ends_ns == due_ns, "another lease ends next, or none"
    rate, rate_seq = line(account, resource)
    _put(account, extra, resource, 0, rate_seq, NEVER_NS)
    account.rate -= rate
    return resource, rate


def line(account: Account, resource: bytes) -> tuple[int, int]:
    """(rate, rate_seq) of one line at the account's settled instant; (0, -1) if the account has no such line."""
    extra = account.extra
    if extra is None:
        return (0, -1) if resource else (account.rate, -1)
    if extra.lines is None:
        if not resource and account.rate:
            return account.rate, -1
    elif resource in extra.lines:
        return extra.lines[resource]
    if resource in extra.quiet:
        rate_seq, since_ns = extra.quiet[resource]
        if since_ns + QUIET_NS > account.settled_ns:
            return 0, rate_seq
    return 0, -1


def forget_old(extra: Extra, at_ns: int) -> None:
    """Forgets the lines that have been at zero for 7 days."""
    old = []
    for resource, (_, since_ns) in extra.quiet.items():
        if since_ns + QUIET_NS > at_ns:
            break
        old.append(resource)
    for resource in old:
        del extra.quiet[resource]


def _set_line(
    account: Account, resource: bytes, old_rate: int, rate: int, rate_seq: int, min_runway_ns: int, ends_ns: int
) -> None:
    total = account.rate - old_rate + rate
    if total > INT64_MAX:
        raise Rejected("LIMIT_EXCEEDED", _RATE)
    if min_runway_ns >= 0 and total > 0:
        available = account.available
        falls_at_ns = falls_ns(account.credits, total, account.settled_ns, available) if available > 0 else 0
        runway_ns = max(falls_at_ns - account.settled_ns, 0)
        if runway_ns == 0 or runway_ns < min_runway_ns:
            raise Rejected("INSUFFICIENT_RUNWAY", runway_ns)
    remembers = rate > 0 or rate_seq >= 0
    if remembers and not _has_room(account, resource):
        raise Rejected("LIMIT_EXCEEDED", _LINES)
    named = resource or rate_seq >= 0 or ends_ns != NEVER_NS
    if account.extra is not None or (remembers and named):  # else the row says it all
        extra = account.need_extra()
        forget_old(extra, account.settled_ns)
        _put(account, extra, resource, rate, rate_seq, ends_ns)
    account.rate = total
    account.raised = rate > 0 and old_rate == 0


def _has_room(account: Account, resource: bytes) -> bool:
    """Whether the account may have this line: it has the line already, or fewer than `LINES_MAX` lines."""
    extra = account.extra
    if extra is None:
        return True
    lines = extra.lines if extra.lines is not None else ({b"": (0, -1)} if account.rate else {})
    if resource in lines or len(lines) + len(extra.quiet) < LINES_MAX:
        return True
    oldest_ns = account.settled_ns - QUIET_NS
    if resource in extra.quiet and extra.quiet[resource][1] > oldest_ns:
        return True
    remembered = sum(since_ns > oldest_ns for _, since_ns in extra.quiet.values())
    return len(lines) + remembered < LINES_MAX


def _put(account: Account, extra: Extra, resource: bytes, rate: int, rate_seq: int, ends_ns: int) -> None:
    lines = extra.lines
    if extra.leases.pop(resource, NEVER_NS) == extra.next_expiry_ns:
        extra.find_next_expiry()
    if lines is None:
        lines = {b"": (account.rate, -1)} if account.rate else {}
    extra.quiet.pop(resource, None)
    lines.pop(resource, None)
    if rate > 0:
        lines[resource] = (rate, rate_seq)
    elif rate_seq >= 0:
        extra.quiet[resource] = (rate_seq, account.settled_ns)
    if rate > 0 and ends_ns != NEVER_NS:
        extra.lease(resource, ends_ns)
    plain = not lines or (lines.keys() == {b""} and lines[b""][1] < 0 and not extra.leases)
    extra.lines = None if plain else lines


HANDLERS: Final[Handlers] = {
    ops.SET_RATE: set_rate,
    ops.CHANGE_RATE: change_rate,
}
