"""One blocking connection to whichever of the log's servers answers, and requests over it.

A server that refuses this client is left for the next one, too. Where none lets it in, the credentials are read again,
so that they can be changed while the daemon runs, and all are asked once more.

One thread at a time uses it and is blocked by it: the thread of a serial executor. Every request has a reply subject of
its own, so an answer that comes late, or twice, is ignored. A server that does not answer within the deadline is left
for the next one. A request that was sent over a connection that died is in doubt (`NoAnswer`); one that could not be
sent is not (`Unreachable`).

Deadlines are short, of one or two seconds: after that, another server is asked. Where the resolver is silent, a server
is connected to at the addresses that its name had before.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shards import exits
from shards.journal import Unavailable, Unfit
from shards.journal.jetstream import codec
from shards.system.names import Names

CONNECT_TIMEOUT_S = 1.0
RESOLVER_S = 0.2  # for a name whose addresses are known
ANSWER_TIMEOUT_S = 2.0
GATHER_QUIET_S = 0.2
RECEIVE_BYTES = 256 * 1024
SUBSCRIPTION = 1
TIMEVAL = struct.Struct("@ll")  # seconds, microseconds


class Unreachable(Exception):
    """No server could be asked: nothing was sent."""


class NoAnswer(Exception):
    """The request was sent, and its outcome is not known."""


class Denied(Unavailable):
    """A server answers and refuses this client: its credentials, its permissions or its encryption are not those that
    the server demands. A start and a command end with it. A daemon that serves tries again: credentials are changed,
    and servers' mistakes are mended, while it runs.
    """

    ending = exits.CONFIG


class Endpoint(NamedTuple):
    """One server, as `nats://host:port` or `tls://host:port` names it."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{self.host}:{self.port}"


class Access(NamedTuple):
    """The servers, and the credentials to present to them."""

    endpoints: tuple[Endpoint, ...]
    tls: ssl.SSLContext | None
    credentials: str  # "user:password", a token, or "" for none


