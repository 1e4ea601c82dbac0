"""The real daemon on the backend in memory: `python -m tests.shards.journal.memory_daemon serve CONFIG SOCKET`.

All but the log is as `billing serve` makes it. Its workers are this program, too: they must know the kind.
"""

from __future__ import annotations

import sys
from pathlib import Path

from billing.service.serve import ServeDependencies, serve
from billing.service.working import work
from shards.journal import backends

KIND = "memory"


def main(arguments: list[str]) -> int:
    backends.KINDS[KIND] = backends.Kind("tests.shards.journal.memory", is_shared=False)
    if arguments[0] == "serve":
        settings = {"kind": KIND, "path": arguments[2]}
        command = [sys.executable, "-m", "tests.shards.journal.memory_daemon", "worker"]
        return serve(Path(arguments[1]), ServeDependencies(command, lambda config: settings))
    return work(int(arguments[-1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
