"""The settings whose pairs the campaign `pairs` tries: their levels, what is refused of them, and the host of a row.

A level is a word. What it means in a configuration, in the environment, on the command line or in what a parent process
leaves behind stands in `Host`, which is a real daemon of one row and can be called at each of its doors
(`pair_doors`). What depends on another factor has the level `none` where that one makes it void (servers of the log,
links between hosts), so that each pair stands in a row where both of it matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import trustme

from shards.journal.jetstream.connection import Access, Connection, endpoint_of
from shards.system.clock import MACHINE_CLOCKS
from shards.system.host import REAL
from tests.shards.journal.nats_cluster import NatsCluster
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.torture.covering import Row, Rule

ADMIN_NAME, ADMIN_TOKEN, LATE_TOKEN = "ops", "a token of ops", "a token that comes later"
FIRST_SECRET, NEXT_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
GRACE_NS = 300_000_000
CREDENTIALS = "billing:of the host"
WAIT_S = 120.0
LOW_CONNECTIONS = 40

FACTORS: Final[dict[str, tuple[str, ...]]] = {
    "log": ("files", "servers", "standby", "at once"),  # the two in the middle: one host serves; at once: two do
    "servers": ("none", "plain", "credentials", "tls"),  # of the log
    "links": ("none", "secret", "tls"),  # between hosts that serve at once
    "advertise": ("none", "given"),
    "workers": ("one", "two"),
    "buckets": ("many", "one"),
    "weights": ("even", "uneven", "of two"),
    "sync": ("always", "interval", "never"),
    "segments": ("large", "small"),
    "snapshots": ("seldom", "often"),
    "rpc": ("v4", "v6", "name", "none", "wide", "wide6"),
    "unix": ("none", "beside"),
    "tls": ("none", "server", "clients"),
    "tokens": ("none", "file"),
    "http": ("none", "v4", "v6", "wide"),
    "tarantool": ("none", "v4", "v6", "wide"),
    "direct": ("yes", "no"),
    "admin": ("none", "v4", "v6", "wide"),
    "limits": ("default", "low"),
    "method": ("GET", "POST"),
    "secrets": ("none", "one", "two"),
    "restore": ("none", "set"),
    "endpoint": ("v4", "v6", "name", "https"),
    "place of the user": ("added", "named"),
    "notices": ("none", "beside", "elsewhere"),  # beside cutoffs: the same origin
    "class": ("none", "grace", "own"),
    "arrears": ("clamp", "accrue"),
    "recheck": ("never", "soon"),
    "hold": ("never", "any"),
    "calls": ("many", "one"),
    "lease": ("none", "hour"),
    "history": ("kept", "a day"),
    "format": ("auto", "lines", "json"),
    "level": ("info", "debug", "error"),
    "users": ("shown", "hashed", "hidden"),
    "sockets": ("own", "named", "nameless"),  # the latter two: handed over by the service manager
    "manager": ("path", "abstract", "none"),
    "isolated": ("no", "yes"),
    "locale": ("utf8", "ascii", "unset"),
    "descriptors": ("open", "closed"),
    "place": ("plain", "odd", "long"),
    "configured": ("file", "environment", "folder"),
}
NETWORKED: Final = frozenset({"wide", "wide6"})  # levels that need a network of one's own
WIDE_DOORS: Final = ("rpc", "http", "tarantool", "admin")
ODD: Final = 'o d\'d "%s" #1?x=1&ü$HOME;'
LONG: Final = ("l" * 100, "o" * 100, "n" * 60)


def _rule(path: str = "", sentence: str = "", **levels: str) -> Rule:
    """Levels of one factor with `|` between them."""
    named = {factor.replace("_", " "): frozenset(text.split("|")) for factor, text in levels.items()}
    return Rule(named, path, sentence)


SHARED: Final = "servers|standby|at once"
RULES: Final = (
    # What means nothing.
    _rule(log="files", servers="plain|credentials|tls"),
    _rule(log=SHARED, servers="none"),
    _rule(log="files|servers|standby", links="secret|tls"),
    _rule(log="at once", links="none"),
    _rule(log="files|servers|standby", advertise="given"),
    _rule(configured="environment", **{"class": "grace|own"}),  # a class has no variable
    # What is refused, and how.
    *(
        _rule(
            f"{door}.listen",
            "expected rpc.tokens_file or rpc.tls_client_ca, since",
            tokens="none",
            tls="none|server",
            **{door: "wide|wide6" if door == "rpc" else "wide"},
        )
        for door in WIDE_DOORS
    ),
    _rule("rpc.listen", "expected this or rpc.unix_socket: without either nobody can call", rpc="none", unix="none"),
    _rule("rpc.unix_socket", "expected 107 bytes at most, got", unix="beside", place="long"),
    _rule("shards.weights", "expected shards 1 to shards.workers, got 2", weights="of two", workers="one"),
    _rule(
        "shards.weights",
        'expected "": hosts that serve at once have their buckets evenly',
        weights="uneven|of two",
        log="at once",
    ),
    _rule(
        "shards.workers",
        "expected no more workers than shards.bucket_count",
        workers="two",
        buckets="one",
        log="files",
    ),
    _rule(
        "cluster.shards",
        "expected no more shards than shards.bucket_count",
        workers="two",
        buckets="one",
        log=SHARED,
    ),
    _rule(
        "cluster.advertise",
        "expected an address of this host by which the others reach it",
        advertise="none",
        log="at once",
        rpc="wide|wide6",
        direct="yes",
    ),
)
DEFAULT: Final[Row] = {factor: levels[0] for factor, levels in FACTORS.items()}


def factors_of(with_network: bool) -> dict[str, tuple[str, ...]]:
    """All factors; without a network of one's own, without levels that listen beyond loopback."""
    if with_network:
        return FACTORS
    return {name: tuple(level for level in levels if level not in NETWORKED) for name, levels in FACTORS.items()}


