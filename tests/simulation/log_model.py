"""The servers of the log, modelled: what three nats-servers with JetStream say to the daemon's own client.

The daemon's journal, map and connection (`shards.journal.jetstream`) are the real ones: `SimConnection` replaces how
they dial and how they let time pass, and `LogSocket` what they send and receive over. Behind that is one log of streams
that is never in two minds, and everything that can happen on the way to it and back, drawn from the seed:

- a request, or its answer, is lost, comes twice, or comes seconds later (also behind what the client asked elsewhere
  meanwhile); an answer is slow
- a server is down or stands still; for a while nobody leads, or another publish is being settled (10164)
- a host is cut off, in both directions or in one
- a replica that answers a run is behind
- a stream forgets its end (`forget`), which must be refused as damage wherever the end was seen.
"""

from __future__ import annotations

import base64
import random
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from shards.journal import Backend
from shards.journal.jetstream.backend import JetStreamBackend
from shards.journal.jetstream.connection import CONNECT_TIMEOUT_S, TIMEVAL, Connection, Endpoint
from shards.journal.jetstream.guard import Shape, names, wanted
from shards.system.host import Host
from tests.simulation.fibers import BlockingLoop, Fiber, pause, running, waken
from tests.simulation.loop import SECOND_NS, Kernel, SimLoop

KIND, KIND_MODULE = "simulated", "tests.simulation.log_model"
SERVERS = 3
FIRST_PORT = 4222
LATE_NS = 4 * SECOND_NS  # so late a request may come that is late
BEHIND_NS = 300_000_000  # so much a replica may be behind

WORLDS: dict[int, LogServers] = {}  # by the number in the settings of a backend


class StoredMessage(NamedTuple):
    """One message of a stream."""

    subject: str
    payload: bytes
    at_ns: int  # true time


class SimStream:
    """One stream."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.messages: dict[int, StoredMessage] = {}
        self.last = 0

    def state(self) -> dict[str, Any]:
        first = next(iter(self.messages), self.last + 1)
        stored = sum(len(kept.payload) for kept in self.messages.values())
        return {"messages": len(self.messages), "first_seq": first, "last_seq": self.last, "bytes": stored}


class NetworkFaults:
    """What goes wrong on the way, each with its share of the publishes; all 0 is a good network."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}  # "lost" | "lost_ack" | "doubled" | "doubled_ack" | "late" | "not_now"
        self.is_slow = False
        self.cut: set[tuple[str, str]] = set()  # (node, "to" or "from" the log)
        self.down: set[int] = set()  # servers
        self.leaderless_until_ns = 0
        self.met: dict[str, int] = {}


