"""A journal's backend in the memory of another process: the seam proved by something that has no files at all.

`MemoryServer` is that process, or a thread of a test's; whoever dies on the other side of its socket loses nothing. It
fences by epochs, so a newer owner need not wait for an older one: it begins at the end of what the older one was
granted. Messages are MessagePack with a length before them, one request and one reply at a time:
`[name, argument, …]` → `["ok", result]` or `["fenced" | "full" | "unavailable" | "gap" | "overtaken", what]`.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import msgspec

from shards.journal import (
    Fenced,
    Full,
    Gap,
    JournalError,
    LastSign,
    Lost,
    Medium,
    Opened,
    Overtaken,
    Retained,
    Snapshot,
    Unavailable,
)
from shards.system.host import Host

GRANT_NS = 2_000_000_000
SLICE = 500  # batches a message
SNAPSHOTS_KEPT = 2

_LENGTH = struct.Struct("<I")


class Log:
    """What the server has of one shard."""

    def __init__(self) -> None:
        self.epoch = self.head = self.last_time_ns = self.until_ns = 0
        self.payloads: dict[int, bytes] = {}
        self.snapshots: dict[int, tuple[int, list[bytes]]] = {}  # position -> (head when it was saved, chunks)

    @property
    def stored_bytes(self) -> int:
        chunks = sum(len(chunk) for _, chunks_of_snapshot in self.snapshots.values() for chunk in chunks_of_snapshot)
        return sum(map(len, self.payloads.values())) + chunks

    @property
    def first(self) -> int:
        return next(iter(self.payloads), self.head + 1)


class Refused(Exception):
    """The request is refused: the kind of the refusal, and what it says."""


class Memory:
    """The logs of all shards, and the map's as shard 0."""

    def __init__(self) -> None:
        self.logs: dict[int, Log] = {}
        self.capacity_bytes = -1  # of each log; -1: without limit
        self.is_out_of_reach, self.beats_refused = False, 0
        self._turn = threading.Lock()

    def handle(self, request: list[Any]) -> list[Any]:
        name, shard, *arguments = request
        with self._turn:
            try:
                return ["ok", getattr(self, f"_{name}")(self.logs.setdefault(shard, Log()), *arguments)]
            except Refused as refused:
                return list(refused.args)

    def _open(self, log: Log) -> list[int]:
        log.epoch += 1
        return [log.epoch, log.head, log.last_time_ns, log.until_ns]

    def _own(self, log: Log, epoch: int) -> None:
        if epoch != log.epoch:
            raise Refused("fenced", f"epoch {log.epoch} has taken this shard")

    def _put(self, log: Log, added_bytes: int) -> None:
        if 0 <= self.capacity_bytes < log.stored_bytes + added_bytes:
            raise Refused("full", "the memory is full")

    def _append(self, log: Log, epoch: int, payload: bytes, now_ns: int, until_ns: int) -> list[int]:
        self._own(log, epoch)
        if self.is_out_of_reach:
            raise Refused("unavailable", "the memory cannot be reached")
        self._put(log, len(payload))
        log.head += 1
        log.payloads[log.head] = payload
        log.last_time_ns = max(log.last_time_ns, now_ns)
        log.until_ns = max(log.until_ns, until_ns)
        return [log.head, log.last_time_ns, log.until_ns]

    def _beat(self, log: Log, epoch: int, until_ns: int) -> int:
        self._own(log, epoch)
        if self.is_out_of_reach:
            self.beats_refused += 1
            raise Refused("unavailable", "the memory cannot be reached")
        log.until_ns = max(log.until_ns, until_ns)
        return log.until_ns

    def _seal(self, log: Log, epoch: int, until_ns: int) -> None:
        if epoch == log.epoch:
            log.until_ns = max(log.last_time_ns + 1, min(log.until_ns, until_ns))

    def _state(self, log: Log) -> list[int]:
        return [log.first, log.head, log.stored_bytes]

    def _read(self, log: Log, start: int, head: int) -> list[bytes]:
        if not log.first <= start <= log.head + 1 or start < 1:
            raise Refused("gap", f"position {start} is not in the log")
        return [log.payloads[position] for position in range(start, min(head, start + SLICE - 1) + 1)]

    def _save(self, log: Log, epoch: int, position: int, chunks: list[bytes]) -> None:
        self._own(log, epoch)
        self._put(log, sum(map(len, chunks)))
        log.snapshots[position] = (log.head, chunks)
        for old in sorted(log.snapshots)[:-SNAPSHOTS_KEPT]:
            del log.snapshots[old]

    def _snapshots(self, log: Log) -> list[list[int]]:
        return [[position, log.snapshots[position][0]] for position in sorted(log.snapshots)]

    def _chunks(self, log: Log, position: int) -> list[bytes]:
        if position not in log.snapshots:
            raise Refused("gap", f"there is no snapshot at {position}")
        return log.snapshots[position][1]

    def _trim(self, log: Log, epoch: int, position: int) -> None:
        self._own(log, epoch)
        limit = min(position, min(log.snapshots)) if len(log.snapshots) == SNAPSHOTS_KEPT else 0
        for old in [covered for covered in log.payloads if covered <= limit]:
            del log.payloads[old]

    def _decide(self, log: Log, version: int, payload: bytes) -> int:
        if version != log.head:
            raise Refused("overtaken", str(log.head))
        log.head += 1
        log.payloads[log.head] = payload
        return log.head

    def _compact(self, log: Log, version: int, payload: bytes) -> None:
        log.snapshots = {version: (log.head, [payload])}
        for old in [covered for covered in log.payloads if covered <= version]:
            del log.payloads[old]


