"""The configuration: every key declared once, with its type, bounds, default and meaning.

Theory. This module is the only declaration of the configuration: `python -m billing.config.schema` prints
`config.toml` from it, `billing.config.load` fills it from a file and the environment, and each part of the daemon
receives the sub-table it needs (`config.rpc`, `config.journal`), never the whole. A key is one declaration: its type,
the kind of text (a path, a URL), meaning, bounds and default. Types are strict: the text `"2"` is not accepted as a
number, nor `true` as 1. A `Config` is immutable.

The cutoff classes are the only tables whose names the operator chooses. A key that such a table omits has the value of
[cutoff] (`class_of`).

`Key.checked` checks a value once, where it enters from outside. The values of a `Config` that code builds itself, or
that a process receives as JSON, are not checked again: so worker processes do not load `billing.config.load`.

This module never reads a file, the environment or a clock. `billing.config.load` decides which combinations are valid.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from billing.addresses import check_listen, check_url, shown_url
from billing.config.shares import check_shards, check_weights
from shards.journal.backends import KINDS

# Marks: the kind of a text, as error messages name it. The last two mark keys that name files, which must exist.
PATH = "a path"
LISTEN = '"host:port"'
URL = "a URL"
URLS = 'a list of URLs, ["…", …]'
NAME = r"^[A-Za-z0-9-]+\Z"
CLASS_NAME = "^[a-z0-9_-]{1,64}$"
CLASSES_MAX = 100
GRACE_S_MAX = 315_360_000  # ten years
WEIGHTS = '"shard=weight …"'
SHARDS = '"shard …"'
PUBLIC = "file"
SECRET = "secret file"  # a file that no other user may read or write

# Keys of [rpc] and [cutoff] that name files which a reload reads again.
CONTENTS: Final = ("rpc.tokens_file", "rpc.tls_cert", "rpc.tls_key", "rpc.tls_client_ca", "cutoff.secret_file")

# Mark -> the check of a text with this mark. A check raises ValueError, which says what is expected.
CHECKS: Final[dict[str, Callable[[str], object]]] = {
    LISTEN: check_listen,
    URL: check_url,
    WEIGHTS: check_weights,
    SHARDS: check_shards,
}

ListenText = Annotated[str, LISTEN]
UrlText = Annotated[str, URL]
WeightsText = Annotated[str, WEIGHTS]
ShardsText = Annotated[str, SHARDS]
PathText = Annotated[str, PATH]
UrlList = Annotated[list[str], URLS]
PublicFile = Annotated[str, PATH, PUBLIC]
SecretFile = Annotated[str, PATH, SECRET]


class Section(Struct, frozen=True):
    """A table of keys."""


def _key(meaning: str, **bounds: Any) -> Meta:
    return Meta(description=meaning, **bounds)


class Daemon(Section, frozen=True):
    """The daemon as a whole."""

    data_dir: Annotated[PathText, _key("All that is kept; one daemon at a time", min_length=1)] = "data"


class Shards(Section, frozen=True):
    """How the work is divided."""

    workers: Annotated[int, _key("Processes that serve, each with a shard of the buckets", ge=1, le=64)] = 2
    weights: Annotated[WeightsText, _key("Shares of the buckets that are not 1; a shard at 0 is drained")] = ""
    locked: Annotated[ShardsText, _key("Shards that the rebalancer neither takes from nor gives to")] = ""
    moves_max: Annotated[int, _key("Buckets that move at once", ge=1, le=64)] = 1
    sending_max: Annotated[int, _key("Of these, out of one shard", ge=1, le=64)] = 1
    receiving_max: Annotated[int, _key("Of these, into one shard", ge=1, le=64)] = 1
    bucket_count: Annotated[int, _key("Buckets users are hashed to; fixed once data_dir exists", ge=1, le=65_535)] = (
        3000
    )


class Rpc(Section, frozen=True):
    """The doors for MessagePack-RPC. Beyond loopback they need tokens_file or tls_client_ca."""

    listen: Annotated[ListenText, _key("TCP address; port 0 takes a free one")] = "127.0.0.1:3311"
    unix_socket: Annotated[PathText, _key("Unix socket to listen on as well")] = ""
    tokens_file: Annotated[SecretFile, _key("Hashed tokens and their roles, asked for by hello")] = ""
    tls_cert: Annotated[PublicFile, _key("Certificate chain (PEM); with tls_key it switches TLS 1.3 on")] = ""
    tls_key: Annotated[SecretFile, _key("Private key (PEM) of tls_cert")] = ""
    tls_client_ca: Annotated[PublicFile, _key("Authority (PEM) that signed the certificates clients must show")] = ""
    connections_max: Annotated[
        int, _key("Client connections a worker holds; more are closed at once", ge=1, le=10**6)
    ] = 10_000
    connections_per_origin_max: Annotated[
        int, _key("Of these, of one TCP address (IPv6: its /64) or user of the unix socket; 0: as many", ge=0, le=10**6)
    ] = 0
    in_flight_max: Annotated[
        int, _key("Requests a worker has under way; more are refused with BUSY", ge=4096, le=10**8)
    ] = 262_144
    requests_per_s_max: Annotated[
        int,
        _key("Requests a second of one connection; more are refused with BUSY; 0: as many as it likes", ge=0, le=10**7),
    ] = 0
    direct: Annotated[
        bool, _key("Each worker also listens on a port of its own, which route tells to smart clients")
    ] = True


class Http(Section, frozen=True):
    """The door for HTTP and JSON, with the tokens and certificates of [rpc]. Beyond loopback it needs them."""

    listen: Annotated[ListenText, _key("TCP address; port 0 takes a free one")] = "127.0.0.1:3312"


class Tarantool(Section, frozen=True):
    """The door for Tarantool connectors, with the tokens and certificates of [rpc]. Beyond loopback it needs them."""

    listen: Annotated[ListenText, _key("TCP address; port 0 takes a free one")] = ""


if TYPE_CHECKING:
    JournalKind = str
else:
    JournalKind = Literal[tuple(KINDS)]


class JournalSection(Section, frozen=True):
    """What makes an answer durable."""

    kind: Annotated[
        JournalKind,
        _key("Where it is kept: files below daemon.data_dir, or NATS JetStream, as [cluster] says"),
    ] = "file"
    sync: Annotated[
        Literal["always", "interval", "never"],
        _key("Synced before each answer, every sync_interval_ms (a power cut loses that much), or by the kernel alone"),
    ] = "always"
    sync_interval_ms: Annotated[int, _key('How often, with sync = "interval"', ge=1, le=60_000)] = 100
    segment_bytes: Annotated[int, _key("Size of a file, allocated ahead", ge=65_536, le=2**30, multiple_of=4096)] = (
        64 * 2**20
    )
    snapshot_bytes: Annotated[int, _key("After that much a snapshot replaces it", ge=65_536, le=2**40)] = 256 * 2**20
    idle_barrier_ms: Annotated[
        int, _key("After such a pause an empty batch proves the last one that was answered", ge=1, le=10_000)
    ] = 50

    @property
    def is_shared(self) -> bool:
        """Whether several hosts may share the log, as [cluster] says."""
        return KINDS[self.kind].is_shared


class Cluster(Section, frozen=True):
    """The log on a majority of servers, with journal.kind = "jetstream"; see `billing cluster check`."""

    servers: Annotated[UrlList, _key("Servers of NATS, nats://host:port or, beyond loopback, tls://host:port")] = []
    node: Annotated[str, _key("The name of this host; each has its own", min_length=1, max_length=32, pattern=NAME)] = (
        "local"
    )
    shards: Annotated[int, _key("Shards, each served by a worker; fixed once the streams are made", ge=1, le=64)] = 12
    replicas: Annotated[int, _key("Servers that keep each stream; 1 is for trying only", ge=1, le=5)] = 3
    credentials_file: Annotated[SecretFile, _key("user:password, or a token, that the servers ask for")] = ""
    tls_ca: Annotated[PublicFile, _key("Authority (PEM) of the servers' certificates, if not one of the system's")] = ""
    listen: Annotated[
        ListenText,
        _key("Where links of other hosts come in, shard k's at this port + k; with it several hosts serve at once"),
    ] = ""
    advertise: Annotated[
        ListenText, _key("This host's rpc.listen as others and clients reach it, where that is another")
    ] = ""
    secret_file: Annotated[
        SecretFile, _key("What links prove that they know, on a network that is trusted; else tls_cert")
    ] = ""
    tls_cert: Annotated[
        PublicFile, _key("Certificate chain (PEM) of this host for links; tls_ca has signed all hosts'")
    ] = ""
    tls_key: Annotated[SecretFile, _key("Private key (PEM) of tls_cert")] = ""
    retain_bytes: Annotated[int, _key("Of each journal, kept behind the snapshots that replace it", ge=0, le=2**40)] = (
        1 << 30
    )


class CutoffClass(Section, frozen=True, kw_only=True):
    """What is different for accounts that set_class puts into a class; what is left out is as in [cutoff]."""

    grace_s: Annotated[
        float, _key("Seconds from the exhaustion to the call; money that comes before cancels it", ge=0, le=GRACE_S_MAX)
    ] = 0.0
    after_exhaustion: Annotated[Literal["clamp", "accrue"], _key("As cutoff.after_exhaustion, also during the grace")]
    url: Annotated[
        UrlText, _key("As cutoff.url; an endpoint of its own, whose outage holds up no other class", min_length=1)
    ]
    restore_url: Annotated[UrlText, _key("As cutoff.restore_url")]


class Cutoff(Section, frozen=True):
    """The call that switches a user's machines off at the instant the balance runs out."""

    url: Annotated[
        UrlText,
        _key(
            "{user_id} is replaced, or else user_id= added to the query; event_id, seq, exhausted_at_ns always are",
            min_length=1,
        ),
    ] = "http://127.0.0.1:8080/cutoff?user_id={user_id}"
    restore_url: Annotated[
        UrlText, _key("Called likewise once a user who may have been switched off has money again")
    ] = ""
    method: Annotated[
        Literal["GET", "POST"], _key("The fields stand in the query, or in a JSON body as webhooks have it")
    ] = "GET"
    secret_file: Annotated[
        SecretFile, _key("Signs calls and notices (`openssl rand -base64 32`); two while it is changed")
    ] = ""
    concurrency: Annotated[int, _key("Calls under way at once from each worker to each endpoint", ge=1, le=4096)] = 64
    timeout_s: Annotated[
        float,
        _key(
            "Seconds from sending a call to its answer; up to six times as long while nobody is answered",
            ge=0.05,
            le=300,
        ),
    ] = 10.0
    connect_timeout_s: Annotated[float, _key("Seconds of these to connect", ge=0.05, le=300)] = 3.0
    warm_connections: Annotated[
        int,
        _key("Kept open in each worker, ahead of calls, to endpoints shown to serve others beside them", ge=0, le=256),
    ] = 8
    hold_above: Annotated[
        int, _key("With more overdue at a start, all wait for release_cutoffs; -1: never", ge=-1, le=10**9)
    ] = -1
    recheck_s: Annotated[
        float, _key("Called again if there is a rate this long after the 2xx; 0: never", ge=0, le=86_400)
    ] = 0.0
    after_exhaustion: Annotated[
        Literal["clamp", "accrue"], _key("The balance stays where it ran out, or goes on below zero as arrears")
    ] = "clamp"
    classes: dict[str, CutoffClass] = msgspec.field(default_factory=dict, name="class")


