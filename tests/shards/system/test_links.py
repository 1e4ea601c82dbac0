"""The wire between two processes, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import msgpack
import uvloop

from shards.system.links import SocketDirectory, Wire

LAST_WORDS = ("failed", 74, "the disk failed")


async def wire_to(control: socket.socket) -> Wire:
    _, wire = await asyncio.get_running_loop().create_connection(
        lambda: Wire(lambda *_: None, lambda _: None, lambda _: None), sock=control
    )
    return wire


def test_last_words_arrive_though_the_peer_went_on_talking() -> None:
    async def scene() -> None:
        near, peer = socket.socketpair()
        near.setblocking(False)
        peer.settimeout(60)
        wire = await wire_to(near)
        wire.send(LAST_WORDS)
        wire.part()
        assert wire.is_parting
        assert not wire.is_open
        wire.send(("figures",))  # is not sent
        peer.sendall(b"\x00\x00\x00\x01\xc0" * 100)  # and is read, or the peer would hear of a reset next
        await asyncio.sleep(0.05)
        assert wire.is_parting
        heard = b""
        while data := await asyncio.to_thread(peer.recv, 4096):
            heard += data
        assert msgpack.unpackb(heard[4:], use_list=False) == LAST_WORDS
        peer.close()
        while wire.is_parting:
            await asyncio.sleep(0.001)

    for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        asyncio.Runner(loop_factory=factory).run(scene())


def test_a_directory_of_sockets_takes_away_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    first, second = SocketDirectory(str(tmp_path)), SocketDirectory(str(tmp_path))
    listeners = [first.listen("a"), first.listen("b"), second.listen("b")]
    first.close()
    assert [path.name for path in tmp_path.iterdir()] == ["b"], "another has taken that name since"
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(second.address("b"))
    second.close()
    assert list(tmp_path.iterdir()) == []
    for listener in listeners:
        listener.close()
