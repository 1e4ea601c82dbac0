"""Starts a program with listening sockets that its parent bound, as sd_listen_fds(3) describes it.

    python -m billing.trial.handing_over NAME=DESCRIPTOR … -- PROGRAM ARGUMENT …

Theory. A parent that finds a free port, closes it, and lets a child bind it again may lose the port in between. So the
parent binds the sockets and keeps them open. The child runs this module, which moves the sockets to the descriptors
from 3 on, announces them in the environment together with its own process id, and executes the program.
`handed_over_by` is the parent's half.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Final

FIRST_DESCRIPTOR: Final = 3


def handed_over_by(sockets: Mapping[str, socket.socket], command: Sequence[str]) -> list[str]:
    """The command line that runs `command` with these sockets. The child must inherit the sockets' descriptors."""
    named = [f"{name}={listener.fileno()}" for name, listener in sockets.items()]
    return [sys.executable, "-m", "billing.trial.handing_over", *named, "--", *command]


def main(arguments: Sequence[str]) -> None:
    """Moves the sockets, sets the environment, and executes the program."""
    split = arguments.index("--")
    named = [text.partition("=") for text in arguments[:split]]
    # First the sockets move above the target descriptors 3, 4, …, since another socket may already be at a target.
    aside = [(name, os.dup(int(descriptor))) for name, _, descriptor in named]
    floor = FIRST_DESCRIPTOR + len(aside)
    while any(descriptor < floor for _, descriptor in aside):
        aside = [(name, os.dup(descriptor) if descriptor < floor else descriptor) for name, descriptor in aside]
    for target, (_, descriptor) in enumerate(aside, FIRST_DESCRIPTOR):
        os.dup2(descriptor, target, inheritable=True)
    environ = {
        **os.environ,
        "LISTEN_FDS": str(len(aside)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in aside),
        "LISTEN_PID": str(os.getpid()),
    }
    program = arguments[split + 1 :]
    os.execve(program[0], list(program), environ)


if __name__ == "__main__":
    main(sys.argv[1:])
