"""The exit codes of every process, and which error ends a process with which of them: the one table.

| code | name | who ends so |
| --- | --- | --- |
| 0 | CLEAN | a daemon that was told to stop; a command that did what it was asked |
| 1 | REFUSED | a command whose answer is no |
| 2 | USAGE | a command line that makes no sense |
| 3 | UNREACHABLE | a command that found no daemon |
| 4 | NOT_ALLOWED | a command whose token or certificate does not suffice |
| 65 | DAMAGED | what is stored contradicts itself: a person has to look |
| 70 | BUG | the program is wrong |
| 74 | DISK | the disk failed |
| 75 | AGAIN | the log was lost to this host, or the machine lacks something for the moment: start again |
| 78 | CONFIG | the configuration, or the place it names, cannot be used |
| 130 | INTERRUPTED | a tool that a signal ended |

An error type states its own ending in the class attribute `ending`: the code, and the words that stand before the
error's text. Operating-system errors state none, and are judged by their number: a missing folder, a port in use or a
full disk is the operator's to mend, a lack of descriptors or memory passes, and only what is left is the disk. Nobody
reads the text of an error to find its code.
"""

from __future__ import annotations

import errno
import socket
from enum import IntEnum
from typing import Final, NamedTuple


class Exit(IntEnum):
    """The exit codes; the module says what each means."""

    CLEAN = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_ALLOWED = 4
    DAMAGED = 65
    BUG = 70
    DISK = 74
    AGAIN = 75
    CONFIG = 78
    INTERRUPTED = 130


class Ending(NamedTuple):
    """The exit code and the text with which an error ends a process."""

    code: Exit
    prefix: str  # before the text of the error; may be empty


DAMAGED: Final = Ending(Exit.DAMAGED, "the data are damaged: ")
DISK: Final = Ending(Exit.DISK, "the disk failed: ")
LOG_FAILED: Final = Ending(Exit.DISK, "")  # the error says what failed
UNREACHABLE: Final = Ending(Exit.UNREACHABLE, "")
AGAIN: Final = Ending(Exit.AGAIN, "")
CONFIG: Final = Ending(Exit.CONFIG, "")

# What an operator has named wrongly, or has to make room or rights for.
OF_THE_PLACE: Final = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
        *(errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT),
    }
)
# What passes without anybody's doing.
OF_THE_MOMENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})


def ending_of(error: BaseException) -> Ending:
    """The ending of a process that cannot go on because of this error."""
    ending = getattr(error, "ending", None)
    if isinstance(ending, Ending):
        return ending
    if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in OF_THE_PLACE):
        return CONFIG
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in OF_THE_MOMENT):
        return AGAIN
    if isinstance(error, OSError):
        return DISK
    return Ending(Exit.BUG, f"this is a bug: {type(error).__name__}: ")


def text_of(error: BaseException) -> str:
    """The error as a text for people: its prefix and its message; of an operating-system error without the number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return f"{ending_of(error).prefix}{text}"
