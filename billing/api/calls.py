"""Builds commands from the parsed values of a call, and parses the three most frequent commands by hand.

The row of a command builds its canonical tuple (`billing.ledger.commands`) from the values that it has parsed: with
`command_of`, which puts values into their places, or with a function `…_of` of its own. The parser of the row then adds
the actor.

`top_up`, `set_rate` and `debit` make up nearly all requests of a busy day. Their parsers are written by hand, and their
plain forms run straight through, with the checks inline. They take the decoded `params` of a request, and return or
raise exactly what the parser made of the row returns or raises; a test compares the two.
"""

from collections.abc import Callable
from typing import Any, Final

from billing.api.params import (
    array_params,
    invalid,
    pairs_of,
    request_id_of,
    text_of,
    two_and_options,
    unknown_option,
    user_id_of,
    whole_of,
)
from billing.ledger.commands import (
    ADJUST,
    CHANGE_RATE,
    DEBIT,
    DEFAULT_CLASS,
    KIND_BYTES_MAX,
    LEASE_NS_MIN,
    MESSAGE_BYTES_MAX,
    MODES,
    RESOURCE_BYTES_MAX,
    SET_CLASS,
    SET_RATE,
    SET_THRESHOLDS,
    STRICT,
    TOP_UP,
    TTL_NS,
    USER_ID_BYTES_MAX,
    Command,
    number_option,
    pack_thresholds,
    top_up_options,
)
from billing.ledger.money import (
    INT64_MAX,
    parse_amount,
    parse_delta,
    parse_rate,
)

_RATE_PER_SECOND_MAX: Final = INT64_MAX // 3600
_SECOND: Final = b"second"
_MODES: Final = {name.encode(): mode for name, mode in MODES.items()}


def top_up(params: object, actor: bytes = b"") -> Command:
    """Parses `user_id, amount, {expires_at_ns, kind, request_id, message}`. Raises Refused."""
    values = params if type(params) is list else array_params(params, 2, "user_id, amount")
    if len(values) == 2:
        user_id, amount = values
        request_id = message = packed = b""
    else:
        user_id, amount, options = two_and_options(values, "user_id, amount")
        packed, request_id, message = _options_of_top_up(options)
    if type(user_id) is not bytes or not 0 < len(user_id) <= USER_ID_BYTES_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(amount) is not int or not 0 < amount <= INT64_MAX:
        amount = parse_amount(amount)
    return (TOP_UP, user_id, amount, 0, 0, b"", request_id, message, packed, actor)


def set_rate(params: object, actor: bytes = b"") -> Command:
    """Parses `user_id, rate, {per, resource, rate_seq, min_runway_ns, ttl_ns, request_id, message}`. Raises Refused."""
    values = params if type(params) is list else array_params(params, 2, "user_id, rate")
    per: object = _SECOND
    resource = request_id = message = packed = b""
    rate_seq = min_runway_ns = -1
    if len(values) == 2:
        user_id, rate = values
    else:
        user_id, rate, options = two_and_options(values, "user_id, rate")
        for name, value in pairs_of(options):
            if name == b"resource":
                resource = _resource_of(value)
            elif name == b"request_id":
                request_id = b"" if value is None else request_id_of(value)
            elif name == b"per":
                per = _SECOND if value is None else value
            elif name == b"rate_seq":
                rate_seq = -1 if value is None else whole_of(value, "rate_seq", 0)
            elif name == b"min_runway_ns":
                min_runway_ns = -1 if value is None else whole_of(value, "min_runway_ns", 0)
            elif name == b"ttl_ns":
                packed = b"" if value is None else number_option(TTL_NS, whole_of(value, "ttl_ns", LEASE_NS_MIN))
            elif name == b"message":
                message = _message_of(value)
            else:
                raise unknown_option(
                    name, ("per", "resource", "rate_seq", "min_runway_ns", "ttl_ns", "request_id", "message")
                )
    if type(user_id) is not bytes or not 0 < len(user_id) <= USER_ID_BYTES_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(rate) is int and 0 <= rate <= _RATE_PER_SECOND_MAX and per == _SECOND:
        rate_per_hour = rate * 3600
    else:
        rate_per_hour = parse_rate(rate, per)
    return (SET_RATE, user_id, rate_per_hour, rate_seq, min_runway_ns, resource, request_id, message, packed, actor)


def debit(params: object, actor: bytes = b"") -> Command:
    """Parses `user_id, amount, {mode, request_id, message}`. Raises Refused."""
    values = params if type(params) is list else array_params(params, 2, "user_id, amount")
    mode = STRICT
    request_id = message = b""
    if len(values) == 2:
        user_id, amount = values
    else:
        user_id, amount, options = two_and_options(values, "user_id, amount")
        for name, value in pairs_of(options):
            if name == b"request_id":
                request_id = b"" if value is None else request_id_of(value)
            elif name == b"message":
                message = _message_of(value)
            elif name == b"mode":
                mode = STRICT if value is None else _mode_of(value)
            else:
                raise unknown_option(name, ("mode", "request_id", "message"))
    if type(user_id) is not bytes or not 0 < len(user_id) <= USER_ID_BYTES_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(amount) is not int or not 0 < amount <= INT64_MAX:
        amount = parse_amount(amount)
    return (DEBIT, user_id, amount, mode, 0, b"", request_id, message, b"", actor)


