"""The mark of a restored backup on hosts that share the log: each has it before its first worker starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from shards.restored import FIRST_SERVED, RESTORED, TAKEN_AT, Mark
from shards.supervisor.registry import records_of_restore
from shards.system.host import REAL
from tests.shards.supervisor.hosts import HostRegistry, PartOf, part

__all__ = ["part"]

TAKEN_NS, FIRST_NS = 5, 9


def mark_of(host: HostRegistry) -> Path:
    return Path(host.registry._data_dir) / RESTORED


def content_of(host: HostRegistry) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(mark_of(host).read_text())
    return content


async def test_every_host_has_the_mark_until_one_releases(part: PartOf) -> None:
    a = part("a").joined()
    await a.registry.record(*msgspec.msgpack.decode(records_of_restore({1: 7}, TAKEN_NS, [])))
    assert a.registry.settled == {1: 7}
    mark_of(a).write_text(json.dumps({TAKEN_AT: TAKEN_NS}))  # by the restore
    a.registry._restore([])
    a.registry._load()
    b = part("b").joined()
    assert content_of(b) == {TAKEN_AT: TAKEN_NS}
    mark_of(a).write_text(json.dumps({TAKEN_AT: TAKEN_NS, FIRST_SERVED: FIRST_NS}))  # by the first worker
    await a.registry.note_restored()
    await a.registry.note_restored()
    c = part("c").joined()
    assert content_of(c) == {TAKEN_AT: TAKEN_NS, FIRST_SERVED: FIRST_NS}, "who runs out later is called by any host"
    assert await b.registry.catch_up()
    assert content_of(b) == content_of(c), "also by a host that had the mark before any served"
    mark_of(a).unlink()  # the release
    await a.registry.note_restored()
    for host in (b, c):
        assert await host.registry.catch_up()
        assert not mark_of(host).exists()
        await host.registry.note_restored()
        assert not await host.registry.catch_up(), "nothing new is said"
    late = part("d").joined()
    assert not mark_of(late).exists()


async def test_the_hosts_of_a_backup_take_no_part_after_a_restore_and_none_is_drained(part: PartOf) -> None:
    a = part("a").joined()
    part("b").joined()
    assert await a.registry.catch_up()
    await a.registry.record(["drained", "b", True])
    _, payloads = a.registry._log.load("test")
    await a.registry.record(*msgspec.msgpack.decode(records_of_restore({}, TAKEN_NS, payloads)))
    shares = a.registry.shares
    assert (shares.members, shares.drained, shares.is_used) == ({}, set(), False)
    b = part("b").joined()
    assert [member.node for member in b.registry.shares.members.values()] == ["b"]
    assert not b.registry.shares.drained


async def test_a_mark_that_was_removed_here_is_not_made_again(part: PartOf) -> None:
    a, b = part("a").joined(), part("b").joined()
    await a.registry.record(["restored", TAKEN_NS, FIRST_NS])
    assert await b.registry.catch_up()
    mark_of(b).unlink()
    await a.registry.record(["pin", 1])
    assert await b.registry.catch_up()
    assert not mark_of(b).exists()
    await b.registry.note_restored()
    assert await a.registry.catch_up()
    assert a.registry.restored.is_released


async def test_a_host_that_ends_right_behind_the_release_says_so_at_its_next_start(part: PartOf) -> None:
    a = part("a").joined()
    await a.registry.record(["restored", TAKEN_NS, FIRST_NS])
    a.registry._load()
    mark_of(a).unlink()  # the release, and the end of the host, which nobody has heard of
    a.registry._mark = Mark(REAL.disk, a.registry._data_dir)  # of its next process
    a.registry._load()
    assert not mark_of(a).exists()
    await a.registry.note_restored()
    assert a.registry.restored.is_released


async def test_a_mark_of_another_backup_stays(part: PartOf) -> None:
    a, b = part("a").joined(), part("b").joined()
    mark_of(b).write_text(json.dumps({TAKEN_AT: TAKEN_NS + 1}))
    await a.registry.record(["restored", TAKEN_NS, FIRST_NS], ["released", TAKEN_NS])
    assert await b.registry.catch_up()
    assert content_of(b) == {TAKEN_AT: TAKEN_NS + 1}
