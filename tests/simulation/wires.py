"""Sockets without an operating system: streams between simulated processes, which are slow, split, cut and end.

A `Stream` is one connection. What one end writes arrives at the other in order, after a while, in pieces of any size;
where a process ends, what it had written still arrives, then the end. `Stream.cut` loses what is on its way, at both
ends at once. `filter`, on wires that carry one frame a write, decides what becomes of each: lost, doubled, or late and
out of order (a list of delays; empty: lost).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.loop import Kernel, SimLoop

Filter = Callable[[bytes], list[int]]


class SimTransport(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, stream: Stream, side: int) -> None:
        super().__init__()
        self.stream = stream
        self.side = side
        self.loop: SimLoop | None = None
        self.protocol: Any = None
        self.filter: Filter | None = None
        self.is_far = False  # it leads to another machine
        self._closing = False
        self._lost = False
        self._paused = False
        self._kept: list[bytes] = []  # arrived while reading was paused, or before anybody read
        self._ended = False  # the other side has ended
        self._last_ns = 0  # when the last piece arrives at the other side

    def attach(self, loop: SimLoop, protocol: Any) -> None:
        """A process begins to read and write here."""
        self.loop, self.protocol = loop, protocol
        loop.call_soon(self._made)

    def _made(self) -> None:
        self.protocol.connection_made(self)
        chunks, self._kept = self._kept, []
        for data in chunks:
            self._receive(data)
        if self._ended:
            self._end()

    # -- what the process does --------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._closing or self._lost or self.loop is None or self.loop.dead or not data:
            return
        self.stream.bytes += len(data)
        data = bytes(data)
        if self.filter is not None:
            for delay_ns in self.filter(data):
                self.stream.carry(self, data, delay_ns, in_order=not delay_ns)
            return
        if len(data) > 8 and self.stream.rng.random() < 0.05:
            cut = self.stream.rng.randrange(1, len(data))
            self.stream.carry(self, data[:cut])
            data = data[cut:]
        self.stream.carry(self, data)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.stream.carry_end(self)
            if self.loop is not None:
                self.loop.call_soon(self._lose)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The other side hears of the end and ends, too."""
        self.stream.carry_end(self)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._kept and not self._paused:
            self._receive(self._kept.pop(0))
        if self._ended and not self._kept:
            self._end()

    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None:
        """Buffers are never full here."""

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket" and self.is_far:
            return SimSocket(0, self)
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    # -- what happens to it -----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """A piece has arrived."""
        if self._lost or self._closing:
            return
        if self.protocol is None or self._paused or self._kept:
            self._kept.append(data)
        else:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if not (self._lost or self._closing):
            self.protocol.data_received(data)

    def end(self) -> None:
        """The other side has ended."""
        self._ended = True
        if self.protocol is not None and not self._kept:
            self._end()

    def _end(self) -> None:
        if not self._closing:
            self._closing = True
            self.stream.carry_end(self)
        self._lose()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            if self.protocol is not None:
                self.protocol.connection_lost(None)


class Stream:
    """One connection: two ends and what is on its way between them."""

    def __init__(self, kernel: Kernel, seed: int, slow: bool = False) -> None:
        self.kernel = kernel
        self.rng = random.Random(seed)
        self.slow = slow
        self.bytes = 0
        self.ends = (SimTransport(self, 0), SimTransport(self, 1))
        self._cut = 0

    def carry(self, sender: SimTransport, data: bytes, delay_ns: int = 0, in_order: bool = True) -> None:
        receiver = self.ends[1 - sender.side]
        arrives_ns = self.kernel.now_ns + self._latency_ns() + delay_ns
        if in_order:
            arrives_ns = sender._last_ns = max(arrives_ns, sender._last_ns + 1)
        self._at(receiver, arrives_ns, self._arrive, receiver, data, self._cut)

    def carry_end(self, sender: SimTransport) -> None:
        receiver = self.ends[1 - sender.side]
        arrives_ns = sender._last_ns = max(self.kernel.now_ns + self._latency_ns(), sender._last_ns + 1)
        self._at(receiver, arrives_ns, receiver.end)

    def _latency_ns(self) -> int:
        rng = self.rng
        if self.slow and rng.random() < 0.1:
            return rng.randrange(20_000_000)
        return 5_000 + rng.randrange(60_000)

    def _at(self, receiver: SimTransport, when_ns: int, function: Callable[..., Any], *arguments: Any) -> None:
        loop = receiver.loop
        if loop is not None:
            loop.call_in(when_ns - self.kernel.now_ns, function, *arguments)
        elif function == self._arrive:  # nobody reads there yet: it waits in the socket
            function(*arguments)
        else:
            function(*arguments)

    def _arrive(self, receiver: SimTransport, data: bytes, cut: int) -> None:
        if cut == self._cut:
            receiver.receive(data)

    def cut(self) -> None:
        """Both ends end, and what was on its way is lost."""
        self._cut += 1
        for end in self.ends:
            if end.loop is not None and not end.loop.dead:
                end.loop.call_in(self._latency_ns(), end._end)

    def died(self, end: SimTransport) -> None:
        """The process of this end is no more."""
        if not end._closing:
            end._closing = True
            self.carry_end(end)


