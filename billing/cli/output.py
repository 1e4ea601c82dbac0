"""Writing to standard output and standard error, whatever they are: closed, full, a terminal that knows few characters.

`put` raises `OutputFailed` and nothing else. A command whose call changed nothing ends with 1 then: what was asked for
was not delivered. A command whose call changed something has done its work, so it reports the failed write and the
result of the call on standard error, and ends with 0: a script that repeats on failure must not pay twice.

Where nobody reads any more, as behind `| head -1`, nothing has failed: whoever read has what he wanted. The command
does the rest of its work, and ends with the code of that work; one that would only go on writing ends with 0.

`prepare` makes both streams take every text: characters that the terminal cannot show stand as `\\u20ac`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

import click

from shards.exits import Exit


class OutputFailed(click.ClickException):
    """Standard output does not take what was to be written; the message says why."""

    exit_code = int(Exit.REFUSED)

    def show(self, file: IO[Any] | None = None) -> None:
        """One line on standard error."""
        say(f"billing: the output could not be written: {self.message}")


def prepare(arguments: Iterable[str]) -> list[str]:
    """Makes the streams take every text, and the words of the command line UTF-8 wherever they are, whatever the
    locale; what is no UTF-8 stays as it came, for the daemon to refuse.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return [_as_utf8(argument) for argument in arguments]


def _as_utf8(text: str) -> str:
    try:
        return os.fsencode(text).decode() if not text.isascii() and _has_raw_bytes(text) else text
    except UnicodeError:
        return text


def _has_raw_bytes(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def put(text: str, *, newline: bool = True) -> bool:
    """Writes a text to standard output, now; False where nobody reads any more. Raises OutputFailed."""
    if sys.stdout is None:
        raise OutputFailed("it is closed")
    try:
        sys.stdout.write(text + ("\n" if newline else ""))  # exactly: click's echo takes escape sequences out
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        return False
    except (OSError, ValueError) as error:
        _drop(sys.stdout)
        raise OutputFailed(getattr(error, "strerror", None) or str(error)) from None
    return True


@contextlib.contextmanager
def delivered(*, writes_only: bool = False) -> Iterator[None]:
    """For what others write to standard output (click the help, a screen its lines): where that takes no more, it is
    said as by `put`; where nobody reads any more, the command ends with 0. `writes_only`: nothing else that has no name
    of a file can fail there.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_left(sys.stdout):
            _drop(sys.stdout)
            raise click.exceptions.Exit(0) from None
        why = error.strerror if writes_only and error.filename is None else _why_not(sys.stdout)
        if not why:
            raise  # it was something else
        _drop(sys.stdout)
        raise OutputFailed(why) from None


def _why_not(stream: Any) -> str:
    """Why a stream does not take what is left in its buffer; "" where it does."""
    try:
        stream.flush()
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, AttributeError):
        return ""
    return ""


def _is_left(stream: Any) -> bool:
    """Whether it is a pipe that nobody reads any more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        look = select.poll()
        look.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in look.poll(0))
    return False


def say(text: str) -> None:
    """Writes a line for people to standard error; where that is not possible, nothing is lost but the line."""
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        _drop(sys.stderr)


def as_json(value: Any) -> str:
    """One line of JSON. Bytes stand in hex; characters are escaped where the terminal cannot show all of them."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(value, ensure_ascii=encoding != "utf8", default=bytes.hex)


def _drop(stream: Any) -> None:
    """Lets what is still buffered go nowhere, so that the end of the process does not fail on it once more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
