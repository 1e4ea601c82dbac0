"""The commands about one account, and the list of accounts: `billing top-up`, `billing debit`, `billing account` …

Each is one call of the daemon and prints its reply. Amounts are in coins with at most 9 digits after the point, as
text all the way to the daemon: nothing here computes money.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import click

from billing.cli.calling import Target, ask, rehearse, run, sendable, target_options
from billing.cli.confirming import confirmed
from billing.cli.options import COINS, DURATION, YES, Command, applied, option
from billing.cli.output import say
from billing.cli.paging import list_all_option, show_pages
from billing.cli.periods import is_relative, named
from billing.cli.showing import coins, show, tell
from billing.client.client import Client

_request_id = option("--request-id", metavar="ID", help="Makes the call safe to repeat: it takes effect once.")
_message = option("--message", metavar="TEXT", help="Stands in the history.")
_per = option("--per", type=click.Choice(["second", "minute", "hour"]), help="Unit of the rate.  [second]")
_resource = option("--resource", metavar="NAME", help="Which rate line; the account's rate is their sum.")
_dry_run = option("--dry-run", is_flag=True, help="Shows what it would answer now; nothing changes.")
_user = click.argument("user")
_amount = click.argument("amount", type=COINS)


def _call(method: str, *names: str) -> Callable[..., None]:
    """A command's function: calls `method` with the arguments of these names, and all options."""

    def run(target: Target, dry_run: bool, **given: Any) -> None:
        params = [given.pop(name) for name in names]
        change(target, dry_run, method, *params, **given)

    return run


def change(target: Target, dry_run: bool, method: str, *params: Any, **options: Any) -> None:
    """Makes a call that changes an account and prints what came of it; in a dry run, what would come of it."""
    if dry_run:
        show(target, rehearse(target, method, *params, **options))
        say("Nothing was changed: that is what it would answer now.")
    else:
        tell(target, method, ask(target, method, *params, **options))


def _top_up(target: Target, user: str, amount: str, expires: str | None, dry_run: bool, **given: Any) -> None:
    ends_ns = None
    if expires is not None:
        zone = ZoneInfo(target.zone) if target.zone is not None else None
        try:
            ends_ns = named(expires, zone, 0).from_ns
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--expires") from None
        if is_relative(expires):
            raise click.BadParameter("expected a date or an instant, such as 2027-01-01", param_hint="--expires")
    change(target, dry_run, "top_up", user, amount, expires_at_ns=ends_ns, **given)


def _account(target: Target, user: str, at: str | None) -> None:
    if at is None:
        show(target, ask(target, "get_account", user))
    else:
        _balance_at(target, user, at)


def _balance_at(target: Target, user: str, at: str) -> None:
    zone = ZoneInfo(target.zone) if target.zone is not None else None

    def named_at(now_ns: int) -> int:
        try:
            return named(at, zone, now_ns).from_ns
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--at") from None

    named_at(0)

    async def work(client: Client) -> Any:
        now_ns = (await client.server_info())["now_ns"] if is_relative(at) else 0
        return await client.call("balance_at", sendable(user), named_at(now_ns))

    show(target, run(target, work, user))


def _command(name: str, doc: str, run: Callable[..., None], *parts: Any) -> click.Command:
    """A click command out of its function, and its arguments and options in their order."""
    return click.command(name, cls=Command, help=doc)(applied(parts, target_options(run)))


def _set_thresholds(
    target: Target,
    user: str,
    amount: tuple[str, ...],
    runway: tuple[int, ...],
    request_id: str | None,
    dry_run: bool,
) -> None:
    thresholds: list[dict[str, Any]] = [{"amount": each} for each in amount]
    thresholds += [{"runway_ns": each} for each in runway]
    change(target, dry_run, "set_thresholds", user, thresholds, request_id=request_id)


def _close(target: Target, user: str, yes: bool, request_id: str | None, dry_run: bool) -> None:
    def question() -> str:
        account = ask(target, "get_account", user)
        return f"{user} has {coins(account['balance_nanos'])} coins, which are paid out. Close the account?"

    confirmed(question, yes or dry_run)
    change(target, dry_run, "close_account", user, request_id=request_id)


def _accounts(
    target: Target,
    after: str | None,
    limit: int | None,
    every: bool,
    state: str | None,
    within: int | None,
    shown: tuple[str, ...],
    of_class: str | None,
    ids: bool,
) -> None:
    filters: dict[str, Any] = {"state": state, "exhausts_within_ns": within, "with": list(shown) or None}
    filters["class"] = of_class
    words = ["--state", state] if state else []
    words += [] if within is None else ["--within", f"{within}ns"]
    words += [] if of_class is None else ["--class", of_class]
    words += [word for name in shown for word in ("--with", name)] + ["--ids"] * ids
    complete = _ids if ids else None
    show_pages(target, "accounts", "user_id", "--after", after, limit, every, complete=complete, words=words, **filters)


async def _ids(client: Client, rows: list[Any]) -> list[Any]:
    """The user ids of a page alone."""
    return [{"user_id": row["user_id"]} for row in rows]


def _history(target: Target, user: str, limit: int | None, before: int | None, every: bool) -> None:
    show_pages(target, "history", "entry_id", "--before", before, limit, every, user=user)


