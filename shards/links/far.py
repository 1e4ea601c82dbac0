"""Links over TCP: a worker dials the workers of other hosts, and is dialled by them.

A connection begins with the exchange of `shards.links.hello`, in frames as every wire has them, of `HELLO_BYTES_MAX` at
most and within `HELLO_S`; then a `Wire` takes the connection over, and requests and answers pass on it as between two
workers of one host. Nothing that comes behind the exchange's last word in the same read is lost or taken early: the
dialer waits for `Welcome` before it asks, and the listener says nothing unasked.

**A host that is gone is noticed within about `GONE_S`**, by the kernel: a connection on which something that was sent
is not acknowledged for so long, or which is silent and does not answer probes, is closed. So a request that is on its
way to a host that was cut off gets its answer, "unknown", instead of waiting.

With certificates (`Certificates`) a link is TLS in both directions: each end shows one that the cluster's own authority
has signed. Which host it names is not looked at: an address changes with the host that serves a shard, and whoever has
such a certificate belongs to the cluster.

Who is not let in is named in the log, once for each reason and peer; a peer goes on dialling.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

from shards.links.hello import NONCE_BYTES, Dialling, End, LinkRefused, Listening, Refused, to_dialer, to_listener
from shards.system.host import address_of, bind_tcp, split_address
from shards.system.links import FrameDecoder, FrameError, Wire, frame_of
from shards.system.names import Names, is_number
from shards.system.own_thread import on_own_thread

log = logging.getLogger("shards.links.far")

HELLO_S = 3.0
HELLO_BYTES_MAX = 4096
GREETED_AT_ONCE_MAX = 256  # connections that have not proved anything yet; more are closed
LOGGED_MAX = 64  # reasons and peers that were named in the log; a new one forgets the oldest
GONE_S = 3
RESOLVER_S = 0.2  # for the resolver, where former addresses are known
NEXT_ADDRESS_S = 0.1  # of a name that has several
READ_S = 0.2  # for the files of certificates, which may be on a disk of others
CROWDED = "too many connections that have proved nothing yet"
REST_S = 1.0  # of a door that could not accept a connection


class Far(NamedTuple):
    """Where a shard of another host is reached: "host:port", and the epoch of its `own` record."""

    address: str
    epoch: int


class Certificates(NamedTuple):
    """Files of this host's own certificate chain and key, and of the authority that has signed every host's."""

    chain: str
    key: str
    authority: str


def contexts(files: Certificates) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS contexts for the dialer and the listener; each side shows a certificate and requires one. Raises OSError,
    ssl.SSLError.
    """
    tls_contexts = []
    for purpose in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(files.chain, files.key)
        context.load_verify_locations(files.authority)
        tls_contexts.append(context)
    return tls_contexts[0], tls_contexts[1]


class Certified:
    """This host's certificates for links, as their files are at each handshake: short-lived ones are replaced while the
    daemon runs. They are read on a thread of their own; while a file cannot be read for a while, the former ones go on.
    """

    def __init__(self, files: Certificates, read: Callable[[str], bytes]) -> None:
        """`read` returns the content of a file. Raises OSError, ssl.SSLError."""
        self._files = files
        self._read = read
        self._content = [read(path) for path in files]
        self._contexts = contexts(files)
        self._looking: Future[None] | None = None
        self._trouble = ""  # why the files could not be used, as the log was told

    async def dialling(self) -> ssl.SSLContext:
        """The context of whoever dials."""
        return (await self._newest())[0]

    async def listening(self) -> ssl.SSLContext:
        """The context of whoever accepts."""
        return (await self._newest())[1]

    async def _newest(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """The contexts of the files; the former ones while these are not read within `READ_S`."""
        if self._looking is None or self._looking.done():
            self._looking = on_own_thread("certificates", self._look)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(self._looking), READ_S)
        return self._contexts

    def _look(self) -> None:
        """Takes the contexts of the files; keeps the former ones where these do not fit together, as while they are
        written.
        """
        try:
            content = [self._read(path) for path in self._files]
            if content != self._content:
                self._content = content
                self._contexts = contexts(self._files)
            self._trouble = ""
        except (OSError, ssl.SSLError) as error:
            if not isinstance(error, FileNotFoundError) and str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("the new certificate of the links is not used, the former one goes on: %s", error)


