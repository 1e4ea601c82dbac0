"""Links over TCP on real sockets of this machine: requests pass, and who is no peer is named in the log."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from shards.links import far
from shards.links.far import HELLO_BYTES_MAX, Certificates, Certified, Far, FarDoor, contexts, dial
from shards.links.hello import End, LinkRefused
from shards.shard import COMMAND, READ
from shards.system.host import split_address
from shards.system.links import Wire
from shards.system.names import AddressInfo, Names
from shards.worker.router import PROBE_S, SILENT_PROBES, PeerLink

LISTENER = End("c-1", 5, 9, b"secret")
DIALER = End("c-1", 2, 7, b"secret")


class Peer:
    """The worker at the other end: notes what is asked, and answers each request with its payload."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.lost = 0

    def wire(self) -> Wire:
        return Wire(self._on_frame, self._on_closed, lambda _: None)

    def _on_closed(self, _: Wire) -> None:
        self.lost += 1

    def _on_frame(self, wire: Wire, frame: Any) -> None:
        self.frames.append(frame)
        answers: list[Any] = []
        for number, *_, payload in frame:
            answers += [number, payload[1]]
        wire.send(answers)


class Caller:
    """Whoever asked: notes what came."""

    mode = 0

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def relay(self, data: bytes) -> None:
        self.heard.append(data)

    def relay_flush(self) -> None:
        """Nothing waits here."""


@asynccontextmanager
async def door(
    end: End = LISTENER, tls: ssl.SSLContext | None = None, peer: Peer | None = None
) -> AsyncIterator[tuple[FarDoor, Peer]]:
    peer = peer or Peer()

    async def context() -> ssl.SSLContext:
        assert tls is not None
        return tls

    far_door = FarDoor(end, peer.wire, None if tls is None else context, secrets.randbits)
    await far_door.listen("127.0.0.1:0")
    try:
        yield far_door, peer
    finally:
        far_door.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.005)


def run(scene: Callable[[], Awaitable[None]], factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scene(), 120)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded())


def far_link(
    address: str,
    end: End = DIALER,
    tls: ssl.SSLContext | None = None,
    probe_s: float = PROBE_S,
    names: Names | None = None,
) -> tuple[PeerLink, list[Any]]:
    """A worker's link to shard 5 there, and what it could not pass on."""
    refused: list[Any] = []

    async def dialled(make_wire: Callable[[], Wire]) -> None:
        await dial(Far(address, 9), 5, end, make_wire, tls, secrets.randbits, names or Names())

    link = PeerLink(5, dialled, lambda *what: refused.append(what), lambda *_: None, lambda *_: None, probe_s)
    return link, refused


LOOPS = pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop])