_ALL = (
    _command(
        "top-up",
        "Adds AMOUNT coins to USER; opens the account if it is new.",
        _top_up,
        *(_user, _amount),
        option("--expires", metavar="WHEN", help="What is left of it then is gone: 2026-12-31T12:00, 2027-01-01."),
        option("--kind", help="What this money is called, such as promo."),
        *(_request_id, _message, _dry_run),
    ),
    _command(
        "set-rate",
        "Sets how fast USER's money is being spent: RATE coins a second.",
        _call("set_rate", "user", "rate"),
        *(_user, click.argument("rate", type=COINS), _per, _resource),
        option("--rate-seq", type=int, help="Refused unless newer than the line's last one."),
        option(*("--min-runway", "min_runway_ns"), type=DURATION, help="Refused unless the money lasts that long."),
        option("--ttl", "ttl_ns", type=DURATION, help="Ends the line by itself after that long, unless set again."),
        *(_request_id, _message, _dry_run),
    ),
    _command(
        "change-rate",
        "Adds DELTA coins a second to a rate of USER; below zero it is refused.",
        _call("change_rate", "user", "delta"),
        *(_user, click.argument("delta", type=COINS), _per, _resource, _request_id, _message, _dry_run),
    ),
    _command(
        "debit",
        "Takes AMOUNT coins from USER once.",
        _call("debit", "user", "amount"),
        *(_user, _amount),
        option(
            "--mode",
            type=click.Choice(["strict", "partial", "force"]),
            help="Where there is not enough: refuse, take what is there, or go below.  [strict]",
        ),
        *(_request_id, _message, _dry_run),
    ),
    _command(
        "account",
        "Shows everything about USER now, or the balance at a past instant.",
        _account,
        _user,
        option("--at", metavar="WHEN", help="As it was then: 2026-11-30T12:00, 2026-11-30, yesterday."),
    ),
    _command(
        "balance-at",
        "Shows the balance and the rate of USER as they were at an instant, such as 2026-11-30T12:00.",
        _balance_at,
        *(_user, click.argument("at", metavar="WHEN")),
    ),
    _command(
        "accounts",
        "Lists accounts in order of their user ids: state, money, rate, and when it runs out.",
        _accounts,
        option("--state", type=click.Choice(["active", "exhausted"]), help="Only accounts in this state."),
        option("--within", type=DURATION, help="Only accounts that run out within that time."),
        option(
            *("--with", "shown"),
            multiple=True,
            type=click.Choice(["rates", "holds"]),
            help="Adds each rate line, or each open hold.",
        ),
        option("--class", "of_class", metavar="NAME", help="Only accounts in this cutoff class."),
        option("--ids", is_flag=True, help="Only the user ids."),
        option("--after", metavar="USER", help="Starts behind this user."),
        option("--limit", type=int, help="How many at most.  [1000]"),
        list_all_option,
    ),
    _command(
        "history",
        "Lists what happened to USER, newest first.",
        _history,
        _user,
        option("--limit", type=int, help="How many at most.  [100]"),
        option("--before", type=int, metavar="ENTRY", help="Only entries older than this one."),
        list_all_option,
    ),
    _command(
        "credit-limit",
        "Sets how far below zero USER may go: AMOUNT coins.",
        _call("set_credit_limit", "user", "amount"),
        *(_user, _amount, _request_id, _dry_run),
    ),
    _command(
        "hold",
        "Reserves AMOUNT coins of USER; the reply names the hold.",
        _call("hold", "user", "amount"),
        *(_user, _amount),
        option("--ttl", "ttl_ns", type=DURATION, help="Gives it back by itself after that long."),
        *(_request_id, _dry_run),
    ),
    _command(
        "capture",
        "Takes AMOUNT coins of a hold of USER and frees the rest.",
        _call("capture", "user", "hold_id", "amount"),
        *(_user, click.argument("hold_id", metavar="HOLD"), _amount, _request_id, _dry_run),
    ),
    _command(
        "release",
        "Gives a hold of USER back.",
        _call("release", "user", "hold_id"),
        *(_user, click.argument("hold_id", metavar="HOLD"), _request_id, _dry_run),
    ),
    _command(
        "adjust",
        "Corrects USER's balance by AMOUNT coins, with a REASON.",
        _call("adjust", "user", "amount", "reason"),
        *(_user, _amount, click.argument("reason"), _request_id, _dry_run),
    ),
    _command(
        "thresholds",
        "Sets when notices about USER's low balance are sent; without options, never.",
        _set_thresholds,
        _user,
        option("--amount", multiple=True, type=COINS, metavar="COINS", help="When this little is available."),
        option("--runway", multiple=True, type=DURATION, help="When it lasts no longer than that."),
        *(_request_id, _dry_run),
    ),
    _command(
        "class",
        "Puts USER in the cutoff class NAME of the configuration; default takes him out of any.",
        _call("set_class", "user", "name"),
        *(_user, click.argument("name", metavar="NAME"), _request_id, _message, _dry_run),
    ),
    _command(
        "close",
        "Closes USER's account and pays out the rest; asks first.",
        _close,
        *(_user, YES, _request_id, _dry_run),
    ),
)

COMMANDS: dict[str, click.Command] = {str(command.name): command for command in _ALL}