class MemoryServer:
    """Serves a `Memory` on a unix socket until `close`."""

    def __init__(self, path: str) -> None:
        self.memory = memory = Memory()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                while (request := _receive(self.request)) is not None:
                    _send(self.request, memory.handle(request))

        self._server = socketserver.ThreadingUnixStreamServer(path, Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _send(connection: socket.socket, message: object) -> None:
    data = msgspec.msgpack.encode(message)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive(connection: socket.socket) -> Any:
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    data = _exactly(connection, _LENGTH.unpack(head)[0])
    return None if data is None else msgspec.msgpack.decode(data)


def _exactly(connection: socket.socket, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        try:
            part = connection.recv(length - len(data))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)


class Client:
    """One connection; any thread may ask."""

    def __init__(self, path: str) -> None:
        self._turn = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)

    def ask(self, *request: Any) -> Any:
        with self._turn:
            try:
                _send(self._connection, request)
                reply = _receive(self._connection)
            except OSError as error:
                raise Lost(f"the memory is out of reach: {error}") from error
        if reply is None:
            raise Lost("the memory has hung up")
        kind, what = reply
        if kind == "ok":
            return what
        if kind == "overtaken":
            raise Overtaken(int(what))
        raise {"fenced": Fenced, "full": Full, "unavailable": Unavailable, "gap": Gap}[kind](what)

    def close(self) -> None:
        self._connection.close()


class MemoryReader:
    """See `shards.journal.Reader`."""

    def __init__(self, client: Client, shard: int) -> None:
        self._client = client
        self._shard = shard

    @property
    def first(self) -> int:
        return int(self._client.ask("state", self._shard)[0])

    @property
    def head(self) -> int:
        return int(self._client.ask("state", self._shard)[1])

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        return self._replay(start, self.head, self._client.ask("read", self._shard, start, start - 1))

    def _replay(self, start: int, head: int, _: list[bytes]) -> Iterator[tuple[int, bytes]]:
        while start <= head:
            for payload in self._client.ask("read", self._shard, start, head):
                yield start, payload
                start += 1

    def snapshots(self) -> list[Retained]:
        rows = self._client.ask("snapshots", self._shard)
        return [Retained(position, 0, reached) for position, reached in rows]

    def chunks(self, position: int) -> Iterator[bytes]:
        yield from self._client.ask("chunks", self._shard, position)

    def close(self) -> None:
        self._client.close()


