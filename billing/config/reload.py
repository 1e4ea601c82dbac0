"""SIGHUP: reads the configuration again, and applies the keys that may change while the daemon serves.

`RELOADED` names these keys. All other keys keep the value of the daemon's start, also in workers that start later; the
log names each key that has changed and needs a restart. The files that `rpc.tokens_file`, `rpc.tls_*` and
`cutoff.secret_file` name are read again at every reload, even if the names have not changed, and at no other time: a
worker that starts later goes by the content that was read last. A configuration that cannot be run changes nothing, and
the log has all its faults. The same holds if the new values would only fit together after the restart, and for a file
that names no key any more: every value would be the default, that of `cutoff.url` included. A reload also retries
shards that are held (see `shards.supervisor.restart_policy`).

The files are read on a thread of their own, one reload at a time: a secret on a mount that hangs holds up reloads, and
nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from billing.addresses import shown_url
from billing.config.load import ConfigError, Loaded, combinations_of, load
from billing.config.schema import CONTENTS, Config, Cutoff, CutoffClass, declared, shown_text
from shards.system.own_thread import on_own_thread

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
# The URLs in its tables are reloaded, the rest is not: it may be among both.
CLASSES: Final = "cutoff.class"
# A reload cannot switch these keys of `RELOADED` from empty to a value or back: doors and the ledger's rules depend on
# whether there is a value.
SWITCHES: Final = frozenset({"rpc.tokens_file", "rpc.tls_cert", "rpc.tls_key", "cutoff.restore_url"})

READ_S: Final = 5.0  # then the log says that files have not been read yet
RECORDED: Final = "shards.workers"  # in the map, when a host begins to serve beside others: how many shards it takes


def differences(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The keys whose values differ: those that may change while the daemon serves, and those that need a restart."""
    may: list[str] = []
    need: list[str] = []
    for path, _ in declared():
        before, after = value_of(old, path), value_of(new, path)
        if before != after:
            switched = path in SWITCHES and bool(before) is not bool(after)
            is_recorded = path == RECORDED and bool(old.cluster.listen) and old.journal.is_shared
            (may if path in RELOADED and not switched and not is_recorded else need).append(path)
    if _with_urls(old.cutoff, new.cutoff) != old.cutoff.classes:
        may.append(CLASSES)
    if _rules(old) != _rules(new):
        need.append(CLASSES)
    return may, need


def _with_urls(old: Cutoff, new: Cutoff) -> dict[str, CutoffClass]:
    """The classes of `old` with their URLs of `new`. A URL that cannot be taken from there, because `new` lacks the
    class, or only one of both has a restore URL, follows [cutoff] if it did so before.
    """
    classes: dict[str, CutoffClass] = {}
    for name, before in old.classes.items():
        urls = {}
        for key in ("url", "restore_url"):
            was, is_inherited = getattr(before, key), getattr(before, key) == getattr(old, key)
            candidates = [getattr(new.classes[name], key)] if name in new.classes else []
            candidates += [getattr(new, key)] if is_inherited else []
            urls[key] = next((url for url in candidates if bool(url) is bool(was)), was)
        classes[name] = replace(before, **urls)
    return classes


def urls_of_classes(old: Config, new: Config) -> dict[str, str]:
    """The URLs of classes that differ, by their path, without secrets, as they are in `new`."""
    return {
        f"{CLASSES}.{name}.{key}": json.dumps(shown_url(getattr(after, key)))
        for name, after in new.cutoff.classes.items()
        for key in ("url", "restore_url")
        if name in old.cutoff.classes and getattr(after, key) != getattr(old.cutoff.classes[name], key)
    }


def _rules(config: Config) -> dict[str, tuple[float, str, bool]]:
    """For each class the values on which the ledger's rules depend: grace, what follows exhaustion, whether there is a
    restore URL. The other values of a class only say where calls go.
    """
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
    """The old configuration with the new values of these keys. A file that both name has its new content; one that only
    the old configuration names, though a restart is needed for that, keeps its old content.
    """
    merged = replace(old, files=old.files | new.files)
    for path in paths:
        if path == CLASSES:
            merged = replace(merged, cutoff=replace(merged.cutoff, classes=_with_urls(old.cutoff, new.cutoff)))
            continue
        section, key = path.split(".")
        table = replace(getattr(merged, section), **{key: getattr(getattr(new, section), key)})
        merged = replace(merged, **{section: table})
    named = {value_of(merged, path) for path in CONTENTS}
    return replace(merged, files={name: content for name, content in merged.files.items() if name in named})


class Reload:
    """Each call reads the configuration again and applies the changes."""

    def __init__(
        self,
        file: Path | None,
        environ: Mapping[str, str],
        config: Config,
        apply: Callable[[Config], Awaitable[None]],
        read: Callable[[Path | None, Mapping[str, str]], Loaded] = load,
    ) -> None:
        """`config`: the configuration in force. `apply` is called with the one that replaces it. `read` may block."""
        self._file = file
        self._environ = environ
        self.config = config
        self._apply = apply
        self._read = read
        self._turn = asyncio.Lock()  # of who reads
        self._waiting = 0  # reloads that have not begun to read

    async def __call__(self) -> None:
        """Reloads once, and logs the outcome. Applies the configuration even if no key has changed, so that named files
        are read again. One that comes while another one waits for its turn to read is that one.
        """
        if self._waiting:
            return
        self._waiting += 1
        async with self._turn:
            self._waiting -= 1
            merged = await self._merged()
        if merged is not None:
            await self._apply(merged)

    async def _merged(self) -> Config | None:
        """The configuration that is in force from now on; None where it stays as it was."""
        reading = asyncio.wrap_future(on_own_thread("reload", self._read, self._file, self._environ))
        try:
            if not (await asyncio.wait({reading}, timeout=READ_S))[0]:
                log.warning("the configuration is not reloaded yet: its files have not been read for %g s", READ_S)
            new, sources, _ = await reading
        except ConfigError as error:
            log.error("the configuration was not reloaded, nothing has changed:\n%s", error)
            return None
        may, need = differences(self.config, new)
        if (may or need) and self._file is not None and "file" not in sources.values() and not new.cutoff.classes:
            text = f"{self._file}: it names no key any more, as a file that is being written, or found no room"
            log.error("the configuration was not reloaded, nothing has changed:\n%s", text)
            return None
        merged = with_changes(self.config, new, may)
        for paths, text in combinations_of(merged):
            reason = f"{paths[0]}: {text}"
            log.error("the configuration was not reloaded, nothing has changed: without a restart %s", reason)
            return None
        root = logging.getLogger()  # of the old and the new level the more talkative one, so that the change is told
        root.setLevel(min(getattr(logging, level.upper()) for level in (self.config.log.level, merged.log.level)))
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
        root.setLevel(merged.log.level.upper())
        return merged
