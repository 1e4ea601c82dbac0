"""The commands about one account, and the list of accounts: `billing top-up`, `billing debit`, `billing account` …

Each is one call of the daemon and prints its reply. Amounts are in coins with at most 9 digits after the point, as
text all the way to the daemon: nothing here computes money.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from billing.cli.calling import DURATION, Target, ask, target_options
from billing.cli.showing import show

SIGNED = {"ignore_unknown_options": True}  # so that -5 is an amount and no option

_request_id = click.option("--request-id", metavar="ID", help="Makes the call safe to repeat: it takes effect once.")
_message = click.option("--message", metavar="TEXT", help="Stands in the history.")
_per = click.option("--per", type=click.Choice(["second", "minute", "hour"]), help="Unit of the rate.  [second]")
_resource = click.option("--resource", metavar="NAME", help="Which rate line; the account's rate is their sum.")
_user = click.argument("user")
_amount = click.argument("amount")


def _call(method: str, *names: str) -> Callable[..., None]:
    """A command's function: calls `method` with the arguments of these names, and all options."""

    def run(target: Target, **given: Any) -> None:
        params = [given.pop(name) for name in names]
        show(target, ask(target, method, *params, **given))

    return run


def _command(name: str, doc: str, run: Callable[..., None], *parts: Any, signed: bool = False) -> click.Command:
    """A click command out of its function, and its arguments and options in their order."""
    run = target_options(run)
    for part in reversed(parts):
        run = part(run)
    return click.command(name, help=doc, context_settings=SIGNED if signed else None)(run)


def _set_thresholds(target: Target, user: str, amount: tuple[str, ...], runway: tuple[int, ...]) -> None:
    thresholds: list[dict[str, Any]] = [{"amount": each} for each in amount]
    thresholds += [{"runway_ns": each} for each in runway]
    show(target, ask(target, "set_thresholds", user, thresholds))


_ALL = (
    _command(
        "top-up",
        "Adds AMOUNT coins to USER; opens the account if it is new.",
        _call("top_up", "user", "amount"),
        *(_user, _amount, _request_id, _message),
    ),
    _command(
        "set-rate",
        "Sets how fast USER's money is being spent: RATE coins a second.",
        _call("set_rate", "user", "rate"),
        *(_user, click.argument("rate"), _per, _resource),
        click.option("--rate-seq", type=int, help="Refused unless newer than the line's last one."),
        click.option(
            *("--min-runway", "min_runway_ns"), type=DURATION, help="Refused unless the money lasts that long."
        ),
        *(_request_id, _message),
    ),
    _command(
        "change-rate",
        "Adds DELTA coins a second to a rate of USER; below zero it is refused.",
        _call("change_rate", "user", "delta"),
        *(_user, click.argument("delta"), _per, _resource, _request_id, _message),
        signed=True,
    ),
    _command(
        "debit",
        "Takes AMOUNT coins from USER once.",
        _call("debit", "user", "amount"),
        *(_user, _amount),
        click.option(
            "--mode",
            type=click.Choice(["strict", "partial", "force"]),
            help="Where there is not enough: refuse, take what is there, or go below.  [strict]",
        ),
        *(_request_id, _message),
    ),
    _command("account", "Shows everything about USER now.", _call("get_account", "user"), _user),
    _command(
        "accounts",
        "Lists accounts in order of their user ids.",
        _call("accounts"),
        click.option("--after", metavar="USER", help="Starts behind this user."),
        click.option("--limit", type=int, help="How many at most.  [1000]"),
    ),
    _command(
        "history",
        "Lists what happened to USER, newest first.",
        _call("history", "user"),
        _user,
        click.option("--limit", type=int, help="How many at most.  [100]"),
        click.option("--before", type=int, metavar="ENTRY", help="Only entries older than this one."),
    ),
    _command(
        "credit-limit",
        "Sets how far below zero USER may go: AMOUNT coins.",
        _call("set_credit_limit", "user", "amount"),
        *(_user, _amount, _request_id),
    ),
    _command(
        "hold",
        "Reserves AMOUNT coins of USER; the reply names the hold.",
        _call("hold", "user", "amount"),
        *(_user, _amount),
        click.option("--ttl", "ttl_ns", type=DURATION, help="Gives it back by itself after that long."),
        _request_id,
    ),
    _command(
        "capture",
        "Takes AMOUNT coins of a hold of USER and frees the rest.",
        _call("capture", "user", "hold_id", "amount"),
        *(_user, click.argument("hold_id", metavar="HOLD"), _amount, _request_id),
    ),
    _command(
        "release",
        "Gives a hold of USER back.",
        _call("release", "user", "hold_id"),
        *(_user, click.argument("hold_id", metavar="HOLD"), _request_id),
    ),
    _command(
        "adjust",
        "Corrects USER's balance by AMOUNT coins, with a REASON.",
        _call("adjust", "user", "amount", "reason"),
        *(_user, _amount, click.argument("reason"), _request_id),
        signed=True,
    ),
    _command(
        "thresholds",
        "Sets when notices about USER's low balance are sent; without options, never.",
        _set_thresholds,
        _user,
        click.option("--amount", multiple=True, metavar="COINS", help="When this little is available."),
        click.option("--runway", multiple=True, type=DURATION, help="When it lasts no longer than that."),
    ),
    _command(
        "close",
        "Closes USER's account and pays out the rest.",
        _call("close_account", "user"),
        *(_user, _request_id),
    ),
)

COMMANDS: dict[str, click.Command] = {str(command.name): command for command in _ALL}
