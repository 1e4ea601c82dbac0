"""The first steps of a process, before it imports anything else, so that its start can be trusted under any parent.

A careless parent leaves descriptors 0 to 2 closed, signals blocked, and a locale whose file names are ASCII:

- What is opened next would become descriptor 0, 1 or 2, where a child gets /dev/null and a library writes its warnings
  to. The three are put on /dev/null where they are closed. The daemon gets Python's streams on them as well; for every
  other command a closed output stays None, since an answer that nobody can read is an error (`billing.cli.output`).
- Every signal is let through, whatever mask was inherited: also the one that tells of a child that ended.
- The daemon hears SIGTERM from here on. Before its event loop runs, a signal is written down, and `asked_to` is looked
  at once the loop hears for itself. Before this module runs, the interpreter is being loaded, and SIGTERM ends it.
- No garbage is collected while modules are loaded: they make none, and are walked again and again for it. `loaded` lets
  the collector begin, with what was loaded set aside for good.
- The daemon runs in Python's UTF-8 mode, and so does every other command in an ASCII locale: a path of the
  configuration is UTF-8, and has to name the same file for whoever starts it. Where the mode is off, the process puts
  itself in its own place with the mode on (same process id, same descriptors).

It imports nothing that takes time.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Final, TextIO

DAEMON: Final = "serve"
WORKER: Final = "worker"
HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_heard: set[int] = set()


def prepare(arguments: list[str]) -> None:
    """Makes this process fit to run a command; `arguments`: those of the command line, with the program's name."""
    gc.disable()
    command = arguments[1] if len(arguments) > 1 else ""
    reserve_standard_descriptors()
    if command in (DAEMON, WORKER):
        _replace_closed_streams()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if command == DAEMON:
        for number in HEARD:
            signal.signal(number, _write_down)
    elif command == WORKER:  # the terminal's ^C and a reload are the daemon's to hear
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    encoding = sys.getfilesystemencoding()
    if encoding == "ascii" or (command == DAEMON and encoding != "utf-8"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]])


def loaded() -> None:
    """The modules of this process are loaded, and what it does begins."""
    gc.freeze()
    gc.enable()


def reserve_standard_descriptors() -> None:
    """Puts closed ones of descriptors 0 to 2 on /dev/null."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest one that is free: this one
            assert opened == descriptor, f"descriptor {descriptor} is closed, and {opened} was given out"
            os.set_inheritable(descriptor, True)


def _replace_closed_streams() -> None:
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def _stream(descriptor: int, mode: str) -> TextIO:
    """A stream on one of the standard descriptors, which stays open when the stream goes."""
    return open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # type: ignore[return-value]


def asked_to(number: signal.Signals) -> bool:
    """Whether this signal came before the event loop heard for itself."""
    return number in _heard


def asked_to_stop() -> bool:
    """Whether SIGTERM or SIGINT came before the event loop heard for itself."""
    return asked_to(signal.SIGTERM) or asked_to(signal.SIGINT)


def _write_down(number: int, _: object) -> None:
    _heard.add(number)
