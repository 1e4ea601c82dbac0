"""Fills streams from a `Reader` of another log: so a backup is restored into the log of a cluster.

The streams must exist and be empty: `check_empty` reads all of them before anything is written. A shard's log begins
with an epoch, which names the position and chain that the log continues, and a seal. Then the journal is opened, and
gets the batches, the snapshots, and a seal, so that its next owner need not wait. The map begins with its state.
Batches are stamped with the instant that the caller names.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain as chain_of

from crc32c import crc32c

from shards.journal import Reader, Unfit
from shards.journal.jetstream import map_log
from shards.journal.jetstream.connection import Connection
from shards.journal.jetstream.journal import JetStreamJournal
from shards.journal.jetstream.publisher import Publisher
from shards.journal.jetstream.record import EPOCH, FIRST_CHAIN, SEAL, Record, pack
from shards.journal.jetstream.streams import ReadStream

PATIENCE_S = 10.0
OWNER = b"restored from a backup"


def check_empty(connection: Connection, names: list[str], boot_ns: Callable[[], int]) -> None:
    """Raises Unfit where one of these streams holds a message, or ever held one."""
    filled = [name for name in names if ReadStream(connection, name, PATIENCE_S, boot_ns).state().last]
    if filled:
        raise Unfit(
            f"{', '.join(filled)}: not empty: a backup is restored into streams that were just made only. They are "
            "what a cluster serves from, or what a restore has left that was cut off"
        )


def fill_shard(
    connection: Connection, journal: JetStreamJournal, shard: int, reader: Reader, boot_ns: Callable[[], int]
) -> None:
    """Fills `J_<shard>` and `S_<shard>`.

    `journal`: that of the shard, not open yet; its clock returns the instant of all stamps. Raises what the reader and
    the journal raise.
    """
    log = ReadStream(connection, f"J_{shard}", PATIENCE_S, boot_ns)
    retained = reader.snapshots()
    base, chain = (retained[0].position, retained[0].chain) if retained else (0, FIRST_CHAIN)
    publisher = Publisher(log, 0, boot_ns)
    for kind in (EPOCH, SEAL):
        publisher.put(f"J.{shard}", pack(Record(kind, 1, 0, shard, 1, base, chain, chain, 0, 0, OWNER)))
    journal.open(shard, OWNER.decode())
    for position, payload in reader.replay(base + 1):
        assert journal.append(payload) == position
    for row in retained:
        journal.save_snapshot(row.position, reader.chunks(row.position))
    journal.close()


def fill_map(connection: Connection, reader: Reader, boot_ns: Callable[[], int], decided: bytes = b"") -> None:
    """Fills `M`, and adds `decided` as one more decision. Raises what the reader and the publisher raise."""
    stream = ReadStream(connection, map_log.NAME, PATIENCE_S, boot_ns)
    publisher = Publisher(stream, 0, boot_ns)
    retained = reader.snapshots()
    version, chain = 0, FIRST_CHAIN
    if retained:
        version, chain = retained[-1].position, retained[-1].chain
        state = b"".join(reader.chunks(version))
        publisher.put(map_log.STATE, map_log.pack(map_log.STATE, version, chain, state))
    more = [decided] if decided else []
    for payload in chain_of((payload for _, payload in reader.replay(version + 1)), more):
        version, chain = version + 1, crc32c(payload, chain)
        publisher.put(map_log.DECISION, map_log.pack(map_log.DECISION, version, chain, payload))
