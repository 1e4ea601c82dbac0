"""The demo's screen: whatever the terminal's size, the address, the verdict and the next steps are on it, whole."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from billing.trial.arrivals import Arrival
from billing.trial.demo import command_of
from billing.trial.demo_screen import END, LiveScreen, PlainScreen, SceneNotes

ADDRESS = "http://127.0.0.1:9311/?user=user_01"
COMMANDS = [("billing set-rate user_02 1", "it runs again, and out"), ("billing account user_02", "how it stands")]
VERDICT = "2 cutoffs expected, 2 received, 0 missing, 0 early, 0 false"
AT_NS = 1_795_872_287_922_238_409


def account(user_id: str, state: str, due_ns: int | None, rate: int) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "state": state,
        "balance_nanos": 2_967_022_891,
        "rate_nanos_per_second": rate,
        "rate_nanos_per_hour": rate * 3600,
        "exhausts_at_ns": due_ns,
    }


def drawn(width: int, height: int, later: int = 0, notes: Sequence[str] = ()) -> list[str]:
    """The lines of the picture at the end of a scene with a long story, of which `later` steps came behind its GET."""
    console = Console(width=width, height=height, file=StringIO(), force_terminal=True, color_system=None)
    screen = LiveScreen(console, SceneNotes(ADDRESS, COMMANDS, notes))
    screen.account(account("user_01", "exhausted", None, 10**9))
    screen.account(account("user_02", "active", AT_NS, 10**9))
    screen.account(account("user_03", "exhausted", None, 0))
    for number in range(40):
        screen.say(f"step {number} of a story that has many more words than a line of a small terminal can hold")
    screen.arrival(Arrival("user_03", "event", 1, AT_NS, AT_NS + 512_000))
    for number in range(later):
        screen.say(f"step {number} behind the GET, which has many more words than a line of a small terminal can hold")
    screen.finish(VERDICT, True)
    with console.capture() as capture:
        console.print(screen.picture(), end="")
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 20), (130, 40), (50, 18), (80, 60)])
def test_what_matters_is_always_there(width: int, height: int) -> None:
    lines = [line.rstrip() for line in drawn(width, height)]
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    assert lines[0].endswith(ADDRESS)
    text = "\n".join(lines)
    assert VERDICT in " ".join(line.strip() for line in lines)
    assert "billing set-rate user_02 1" in text
    assert "billing account user_02" in text
    assert lines[-1] == END
    assert "GET for user_03: 512 µs after" in text, "the newest of the story is shown first"


TAKEN = ["127.0.0.1:3311 (rpc.listen) is taken: 127.0.0.1:40001 instead", "127.0.0.1:3312 (http.listen) is taken"]


@pytest.mark.parametrize(("width", "height", "shown"), [(80, 24, True), (50, 18, False)])
def test_a_port_that_was_taken_is_on_the_screen_where_there_is_room_and_behind_its_end(
    width: int, height: int, shown: bool
) -> None:
    lines = drawn(width, height, notes=TAKEN)
    assert len(lines) <= height
    assert all((note in [line.rstrip() for line in lines[1:3]]) == shown for note in TAKEN)
    assert lines[-1].rstrip() == END
    console = Console(width=80, height=height, file=StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture, LiveScreen(console, SceneNotes(ADDRESS, COMMANDS, TAKEN)) as screen:
        screen.finish(VERDICT, True)
    assert capture.get().rpartition("\x1b[?1049l")[2].splitlines() == [*TAKEN, VERDICT]
    plain: list[str] = []
    with PlainScreen(plain.append, SceneNotes(ADDRESS, COMMANDS, TAKEN)):
        assert plain[:2] == TAKEN


@pytest.mark.parametrize(
    ("width", "height", "instant"), [(60, 20, "13:24:47.922"), (80, 24, "the exact instant 13:24:47.922238409")]
)
def test_a_get_stays_when_steps_come_behind_it(width: int, height: int, instant: str) -> None:
    text = "\n".join(drawn(width, height, later=30))
    assert f"GET for user_03: 512 µs after {instant}" in text
    assert "step 29 behind the GET" in text
    assert VERDICT in text


def test_the_story_is_left_behind_with_words_whole() -> None:
    console = Console(width=60, height=20, file=StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture, LiveScreen(console, SceneNotes(ADDRESS, COMMANDS)) as screen:
        screen.say("user_03 stops the machine; 0.880284996 coins are left and stay")
        screen.finish("25 cutoffs expected, 24 received, 1 missing, 0 early, 0 false", False)
    lines = [line.strip() for line in capture.get().splitlines()[-3:]]
    assert lines == ["coins are left and stay", "25 cutoffs expected, 24 received, 1 missing, 0 early, 0", "false"]


@pytest.mark.parametrize(("width", "due"), [(80, "13:24:47.922238409"), (60, "13:24:47.922"), (50, "13:24:47.922")])
def test_no_number_of_the_table_is_cut(width: int, due: str) -> None:
    rows = [line for line in drawn(width, 24) if line.startswith("user_0")]
    assert [row.split()[1] for row in rows] == ["2.967022891"] * 3
    assert due in rows[1].split()
    assert rows[0].split()[-1 if width < 80 else -4].rstrip(",") == "exhausted"


def test_lines_have_the_dashboard_first_and_the_verdict_before_what_to_try() -> None:
    lines: list[str] = []
    with PlainScreen(lines.append, SceneNotes(ADDRESS, COMMANDS)) as screen:
        screen.say("a step")
        screen.finish(VERDICT, True)
    assert lines[0] == f"dashboard: {ADDRESS}"
    assert lines[2] == VERDICT
    assert lines[-1] == END
    assert any("billing account user_02" in line for line in lines)


def test_balances_are_a_line_again_where_they_changed() -> None:
    lines: list[str] = []
    with PlainScreen(lines.append, SceneNotes(ADDRESS, COMMANDS)) as screen:
        for balance_nanos in (5, 5, 5, 4):
            screen._shown_ns = 0  # long ago
            screen.account({**account("user_01", "active", AT_NS, 1), "balance_nanos": balance_nanos})
    assert [line.partition("balances: ")[2] for line in lines[1:]] == ["user_01 0.000000005", "user_01 0.000000004"]


@pytest.mark.parametrize(
    ("script", "path", "command"),
    [
        ("/opt/billing/bin/billing", "/usr/bin:/opt/billing/bin", "billing"),
        ("/opt/billing/bin/billing", "/usr/bin", "/opt/billing/bin/billing"),
        ("/home/me/billing/.venv/bin/billing", "/usr/bin", ".venv/bin/billing"),
        (".venv/bin/billing", "/usr/bin", ".venv/bin/billing"),
    ],
)
def test_commands_are_written_as_they_are_typed_here(script: str, path: str, command: str) -> None:
    assert command_of(Path(script), Path("/home/me/billing"), path) == command
