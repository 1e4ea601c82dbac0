"""The configuration: every key declared once, with its type, bounds, default and meaning.

Theory. What this module declares is the only truth: `config.toml` is printed from it
(`python -m billing.config.schema`),
`billing.config.load` fills it from a file and the environment, and each part of the daemon is handed the sub-table it
needs (`config.rpc`, `config.journal`), never the whole. A key is one line: its type, default, meaning and bounds. Types
are strict: `"2"` is no number and `true` is no 1. A `Config` cannot be changed once it exists.

The classes of cutoffs are the one part whose tables have names that the operator chooses; what such a table leaves out
it has from [cutoff] as soon as a `Config` exists.

It never reads a file, the environment or a clock, and what combination of keys makes sense is not decided here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from billing.addresses import check_listen, check_url, shown_url
from billing.config.shares import check_shards, check_weights

# What a text is, beside its being one; the last two name files that must exist.
PATH = "a path"
LISTEN = '"host:port"'
URL = "a URL"
URLS = 'a list of URLs, ["…", …]'
NAME = "^[A-Za-z0-9-]+$"
CLASS_NAME = "^[a-z0-9_-]{1,64}$"
CLASSES_MAX = 100
GRACE_S_MAX = 315_360_000  # ten years
WEIGHTS = '"shard=weight …"'
SHARDS = '"shard …"'
PUBLIC = "file"
SECRET = "secret file"  # that nobody else may read or write

ListenText = Annotated[str, LISTEN, AfterValidator(check_listen)]
UrlText = Annotated[str, URL, AfterValidator(check_url)]
WeightsText = Annotated[str, WEIGHTS, AfterValidator(check_weights)]
ShardsText = Annotated[str, SHARDS, AfterValidator(check_shards)]
PathText = Annotated[str, PATH]
UrlList = Annotated[list[str], URLS]
PublicFile = Annotated[str, PATH, PUBLIC]
SecretFile = Annotated[str, PATH, SECRET]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _key(default: object, meaning: str, **bounds: Any) -> Any:
    return Field(default=default, description=meaning, **bounds)


class Daemon(_Section):
    """The daemon as a whole."""

    data_dir: PathText = _key("data", "All that is kept; one daemon at a time", min_length=1)


class Shards(_Section):
    """How the work is divided."""

    workers: int = _key(2, "Processes that serve, each with a shard of the buckets", ge=1, le=64)
    weights: WeightsText = _key("", "Shares of the buckets that are not 1; a shard at 0 is drained")
    locked: ShardsText = _key("", "Shards that the rebalancer neither takes from nor gives to")
    moves_max: int = _key(1, "Buckets that move at once", ge=1, le=64)
    sending_max: int = _key(1, "Of these, out of one shard", ge=1, le=64)
    receiving_max: int = _key(1, "Of these, into one shard", ge=1, le=64)
    bucket_count: int = _key(3000, "Buckets users are hashed to; fixed once data_dir exists", ge=1, le=65_535)


class Rpc(_Section):
    """The doors for MessagePack-RPC. Beyond loopback they need tokens_file or tls_client_ca."""

    listen: ListenText = _key("127.0.0.1:3311", "TCP address; port 0 takes a free one")
    unix_socket: PathText = _key("", "Unix socket to listen on as well")
    tokens_file: SecretFile = _key("", "Hashed tokens and their roles, asked for by hello")
    tls_cert: PublicFile = _key("", "Certificate chain (PEM); with tls_key it switches TLS 1.3 on")
    tls_key: SecretFile = _key("", "Private key (PEM) of tls_cert")
    tls_client_ca: PublicFile = _key("", "Authority (PEM) that signed the certificates clients must show")
    connections_max: int = _key(10_000, "Client connections a worker holds; more are closed at once", ge=1, le=10**6)
    connections_per_origin_max: int = _key(
        0, "Of these, of one TCP address (IPv6: its /64) or user of the unix socket; 0: as many", ge=0, le=10**6
    )
    in_flight_max: int = _key(262_144, "Requests a worker has under way; more are refused with BUSY", ge=4096, le=10**8)
    requests_per_s_max: int = _key(
        0, "Requests a second of one connection; more are refused with BUSY; 0: as many as it likes", ge=0, le=10**7
    )
    direct: bool = _key(True, "Each worker also listens on a port of its own, which route tells to smart clients")


class Http(_Section):
    """The door for HTTP and JSON, with the tokens and certificates of [rpc]. Beyond loopback it needs them."""

    listen: ListenText = _key("127.0.0.1:3312", "TCP address; port 0 takes a free one")


class Tarantool(_Section):
    """The door for Tarantool connectors, with the tokens and certificates of [rpc]. Beyond loopback it needs them."""

    listen: ListenText = _key("", "TCP address; port 0 takes a free one")


class JournalSection(_Section):
    """What makes an answer durable."""

    kind: Literal["file", "jetstream"] = _key(
        "file", "Where it is kept: files below daemon.data_dir, or NATS JetStream, as [cluster] says"
    )
    sync: Literal["always", "interval", "never"] = _key(
        "always",
        "Synced before each answer, every sync_interval_ms (a power cut loses that much), or by the kernel alone",
    )
    sync_interval_ms: int = _key(100, 'How often, with sync = "interval"', ge=1, le=60_000)
    segment_bytes: int = _key(64 * 2**20, "Size of a file, allocated ahead", ge=65_536, le=2**30, multiple_of=4096)
    snapshot_bytes: int = _key(256 * 2**20, "After that much a snapshot replaces it", ge=65_536, le=2**40)
    idle_barrier_ms: int = _key(50, "After such a pause an empty batch proves the last one whole", ge=1, le=10_000)


class Cluster(_Section):
    """The log on a majority of servers, with journal.kind = "jetstream"; see `billing cluster check`."""

    servers: UrlList = _key([], "Servers of NATS, nats://host:port or, beyond loopback, tls://host:port")
    node: str = _key("local", "The name of this host; each has its own", min_length=1, max_length=32, pattern=NAME)
    shards: int = _key(12, "Shards, each served by a worker; fixed once the streams are made", ge=1, le=64)
    replicas: int = _key(3, "Servers that keep each stream; 1 is for trying only", ge=1, le=5)
    credentials_file: SecretFile = _key("", "user:password, or a token, that the servers ask for")
    tls_ca: PublicFile = _key("", "Authority (PEM) of the servers' certificates, if not one of the system's")
    listen: ListenText = _key(
        "", "Where links of other hosts come in, shard k's at this port + k; with it several hosts serve at once"
    )
    advertise: ListenText = _key("", "This host's rpc.listen as others and clients reach it, where that is another")
    secret_file: SecretFile = _key("", "What links prove that they know, on a network that is trusted; else tls_cert")
    tls_cert: PublicFile = _key("", "Certificate chain (PEM) of this host for links; tls_ca has signed all hosts'")
    tls_key: SecretFile = _key("", "Private key (PEM) of tls_cert")
    retain_bytes: int = _key(1 << 30, "Of each journal, kept behind the snapshots that replace it", ge=0, le=2**40)


class CutoffClass(_Section):
    """What is different for accounts that set_class puts into a class; what is left out is as in [cutoff]."""

    grace_s: float = _key(
        0.0, "Seconds from the exhaustion to the call; money that comes before cancels it", ge=0, le=GRACE_S_MAX
    )
    after_exhaustion: Literal["clamp", "accrue"] = _key("clamp", "As cutoff.after_exhaustion, also during the grace")
    url: UrlText = _key("", "As cutoff.url; an endpoint of its own, whose outage holds up no other class", min_length=1)
    restore_url: UrlText = _key("", "As cutoff.restore_url")


class Cutoff(_Section):
    """The call that switches a user's machines off at the instant the balance runs out."""

    url: UrlText = _key(
        "http://127.0.0.1:8080/cutoff?user_id={user_id}",
        "{user_id} is replaced, or else user_id= added to the query; event_id, seq, exhausted_at_ns always are",
        min_length=1,
    )
    restore_url: UrlText = _key("", "Called likewise once a user who may have been switched off has money again")
    method: Literal["GET", "POST"] = _key("GET", "The fields stand in the query, or in a JSON body as webhooks have it")
    secret_file: SecretFile = _key("", "Signs calls and notices (`openssl rand -base64 32`); two while it is changed")
    concurrency: int = _key(64, "Calls under way at once in each worker", ge=1, le=4096)
    timeout_s: float = _key(
        10.0,
        "Seconds from sending a call to its answer; up to six times as long while nobody is answered",
        ge=0.05,
        le=300,
    )
    connect_timeout_s: float = _key(3.0, "Seconds of these to connect", ge=0.05, le=300)
    warm_connections: int = _key(
        8, "Kept open in each worker, ahead of calls, to endpoints shown to serve others beside them", ge=0, le=256
    )
    hold_above: int = _key(-1, "With more overdue at a start, all wait for release_cutoffs; -1: never", ge=-1, le=10**9)
    recheck_s: float = _key(0.0, "Called again if there is a rate this long after the 2xx; 0: never", ge=0, le=86_400)
    after_exhaustion: Literal["clamp", "accrue"] = _key(
        "clamp", "The balance stays where it ran out, or goes on below zero as arrears"
    )
    classes: dict[Annotated[str, Field(pattern=CLASS_NAME)], CutoffClass] = Field(
        default={}, alias="class", max_length=CLASSES_MAX, description="Classes of accounts, by name"
    )

    @model_validator(mode="after")
    def _complete_classes(self) -> Cutoff:
        for name, given in self.classes.items():
            left_out = {"after_exhaustion", "url", "restore_url"} - given.model_fields_set
            self.classes[name] = given.model_copy(update={key: getattr(self, key) for key in left_out})
        return self