def _options_of_top_up(options: object) -> tuple[bytes, bytes, bytes]:
    request_id = message = kind = b""
    expires_at_ns = -1
    for name, value in pairs_of(options):
        if name == b"request_id":
            request_id = b"" if value is None else request_id_of(value)
        elif name == b"message":
            message = _message_of(value)
        elif name == b"expires_at_ns":
            expires_at_ns = -1 if value is None else whole_of(value, "expires_at_ns", 0)
        elif name == b"kind":
            kind = b"" if value is None else text_of(value, "kind", 0, KIND_BYTES_MAX)
        else:
            raise unknown_option(name, ("expires_at_ns", "kind", "request_id", "message"))
    return top_up_options(expires_at_ns, kind), request_id, message


def _message_of(value: object) -> bytes:
    return b"" if value is None else text_of(value, "message", 0, MESSAGE_BYTES_MAX)


def _resource_of(value: object) -> bytes:
    return b"" if value is None else text_of(value, "resource", 0, RESOURCE_BYTES_MAX)


def _mode_of(value: object) -> int:
    name = value.encode("utf-8", "surrogatepass") if type(value) is str else value
    mode = _MODES.get(name) if type(name) is bytes else None
    if mode is None:
        raise invalid("mode must be strict, partial or force")
    return mode


# -- from parsed values to commands, for the rows of the table ---------------------------------------------------------


def command_of(op: int, a: str = "", b: str = "", key: str = "") -> Callable[..., Command]:
    """Returns a function that builds the command `op` from the values that a row has parsed. `a`, `b` and `key` name
    the values that go into these fields of the command; a field without a name is 0 or empty.
    """

    def build(user_id: bytes, request_id: bytes, **values: Any) -> Command:
        return (
            *(op, user_id, values[a] if a else 0, values[b] if b else 0, 0, values[key] if key else b""),
            *(request_id, values["message"], b"", b""),
        )

    return build


def top_up_of(
    user_id: bytes, amount: int, expires_at_ns: int, kind: bytes, request_id: bytes, message: bytes
) -> Command:
    """Builds `top_up` from the values that its row has parsed."""
    packed = top_up_options(expires_at_ns, kind)
    return (TOP_UP, user_id, amount, 0, 0, b"", request_id, message, packed, b"")


def set_rate_of(
    user_id: bytes,
    rate: object,
    per: object,
    resource: bytes,
    rate_seq: int,
    min_runway_ns: int,
    ttl_ns: int,
    request_id: bytes,
    message: bytes,
) -> Command:
    """Builds `set_rate` from the values that its row has parsed."""
    packed = b"" if ttl_ns < 0 else number_option(TTL_NS, ttl_ns)
    nanos_per_hour = parse_rate(rate, per)
    return (SET_RATE, user_id, nanos_per_hour, rate_seq, min_runway_ns, resource, request_id, message, packed, b"")


def change_rate_of(
    user_id: bytes, delta: object, per: object, resource: bytes, request_id: bytes, message: bytes
) -> Command:
    """Builds `change_rate`."""
    return (CHANGE_RATE, user_id, parse_delta(delta, per), 0, 0, resource, request_id, message, b"", b"")


def debit_of(user_id: bytes, amount: int, mode: int, request_id: bytes, message: bytes) -> Command:
    """Builds `debit` from the values that its row has parsed."""
    return (DEBIT, user_id, amount, mode, 0, b"", request_id, message, b"", b"")


def adjust_of(user_id: bytes, amount: int, reason: bytes, request_id: bytes, message: bytes) -> Command:
    """Builds `adjust`, whose entry has the reason as its message, followed by `: ` and `message` where that is given.
    Raises Refused.
    """
    text = b": ".join((reason, message)) if message else reason
    if len(text) > MESSAGE_BYTES_MAX:
        raise invalid(f"reason and message may have {MESSAGE_BYTES_MAX} bytes together")
    return (ADJUST, user_id, amount, 0, 0, b"", request_id, text, b"", b"")


def set_thresholds_of(user_id: bytes, thresholds: list[tuple[int, int]], request_id: bytes, message: bytes) -> Command:
    """Builds `set_thresholds`."""
    packed = pack_thresholds(thresholds)
    return (SET_THRESHOLDS, user_id, len(set(thresholds)), 0, 0, packed, request_id, message, b"", b"")


def set_class_of(user_id: bytes, request_id: bytes, message: bytes, **options: bytes) -> Command:
    """Builds `set_class`; `options` has the cutoff class under `class`, which Python does not allow as a parameter."""
    name = b"" if options["class"] == DEFAULT_CLASS.encode() else options["class"]
    return (SET_CLASS, user_id, 0, 0, 0, name, request_id, message, b"", b"")