class SimSocket:
    """A socket that is connected (`end`) or listens (`listener`)."""

    def __init__(self, number: int, end: SimTransport | None = None, listener: Listener | None = None) -> None:
        self.number = number
        self.address = ("", 0)  # of one that listens for other machines
        self.end = end
        self.listener = listener

    def listen(self, backlog: int) -> None:
        """All that come wait in the listener."""

    def accept(self) -> tuple[SimSocket, tuple[str, int]]:
        """The connection that the process which asks was told of."""
        assert self.listener is not None
        end = self.listener.take_back()
        if end is None:
            raise BlockingIOError
        return SimSocket(0, end), ("127.0.0.1", 1)

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def fileno(self) -> int:
        return self.number

    def setblocking(self, flag: bool) -> None:
        """Nothing blocks."""

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """The model has time-outs of its own."""

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def shutdown(self, how: int) -> None:
        """Who knocks finds nobody, once there is no server any more."""

    def close(self) -> None:
        """What is attached to it ends by itself; where nothing was, the other side hears of the end."""
        if self.end is not None and self.end.protocol is None:
            self.end.stream.died(self.end)


class Listener:
    """Where connections are accepted, by any of the processes that serve it; they wait while there is none."""

    def __init__(self, kernel: Kernel, rng: random.Random) -> None:
        self._kernel = kernel
        self._rng = rng
        self.told: SimTransport | None = None  # a connection, while a process is told to accept it
        self._servers: list[SimServer | SimAcceptor] = []
        self._backlog: deque[SimTransport] = deque()

    def serve(self, server: SimServer | SimAcceptor) -> None:
        self._servers.append(server)
        while self._backlog:
            server.accept(self._backlog.popleft())

    def take_back(self) -> SimTransport | None:
        """The connection that nobody has accepted; None where somebody has."""
        end, self.told = self.told, None
        return end

    def servers(self) -> list[SimServer | SimAcceptor]:
        """Those that accept now."""
        self._servers = [server for server in self._servers if not server.closed and not server.loop.dead]
        return self._servers

    def connect(self, end: SimTransport) -> None:
        servers = self.servers()
        if servers:
            self._rng.choice(servers).accept(end)
        else:
            self._backlog.append(end)


class SimServer:
    """A process that accepts."""

    def __init__(self, loop: SimLoop, factory: Callable[[], Any], net: Net) -> None:
        self.loop = loop
        self.closed = False
        self._factory = factory
        self._net = net

    def accept(self, end: SimTransport) -> None:
        if self.loop.dead:
            end.stream.died(end)
            return
        self._net.attach(end, self.loop, self._factory())

    def close(self) -> None:
        self.closed = True


class SimAcceptor:
    """A process that is told of each connection, and accepts it by hand."""

    def __init__(self, loop: NetLoop, listener: Listener, tell: Callable[[], Any]) -> None:
        self.loop = loop
        self.closed = False
        self._listener = listener
        self._tell = tell
        self._waiting: deque[SimTransport] = deque()  # not accepted yet

    def accept(self, end: SimTransport) -> None:
        if self.loop.dead:
            end.stream.died(end)
            return
        self.loop.net.hold(end, self.loop)  # it ends with the process, also before it has a protocol
        self._waiting.append(end)
        if len(self._waiting) == 1:
            self._offer()

    def _offer(self) -> None:
        """Tells of those that wait, one by one; where one is not accepted, again in the next turn."""
        while self._waiting and not self.closed:
            self._listener.told = self._waiting[0]
            self._tell()
            if self._listener.take_back() is not None:
                self.loop.call_soon(self._offer)
                return
            self._waiting.popleft()