class MemoryJournal:
    """See `shards.journal.Journal`."""

    def __init__(self, path: str, now_ns: Callable[[], int]) -> None:
        self._path = path
        self._now_ns = now_ns
        self._client: Client | None = None
        self._ended: JournalError | None = JournalError("the journal is not open")
        self._shard = self._epoch = self._head = self._last_time_ns = self._granted_ns = 0
        self._no_room = ""

    head = property(lambda self: self._head)
    last_time_ns = property(lambda self: self._last_time_ns)
    granted_ns = property(lambda self: self._granted_ns)
    no_room = property(lambda self: self._no_room)
    medium = Medium("memory")
    first = property(lambda self: int(self._ask("state")[0]))
    stored_bytes = property(lambda self: int(self._ask("state")[2]))
    beat_s = GRANT_NS / 4e9
    warnings: list[str] = []  # noqa: RUF012

    def open(self, shard: int, owner: str) -> Opened:
        if len(owner.encode()) > 64:
            raise ValueError("the owner's name is longer than 64 bytes")
        self._client, self._shard, self._ended = Client(self._path), shard, None
        self._epoch, self._head, self._last_time_ns, began_ns = self._ask("open")
        self._granted_ns = began_ns
        return Opened(self._epoch, self._head, began_ns)

    def _ask(self, name: str, *arguments: Any) -> Any:
        if self._ended is not None:
            raise self._ended
        assert self._client is not None
        try:
            return self._client.ask(name, self._shard, *arguments)
        except (Fenced, Lost) as error:
            self._ended = error
            raise

    def append(self, payload: bytes, durable: bool = False) -> int:
        if not payload:
            raise ValueError("a payload has at least one byte")
        now_ns = self._now_ns()
        try:
            appended = self._ask("append", self._epoch, payload, now_ns, now_ns + GRANT_NS)
        except Full as full:
            self._no_room = full.message
            raise
        self._no_room = ""
        self._head, self._last_time_ns, self._granted_ns = appended
        return int(self._head)

    def idle_barrier(self) -> None:
        self._granted_ns = self._ask("beat", self._epoch, self._now_ns() + GRANT_NS)

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        self._ask("read", start, start - 1)
        head = self._head

        def batches(at: int) -> Iterator[tuple[int, bytes]]:
            while at <= head:
                for payload in self._ask("read", at, head):
                    yield at, payload
                    at += 1

        return batches(start)

    def save_snapshot(self, position: int, chunks: Iterable[bytes]) -> None:
        snapshots = self._ask("snapshots")
        if not (snapshots[-1][0] if snapshots else -1) <= position <= self._head:
            raise ValueError(f"position {position} does not lie between the last snapshot's and the head {self._head}")
        self._ask("save", self._epoch, position, list(chunks))

    def load_snapshot(self) -> Snapshot | None:
        snapshots = self._ask("snapshots")
        return Snapshot(snapshots[-1][0], iter(self._ask("chunks", snapshots[-1][0]))) if snapshots else None

    def trim(self, position: int) -> None:
        snapshots = self._ask("snapshots")
        if position > (snapshots[-1][0] if snapshots else -1):
            raise ValueError(f"position {position} lies beyond the newest snapshot")
        self._ask("trim", self._epoch, position)

    def close(self) -> None:
        if self._client is None:
            return
        if self._ended is None:
            self._ask("seal", self._epoch, self._now_ns() + 1)
            self._ended = JournalError("the journal was closed")
        self._client.close()


class MemoryMapLog:
    """See `shards.journal.MapLog`."""

    warnings: list[str] = []  # noqa: RUF012

    def __init__(self, path: str) -> None:
        self._path = path
        self._client: Client | None = None
        self.version = 0

    def _ask(self, name: str, *arguments: Any) -> Any:
        assert self._client is not None
        return self._client.ask(name, 0, *arguments)

    def is_newest(self) -> bool:
        return bool(self._ask("state")[1] == self.version)

    def load(self, owner: str) -> tuple[int, list[bytes]]:
        self._client = self._client or Client(self._path)
        snapshots = self._ask("snapshots")
        payloads = [chunk for position, _ in snapshots for chunk in self._ask("chunks", position)]
        _, self.version, _ = self._ask("state")
        start = snapshots[-1][0] + 1 if snapshots else 1
        while start <= self.version:
            rows = self._ask("read", start, self.version)
            payloads += rows
            start += len(rows)
        return self.version, payloads

    def follow(self, callback: Callable[[int, bytes], None]) -> None:
        """Nobody else decides in these tests."""

    def decide(self, version: int, payload: bytes) -> int:
        self.version = self._ask("decide", version, payload)
        return self.version

    def compact(self, version: int, payload: bytes) -> None:
        self._ask("compact", version, payload)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class MemoryBackend:
    """See `shards.journal.Backend`. Settings: `path`, of the server's socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    node, cluster, grant_ns = "", "", 0

    def signs(self) -> dict[int, LastSign]:
        return {}

    def settings_of_worker(self) -> dict[str, Any]:
        return {"kind": "memory", "path": self._path}

    def journal(self, shard: int, now_ns: Callable[[], int], line_ns: object = None) -> MemoryJournal:
        return MemoryJournal(self._path, now_ns)

    def map_log(self, now_ns: Callable[[], int]) -> MemoryMapLog:
        return MemoryMapLog(self._path)

    def reader(self, shard: int) -> MemoryReader:
        return MemoryReader(Client(self._path), shard)

    def holds(self, shard: int) -> bool:
        with closing(self.reader(shard)) as reader:
            return reader.head > 0

    def prepare(self) -> list[str]:
        return []


def backend(settings: dict[str, Any], host: Host) -> MemoryBackend:
    """As `shards.journal.backends` asks for it."""
    return MemoryBackend(settings["path"])
