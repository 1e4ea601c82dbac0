"""Asks before what cannot be undone. At a terminal a person answers; anywhere else only `--yes` is an answer, so that
no script does by accident what its author did not mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import click


def confirmed(question: Callable[[], str], yes: bool) -> None:
    """Returns where it is meant; otherwise ends the command. The question is only made where it is asked."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("this cannot be undone: --yes says that it is meant")
    click.confirm(question(), abort=True, err=True)
