"""Compares each part of a shard's snapshots with the state that the log produces at the part's position.

Recovery begins with the newest good snapshot. The doctor begins with the oldest, so that it can compare every newer
snapshot with the replayed log. It reads the parts one at a time, when the replay reaches their position.

The number of request ids that a bucket keeps is a setting of which only the present value is known. A snapshot may keep
fewer ids than the replay only if all its buckets stop at the same number: then the limit was lower at the time.
"""

from __future__ import annotations

import struct

from billing.doctor.entry import Garbled
from billing.doctor.likeness import contradictions, differences, kept_alike
from billing.doctor.log import Log, Snapshot
from billing.doctor.part import Head, Part, read_head, read_part
from billing.doctor.report import Report
from billing.doctor.state import Bucket
from shards.counting import counted

LEAVING_BATCHES = 8  # a snapshot may lack a bucket whose departure follows in the log within so many batches


class Comparison:
    """Compares the snapshots of one shard. `base`: the snapshot with which the replay begins, if any."""

    def __init__(self, log: Log, base: Snapshot | None, report: Report) -> None:
        self._log = log
        self._base = base
        self._report = report
        self._loaded_at: dict[int, int] = {}  # bucket id -> position up to which the base holds its records
        self._waiting: list[tuple[int, int, int]] = []  # (position, snapshot, chunk) of parts to compare, last first
        self._fewer: dict[int, list[tuple[int, int, int]]] = {}  # snapshot -> (bucket id, ids kept in it, by the log)
        self._most: dict[int, int] = {}  # snapshot -> the most request ids that any bucket in it keeps
        self._missing: dict[int, tuple[str, int]] = {}  # bucket id -> (snapshot without it, its position)
        self._buckets: dict[int, tuple[int, set[int]]] = {}  # its position -> (snapshot, buckets it has a part of)

    def load_base(self) -> tuple[dict[int, Bucket], dict[int, int], set[int]]:
        """Reads the base: (bucket id -> its state in the base, bucket id -> position up to which the state includes its
        records, ids of the untouched buckets).
        """
        held: dict[int, Bucket] = {}
        untouched: set[int] = set()
        if self._base is not None:
            path = self._path(self._base)
            for index, _ in enumerate(self._log.heads(self._base)):
                part = self._part(path, self._log.part(self._base, index))
                if part is None:
                    continue
                if part.head.bucket_id in self._loaded_at:
                    self._fault(path, f"bucket {part.head.bucket_id} has two parts in the snapshot")
                self._loaded_at[part.head.bucket_id] = part.head.position
                if part.bucket is not None:
                    held[part.head.bucket_id] = part.bucket
                if part.head.is_untouched:
                    untouched.add(part.head.bucket_id)
        return held, self._loaded_at, untouched

    def await_parts(self) -> None:
        """Notes the position at which each part of the other snapshots has to be compared."""
        for number, snapshot in enumerate(self._log.snapshots):
            path = self._path(snapshot)
            if self._base is not None and snapshot.position < self._base.position:
                self._report.note(f"{path} is older than the log: nothing can be held against it")
            elif snapshot is not self._base:
                here: set[int] = set()
                self._buckets[snapshot.position] = number, here
                for index, first_bytes in enumerate(self._log.heads(snapshot)):
                    head = self._head(path, first_bytes, snapshot)
                    if head is not None:
                        here.add(head.bucket_id)
                        self._waiting.append((head.position, number, index))
        self._waiting.sort(reverse=True)

    def _head(self, path: str, data: bytes, snapshot: Snapshot) -> Head | None:
        try:
            head = read_head(data)
        except Garbled as reason:
            self._fault(path, str(reason))
            return None
        if head.position < snapshot.position:
            self._fault(path, f"the part of bucket {head.bucket_id} holds records up to position {head.position} only")
            return None
        return head

    def reach(self, position: int, held: dict[int, Bucket], now_ns: int) -> None:
        """Compares the parts of snapshots at `position`, up to which the log has been replayed now."""
        for bucket_id, (_, at) in list(self._missing.items()):
            if bucket_id not in held:
                del self._missing[bucket_id]
            elif position - at >= LEAVING_BATCHES:
                self._miss(bucket_id)
        number, here = self._buckets.pop(position, (-1, set()))
        if number >= 0:
            path = self._path(self._log.snapshots[number])
            self._missing.update((bucket_id, (path, position)) for bucket_id in held.keys() - here)
        while self._waiting and self._waiting[-1][0] <= position:
            _, number, index = self._waiting.pop()
            snapshot = self._log.snapshots[number]
            path = self._path(snapshot)
            part = self._part(path, self._log.part(snapshot, index))
            if part is not None and self._loaded_at.get(part.head.bucket_id, -1) <= part.head.position:
                self._compare(path, number, part, held.get(part.head.bucket_id), now_ns)

    def _miss(self, bucket_id: int) -> None:
        path, at = self._missing.pop(bucket_id)
        self._fault(path, f"no part of bucket {bucket_id}, which the shard holds at position {at}")

    def _compare(self, path: str, number: int, part: Part, bucket: Bucket | None, now_ns: int) -> None:
        self._report.count("snapshots", "parts compared")
        where = f"bucket {part.head.bucket_id} at position {part.head.position}"
        if bucket is None or part.bucket is None:
            if bucket is not None or part.bucket is not None:
                here = "the log" if bucket is not None else "the snapshot"
                self._fault(path, f"{where} is there by {here} alone")
            return
        for user_id, text in differences(bucket, part.bucket, now_ns):
            self._fault(path, f"{where}: {text}", user_id)
        expected, held = len(bucket.order), len(part.bucket.order)
        self._most[number] = max(self._most.get(number, 0), held)
        alike = kept_alike(bucket, part.bucket)
        if alike is None and held < expected:
            self._fewer.setdefault(number, []).append((part.head.bucket_id, held, expected))
        elif alike is False:
            self._report.fault("requests", f"{where} keeps other request ids than its entries say", file=path)

    def end(self) -> None:
        """Reports what remains after the whole log was replayed: missing buckets, too few request ids, parts that are
        ahead of the log.
        """
        for bucket_id in sorted(self._missing):
            self._miss(bucket_id)
        for number, fewer in self._fewer.items():
            path = self._path(self._log.snapshots[number])
            most = self._most[number]
            for bucket_id, held, expected in fewer:
                if held < most:
                    self._report.fault(
                        "requests", f"bucket {bucket_id} keeps {held} of {counted(expected, 'request id')}", file=path
                    )
            if any(held == most for _, held, _ in fewer):
                self._report.note(
                    f"{path} keeps at most {counted(most, 'request id')} a bucket: the limit was lower then"
                )
        for position, number, _ in self._waiting:
            text = f"a part stands for position {position}, which the log does not have"
            self._fault(self._path(self._log.snapshots[number]), text)

    def _part(self, path: str, data: bytes) -> Part | None:
        """Parses a whole part, and reports contradictions in it. None, with a fault, if it cannot be read."""
        self._report.count("snapshots", "parts")
        try:
            part = read_part(data)
        except (Garbled, struct.error) as reason:
            self._fault(path, f"a part of the snapshot cannot be read: {reason}")
            return None
        if part.bucket is not None:
            for user_id, text in contradictions(part.bucket, part.pending):
                self._fault(path, f"bucket {part.head.bucket_id}: {text}", user_id)
        return part

    def _path(self, snapshot: Snapshot) -> str:
        return f"{self._log.path}/{snapshot.name}"

    def _fault(self, path: str, text: str, user_id: bytes = b"") -> None:
        self._report.fault("snapshots", text, file=path, account=user_id)