def class_of(cutoff: Cutoff, **values: Any) -> CutoffClass:
    """A cutoff class with these values; keys that are not given have the values of [cutoff]."""
    inherited = (key for key in CutoffClass.__struct_fields__ if key in Cutoff.__struct_fields__)
    return CutoffClass(**{key: getattr(cutoff, key) for key in inherited} | values)


class Notify(Section, frozen=True):
    """Notices to another service."""

    url: Annotated[
        UrlText, _key("JSON POSTs go here, signed with cutoff.secret_file; emptied, what is owed is given up")
    ] = ""


class Ledger(Section, frozen=True):
    """What is remembered for retries, and how long a reported rate goes on."""

    request_ids_per_bucket: Annotated[
        int, _key("Answers kept, for 7 days; above, the oldest go first", ge=1, le=10**7)
    ] = 2000
    rate_lease_s: Annotated[
        float,
        _key(
            "A rate reported without ttl_ns ends after so many seconds unless reported again; 0: never", ge=0, le=10**9
        ),
    ] = 0.0


class Clock(Section, frozen=True):
    """Billing time."""

    slew_ppm_max: Annotated[
        int, _key("Millionths by which it may run faster or slower towards wall time", ge=1, le=500)
    ] = 500
    error_ms_max: Annotated[
        int,
        _key(
            "A host whose clock may be more wrong serves nothing, where several share a log; 0: any clock will do",
            ge=0,
            le=10**7,
        ),
    ] = 250


