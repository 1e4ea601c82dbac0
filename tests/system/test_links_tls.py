"""Two hosts that serve at once and whose links are TLS in both directions; one of them has certificates of its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import USERS, WAIT_S, Caller, billing, daemon_on, wait_said
from tests.system.private_files import pem_file
from tests.system.rpc import Rpc
from tests.system.two_hosts import at_every_door, wait_owners, wait_page

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

SHARDS = 2
BELIEVE = "cluster.tls_cert, cluster.tls_ca: the two hosts do not believe each other's certificates"


def certify(directory: Path, authority: trustme.CA) -> dict[str, object]:
    """Writes a host's certificate, key and authority; the keys of its configuration that name them."""
    directory.mkdir(exist_ok=True)
    issued = authority.issue_cert("127.0.0.1")
    return {
        "cluster__tls_cert": pem_file(directory / "links.pem", *issued.cert_chain_pems),
        "cluster__tls_key": pem_file(directory / "links.key", issued.private_key_pem),
        "cluster__tls_ca": pem_file(directory / "ca.pem", authority.cert_pem),
    }


@pytest.fixture
def own_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def hosts(servers: NatsCluster, data_dir: Path, own_authority: trustme.CA) -> AsyncIterator[list[Daemon]]:
    """Host a has a certificate of ours, host b one of somebody else; nothing runs yet."""
    daemons = []
    for name, authority in (("a", own_authority), ("b", trustme.CA())):
        keys: dict[str, object] = {"cluster__listen": "127.0.0.1:0", "shards__workers": SHARDS}
        keys |= certify(data_dir / name, authority) | {"cluster__shards": SHARDS, "cluster__node": name}
        daemons.append(daemon_on(servers, data_dir / name, **keys))
    servers.make_all(SHARDS)
    with killed_in_the_end(*daemons):
        yield daemons


async def test_links_are_tls_and_a_host_with_another_authority_is_refused_by_name(
    hosts: list[Daemon], own_authority: trustme.CA, data_dir: Path
) -> None:
    a, b = hosts
    await asyncio.to_thread(a.start, WAIT_S)
    caller = Caller(a.rpc_port)
    await caller.round()
    b.launch()
    await wait_owners(a, "a", "b")
    await wait_page(b, 200, "ready")
    for host in hosts:
        for words in ("refused a link from 127.0.0.1: cluster.tls_cert, cluster.tls_ca: ", "event=link_not_wanted"):
            await asyncio.to_thread(wait_said, host, words)
    rpc = await Rpc.connect(a.rpc_port)
    refused: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT_S):  # until the link has been tried
        while not refused:
            refused = [row for row in await rpc.ask("shards_info") if BELIEVE in row["reason"]]
    assert [row["state"] for row in refused] == ["elsewhere"]
    assert all(row["reason"].startswith(f"served by b; no link from this host: {BELIEVE}") for row in refused)
    assert all(row["alerts"][0].startswith("UNREACHABLE_SHARD: no link from this host") for row in refused)
    _, output = await asyncio.to_thread(billing, a, "cluster", "status")
    assert f"shard {refused[0]['shard_id']} has no link from this host: " in output
    error, _ = await rpc.call("accounts")
    assert error.startswith(f"UNAVAILABLE: shard {refused[0]['shard_id']}"), error
    assert BELIEVE in error

    assert await asyncio.to_thread(b.stop) == 0
    certify(data_dir / "b", own_authority)  # the files that its configuration names
    b.launch()
    await wait_owners(a, "a", "b")
    for host in hosts:
        await wait_page(host, 200, "ready")
    await at_every_door(caller, a, b)
    rows: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT_S):  # until b answers what it is asked within its time
        while not rows or any(row["accounts"] is None for row in rows):
            rows = await rpc.ask("shards_info")
    assert sum(row["accounts"] for row in rows) == len(USERS)
    assert [row["reason"] for row in rows if row["state"] == "elsewhere"] == ["served by b"]
    route = await rpc.ask("route")
    rpc.close()
    assert len(route["shards"]) == SHARDS
    assert await asyncio.to_thread(b.stop) == 0
    await wait_owners(a, "a", "a")
    await wait_page(a, 200, "ready")
    await nobody_without_a_certificate(a, own_authority)
    assert await asyncio.to_thread(a.stop) == 0


async def nobody_without_a_certificate(host: Daemon, own_authority: trustme.CA) -> None:
    """Whoever shows none is told so in the handshake; whoever speaks no TLS gets nothing that a link says."""
    ports = [port for port in listening_ports(host) if speaks_tls(port, own_authority)]
    assert len(ports) == SHARDS, "one for each shard that it serves"


def listening_ports(host: Daemon) -> set[int]:
    """Of all TCP sockets that its workers listen on."""
    inodes = set()
    for pid in host.worker_pids():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink()) if link.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in inodes}


def speaks_tls(port: int, own_authority: trustme.CA) -> bool:
    """Whether a TLS client that shows no certificate is refused for that."""
    context = ssl.create_default_context()
    own_authority.configure_trust(context)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.settimeout(60)
            return wrapped.recv(1) == b""
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in str(error).upper().replace(" ", "_")
    except OSError:
        return False
