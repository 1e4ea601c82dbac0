"""Calls the daemon for a command: the address, the credentials, and the timeout.

Every command that calls the daemon has the same options (`target_options`) and receives them as one `Target`. All of
them, the console and the statement included, make their client with `client_of`, so that no command can forget an
option.

A command that cannot reach the daemon reports that after the first attempt: it does not wait for a daemon to start.
Exit codes: 1 the daemon refused, 3 the daemon was not reached or did not answer, 4 the caller lacks the permission. The
error is printed on standard error, as a line or, with `--json`, as the map that the daemon sent. No option takes a
token itself, because other users of the machine can read command lines.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
from click.core import ParameterSource

from billing.api.methods import COMMAND, LOCAL, METHODS, QUERY, READ
from billing.cli.finding import config_file, listening, setting
from billing.cli.options import CONNECTION_OPTIONS, OUTPUT_OPTIONS, applied
from billing.cli.output import say
from billing.cli.values import coins, printable, span
from billing.client.client import TOKEN, TOKEN_FILE, Client
from billing.client.connection import CLOSES, NO_TLS, parse_address, tls_context
from billing.client.errors import BillingError, Forbidden, Unauthenticated, Unavailable
from billing.ledger.entry import plain_text
from shards.exits import Exit

# Commands that read the configuration also when --address names the daemon, so that they take both options.
FOR_ITSELF: Final = frozenset({"audit", "doctor"})

_RULES: Final = re.compile(r"(<[A-Za-z0-9+-]{3,}>|[A-Za-z]{3,})[+-]?\d")  # of TZ, by POSIX: MSK-3, EST5EDT, <+03>-3
_OF_ACCOUNT: Final = frozenset(
    name for name, row in METHODS.items() if row.kind in (COMMAND, QUERY) and row.required[0].name == "user_id"
)
_CHANGES: Final = frozenset(name for name, row in METHODS.items() if row.role != READ and row.kind != LOCAL)

T = TypeVar("T")


class Target(NamedTuple):
    """The daemon to call, and how to print its reply."""

    address: str
    told_by: str  # the source of the address, in words; "" if --address gave it
    token: str | None = None
    token_in: str = ""  # the source of the token, in words
    timeout_s: float = 10.0
    tls: ssl.SSLContext | None = None
    as_json: bool = False
    as_csv: bool = False
    wide: bool = False
    zone: str | None = None
    file: Path | None = None  # the configuration that was found


class CommandRefused(click.ClickException):
    """The daemon refused the command."""

    exit_code = int(Exit.REFUSED)

    def __init__(self, error: BillingError, target: Target, user: object = None, changes: bool = True) -> None:
        super().__init__(words_of(error, target, user, changes))
        self._error = error
        self._as_json = target.as_json
        self.is_open = changes and error.applied == "unknown"  # it may have been carried out

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints one line on standard error."""
        error = self._error
        fields: dict[str, Any] = {
            "name": error.name,
            "code": error.code,
            "message": error.message,
            "retry": error.retry,
            "applied": error.applied,
            **error.details,
        }
        say(json.dumps(fields, default=plain_text) if self._as_json else f"billing: {self.message}")


class NotReached(CommandRefused):
    """No daemon was reached, or it did not answer."""

    exit_code = int(Exit.UNREACHABLE)


class NotAllowed(CommandRefused):
    """The caller has no permission for this command."""

    exit_code = int(Exit.NOT_ALLOWED)


def refused(error: BillingError, target: Target, user: object = None, changes: bool = True) -> CommandRefused:
    """The exception to raise for `error` of a call, with the right exit code. Parameters as of `words_of`."""
    if isinstance(error, Unauthenticated | Forbidden):
        return NotAllowed(error, target, user, changes)
    kind = NotReached if isinstance(error, Unavailable) else CommandRefused
    return kind(error, target, user, changes)


