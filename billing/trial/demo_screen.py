"""The output of the demo: a live screen on a terminal, plain lines everywhere else.

    PlainScreen   one line for each step and each GET, and at intervals a line with all balances if they have changed
    LiveScreen    fills the terminal: the dashboard's address, the changing accounts, the newest lines of the story, the
                  verdict, and commands to try next; at the end it restores the terminal and prints the story there

Both have the same methods: `say`, `account`, `arrival`, `finish`. Instants are shown in UTC with all nine digits, and
for each GET how long after the exact instant it was received.

**The picture fits the terminal.** Each picture is made for the terminal's size at that moment. Lines go first to the
verdict and the commands, then to the story; within the story the GETs, which matter most, go before older steps. On a
narrow terminal the story is wrapped, instants lose digits, and then columns are left out. The picture uses the
alternate screen, so a terminal that is resized shows no remains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from billing.ledger.money import format_coins
from billing.trial.arrivals import Arrival
from billing.trial.demo_scene import Account, coins
from shards.system.clock import MACHINE_CLOCKS

SECOND_NS: Final = 10**9
STORY_LINES: Final = 100
STORY_LINES_MIN: Final = 4  # notes are shown only if so many lines remain for the story; else they follow at the end
REFRESH_HZ: Final = 10
BALANCES_EVERY_NS: Final = 2 * SECOND_NS
ELAPSED_WIDTH: Final = 9
RATE_FROM: Final = 60  # columns; a narrower terminal shows no rate
DIGITS_FROM: Final = 72  # columns; a narrower terminal shows instants to the millisecond only
REASON_FROM: Final = 80  # columns; a narrower terminal does not show why an exhausted account overruns
UNDER_WAY: Final = "The verdict comes here at the end: whether every cutoff came, and none early."
END: Final = "Ctrl-C ends it, and everything it started."


class SceneNotes(NamedTuple):
    """The text around the scene: the dashboard's address, and commands to try, each with what it shows (empty if the
    demo ends with the scene). `notes`: what else the viewer has to know, such as a port that was taken.
    """

    dashboard: str
    commands: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()


def clock_time(at_ns: int) -> str:
    """An instant's time of day, UTC, to the nanosecond."""
    seconds, rest = divmod(at_ns, SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}.{rest:09}"


def call_text(arrival: Arrival) -> str:
    """The line of a GET in the story."""
    return f"GET for {arrival.user_id}: {_late(arrival)} the exact instant {clock_time(arrival.exhausted_at_ns)}"


def brief_call_text(arrival: Arrival) -> str:
    """The line of a GET for a narrow terminal: its instant to the millisecond."""
    return f"GET for {arrival.user_id}: {_late(arrival)} {clock_time(arrival.exhausted_at_ns)[:12]}"


def _late(arrival: Arrival) -> str:
    late_ns = arrival.arrived_ns - arrival.exhausted_at_ns
    return f"{late_ns / 1000:,.0f} µs after" if late_ns >= 0 else f"{-late_ns / 1000:,.0f} µs BEFORE"


class Line(NamedTuple):
    """A line of the story, in two forms for wide and narrow terminals. `is_get`: whether the line is about a GET."""

    wide: Text
    narrow: Text
    is_get: bool


class PlainScreen:
    """Writes the scene as lines of text."""

    def __init__(self, write: Callable[[str], None], around: SceneNotes) -> None:
        self._write = write
        self._around = around
        self._started_ns = MACHINE_CLOCKS.boot_ns()
        self._balances: dict[str, str] = {}
        self._shown_ns = self._started_ns
        self._shown_balances: dict[str, str] = {}  # the balances in the last line that showed balances

    def __enter__(self) -> Self:
        for note in self._around.notes:
            self._write(note)
        self._write(f"dashboard: {self._around.dashboard}")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        self._write(f"{(MACHINE_CLOCKS.boot_ns() - self._started_ns) / SECOND_NS:6.2f} s  {text}")

    def account(self, account: Account) -> None:
        self._balances[account["user_id"]] = coins(account["balance_nanos"])
        if MACHINE_CLOCKS.boot_ns() - self._shown_ns > BALANCES_EVERY_NS and self._shown_balances != self._balances:
            self._shown_ns = MACHINE_CLOCKS.boot_ns()
            self._shown_balances = dict(self._balances)
            self.say("balances: " + ", ".join(f"{user} {balance}" for user, balance in sorted(self._balances.items())))

    def arrival(self, arrival: Arrival) -> None:
        self.say(call_text(arrival))

    def finish(self, score: str, clean: bool) -> None:
        self._write(score)
        if self._around.commands:
            for line in ["try next, from another terminal:", *_shown(self._around.commands, 120)]:
                self._write(line)
            self._write(END)


