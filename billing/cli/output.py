"""Writes to standard output and standard error, in whatever state they are: closed, full, without some characters.

`put` raises `OutputFailed` and no other error. A command that has changed nothing then ends with 1, because its output
was not delivered. A command that has changed something (`billing.cli.showing.tell`) has done its work: it reports the
failed write and the result of the call on standard error, and ends with 0, so that a script that repeats a failed
command does not pay twice.

If the reader has closed the pipe, as `| head -1` does, nothing has failed: the reader has all it wanted. The command
does the rest of its work and ends with the exit code of that work; a command that would only write more ends with 0.

`prepare` makes both streams accept every text: a character that the stream cannot encode is written as `\\u20ac`.
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

from billing.ledger.entry import plain_text
from shards.exits import Exit


class OutputFailed(click.ClickException):
    """A write to standard output has failed; the message says why."""

    exit_code = int(Exit.REFUSED)

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints one line on standard error."""
        say(f"billing: the output could not be written: {self.message}")


def prepare(arguments: Iterable[str]) -> list[str]:
    """Makes the streams accept every text, and returns the words of the command line decoded as UTF-8, whatever the
    locale. A word that is not UTF-8 stays unchanged; the daemon will refuse it.
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
    """Writes a text to standard output and flushes it. Returns False if the reader has closed the pipe. Raises
    OutputFailed.
    """
    if sys.stdout is None:
        raise OutputFailed("it is closed")
    try:
        sys.stdout.write(text + ("\n" if newline else ""))  # not click's echo, which removes escape sequences
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
    """For code that writes to standard output without `put` (help of click, live screens of rich): a failed write
    raises OutputFailed as in `put`, and a pipe closed by the reader ends the command with 0. `writes_only`: in the
    block, an OSError without a file name can only come from such a write.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_left(sys.stdout):
            _drop(sys.stdout)
            raise click.exceptions.Exit(0) from None
        why = error.strerror if writes_only and error.filename is None else _why_not(sys.stdout)
        if not why:
            raise  # the error has another cause than standard output
        _drop(sys.stdout)
        raise OutputFailed(why) from None


def _why_not(stream: Any) -> str:
    """The error of flushing a stream's buffer; "" if there is none."""
    try:
        stream.flush()
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, AttributeError):
        return ""
    return ""


def _is_left(stream: Any) -> bool:
    """Whether a stream is a pipe whose reader has closed it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        look = select.poll()
        look.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in look.poll(0))
    return False


def say(text: str) -> None:
    """Writes a line for people to standard error. A failed write is ignored: only the line is lost."""
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        _drop(sys.stderr)


def as_json(value: Any) -> str:
    """One line of JSON. Bytes become text as over HTTP. Non-ASCII characters are escaped unless the output is UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(value, ensure_ascii=encoding != "utf8", default=plain_text)


def _drop(stream: Any) -> None:
    """Redirects a stream to /dev/null, so that flushing its buffer at the end of the process does not fail again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