def words_of(error: BillingError, target: Target, user: object = None, changes: bool = True) -> str:
    """The text for a person about an error of the daemon, or of the attempt to reach it. `user`: the user whom the call
    was about. `changes`: whether the call may have had an effect.
    """
    text = str(error)
    details = error.details
    if error.name == "UNKNOWN_ACCOUNT" and user is not None:
        text = f"{error.name}: there is no account {printable(str(user))}; one that was closed has a `billing history`"
    elif error.name == "INSUFFICIENT_FUNDS" and "available_nanos" in details:
        available, short = coins(details["available_nanos"]), coins(details["shortfall_nanos"])
        text = f"{error.name}: {short} coins are missing; {available} are available"
    elif error.name == "INSUFFICIENT_RUNWAY" and "runway_ns" in details:
        lasts, wanted = span(details["runway_ns"]), span(details.get("min_runway_ns", 0))
        text = f"{error.name}: the money would last for {lasts}; {wanted} is asked for"
    elif error.name == "INVALID_RATE" and "rate_nanos_per_hour" in details:
        text = (
            f"{error.name}: the line is at {coins(details['rate_nanos_per_hour'])} per hour and cannot fall below zero"
        )
    elif isinstance(error, Unauthenticated) and target.token is None:
        text = f"{error.name}: this daemon asks for a token; --token-file FILE or BILLING_TOKEN_FILE names one"
    elif isinstance(error, Unauthenticated):
        text = f"{error.name}: the token in {target.token_in} is not known to this daemon: revoked, or another's"
    elif isinstance(error, Unavailable) and (reason := details.get("unreached")):
        where = f"{target.address} ({target.told_by})" if target.told_by else target.address
        if untrusted := details.get("untrusted"):
            text = f"UNAVAILABLE: the certificate at {where} is not trusted ({untrusted}); --tls-ca names its authority"
        elif listens := details.get("listens"):
            text = f"UNAVAILABLE: something listens at {where}, but {listens}{_about_tls(target, listens)}"
        else:
            advice = "`billing serve` starts one, --address names another"
            if _has_other_hosts(target):
                advice = (
                    "where one runs, it stands by or is drained: `billing cluster status` names the host that serves, "
                    "and --address calls it; else `billing serve` starts one"
                )
            text = f"UNAVAILABLE: no daemon answers at {where}: {reason}; {advice}"
    is_open = changes and error.applied == "unknown"
    return printable(text) + (" (it may have been carried out)" if is_open else "")


def _has_other_hosts(target: Target) -> bool:
    """Whether the configuration that named the address says that several hosts share one log."""
    if target.file is None or not target.told_by.endswith(str(target.file)):
        return False
    from shards.journal.backends import KINDS

    kind = KINDS.get(setting(target.file, os.environ, "journal", "kind") or "file")
    return kind is not None and kind.is_shared


def _about_tls(target: Target, listens: str) -> str:
    """Advice for the case that one side speaks TLS and the other does not; "" if the fault is another."""
    if target.tls is None and listens == CLOSES:
        return "; where it speaks TLS, --tls or --tls-ca FILE says so"
    if listens.startswith(NO_TLS):
        return "; where it speaks none, leave out --tls, --tls-ca, --tls-cert and BILLING_TLS_CA, BILLING_TLS_CERT"
    return ""


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command's function with the options for calling a daemon and for printing its reply. The function
    receives them as its first argument, a `Target`.
    """

    @functools.wraps(command)
    def with_target(
        *arguments: Any,
        address: str | None,
        config_file: str | None,
        token_file: str | None,
        tls: bool,
        tls_ca: str | None,
        tls_cert: str | None,
        timeout: int,
        as_json: bool,
        as_csv: bool,
        wide: bool,
        zone: str | None,
        **options: Any,
    ) -> Any:
        if as_json and as_csv:
            raise click.UsageError("--json and --csv cannot both be given")
        token, token_in = _token(token_file)
        if zone is not None:
            _check_zone(zone)
        elif not _is_known(zone_name := os.environ.get("TZ", "")):
            say(f"billing: TZ: there is no time zone {zone_name!r}; times are in UTC")
            zone = "UTC"
        target = _located(address, config_file)._replace(
            token=token,
            token_in=token_in,
            timeout_s=timeout / 10**9,
            as_json=as_json,
            as_csv=as_csv,
            wide=wide,
            zone=zone,
        )
        if parse_address(target.address).path and (tls_option := _tls_of_the_line()):
            raise click.UsageError(
                f"{tls_option} asks for TLS, and {target.address} is a unix socket, which speaks none; "
                "--address host:port names a daemon that does"
            )
        if tls or tls_ca or tls_cert or target.tls:
            try:
                target = target._replace(tls=tls_context(tls_ca, tls_cert))
            except OSError as error:
                raise click.BadParameter(f"expected PEM files: {error}", param_hint="--tls-ca, --tls-cert") from None
        return command(target, *arguments, **options)

    return applied((*OUTPUT_OPTIONS, *CONNECTION_OPTIONS), with_target)  # type: ignore[no-any-return]


def _tls_of_the_line() -> str:
    """The first option on the command line that asks for TLS, or "". Variables of the environment do not count: they
    may be meant for other daemons.
    """
    context = click.get_current_context()
    named = {"tls": "--tls", "tls_ca": "--tls-ca", "tls_cert": "--tls-cert"}
    options = (
        text for name, text in named.items() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    )
    return next(options, "")


def _located(address: str | None, given_file: str | None) -> Target:
    """The target by the rule in `billing.cli.finding`, without token and output options."""
    context = click.get_current_context()
    on_the_line = context.get_parameter_source("address") is ParameterSource.COMMANDLINE
    file = config_file(given_file, os.environ)
    if on_the_line and given_file is not None and context.command.name not in FOR_ITSELF:
        raise click.UsageError("--config and --address cannot both be given")
    if address is not None and (on_the_line or given_file is None):
        told_by = "" if on_the_line else "BILLING_ADDRESS"
        hint, by_tls = "--address", None
    else:
        try:
            address, by_tls_too, told_by = listening(file, os.environ)
        except ValueError as error:
            raise click.UsageError(f"where to call? {error}; --address says it") from None
        hint, by_tls = told_by, ssl.create_default_context() if by_tls_too else None
    try:
        parse_address(address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=hint) from None
    return Target(address, told_by, tls=by_tls, file=file)


def target_of(config_file: str | None) -> Target:
    """The target of a configuration, for a command without `target_options`; the token comes from the environment."""
    target = _located(None, config_file)
    token, token_in = _token(os.environ.get(TOKEN_FILE))
    return target._replace(token=token, token_in=token_in)


def _token(file: str | None) -> tuple[str | None, str]:
    """The token to sign in with and its source in words. `--token-file` takes precedence over BILLING_TOKEN, and this
    over BILLING_TOKEN_FILE, as in the client.
    """
    source = click.get_current_context().get_parameter_source("token_file")
    if source is not ParameterSource.COMMANDLINE and TOKEN in os.environ:
        return os.environ[TOKEN], TOKEN
    if file is None:
        return None, ""
    where = "standard input" if file == "-" else file
    if source is not ParameterSource.COMMANDLINE:
        where += f" ({TOKEN_FILE})"
    try:
        with click.open_file(file, encoding="utf-8") as opened:
            token = str(opened.read()).strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "expected UTF-8"
        raise click.BadParameter(f"{file}: {why}", param_hint="--token-file") from None
    if not token:
        raise click.BadParameter(f"{where} is empty: expected a token", param_hint="--token-file")
    return token, where


def _is_zone(name: str) -> bool:
    """Whether there is a time zone of this name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _is_known(tz: str) -> bool:
    """Whether the value of TZ is one that the C library understands: empty, a zone's name, a file, or POSIX rules. The
    library treats any other text as UTC and shows the letters at its begin as the zone's name.
    """
    name = tz.removeprefix(":")
    return not name or name.startswith("/") or _RULES.match(name) is not None or _is_zone(name)