class LogServers:
    """The servers, and what they keep."""

    def __init__(self, kernel: Kernel, rng: random.Random, shape: Shape, identity: str) -> None:
        self.kernel = kernel
        self.rng = rng
        self.loop = SimLoop(kernel, "log")  # type: ignore[abstract]  # of asyncio's loop what we use
        self.trouble = NetworkFaults()
        self.streams = {name: SimStream(wanted(name, shape, identity)) for name in names(shape.shards)}
        self.loops: dict[int, BlockingLoop] = {}  # of processes, by pid
        self.on_stored: Callable[[str, int, str, bytes], None] = lambda stream, sequence, subject, payload: None
        self._links: list[Link] = []
        self._subjects = {subject: name for name, stream in self.streams.items() for subject in _subjects(stream)}

    # -- the network ------------------------------------------------------------------------------------------------

    def latency_ns(self) -> int:
        """One way."""
        if self.trouble.is_slow and self.rng.random() < 0.1:
            return self.rng.randrange(60_000_000)
        return 50_000 + self.rng.randrange(200_000)

    def meets(self, fault: str) -> bool:
        """Whether this goes wrong now."""
        share = self.trouble.shares.get(fault, 0.0)
        if not share or self.rng.random() >= share:
            return False
        self.trouble.met[fault] = self.trouble.met.get(fault, 0) + 1
        return True

    def dial(self, node: str, loop: BlockingLoop, port: int) -> LogSocket:
        """A connection to a server. Raises OSError."""
        trouble, server = self.trouble, port - FIRST_PORT
        if (node, "to") in trouble.cut or (node, "from") in trouble.cut:
            pause(CONNECT_TIMEOUT_S)
            raise TimeoutError("timed out")
        pause(2 * self.latency_ns() / 1e9)
        if server in trouble.down:
            raise ConnectionRefusedError(f"nobody listens at {port}")
        log_socket = LogSocket(loop)
        link = log_socket.link = Link(self, log_socket, node, server)
        self._links = [link for link in self._links if link.is_open]
        self._links.append(link)
        link.greet()
        return log_socket

    def stop(self, server: int) -> None:
        """The server ends: its connections do as well."""
        self.trouble.down.add(server)
        for link in self._links:
            if link.server == server:
                link.end()

    def is_led(self) -> bool:
        """Whether anybody takes messages: most servers are there and have agreed."""
        trouble = self.trouble
        return self.kernel.now_ns >= trouble.leaderless_until_ns and 2 * len(trouble.down) < SERVERS

    # -- what is asked ----------------------------------------------------------------------------------------------

    def answer(self, link: Link, subject: str, reply: str, headers: dict[str, str], payload: bytes) -> None:
        """One message of a client."""
        if subject.startswith("$SYS."):
            self._report(link, subject, reply)
        elif not self.is_led():
            if self.rng.random() < 0.7:
                link.tell(reply, b"", 503)
        elif subject.startswith("$JS.API."):
            self._api(link, subject.removeprefix("$JS.API."), reply, payload)
        else:
            self._publish(link, subject, reply, headers, payload)

    def _report(self, link: Link, subject: str, reply: str) -> None:
        for server in range(SERVERS):
            named = {"name": f"n{server + 1}", "ver": "2.15.1"}
            if server in self.trouble.down:
                continue
            if subject == "$SYS.REQ.ACCOUNT.PING.CONNZ":
                link.tell(reply, _json({"server": named}))
            elif subject == "$SYS.REQ.SERVER.PING.JSZ":
                link.tell(reply, _json({"server": named, "data": {"config": {"sync_always": True}}}))
            else:
                link.tell(reply, _json({"data": {"user": "billing", "permissions": {}}}))
                return

    def _publish(self, link: Link, subject: str, reply: str, headers: dict[str, str], payload: bytes) -> None:
        name = self._subjects[subject]
        stream = self.streams[name]
        expected = headers.get("Nats-Expected-Last-Sequence")
        if self.meets("not_now"):
            link.tell(reply, _refusal(10164, "another publish is being settled"))
        elif expected is not None and int(expected) != stream.last:
            link.tell(reply, _refusal(10071, f"wrong last sequence: {stream.last}"))
        else:
            stream.last += 1
            stream.messages[stream.last] = StoredMessage(subject, payload, self.kernel.now_ns)
            self.on_stored(name, stream.last, subject, payload)
            if not self.meets("lost_ack"):
                for _ in range(1 + self.meets("doubled_ack")):
                    link.tell(reply, _json({"stream": name, "seq": stream.last}))

    def _api(self, link: Link, subject: str, reply: str, payload: bytes) -> None:
        verb, _, name = subject.rpartition(".")
        stream = self.streams[name]
        wish = msgspec.json.decode(payload) if payload else {}
        match verb:
            case "STREAM.INFO":
                fields = {"config": stream.config, "state": stream.state(), "cluster": {"leader": "n1", "replicas": []}}
                link.tell(reply, _json(fields))
            case "STREAM.MSG.GET":
                link.tell(reply, self._message(stream, wish))
            case "STREAM.PURGE":
                for sequence in [number for number in stream.messages if number < wish["seq"]]:
                    del stream.messages[sequence]
                link.tell(reply, _json({"success": True}))
            case "DIRECT.GET":
                self._run(link, stream, reply, wish)
            case _:
                raise AssertionError(f"the model knows no {verb}")

    def _message(self, stream: SimStream, wish: dict[str, Any]) -> bytes:
        sequence = wish.get("seq", 0)
        if "last_by_subj" in wish:
            sequences = (
                number
                for number in reversed(stream.messages)
                if stream.messages[number].subject == wish["last_by_subj"]
            )
            sequence = next(sequences, 0)
        message = stream.messages.get(sequence)
        if message is None:
            return _refusal(10037, "no message found")
        data = base64.b64encode(message.payload).decode()
        return _json({"message": {"seq": sequence, "subject": message.subject, "data": data}})

    def _run(self, link: Link, stream: SimStream, reply: str, wish: dict[str, Any]) -> None:
        newest_ns = self.kernel.now_ns - (self.rng.randrange(BEHIND_NS) if self.meets("behind") else 0)
        items = [item for item in stream.messages.items() if item[0] >= wish["seq"] and item[1].at_ns <= newest_ns]
        for sequence, message in items[: wish["batch"]]:
            link.tell(reply, message.payload, 0, {"Nats-Sequence": str(sequence), "Nats-Subject": message.subject})
        link.tell(reply, b"", 204 if items else 404)

    # -- damage -----------------------------------------------------------------------------------------------------

    def forget(self, name: str, before_ns: int) -> dict[int, StoredMessage]:
        """The stream loses what was stored behind this instant; what that was."""
        stream = self.streams[name]
        messages_lost = {
            sequence: message for sequence, message in stream.messages.items() if message.at_ns > before_ns
        }
        for sequence in messages_lost:
            del stream.messages[sequence]
        stream.last -= len(messages_lost)
        return messages_lost

    def restore(self, name: str, messages_lost: dict[int, StoredMessage]) -> None:
        """What was lost is found again."""
        stream = self.streams[name]
        assert stream.last + 1 == min(messages_lost), "something was stored in its place"
        stream.messages |= messages_lost
        stream.last = max(messages_lost)