class LiveScreen:
    """Shows the scene as a picture that is refreshed `REFRESH_HZ` times a second. A context manager: when it ends, it
    restores the terminal and prints the story there.
    """

    def __init__(self, console: Console, around: SceneNotes) -> None:
        self._console = console
        self._around = around
        self._started_ns = MACHINE_CLOCKS.boot_ns()
        self._accounts: dict[str, Account] = {}
        self._story: deque[Line] = deque(maxlen=STORY_LINES)
        self._verdict = Text(UNDER_WAY, "dim")
        self._live = Live(
            console=console, get_renderable=self.picture, refresh_per_second=REFRESH_HZ, screen=True, transient=True
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)
        width = self._console.width
        for line in self._story:
            self._console.print(*self._wrapped(line.wide, width, ELAPSED_WIDTH), sep="\n", soft_wrap=True)
        for text in (*map(Text, self._around.notes), self._verdict):
            self._console.print(*self._wrapped(text, width, 0), sep="\n", soft_wrap=True)

    def say(self, text: str) -> None:
        self._tell(text, text, "", is_get=False)

    def account(self, account: Account) -> None:
        self._accounts[account["user_id"]] = account

    def arrival(self, arrival: Arrival) -> None:
        style = "bold green" if arrival.arrived_ns >= arrival.exhausted_at_ns else "bold red"
        self._tell(call_text(arrival), brief_call_text(arrival), style, is_get=True)

    def finish(self, score: str, clean: bool) -> None:
        self._verdict = Text(score, "bold green" if clean else "bold red")

    def _tell(self, wide: str, narrow: str, style: str, *, is_get: bool) -> None:
        elapsed = f"{(MACHINE_CLOCKS.boot_ns() - self._started_ns) / SECOND_NS:6.2f} s  "
        before = (elapsed, "dim")
        self._story.append(Line(Text.assemble(before, (wide, style)), Text.assemble(before, (narrow, style)), is_get))

    def picture(self) -> Group:
        """The whole picture, in at most as many lines as the terminal has."""
        width, height = self._console.size
        above = [Text.assemble("dashboard  ", (self._around.dashboard, "bold cyan")), Text()]
        accounts = accounts_table(self._accounts, width)
        below = [Text(), *self._wrapped(self._verdict, width, 0)]
        if self._around.commands:
            below += [Text("try next, from another terminal:", "dim")]
            below += [Text(line) for line in _shown(self._around.commands, width)] + [Text(END, "dim")]
        room = height - len(above) - len(self._accounts) - 2 - len(below)
        notes = [line for note in self._around.notes for line in self._wrapped(Text(note, "yellow"), width, 0)]
        if room - len(notes) >= STORY_LINES_MIN:
            room -= len(notes)
            above[1:1] = notes
        lines = self._newest(width, room)
        return Group(*map(_one_line, above), accounts, Text(), *lines, *map(_one_line, below))

    def _newest(self, width: int, height: int) -> list[Text]:
        """The lines of the story that fit, in their order. The newest line is chosen first, then the newest GETs, then
        the newest other lines.
        """
        wrapped = [
            self._wrapped(line.wide if width >= DIGITS_FROM else line.narrow, width, ELAPSED_WIDTH)
            for line in self._story
        ]
        numbers = range(len(wrapped) - 1, -1, -1)
        chosen: set[int] = set()
        for number in sorted(numbers, key=lambda number: (number != numbers[0], not self._story[number].is_get)):
            height -= len(wrapped[number])
            if height < 0:
                break
            chosen.add(number)
        return [text for number in sorted(chosen) for text in wrapped[number]]

    def _wrapped(self, text: Text, width: int, indent: int) -> list[Text]:
        """The text in lines of at most `width` cells; lines after the first one are indented."""
        if cell_len(text.plain) <= width:
            return [text]
        first, *rest = text.wrap(self._console, width - indent)
        return [first, *(Text.assemble(" " * indent, line) for line in rest)]


def accounts_table(accounts: dict[str, Account], width: int) -> Table:
    """A row for each account. If `width` is small, instants lose digits first, then the rate is left out."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("user", no_wrap=True)
    table.add_column("balance, coins", justify="right", no_wrap=True)
    if width >= RATE_FROM:
        table.add_column("a second", justify="right", no_wrap=True)
    table.add_column("runs out, UTC", no_wrap=True, min_width=18 if width >= DIGITS_FROM else 12)
    table.add_column("state", no_wrap=True)
    for user_id, account in sorted(accounts.items()):
        due_ns, active = account["exhausts_at_ns"], account["state"] == "active"
        due = clock_time(due_ns)[: 18 if width >= DIGITS_FROM else 12] if due_ns is not None else ""
        state = Text(account["state"], "green" if active else "bold red")
        if not active and account["rate_nanos_per_hour"] and width >= REASON_FROM:
            state.append(", rate not 0", "yellow")
        rate = format_coins(account["rate_nanos_per_second"])
        row: list[str | Text] = [user_id, coins(account["balance_nanos"]), rate, due, state]
        table.add_row(*(row if width >= RATE_FROM else [*row[:2], *row[3:]]))
    return table


def _shown(commands: Sequence[tuple[str, str]], width: int) -> list[str]:
    """The commands, one a line; with what each shows, if all lines fit into `width`."""
    longest = max(cell_len(command) for command, _ in commands)
    lines = [f"  {command:<{longest}}   {shows}" for command, shows in commands]
    fits = all(cell_len(line) <= width for line in lines)
    return lines if fits else [f"  {command}" for command, _ in commands]


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
