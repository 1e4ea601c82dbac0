"""The mark of a restored backup on hosts that share the log: each has it before its first worker starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shards.journal import Unfit
from shards.restored import FIRST_SERVED, RESTORED, REWOUND, TAKEN_AT, Mark, Restored, check_restored, rewound_ns
from shards.supervisor.registry import records_of_restore
from shards.system.host import REAL
from tests.shards.supervisor.hosts import HostRegistry, PartOf, part

__all__ = ["part"]

TAKEN_NS, RESTORED_NS, FIRST_NS = (1_700_000_000_000_000_000 + number for number in (5, 7, 9))
RESTORED_THEN = Restored(TAKEN_NS, restored_at_ns=RESTORED_NS)


def mark_of(host: HostRegistry) -> Path:
    return Path(host.registry._data_dir) / RESTORED


def rewound_of(host: HostRegistry) -> int:
    return rewound_ns(REAL.disk, host.registry._data_dir)


def content_of(host: HostRegistry) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(mark_of(host).read_text())
    return content


async def test_every_host_has_the_mark_until_one_releases(part: PartOf) -> None:
    a = part("a").joined()
    await a.registry.record(*msgspec.msgpack.decode(records_of_restore({1: 7}, RESTORED_THEN, [])))
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
    assert [rewound_of(host) for host in (a, b, c, late)] == [RESTORED_NS] * 4, "this stays"


async def test_every_host_keeps_the_latest_restore_that_it_has_heard_of(part: PartOf) -> None:
    a = part("a").joined()
    assert rewound_of(a) == 0
    for later_ns, expected_ns in ((0, 0), (2, 2), (1, 2)):
        await a.registry.record(Restored(TAKEN_NS, restored_at_ns=RESTORED_NS + later_ns).record())
        a.registry._load()
        assert rewound_of(a) == RESTORED_NS + expected_ns


@pytest.mark.parametrize("written", ["yesterday", "", "-1", "1795872287", "1795872287000"])
def test_a_host_that_cannot_read_when_its_data_were_restored_does_not_begin(tmp_path: Path, written: str) -> None:
    """As where an operator wrote seconds: numbers would be given again without a word."""
    (tmp_path / REWOUND).write_text(f"{written}\n")
    with pytest.raises(Unfit, match="no wall time in nanoseconds") as refused:
        check_restored(REAL.disk, str(tmp_path))
    assert refused.value.file == str(tmp_path / REWOUND)


async def test_the_hosts_of_a_backup_take_no_part_after_a_restore_and_none_is_drained(part: PartOf) -> None:
    a = part("a").joined()
    part("b").joined()
    assert await a.registry.catch_up()
    await a.registry.record(["drained", "b", True])
    _, payloads = a.registry._log.load("test")
    await a.registry.record(*msgspec.msgpack.decode(records_of_restore({}, RESTORED_THEN, payloads)))
    shares = a.registry.shares
    assert (shares.members, shares.drained, shares.is_used) == ({}, set(), False)
    b = part("b").joined()
    assert [member.node for member in b.registry.shares.members.values()] == ["b"]
    assert not b.registry.shares.drained


async def test_a_mark_that_was_removed_here_is_not_made_again(part: PartOf) -> None:
    a, b = part("a").joined(), part("b").joined()
    await a.registry.record(RESTORED_THEN._replace(first_served_ns=FIRST_NS).record())
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
    await a.registry.record(RESTORED_THEN._replace(first_served_ns=FIRST_NS).record())
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
    await a.registry.record(RESTORED_THEN._replace(first_served_ns=FIRST_NS).record(), ["released", TAKEN_NS])
    assert await b.registry.catch_up()
    assert content_of(b) == {TAKEN_AT: TAKEN_NS + 1}