def _subjects(stream: SimStream) -> list[str]:
    return ["M.decision", "M.state"] if stream.config["name"] == "M" else list(stream.config["subjects"])


def _json(fields: object) -> bytes:
    return msgspec.json.encode(fields)


def _refusal(code: int, text: str) -> bytes:
    return _json({"error": {"code": 400, "err_code": code, "description": text}})


class Link:
    """A client's connection, as the server has it."""

    def __init__(self, servers: LogServers, end: LogSocket, node: str, server: int) -> None:
        self.server = server
        self.is_open = True
        self._servers = servers
        self._end = end
        self._node = node
        self._buffer = b""
        self._broken: set[str] = set()  # directions in which something was lost: nothing comes behind it
        self._last_ns = {"to": 0, "from": 0}

    def greet(self) -> None:
        name = f"n{self.server + 1}"
        fields = {"server_name": name, "version": "2.15.1", "jetstream": True, "cluster": "sim", "headers": True}
        self._send(b"INFO " + _json(fields) + b"\r\n")

    def _arrives_in_ns(self, direction: str, more_ns: int = 0) -> int:
        """How long what is sent now takes; -1: it does not arrive."""
        servers = self._servers
        if (self._node, direction) in servers.trouble.cut:
            self._broken.add(direction)
        if direction in self._broken or not self.is_open:
            return -1
        now_ns = servers.kernel.now_ns
        arrives_ns = max(now_ns + servers.latency_ns() + more_ns, self._last_ns[direction] + 1)
        self._last_ns[direction] = arrives_ns
        return arrives_ns - now_ns

    def take(self, data: bytes) -> None:
        """The client has sent this."""
        servers = self._servers
        times = late_ns = 0
        if b"Nats-Expected" in data[:400] or data.startswith((b"PUB J", b"PUB M", b"PUB S")):
            if servers.meets("lost"):
                self._broken.add("to")
            times = servers.meets("doubled")
            late_ns = servers.rng.randrange(LATE_NS) if servers.meets("late") else 0
        for _ in range(1 + times):
            in_ns = self._arrives_in_ns("to", late_ns)
            if in_ns >= 0:
                servers.loop.call_in(in_ns, self._arrived, data)

    def _arrived(self, data: bytes) -> None:
        if self.server in self._servers.trouble.down:
            return
        self._buffer += data
        while self._take_command():
            continue

    def _take_command(self) -> bool:
        """Takes one command off the buffer, if it is whole."""
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        verb, *words = line.split(b" ") if not line.startswith(b"CONNECT") else [b"CONNECT"]
        if verb in (b"PUB", b"HPUB"):
            total = int(words[-1])
            if len(rest) < total + 2:
                return False
            body, self._buffer = rest[:total], rest[total + 2 :]
            subject, reply = words[0].decode(), words[1].decode()
            header_bytes = int(words[2]) if verb == b"HPUB" else 0
            lines = body[:header_bytes].decode().split("\r\n")[1:] if header_bytes else []
            headers = dict(line.split(": ", 1) for line in lines if line)
            self._servers.answer(self, subject, reply, headers, body[header_bytes:])
            return True
        self._buffer = rest
        if verb == b"PING":
            self._send(b"PONG\r\n")
        return True

    def tell(self, reply: str, payload: bytes, status: int = 0, headers: dict[str, str] | None = None) -> None:
        """An answer."""
        if not status and not headers:
            self._send(b"MSG %b 1 %d\r\n%b\r\n" % (reply.encode(), len(payload), payload))
            return
        block = f"NATS/1.0{f' {status} told' if status else ''}\r\n"
        block += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()) + "\r\n"
        head = b"HMSG %b 1 %d %d\r\n" % (reply.encode(), len(block), len(block) + len(payload))
        self._send(head + block.encode() + payload + b"\r\n")

    def _send(self, data: bytes) -> None:
        in_ns = self._arrives_in_ns("from")
        if in_ns >= 0:
            self._end.comes_in(in_ns, data)

    def end(self) -> None:
        """The server hangs up."""
        self._send(b"")
        self.is_open = False


