"""One parser per procedure that changes an account: from the decoded `params` of a request to its `Command`.

A parser takes what the client sent as `params` (an array, or nil for an empty one) and returns a `Command` of
`billing.ledger.commands`. It raises `Refused`: `INVALID_PARAMS` saying what the procedure takes, or the name that
belongs to the value at fault. After all required parameters one more may be a map of options.

`top_up`, `set_rate` and `debit` are called for every request of a busy day: their plain forms run straight through,
with the checks written out.
"""

from typing import Final

from billing.api.params import (
    array_of,
    array_params,
    invalid,
    pairs_of,
    request_id_of,
    split_params,
    text_of,
    two_and_options,
    unknown_option,
    user_id_of,
    whole_of,
)
from billing.ledger.commands import (
    ADJUST,
    BY_AMOUNT,
    BY_RUNWAY,
    CAPTURE,
    CHANGE_RATE,
    CLOSE,
    DEBIT,
    HOLD,
    HOLD_ID_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    MODES,
    RELEASE,
    RESOURCE_BYTES_MAX,
    SET_CREDIT_LIMIT,
    SET_RATE,
    SET_THRESHOLDS,
    STRICT,
    THRESHOLDS_MAX,
    TOP_UP,
    USER_ID_BYTES_MAX,
    Command,
    pack_thresholds,
)
from billing.ledger.money import (
    INT64_MAX,
    parse_amount,
    parse_delta,
    parse_limit,
    parse_rate,
    parse_signed_amount,
)

_RATE_PER_SECOND_MAX: Final = INT64_MAX // 3600
_SECOND: Final = b"second"
_MODES: Final = {name.encode(): mode for name, mode in MODES.items()}


def top_up(params: object) -> Command:
    """user_id, amount, {request_id, message}"""
    values = params if type(params) is list else array_params(params, 2, "user_id, amount")
    if len(values) == 2:
        user_id, amount = values
        request_id = message = b""
    else:
        user_id, amount, options = two_and_options(values, "user_id, amount")
        request_id, message = _request_id_and_message(options)
    if type(user_id) is not bytes or not 0 < len(user_id) <= USER_ID_BYTES_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(amount) is not int or not 0 < amount <= INT64_MAX:
        amount = parse_amount(amount)
    return (TOP_UP, user_id, amount, 0, 0, b"", request_id, message)


def set_rate(params: object) -> Command:
    """user_id, rate, {per, resource, rate_seq, min_runway_ns, request_id, message}"""
    values = params if type(params) is list else array_params(params, 2, "user_id, rate")
    per: object = _SECOND
    resource = request_id = message = b""
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
            elif name == b"message":
                message = _message_of(value)
            else:
                raise unknown_option(name, ("per", "resource", "rate_seq", "min_runway_ns", "request_id", "message"))
    if type(user_id) is not bytes or not 0 < len(user_id) <= USER_ID_BYTES_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(rate) is int and 0 <= rate <= _RATE_PER_SECOND_MAX and per == _SECOND:
        rate_per_hour = rate * 3600
    else:
        rate_per_hour = parse_rate(rate, per)
    return (SET_RATE, user_id, rate_per_hour, rate_seq, min_runway_ns, resource, request_id, message)


def change_rate(params: object) -> Command:
    """user_id, delta, {per, resource, request_id, message}"""
    user_id, delta, options = two_and_options(array_params(params, 2, "user_id, delta"), "user_id, delta")
    per: object = _SECOND
    resource = request_id = message = b""
    for name, value in pairs_of(options):
        if name == b"per":
            per = _SECOND if value is None else value
        elif name == b"resource":
            resource = _resource_of(value)
        elif name == b"request_id":
            request_id = b"" if value is None else request_id_of(value)
        elif name == b"message":
            message = _message_of(value)
        else:
            raise unknown_option(name, ("per", "resource", "request_id", "message"))
    return (CHANGE_RATE, user_id_of(user_id), parse_delta(delta, per), 0, 0, resource, request_id, message)


def debit(params: object) -> Command:
    """user_id, amount, {mode, request_id, message}"""
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
    return (DEBIT, user_id, amount, mode, 0, b"", request_id, message)


def set_credit_limit(params: object) -> Command:
    """user_id, amount, {request_id}"""
    user_id, amount, options = two_and_options(array_params(params, 2, "user_id, amount"), "user_id, amount")
    request_id = _request_id(options)
    return (SET_CREDIT_LIMIT, user_id_of(user_id), parse_limit(amount), 0, 0, b"", request_id, b"")


