"""The command `billing receiver`, which runs the trial endpoint."""

from __future__ import annotations

import random
import sys
from typing import TextIO

import click

from billing.addresses import parse_listen
from billing.cli.options import Command
from billing.signature import parse_secrets
from billing.trial.faults import Fault, Misbehaviour, parse_fault


def _fault(_: click.Context, __: click.Parameter, text: str | None) -> Fault | None:
    try:
        return None if text is None else parse_fault(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _address(_: click.Context, __: click.Parameter, text: str) -> tuple[str, int]:
    try:
        return parse_listen(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _secrets(_: click.Context, __: click.Parameter, file: TextIO | None) -> tuple[bytes, ...]:
    try:
        return () if file is None else parse_secrets(file.read())
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=Command)
@click.option("--listen", default="127.0.0.1:8080", show_default=True, callback=_address, help="TCP address.")
@click.option(
    "--secret-file", "secrets", type=click.File(), callback=_secrets, help="Answers 401 to what is not signed with it."
)
@click.option(
    "--fault",
    callback=_fault,
    metavar="NAME[=VALUE]",
    help="Misbehaves: slow=MS, status=CODE, refuse, hang, hang-body, drip, endless, gzip-bomb, redirect, reset, "
    "lost, body-204, odd-framing, long-header or one-at-a-time. NAME@SHARE: for that share of users.",
)
@click.option(
    "--fault-share",
    default=1.0,
    type=click.FloatRange(0, 1),
    show_default=True,
    help="Share of the calls that meet it.",
)
@click.option("--seed", type=int, help="Chooses these calls; without one, chance does.")
@click.option("--log", type=click.File("a"), help="Appends each call to a file, a JSON object a line.")
@click.option(
    "--keep", default=100_000, type=click.IntRange(1), show_default=True, help="Calls remembered for /received."
)
@click.option("--quiet", is_flag=True, help="Prints no line for each call.")
def receiver(
    listen: tuple[str, int],
    secrets: tuple[bytes, ...],
    fault: Fault | None,
    fault_share: float,
    seed: int | None,
    log: TextIO | None,
    keep: int,
    quiet: bool,
) -> None:
    """Takes cutoff calls for trying and measuring, and says how late they came."""
    from billing.trial.received_calls import ReceivedCalls
    from billing.trial.receiver import Receiver, run_receiver
    from billing.trial.receiver_call import line_of

    misbehaviour = Misbehaviour(fault, fault_share, random.Random(seed))
    received = ReceivedCalls(keep, None if quiet else lambda call: click.echo(line_of(call)), log)
    try:
        code = run_receiver(
            Receiver(*listen, secrets=secrets, misbehaviour=misbehaviour, received=received), click.echo
        )
    except OSError as error:
        raise click.ClickException(f"the receiver ended at {listen[0]}:{listen[1]}: {error.strerror}") from None
    sys.exit(code)


COMMANDS: dict[str, click.Command] = {"receiver": receiver}
