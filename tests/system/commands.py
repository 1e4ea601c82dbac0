"""Commands of `billing`, carried out in the process of the tests: one of their own costs more than all that they do."""

from __future__ import annotations

from typing import NamedTuple

from click.testing import CliRunner

from billing.cli.main import root


class Said(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def carried_out(*words: object, **environment: str) -> Said:
    """A command in the caller's thread, which may have no event loop that runs."""
    done = CliRunner(env=environment).invoke(root, [*map(str, words)])
    return Said(done.exit_code, done.stdout, done.stderr)
