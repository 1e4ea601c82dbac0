"""`make torture`: every campaign at its full size, on both cores, to be stopped and resumed at will.

    python -m tests.torture                          all of it: four and a half hours on two cores of its own
    python -m tests.torture power kill               these campaigns alone
    python -m tests.torture --part 1/2               half of the pieces: a night's work; 2/2 is the next night's
    python -m tests.torture --share 0.1              all of it, at a tenth of its size
    python -m tests.torture --list                   what would be run
    python -m tests.torture --write                  and put the table into tests/TORTURE.md

What each piece said is added to the state file as soon as it ends; pieces that held are not run again as long as what
they run is the same. A table is printed at the end. Exit code 1 where anything failed, or a piece could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from tests.torture import table
from tests.torture.code import code_of
from tests.torture.pieces import CAMPAIGNS, Piece, all_pieces, part_of

PIECE_S_MAX = 3 * 3600  # a piece that hangs; beside other work the longest takes more than an hour
TAIL_BYTES = 20_000  # of what a piece said: more than the ends of logs that it quotes behind its own words


class Runner:
    """Runs pieces on so many cores, and remembers."""

    def __init__(self, state: Path, cores: int) -> None:
        self._state = state
        self._cores = cores
        self._free: float = cores
        self._turn = threading.Condition()
        self.done: dict[str, dict[str, Any]] = {}
        if state.exists():
            now = cache(code_of)
            for line in state.read_text().splitlines():
                outcome = json.loads(line)
                if outcome["ok"] and outcome["code"] == now(outcome["piece"].split()[0]):
                    self.done[outcome["piece"]] = outcome

    def _has_free(self, cores: float) -> bool:
        return self._free >= cores

    def run(self, pieces: list[Piece]) -> None:
        """All that has not held yet; returns when the last one has ended."""
        pieces_left = [piece for piece in pieces if table.key_of(piece) not in self.done]
        print(f"{len(pieces)} pieces, {len(pieces) - len(pieces_left)} of them done", flush=True)
        threads = []
        for number, piece in enumerate(pieces_left, 1):
            cores = min(piece.cores, self._cores)
            with self._turn:
                self._turn.wait_for(partial(self._has_free, cores))
                self._free -= cores
            thread = threading.Thread(target=self._run_one_piece, args=(piece, cores, f"{number}/{len(pieces_left)}"))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _run_one_piece(self, piece: Piece, cores: float, progress: str) -> None:
        began_s, code = time.monotonic(), code_of(piece.arguments[0])
        try:
            outcome = run_piece(piece)
        finally:
            with self._turn:
                self._free += cores
                self._turn.notify_all()
        outcome |= {"piece": table.key_of(piece), "code": code, "seconds": round(time.monotonic() - began_s, 1)}
        with self._turn:
            self.done[outcome["piece"]] = outcome
            with self._state.open("a") as file:
                print(json.dumps(outcome), file=file)
        verdict = "held" if outcome["ok"] else "FAILED"
        print(f"{progress} {piece.campaign}: {piece.name}: {verdict} after {outcome['seconds']} s", flush=True)
        if not outcome["ok"]:
            print(f"  python -m {outcome['piece']}\n{outcome['error']}", file=sys.stderr, flush=True)


def run_piece(piece: Piece) -> dict[str, Any]:
    """What one piece said: ok, figures, error."""
    command = [sys.executable, "-m", *piece.arguments]
    with tempfile.TemporaryFile() as output_file, tempfile.TemporaryFile() as error_file:
        try:
            process = subprocess.run(
                command, cwd=REPOSITORY, stdout=output_file, stderr=error_file, check=False, timeout=PIECE_S_MAX,
                env=os.environ | {"PYTHONHASHSEED": "0"},
            )  # fmt: skip
            code = process.returncode
        except subprocess.TimeoutExpired:
            code = -1
        output_file.seek(0)
        error_file.seek(0)
        output = output_file.read().decode(errors="replace").strip()
        error_text = error_file.read().decode(errors="replace")[-TAIL_BYTES:]
    try:
        figures = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        figures = {}
    ok = code == 0 and bool(figures)
    error = "" if ok else f"exit code {code}\n{output[-TAIL_BYTES:]}\n{error_text}"
    return {"ok": ok, "figures": figures, "error": error}


def commit_of() -> str:
    """The newest commit, marked where the tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")


def part(text: str) -> tuple[int, int]:
    """K and N of `K/N`. Raises ValueError."""
    number, parts = map(int, text.split("/"))
    if not 1 <= number <= parts:
        raise ValueError(text)
    return number, parts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaigns", nargs="*", help=f"of {', '.join(CAMPAIGNS)}; all without any")
    parser.add_argument("--share", type=float, default=1.0, help="of the full size")
    parser.add_argument("--part", type=part, default=(1, 1), help="K/N: of N parts, which are the whole, the K-th")
    parser.add_argument("--cores", type=int, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--state", type=Path, default=REPOSITORY / ".torture.jsonl")
    parser.add_argument("--list", action="store_true", help="what would be run")
    parser.add_argument("--write", action="store_true", help="put the table into tests/TORTURE.md")
    arguments = parser.parse_args()
    unknown = set(arguments.campaigns) - set(CAMPAIGNS)
    if unknown:
        parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
    pieces = [
        piece
        for piece in part_of(all_pieces(arguments.share), *arguments.part)
        if not arguments.campaigns or piece.campaign in arguments.campaigns
    ]
    if arguments.list:
        for piece in pieces:
            print(f"{piece.campaign:11} {piece.name:32} python -m {table.key_of(piece)}")
        return 0
    runner = Runner(arguments.state, arguments.cores)
    runner.run(pieces)
    rows = table.lines(pieces, runner.done)
    size = "" if arguments.share == 1 else f", {arguments.share:g} of the full size"
    size += "" if arguments.part == (1, 1) else ", part {} of {}".format(*arguments.part)
    headline = f"`make torture`, commit {commit_of()}, {time.strftime('%Y-%m-%d')}{size}:"
    print(headline, *rows, sep="\n")
    if arguments.write:
        table.write(REPOSITORY / "tests" / "TORTURE.md", rows, headline)
    failed = [piece for piece in pieces if not runner.done[table.key_of(piece)]["ok"]]
    for piece in failed:
        print(f"FAILED: {piece.campaign}: {piece.name}: python -m {table.key_of(piece)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
