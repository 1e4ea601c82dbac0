"""A proxy before a server of the log that loses, doubles or holds back what the server says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Proxy:
    """Listens on loopback and passes every connection on to `port`. `answers(data)` says what becomes of each piece of
    what the server says: the pieces that are passed on instead, or None to hang up.
    """

    def __init__(self, port: int) -> None:
        self.answers: Callable[[bytes], list[bytes] | None] = lambda data: [data]
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._closing = True
        for sock in [self._listener, *self._sockets]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [client, server]
            for source, target, change in ((client, server, lambda data: [data]), (server, client, self._changed)):
                threading.Thread(target=self._pump, args=(source, target, change), daemon=True).start()

    def _changed(self, data: bytes) -> list[bytes] | None:
        return self.answers(data)

    def _pump(
        self, source: socket.socket, target: socket.socket, change: Callable[[bytes], list[bytes] | None]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                pieces = change(data)
                if pieces is None:
                    break
                for piece in pieces:
                    target.sendall(piece)
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