@LOOPS
def test_requests_and_answers_pass_and_a_lost_link_is_dialled_again(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scene() -> None:
        async with door() as (far_door, peer):
            link, refused = far_link(far_door.address)
            link.open()
            await until(lambda: link.is_open)
            caller = Caller()
            for number in range(3):
                link.ask(caller, number, 0, 1, ("add", b"reply %d" % number))
            link.flush()
            await until(lambda: len(caller.heard) == 3)
            assert caller.heard == [b"reply 0", b"reply 1", b"reply 2"]
            assert len(peer.frames) == 1, "what was asked in one turn is one frame"
            assert refused == []
            link.drop()
            await until(lambda: peer.lost == 1)
            again, _ = far_link(far_door.address)
            again.open()
            await until(lambda: again.is_open)
            again.close()

    run(scene, factory)


def test_what_was_sent_and_not_answered_is_unknown_where_the_peer_is_dropped() -> None:
    async def scene() -> None:
        async with door() as (far_door, peer):
            peer._on_frame = lambda *_: None  # type: ignore[method-assign]  # it hangs
            link, refused = far_link(far_door.address)
            link.open()
            await until(lambda: link.is_open)
            link.ask(Caller(), 1, 0, 1, ("add", b""))
            link.flush()
            link.ask(Caller(), 2, 0, 1, ("add", b""))
            link.drop()
            await until(lambda: len(refused) == 2)
            assert [reply.applied for _, _, reply in refused] == ["unknown", "no"]

    run(scene, uvloop.new_event_loop)


class Slow(Peer):
    """Its loop turns, and an answer takes until somebody gives it; or, where it is `frozen`, nothing turns."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.inbox: list[tuple[Wire, Any]] = []

    def _on_frame(self, wire: Wire, frame: Any) -> None:
        if self.frozen or frame:
            self.inbox.append((wire, frame))
        else:
            super()._on_frame(wire, frame)

    def go_on(self) -> None:
        self.frozen = False
        for wire, frame in self.inbox:
            super()._on_frame(wire, frame)
        self.inbox.clear()


@LOOPS
def test_a_peer_that_is_frozen_is_named_and_asked_again_once_it_turns(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scene() -> None:
        peer = Slow(frozen=True)
        async with door(peer=peer) as (far_door, _):
            link, refused = far_link(far_door.address, probe_s=0.01)
            link.open()
            await until(lambda: link.is_open)
            caller = Caller()
            link.ask(caller, 1, COMMAND, 1, ("add", b"sent"))
            link.ask(caller, 2, READ, 1, ("get", b"sent"))
            link.flush()
            await until(lambda: len(refused) == 2)
            assert [(token, reply.shard_id, reply.applied) for _, token, reply in refused] == [
                (1, 5, "unknown"), (2, 5, "no"),
            ]  # fmt: skip
            assert refused[0][2].reason.startswith("its worker has not answered for")
            link.ask(caller, 3, COMMAND, 1, ("add", b"not sent"))
            assert [(token, reply.applied) for _, token, reply in refused[2:]] == [(3, "no")]
            peer.go_on()
            await until(lambda: not link.is_silent)
            link.ask(caller, 4, COMMAND, 1, ("add", b"again"))
            link.flush()
            await until(lambda: bool(peer.inbox))
            peer.go_on()
            await until(lambda: bool(caller.heard))
            assert caller.heard == [b"again"], "nobody waits for the answers to what was given up"
            questions = [payload[1] for frame in peer.frames for *_, payload in frame]
            assert questions == [b"sent", b"sent", b"again"]
            link.close()

    run(scene, factory)


def test_an_answer_that_takes_long_is_waited_for_while_the_peers_loop_turns() -> None:
    async def scene() -> None:
        peer = Slow(frozen=False)
        async with door(peer=peer) as (far_door, _):
            link, refused = far_link(far_door.address, probe_s=0.01)
            link.open()
            await until(lambda: link.is_open)
            caller = Caller()
            link.ask(caller, 1, COMMAND, 1, ("add", b"at last"))
            link.flush()
            await until(lambda: len(peer.frames) > 2 * SILENT_PROBES)  # probes, each answered
            assert not link.is_silent
            peer.go_on()
            await until(lambda: bool(caller.heard))
            assert (caller.heard, refused) == ([b"at last"], [])
            link.close()

    run(scene, uvloop.new_event_loop)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (DIALER._replace(secret=b"another"), "does not know the secret"),
        (DIALER._replace(cluster="c-2"), "a link of cluster c-2, and this host is of cluster c-1"),
    ],
)
def test_who_is_no_peer_is_refused_and_named_once_at_both_ends(
    end: End, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with door() as (far_door, peer):
            link, refused = far_link(far_door.address, end)
            link.open()
            await until(lambda: bool(link.refused))
            for _ in range(3):
                with pytest.raises(LinkRefused):
                    await dial(Far(far_door.address, 9), 5, end, peer.wire, None, secrets.randbits, Names())
            link.ask(Caller(), 1, 0, 1, ("add", b""))
            assert refused[0][2].applied == "no"
            assert reason in str(refused[0][2].reason)
            link.close()

    with caplog.at_level(logging.WARNING):
        run(scene, uvloop.new_event_loop)
    messages = [record.getMessage() for record in caplog.records]
    assert len([text for text in messages if text.startswith("no link to shard 5") and reason in text]) == 1
    assert len([text for text in messages if text.startswith("shard 5 refused a link from 127.0.0.1")]) == 1


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\n\r\n", (HELLO_BYTES_MAX + 1).to_bytes(4, "little") + b"x" * 100, b"\1\0\0\0\xc0"]
)
def test_a_stranger_is_closed_and_lets_the_door_stand(greeting: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with door() as (far_door, peer):
            reader, writer = await asyncio.open_connection(*split_address(far_door.address))
            writer.write(greeting)
            assert await reader.read() == b""
            writer.close()
            link, _ = far_link(far_door.address)
            link.open()
            await until(lambda: link.is_open)
            assert peer.frames == []
            link.close()

    with caplog.at_level(logging.WARNING):
        run(scene, uvloop.new_event_loop)
    assert "shard 5 refused a link from 127.0.0.1" in caplog.text


def test_a_host_that_takes_connections_and_says_nothing_is_given_up() -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises((LinkRefused, OSError)):
                await dial(Far(address, 9), 5, DIALER, Peer().wire, None, secrets.randbits, Names())
            link, refused = far_link(address)
            link.ask(Caller(), 1, 0, 1, ("add", b""))
            assert refused[0][2].applied == "no"

    run(scene, uvloop.new_event_loop)


NOT_BELIEVED = "shard 5 refused a link from 127.0.0.1: cluster.tls_cert, cluster.tls_ca: "


@LOOPS
def test_with_certificates_only_hosts_that_the_authority_has_signed_meet(
    factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is not let in is named where it came to, with the reason, whichever end did not believe the other one."""
    files = []
    for name in ("ours", "strange"):
        authority, directory = trustme.CA(), tmp_path / name
        directory.mkdir()
        host = authority.issue_cert("host")
        host.private_key_pem.write_to_path(directory / "key.pem")
        host.cert_chain_pems[0].write_to_path(directory / "chain.pem")
        authority.cert_pem.write_to_path(directory / "ca.pem")
        files.append(Certificates(*(str(directory / file_name) for file_name in ("chain.pem", "key.pem", "ca.pem"))))
    dialling, listening = contexts(files[0])
    stranger, _ = contexts(files[1]._replace(authority=files[0].authority))
    unbelieving, _ = contexts(files[1])

    async def scene() -> None:
        async with door(tls=listening) as (far_door, peer):
            link, _ = far_link(far_door.address, tls=dialling)
            link.open()
            await until(lambda: link.is_open)
            caller = Caller()
            link.ask(caller, 1, 0, 1, ("add", b"reply"))
            link.flush()
            await until(lambda: caller.heard == [b"reply"])
            link.close()
            for tls in (stranger, unbelieving, None):
                caplog.clear()
                with pytest.raises((LinkRefused, OSError)):
                    await dial(Far(far_door.address, 9), 5, DIALER, peer.wire, tls, secrets.randbits, Names())
                await until(lambda: NOT_BELIEVED in caplog.text)
            assert len(peer.frames) == 1

    run(scene, factory)


def certificate_files(directory: Path) -> Certificates:
    return Certificates(*(str(directory / name) for name in ("chain.pem", "key.pem", "ca.pem")))


def issue(files: Certificates, signer: trustme.CA, *, key: bool = True) -> None:
    issued = signer.issue_cert("host")
    issued.cert_chain_pems[0].write_to_path(files.chain)
    if key:
        issued.private_key_pem.write_to_path(files.key)
    signer.cert_pem.write_to_path(files.authority)


async def test_certificates_are_read_again_at_each_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, authority = certificate_files(tmp_path), trustme.CA()

    async def both() -> list[ssl.SSLContext]:
        return [await certified.dialling(), await certified.listening()]

    issue(files, authority)
    certified = Certified(files, lambda path: Path(path).read_bytes())
    first = await both()
    assert await both() == first, "nothing has changed"
    issue(files, authority)
    while not set(renewed := await both()).isdisjoint(first):
        pass  # a busy machine reads them late
    issue(files, authority, key=False)
    while "the new certificate of the links is not used" not in caplog.text:
        assert await both() == renewed, "the key is another's: it is being written"
    assert await both() == renewed
    assert caplog.text.count("the new certificate of the links is not used") == 1
    issue(files, trustme.CA())
    while (await certified.listening()) in (*first, *renewed):
        pass
    newest = await both()
    Path(files.authority).unlink()
    assert await both() == newest, "while it is replaced"


async def test_while_a_certificate_cannot_be_read_the_former_one_goes_on_and_so_does_the_loop(tmp_path: Path) -> None:
    """As where it lies on a mount whose server is gone."""
    files, speaks = certificate_files(tmp_path), threading.Event()
    speaks.set()
    issue(files, trustme.CA())

    def read(path: str) -> bytes:
        assert speaks.wait(60)
        return Path(path).read_bytes()

    certified = Certified(files, read)
    first = await certified.listening()
    issue(files, trustme.CA())
    speaks.clear()
    turns: list[int] = []

    async def turn() -> None:
        while True:
            turns.append(len(turns))
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    try:
        assert [await certified.listening() for _ in range(3)] == [first] * 3
        assert len(turns) > 3
        assert [thread.name for thread in threading.enumerate()].count("certificates") == 1
    finally:
        speaks.set()
        turning.cancel()
    while (await certified.listening()) is first:
        pass


def test_hosts_whose_names_the_resolver_is_silent_for_hold_up_no_link_to_another_one() -> None:
    speaks = threading.Event()

    def resolve(host: str, port: int, **_: Any) -> list[AddressInfo]:
        assert host == "spoken.example" or speaks.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    async def scene() -> None:
        async with door() as (far_door, _):
            _, port = split_address(far_door.address)
            names = Names(resolve)
            links = [far_link(f"silent{number}.example:{port}", names=names)[0] for number in range(4)]
            links.append(far_link(f"spoken.example:{port}", names=names)[0])
            for link in links:
                link.open()
            await until(lambda: links[-1].is_open)
            assert not any(link.is_open for link in links[:-1])
            speaks.set()
            await until(lambda: all(link.is_open for link in links))
            for link in links:
                link.close()

    try:
        run(scene, uvloop.new_event_loop)
    finally:
        speaks.set()


def test_a_door_lets_only_so_many_strangers_wait() -> None:
    async def scene() -> None:
        async with door() as (far_door, _):
            address = split_address(far_door.address)
            crowd = [await asyncio.open_connection(*address) for _ in range(far.GREETED_AT_ONCE_MAX + 8)]
            closed = [asyncio.ensure_future(reader.read()) for reader, _ in crowd]
            await until(lambda: sum(each.done() for each in closed) >= 8)
            for _, writer in crowd:
                writer.close()
            await until(lambda: all(each.done() for each in closed))
            link, _ = far_link(far_door.address)
            link.open()
            await until(lambda: link.is_open)
            link.close()

    run(scene, uvloop.new_event_loop)
