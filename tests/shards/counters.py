"""A second application for the shards room: counters. It shows that the room knows nothing of money.

A bucket is a dict of counters. A command `("add", name, amount)` adds and answers the new value; `("at", name, due_ns)`
lets time add one at an instant. Records are the commands with their instant as text.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

from shards.machine import Command, Effect, Record


class Counters:
    """Implements `shards.machine.Machine`."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.notices: list[Effect] = []
        self.buckets: dict[int, dict[str, Any]] = {}
        self.now_ns = 0
        self.awake: set[int] = set()

    def apply(self, bucket_id: int, command: Command, now_ns: int) -> object:
        outcome = self._step(bucket_id, command, now_ns)
        self.records.append((bucket_id, json.dumps([now_ns, list(command), outcome]).encode()))
        if command[0] == "tell":
            self.notices.append(("told", now_ns, bucket_id, command[1]))
        return outcome

    def _step(self, bucket_id: int, command: Command, now_ns: int) -> object:
        bucket = self.buckets[bucket_id]
        match command:
            case ("add", name, amount):
                bucket[name] = bucket.get(name, 0) + amount
                return bucket[name]
            case ("at", name, due_ns):
                bucket[f"due {name}"] = [due_ns, now_ns]
                return due_ns
            case ("fire", name):
                bucket.pop(f"due {name}")
                bucket[name] = bucket.get(name, 0) + 1
                return bucket[name]
            case ("tell", _):
                return "told"
        raise AssertionError(command)

    def read(self, bucket_id: int, query: Command, now_ns: int) -> object:
        return self.buckets[bucket_id].get(query[1], 0)

    def survey(self, query: Command, now_ns: int) -> object:
        return sum(value for bucket in self.buckets.values() for value in bucket.values() if isinstance(value, int))

    def _coming(self) -> list[tuple[int, int, int, str]]:
        return sorted(
            (value[0], value[1], bucket_id, name[4:])
            for bucket_id, bucket in self.buckets.items()
            for name, value in bucket.items()
            if name.startswith("due ")
        )

    def due(self, now_ns: int, limit: int) -> bool:
        coming = [event for event in self._coming() if event[0] <= now_ns and event[2] in self.awake]
        for due_ns, since_ns, bucket_id, name in coming[:limit]:
            outcome = self._step(bucket_id, ("fire", name), due_ns)
            self.records.append((bucket_id, json.dumps([due_ns, ["fire", name], outcome]).encode()))
            self.notices.append(("fired", since_ns, bucket_id, name))
        return len(coming) > limit

    def next_due_ns(self) -> int:
        coming = [event for event in self._coming() if event[2] in self.awake]
        return coming[0][0] if coming else -1

    def bucket_due_ns(self, bucket_id: int, until_ns: int) -> int:
        return min((event[0] for event in self._coming() if event[2] == bucket_id and event[0] <= until_ns), default=-1)

    def replay(self, bucket_id: int, body: bytes) -> None:
        now_ns, command, outcome = json.loads(body)
        assert self._step(bucket_id, tuple(command), now_ns) == outcome

    def start(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def arm(self, bucket_id: int) -> None:
        assert bucket_id in self.buckets
        self.awake.add(bucket_id)

    def arming(self, bucket_id: int) -> Iterator[None]:
        self.arm(bucket_id)
        yield from ()

    def disarm(self, bucket_id: int) -> None:
        self.awake.remove(bucket_id)

    def create(self, bucket_id: int) -> None:
        self.buckets[bucket_id] = {}

    def dump(self, bucket_id: int) -> bytes:
        return json.dumps(self.buckets[bucket_id], sort_keys=True).encode()

    def dumping(self, bucket_id: int) -> Generator[None, None, bytes]:
        yield  # as one that is large: in two slices
        return self.dump(bucket_id)

    def loading(self, bucket_id: int, block: bytes) -> Generator[None, None, dict[str, Any]]:
        yield
        content: dict[str, Any] = json.loads(block)
        return content

    def put(self, bucket_id: int, content: dict[str, Any]) -> None:
        self.buckets[bucket_id] = content

    def load(self, bucket_id: int, block: bytes) -> None:
        self.buckets[bucket_id] = json.loads(block)

    def drop(self, bucket_id: int) -> None:
        del self.buckets[bucket_id]
        self.awake.discard(bucket_id)

    def dropping(self, bucket_id: int) -> Iterator[None]:
        self.drop(bucket_id)
        yield from ()