def refused_rows() -> list[tuple[Row, Rule]]:
    """For each way to break a rule that the daemon knows, a row that breaks this one alone."""
    broken_rows = []
    for rule in RULES:
        if rule.sentence:
            for levels in _products(rule):
                row = DEFAULT | _mended(levels)
                assert [rule_broken for rule_broken in RULES if rule_broken.is_broken(row)] == [rule], (row, rule)
                broken_rows.append((row, rule))
    return broken_rows


def _products(rule: Rule) -> list[Row]:
    rows: list[Row] = [{}]
    for factor, levels in rule.levels.items():
        rows = [row | {factor: level} for row in rows for level in sorted(levels)]
    return rows


def _mended(row: Row) -> Row:
    """The row with what its levels need beside them."""
    if row.get("log", "files") != "files":
        row = {"servers": "plain", **row}
    if row.get("log") == "at once":
        row = {"links": "secret", **row}
        if row.get("weights") == "of two":
            row = {"workers": "two", **row}
    if row.get("rpc") in NETWORKED and "tokens" not in row:
        row = {"tokens": "file", **row}
    return row


class SharedFiles(NamedTuple):
    """What all rows of a campaign share: certificates, tokens and secrets are made once."""

    directory: Path
    authorities: tuple[trustme.CA, trustme.CA]  # the second one's certificates come with the reload
    ca: Path  # both

    @classmethod
    def make(cls, directory: Path) -> SharedFiles:
        """Writes the authorities; each name of loopback is in the certificates that they sign."""
        authorities = trustme.CA(organization_name="first"), trustme.CA(organization_name="next")
        ca = directory / "ca.pem"
        ca.write_bytes(b"".join(authority.cert_pem.bytes() for authority in authorities))
        files = cls(directory, authorities, ca)
        files.write("client.pem", *_blobs(authorities[0].issue_cert(common_name=ADMIN_NAME)))
        server = authorities[0].issue_cert("127.0.0.1", "::1", "localhost")
        files.write("endpoint.pem", *_blobs(server))
        for number, authority in enumerate(authorities):
            issued = authority.issue_cert("127.0.0.1", "::1", "localhost")
            files.write(f"server-{number}.pem", *(pem.bytes() for pem in issued.cert_chain_pems))
            files.write(f"server-{number}.key", issued.private_key_pem.bytes())
        return files

    def write(self, name: str, *blobs: bytes) -> Path:
        """A file that nobody else may read."""
        return private(self.directory / name, b"".join(blobs))

    def client_context(self) -> ssl.SSLContext:
        """Whom the campaign believes, and who it is."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.directory / "client.pem")
        return context

    def endpoint_context(self) -> ssl.SSLContext:
        """What an endpoint of cutoffs shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "endpoint.pem")
        return context


