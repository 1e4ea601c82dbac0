"""The first steps of a process, before it imports anything else, so that its start can be trusted under any parent.

A careless parent leaves descriptors 0 to 2 closed, signals blocked, and a locale whose file names are ASCII:

- The next file that the process opens would become descriptor 0, 1 or 2. A child gets /dev/null in the place of these
  descriptors, and libraries write warnings to them. `prepare` opens /dev/null on each of the three that is closed. The
  daemon and its workers also get Python's streams on them. For every other command a closed output stays None, since
  an answer that nobody can read is an error (`billing.cli.output`).
- `prepare` unblocks every signal, SIGCHLD included, whatever mask the process inherited.
- From here on the daemon handles SIGTERM, SIGINT and SIGHUP. Until its event loop handles them, a signal is only noted;
  once the loop does, the daemon asks `asked_to` for what came before. Earlier than this module, while the interpreter
  loads, SIGTERM ends the process.
- The garbage collector is off while modules are loaded: loading makes no garbage, and each collection would walk all
  modules again. `loaded` switches the collector on and exempts the objects that exist by then.
- The daemon runs in Python's UTF-8 mode, and so does every other command in an ASCII locale: a path of the
  configuration is UTF-8 and must name the same file whoever starts the process. If the mode is off, the process
  executes itself again with the mode on (same process id, same descriptors). In a locale of another encoding, such as
  ISO-8859-1, the other commands keep it for what they print, and `billing.config.load` translates the paths.

This module imports nothing that takes time to load.
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
    """Prepares this process to run a command. `arguments`: the command line, beginning with the program's name."""
    gc.disable()
    command = arguments[1] if len(arguments) > 1 else ""
    reserve_standard_descriptors()
    if command in (DAEMON, WORKER):
        _replace_closed_streams()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if command == DAEMON:
        for number in HEARD:
            signal.signal(number, _write_down)
    elif command == WORKER:  # only the daemon reacts to ^C at the terminal and to a reload
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    encoding = sys.getfilesystemencoding()
    if encoding == "ascii" or (command == DAEMON and encoding != "utf-8"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]])


def loaded() -> None:
    """Switches garbage collection on once all modules are loaded, and exempts the objects that exist by then."""
    gc.freeze()
    gc.enable()


def reserve_standard_descriptors() -> None:
    """Opens /dev/null on each of the descriptors 0 to 2 that is closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the kernel gives out the lowest free number: this one
            assert opened == descriptor, f"descriptor {descriptor} is closed, and {opened} was given out"
            os.set_inheritable(descriptor, True)


def _replace_closed_streams() -> None:
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def _stream(descriptor: int, mode: str) -> TextIO:
    """A stream on one of the standard descriptors. The descriptor stays open when the stream is closed."""
    return open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # type: ignore[return-value]


def asked_to(number: signal.Signals) -> bool:
    """Whether this signal came before the event loop handled signals."""
    return number in _heard


def asked_to_stop() -> bool:
    """Whether SIGTERM or SIGINT came before the event loop handled signals."""
    return asked_to(signal.SIGTERM) or asked_to(signal.SIGINT)


def _write_down(number: int, _: object) -> None:
    _heard.add(number)
