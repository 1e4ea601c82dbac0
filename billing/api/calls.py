"""One parser per procedure: from the decoded `params` of a request to its canonical tuple.

A parser takes what the client sent as `params` (an array, or nil for an empty one) and returns a `Command` of
`billing.ledger.commands` for a change of an account, else a tuple `(name, argument, …)` for a question, an operation
or something the door answers itself. It raises `Refused`: `INVALID_PARAMS` saying what the procedure takes, or the
name that belongs to the value at fault. After all required parameters one more may be a map of options.

`top_up`, `set_rate` and `debit` are called for every request of a busy day: their plain forms run straight through,
with the checks written out.
"""

from typing import Final

from billing.api.params import (
    array_of,
    invalid,
    pairs_of,
    request_id_of,
    text_of,
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

Query = tuple[object, ...]  # (name, argument, …)

HISTORY_ROWS_DEFAULT: Final = 100
HISTORY_ROWS_MAX: Final = 1_000
PAGE_ROWS_DEFAULT: Final = 1_000
PAGE_ROWS_MAX: Final = 1_000
NEWEST: Final = INT64_MAX  # `before` of a history that starts at the newest entry
TOKEN_BYTES_MAX: Final = 512

_USER_ID_MAX: Final = 128
_RATE_PER_SECOND_MAX: Final = INT64_MAX // 3600
_SECOND: Final = b"second"
_MODES: Final = {name.encode(): mode for name, mode in MODES.items()}


def top_up(params: object) -> Command:
    """user_id, amount, {request_id, message}"""
    values = params if type(params) is list else _array(params, 2, "user_id, amount")
    if len(values) == 2:
        user_id, amount = values
        request_id = message = b""
    else:
        user_id, amount, options = _three(values, "user_id, amount")
        request_id, message = _request_id_and_message(options)
    if type(user_id) is not bytes or not 0 < len(user_id) <= _USER_ID_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(amount) is not int or not 0 < amount <= INT64_MAX:
        amount = parse_amount(amount)
    return (TOP_UP, user_id, amount, 0, 0, b"", request_id, message)


def set_rate(params: object) -> Command:
    """user_id, rate, {per, resource, rate_seq, min_runway_ns, request_id, message}"""
    values = params if type(params) is list else _array(params, 2, "user_id, rate")
    per: object = _SECOND
    resource = request_id = message = b""
    rate_seq = min_runway_ns = -1
    if len(values) == 2:
        user_id, rate = values
    else:
        user_id, rate, options = _three(values, "user_id, rate")
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
    if type(user_id) is not bytes or not 0 < len(user_id) <= _USER_ID_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(rate) is int and 0 <= rate <= _RATE_PER_SECOND_MAX and per == _SECOND:
        rate_per_hour = rate * 3600
    else:
        rate_per_hour = parse_rate(rate, per)
    return (SET_RATE, user_id, rate_per_hour, rate_seq, min_runway_ns, resource, request_id, message)


def change_rate(params: object) -> Command:
    """user_id, delta, {per, resource, request_id, message}"""
    user_id, delta, options = _three(_array(params, 2, "user_id, delta"), "user_id, delta")
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
    values = params if type(params) is list else _array(params, 2, "user_id, amount")
    mode = STRICT
    request_id = message = b""
    if len(values) == 2:
        user_id, amount = values
    else:
        user_id, amount, options = _three(values, "user_id, amount")
        for name, value in pairs_of(options):
            if name == b"request_id":
                request_id = b"" if value is None else request_id_of(value)
            elif name == b"message":
                message = _message_of(value)
            elif name == b"mode":
                mode = STRICT if value is None else _mode_of(value)
            else:
                raise unknown_option(name, ("mode", "request_id", "message"))
    if type(user_id) is not bytes or not 0 < len(user_id) <= _USER_ID_MAX or not user_id.isascii():
        user_id = user_id_of(user_id)
    if type(amount) is not int or not 0 < amount <= INT64_MAX:
        amount = parse_amount(amount)
    return (DEBIT, user_id, amount, mode, 0, b"", request_id, message)


def set_credit_limit(params: object) -> Command:
    """user_id, amount, {request_id}"""
    user_id, amount, options = _three(_array(params, 2, "user_id, amount"), "user_id, amount")
    request_id = _request_id(options)
    return (SET_CREDIT_LIMIT, user_id_of(user_id), parse_limit(amount), 0, 0, b"", request_id, b"")


def hold(params: object) -> Command:
    """user_id, amount, {ttl_ns, request_id}"""
    user_id, amount, options = _three(_array(params, 2, "user_id, amount"), "user_id, amount")
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
    values, options = _split(params, 3, "user_id, hold_id, amount")
    user_id, hold_id, amount = values
    request_id = _request_id(options)
    return (CAPTURE, user_id_of(user_id), parse_amount(amount), 0, 0, _hold_id_of(hold_id), request_id, b"")


def release(params: object) -> Command:
    """user_id, hold_id, {request_id}"""
    user_id, hold_id, options = _three(_array(params, 2, "user_id, hold_id"), "user_id, hold_id")
    return (RELEASE, user_id_of(user_id), 0, 0, 0, _hold_id_of(hold_id), _request_id(options), b"")


def adjust(params: object) -> Command:
    """user_id, amount, reason, {request_id}"""
    values, options = _split(params, 3, "user_id, amount, reason")
    user_id, amount, reason = values
    message = text_of(reason, "reason", 1, MESSAGE_BYTES_MAX)
    request_id = _request_id(options)
    return (ADJUST, user_id_of(user_id), parse_signed_amount(amount), 0, 0, b"", request_id, message)


def set_thresholds(params: object) -> Command:
    """user_id, thresholds, {request_id}"""
    user_id, given, options = _three(_array(params, 2, "user_id, thresholds"), "user_id, thresholds")
    thresholds = [_threshold_of(each) for each in array_of(given, "thresholds", THRESHOLDS_MAX)]
    packed = pack_thresholds(thresholds)
    count = len(set(thresholds))
    return (SET_THRESHOLDS, user_id_of(user_id), count, 0, 0, packed, _request_id(options), b"")


def close_account(params: object) -> Command:
    """user_id, {request_id}"""
    (user_id,), options = _split(params, 1, "user_id")
    return (CLOSE, user_id_of(user_id), 0, 0, 0, b"", _request_id(options), b"")


def get_account(params: object) -> Query:
    """user_id"""
    return ("get_account", _only_user_id(params))


def history(params: object) -> Query:
    """user_id, {limit, before}"""
    (user_id,), options = _split(params, 1, "user_id")
    limit, before = HISTORY_ROWS_DEFAULT, NEWEST
    for name, value in pairs_of(options):
        if name == b"limit":
            limit = limit if value is None else whole_of(value, "limit", 1, HISTORY_ROWS_MAX)
        elif name == b"before":
            before = before if value is None else whole_of(value, "before", 0)
        else:
            raise unknown_option(name, ("limit", "before"))
    return ("history", user_id_of(user_id), limit, before)


def retry_cutoff(params: object) -> Query:
    """user_id"""
    return ("retry_cutoff", _only_user_id(params))


def bucket_id(params: object) -> Query:
    """user_id"""
    return ("bucket_id", _only_user_id(params))


def accounts(params: object) -> Query:
    """{after, limit}"""
    return ("accounts", *_page(params))


def pending_cutoffs(params: object) -> Query:
    """{after, limit}"""
    return ("pending_cutoffs", *_page(params))


def forecast(params: object) -> Query:
    """{within_ns, limit}"""
    _, options = _split(params, 0, "")
    within_ns, limit = INT64_MAX, PAGE_ROWS_DEFAULT
    for name, value in pairs_of(options):
        if name == b"within_ns":
            within_ns = within_ns if value is None else whole_of(value, "within_ns", 0)
        elif name == b"limit":
            limit = limit if value is None else whole_of(value, "limit", 1, PAGE_ROWS_MAX)
        else:
            raise unknown_option(name, ("within_ns", "limit"))
    return ("forecast", within_ns, limit)


def release_cutoffs(params: object) -> Query:
    """nothing"""
    return _bare("release_cutoffs", params)


def route(params: object) -> Query:
    """nothing"""
    return _bare("route", params)


def buckets_info(params: object) -> Query:
    """nothing"""
    return _bare("buckets_info", params)


def shards_info(params: object) -> Query:
    """nothing"""
    return _bare("shards_info", params)


def rebalance(params: object) -> Query:
    """nothing"""
    return _bare("rebalance", params)


def move_bucket(params: object) -> Query:
    """bucket_id, shard_id"""
    (bucket, shard), options = _split(params, 2, "bucket_id, shard_id")
    _no_options(options)
    return ("move_bucket", whole_of(bucket, "bucket_id", 1), whole_of(shard, "shard_id", 0))


def pin_bucket(params: object) -> Query:
    """bucket_id"""
    return ("pin_bucket", _only_bucket_id(params))


def unpin_bucket(params: object) -> Query:
    """bucket_id"""
    return ("unpin_bucket", _only_bucket_id(params))


def ping(params: object) -> Query:
    """nothing"""
    return _bare("ping", params)


def server_info(params: object) -> Query:
    """nothing"""
    return _bare("server_info", params)


def methods(params: object) -> Query:
    """nothing"""
    return _bare("methods", params)


def hello(params: object) -> Query:
    """{token, errors}; the tuple is ("hello", token or b"", "map", "string" or "")"""
    _, options = _split(params, 0, "")
    token, errors = b"", ""
    for name, value in pairs_of(options):
        if name == b"token":
            token = b"" if value is None else text_of(value, "token", 1, TOKEN_BYTES_MAX)
        elif name == b"errors":
            if value not in (None, b"map", b"string", "map", "string"):
                raise invalid("errors must be map or string")
            errors = "" if value is None else "map" if value in (b"map", "map") else "string"
        else:
            raise unknown_option(name, ("token", "errors"))
    return ("hello", token, errors)


def _array(params: object, count: int, expected: str) -> list[object]:
    if params is None:
        return []
    if type(params) is not list:
        raise _arity(count, expected)
    return params


def _arity(count: int, expected: str) -> Exception:
    takes = f"params must be an array of {expected}" if count else "params must be an empty array"
    return invalid(f"{takes}, and then at most a map of options")


def _three(values: list[object], expected: str) -> tuple[object, object, object]:
    """Two required parameters and the options, nil where there are none."""
    if len(values) == 2:
        return values[0], values[1], None
    if len(values) != 3:
        raise _arity(2, expected)
    return values[0], values[1], values[2]


def _split(params: object, count: int, expected: str) -> tuple[list[object], object]:
    """`count` required parameters and the options, nil where there are none."""
    values = _array(params, count, expected)
    if len(values) == count:
        return values, None
    if len(values) != count + 1:
        raise _arity(count, expected)
    return values[:count], values[count]


def _bare(name: str, params: object) -> Query:
    _, options = _split(params, 0, "")
    _no_options(options)
    return (name,)


def _no_options(options: object) -> None:
    for name, _ in pairs_of(options):
        raise unknown_option(name, ())


def _only_user_id(params: object) -> bytes:
    (user_id,), options = _split(params, 1, "user_id")
    _no_options(options)
    return user_id_of(user_id)


def _only_bucket_id(params: object) -> int:
    (bucket,), options = _split(params, 1, "bucket_id")
    _no_options(options)
    return whole_of(bucket, "bucket_id", 1)


def _page(params: object) -> tuple[bytes, int]:
    """`{after, limit}`: the user id behind which the page starts (b"" for the first) and how many rows it may have."""
    _, options = _split(params, 0, "")
    after, limit = b"", PAGE_ROWS_DEFAULT
    for name, value in pairs_of(options):
        if name == b"after":
            after = b"" if value is None or value == b"" or value == "" else user_id_of(value)
        elif name == b"limit":
            limit = limit if value is None else whole_of(value, "limit", 1, PAGE_ROWS_MAX)
        else:
            raise unknown_option(name, ("after", "limit"))
    return after, limit


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