def _check_zone(name: str) -> None:
    if not _is_zone(name):
        raise click.BadParameter(f"there is no time zone {name!r}; as Europe/Moscow or UTC", param_hint="--zone")


def client_of(target: Target) -> Client:
    """The client for a target. Every command makes its client with this function."""
    return Client(target.address, token=target.token, environment={}, tls=target.tls, timeout_s=target.timeout_s)


def run(target: Target, work: Callable[[Client], Awaitable[T]], user: object = None, *, changes: bool = False) -> T:
    """Connects a client, calls `work` with it, and returns the result. Raises CommandRefused. `user`: the user whom the
    call is about, named in the refusal. `changes`: whether the call may change something, so that after an interruption
    its outcome is unknown.
    """

    async def call() -> T:
        client = client_of(target)
        try:
            await client.connect(tries=1)
            return await work(client)
        finally:
            client.close()

    try:
        return asyncio.run(call())
    except BillingError as error:
        raise refused(error, target, user, changes) from None
    except KeyboardInterrupt:
        if not changes:
            raise
        raise refused(Unavailable("interrupted", applied="unknown"), target, user) from None


def ask(target: Target, method: str, *params: Any, **options: Any) -> Any:
    """The result of one call; options that are None are not sent. Raises CommandRefused."""
    user = params[0] if method in _OF_ACCOUNT and params else None
    sent = [sendable(param) for param in params]
    sent_options = {name: sendable(value) for name, value in options.items()}
    return run(target, lambda client: client.call(method, *sent, **sent_options), user, changes=is_change(method))


def rehearse(target: Target, method: str, *params: Any, **options: Any) -> Any:
    """The reply that a call would have now (`dry_run`); nothing changes. Raises CommandRefused."""
    sent_options = {name: value for name, value in options.items() if value is not None}
    sent = [sendable(each) for each in (*params, sent_options)]
    return run(target, lambda client: client.call("dry_run", method, sent), params[0])


def is_change(method: str) -> bool:
    """Whether a call of this method may change something."""
    return method in _CHANGES


def sendable(value: Any) -> Any:
    """A value as the client can send it: a word of the command line that is not UTF-8 becomes its original bytes, which
    the daemon then refuses with its reason.
    """
    if isinstance(value, dict):
        return {name: sendable(item) for name, item in value.items()}
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeError:
            return os.fsencode(value)
    return value