class LogSocket:
    """A client's end of a connection: what `shards.journal.jetstream.connection` uses of a socket."""

    def __init__(self, loop: BlockingLoop) -> None:
        self.link: Link | None = None
        self._loop = loop
        self._buffer = b""
        self._is_ended = False
        self._timeout_ns = SECOND_NS
        self._waiting: Fiber | None = None

    def settimeout(self, seconds: float | None) -> None:
        """Its time-outs are those of `setsockopt`."""

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option == socket.SO_RCVTIMEO:
            seconds, microseconds = TIMEVAL.unpack(value)
            self._timeout_ns = seconds * SECOND_NS + microseconds * 1000

    def sendall(self, data: bytes) -> None:
        if self.link is None or self._is_ended:
            raise BrokenPipeError("it has hung up")
        self.link.take(data)

    def send(self, data: bytes) -> int:
        self.sendall(data)
        return len(data)

    def recv(self, count: int) -> bytes:
        if not self._buffer and not self._is_ended:
            fiber = self._waiting = running()
            timer = waken(fiber, self._timeout_ns, self._resume)
            fiber.wait()
            timer.cancel()
        if not self._buffer and not self._is_ended:
            raise BlockingIOError("nothing came in time")
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def comes_in(self, in_ns: int, data: bytes) -> None:
        """This arrives after so many nanoseconds; b"": the end."""
        handle = self._loop.call_in(in_ns, self._arrived, data)
        handle.wakes = True

    def _arrived(self, data: bytes) -> None:
        self._buffer += data
        self._is_ended |= not data
        self._resume()

    def _resume(self) -> None:
        fiber, self._waiting = self._waiting, None
        if fiber is not None:
            fiber.resume()

    def close(self) -> None:
        self._is_ended = True
        if self.link is not None:
            self.link.is_open = False


class SimConnection(Connection):
    """The real one, over the modelled network."""

    servers_of: LogServers
    loop: BlockingLoop
    node: str

    def dial(self, endpoint: Endpoint) -> Any:
        return self.servers_of.dial(self.node, self.loop, endpoint.port)

    def pause(self, seconds: float) -> None:
        pause(seconds)


class SimBackend(JetStreamBackend):
    """The real one, with such connections."""

    def __init__(self, settings: dict[str, Any], host: Host) -> None:
        super().__init__(settings, host)
        self._servers = WORLDS[settings["world"]]
        self._loop = self._servers.loops[host.pid()]

    def _connect(self, purpose: str) -> Connection:
        connection = SimConnection(self._access(), purpose, self._host.randbits, self._boot_ns)
        connection.servers_of, connection.loop, connection.node = self._servers, self._loop, self.node
        return connection


def backend(settings: dict[str, Any], host: Host) -> Backend:
    """As `shards.journal.backends` asks for it."""
    return SimBackend(settings, host)
