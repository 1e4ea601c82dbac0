"""Loading the configuration: default, file and environment, checked as one before anything starts.

Theory. A value comes from the environment (`BILLING_SECTION__KEY`), else from the file, else from the declaration
(`billing.config.schema`); `Loaded.sources` records which. `load` makes relative paths absolute: they are relative to
the folder of the configuration file, or to the working directory if there is no file, wherever the path was set.

Invariant: the daemon can run with every configuration that `load` returns. Faults are unknown keys, wrong types,
impossible combinations, and named files that are missing, readable by too many users, or of the wrong content. `load`
finds all faults in one pass and reports them in one `ConfigError`: each with its path, the source of its value, and
what is expected.

This module never writes or creates a file, and its texts repeat no secret.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import msgspec

from billing.addresses import parse_listen, shown_url
from billing.config.doors import listens_of
from billing.config.schema import (
    CLASS_NAME,
    CLASSES_MAX,
    CONTENTS,
    PATH,
    PUBLIC,
    SECRET,
    URL,
    URLS,
    Config,
    Cutoff,
    CutoffClass,
    Key,
    class_of,
    declared,
    keys_of,
    literal,
    sections,
    shown_text,
    value_text,
)
from billing.config.shares import parse_shards, parse_weights
from shards.exits import Ending, Exit
from shards.system.disk import keeps_files

GRANT_NS = 2_000_000_000  # how far ahead a replicated journal grants time; a failover waits that long
ENVIRONMENT_PREFIX = "BILLING_"
RATE_LEASE_S_MIN = 0.001
_DOORS = frozenset(("address", "bind", "host", "port"))  # names of the key `listen` in other programs
_CLASSES = "cutoff.class"
_DEFAULT_CLASS = "default"
EVERYWHERE = ("0.0.0.0", "::")  # hosts by which nobody elsewhere can reach this one
UNIX_PATH_BYTES_MAX = 107  # what fits into sockaddr_un
NAMED_FILE_BYTES_MAX = 2**20
DATA_DIR_BYTES_MAX = 400  # below it: SQLite takes paths of 511 bytes, the names of its logs included
UNREAD = f"expected a file that can be read, of {NAMED_FILE_BYTES_MAX:,} bytes at most"


class Fault(NamedTuple):
    """One thing that is wrong."""

    path: str  # section.key, or the file
    source: str  # "default", "file" or "environment"; "" if the fault is about no value
    expected: str  # the right form, and the value given


class ConfigError(Exception):
    """The configuration cannot be run; `faults` holds everything that is wrong."""

    ending: ClassVar[Ending] = Ending(Exit.CONFIG, "the configuration cannot be run:\n")

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        lines = (f"{path} ({source}): {text}" if source else f"{path}: {text}" for path, source, text in faults)
        super().__init__("\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines))


class Loaded(NamedTuple):
    """A configuration and the sources of its values."""

    config: Config
    sources: dict[str, str]  # section.key -> "default" | "file" | "environment"
    file: Path | None


def load(file: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Merges defaults, file and environment into one checked configuration with absolute paths. Raises ConfigError."""
    faults: list[Fault] = []
    tables = _read(file, faults)
    sources = {path: "default" for path, _ in declared()}
    sources |= {f"{section}.{key}": "file" for section, table in tables.items() for key in table}
    _override(tables, sources, environ, faults)

    try:
        folder = (file.parent if file is not None else Path()).absolute()
    except FileNotFoundError:
        text = "expected one that exists, since paths are relative to it: change to another"
        raise ConfigError([*faults, Fault("working directory", "", text)]) from None
    for path, declaration in declared():
        section, key = path.split(".")
        value = tables.setdefault(section, {}).get(key, declaration.default)
        if PATH in declaration.marks and isinstance(value, str) and value:
            if sources[path] == "file":  # which is UTF-8, whatever encoding this process has for the names of files
                value = os.fsdecode(value.encode())
            tables[section][key] = os.path.normpath(folder / value)

    config = _checked(tables, sources, faults)
    wrong = {fault.path for fault in faults}
    if str(file) not in wrong:  # without the file too little is known to check combinations
        faults += [
            Fault(paths[0], sources[paths[0]], text)
            for paths, text in (*combinations_of(config), *_files(config), *_folders(config))
            if wrong.isdisjoint(paths)
        ]
        wrong = {fault.path for fault in faults}
        config = msgspec.structs.replace(config, files=_read_contents(config, wrong))
        faults += [Fault(path, sources[path], text) for path, text in _contents(config, wrong)]
    if faults:
        raise ConfigError(sorted(faults, key=lambda fault: fault.path))
    return Loaded(config, sources, file)


