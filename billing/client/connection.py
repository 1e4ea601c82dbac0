"""The client's side of a connection, and a link that opens a connection again after each loss.

`Connection` speaks MessagePack-RPC: requests out, each with a callback that is called exactly once; no task or future
per request. The requests of one turn of the loop leave in one write.

`Link` keeps one connection to one address: it connects, signs in, and after a loss connects again with growing pauses.
A client has one link and, where it routes by bucket (`routing`), one more per worker.

**Every request gets a reply.** When a connection is lost, every open request on it gets `Unavailable`: `applied` is
"unknown" for requests that were passed to the transport, "no" for all others. Neither class sends anything twice: the
caller decides that.

**A host that is gone without a word is left** after `GONE_S`, by the kernel's probes: no packet would tell otherwise
that it lost its power. Where a connection comes about and the sign-in is not answered, as while a daemon starts or a
worker hangs, the next attempt is made after `DIAL_S`; a first one at a single address waits. A connection on which
nothing is answered for `SILENT_S` after a call's time was over, a ping included, is left, too: others may serve at the
same address.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, NamedTuple, cast

import msgpack

from billing.client.errors import BillingError, FrameTooLarge, Unavailable, error_of
from billing.client.wire import DECODE_ERRORS, FRAME_BYTES_MAX, MSGID_MAX, REQUEST, RESPONSE, stage

OnReply = Callable[[BillingError | None, Any], None]

PENDING_MAX: Final = 65_536  # requests not answered; more are refused
REPLY_BYTES_MAX: Final = 256 * 1024 * 1024
BACKOFF_FIRST_S: Final = 0.02
BACKOFF_MAX_S: Final = 2.0
CLOSES: Final = "closes the connection without an answer"
LOST: Final = "the connection was lost"
NO_TLS: Final = "agrees on no TLS"
DIAL_S: Final = 5.0  # until the next address is tried, or this one again
SILENT_S: Final = 10.0  # longer than the daemon takes to say of a worker that it does not answer
GONE_S: Final = 20  # until a peer that acknowledges nothing is taken for gone: well within the time of a call


class Address(NamedTuple):
    """Where a daemon listens: a unix socket where `path` is set, else TCP."""

    host: str
    port: int
    path: str


def parse_address(text: str) -> Address:
    """Parses `host:port`, `[v6]:port` or `unix:/path`. Raises a ValueError that names these forms."""
    if text.startswith("unix:") and len(text) > 5:
        return Address("", 0, text[5:])
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65_535:
        raise ValueError(f'expected "host:port", "[v6 host]:port" or "unix:/path", got {text!r}')
    return Address(host, int(port), "")


def tls_context(ca: str | None = None, certificate: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """Returns a context of TLS 1.3 for a client: `ca` names the PEM file of the authorities to trust (None: the
    system's), `certificate` and `key` the files of the client's own certificate. Raises OSError (ssl.SSLError among
    them) for a missing or malformed file.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


class Connection(asyncio.Protocol):
    """One connection to a daemon."""

    gone_s: ClassVar[int] = GONE_S

    __slots__ = (
        "_fences",
        "_foreign",
        "_heard",
        "_loop",
        "_msgid",
        "_on_lost",
        "_pending",
        "_scheduled",
        "_server_error",
        "_staged",
        "_unpacker",
        "_unsent",
        "_watches",
        "sent",
        "transport",
    )

    def __init__(self, on_lost: Callable[["Connection"], None]) -> None:
        self.transport: asyncio.Transport | None = None  # None: not connected
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, OnReply] = {}
        self._staged = bytearray()
        self._unsent: list[int] = []  # msgids of what is staged
        self._scheduled = False
        self._msgid = 0
        self._server_error = ""  # an error of the server about the connection itself
        self._foreign = ""  # why the bytes that came are no reply
        self._fences: list[tuple[set[int], Callable[[], None]]] = []  # (unanswered msgids, called when none is left)
        self.sent = 0  # requests sent so far
        self._heard = 0  # reads so far
        self._watches = False  # whether the connection will be left unless something comes
        self._unpacker: Any = msgpack.Unpacker(
            raw=False, unicode_errors="surrogateescape", strict_map_key=False, max_buffer_size=REPLY_BYTES_MAX
        )

    @property
    def pending(self) -> int:
        """The number of requests that wait for their reply."""
        return len(self._pending)

    def send(self, method: str, params: object, on_reply: OnReply) -> None:
        """Sends a request, which leaves with `flush`, or at the end of this turn of the loop. `on_reply(error, result)`
        is called once, never from within this call. Raises TypeError, ValueError or OverflowError for what is no
        MessagePack.
        """
        pending = self._pending
        if self.transport is None or len(pending) >= PENDING_MAX:
            reason = "not connected" if self.transport is None else "too many requests are not answered yet"
            self._loop.call_soon(on_reply, Unavailable(reason), None)
            return
        msgid = self._msgid
        while msgid in pending:
            msgid = (msgid + 1) & MSGID_MAX
        if not stage((REQUEST, msgid, method, params), self._staged):
            self._loop.call_soon(on_reply, too_large(), None)
            return
        self._msgid = (msgid + 1) & MSGID_MAX
        pending[msgid] = on_reply
        self._unsent.append(msgid)
        self.sent += 1
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def flush(self) -> None:
        """Writes what is staged."""
        if self._staged and self.transport is not None:
            staged, self._staged = self._staged, bytearray()
            self._unsent.clear()
            self.transport.write(staged)

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def when_answered(self, function: Callable[[], None]) -> None:
        """Calls `function` once every request sent until now is answered, or the connection is lost."""
        self._fences.append((set(self._pending), function))

    def _check_fences(self) -> None:
        pending = self._pending
        for fence in self._fences[:]:
            fence[0].intersection_update(pending)
            if not fence[0]:
                self._fences.remove(fence)
                fence[1]()

    def watch(self) -> None:
        """Ends the connection where requests wait and nothing comes within `SILENT_S`, not even the answer to a ping:
        a worker that serves answers that at once, also while a long call keeps it, or its log is out of reach.
        """
        if self._pending and not self._watches:
            self._watches = True
            self.send("ping", [], _ignore)
            self._loop.call_later(SILENT_S, self._leave_silent, self._heard)

    def _leave_silent(self, heard: int) -> None:
        self._watches = False
        if self._pending and self._heard == heard:
            self.close()

    def close(self) -> None:
        """Ends the connection; unanswered requests get `Unavailable`."""
        if self.transport is not None:
            self.transport.abort()

    # -- the transport's side ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        pending = self._pending
        self._heard += 1
        try:
            self._unpacker.feed(data)
            for message in self._unpacker:
                if type(message) is not list or len(message) != 4 or message[0] != RESPONSE:
                    raise ValueError("not a response")
                _, msgid, error, result = message
                if msgid is None:
                    self._server_error = str(error_of(error))
                    continue
                on_reply = pending.pop(msgid, None)
                if on_reply is not None:
                    on_reply(None if error is None else error_of(error), result)
            if self._fences:
                self._check_fences()
        except DECODE_ERRORS as error:
            self._foreign = foreign_words(data, error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        why = self._foreign or self._server_error or exc
        reason = LOST + (f": {why}" if why else "")
        pending, self._pending = self._pending, {}
        foreign = self._foreign
        unsent = set(self._unsent)
        self._staged.clear()
        self._unsent.clear()
        self._on_lost(self)
        for msgid, on_reply in pending.items():
            applied = "no" if msgid in unsent else "unknown"
            on_reply(Unavailable(reason, applied=applied, details={"foreign": foreign} if foreign else None), None)
        self._check_fences()


def too_large() -> FrameTooLarge:
    """Returns the error for a request that is not sent, because it would end the connection of all others."""
    return FrameTooLarge(f"a request may have {FRAME_BYTES_MAX} bytes")


def _ignore(error: BillingError | None, result: Any) -> None:
    """Takes a reply that says no more than that the peer is there."""


def _probe(connection: socket.socket, gone_s: int) -> None:
    """Has the kernel end the connection where the peer is gone without a word for so long. A kernel that does not take
    an option that Python knows is no reason to have no connection.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = {
        "TCP_KEEPIDLE": gone_s // 2,
        "TCP_KEEPINTVL": gone_s // 4,
        "TCP_KEEPCNT": 2,
        "TCP_USER_TIMEOUT": gone_s * 1000,  # where something was sent, or waits to be because the peer does not read
    }
    for name, value in probes.items():
        if hasattr(socket, name):  # of TCP, as far as this system has them
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _connect_words(error: OSError) -> str:
    """Returns why no connection could be made, in the system's words, without the address, which the caller knows."""
    if isinstance(error, ssl.SSLError) or error.errno is None or not error.strerror:
        return str(error)
    return os.strerror(error.errno) if error.errno in errno.errorcode else error.strerror


def foreign_words(data: bytes, error: Exception) -> str:
    """Returns a description of a peer that does not answer in MessagePack-RPC."""
    if data.startswith(b"HTTP/"):
        return "what answers there speaks HTTP and not MessagePack-RPC, as the dashboard does"
    if data[:2] == b"\x15\x03":  # a TLS alert
        return "what answers there speaks TLS: an authority or a certificate must be given"
    return f"what answers there does not speak MessagePack-RPC: {error}"


class Link:
    """Keeps a connection to one of its addresses: opens it again after each loss."""

    def __init__(
        self,
        address: Address | str | Sequence[str],
        *,
        token: str | None,
        tls: ssl.SSLContext | None,
        jitter: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
        make: Callable[[Callable[[Connection], None]], Connection] = Connection,
    ) -> None:
        """Several addresses are tried one after another. `tls`: how to verify the daemon and, with a certificate in it,
        who the client is; None: plain TCP. `jitter` returns numbers from 0 to 1, which lengthen the pauses between
        attempts. `changed` is called when a connection is usable, and when it is lost. `make` makes a connection; its
        argument is to be called when the connection is lost. Raises ValueError for a malformed address.
        """
        if isinstance(address, Address):
            self._addresses = [address]
        else:
            self._addresses = [parse_address(each) for each in ([address] if isinstance(address, str) else address)]
        if not self._addresses:
            raise ValueError("expected at least one address")
        self.address = self._addresses[0]  # of the connection, or of the current attempt
        self.was_connected = False  # whether there ever was a connection
        self._tls = tls
        self.connection: Connection | None = None  # signed in and usable
        self._hello: dict[str, str] = {"errors": "map"} | ({"token": token} if token else {})
        self._jitter = jitter
        self._changed = changed
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._waiting: dict[asyncio.Future[Connection], int | None] = {}  # -> attempts left; None: any number
        self._last_failure = ""  # why the last attempt failed
        self.is_signing_in = False  # connected, and the sign-in is not answered yet
        self.closed = False  # for good

    async def connected(self, tries: int | None = None) -> Connection:
        """Returns the connection, once there is one. Raises BillingError where the daemon does not let the client in,
        and where `tries` attempts have failed.
        """
        if self.connection is not None:
            return self.connection
        if self.closed:
            raise Unavailable("the client is closed")
        self.start()
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiting[future] = tries
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    def why_not(self) -> str:
        """Returns why there is no connection, for a message."""
        if self.is_signing_in:
            return "connected, and not answered"
        return self._last_failure or "not connected"

    def start(self) -> None:
        """Begins to connect, unless the link is connecting already."""
        if self._task is None and not self.closed:
            self._task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        pause_s = BACKOFF_FIRST_S
        try:
            while not self.closed:
                reason = untrusted = listens = ""
                for address in self._addresses:
                    self.address = address
                    try:
                        connection = await self._dial()
                        self.is_signing_in = True
                        self._take(await self._sign_in(connection))
                        return
                    except TimeoutError:
                        reason = f"no connection within {DIAL_S:g} s"
                        self._last_failure = f"cannot connect: {reason}"
                    except OSError as error:
                        self._last_failure = f"cannot connect: {error}"
                        reason = _connect_words(error)
                        if isinstance(error, ssl.SSLCertVerificationError):
                            untrusted = error.verify_message
                        elif isinstance(error, ssl.SSLError):
                            listens = f"{NO_TLS} ({reason})"
                    except BillingError as error:
                        self._last_failure = str(error)
                        if not error.retry:  # a token that is not known will not be known in a second either
                            self._refuse(error)
                            return
                        reason = error.details.get("foreign", error.message)
                        if error.message == LOST:
                            listens = CLOSES
                        elif "foreign" not in error.details:
                            listens = f"lets nobody in ({error.message})"
                    finally:
                        self.is_signing_in = False
                more = {"untrusted": untrusted, "listens": listens}
                self._count_attempt({"unreached": reason, **{name: text for name, text in more.items() if text}})
                await asyncio.sleep(pause_s * (1 + self._jitter()))
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        finally:
            self._task = None

    async def _dial(self) -> Connection:
        loop = asyncio.get_running_loop()
        address = self.address
        async with asyncio.timeout(DIAL_S):
            if address.path:
                _, connection = await loop.create_unix_connection(lambda: self._make(self._on_lost), address.path)
            else:
                transport, connection = await loop.create_connection(
                    lambda: self._make(self._on_lost), address.host, address.port, ssl=self._tls
                )
                _probe(transport.get_extra_info("socket"), connection.gone_s)
        return connection

    async def _sign_in(self, connection: Connection) -> Connection:
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

        def on_reply(error: BillingError | None, _: Any) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(connection)
            else:
                error.applied = "no"  # signing in changes nothing
                future.set_exception(error)

        connection.send("hello", [self._hello], on_reply)
        try:
            async with asyncio.timeout(DIAL_S if self.was_connected or len(self._addresses) > 1 else None):
                return await future
        except TimeoutError:
            connection.close()
            raise Unavailable(f"the sign-in was not answered within {DIAL_S:g} s") from None
        except BaseException:
            connection.close()
            raise

    def _take(self, connection: Connection) -> None:
        """Gives the connection to all waiting calls of `connected`."""
        if connection.transport is None:
            raise Unavailable(LOST)  # right after the sign-in: try again
        self.connection = connection
        self.was_connected = True
        self._changed()
        for future in list(self._waiting):
            if not future.done():
                future.set_result(connection)

    def _count_attempt(self, details: dict[str, str]) -> None:
        """Counts a failed attempt; waiting calls of `connected` that have no attempt left raise `Unavailable`.
        `details`: why (`unreached`), the fault of the daemon's certificate (`untrusted`), and what a peer does that
        listens there and does not let the client in (`listens`).
        """
        for future, attempts_left in list(self._waiting.items()):
            if attempts_left is not None and not future.done():
                self._waiting[future] = attempts_left - 1
                if attempts_left <= 1:
                    future.set_exception(Unavailable(self._last_failure, applied="no", details=dict(details)))

    def _refuse(self, error: BillingError) -> None:
        """Raises `error` in all waiting calls of `connected`, because there will be no connection."""
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(error)

    def _on_lost(self, connection: Connection) -> None:
        if connection is self.connection:
            self.connection = None
            if not self.closed:
                self._changed()
            self.start()

    def retire(self) -> None:
        """Ends the connection once every request on it is answered; the link opens no other one."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            self.connection.when_answered(self.connection.close)
            self.connection._check_fences()
            self.connection = None

    def close(self) -> None:
        """Ends the connection, and all attempts to connect."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            self.connection.close()
        self._refuse(Unavailable("the client is closed"))
