"""Every replica of a stream, read through NATS' own client.

A server answers a direct get of a client that is connected to it out of its own replica (`read_from`). To be sure of
that, each server is also made the leader in its turn (`read_replicas`), which proves as well that its replica can lead.
"""

from __future__ import annotations

import asyncio
import json
import time

import nats
import nats.errors
from nats.aio.client import Client

from tests.shards.journal.nats_cluster import READY_S, NatsCluster

RUN_MESSAGES = 256  # of one request: a client that is slow loses what comes faster than it reads
ANSWER_S = 10.0


def wait_current(servers: NatsCluster, name: str) -> None:
    """Returns once no replica of the stream is behind its leader."""
    deadline = time.monotonic() + READY_S
    while True:
        cluster = servers.ask(f"STREAM.INFO.{name}").get("cluster") or {}
        replicas = cluster.get("replicas") or []
        current = [
            replica
            for replica in replicas
            if replica.get("current") and not replica.get("offline") and not replica.get("lag")
        ]
        if cluster.get("leader") and len(current) == len(servers.ports) - 1:
            return
        assert time.monotonic() < deadline, f"{name} has replicas that are behind: {cluster}"
        time.sleep(0.05)


def lead(servers: NatsCluster, name: str, number: int) -> None:
    """Makes this server the stream's leader."""
    deadline = time.monotonic() + READY_S
    while True:
        wait_current(servers, name)
        if servers.leader(name) == number:
            return
        servers.ask(f"STREAM.LEADER.STEPDOWN.{name}", {"placement": {"preferred": f"server-{number}"}})
        assert time.monotonic() < deadline, f"server-{number} does not lead {name}"
        time.sleep(0.02)


def read_replicas(servers: NatsCluster, name: str) -> list[list[tuple[int, bytes]]]:
    """(sequence, message) of all messages, as each server's replica has them. Nobody publishes meanwhile."""
    messages_of_servers = []
    for number, url in enumerate(servers.urls):
        lead(servers, name, number)
        messages_of_servers.append(asyncio.run(_read(url, name)))
        assert servers.leader(name) == number, "another server has taken the lead meanwhile"
    return messages_of_servers


def last_of(servers: NatsCluster, name: str) -> int:
    """The stream's last sequence, as its leader has it."""
    deadline = time.monotonic() + READY_S
    while "state" not in (reply := servers.ask(f"STREAM.INFO.{name}")):
        assert time.monotonic() < deadline, reply
        time.sleep(0.02)
    return int(reply["state"]["last_seq"])


def read_from(url: str, name: str, first: int, last: int) -> list[tuple[int, bytes]]:
    """(sequence, message) of `first` to `last`, from this server, which may still have to get them from the leader."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            messages = asyncio.run(_read_range(url, name, first, last))
            if not messages or messages[-1][0] >= last:
                return messages
            reason = f"it ends at {messages[-1][0]}"
        except (nats.errors.Error, OSError, TimeoutError) as error:
            reason = repr(error)
        assert time.monotonic() < deadline, f"{url} does not show {first} to {last} of {name}: {reason}"
        time.sleep(0.05)


async def _read_range(url: str, name: str, first: int, last: int) -> list[tuple[int, bytes]]:
    client = await nats.connect(url, allow_reconnect=False, connect_timeout=5)
    try:
        messages: list[tuple[int, bytes]] = []
        following = first
        while following <= last and (run := await _run(client, name, following)):
            messages += run
            following = messages[-1][0] + 1
        return [row for row in messages if row[0] <= last]
    finally:
        await client.close()


async def _read(url: str, name: str) -> list[tuple[int, bytes]]:
    client = await nats.connect(url, allow_reconnect=False)
    try:
        state = (await client.jetstream().stream_info(name)).state
        messages: list[tuple[int, bytes]] = []
        following = state.first_seq
        while following <= state.last_seq and state.messages:
            messages += await _run(client, name, following)
            following = messages[-1][0] + 1
        assert len(messages) == state.messages, f"{name} says {state.messages} messages, and shows {len(messages)}"
        return messages
    finally:
        await client.close()


async def _run(client: Client, name: str, first: int) -> list[tuple[int, bytes]]:
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    wish = json.dumps({"seq": first, "batch": RUN_MESSAGES}).encode()
    await client.publish(f"$JS.API.DIRECT.GET.{name}", wish, reply=inbox)
    messages: list[tuple[int, bytes]] = []
    while True:
        message = await subscription.next_msg(timeout=ANSWER_S)
        headers = message.headers or {}
        if "Nats-Sequence" not in headers:
            if headers.get("Status") not in ("204", "404"):  # the end of the run; no message from there on
                raise nats.errors.NoRespondersError
            await subscription.unsubscribe()
            return messages
        messages.append((int(headers["Nats-Sequence"]), message.data))