class _Greeting(asyncio.Protocol, ABC):
    """One connection until a wire takes it over. Its `outcome` is nothing, a LinkRefused, or an OSError."""

    def __init__(self, make_wire: Callable[[], Wire], decode: Callable[[bytes | bytearray], Any]) -> None:
        loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[None] = loop.create_future()
        self._make_wire = make_wire
        self._decoder = FrameDecoder(decode, HELLO_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._deadline = loop.call_later(HELLO_S, self._fail, f"nothing came of it within {HELLO_S:g} s")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _notice_ends(transport.get_extra_info("socket"))
        if self.outcome.done():  # it was given up during the handshake of TLS
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                if not self.outcome.done():
                    self._receive(message)
        except FrameError as error:
            self._fail(f"it speaks another language: {error}")
        except LinkRefused as refused:
            self._refuse(refused)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._fail(_of_tls(exc))
        else:
            self._end(self._on_lost())

    def _on_lost(self) -> Exception:
        return ConnectionResetError("the connection was lost before it was welcome")

    @abstractmethod
    def _receive(self, message: Any) -> None:
        """The next message of the peer. Raises LinkRefused."""

    def _say(self, message: Any) -> None:
        assert self._transport is not None
        self._transport.write(frame_of(message))

    def _refuse(self, refused: LinkRefused) -> None:
        self._end(refused)

    def refuse(self, reason: str) -> None:
        """Closes the connection for this reason."""
        self._fail(reason)

    def give_up(self) -> None:
        """Closes the connection, unless a wire has taken it over."""
        self._fail("it was given up")

    def _fail(self, reason: str) -> None:
        self._end(LinkRefused(reason))

    def _end(self, error: Exception) -> None:
        self._deadline.cancel()
        if not self.outcome.done():
            self.outcome.set_exception(error)
            if self._transport is not None:
                self._transport.close()

    def _hand_over(self) -> None:
        transport = self._transport
        assert transport is not None
        self._deadline.cancel()
        wire = self._make_wire()
        transport.set_protocol(wire)
        wire.connection_made(transport)
        self.outcome.set_result(None)


class _DialerGreeting(_Greeting):
    def __init__(self, make_wire: Callable[[], Wire], dialling: Dialling) -> None:
        super().__init__(make_wire, to_dialer)
        self._dialling = dialling

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._say(self._dialling.hello)

    def _receive(self, message: Any) -> None:
        answer = self._dialling.receive(message)
        if answer is not None:
            self._say(answer)
        if self._dialling.is_welcome:
            self._hand_over()


class _ListenerGreeting(_Greeting):
    def __init__(self, make_wire: Callable[[], Wire], listening: Listening, door: FarDoor) -> None:
        super().__init__(make_wire, to_listener)
        self._listening = listening
        self._door = door
        self.peer = "somewhere"
        self.outcome.add_done_callback(door.greeted(self))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if address := transport.get_extra_info("peername"):
            self.peer = str(address[0])
        if self._door.is_crowded:
            self._fail(CROWDED)

    def _receive(self, message: Any) -> None:
        self._say(self._listening.receive(message))
        if self._listening.is_welcome:
            self._hand_over()

    def _on_lost(self) -> Exception:
        if self._listening.is_challenged:
            return LinkRefused("it left when this host proved itself: the two do not know the same cluster.secret_file")
        return super()._on_lost()

    def _refuse(self, refused: LinkRefused) -> None:
        self._say(Refused(str(refused), refused.passes))
        self._end(refused)


class FarDoor:
    """Listens for the workers of other hosts."""

    def __init__(
        self,
        end: End,
        make_wire: Callable[[], Wire],
        tls: Callable[[], Awaitable[ssl.SSLContext]] | None,
        randbits: Callable[[int], int],
        bind: Callable[[str, int, int], socket.socket] = bind_tcp,
    ) -> None:
        """`make_wire` makes the protocol of a peer that was accepted. `tls`: asked before each handshake. `bind`: as
        that of `shards.system.host.Host`.
        """
        self._end = end
        self._make_wire = make_wire
        self._tls = tls
        self._randbits = randbits
        self._bind = bind
        self._greetings: set[_ListenerGreeting] = set()
        self._logged: dict[tuple[str, str], None] = {}
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # where links are TLS: who accepts, and handshakes under way
        self.address = ""  # "host:port", once it listens

    @property
    def is_crowded(self) -> bool:
        """Whether as many greetings are under way as are allowed."""
        return len(self._greetings) > GREETED_AT_ONCE_MAX

    async def listen(self, address: str) -> None:
        """Accepts peers from now on. Port 0 takes a free port. OSError."""
        host, port = split_address(address)
        listener = self._bind(host, port, 128)
        listener.setblocking(False)
        self.address = address_of(listener)
        if self._tls is None:
            self._server = await asyncio.get_running_loop().create_server(self._greet, sock=listener)
        else:
            self._spawn(self._accept(listener, self._tls))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, tls: Callable[[], Awaitable[ssl.SSLContext]]) -> None:
        """Accepts connections by hand: asyncio's TLS server does not report whose handshake failed, and why."""
        with contextlib.closing(listener):
            while True:
                try:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:  # no descriptors
                    await asyncio.sleep(REST_S)
                else:
                    self._spawn(self._shake_hands(connection, tls))

    async def _shake_hands(self, connection: socket.socket, tls: Callable[[], Awaitable[ssl.SSLContext]]) -> None:
        greeting = self._greet()
        with contextlib.suppress(OSError):  # it is gone already
            greeting.peer = str(connection.getpeername()[0])
        if self.is_crowded:
            greeting.refuse(CROWDED)
            connection.close()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: greeting, connection, ssl=await tls(), ssl_handshake_timeout=HELLO_S
            )
        except ssl.SSLError as error:
            greeting.refuse(_of_tls(error))
        except OSError:  # as where it does not believe this host's certificate, and does not wait to say so
            greeting.refuse(
                "cluster.tls_cert, cluster.tls_ca: it left during the handshake of TLS: the two hosts may not believe "
                "each other's certificates"
            )

    def _greet(self) -> _ListenerGreeting:
        greeting = _ListenerGreeting(self._make_wire, Listening(self._end, _nonce(self._randbits)), self)
        self._greetings.add(greeting)
        return greeting

    def greeted(self, greeting: _ListenerGreeting) -> Callable[[asyncio.Future[None]], None]:
        """The callback that takes the outcome of a greeting."""

        def done(outcome: asyncio.Future[None]) -> None:
            self._greetings.discard(greeting)
            error = outcome.exception()
            if isinstance(error, LinkRefused) and not error.passes:
                self._tell(greeting.peer, str(error))

        return done

    def _tell(self, peer: str, reason: str) -> None:
        if (peer, reason) in self._logged:
            return
        if len(self._logged) >= LOGGED_MAX:
            del self._logged[next(iter(self._logged))]
        self._logged[peer, reason] = None
        log.warning("shard %d refused a link from %s: %s", self._end.shard, peer, reason)

    def close(self) -> None:
        """Accepts no peer any more. Links that exist stay open."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()


async def dial(
    far: Far,
    shard: int,
    end: End,
    make_wire: Callable[[], Wire],
    tls: ssl.SSLContext | None,
    randbits: Callable[[int], int],
    names: Names,
) -> None:
    """Connects to the worker of a shard elsewhere; returns once the wire was made. `names`: of all hosts that are
    dialled. Raises OSError, LinkRefused.
    """
    host, port = split_address(far.address)
    dialling = Dialling(end, shard, far.epoch, _nonce(randbits))
    loop = asyncio.get_running_loop()
    greeting = _DialerGreeting(make_wire, dialling)
    greeting.outcome.add_done_callback(lambda outcome: outcome.cancelled() or outcome.exception())
    try:
        async with asyncio.timeout(HELLO_S):
            hostname = host if tls is not None else None
            if is_number(host):
                await loop.create_connection(lambda: greeting, host, port, ssl=tls, server_hostname=hostname)
            else:
                with _closed_on_failure(await _connected(names, host, port)) as connection:
                    await loop.create_connection(lambda: greeting, sock=connection, ssl=tls, server_hostname=hostname)
            await asyncio.shield(greeting.outcome)
    except TimeoutError:
        raise OSError(f"no answer within {HELLO_S:g} s") from None
    except ssl.SSLError as error:
        raise LinkRefused(_of_tls(error)) from error
    finally:
        greeting.give_up()


async def _connected(names: Names, host: str, port: int) -> socket.socket:
    """A connection to the first address of a name that takes one. Raises OSError."""
    from aiohappyeyeballs import start_connection

    addresses = await names.look_up(host, port, RESOLVER_S, HELLO_S)
    return await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1)


@contextlib.contextmanager
def _closed_on_failure(connection: socket.socket) -> Iterator[socket.socket]:
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def _of_tls(error: ssl.SSLError) -> str:
    return f"cluster.tls_cert, cluster.tls_ca: the two hosts do not believe each other's certificates: {error}"


def _nonce(randbits: Callable[[int], int]) -> bytes:
    return randbits(8 * NONCE_BYTES).to_bytes(NONCE_BYTES, "little")


def _notice_ends(connection: socket.socket) -> None:
    """Sets keepalives, so that both ends notice within seconds that the other host is gone."""
    with contextlib.suppress(OSError):  # it is gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, GONE_S - 1)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