def endpoint_of(url: str) -> Endpoint:
    """Parses the URL of a server. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("nats", "tls") or not parts.hostname or parts.path not in ("", "/") or parts.username:
        raise ValueError(f"expected nats://host:port or tls://host:port, got {url}")
    return Endpoint(parts.hostname, parts.port or 4222, parts.scheme == "tls")


class Connection:
    """Connects at the first request, and anew after each loss; see the module."""

    def __init__(
        self,
        access: Access,
        name: str,
        randbits: Callable[[int], int],
        boot_ns: Callable[[], int],
        read_again: Callable[[], Access] | None = None,
        names: Names | None = None,
    ) -> None:
        """`name`: shown in the servers' lists of connections. `boot_ns`: a clock that never goes back, for
        deadlines. `read_again`: returns the access to the same servers as it is by now; may raise OSError, ValueError
        and Unfit, after which the former one is tried. `names`: the addresses of the servers, if others use them, too.
        """
        self._access = access
        self._read_again = read_again
        self._name = name
        self._names = names or Names()
        self._boot_ns = boot_ns
        self._never = threading.Event()
        self._inbox = f"_INBOX.{randbits(96):024x}"
        self._next = randbits(16) % len(access.endpoints)
        self._number = 0
        self._socket: socket.socket | None = None
        self._timeout_s = 0.0  # of the socket; 0: none was set
        self._decoder = codec.Decoder()
        self._events: list[codec.Event] = []
        self.info: dict[str, Any] = {}  # the description of the server that it is connected to
        self.server = ""  # the URL of that server

    def dial(self, endpoint: Endpoint) -> socket.socket:
        """Returns a connection to this server on which nothing was sent yet. Raises OSError."""
        failure = OSError(f"{endpoint.host} has no address")
        addresses = self._names.addresses(endpoint.host, endpoint.port, RESOLVER_S, CONNECT_TIMEOUT_S)
        for family, kind, protocol, _, address in addresses:
            connection = None
            try:
                connection = socket.socket(family, kind, protocol)
                connection.settimeout(CONNECT_TIMEOUT_S)
                connection.connect(address)  # all of it: of a link-local one, the zone stands behind the port
                return connection
            except OSError as error:
                failure = error
                if connection is not None:
                    connection.close()
        raise failure

    def pause(self, seconds: float) -> None:
        """Waits before a request is repeated."""
        self._never.wait(seconds)

    @property
    def servers(self) -> int:
        """The number of servers that can be asked, one after the other."""
        return len(self._access.endpoints)

    def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> codec.Message:
        """Sends a request and returns the first answer. Raises Unreachable, NoAnswer, Denied."""
        deadline_ns = self._boot_ns() + int(timeout_s * 1e9)
        token = self._send(subject, payload, headers or {})
        return self._await(token, deadline_ns)

    def collect(self, subject: str, payload: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> Iterator[codec.Message]:
        """Sends a request and yields all answers; the last one has a status. `timeout_s`: for each answer. Raises what
        `request` raises.
        """
        token = self._send(subject, payload, {})
        while True:
            message = self._await(token, self._boot_ns() + int(timeout_s * 1e9))
            yield message
            if message.status:
                return

    def gather(self, subject: str, payload: bytes, enough: int) -> list[codec.Message]:
        """Sends a request that several servers answer, and returns the answers.

        It stops when no answer has come for GATHER_QUIET_S and at least `enough` have, at the deadline, or at an answer
        with a status (nobody answers). Raises Unreachable, NoAnswer where the connection is lost, Denied.
        """
        token = self._send(subject, payload, {})
        answers: list[codec.Message] = []
        until_ns = self._boot_ns() + int(ANSWER_TIMEOUT_S * 1e9)
        while True:
            quiet_ns = self._boot_ns() + int(GATHER_QUIET_S * 1e9)
            try:
                message = self._answer(token, min(quiet_ns, until_ns) if len(answers) >= enough else until_ns)
            except TimeoutError:
                return answers
            except (OSError, codec.ProtocolError) as error:
                self.leave()
                raise NoAnswer(f"{self.server} did not answer: {error}") from error
            if message.status:
                return answers
            answers.append(message)

    def look_at_each(self) -> Iterator[tuple[Endpoint, dict[str, Any] | None]]:
        """Yields each server with its description of itself, or with None where it cannot be reached.
        Raises Denied.
        """
        for number, endpoint in enumerate(self._access.endpoints):
            self.close()
            self._next = number
            try:
                self._enter(endpoint)
            except (OSError, codec.ProtocolError):
                yield endpoint, None
            else:
                yield endpoint, self.info
        self.close()

    def close(self) -> None:
        """Closes the connection; the next request connects anew."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None

    def leave(self) -> None:
        """Closes the connection; the next request goes to the next server that can be reached."""
        self.close()
        self._next = (self._next + 1) % len(self._access.endpoints)

    def _send(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> str:
        self._connect()
        assert self._socket is not None
        self._number += 1
        token = f"{self._inbox}.{self._number}"
        try:
            self._send_all(codec.publish(subject, token, payload, headers))
        except OSError as error:
            self.leave()
            raise NoAnswer(f"{self.server} went away: {error}") from error
        return token

    def _send_all(self, data: bytes) -> None:
        """Sends this whole within `ANSWER_TIMEOUT_S`, else raises OSError: the timeout of the socket is one of each
        call, and a server that takes some bytes at a time would never let it pass.
        """
        assert self._socket is not None
        self._wait_at_most(ANSWER_TIMEOUT_S)
        sent = self._socket.send(data)
        if sent == len(data):
            return
        deadline_ns = self._boot_ns() + int(ANSWER_TIMEOUT_S * 1e9)
        rest = memoryview(data)[sent:]
        while rest:
            left_s = (deadline_ns - self._boot_ns()) / 1e9
            if left_s <= 0:
                raise TimeoutError("it does not read what it is sent")
            self._wait_at_most(left_s)
            with suppress(TimeoutError, BlockingIOError):
                rest = rest[self._socket.send(rest) :]

    def _await(self, token: str, deadline_ns: int) -> codec.Message:
        try:
            return self._answer(token, deadline_ns)
        except (OSError, codec.ProtocolError) as error:
            self.leave()
            raise NoAnswer(f"{self.server} did not answer: {error}") from error

    def _answer(self, token: str, deadline_ns: int) -> codec.Message:
        """Returns the next answer to one request. Raises OSError (TimeoutError at the deadline),
        ProtocolError, Denied.
        """
        while True:
            event = self._event(deadline_ns)
            if isinstance(event, codec.Message) and event.subject == token:
                return event
            self._heed(event)

    def _heed(self, event: codec.Event) -> None:
        """Handles an event that is no answer. Raises ConnectionError where the server reports an error, and Denied
        where the error is that this user may not publish or subscribe.
        """
        if isinstance(event, codec.Ping):
            assert self._socket is not None
            self._socket.sendall(codec.PONG)
        elif isinstance(event, codec.Info):
            self.info = event.fields
        elif isinstance(event, codec.Failure):
            if "permissions violation" in event.text.lower():
                raise Denied(f"{self.server or 'a server'} does not allow it: {event.text}")
            raise ConnectionError(event.text)

    def _event(self, deadline_ns: int) -> codec.Event:
        """Returns the next event. Raises OSError (TimeoutError at the deadline), ProtocolError."""
        assert self._socket is not None
        while not self._events:
            left_s = (deadline_ns - self._boot_ns()) / 1e9
            if left_s <= 0:
                raise TimeoutError("no answer in time")
            self._wait_at_most(left_s)
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except (TimeoutError, BlockingIOError):
                continue
            if not data:
                raise ConnectionError("it has hung up")
            self._events = self._decoder.feed(data)
        return self._events.pop(0)

    def _wait_at_most(self, left_s: float) -> None:
        """Sets the socket's timeout, so that its next call ends by itself within this time, and not before half of it.

        Each record is one exchange on a thread that slept in between, so system calls are most of its cost. A timeout
        of the kernel (SO_RCVTIMEO, SO_SNDTIMEO) saves a poll before each call, and it is set only where the present one
        does not do. Over TLS the kernel's timeouts would make `ssl` repeat its calls for ever: there, Python's timeout
        is set.
        """
        if left_s / 2 <= self._timeout_s <= left_s:
            return
        assert self._socket is not None
        self._timeout_s = left_s * 3 / 4
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(self._timeout_s)
            return
        seconds, microseconds = divmod(max(int(self._timeout_s * 1e6), 1), 1_000_000)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, TIMEVAL.pack(seconds, microseconds))

    # -- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._socket is not None:
            return
        try:
            self._enter_any()
        except Denied:
            if self._read_again is None:
                raise
            with suppress(OSError, ValueError, Unfit):
                self._access = self._read_again()
            self._enter_any()

    def _enter_any(self) -> None:
        """Connects to the first server that lets this client in. Raises Denied where one refuses it and none lets it
        in, else Unreachable.
        """
        reasons = []
        denied: Denied | None = None
        for _ in self._access.endpoints:
            endpoint = self._access.endpoints[self._next]
            try:
                self._enter(endpoint)
            except (OSError, codec.ProtocolError) as error:
                reasons.append(f"{endpoint}: {error}")
                self.leave()
            except Denied as error:
                denied = error
                self.leave()
            else:
                self.server = str(endpoint)
                return
        if denied is not None:
            raise denied
        raise Unreachable(f"no server of the log can be reached: {'; '.join(reasons)}")

    def _enter(self, endpoint: Endpoint) -> None:
        """Connects to one server and logs in. Raises OSError, ProtocolError, Denied."""
        deadline_ns = self._boot_ns() + int((CONNECT_TIMEOUT_S + ANSWER_TIMEOUT_S) * 1e9)
        self._socket = self.dial(endpoint)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        self._timeout_s = 0.0
        self._decoder, self._events = codec.Decoder(), []
        info = self._event(deadline_ns)
        if not isinstance(info, codec.Info):
            raise codec.ProtocolError("it does not begin with INFO")
        self.info = info.fields
        if self.info.get("tls_required") and not endpoint.tls:
            raise Denied(f"{endpoint} asks for TLS: name it as tls://{endpoint.host}:{endpoint.port}")
        if endpoint.tls:
            if not (self.info.get("tls_required") or self.info.get("tls_available")):
                raise Denied(f"{endpoint} does not speak TLS")
            context = self._access.tls or ssl.create_default_context()
            try:
                self._socket.settimeout(CONNECT_TIMEOUT_S)
                self._socket = context.wrap_socket(self._socket, server_hostname=endpoint.host)
                self._timeout_s = CONNECT_TIMEOUT_S
            except ssl.SSLCertVerificationError as error:
                raise Denied(f"{endpoint} is not trusted (cluster.tls_ca): {error.verify_message}") from error
        hello = codec.connect(self._hello()) + codec.subscribe(f"{self._inbox}.*", SUBSCRIPTION) + codec.PING
        self._socket.sendall(hello)
        while not isinstance(event := self._event(deadline_ns), codec.Pong):
            if isinstance(event, codec.Failure) and "authorization" in event.text.lower():
                raise Denied(f"{endpoint} refuses the credentials: {event.text}")
            self._heed(event)

    def _hello(self) -> dict[str, object]:
        fields: dict[str, object] = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "echo": False,
            "lang": "python-billing",
            "version": "1",
            "protocol": 1,
            "name": self._name,
        }
        user, colon, password = self._access.credentials.partition(":")
        if colon:
            fields |= {"user": user, "pass": password}
        elif user:
            fields["auth_token"] = user
        return fields
