"""SIGHUP: the configuration is read again, and what may change while the daemon serves takes effect.

`RELOADED` names the keys that may. Of all others the values of the start go on, also in workers that start later: each
difference is reported, with the step it needs (a restart). The files that `rpc.tokens_file`, `rpc.tls_*` and
`cutoff.secret_file` name are read again at every reload, changed names or not. A configuration that cannot be run
changes nothing and is told with all its faults; nor does one that cannot be run before the restart it needs. What is
held (see `shards.supervisor.restart_policy`) is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from billing.config.load import ConfigError, combinations_of, load
from billing.config.schema import Config, declared, shown_text

log = logging.getLogger("billing.config.reload")

RELOADED: Final = frozenset(
    {
        "shards.workers",
        "shards.weights",
        "shards.locked",
        "shards.moves_max",
        "shards.sending_max",
        "shards.receiving_max",
        "rpc.tokens_file",
        "rpc.tls_cert",
        "rpc.tls_key",
        "rpc.connections_max",
        "rpc.connections_per_origin_max",
        "rpc.in_flight_max",
        "rpc.requests_per_s_max",
        "journal.snapshot_bytes",
        "journal.idle_barrier_ms",
        "cutoff.url",
        "cutoff.restore_url",
        "cutoff.secret_file",
        "cutoff.method",
        "cutoff.concurrency",
        "cutoff.warm_connections",
        "cutoff.timeout_s",
        "cutoff.connect_timeout_s",
        "log.level",
    }
)
# Of these, whether there is a value at all is decided at the start: doors and the ledger's rules hang on it.
CLASSES: Final = "cutoff.class"  # the URLs in its tables are reloaded, the rest is not
SWITCHES: Final = frozenset({"rpc.tokens_file", "rpc.tls_cert", "rpc.tls_key", "cutoff.restore_url"})


def differences(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The keys whose values differ: keys that may change while it serves, and keys that need a restart."""
    may: list[str] = []
    need: list[str] = []
    for path, _ in declared():
        before, after = value_of(old, path), value_of(new, path)
        if before != after:
            switched = path in SWITCHES and bool(before) is not bool(after)
            (may if path in RELOADED and not switched else need).append(path)
    if old.cutoff.classes != new.cutoff.classes:
        (may if _rules(old) == _rules(new) else need).append(CLASSES)
    return may, need


def _rules(config: Config) -> dict[str, tuple[float, str, bool]]:
    """What of the classes the ledger's rules hang on; the rest is where calls go."""
    classes = config.cutoff.classes.items()
    return {
        name: (cutoff_class.grace_s, cutoff_class.after_exhaustion, bool(cutoff_class.restore_url))
        for name, cutoff_class in classes
    }


def value_of(config: Config, path: str) -> Any:
    """The value of `section.key`."""
    section, key = path.split(".")
    return getattr(getattr(config, section), key)


def with_changes(old: Config, new: Config, paths: list[str]) -> Config:
    """The old configuration with the new values of these keys."""
    merged = old
    for path in paths:
        section, key = path.split(".") if path != CLASSES else ("cutoff", "classes")
        table = replace(getattr(merged, section), **{key: getattr(getattr(new, section), key)})
        merged = replace(merged, **{section: table})
    return merged


class Reload:
    """Reads the configuration again, whenever it is called."""

    def __init__(
        self,
        file: Path | None,
        environ: Mapping[str, str],
        config: Config,
        apply: Callable[[Config], Awaitable[None]],
    ) -> None:
        """`config`: what is in force. `apply` takes up another one."""
        self._file = file
        self._environ = environ
        self.config = config
        self._apply = apply

    async def __call__(self) -> None:
        """One reload; the log says what came of it."""
        try:
            new = load(self._file, self._environ).config
        except ConfigError as error:
            log.error("the configuration was not reloaded, nothing has changed:\n%s", error)
            return
        may, need = differences(self.config, new)
        merged = with_changes(self.config, new, may)
        for paths, text in combinations_of(merged):
            reason = f"{paths[0]}: {text}"
            log.error("the configuration was not reloaded, nothing has changed: without a restart %s", reason)
            return
        for path in may:
            section, key = path.split(".")
            if path == CLASSES:
                log.info("reloaded %s: calls of its classes may go elsewhere now", path)
                continue
            before, after = shown_text(self.config, section, key), shown_text(merged, section, key)
            log.info("reloaded %s: %s, was %s", path, after, before)
        for path in need:
            log.warning("%s has changed and needs a restart to take effect", path)
        if not may:
            log.info("reloaded: no key has changed that may; files that are named were read again")
        self.config = merged
        logging.getLogger().setLevel(merged.log.level.upper())
        await self._apply(merged)