class Net:
    """All sockets of the machine."""

    def __init__(self, kernel: Kernel, rng: random.Random) -> None:
        self.kernel = kernel
        self.rng = rng
        self.slow = False
        self.paths: dict[str, Listener] = {}
        self.streams: list[Stream] = []
        self.peers: list[Stream] = []  # those between workers
        self._by_loop: dict[SimLoop, list[SimTransport]] = {}
        self._sockets: dict[int, SimSocket] = {}
        self._number = 10

    def pair(self) -> tuple[SimSocket, SimSocket]:
        """Two ends of a new stream."""
        stream = Stream(self.kernel, self.rng.getrandbits(32), self.slow)
        return self._socket(stream.ends[0]), self._socket(stream.ends[1])

    def _socket(self, end: SimTransport | None, listener: Listener | None = None) -> SimSocket:
        self._number += 1
        sim_socket = self._sockets[self._number] = SimSocket(self._number, end, listener)
        return sim_socket

    def listen(self) -> SimSocket:
        """A new listening socket."""
        return self._socket(None, Listener(self.kernel, self.rng))

    def of_number(self, number: int) -> SimSocket:
        return self._sockets[number]

    def hold(self, end: SimTransport, loop: SimLoop) -> None:
        """It ends with this process."""
        self._by_loop.setdefault(loop, []).append(end)

    def attach(self, end: SimTransport, loop: SimLoop, protocol: Any) -> None:
        self.hold(end, loop)
        end.attach(loop, protocol)

    def died(self, loop: SimLoop) -> None:
        """A process is no more: its streams end."""
        for end in self._by_loop.pop(loop, ()):
            end.stream.died(end)


class NetLoop(SimLoop):
    """The loop of one process, with sockets."""

    def __init__(self, kernel: Kernel, name: str, net: Net) -> None:
        super().__init__(kernel, name)
        self.net = net
        self._acceptors: dict[Any, SimAcceptor] = {}

    async def create_connection(self, protocol_factory: Any, *args: Any, sock: Any = None, **kwargs: Any) -> Any:
        protocol = protocol_factory()
        self.net.attach(sock.end, self, protocol)
        await asyncio.sleep(0)
        return sock.end, protocol

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        if isinstance(fd, SimSocket) and fd.listener is not None:
            acceptor = self._acceptors[fd] = SimAcceptor(self, fd.listener, callback)
            fd.listener.serve(acceptor)
        else:
            super().add_reader(fd, callback, *args)

    def remove_reader(self, fd: Any) -> bool:
        acceptor = self._acceptors.pop(fd, None)
        if acceptor is None:
            return super().remove_reader(fd)
        acceptor.closed = True
        return True

    async def connect_accepted_socket(self, protocol_factory: Any, sock: Any, **_: Any) -> Any:
        protocol = protocol_factory()
        self.net.attach(sock.end, self, protocol)
        return sock.end, protocol

    async def create_unix_server(self, protocol_factory: Any, path: Any = None, *, sock: Any = None, **_: Any) -> Any:
        return await self.create_server(protocol_factory, sock=sock)

    async def create_server(self, protocol_factory: Any, *args: Any, sock: Any = None, **_: Any) -> Any:
        server = SimServer(self, protocol_factory, self.net)
        sock.listener.serve(server)
        await asyncio.sleep(0)
        return server

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **_: Any) -> Any:
        listener = self.net.paths.get(path)
        await asyncio.sleep(0)
        if listener is None or not listener.servers():
            raise ConnectionRefusedError(f"nobody listens on {path}")
        stream = Stream(self.kernel, self.net.rng.getrandbits(32), self.net.slow)
        self.net.peers.append(stream)
        protocol = protocol_factory()
        listener.connect(stream.ends[1])
        self.net.attach(stream.ends[0], self, protocol)
        return stream.ends[0], protocol


class SimSocketDirectory:
    """`shards.system.links.SocketDirectory` of one process."""

    def __init__(self, net: Net, path: str) -> None:
        self._net = net
        self._path = path

    def address(self, name: str) -> str:
        return f"{self._path}/{name}"

    def listen(self, name: str) -> SimSocket:
        listening_socket = self._net.listen()
        assert listening_socket.listener is not None
        self._net.paths[self.address(name)] = listening_socket.listener
        return listening_socket

    def close(self) -> None:
        """Nothing is held."""
