"""The entry point of `python -m billing` and of the command `billing`.

The daemon and its commands run on Linux only: they use Linux's clocks, durable files, process control and systemd. On
another system the command prints a message and exits with 2. `billing.client`, which other projects import, does not
load this module and runs wherever Python does. If a package is not installed, the command prints its name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

ELSEWHERE: Final = (
    "billing runs on Linux, and this is {}. Run it in a Linux machine or container. "
    "billing.client, which calls a daemon from Python, runs here, too."
)
NOT_INSTALLED: Final = (
    "billing: the package {} is not installed. The distribution billing-daemon brings everything that this needs; of "
    "billing-client the extra cli brings what the commands need, and loadtest what a load test needs"
)


def main() -> None:
    """Runs the command line of this process, or the worker that the daemon starts with it."""
    if not runs_on(sys.platform):
        sys.exit(refuse(ELSEWHERE.format(sys.platform)))
    try:  # the imports take a while, in which ^C may arrive, and they may open files
        from billing.service.beginning import DAEMON, WORKER, loaded, prepare

        prepare(sys.argv)
        if sys.argv[1:2] == [WORKER]:
            from billing.service.working import main as work

            loaded()
            sys.exit(work(sys.argv[2:]))
        from billing.cli.main import main as run

        if sys.argv[1:2] == [DAEMON]:
            import_module("billing.service.serve")  # before `loaded`, not only when the command is called
        loaded()
        run()
    except ModuleNotFoundError as error:
        if (missing := package_of(error)) is None:
            raise
        sys.exit(refuse(NOT_INSTALLED.format(missing)))
    except KeyboardInterrupt:
        print("billing: aborted", file=sys.stderr)
        sys.exit(1)


def runs_on(platform: str) -> bool:
    """Whether the daemon and its commands run on this platform. `platform`: a value of `sys.platform`."""
    return platform == "linux"


def package_of(error: ModuleNotFoundError) -> str | None:
    """The third-party package that is not installed; None if the missing module is one of this project."""
    package = (error.name or "").partition(".")[0]
    return package if package not in ("", "billing", "shards") else None


def refuse(text: str) -> int:
    """Prints to stderr why nothing is run. Returns exit code 2, that of a wrong command line."""
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
