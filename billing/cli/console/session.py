"""`billing console`: reads lines, makes the calls and prints the replies, until ^D.

On a terminal it has history, completion and colour. From a pipe it reads and answers lines one by one without a prompt.
A refused line does not end it; the exit code is 1 if any line was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from rich.console import Console

from billing.api.iproto.procedures import what_is_left, what_is_missing
from billing.cli.calling import Target, is_change, run, target_options, words_of
from billing.cli.console import lua_call
from billing.cli.console.line import OWN, ConsoleCall, LineError, Table, span_of
from billing.cli.console.watch import watch
from billing.cli.method_commands import unit_of
from billing.cli.options import Command
from billing.cli.output import put, say
from billing.cli.showing import ESSENTIAL, is_terminal, look_of, show, show_explained, tell
from billing.client.client import Client
from billing.client.errors import BillingError, InsufficientFunds, Unavailable
from shards.counting import counted

HISTORY_FILE: Final = "billing_console_history"
T = TypeVar("T")

IRREVOCABLE: Final = frozenset({"close_account", "release_cutoffs"})


@click.command(cls=Command)
@target_options
def console(target: Target) -> None:
    """A prompt for all procedures, with history, completion and a live view; nothing is evaluated."""
    session = _Session(target)
    sys.exit(run(target, session.run))


class _Session:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._console = Console(highlight=False)
        self._table = Table(())
        self._users: set[str] = set()
        self._refused = False

    async def run(self, client: Client) -> int:
        zone = ZoneInfo(self._target.zone) if self._target.zone is not None else None
        self._table = Table(await client.call("methods"), zone)
        if sys.stdin is None:
            raise click.UsageError("standard input is closed: there is nothing to read")
        if sys.stdin.isatty():
            await self._converse(client)
        else:
            loop = asyncio.get_running_loop()
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                if await self._carry_out(client, line):
                    break
        return 1 if self._refused else 0

    async def _converse(self, client: Client) -> None:
        info = await client.call("server_info")
        self._console.print(
            f"billing {info['version']} at {self._target.address}, {counted(info['shards'], 'shard')}. Amounts are "
            "coins; help lists what there is, ^D leaves."
        )
        prompt: PromptSession[str] = PromptSession(
            history=_history(), completer=_Completer(self._table, self._users), complete_while_typing=False
        )
        while True:
            try:
                line = await prompt.prompt_async("billing> ")
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            if await self._carry_out(client, line):
                return

    async def _carry_out(self, client: Client, line: str) -> bool:
        """Carries out one line and prints its reply or error; returns whether the console is to end."""
        console_call = None
        lua = lua_call.read(line)
        try:
            console_call = self._table.parse(line if lua is None else lua.line)
            if console_call is not None:
                if console_call.name in OWN:
                    return await self._run_console_word(client, console_call)
                if (
                    is_change(console_call.name)
                    and console_call.name in IRREVOCABLE
                    and not await self._is_meant(console_call)
                ):
                    return False
                reply = await self._call(client, console_call)
                if lua is not None and lua.name == lua_call.DECREASE:
                    put(what_is_left(reply))
                elif lua is None or lua.name != lua_call.INCREASE:  # this function returns nothing
                    self._show(console_call, reply)
                self._note(console_call)
        except LineError as error:
            self._say(str(error))
        except InsufficientFunds as error:
            if lua is not None and lua.name == lua_call.DECREASE:
                put(what_is_missing(error.details))
            else:
                self._say(words_of(error, self._target, console_call.params[0] if console_call is not None else None))
        except BillingError as error:
            user = console_call.params[0] if console_call is not None and console_call.params else None
            changes = console_call is None or is_change(console_call.name)
            self._say(words_of(error, self._target, user, changes))
        return False

    def _show(self, console_call: ConsoleCall, reply: Any) -> None:
        name = console_call.name
        if is_change(name):
            tell(self._target, name, reply, unit_of(name, console_call.options))
        elif name == "explain":
            show_explained(self._target, reply)
        else:
            show(self._target, reply, ESSENTIAL.get(name, ()))

    async def _call(self, client: Client, console_call: ConsoleCall) -> Any:
        """Makes a call and returns the reply. At a terminal ^C ends only the wait, not the console, and raises
        Unavailable, since the outcome is unknown; from a pipe ^C ends the console. Raises BillingError.
        """
        call = client.call(console_call.name, *console_call.params, **console_call.options)
        if not sys.stdin.isatty():
            return await call
        try:
            return await _until_interrupted(call)
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise Unavailable("interrupted", applied="unknown") from None

    async def _is_meant(self, console_call: ConsoleCall) -> bool:
        """Asks the person to confirm a call that cannot be undone. From a pipe it does not ask: the author of the
        script meant the line. The question is a prompt like those for lines, so ^C and ^D mean no.
        """
        if not sys.stdin.isatty():
            return True
        question: PromptSession[str] = PromptSession(history=InMemoryHistory())
        while True:
            try:
                answer = await question.prompt_async(f"{console_call.name} cannot be undone. Go on? [y/N] ")
            except (EOFError, KeyboardInterrupt):
                answer = "n"
            match answer.strip().lower():
                case "y" | "yes":
                    return True
                case "n" | "no" | "":
                    put("Nothing was done.")
                    return False

    def _say(self, text: str) -> None:
        self._refused = True
        if sys.stdin.isatty():
            click.secho(text, fg=None if os.environ.get("NO_COLOR") else "red")
        else:
            say(text)

    def _note(self, console_call: ConsoleCall) -> None:
        fields = self._table.methods[console_call.name]["params"]
        for field, value in zip(fields, console_call.params, strict=True):
            if field["name"] == "user_id":
                self._users.add(value)

    async def _run_console_word(self, client: Client, console_call: ConsoleCall) -> bool:
        match console_call.name, console_call.params:
            case "exit", _:
                return True
            case "help", []:
                put(self._table.overview(self._console.width))
            case "help", names:
                put(self._table.help(" ".join(names)))
            case "clear", []:
                if is_terminal():
                    click.clear()
            case "watch", [user, *rest] if len(rest) <= 1:
                span_ns = span_of("SPAN", rest[0]) if rest else None
                look = look_of(self._target, exact=True)
                with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
                    await _until_interrupted(watch(self._console, lambda: client.get_account(user), span_ns, look))
                self._users.add(user)
            case name, _:
                raise LineError(OWN[name])
        return False


async def _until_interrupted(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work` and returns its result; ^C cancels `work` instead of ending the console."""
    import signal

    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class _Completer(Completer):
    def __init__(self, table: Table, users: set[str]) -> None:
        self._table = table
        self._users = users

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor.lstrip()
        last = text.rpartition(" ")[2]
        for completion in self._table.complete(text, self._users):
            yield Completion(completion, start_position=-len(last))


def _history() -> History:
    """The history of lines: a file in the user's state folder that no other user can read. If the file cannot be made,
    the history lasts only while the console runs.
    """
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        home.mkdir(parents=True, exist_ok=True)
        file = home / HISTORY_FILE
        file.touch(mode=0o600, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor the machine's list of users names a home
        return InMemoryHistory()
    return FileHistory(str(file))


COMMANDS: dict[str, click.Command] = {"console": console}
