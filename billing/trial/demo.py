"""`billing demo`: starts the real daemon and a receiver, plays a short scene with three users, and then stays up.

The demo shows the real daemon: two worker processes, journals on disk, commands over MessagePack-RPC, GETs that arrive
at another process, which stamps them. This module computes only the judgement at the end of the scene (see
`demo_scene`). The data live in a temporary directory, which is removed afterwards; an operator's data are not touched.

    --once      plays the scene and ends: 0, or 1 where a cutoff was missing, early or false
    --cluster   keeps the log on three nats-servers, started for it

Exit codes: 0 done (also on Ctrl-C after the scene), 1 the scene went wrong, 130 ended before the scene was over, 70 a
child process ended by itself, 78 configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections import deque
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
from rich.console import Console

from billing.cli.finding import ADDRESS_DEFAULT, RULE
from billing.cli.options import Command
from billing.cli.output import put
from billing.client.client import Client
from billing.client.errors import BillingError
from billing.trial.arrivals import Arrival, ArrivalReader, ReceiverError
from billing.trial.child_processes import ChildError, run_until_signalled
from billing.trial.demo_scene import USERS, Scene
from billing.trial.demo_screen import LiveScreen, PlainScreen, SceneNotes
from billing.trial.log_servers import NoProgram
from billing.trial.own_daemon import OwnDaemon, default_config_file
from shards.exits import Exit

LOOK_S: Final = 0.1
ARRIVALS_KEPT: Final = 1000  # far more than a scene has
CLUSTER_SERVERS: Final = 3


@click.command(cls=Command)
@click.option(
    "--once",
    is_flag=True,
    help="Ends when the three users are through; 0 only if all cutoffs were right.",
)
@click.option("--pace", default=1.0, type=click.FloatRange(0.1, 10), show_default=True, help="2 takes half as long.")
@click.option("--cluster", is_flag=True, help="Keep the log on three nats-servers, which are started for it.")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The configuration to show. {RULE} Data, ports that are taken and calls out are set aside.",
)
def demo(once: bool, pace: float, cluster: bool, file: Path | None) -> None:
    """Starts a daemon of its own and shows what it does, with three users."""
    sys.exit(run_until_signalled(_demo(once, pace, CLUSTER_SERVERS if cluster else 0, file or default_config_file())))


COMMANDS: dict[str, click.Command] = {"demo": demo}


async def _demo(once: bool, pace: float, log_servers: int, file: Path | None) -> int:
    console = Console()
    daemon = OwnDaemon(file, os.environ, log_servers=log_servers)
    servers_text = f", {log_servers} nats-servers" if log_servers else ""
    put(f"starting the daemon and a receiver{servers_text} ...")
    try:
        async with daemon, Client(daemon.rpc, environment={}) as client, aiohttp.ClientSession() as session:
            reader = ArrivalReader(session, daemon.cutoff, daemon.config.cutoff.url)
            notes = SceneNotes(
                f"http://{daemon.admin}/?user={USERS[0]}", try_next(daemon.rpc) if not once else (), daemon.notes
            )
            with LiveScreen(console, notes) if console.is_terminal else PlainScreen(_print, notes) as screen:
                return await play(daemon, client, reader, screen, once, pace)
    except ChildError as error:
        print(f"billing: {error}", file=sys.stderr)
        return Exit.CONFIG if isinstance(error, NoProgram) else Exit.BUG
    except (BillingError, ReceiverError, aiohttp.ClientError) as error:
        print(f"billing: the demo cannot go on: {type(error).__name__}: {error}", file=sys.stderr)
        return Exit.REFUSED


async def play(
    daemon: OwnDaemon,
    client: Client,
    reader: ArrivalReader,
    screen: LiveScreen | PlainScreen,
    once: bool,
    pace: float,
) -> int:
    """Plays the scene. If it went right and `once` is false, then shows what happens until somebody ends the demo.
    Returns the exit code.
    """
    arrivals: deque[Arrival] = deque(maxlen=ARRIVALS_KEPT)
    scene = Scene(client, screen, arrivals, pace)
    looking = asyncio.create_task(_look(client, reader, screen, arrivals))
    breaking = asyncio.create_task(_fail_when_broken(daemon))
    playing = asyncio.create_task(scene.play())
    try:
        await _first(playing, looking, breaking)
        score = playing.result()
        screen.finish(str(score), score.clean)
        if not once and score.clean:
            with contextlib.suppress(asyncio.CancelledError):
                await _first(looking, breaking)
        return 0 if score.clean else Exit.REFUSED
    finally:
        for task in (playing, looking, breaking):
            task.cancel()
        await asyncio.gather(playing, looking, breaking, return_exceptions=True)


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Waits until one of the tasks is over. Raises what that task raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _look(
    client: Client, reader: ArrivalReader, screen: LiveScreen | PlainScreen, arrivals: deque[Arrival]
) -> None:
    """Shows the balances as they change, and the GETs as they arrive."""
    while True:
        for arrival in await reader.fresh():
            if arrival.user_id in USERS:
                arrivals.append(arrival)
            screen.arrival(arrival)
        for user_id in USERS:
            with contextlib.suppress(BillingError):  # the account is not there yet
                screen.account(await client.get_account(user_id))
        await asyncio.sleep(LOOK_S)


async def _fail_when_broken(daemon: OwnDaemon) -> None:
    raise await daemon.broken()


def try_next(rpc: str) -> list[tuple[str, str]]:
    """(command, what it shows) of commands for another terminal, with the options that make them reach this daemon."""
    address = "" if rpc == ADDRESS_DEFAULT else f" --address {rpc}"
    billing = command_of(Path(sys.argv[0]), Path.cwd(), os.environ.get("PATH", ""))
    return [
        (f"{billing} set-rate {USERS[1]} 1{address}", "it runs again, and out"),
        (f"{billing} account {USERS[1]}{address}", "how it stands"),
        (f"{billing} console{address}", f"then: watch {USERS[1]}"),
    ]


def command_of(script: Path, here: Path, path: str) -> str:
    """The command that calls this program from the directory `here`, in a shell whose search path is `path`."""
    if script.name != "billing":
        return shlex.join([sys.executable, "-m", "billing"])
    script = here / script
    if str(script.parent) in path.split(os.pathsep):
        return "billing"
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def _print(line: str) -> None:
    put(line)
