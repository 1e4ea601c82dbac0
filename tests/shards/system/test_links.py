"""The wire between two processes, on real sockets."""

from __future__ import annotations

import asyncio
import socket

import msgpack
import uvloop

from shards.system.links import Wire

LAST_WORDS = ("failed", 74, "the disk failed")


async def wire_to(control: socket.socket) -> Wire:
    _, wire = await asyncio.get_running_loop().create_connection(
        lambda: Wire(lambda *_: None, lambda _: None, lambda _: None), sock=control
    )
    return wire


def test_last_words_arrive_though_the_peer_went_on_talking() -> None:
    async def scene() -> None:
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        peer.settimeout(10)
        wire = await wire_to(ours)
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
