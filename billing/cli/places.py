"""Directories that a command works on: one that is not there is named as that, wherever its name stood.

Exit code 78, as of a configuration that names a place which cannot be used. It is never 65: a wrong name proves nothing
about the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shards.exits import Exit


class Misplaced(click.ClickException):
    """There is no such directory, or nothing of ours in it."""

    exit_code = int(Exit.CONFIG)


class Directory(click.ParamType):  # type: ignore[type-arg]
    """A directory that is there."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises Misplaced."""
        return there(Path(value))


class NewFile(click.ParamType):  # type: ignore[type-arg]
    """A file to write: its directory is looked at before the work whose result is to go there."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises Misplaced."""
        path = Path(value)
        there(path.absolute().parent)
        if path.is_dir():
            raise Misplaced(f"{path} is a directory, and no file")
        return path


def there(directory: Path) -> Path:
    """The directory, which is there. Raises Misplaced."""
    if not directory.is_dir():
        raise Misplaced(f"{directory} is no directory" if directory.exists() else f"there is no directory {directory}")
    return directory


DIRECTORY = Directory()
NEW_FILE = NewFile()
