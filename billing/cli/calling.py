"""How a command on the command line calls the daemon: where, as whom, and how long it waits.

Every such command takes the same options (`target_options`) and gets them as one `Target`. A refusal ends it with exit
code 1 and the error on standard error, as a line or, with `--json`, as the map the daemon sent. A token never stands on
the command line, where other users of the machine could read it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import click

from billing.client.client import Client
from billing.client.connection import tls_context
from billing.client.errors import BillingError

ADDRESS_DEFAULT = "127.0.0.1:3311"
TIMEOUT_S_DEFAULT = 10.0

_DURATIONS_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3_600 * 10**9,
    "d": 86_400 * 10**9,
}


class Target(NamedTuple):
    """Which daemon, and how to tell what it said."""

    address: str
    token: str | None
    timeout_s: float
    as_json: bool
    tls: ssl.SSLContext | None = None


class CommandRefused(click.ClickException):
    """The daemon said no, or nothing."""

    exit_code = 1

    def __init__(self, error: BillingError, as_json: bool) -> None:
        super().__init__(str(error))
        self._error = error
        self._as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        """One line on standard error."""
        error = self._error
        told: dict[str, Any] = {
            "name": error.name,
            "code": error.code,
            "message": error.message,
            "retry": error.retry,
            "applied": error.applied,
            **error.details,
        }
        doubt = " (it may have been carried out)" if error.applied == "unknown" else ""
        click.echo(json.dumps(told) if self._as_json else f"billing: {self.message}{doubt}", err=True, file=file)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A span of time such as `90s`, `5m`, `2h`, `1d` or `250ms`, in nanoseconds; a number alone is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The nanoseconds; whole ones only."""
        if isinstance(value, int):  # a default
            return int(value)
        number = str(value).rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = str(value)[len(number) :] or "s"
        whole, _, fraction = number.partition(".")
        digits = whole + fraction
        if unit not in _DURATIONS_NS or not digits.isascii() or not digits.isdigit() or not whole or len(digits) > 40:
            self.fail(f"expected a span of time such as 90s, 5m, 2h or 1d, got {value!r}", param, ctx)
        scale: int = 10 ** len(fraction)
        total, rest = divmod(int(digits) * _DURATIONS_NS[unit], scale)
        if rest:
            self.fail(f"expected whole nanoseconds, got {value!r}", param, ctx)
        return total


DURATION = Duration()


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options for calling a daemon; its function gets them as its first argument, a `Target`."""

    @click.option(
        "--address",
        metavar="ADDRESS",
        envvar="BILLING_ADDRESS",
        default=ADDRESS_DEFAULT,
        show_default=True,
        help="host:port or unix:/path of the daemon; also BILLING_ADDRESS.",
    )
    @click.option("--token-file", type=click.File(), help="A file that holds the token to sign in with; - reads it.")
    @click.option(
        "--tls-ca",
        metavar="FILE",
        envvar="BILLING_TLS_CA",
        type=click.Path(exists=True, dir_okay=False),
        help="Speaks TLS, and believes a daemon that this authority (PEM) signed; also BILLING_TLS_CA.",
    )
    @click.option(
        "--tls-cert",
        metavar="FILE",
        envvar="BILLING_TLS_CERT",
        type=click.Path(exists=True, dir_okay=False),
        help="Certificate and key (PEM, one file) by which the daemon knows us; also BILLING_TLS_CERT.",
    )
    @click.option("--timeout", type=DURATION, default=int(TIMEOUT_S_DEFAULT * 10**9), help="How long to wait.  [10s]")
    @click.option("--json", "as_json", is_flag=True, help="Prints the daemon's reply as JSON: nanos and nanoseconds.")
    @functools.wraps(command)
    def with_target(
        *arguments: Any,
        address: str,
        token_file: IO[str] | None,
        tls_ca: str | None,
        tls_cert: str | None,
        timeout: int,
        as_json: bool,
        **options: Any,
    ) -> Any:
        token = token_file.read().strip() if token_file is not None else None
        try:
            tls = tls_context(tls_ca, tls_cert) if tls_ca or tls_cert else None
        except OSError as error:
            raise click.BadParameter(f"expected PEM files: {error}", param_hint="--tls-ca, --tls-cert") from None
        return command(Target(address, token, timeout / 10**9, as_json, tls), *arguments, **options)

    return with_target


def ask(target: Target, method: str, *params: Any, **options: Any) -> Any:
    """The result of one call; options that are None are not sent. Raises Refusal, and click's error for an address
    that is none.
    """

    async def call() -> Any:
        client = Client(target.address, token=target.token, tls=target.tls, timeout_s=target.timeout_s)
        try:
            return await client.call(method, *params, **options)
        finally:
            client.close()

    try:
        return asyncio.run(call())
    except BillingError as error:
        raise CommandRefused(error, target.as_json) from None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--address") from None