def hold(params: object) -> Command:
    """user_id, amount, {ttl_ns, request_id}"""
    user_id, amount, options = two_and_options(array_params(params, 2, "user_id, amount"), "user_id, amount")
    ttl_ns = 0
    request_id = b""
    for name, value in pairs_of(options):
        if name == b"ttl_ns":
            ttl_ns = 0 if value is None else whole_of(value, "ttl_ns", 1)
        elif name == b"request_id":
            request_id = b"" if value is None else request_id_of(value)
        else:
            raise unknown_option(name, ("ttl_ns", "request_id"))
    return (HOLD, user_id_of(user_id), parse_amount(amount), ttl_ns, 0, b"", request_id, b"")


def capture(params: object) -> Command:
    """user_id, hold_id, amount, {request_id}"""
    values, options = split_params(params, 3, "user_id, hold_id, amount")
    user_id, hold_id, amount = values
    request_id = _request_id(options)
    return (CAPTURE, user_id_of(user_id), parse_amount(amount), 0, 0, _hold_id_of(hold_id), request_id, b"")


def release(params: object) -> Command:
    """user_id, hold_id, {request_id}"""
    user_id, hold_id, options = two_and_options(array_params(params, 2, "user_id, hold_id"), "user_id, hold_id")
    return (RELEASE, user_id_of(user_id), 0, 0, 0, _hold_id_of(hold_id), _request_id(options), b"")


def adjust(params: object) -> Command:
    """user_id, amount, reason, {request_id}"""
    values, options = split_params(params, 3, "user_id, amount, reason")
    user_id, amount, reason = values
    message = text_of(reason, "reason", 1, MESSAGE_BYTES_MAX)
    request_id = _request_id(options)
    return (ADJUST, user_id_of(user_id), parse_signed_amount(amount), 0, 0, b"", request_id, message)


def set_thresholds(params: object) -> Command:
    """user_id, thresholds, {request_id}"""
    user_id, given, options = two_and_options(array_params(params, 2, "user_id, thresholds"), "user_id, thresholds")
    thresholds = [_threshold_of(each) for each in array_of(given, "thresholds", THRESHOLDS_MAX)]
    packed = pack_thresholds(thresholds)
    count = len(set(thresholds))
    return (SET_THRESHOLDS, user_id_of(user_id), count, 0, 0, packed, _request_id(options), b"")


def close_account(params: object) -> Command:
    """user_id, {request_id}"""
    (user_id,), options = split_params(params, 1, "user_id")
    return (CLOSE, user_id_of(user_id), 0, 0, 0, b"", _request_id(options), b"")


def _request_id(options: object) -> bytes:
    request_id = b""
    for name, value in pairs_of(options):
        if name != b"request_id":
            raise unknown_option(name, ("request_id",))
        request_id = b"" if value is None else request_id_of(value)
    return request_id


def _request_id_and_message(options: object) -> tuple[bytes, bytes]:
    request_id = message = b""
    for name, value in pairs_of(options):
        if name == b"request_id":
            request_id = b"" if value is None else request_id_of(value)
        elif name == b"message":
            message = _message_of(value)
        else:
            raise unknown_option(name, ("request_id", "message"))
    return request_id, message


def _message_of(value: object) -> bytes:
    return b"" if value is None else text_of(value, "message", 0, MESSAGE_BYTES_MAX)


def _resource_of(value: object) -> bytes:
    return b"" if value is None else text_of(value, "resource", 0, RESOURCE_BYTES_MAX)


def _hold_id_of(value: object) -> bytes:
    return text_of(value, "hold_id", 1, HOLD_ID_BYTES_MAX)


def _mode_of(value: object) -> int:
    name = value.encode("utf-8", "surrogatepass") if type(value) is str else value
    mode = _MODES.get(name) if type(name) is bytes else None
    if mode is None:
        raise invalid("mode must be strict, partial or force")
    return mode


def _threshold_of(value: object) -> tuple[int, int]:
    pairs = pairs_of(value, "a threshold") if value is not None else ()
    if len(pairs) == 1:
        name, bound = pairs[0]
        if name == b"amount":
            return BY_AMOUNT, parse_limit(bound)
        if name == b"runway_ns":
            return BY_RUNWAY, whole_of(bound, "runway_ns", 0)
    raise invalid("a threshold must be a map of either amount or runway_ns")
