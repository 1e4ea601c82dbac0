"""One parser per procedure that is no command: questions, the operator's wishes, and what the door answers itself.

Each takes the decoded `params` of a request and returns a tuple `(name, argument, …)` with every argument present and
canonical: user ids as bytes, what was not given as its default. It raises `Refused` as the parsers of `calls` do.

    ("get_account", user_id)     ("history", user_id, limit, before)     ("retry_cutoff", user_id)
    ("accounts", after, limit)   ("pending_cutoffs", after, limit)       ("forecast", within_ns, step_ns)
    ("expirationd_stats",)   ("release_cutoffs",)   ("route", version)   ("buckets_info",)   ("shards_info",)
    ("explain", user_id)   ("explain_move", bucket_id, shard_id)   ("check_owners",)   ("rebalance", plan only: 0 | 1)
    ("move_bucket", bucket_id, shard_id)   ("pin_bucket", bucket_id)   ("unpin_bucket", bucket_id)
    ("backup", "begin" | "renew" | "end")
    ("hello", token, "map" | "string" | "")   ("ping",)   ("server_info",)   ("methods",)   ("bucket_id", user_id)

`after` is the user id behind which a page starts, b"" for the first page; `before` is the entry_id that a page of
history stays below, `NEWEST` for the first page.
"""

from typing import Final

from billing.api.params import invalid, pairs_of, split_params, text_of, unknown_option, user_id_of, whole_of
from billing.ledger.money import INT64_MAX

Query = tuple[object, ...]

HISTORY_ROWS_DEFAULT: Final = 100
HISTORY_ROWS_MAX: Final = 1_000
PAGE_ROWS_DEFAULT: Final = 1_000
PAGE_ROWS_MAX: Final = 1_000
NEWEST: Final = INT64_MAX
SECOND_NS: Final = 10**9
FORECAST_NS_DEFAULT: Final = 3_600 * SECOND_NS
FORECAST_NS_MAX: Final = 7 * 86_400 * SECOND_NS
FORECAST_SECONDS_UP_TO_NS: Final = 300 * SECOND_NS  # so far ahead each second is shown, beyond it each minute
FORECAST_STEPS_MAX: Final = 20_000
TOKEN_BYTES_MAX: Final = 512
BACKUP_STEPS: Final = ("begin", "renew", "end")


def get_account(params: object) -> Query:
    """user_id"""
    return ("get_account", _only_user_id(params))


def history(params: object) -> Query:
    """user_id, {limit, before}"""
    (user_id,), options = split_params(params, 1, "user_id")
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
    """{within_ns, step_ns}: an hour by default, at most a week; steps of whole seconds, at most FORECAST_STEPS_MAX"""
    _, options = split_params(params, 0, "")
    within_ns, step_ns = FORECAST_NS_DEFAULT, 0
    for name, value in pairs_of(options):
        if name == b"within_ns":
            within_ns = within_ns if value is None else whole_of(value, "within_ns", SECOND_NS, FORECAST_NS_MAX)
        elif name == b"step_ns":
            step_ns = 0 if value is None else whole_of(value, "step_ns", SECOND_NS, FORECAST_NS_MAX)
        else:
            raise unknown_option(name, ("within_ns", "step_ns"))
    step_ns = step_ns or (SECOND_NS if within_ns <= FORECAST_SECONDS_UP_TO_NS else 60 * SECOND_NS)
    if step_ns % SECOND_NS or within_ns > step_ns * FORECAST_STEPS_MAX:
        raise invalid(f"step_ns: expected whole seconds, and at most {FORECAST_STEPS_MAX} steps within within_ns")
    return ("forecast", within_ns, step_ns)


def expirationd_stats(params: object) -> Query:
    """nothing"""
    return _bare("expirationd_stats", params)


def release_cutoffs(params: object) -> Query:
    """nothing"""
    return _bare("release_cutoffs", params)


def route(params: object) -> Query:
    """{version}"""
    _, options = split_params(params, 0, "")
    version = 0
    for name, value in pairs_of(options):
        if name != b"version":
            raise unknown_option(name, ("version",))
        version = 0 if value is None else whole_of(value, "version", 0)
    return ("route", version)


def buckets_info(params: object) -> Query:
    """nothing"""
    return _bare("buckets_info", params)


def shards_info(params: object) -> Query:
    """nothing"""
    return _bare("shards_info", params)


def rebalance(params: object) -> Query:
    """{plan}"""
    _, options = split_params(params, 0, "")
    plan_only = 0
    for name, value in pairs_of(options):
        if name != b"plan":
            raise unknown_option(name, ("plan",))
        if value not in (None, True, False):
            raise invalid("plan must be true or false")
        plan_only = int(value is True)
    return ("rebalance", plan_only)


def explain(params: object) -> Query:
    """user_id"""
    return ("explain", _only_user_id(params))


def explain_move(params: object) -> Query:
    """bucket_id, {shard_id}"""
    (bucket,), options = split_params(params, 1, "bucket_id")
    shard_id = 0
    for name, value in pairs_of(options):
        if name != b"shard_id":
            raise unknown_option(name, ("shard_id",))
        shard_id = 0 if value is None else whole_of(value, "shard_id", 1)
    return ("explain_move", whole_of(bucket, "bucket_id", 1), shard_id)


def check_owners(params: object) -> Query:
    """nothing"""
    return _bare("check_owners", params)


def move_bucket(params: object) -> Query:
    """bucket_id, shard_id"""
    (bucket, shard), options = split_params(params, 2, "bucket_id, shard_id")
    _no_options(options)
    return ("move_bucket", whole_of(bucket, "bucket_id", 1), whole_of(shard, "shard_id", 0))


def pin_bucket(params: object) -> Query:
    """bucket_id"""
    return ("pin_bucket", _only_bucket_id(params))


def unpin_bucket(params: object) -> Query:
    """bucket_id"""
    return ("unpin_bucket", _only_bucket_id(params))


def backup(params: object) -> Query:
    """step"""
    (step,), options = split_params(params, 1, "step")
    _no_options(options)
    name = step.decode("ascii", "replace") if type(step) is bytes else step
    if name not in BACKUP_STEPS:
        raise invalid(f"step must be one of {', '.join(BACKUP_STEPS)}")
    return ("backup", name)


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
    """{token, errors}"""
    _, options = split_params(params, 0, "")
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


def _bare(name: str, params: object) -> Query:
    _, options = split_params(params, 0, "")
    _no_options(options)
    return (name,)


def _no_options(options: object) -> None:
    for name, _ in pairs_of(options):
        raise unknown_option(name, ())


def _only_user_id(params: object) -> bytes:
    (user_id,), options = split_params(params, 1, "user_id")
    _no_options(options)
    return user_id_of(user_id)


def _only_bucket_id(params: object) -> int:
    (bucket,), options = split_params(params, 1, "bucket_id")
    _no_options(options)
    return whole_of(bucket, "bucket_id", 1)


def _page(params: object) -> tuple[bytes, int]:
    """`{after, limit}`: the user id behind which the page starts (b"" for the first) and how many rows it may have."""
    _, options = split_params(params, 0, "")
    after, limit = b"", PAGE_ROWS_DEFAULT
    for name, value in pairs_of(options):
        if name == b"after":
            after = b"" if value is None or value == b"" or value == "" else user_id_of(value)
        elif name == b"limit":
            limit = limit if value is None else whole_of(value, "limit", 1, PAGE_ROWS_MAX)
        else:
            raise unknown_option(name, ("after", "limit"))
    return after, limit