def _blobs(issued: trustme.LeafCert) -> list[bytes]:
    return [issued.private_key_pem.bytes(), *(pem.bytes() for pem in issued.cert_chain_pems)]


def private(path: Path, content: bytes) -> Path:
    """Writes a file that nobody else may read."""
    path.write_bytes(content)
    path.chmod(0o600)
    return path


class LogServer(NatsCluster):
    """One nats-server, of a kind of access."""

    def __init__(self, directory: Path, kind: str, files: SharedFiles) -> None:
        directory.mkdir()
        self._kind, self._trust = kind, ssl.create_default_context(cafile=str(files.ca))
        extra, folder = "", files.directory
        if kind == "credentials":
            user, password = CREDENTIALS.split(":")
            extra = f'authorization {{ user: "{user}", password: "{password}" }}\n'
        if kind == "tls":
            extra = f'tls {{ cert_file: "{folder}/server-0.pem", key_file: "{folder}/server-0.key" }}\n'
        super().__init__(directory, 1, extra)
        self.credentials = CREDENTIALS if kind == "credentials" else ""

    @property
    def urls(self) -> list[str]:
        scheme = "tls" if self._kind == "tls" else "nats"
        return [f"{scheme}://127.0.0.1:{port}" for port in self.ports]

    def connect(
        self, purpose: str = "test", urls: list[str] | None = None, credentials: str | None = None
    ) -> Connection:
        """As the base class does, over TLS where the server asks for it."""
        endpoints = tuple(endpoint_of(url) for url in urls or self.urls)
        trust = self._trust if self._kind == "tls" else None
        access = Access(endpoints, trust, self.credentials if credentials is None else credentials)
        return Connection(access, purpose, REAL.randbits, MACHINE_CLOCKS.boot_ns)


class Endpoints(NamedTuple):
    """Where the daemon's calls go."""

    cutoffs: str  # scheme://host:port
    notices: str