class Admin(Section, frozen=True):
    """HTTP for operators: /livez, /readyz, /metrics and the dashboard. Beyond loopback as [rpc]."""

    listen: Annotated[ListenText, _key("TCP address; port 0 takes a free one")] = "127.0.0.1:9311"


class History(Section, frozen=True):
    """What is kept of the past of accounts, beside their entries in the journal."""

    keep_days: Annotated[
        int, _key("Days after which an account's entries may go; 0 keeps them for ever", ge=0, le=36500)
    ] = 0


class Log(Section, frozen=True):
    """What is told: to journald under systemd, else on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _key("The least that is told")] = "info"
    format: Annotated[
        Literal["auto", "lines", "json"],
        _key('How: "auto" has fields in journald, colour on a terminal, else lines; "json" has an object a line'),
    ] = "auto"
    user_ids: Annotated[
        Literal["shown", "hashed", "hidden"],
        _key("How users are named there; if not shown, request ids and messages of clients are hidden, too"),
    ] = "shown"


class Config(Struct, frozen=True):
    """The whole configuration. Each part receives the section it needs; worker processes receive all of it as JSON.

    `files` has, by path, what the files of `CONTENTS` held when this was loaded. Whoever needs one takes it from there,
    so that all processes go by the same content, also one that starts when the file has other content or is gone.
    """

    daemon: Daemon = Daemon()
    shards: Shards = Shards()
    rpc: Rpc = Rpc()
    http: Http = Http()
    tarantool: Tarantool = Tarantool()
    journal: JournalSection = JournalSection()
    cluster: Cluster = Cluster()
    cutoff: Cutoff = Cutoff()
    notify: Notify = Notify()
    ledger: Ledger = Ledger()
    clock: Clock = Clock()
    admin: Admin = Admin()
    history: History = History()
    log: Log = Log()
    files: dict[str, bytes] = {}

    def text_of(self, path: str) -> str:
        """What the file of this path held. Raises UnicodeDecodeError."""
        return self.files[path].decode()

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Config:
        """The configuration that another process of this daemon encoded with `to_json`."""
        return msgspec.json.decode(text, type=cls)


class Key(NamedTuple):
    """The declaration of one key."""

    type: Any  # with its bounds
    kind: Any  # bool, int, float, str, list[str], or a Literal of texts
    marks: frozenset[str]  # of PATH, LISTEN, URL, URLS, WEIGHTS, SHARDS, PUBLIC, SECRET
    meaning: str
    bounds: Meta
    default: Any

    def checked(self, value: object) -> Any:
        """Checks a value and converts it to the type in `Config`. Raises ValueError, which says what is expected."""
        try:
            converted = msgspec.convert(value, self.type)
            if isinstance(converted, str):
                converted.encode()
        except (msgspec.ValidationError, UnicodeEncodeError):
            raise ValueError(f"expected {self.expected()}, got {reprlib.repr(value)}") from None
        for mark in self.marks & CHECKS.keys():
            CHECKS[mark](converted)
        return converted

    def expected(self) -> str:
        """The values that the key accepts, in words."""
        if self.kind is bool:
            return "true or false"
        if URLS in self.marks:
            return f"{URLS}, [] for none"
        if choices := get_args(self.kind):
            *earlier, last = (f'"{choice}"' for choice in choices)
            return f"{', '.join(earlier)} or {last}"
        bounds = self.bounds
        if self.kind is str:
            kinds = (PATH, LISTEN, URL, WEIGHTS, SHARDS)
            what = next((kind for kind in kinds if kind in self.marks), "letters, digits and -")
            return what if bounds.min_length else f'{what}, "" for none'
        what = "a whole number" if self.kind is int else "a number"
        multiple = f", a multiple of {bounds.multiple_of}" if bounds.multiple_of else ""
        return f"{what}, {bounds.ge} to {bounds.le}{multiple}"


@cache
def sections() -> Mapping[str, type[Section]]:
    """The tables of the configuration by name, in the order of declaration."""
    return {name: hint for name, hint in get_type_hints(Config).items() if name != "files"}


@cache
def keys_of(table: type[Section]) -> Mapping[str, Key]:
    """The keys of one table, in the order of declaration. The tables of cutoff classes are not counted as keys."""
    hints = get_type_hints(table, include_extras=True)
    keys: dict[str, Key] = {}
    for field in msgspec.structs.fields(table):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        kind, *notes = get_args(hint)
        (bounds,) = (note for note in notes if isinstance(note, Meta))
        marks = frozenset(note for note in notes if isinstance(note, str))
        default = [] if field.default_factory is list else field.default
        keys[field.name] = Key(hint, kind, marks, bounds.description or "", bounds, default)
    return keys


def declared() -> Iterator[tuple[str, Key]]:
    """(section.key, declaration) for every key in the order of declaration, without the keys of cutoff classes."""
    for section, table in sections().items():
        for key, declaration in keys_of(table).items():
            yield f"{section}.{key}", declaration


def as_toml(config: Config) -> str:
    """The configuration as a complete file, with the meaning of each key in a comment above it."""
    lines = [
        "# The configuration of the billing daemon: every key there is, with its default.",
        "# BILLING_SECTION__KEY in the environment overrides a key: BILLING_SHARDS__WORKERS=4.",
        "# An empty text switches off what a key names. Relative paths are relative to the folder of this file.",
    ]
    for section, table in sections().items():
        lines += ["", f"# {table.__doc__}", f"[{section}]"]
        for name, key in keys_of(table).items():
            lines += [f"# {key.meaning}. Takes {key.expected()}.", f"{name} = {value_text(config, section, name)}"]
        if section == "cutoff":
            lines += ["", f"# {CutoffClass.__doc__}", "# [cutoff.class.NAME]"]
            keys = keys_of(CutoffClass).items()
            lines += [f"# {name}: {key.meaning}. Takes {key.expected()}." for name, key in keys]
    return "\n".join(lines) + "\n"


def shown_text(config: Config, section: str, key: str) -> str:
    """As `value_text`, but without the secrets in the query of a URL: for logs."""
    if URL in keys_of(sections()[section])[key].marks:
        return json.dumps(shown_url(getattr(getattr(config, section), key)))
    return value_text(config, section, key)


def value_text(config: Config, section: str, key: str) -> str:
    """The value of one key as a literal of TOML."""
    return literal(getattr(getattr(config, section), key))


def literal(value: object) -> str:
    """A value as a literal of TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | list):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


if __name__ == "__main__":
    sys.stdout.write(as_toml(Config()))
