"""The commands about one account, and the list of accounts: `billing top-up`, `billing debit`, `billing account` …

Each command makes one call to the daemon and prints the reply. Amounts are coins with at most 9 digits after the point,
and stay text all the way to the daemon: nothing here computes money. A command that only passes on its arguments is
built from its method's row (`_OF_METHODS`). Commands that ask the person first, read pages, or have options of their
own are written out below (`_BY_HAND`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from zoneinfo import ZoneInfo

import click

from billing.api.methods import MESSAGE, REQUEST_ID
from billing.cli.calling import Target, ask, rehearse, run, sendable, target_options
from billing.cli.confirming import confirmed
from billing.cli.listing import HELP
from billing.cli.method_commands import DRY_RUN, change, command_of, option_of
from billing.cli.options import COINS, DURATION, YES, Command, applied, option
from billing.cli.output import put, say
from billing.cli.paging import Filters, PagedMethod, list_all_option, one_shard_option, show_pages
from billing.cli.periods import ANY_INSTANT_NS, is_relative, parse_period
from billing.cli.sentences import closing_told
from billing.cli.showing import look_of, show
from billing.cli.values import moment, span
from billing.client.client import Client

# Command -> the method whose row the command is built from.
_OF_METHODS: Final = {
    "top-up": "top_up",
    "set-rate": "set_rate",
    "change-rate": "change_rate",
    "debit": "debit",
    "credit-limit": "set_credit_limit",
    "hold": "hold",
    "capture": "capture",
    "release": "release",
    "adjust": "adjust",
    "class": "set_class",
}

ACCOUNTS: Final = PagedMethod("accounts", "user_id", "--after")
HISTORY: Final = PagedMethod("history", "entry_id", "--before")

_user = click.argument("user")
_repeatable = (option_of(REQUEST_ID), option_of(MESSAGE), DRY_RUN)


def _account(target: Target, user: str, at: str | None) -> None:
    if at is None:
        show(target, ask(target, "get_account", user))
    else:
        _balance_at(target, user, at, "--at")


def _balance_at(target: Target, user: str, at: str, hint: str = "WHEN") -> None:
    zone = ZoneInfo(target.zone) if target.zone is not None else None

    def named_at(now_ns: int) -> int:
        try:
            return parse_period(at, zone, now_ns).from_ns
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=hint) from None

    named_at(ANY_INSTANT_NS)

    async def work(client: Client) -> tuple[int, Any]:
        now_ns = (await client.server_info())["now_ns"] if is_relative(at) else ANY_INSTANT_NS
        at_ns = named_at(now_ns)
        return at_ns, await client.call("balance_at", sendable(user), at_ns)

    at_ns, reply = run(target, work, user)
    show(target, reply)
    if reply.get("up_to_now"):
        say(f"billing: {moment(at_ns, look_of(target, exact=True))} is yet to come: this is how {user} stands now")
    if reply.get("whole_from_ns") is not None:
        whole_from = moment(reply["whole_from_ns"], look_of(target, exact=True))
        say(f"billing: the history of {user} is whole from {whole_from} on; what was before is not known for certain")


def _command(name: str, run: Callable[..., None], *parts: Any) -> click.Command:
    """Builds a click command from a function, and its arguments and options in the order of the help."""
    return click.command(name, cls=Command, help=HELP[name])(applied(parts, target_options(run)))


def _set_thresholds(
    target: Target,
    user: str,
    amount: tuple[str, ...],
    runway: tuple[int, ...],
    never: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    if never is bool(amount or runway):
        raise click.UsageError("--amount, --runway or both say when, or --never; `billing account` shows what is set")
    thresholds: list[dict[str, Any]] = [{"amount": each} for each in amount]
    thresholds += [{"runway_ns": each} for each in runway]
    change(target, dry_run, "set_thresholds", user, thresholds, **options)
    if not (dry_run or target.as_json or target.as_csv):
        when = [f"{each} coins or less are available" for each in amount]
        when += [f"the money lasts for {span(each)} or less" for each in runway]
        put(f"A notice is sent when {', and when '.join(when)}." if when else "No notice of a low balance is sent.")


def _close(target: Target, user: str, yes: bool, dry_run: bool, **options: Any) -> None:
    def question() -> str:
        return f"{closing_told(user, rehearse(target, 'close_account', user))} Close the account?"

    confirmed(question, yes or dry_run)
    change(target, dry_run, "close_account", user, **options)


def _accounts(
    target: Target,
    after: str | None,
    limit: int | None,
    every: bool,
    state: str | None,
    within: int | None,
    shown: tuple[str, ...],
    of_class: str | None,
    overrunning: bool,
    shard_id: int | None,
    ids: bool,
) -> None:
    options: dict[str, Any] = {"state": state, "exhausts_within_ns": within, "with": list(shown) or None}
    options |= {"class": of_class, "overrunning": overrunning or None, "shard_id": shard_id}
    arguments = ["--state", state] if state else []
    arguments += [] if within is None else ["--within", f"{within}ns"]
    arguments += [] if of_class is None else ["--class", of_class]
    arguments += [argument for name in shown for argument in ("--with", name)] + ["--ids"] * ids
    arguments += ["--overrunning"] * overrunning
    arguments += [] if shard_id is None else ["--shard", str(shard_id)]
    filters, complete = Filters(options, arguments), _ids if ids else None
    show_pages(target, ACCOUNTS, after, limit, every, filters=filters, complete=complete)


async def _ids(client: Client, rows: list[Any]) -> list[Any]:
    """The rows of a page with only their user ids."""
    return [{"user_id": row["user_id"]} for row in rows]


def _history(target: Target, user: str, limit: int | None, before: int | None, every: bool) -> None:
    show_pages(target, HISTORY, before, limit, every, user=user)


_BY_HAND = (
    _command(
        "account",
        _account,
        _user,
        option("--at", metavar="WHEN", help="As it was then: 2026-11-30T12:00, 2026-11-30, yesterday."),
    ),
    _command(
        "balance-at",
        _balance_at,
        *(_user, click.argument("at", metavar="WHEN")),
    ),
    _command(
        "accounts",
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
        option("--overrunning", is_flag=True, help="Only accounts that ran out and still have a rate."),
        one_shard_option,
        option("--ids", is_flag=True, help="Only the user ids."),
        option("--after", metavar="USER", help="Starts behind this user."),
        option("--limit", type=int, help="How many at most.  [1000]"),
        list_all_option,
    ),
    _command(
        "history",
        _history,
        _user,
        option("--limit", type=int, help="How many at most.  [100]"),
        option("--before", type=int, metavar="ENTRY", help="Only entries older than this one."),
        list_all_option,
    ),
    _command(
        "thresholds",
        _set_thresholds,
        _user,
        option("--amount", multiple=True, type=COINS, metavar="COINS", help="When this little is available."),
        option("--runway", multiple=True, type=DURATION, help="When it lasts no longer than that."),
        option("--never", is_flag=True, help="Takes all of them away."),
        *_repeatable,
    ),
    _command(
        "close",
        _close,
        *(_user, YES, *_repeatable),
    ),
)

COMMANDS: dict[str, click.Command] = {
    **{name: command_of(name, method) for name, method in _OF_METHODS.items()},
    **{str(command.name): command for command in _BY_HAND},
}
