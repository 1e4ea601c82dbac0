"""Directories that a command works on: one that is not there is named as that, wherever its name stood.

Where the command line has named it, the exit code is 2, as of any word that makes no sense; where the configuration
has, it is 78. It is never 65: a wrong name proves nothing about the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shards.exits import Exit


class Misplaced(click.ClickException):
    """The configuration names no such directory, or one with nothing of ours in it."""

    exit_code = int(Exit.CONFIG)


class Misnamed(Misplaced):
    """The command line names no such directory, or a directory where a file is to be."""

    exit_code = int(Exit.USAGE)


class Directory(click.ParamType):  # type: ignore[type-arg]
    """A directory that is there."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises Misnamed."""
        return there(Path(value))


class NewFile(click.ParamType):  # type: ignore[type-arg]
    """A file to write: its directory is looked at before the work whose result is to go there."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises Misnamed."""
        path = Path(value)
        there(path.absolute().parent)
        if path.is_dir():
            raise Misnamed(f"{path} is a directory, and no file")
        return path


def there(directory: Path) -> Path:
    """The directory that the command line names, which is there. Raises Misnamed."""
    if not directory.is_dir():
        raise Misnamed(f"{directory} is no directory" if directory.exists() else f"there is no directory {directory}")
    return directory


DIRECTORY = Directory()
NEW_FILE = NewFile()