class Notify(_Section):
    """Notices to another service."""

    url: UrlText = _key("", "JSON POSTs go here, signed with cutoff.secret_file; emptied, what is owed is given up")


class Ledger(_Section):
    """What is remembered for retries, and how long a reported rate goes on."""

    request_ids_per_bucket: int = _key(2000, "Answers kept, for 7 days; above, the oldest go first", ge=1, le=10**7)
    rate_lease_s: float = _key(
        0.0, "A rate reported without ttl_ns ends after so many seconds unless reported again; 0: never", ge=0, le=10**9
    )


class Clock(_Section):
    """Billing time."""

    slew_ppm_max: int = _key(500, "Millionths by which it may run faster or slower towards wall time", ge=1, le=500)
    error_ms_max: int = _key(
        250,
        "A host whose clock may be more wrong serves nothing, where several share a log; 0: any clock will do",
        ge=0,
        le=10**7,
    )


class Admin(_Section):
    """HTTP for operators: /livez, /readyz, /metrics and the dashboard. Beyond loopback as [rpc]."""

    listen: ListenText = _key("127.0.0.1:9311", "TCP address; port 0 takes a free one")


class History(_Section):
    """What is kept of the past of accounts, beside their entries in the journal."""

    keep_days: int = _key(0, "Days after which an account's entries may go; 0 keeps them for ever", ge=0, le=36500)


