"""Asks the person before a command does what cannot be undone. Without a terminal only `--yes` confirms, so that no
script does by accident what its author did not mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import click


def confirmed(question: Callable[[], str], yes: bool) -> None:
    """Returns if the person confirms or `yes` is set; otherwise ends the command. `question` is called only if the
    person is asked.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("this cannot be undone: --yes says that it is meant")
    click.confirm(question(), abort=True, err=True)
