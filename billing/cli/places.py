"""Directories that a command works on, and the errors for one that does not exist.

If the command line has named the directory, the exit code is 2, as for any other wrong word; if the configuration has
named it, the code is 78. The code is never 65: a wrong name proves nothing about the data.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import click

from shards.exits import Exit


class Misplaced(click.ClickException):
    """The directory that the configuration names does not exist, or has nothing of the daemon in it."""

    exit_code = int(Exit.CONFIG)


class Misnamed(Misplaced):
    """A directory that the command line names does not exist, or the name of a file is that of a directory."""

    exit_code = int(Exit.USAGE)


class Directory(click.ParamType):  # type: ignore[type-arg]
    """The type of an argument that names an existing directory."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises Misnamed."""
        return there(Path(value))


class ExistingFile(click.Path):
    """The type of an argument that names an existing file. A file that this user cannot reach is not called missing."""

    def __init__(self, path_type: type[Any] | None = None, allow_dash: bool = False) -> None:
        super().__init__(exists=True, dir_okay=False, path_type=path_type, allow_dash=allow_dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Raises click.BadParameter."""
        try:
            os.stat(value)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.fail(f"{click.format_filename(value)} cannot be read: {error.strerror}", param, ctx)
        return super().convert(value, param, ctx)


class NewFile(click.ParamType):  # type: ignore[type-arg]
    """The type of an argument that names a file to write. Checks the file's directory before the command begins the
    work whose result goes into the file.
    """

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises Misnamed."""
        path = Path(value)
        there(path.absolute().parent)
        if path.is_dir():
            raise Misnamed(f"{path} is a directory, and no file")
        return path


def there(directory: Path) -> Path:
    """Returns a directory that the command line names. Raises Misnamed if it does not exist."""
    if not directory.is_dir():
        raise Misnamed(f"{directory} is no directory" if directory.exists() else f"there is no directory {directory}")
    return directory


DIRECTORY = Directory()
FILE = ExistingFile()
NEW_FILE = NewFile()
