"""`python -m billing`, which is `billing`.

The daemon and its commands are made for Linux: clocks, durable files, process control and the units of systemd are
Linux's. On another system the command says so and ends with 2; `billing.client`, which other projects import, does not
pass through here and runs wherever Python does. Where a package is not installed, the command names it.
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
    try:  # what is imported takes a while, in which ^C comes as well, and may open files
        from billing.service.beginning import DAEMON, WORKER, loaded, prepare

        prepare(sys.argv)
        if sys.argv[1:2] == [WORKER]:
            from billing.service.working import main as work

            loaded()
            sys.exit(work(sys.argv[2:]))
        from billing.cli.main import main as run

        if sys.argv[1:2] == [DAEMON]:
            import_module("billing.service.serve")  # now, and not when the command is called
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
    """Whether the daemon and its commands run on a system that Python calls this."""
    return platform == "linux"


def package_of(error: ModuleNotFoundError) -> str | None:
    """The package of others that is not installed; None where one of our own modules is missing."""
    package = (error.name or "").partition(".")[0]
    return package if package not in ("", "billing", "shards") else None


def refuse(text: str) -> int:
    """Says why nothing is run; the exit code of a line that makes no sense here."""
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