def as_effective(loaded: Loaded, *, secrets: bool = False) -> str:
    """A configuration file with every key and its value, and the value's source in a comment. Unless `secrets`, the
    values in the query of a URL are left out.
    """
    lines = [f"# {loaded.file or 'no file'}, BILLING_SECTION__KEY, and defaults, as they take effect"]
    for path, _ in declared():
        section, key = path.split(".")
        if f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        value, shown = value_text(loaded.config, section, key), shown_text(loaded.config, section, key)
        hidden = "; --secrets shows it whole" if shown != value and not secrets else ""
        lines.append(f"{key} = {value if secrets else shown}  # {loaded.sources[path]}{hidden}")
    for name, table in loaded.config.cutoff.classes.items():
        lines += ["", f"[cutoff.class.{name}]"]
        for key, declaration in keys_of(CutoffClass).items():
            of_class = getattr(table, key)
            is_hidden = URL in declaration.marks and not secrets
            lines.append(f"{key} = {literal(shown_url(of_class) if is_hidden else of_class)}")
    return "\n".join(lines) + "\n"


def shard_count(config: Config) -> int:
    """The number of shards."""
    return config.cluster.shards if config.journal.is_shared else config.shards.workers


def log_of(config: Config) -> dict[str, Any]:
    """The log that the configuration names, as `shards.journal.backends` takes it."""
    location = {"kind": config.journal.kind, "directory": config.daemon.data_dir}
    if config.journal.is_shared:
        from shards.buckets import HASH_NAME

        return {
            **location,
            **msgspec.structs.asdict(config.cluster),
            "bucket_count": config.shards.bucket_count,
            "hash_name": HASH_NAME,
            "grant_ns": GRANT_NS,
        }
    return {
        **location,
        "sync": config.journal.sync,
        "segment_bytes": config.journal.segment_bytes,
        "sync_interval_ns": config.journal.sync_interval_ms * 1_000_000,
    }


def _read(file: Path | None, faults: list[Fault]) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    try:
        with open(file, encoding="utf-8-sig") as opened:  # an editor may have put a byte order mark before it
            document = tomllib.loads(opened.read())
    except (OSError, ValueError, RecursionError) as error:
        faults.append(Fault(str(file), "", f"expected a readable TOML file: {error}"))
        return {}
    tables: dict[str, dict[str, Any]] = {}
    known_sections = sections()
    for section, table in document.items():
        if section not in known_sections:
            faults.append(Fault(section, "file", "no such section" + _nearest(section, known_sections)))
        elif not isinstance(table, dict):
            faults.append(Fault(section, "file", f"expected a table, [{section}]"))
        else:
            tables[section] = table
    return tables