# What a service manager and a careless parent do between fork and exec. The first word: which of descriptors 0 to 2
# are closed; the second: which descriptors are handed over.
LAUNCH: Final = """
import fcntl, os, sys
closed, handed, *command = sys.argv[1:]
high = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 100) for one in handed.split(",") if one]
for index, one in enumerate(high):
    os.dup2(one, 3 + index)
if high:
    os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(len(high))
os.closerange(3 + len(high), 1000)
for one in closed:
    os.close(int(one))
os.execv(command[0], command)
"""
LOCALES: Final = {
    "utf8": {"LC_ALL": "C.UTF-8"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "unset": {},
}


class Host(Daemon):
    """A daemon with the settings of a row."""

    def __init__(
        self, row: Row, name: str, directory: Path, files: SharedFiles, server: LogServer | None, endpoints: Endpoints
    ) -> None:
        """`name`: of this host among those that share a log. `directory`: exists. `server`: of the log."""
        self.row, self.name, self.files = row, name, files
        self.place = directory
        for part in {"plain": (), "odd": (ODD,), "long": LONG}[row["place"]]:
            self.place /= part
        self.place.mkdir(parents=True, exist_ok=True)
        super().__init__(self.place)
        self.log = directory / "daemon.log"
        self.addresses = {door: self._address(row[door]) for door in WIDE_DOORS}
        self.unix = self.place / "rpc.sock" if row["unix"] == "beside" else None
        self.settings = self._settings(server, endpoints)
        self.classes = self._classes(endpoints)
        self.config = self.place / "config.toml"
        self._write_configuration()
        self._handed: list[tuple[str, socket.socket]] = []
        self.environment = LOCALES[row["locale"]] | self._variables()
        self._told: socket.socket | None = None
        self.is_ready, self.status = False, ""  # as the manager has been told since the last start

    # -- the configuration --------------------------------------------------------------------------------------------

    @staticmethod
    def _address(level: str) -> str:
        hosts = {"v4": "127.0.0.1", "v6": "[::1]", "name": "localhost", "wide": "0.0.0.0", "wide6": "[::]", "none": ""}
        return f"{hosts[level]}:{free_port()}" if hosts[level] else ""

    def _settings(self, server: LogServer | None, endpoints: Endpoints) -> dict[str, Any]:
        row, folder = self.row, self.place
        workers = 2 if row["workers"] == "two" else 1
        segment_bytes = {"large": 1 << 22, "small": 1 << 16}[row["segments"]]
        keys: dict[str, Any] = {
            "daemon.data_dir": "data" if row["configured"] == "folder" else str(folder / "data"),
            "shards.workers": workers,
            "shards.weights": {"even": "", "uneven": "1=3", "of two": "2=3"}[row["weights"]],
            "shards.bucket_count": {"many": 64, "one": 1}[row["buckets"]],
            **{f"{door}.listen": address for door, address in self.addresses.items()},
            "rpc.direct": row["direct"] == "yes",
            "journal.sync": row["sync"],
            "journal.segment_bytes": segment_bytes,
            "journal.snapshot_bytes": {"seldom": 1 << 28, "often": 1 << 16}[row["snapshots"]],
            "cutoff.url": self._url(endpoints.cutoffs, "/off"),
            "cutoff.restore_url": self._url(endpoints.cutoffs, "/on") if row["restore"] == "set" else "",
            "cutoff.method": row["method"],
            "cutoff.concurrency": {"many": 64, "one": 1}[row["calls"]],
            "cutoff.warm_connections": {"many": 8, "one": 0}[row["calls"]],
            "cutoff.recheck_s": {"never": 0.0, "soon": 0.3}[row["recheck"]],
            "cutoff.hold_above": {"never": -1, "any": 0}[row["hold"]],
            "cutoff.after_exhaustion": row["arrears"],
            "notify.url": self._notify(endpoints),
            "ledger.rate_lease_s": {"none": 0.0, "hour": 3600.0}[row["lease"]],
            "history.keep_days": {"kept": 0, "a day": 1}[row["history"]],
            "log.level": row["level"],
            "log.format": row["format"],
            "log.user_ids": row["users"],
        }
        if self.unix is not None:
            keys["rpc.unix_socket"] = "rpc.sock" if row["configured"] == "folder" else str(self.unix)
        if row["limits"] == "low":
            keys |= {
                "rpc.connections_max": LOW_CONNECTIONS,
                "rpc.connections_per_origin_max": LOW_CONNECTIONS // 2,
                "rpc.in_flight_max": 4096,
                "rpc.requests_per_s_max": 1000,
                "ledger.request_ids_per_bucket": 200,
            }
        return keys | self._files() | ({} if row["log"] == "files" else self._cluster(server, workers))

    def _url(self, origin: str, path: str) -> str:
        if self.row["place of the user"] == "named":
            return f"{origin}{path}/of/{{user_id}}?zone=3&user_id={{user_id}}"
        return f"{origin}{path}"

    def _notify(self, endpoints: Endpoints) -> str:
        origins = {"none": "", "beside": endpoints.cutoffs, "elsewhere": endpoints.notices}
        origin = origins[self.row["notices"]]
        return f"{origin}/told?key=1" if origin else ""

    def _files(self) -> dict[str, Any]:
        """Files of this host that a reload may find changed."""
        keys: dict[str, Any] = {}
        if self.row["tokens"] == "file":
            keys["rpc.tokens_file"] = str(self.install_tokens())
        if self.row["tls"] != "none":
            self.install_certificate(0)
            keys["rpc.tls_cert"], keys["rpc.tls_key"] = str(self.place / "door.pem"), str(self.place / "door.key")
        if self.row["tls"] == "clients":
            keys["rpc.tls_client_ca"] = str(self.files.ca)
        if self.row["secrets"] != "none":
            secrets_held = [FIRST_SECRET] if self.row["secrets"] == "one" else [NEXT_SECRET, FIRST_SECRET]
            keys["cutoff.secret_file"] = str(self.install_secrets(*secrets_held))
        return keys

    def install_tokens(self, *late_tokens: str) -> Path:
        """Writes the tokens file, with more tokens that may do everything."""
        lines = []
        for number, token in enumerate((ADMIN_TOKEN, *late_tokens)):
            digest, once = hashlib.sha256(token.encode()).hexdigest(), hashlib.sha1(token.encode()).digest()
            lines.append(f"{ADMIN_NAME}{number or ''}:admin:{digest}:{hashlib.sha1(once).hexdigest()}\n")
        return private(self.place / "tokens", "".join(lines).encode())

    def install_certificate(self, number: int) -> None:
        """Has the doors show a certificate of that authority, from the next reload on."""
        for suffix in ("pem", "key"):
            private(self.place / f"door.{suffix}", (self.files.directory / f"server-{number}.{suffix}").read_bytes())

    def install_secrets(self, *secrets: str) -> Path:
        """Writes the secrets file."""
        return private(self.place / "secrets", "".join(f"{secret}\n" for secret in secrets).encode())

    def _cluster(self, server: LogServer | None, shards: int) -> dict[str, Any]:
        assert server is not None
        row, folder, files = self.row, self.place, self.files.directory
        keys: dict[str, Any] = {
            "journal.kind": "jetstream",
            "cluster.servers": server.urls,
            "cluster.node": self.name,
            "cluster.shards": shards,
            "cluster.replicas": 1,
        }
        if row["servers"] == "credentials":
            keys["cluster.credentials_file"] = str(private(folder / "credentials", CREDENTIALS.encode()))
        if row["servers"] == "tls" or row["links"] == "tls":
            keys["cluster.tls_ca"] = str(self.files.ca)
        if row["log"] == "at once":
            keys["cluster.listen"] = "127.0.0.1:0"
        if row["links"] == "secret":
            keys["cluster.secret_file"] = str(private(folder / "links", b"of the links\n"))
        if row["links"] == "tls":
            keys["cluster.tls_cert"], keys["cluster.tls_key"] = f"{files}/server-0.pem", f"{files}/server-0.key"
        if row["advertise"] == "given":
            _, _, port = (self.addresses["rpc"] or "x:3311").rpartition(":")
            keys["cluster.advertise"] = f"{'[::1]' if row['rpc'] in ('v6', 'wide6') else 'localhost'}:{port}"
        return keys

    def _classes(self, endpoints: Endpoints) -> dict[str, dict[str, Any]]:
        grace_s = GRACE_NS / 10**9
        if self.row["class"] == "grace":
            return {"gold": {"grace_s": grace_s}}
        if self.row["class"] == "own":
            urls = {"url": f"{endpoints.cutoffs}/gold/off", "restore_url": f"{endpoints.cutoffs}/gold/on"}
            return {"gold": {"grace_s": grace_s, "after_exhaustion": "accrue", **urls}}
        return {}

    def _write_configuration(self) -> None:
        tables: dict[str, list[str]] = {}
        if self.row["configured"] != "environment":
            for path, value in self.settings.items():
                section, key = path.split(".")
                tables.setdefault(section, []).append(f"{key} = {_toml(value)}")
        for name, table in self.classes.items():
            tables[f"cutoff.class.{name}"] = [f"{key} = {_toml(value)}" for key, value in table.items()]
        text = "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in tables.items())
        self.config.write_text(text, encoding="utf-8")

    def _variables(self) -> dict[str, str]:
        """The environment of the daemon and of commands for it."""
        variables = {"SSL_CERT_FILE": str(self.files.ca)} if self.row["endpoint"] == "https" else {}
        if self.row["configured"] == "environment":
            for path, value in self.settings.items():
                text = " ".join(value) if isinstance(value, list) else _toml(value)
                variables["BILLING_" + path.upper().replace(".", "__")] = text if _is_bare(value) else str(value)
        return variables

    # -- the process --------------------------------------------------------------------------------------------------

    def command(self) -> list[str]:
        isolated = ["-I"] if self.row["isolated"] == "yes" else []
        options = [] if self.row["configured"] == "folder" else ["--config", str(self.config)]
        command = [sys.executable, *isolated, "-m", "billing", "serve", *options]
        closed = "012" if self.row["descriptors"] == "closed" else ""
        handed = self.row["sockets"] != "own"
        if not closed and not handed:
            return command
        descriptors = ",".join(str(handed_socket.fileno()) for _, handed_socket in self._handed)
        return [sys.executable, "-I", "-S", "-c", LAUNCH, closed, descriptors, *command]

    def launch(self, **environment: str) -> subprocess.Popen[bytes]:
        """Starts it as its parent does, and waits for nothing."""
        self._open_handed()
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("LC_", "LANG"))}
        if self.row["sockets"] == "named":
            environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in self._handed)
        environ = inherited | self.environment | self._notify_socket() | environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stderr=log,
                stdout=log,
                env=environ,
                cwd=self.place if self.row["configured"] == "folder" else None,
                pass_fds=[handed_socket.fileno() for _, handed_socket in self._handed],
            )
        return self.process

    def _open_handed(self) -> None:
        """The sockets of a service manager, which stay open while the daemon is down."""
        if self.row["sockets"] == "own" or self._handed:
            return
        for door, address in self.addresses.items():
            if address:
                host, _, port = address.rpartition(":")
                self._handed.append((door, REAL.bind(host.strip("[]"), int(port), 128)))
        if self.unix is not None:
            unix_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            unix_socket.bind(str(self.unix))
            unix_socket.listen()
            self._handed.append(("unix", unix_socket))

    def _notify_socket(self) -> dict[str, str]:
        """Where it tells the service manager; a new place each time."""
        self._close_told()
        self.is_ready, self.status = self.row["manager"] == "none", ""
        if self.row["manager"] == "none":
            return {}
        self._told = notify_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify_socket.setblocking(False)
        name = f"pairs-{os.getpid()}-{time.monotonic_ns()}"
        if self.row["manager"] == "abstract":
            notify_socket.bind(f"\0{name}")
            return {"NOTIFY_SOCKET": f"@{name}"}
        notify_socket.bind(f"/tmp/{name}")
        return {"NOTIFY_SOCKET": f"/tmp/{name}"}

    def _close_told(self) -> None:
        if self._told is not None:
            path = self._told.getsockname()
            self._told.close()
            self._told = None
            if isinstance(path, str) and path.startswith("/"):
                Path(path).unlink(missing_ok=True)

    def new_messages(self) -> list[dict[str, str]]:
        """What it has told the service manager since the last look."""
        messages: list[dict[str, str]] = []
        if self._told is not None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    lines = self._told.recv(65_536).decode().splitlines()
                    messages.append(dict(line.split("=", 1) for line in lines))
        for message in messages:
            self.is_ready, self.status = self.is_ready or "READY" in message, message.get("STATUS", self.status)
        return messages

    def reload(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGHUP)

    def close(self) -> None:
        """Ends whatever is left of it."""
        self.kill_all()
        self._close_told()
        for _, handed_socket in self._handed:
            handed_socket.close()

    def log_ends(self) -> str:
        """The end of its log; empty where it had nowhere to write."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""


def _is_bare(value: object) -> bool:
    return isinstance(value, bool | list)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | list) else str(value)
