"""Commands of `billing`, carried out in the process of the tests: one of their own costs more than all that they do."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from click.testing import CliRunner

from billing.cli.main import main


class CommandResult(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def carried_out(*words: object, **environment: str) -> CommandResult:
    """A command in the caller's thread, which may have no event loop that runs."""
    with CliRunner(env=environment).isolation() as (stdout, stderr, _):
        try:
            main([*map(str, words)])
        except SystemExit as ending:
            code = ending.code
        sys.stdout.flush()
        sys.stderr.flush()
    assert isinstance(code, int)
    return CommandResult(code, stdout.getvalue().decode(), stderr.getvalue().decode())


def carried_out_beside(*words: object, **environment: str) -> CommandResult:
    """The same in a thread of its own, for a caller whose event loop runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(carried_out, *words, **environment).result()
