"""Reads a shard's streams without owning them: it publishes nothing, and the owner may go on meanwhile.

The head is the last whole batch that the stream's leader shows, so everything that is read is on a majority.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from shards.journal import Corrupt, Gap, Retained
from shards.journal.jetstream import log, snapshots
from shards.journal.jetstream.connection import Connection
from shards.journal.jetstream.record import FIRST_CHAIN, Malformed
from shards.journal.jetstream.streams import ReadStream, State

PATIENCE_S = 10.0

T = TypeVar("T")


class JetStreamReader:
    """Implements `shards.journal.Reader` for a shard; `map_log.MapReader` is that of the map."""

    def __init__(self, connection: Connection, shard: int, boot_ns: Callable[[], int]) -> None:
        self._connection = connection
        self._shard = shard
        self._log = ReadStream(connection, f"J_{shard}", PATIENCE_S, boot_ns)
        self._saved = ReadStream(connection, f"S_{shard}", PATIENCE_S, boot_ns)
        self._replayed: log.Place | None = None  # the end of the last replay, where the next one may begin

    @property
    def first(self) -> int:
        return self._settled(lambda state: log.first_position(self._log, state.first, state.last, self._shard))

    @property
    def head(self) -> int:
        return self._end(self._log.state()).position

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        return self._settled(lambda state: self._replay_from(start, state))

    def _settled(self, look: Callable[[State], T]) -> T:
        """Calls `look` with the state of the log and returns its result. Where the owner has trimmed a record that
        `look` reads, it calls `look` again with the new state.
        """
        state = self._log.state()
        while True:
            try:
                return look(state)
            except Gap:
                before, state = state, self._log.state()
                if state.first == before.first:
                    raise

    def _replay_from(self, start: int, state: State) -> Iterator[tuple[int, bytes]]:
        end = self._end(state)
        if not 1 <= start <= end.position + 1:
            raise Gap(f"position {start} is not in {self._log.name}, which ends at {end.position}")
        if start == end.position + 1:
            return iter(())
        after = self._replayed
        if after is None or after.position != start - 1 or after.sequence < state.first:
            after = log.locate(self._log, state.first, state.last, start - 1, self._shard)
        return self._replay(after, state.last, end)

    def _replay(self, after: log.Place, last: int, end: log.Place) -> Iterator[tuple[int, bytes]]:
        yield from log.replayed(self._log, self._shard, after, last, end.position)
        self._replayed = end

    def snapshots(self) -> list[Retained]:
        try:
            manifests = snapshots.manifests_of(self._saved, self._shard)
        except Malformed as fault:
            raise Corrupt(f"{self._saved.name}: {fault}") from fault
        newest = {
            manifest.position: manifest for manifest in manifests
        }  # a shard that was still has two at one position
        return [Retained(manifest.position, manifest.chain, manifest.reached) for manifest in newest.values()]

    def chunks(self, position: int) -> Iterator[bytes]:
        try:
            for manifest in reversed(snapshots.manifests_of(self._saved, self._shard)):
                if manifest.position == position:
                    yield from snapshots.chunks_of(self._saved, manifest)
                    return
        except Malformed as fault:
            raise Corrupt(f"the snapshot is damaged: {fault}", position=position) from fault
        raise Gap("there is no such snapshot", position=position)

    def close(self) -> None:
        self._connection.close()

    def _end(self, state: State) -> log.Place:
        if state.first > state.last:
            return log.Place(0, 0, FIRST_CHAIN)
        return log.end_of(self._log, state.first, state.last, self._shard)[0]