class Log(_Section):
    """What is told: to journald under systemd, else on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _key("info", "The least that is told")
    format: Literal["auto", "lines", "json"] = _key(
        "auto", 'How: "auto" has fields in journald, colour on a terminal, else lines; "json" has an object a line'
    )
    user_ids: Literal["shown", "hashed", "hidden"] = _key(
        "shown", "How users are named there; if not shown, request ids and messages of clients are hidden, too"
    )


class Config(_Section):
    """The whole. Sections are handed to the parts that need them; all of it goes to worker processes as JSON."""

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

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Config:
        """What `to_json` made, in another process of this daemon."""
        return cls.model_validate_json(text)


def declared() -> Iterator[tuple[str, FieldInfo]]:
    """(section.key, its declaration) for every key there is, in the order of declaration; not those of classes."""
    for section, table in Config.model_fields.items():
        for key, field in _fields(table).items():
            if field.alias is None:
                yield f"{section}.{key}", field


def expected(field: FieldInfo) -> str:
    """What a key takes, in words."""
    kind = field.annotation
    if kind is bool:
        return "true or false"
    if URLS in field.metadata:
        return f"{URLS}, [] for none"
    if choices := get_args(kind):
        *others, last = (f'"{choice}"' for choice in choices)
        return f"{', '.join(others)} or {last}"
    if kind is str:
        needed = any(getattr(bound, "min_length", 0) for bound in field.metadata)
        kinds = (PATH, LISTEN, URL, WEIGHTS, SHARDS)
        what = next((kind for kind in kinds if kind in field.metadata), "letters, digits and -")
        return what if needed else f'{what}, "" for none'
    low, high, multiple = (
        next((getattr(bound, name) for bound in field.metadata if hasattr(bound, name)), None)
        for name in ("ge", "le", "multiple_of")
    )
    what = "a whole number" if kind is int else "a number"
    return f"{what}, {low} to {high}" + (f", a multiple of {multiple}" if multiple else "")


def as_toml(config: Config) -> str:
    """The configuration as a complete file, each key below its meaning."""
    lines = [
        "# The configuration of the billing daemon: every key there is, with its default.",
        "# BILLING_SECTION__KEY in the environment overrides a key: BILLING_SHARDS__WORKERS=4.",
        "# An empty text switches off what a key names. Relative paths are relative to the folder of this file.",
    ]
    for section, table in Config.model_fields.items():
        lines += ["", f"# {table.annotation.__doc__}" if table.annotation else "", f"[{section}]"]
        for path, field in declared():
            if path.startswith(f"{section}."):
                key = path.partition(".")[2]
                told = f"# {field.description}. Takes {expected(field)}."
                lines += [told, f"{key} = {value_text(config, section, key)}"]
        if section == "cutoff":
            lines += ["", f"# {CutoffClass.__doc__}", "# [cutoff.class.NAME]"]
            lines += [f"# {key}: {field.description}. Takes {expected(field)}." for key, field in class_keys()]
    return "\n".join(lines) + "\n"


def class_keys() -> Iterator[tuple[str, FieldInfo]]:
    """(key, its declaration) for every key of a table `[cutoff.class.NAME]`."""
    yield from CutoffClass.model_fields.items()


def shown_text(config: Config, section: str, key: str) -> str:
    """As `value_text`, but without what is secret in the query of a URL: for a log."""
    if URL in dict(declared())[f"{section}.{key}"].metadata:
        return json.dumps(shown_url(getattr(getattr(config, section), key)))
    return value_text(config, section, key)


def value_text(config: Config, section: str, key: str) -> str:
    """One value as a file has it."""
    return literal(getattr(getattr(config, section), key))


def literal(value: object) -> str:
    """A value as a file has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | list):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _fields(table: FieldInfo) -> dict[str, FieldInfo]:
    assert isinstance(table.annotation, type)
    assert issubclass(table.annotation, _Section)
    return table.annotation.model_fields


if __name__ == "__main__":
    sys.stdout.write(as_toml(Config()))