def _override(
    tables: dict[str, dict[str, Any]], sources: dict[str, str], environ: Mapping[str, str], faults: list[Fault]
) -> None:
    known_keys = dict(declared())
    for name, text in sorted(environ.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        path = f"{section}.{key}"
        if path not in known_keys:
            faults.append(Fault(path, "environment", f"{name} overrides no key" + _nearest(path, known_keys)))
            continue
        tables.setdefault(section, {})[key] = _from_text(known_keys[path], text)
        sources[path] = "environment"


def _from_text(key: Key, text: str) -> object:
    """Converts a text of the environment to the type of its key. A text that cannot be converted stays a text, which
    the later check reports as a fault.
    """
    try:
        if key.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if key.kind is int:
            return int(text)
        if key.kind is float:
            return float(text)
        if URLS in key.marks:
            return text.replace(",", " ").split()
    except (ValueError, KeyError):
        pass
    return text


def _checked(tables: dict[str, dict[str, Any]], sources: dict[str, str], faults: list[Fault]) -> Config:
    """The configuration with defaults in place of faulty values, so that combinations can be checked all the same."""
    known_keys = dict(declared())
    classes = tables["cutoff"].pop("class", {})
    checked: dict[str, dict[str, Any]] = {section: {} for section in tables}
    for section, table in tables.items():
        for name, value in table.items():
            path = f"{section}.{name}"
            try:
                if path not in known_keys:
                    raise ValueError("no such key" + _nearest(path, known_keys))
                checked[section][name] = known_keys[path].checked(value)
            except ValueError as error:
                faults.append(Fault(path, sources[path], str(error)))
    cutoff = Cutoff(**checked["cutoff"])
    cutoff = msgspec.structs.replace(cutoff, classes=_checked_classes(classes, cutoff, faults))
    structs: dict[str, Any] = {section: table(**checked[section]) for section, table in sections().items()}
    return Config(**structs | {"cutoff": cutoff})


def _checked_classes(tables: object, cutoff: Cutoff, faults: list[Fault]) -> dict[str, CutoffClass]:
    """The cutoff classes without faults, by name."""
    if not isinstance(tables, dict) or len(tables) > CLASSES_MAX:
        faults.append(Fault(_CLASSES, "file", f"expected at most {CLASSES_MAX} tables [cutoff.class.NAME]"))
        return {}
    known_keys, classes = keys_of(CutoffClass), {}
    for name, table in tables.items():
        before = len(faults)
        values: dict[str, Any] = {}
        if not re.fullmatch(CLASS_NAME, name):
            text = f"expected a name of small letters, digits, _ and -, as {CLASS_NAME} says"
            faults.append(Fault(f"{_CLASSES}.{name}", "file", text))
        if not isinstance(table, dict):
            faults.append(Fault(f"{_CLASSES}.{name}", "file", "expected a table, [cutoff.class.NAME]"))
            continue
        for key, value in table.items():
            try:
                if key not in known_keys:
                    raise ValueError("no such key" + _nearest(key, known_keys))
                values[key] = known_keys[key].checked(value)
            except ValueError as error:
                faults.append(Fault(f"{_CLASSES}.{name}.{key}", "file", str(error)))
        if len(faults) == before:
            classes[name] = class_of(cutoff, **values)
    return classes


def _nearest(wanted: str, known_names: Mapping[str, object]) -> str:
    """The end of a message with a guess at the key that was meant; "" without a guess. The guess is `listen` for a name
    from `_DOORS`, else a similar key of the same section, else the key of the same name in another section. Only
    names with the same first or last letter are compared letter by letter, so that many wrong keys do not take long.
    """
    section, point, key = wanted.rpartition(".")
    if key in _DOORS and (door := f"{section}{point}listen") in known_names:
        return f"; did you mean {door}?"
    parts = [other.rpartition(".") for other in known_names]
    if section and section not in (known_sections := dict.fromkeys(prefix for prefix, _, _ in parts)):
        alike = difflib.get_close_matches(section, known_sections, 1)
        section = alike[0] if alike else section
    siblings = [name for prefix, _, name in parts if prefix == section]
    alike = difflib.get_close_matches(
        key, [sibling for sibling in siblings if sibling[0] == key[:1] or sibling[-1] == key[-1:]], 1
    )
    near = [f"{section}{point}{name}" for name in alike]
    near += [f"{prefix}.{key}" for prefix, _, name in parts if prefix and name == key]
    return f"; did you mean {near[0]}?" if near else ""


def combinations_of(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Faults of values that are right alone but not together: the keys concerned, the one to blame first, and the text
    that says what is expected.
    """
    rpc = config.rpc
    listens = [(f"{section}.listen", listen) for section, listen in listens_of(config).items()]
    for path, text in listens:
        if text and not parse_listen(text).loopback and not rpc.tokens_file and not rpc.tls_client_ca:
            guards = ("rpc.tokens_file", "rpc.tls_client_ca")
            yield (path, *guards), f"expected {' or '.join(guards)}, since {text} is not loopback"
    if not rpc.listen and not rpc.unix_socket:
        yield ("rpc.listen", "rpc.unix_socket"), "expected this or rpc.unix_socket: without either nobody can call"
    for (before, other_text), (path, text) in combinations(listens, 2):
        if text and text == other_text and parse_listen(text).port:
            yield (path, before), f"expected another address than {before}, got {text}"
    if rpc.tls_key and not rpc.tls_cert:
        yield ("rpc.tls_key", "rpc.tls_cert"), "expected rpc.tls_cert beside it"
    if rpc.tls_cert and not rpc.tls_key:
        yield ("rpc.tls_cert", "rpc.tls_key"), "expected rpc.tls_key beside it"
    if rpc.tls_client_ca and not rpc.tls_cert:
        yield ("rpc.tls_client_ca", "rpc.tls_cert"), "expected rpc.tls_cert and rpc.tls_key beside it"
    if len(os.fsencode(rpc.unix_socket)) > UNIX_PATH_BYTES_MAX:
        yield ("rpc.unix_socket",), f"expected {UNIX_PATH_BYTES_MAX} bytes at most, got {rpc.unix_socket}"
    if config.journal.is_shared:
        yield from _cluster(config)
    count, counted = shard_count(config), "cluster.shards" if config.journal.is_shared else "shards.workers"
    shard_ids = range(1, count + 1)
    weights = parse_weights(config.shards.weights)
    if not any(weights.get(shard_id, 1) for shard_id in shard_ids):
        yield ("shards.weights", counted), f"expected a weight above 0 for one of {counted} at least"
    for path, named in (("shards.weights", weights), ("shards.locked", parse_shards(config.shards.locked))):
        beyond = sorted(shard_id for shard_id in named if shard_id not in shard_ids)
        if beyond:
            yield (path, counted), f"expected shards 1 to {counted}, got {beyond[0]}"
    if config.shards.bucket_count < count:
        yield (counted, "shards.bucket_count"), f"expected no more {counted.split('.')[1]} than shards.bucket_count"
    if 0 < config.ledger.rate_lease_s < RATE_LEASE_S_MIN:
        yield ("ledger.rate_lease_s",), f"expected 0 or {RATE_LEASE_S_MIN} at least"
    if _DEFAULT_CLASS in config.cutoff.classes:
        yield (_CLASSES,), f"expected another name than {_DEFAULT_CLASS}, which is what [cutoff] says"
    if config.cutoff.connect_timeout_s > config.cutoff.timeout_s:
        yield ("cutoff.timeout_s", "cutoff.connect_timeout_s"), "expected no less than cutoff.connect_timeout_s"


def _cluster(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Faults of [cluster], as of `combinations_of`, for a log that several hosts share."""
    cluster, kind = config.cluster, config.journal.kind
    if not cluster.servers:
        yield ("cluster.servers", "journal.kind"), f'expected URLs of servers, since journal.kind = "{kind}"'
    for url in cluster.servers:
        parts = urlsplit(url)
        if parts.scheme not in ("nats", "tls") or not parts.hostname or parts.path not in ("", "/") or parts.username:
            yield ("cluster.servers",), f"expected nats://host:port or tls://host:port, got {url}"
    if cluster.replicas > 1 and 0 < len(cluster.servers) < cluster.replicas:
        text = f"expected as many servers as cluster.replicas, {cluster.replicas}"
        yield ("cluster.servers", "cluster.replicas"), text
    yield from _sharing(config)
    if config.shards.workers < cluster.shards and not cluster.listen:
        text = f"expected cluster.shards, {cluster.shards}, or more: this daemon serves every shard, with a worker each"
        yield ("shards.workers", "cluster.shards"), text


def _sharing(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Faults of the keys of [cluster] that let several hosts serve at once."""
    cluster = config.cluster
    if bool(cluster.tls_cert) != bool(cluster.tls_key):
        yield ("cluster.tls_cert", "cluster.tls_key"), "expected both or neither"
    if cluster.tls_cert and not cluster.tls_ca:
        yield ("cluster.tls_ca", "cluster.tls_cert"), "expected the authority that signed the certificates of all hosts"
    if not cluster.listen:
        return
    listen = parse_listen(cluster.listen)
    if listen.port and listen.port + cluster.shards > 65_535:
        text = f"expected a port up to {65_535 - cluster.shards}, since each shard has one behind it"
        yield ("cluster.listen", "cluster.shards"), text
    if not listen.loopback and not cluster.secret_file and not cluster.tls_cert:
        yield ("cluster.listen",), "expected cluster.tls_cert or cluster.secret_file, since this is not loopback"
    advertised = parse_listen(cluster.advertise or config.rpc.listen or cluster.listen)
    listens = [listen, *([parse_listen(config.rpc.listen)] if config.rpc.listen and config.rpc.direct else [])]
    if advertised.host in EVERYWHERE and any(address.host in EVERYWHERE for address in listens):
        yield ("cluster.advertise", "cluster.listen"), "expected an address of this host by which the others reach it"
    if config.shards.weights:
        yield ("shards.weights", "cluster.listen"), 'expected "": hosts that serve at once have their buckets evenly'


def _files(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Faults of the files that keys name: missing files, and secret files that other users can read or write."""
    for path, declaration in declared():
        section, key = path.split(".")
        name = getattr(getattr(config, section), key)
        if not name or declaration.marks.isdisjoint((PUBLIC, SECRET)):
            continue
        try:
            mode = os.stat(name).st_mode
        except (OSError, ValueError) as error:
            makes = path == "rpc.tokens_file" and isinstance(error, FileNotFoundError)
            hint = "; the first `billing token add` makes it" if makes else ""
            yield (path,), f"expected a file: {error}{hint}"
            continue
        if not stat.S_ISREG(mode) or not os.access(name, os.R_OK):
            yield (path,), f"expected a file that this user can read, got {name}"
        elif SECRET in declaration.marks and mode & 0o026:
            yield (path,), f"expected mode 0600 or 0640, since it is secret: {name} has {mode & 0o777:04o}"


def _folders(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """The fault of a data directory that the daemon can neither use nor create."""
    name = config.daemon.data_dir
    parent = os.path.dirname(name)
    if (size := len(os.fsencode(os.path.realpath(name)))) > DATA_DIR_BYTES_MAX:
        limit = f"{DATA_DIR_BYTES_MAX} bytes at most, since SQLite opens no long ones"
        yield ("daemon.data_dir",), f"expected a path of {limit}, got one of {size}"
    elif os.path.lexists(name) and not os.path.isdir(name):
        yield ("daemon.data_dir",), f"expected a folder, {name} is none"
    elif os.path.lexists(parent) and not os.path.isdir(parent):
        yield ("daemon.data_dir",), f"expected {parent} to be a folder, which it is not"
    elif not os.path.isdir(parent):
        yield ("daemon.data_dir",), f"expected {parent} to exist: only the last folder of {name} is made by itself"
    elif not os.path.isdir(name) and not keeps_files(parent):  # as in /proc and /sys
        yield ("daemon.data_dir",), f"expected {parent} to be on a file system that keeps files: it has no room for any"


def _read_contents(config: Config, wrong: set[str]) -> dict[str, bytes]:
    """What the files of `CONTENTS` hold, by path. Left out are those of keys in `wrong`, and those that cannot be read
    or are too long.
    """
    contents: dict[str, bytes] = {}
    for path in CONTENTS:
        section, key = path.split(".")
        name = getattr(getattr(config, section), key)
        if name and path not in wrong:
            with contextlib.suppress(OSError), open(name, "rb") as opened:
                content = opened.read(NAMED_FILE_BYTES_MAX + 1)
                if len(content) <= NAMED_FILE_BYTES_MAX:
                    contents[name] = content
    return contents


def _contents(config: Config, wrong: set[str]) -> Iterator[tuple[str, str]]:
    """Faults inside the files that keys name, found by the parsers of the parts that use them. A parser is imported
    only if its file is configured. `wrong`: the keys that have a fault already.
    """
    rpc, secret_file = config.rpc, config.cutoff.secret_file
    if rpc.tokens_file and "rpc.tokens_file" not in wrong:
        from billing.api.auth import Guard

        yield from _parsed("rpc.tokens_file", rpc.tokens_file, config, Guard)
    if secret_file and "cutoff.secret_file" not in wrong:
        from billing.signature import parse_secrets

        yield from _parsed("cutoff.secret_file", secret_file, config, parse_secrets)
    if rpc.tls_cert and not wrong & {"rpc.tls_cert", "rpc.tls_key"}:
        import ssl

        from billing.api.tls import believe, with_certificate

        try:
            with_certificate(config)
        except KeyError as error:
            yield "rpc.tls_cert", f"{error.args[0]}: {UNREAD}"
        except (OSError, ValueError) as error:
            yield "rpc.tls_cert", f"expected a certificate and, in rpc.tls_key, its key without a password: {error}"
        if rpc.tls_client_ca and "rpc.tls_client_ca" not in wrong:
            try:
                believe(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config)
            except KeyError:
                yield "rpc.tls_client_ca", f"{rpc.tls_client_ca}: {UNREAD}"
            except (OSError, ValueError) as error:
                yield "rpc.tls_client_ca", f"expected certificates in PEM: {error}"


def _parsed(path: str, name: str, config: Config, parse: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    try:
        parse(config.text_of(name))
    except KeyError:
        yield path, f"{name}: {UNREAD}"
    except UnicodeDecodeError:
        yield path, f"{name}: expected text in UTF-8"
    except ValueError as error:
        yield path, f"{name}: {error}"
