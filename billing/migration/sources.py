"""Reads accounts from a file of CSV, JSON lines, or Tarantool: `Account`s, and the lines that cannot be imported. Pure.

CSV has a header line; JSON lines are one object each. Columns or keys, all but `user_id` optional:

    user_id         as in the contract
    balance         coins, a decimal text or a whole number; may be negative
    credit_limit    coins
    resource, rate, per     one rate line (coins a second, `minute` or `hour`); further rows of the same user add lines
    rate_per_hour           CSV only, instead of rate and per; likewise rate_per_minute and rate_per_second
    rates           JSON only: a list of {"resource", "rate", "per"}

For Tarantool, a `Mapping` says which space and fields hold users and coins; by default `balance.username` and
`balance.coins`. The tuples of other spaces are counted; balances are compared with a history if the mapping names one.
A line that cannot be imported is never dropped silently: it becomes a `NotTaken` with its location and the reason.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from functools import lru_cache
from typing import Any, Final, NamedTuple

from billing.cli.csv_lines import Lines
from billing.cli.values import RATE_COLUMNS
from billing.migration.mapping import Mapping
from billing.migration.tarantool_log import Log, LogError
from billing.migration.tarantool_spaces import Space, Spaces
from shards.counting import counted

COINS_DIGITS_MAX: Final = 9
NANOS_MAX: Final = 2**63 - 1
PER: Final = ("second", "minute", "hour")
_COINS = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")  # no exponent: 1.2346E+9 was rounded by a spreadsheet
_EXACTLY: Final = Context(prec=100, traps=[Inexact, InvalidOperation, Overflow])  # what would be rounded is an error
REMEMBERED: Final = 4096  # cached numbers: price lists have few rates, and many users the same balance
COLUMNS: Final = ("user_id", "balance", "credit_limit", "resource", "rate", "per")


class RateLine(NamedTuple):
    """One rate line: coins as decimal text, per `second`, `minute` or `hour`."""

    resource: str
    rate: str
    per: str


class Account(NamedTuple):
    """The data of one user. `balance_nanos` 0 and `credit_limit_nanos` None: not given."""

    location: str
    user_id: str
    balance_nanos: int
    credit_limit_nanos: int | None
    rates: tuple[RateLine, ...]


class NotTaken(NamedTuple):
    """A line that is not imported: its location, and the reason."""

    location: str
    reason: str


class LeftOut(NamedTuple):
    """A space of Tarantool none of whose tuples is imported."""

    space: str
    tuples: int


Item = Account | NotTaken | LeftOut


def from_csv(lines: Iterable[str], name: str) -> Iterator[Item]:
    """Yields the accounts of a CSV file with a header line. Raises ValueError for a bad header."""
    rest = Lines(lines)
    rest.begin_row()
    reader = csv.reader(rest, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"{name}: its first line is no CSV: {error}") from None
    unknown = [column for column in header if column not in COLUMNS and column not in RATE_COLUMNS]
    if "user_id" not in header or unknown:
        got = ",".join(header) or "nothing"
        raise ValueError(
            f"{name}: its first line is to name the columns, user_id and any of {', '.join(COLUMNS[1:])}; got {got}"
        )
    if twice := next((column for column in header if header.count(column) > 1), ""):
        raise ValueError(f"{name}: its first line names {twice} twice: which one is meant?")
    rate, *further = [column for column in header if column == "rate" or column in RATE_COLUMNS] or ["rate"]
    if further or (rate in RATE_COLUMNS and "per" in header):
        other = further[0] if further else "per"
        raise ValueError(f"{name}: its first line names {rate} and {other}: which one says what a rate is?")
    columns = len(header)
    while True:
        rest.begin_row()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quote is not closed" if rest.row_length > 1 else str(error)
            yield NotTaken(f"{name}:{rest.row_line}", why)
            rest.give_back()
            reader = csv.reader(rest, strict=True)  # a new reader has no state of the broken row
            continue
        if not values:  # an empty line
            continue
        location = f"{name}:{rest.row_line}"
        if len(values) != columns:
            yield NotTaken(location, f"expected {columns} columns")
            rest.give_back()
            continue
        row = dict(zip(header, map(str.strip, values), strict=True))
        rates = []
        if row.get(rate):
            per = RATE_COLUMNS.get(rate) or row.get("per") or "second"
            rates = [{"resource": row.get("resource", ""), "rate": row[rate], "per": per}]
        yield _account(location, row["user_id"], row.get("balance"), row.get("credit_limit"), rates)


def from_json_lines(lines: Iterable[str], name: str) -> Iterator[Item]:
    """Yields the accounts of a file with one JSON object per line; empty lines are ignored."""
    for number, line in enumerate(lines, start=1):
        location = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_keys_once)
        except (ValueError, RecursionError) as error:
            yield NotTaken(location, f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield NotTaken(location, "expected an object")
            continue
        unknown = [key for key in row if key not in (*COLUMNS, "rates")]
        if unknown:
            yield NotTaken(location, f"unknown keys: {', '.join(unknown)}")
            continue
        rates = row.get("rates", [])
        if row.get("rate") is not None:
            rates = [*rates, {key: row[key] for key in ("resource", "rate", "per") if row.get(key) is not None}]
        yield _account(location, row.get("user_id"), row.get("balance"), row.get("credit_limit"), rates)


def merged(items: Iterable[Item]) -> Iterator[Item]:
    """Yields one account per user: with the rates of all its lines; a second balance or limit, or a second rate of a
    resource, becomes a `NotTaken`.
    """
    accounts: dict[str, Account] = {}
    for item in items:
        if not isinstance(item, Account):
            yield item
            continue
        earlier = accounts.setdefault(item.user_id, item)
        if earlier is item:
            continue
        if item.balance_nanos or item.credit_limit_nanos is not None:
            yield NotTaken(
                item.location, f"{item.user_id} stands at {earlier.location} already; a further line only adds rates"
            )
        elif {line.resource for line in item.rates} & {line.resource for line in earlier.rates}:
            yield NotTaken(
                item.location, f"the rate of this resource of {item.user_id} stands at {earlier.location} already"
            )
        else:
            accounts[item.user_id] = earlier._replace(rates=earlier.rates + item.rates)
    yield from accounts.values()


def from_tarantool(files: Iterable[tuple[str, bytes]], mapping: Mapping) -> Iterator[Item]:
    """Yields the accounts of the newest of the snapshots and the logs that follow it; the files in this order. Raises
    LogError and ValueError.
    """
    spaces = Spaces()
    yield from _replayed(spaces, files)
    if spaces.unknown_rows:
        yield NotTaken("the logs", f"{counted(spaces.unknown_rows, 'row')} of spaces that no snapshot here defines")
    space = _known(spaces, mapping.space)
    user_at, coins_at = (_index_of(space.fields, field, space.name) for field in (mapping.user, mapping.coins))
    newest = _newest(spaces, mapping)
    for key, row in space.tuples.items():
        location = f"{space.name}[{row[user_at] if len(row) > user_at else '?'}]"
        if len(row) <= max(user_at, coins_at):
            yield NotTaken(location, f"the tuple has only {len(row)} fields")
            continue
        if key in space.unreadable:
            yield NotTaken(location, f"an update of the tuple cannot be replayed: {space.unreadable[key]}")
            continue
        user, coins = row[user_at], row[coins_at]
        yield _account(location, user, _scaled(coins, mapping.unit), None, [])
        after = newest.get(user, coins) if isinstance(user, str | int) else coins
        if after != coins:
            behind = f"{mapping.history_space} left {after} in its newest row of this user, {space.name} has {coins}"
            yield NotTaken(f"{mapping.history_space}[{user}]", f"{behind}; what {space.name} has was taken")
    for other in spaces.by_id.values():
        if other is not space and other.tuples:
            yield LeftOut(other.name, len(other.tuples))


def _replayed(spaces: Spaces, files: Iterable[tuple[str, bytes]]) -> Iterator[NotTaken]:
    """Replays the newest snapshot, and every log; yields the logs that have no end. Raises LogError."""
    first: Log | None = None
    snapshot: Log | None = None
    for name, data in files:
        log = Log(data, name)
        first = first or log
        if log.instance != first.instance:
            raise LogError(
                f"{name} and {first.name} were written by two instances of Tarantool ({log.instance or 'unnamed'} and "
                f"{first.instance or 'unnamed'}): import the files of each by themselves"
            )
        if log.kind == "SNAP":
            snapshot = log
            continue
        if snapshot is not None:
            spaces.replay(snapshot)
            snapshot = None
        spaces.replay(log)
        if not log.is_whole:
            yield NotTaken(name, "has no end marker: Tarantool was still writing it; what stands before was taken")
    if snapshot is not None:
        spaces.replay(snapshot)


def _known(spaces: Spaces, name: str) -> Space:
    """Returns the space of this name. Raises ValueError where there is none, or its tuples are not known."""
    space = spaces.named(name)
    if space is None:
        names = ", ".join(sorted(defined.name for defined in spaces.by_id.values())) or "none"
        raise ValueError(f"there is no space {name!r}; those there are: {names}")
    if space.why_not:
        raise ValueError(f"space {name} cannot be imported: {space.why_not}")
    return space


def _newest(spaces: Spaces, mapping: Mapping) -> dict[Any, Any]:
    """Returns {user: balance after the user's newest row} from the history. Raises ValueError where a named history
    does not exist.
    """
    if not mapping.has_history:
        return {}
    space = spaces.named(mapping.history_space)
    if space is None:
        raise ValueError(f"there is no space {mapping.history_space!r} for the history")
    fields = (mapping.history_user, mapping.history_after)
    return _last_of(space, *(_index_of(space.fields, name, space.name) for name in fields))


def _last_of(space: Space, user_at: int, after_at: int) -> dict[Any, Any]:
    newest: dict[Any, tuple[Any, Any]] = {}  # user -> primary key and balance of the newest row
    for key, row in space.tuples.items():
        if len(row) <= max(user_at, after_at) or not isinstance(row[user_at], str | int):
            continue
        earlier = newest.get(row[user_at])
        try:
            if earlier is None or key > earlier[0]:
                newest[row[user_at]] = (key, row[after_at])
        except TypeError:
            raise ValueError(f"the primary keys of space {space.name} have no order") from None
    return {user: after for user, (_, after) in newest.items()}


def _scaled(coins: Any, unit: Decimal) -> Any:
    """Converts units to coins; returns anything that is no number unchanged, and a product that would be rounded as
    text, for the error message.
    """
    if unit == 1 or isinstance(coins, bool) or not isinstance(coins, int | Decimal):
        return coins
    try:
        return _EXACTLY.multiply(Decimal(coins), unit)
    except (Inexact, InvalidOperation, Overflow):
        return f"{coins} x {unit}"


def _index_of(fields: list[str], field: str, space: str) -> int:
    if field in fields:
        return fields.index(field)
    if field.isdigit() and int(field) > 0:
        return int(field) - 1
    raise ValueError(f"space {space} has no field {field!r}; its fields: {', '.join(fields) or 'unnamed'}")


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that stands twice, of which nobody can know which one is meant."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} stands twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _account(location: str, user_id: Any, balance: Any, credit_limit: Any, rates: Any) -> Item:
    if isinstance(user_id, int) and not isinstance(user_id, bool) and user_id >= 0:
        user_id = str(user_id)
    if not isinstance(user_id, str) or not user_id:
        return NotTaken(location, "expected a user_id")
    try:
        user_id.encode()
        nanos = _nanos(balance, "balance") or 0
        limit = _nanos(credit_limit, "credit_limit")
        if limit is not None and limit < 0:
            raise ValueError("credit_limit cannot be negative")
        if not isinstance(rates, list):
            raise ValueError("expected a list of rates")
        lines = tuple(map(_rate_line, rates))
        if len({line.resource for line in lines}) < len(lines):
            raise ValueError("one resource has two rates")
        return Account(location, user_id, nanos, limit, lines)
    except UnicodeEncodeError:
        return NotTaken(location, "the user_id is not UTF-8")
    except ValueError as error:
        return NotTaken(location, str(error))


def _rate_line(fields: Any) -> RateLine:
    if not isinstance(fields, dict) or set(fields) - {"resource", "rate", "per"}:
        raise ValueError("a rate is an object of resource, rate and per, and of nothing else")
    nanos = _nanos(fields.get("rate"), "rate")
    if nanos is None or nanos < 0:
        raise ValueError("expected a rate of zero or above")
    per = fields.get("per", "second")
    if per not in PER:
        raise ValueError(f"expected per to be one of {', '.join(PER)}, got {per!r}")
    resource = fields.get("resource", "")
    if not isinstance(resource, str):
        raise ValueError("expected a text as resource")
    return RateLine(resource, _text_of(nanos), per)


@lru_cache(REMEMBERED)
def _text_of(nanos: int) -> str:
    """Nanos as a decimal text of coins."""
    return f"{Decimal(nanos).scaleb(-COINS_DIGITS_MAX):f}"


def _nanos(value: Any, what: str) -> int | None:
    """Returns nanos of coins given as text, integer or exact decimal; None where nothing is given. Raises
    ValueError.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise ValueError(f"expected {what} as a decimal number of coins")
    return _nanos_of(value, what)


@lru_cache(REMEMBERED)
def _nanos_of(value: str | int | Decimal, what: str) -> int:
    if isinstance(value, str) and not _COINS.fullmatch(value.strip()):
        raise ValueError(f"expected {what} as a decimal number of coins, got {value!r}")
    try:
        coins = Decimal(value.strip() if isinstance(value, str) else value)
        nanos = coins.scaleb(COINS_DIGITS_MAX, _EXACTLY)
        if not coins.is_finite() or nanos != nanos.to_integral_value():
            raise ValueError(f"{what} {value} is no number with at most {COINS_DIGITS_MAX} decimals")
    except (Inexact, InvalidOperation, Overflow):
        raise ValueError(f"expected {what} as a decimal number of coins, got {value!r}") from None
    if abs(nanos) > NANOS_MAX:
        raise ValueError(f"{what} {value} is beyond what an account can hold")
    return int(nanos)
