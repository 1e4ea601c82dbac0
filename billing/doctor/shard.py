"""Examines one shard: replays its log from the oldest snapshot on, and compares it with its entries and snapshots.

A batch is `u32 count`, then count times `u32 length | kind u8 | bucket u16 | generation u32 | body`. Kind 1 is an
entry, 2 makes an empty bucket, 3 gives a bucket up, 4 takes a bucket over, with the other shard's copy as the body. A
part of a snapshot replaces all records of its bucket up to the part's position, which may be after the snapshot's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from billing.doctor import cutoffs
from billing.doctor.compare import Comparison
from billing.doctor.entry import WORD_MAX, Garbled, coins
from billing.doctor.history import HistoryFile, rows_of
from billing.doctor.likeness import contradictions, fingerprint
from billing.doctor.log import Batch, Log, base_of
from billing.doctor.owners import OwnerMap
from billing.doctor.part import read_block
from billing.doctor.replay import Replay, shown
from billing.doctor.report import CHECKS, Owed, Report
from billing.doctor.state import Account, Bucket
from billing.doctor.statements import Statements

ENTRY, OWN, LEAVE, RECEIVED = 1, 2, 3, 4
LATE_NS: Final = 60 * 10**9  # a shard that ran on for so long must have written entries for everything due

_U32 = struct.Struct("<I")
_RECORD = struct.Struct("<BHI")

Passed = dict[tuple[int, int], set[bytes]]  # (bucket id, generation) -> fingerprints


class Moves:
    """Fingerprints of the buckets that shards gave up and took over, by generation."""

    def __init__(self) -> None:
        self.left: Passed = {}
        self.arrived: Passed = {}

    def compare(self, report: Report) -> None:
        """Checks that each bucket's next owner took over exactly the state that the owner before gave up."""
        for (bucket_id, generation), left in self.left.items():
            arrived = self.arrived.get((bucket_id, generation + 1))
            if arrived is not None:
                report.count("owners", "moves compared")
                if not left & arrived:
                    text = f"bucket {bucket_id} did not arrive at generation {generation + 1} as it had left"
                    report.fault("owners", text)


def records(payload: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, bucket id, generation, body) of each record of a batch. Raises Garbled."""
    if len(payload) < 4:
        raise Garbled(f"a batch of {len(payload)} bytes")
    count, offset = _U32.unpack_from(payload)[0], 4
    for _ in range(count):
        length = _U32.unpack_from(payload, offset)[0] if offset + 4 <= len(payload) else 0
        end = offset + 4 + length
        if length < _RECORD.size or end > len(payload):
            raise Garbled(f"a record of {length} bytes at {offset} of {len(payload)}")
        kind, bucket_id, generation = _RECORD.unpack_from(payload, offset + 4)
        yield kind, bucket_id, generation, payload[offset + 4 + _RECORD.size : end]
        offset = end
    if offset != len(payload):
        raise Garbled(f"{len(payload) - offset} bytes behind the last record")


class Shard:
    """Examines one shard; has the state of its buckets while the log is replayed."""

    def __init__(
        self,
        log: Log,
        owners: OwnerMap | None,
        moves: Moves,
        statements: Statements,
        report: Report,
        ids_max: int,
    ) -> None:
        self.log = log
        self.held: dict[int, Bucket] = {}
        self._owners = owners
        self._moves = moves
        self._statements = statements
        self._report = report
        self._replay = Replay(report, ids_max)
        self._loaded_at: dict[int, int] = {}  # bucket id -> position up to which the base holds its records
        self.untouched: set[int] = set()  # buckets that arrived, without an entry since
        self._missed: set[int] = set()  # buckets that may have left while the base began, without a part in it
        self.entries = 0

    # -- the log ----------------------------------------------------------------------------------------------------

    def examine(self, history: HistoryFile | None, progress: Callable[[int], None]) -> bool:
        """Replays the whole log, and compares the history with it. Returns False if the log cannot be read to its end.
        `progress` is called with the number of bytes read so far, after each batch.
        """
        log, report = self.log, self._report
        base = base_of(log.first_position, log.snapshots)
        if base is None and log.first_position > 1:
            text = f"positions 1 to {log.first_position - 1} are missing, and no snapshot stands for them"
            report.fault("files", text, file=log.path)
            for _ in log.batches():
                progress(log.bytes_read)
            self._not_checked("its beginning is missing")
            return False
        start = base.position if base is not None else 0
        comparison = Comparison(log, base, report)
        self.held, self._loaded_at, self.untouched = comparison.load_base()
        if base is not None and self._owners is not None:
            self._missed = self._owners.owner.keys() - self._loaded_at.keys()
        comparison.await_parts()
        comparison.reach(start, self.held, 0)
        for batch in log.batches():
            if batch.position > start:
                self._batch(batch)
                comparison.reach(batch.position, self.held, self._replay.last_ns)
            if history is not None:
                self._compare_rows(history, batch)
            progress(log.bytes_read)
        if log.damage is not None:
            self._not_checked(f"everything from position {log.damage.position} on")
            return False
        comparison.end()
        if history is not None:
            history.end(log.first_position, log.head)
        self._end()
        return True

    def _compare_rows(self, history: HistoryFile, batch: Batch) -> None:
        with suppress(Garbled, struct.error):  # `_batch` reports it
            history.take(batch, *rows_of(records(batch.payload)))

    def _not_checked(self, why: str) -> None:
        for check in CHECKS:
            if check != "files":
                self._report.not_checked(check, f"shard {self.log.shard}: {why}")

    def _batch(self, batch: Batch) -> None:
        self._replay.file, self._replay.position = self.log.path, batch.position
        try:
            for kind, bucket_id, generation, body in records(batch.payload):
                if batch.position <= self._loaded_at.get(bucket_id, -1):
                    continue
                if kind == ENTRY:
                    self._entry(bucket_id, generation, body)
                elif kind in (OWN, RECEIVED):
                    self._take_over(bucket_id, generation, body, kind == RECEIVED)
                elif kind == LEAVE:
                    self._leave(bucket_id, generation)
                else:
                    self._fault("files", f"a record of the unknown kind {kind}")
        except (Garbled, struct.error) as reason:
            self._fault("files", str(reason))

    def _entry(self, bucket_id: int, generation: int, body: bytes) -> None:
        bucket = self.held.get(bucket_id)
        if bucket is None or bucket.generation != generation:
            has = "does not have it" if bucket is None else f"has it at generation {bucket.generation}"
            self._fault("owners", f"an entry of bucket {bucket_id} at generation {generation}, while the shard {has}")
            return
        self.untouched.discard(bucket_id)
        entry = self._replay.entry(bucket, body)
        if entry is None:
            return
        self.entries += 1
        self._report.count("accounts", "entries")
        self._statements.entry(entry, bucket.accounts.get(entry.user_id))
        if self._owners is not None and (right := self._owners.bucket_of(entry.user_id)) != bucket_id:
            text = f"an entry in bucket {bucket_id} for a user who belongs to bucket {right}"
            self._fault("accounts", text, entry.user_id)

    def _take_over(self, bucket_id: int, generation: int, block: bytes, moved: bool) -> None:
        self._missed.discard(bucket_id)
        if bucket_id in self.held:
            self._fault("owners", f"bucket {bucket_id} is taken over, and is here already")
        bucket = Bucket(bucket_id, generation)
        if moved:
            bucket, pending = read_block(bucket_id, generation, block)
            for user_id, text in contradictions(bucket, pending):
                self._fault("accounts", f"bucket {bucket_id} as it arrived: {text}", user_id)
            self.untouched.add(bucket_id)
            self._moves.arrived.setdefault((bucket_id, generation), set()).add(fingerprint(bucket))
        elif block:
            self._fault("files", f"bucket {bucket_id} is made of {len(block)} bytes, and should be empty")
        self.held[bucket_id] = bucket

    def _leave(self, bucket_id: int, generation: int) -> None:
        bucket = self.held.pop(bucket_id, None)
        if bucket is None and bucket_id in self._missed:
            self._missed.discard(bucket_id)
        elif bucket is None or bucket.generation != generation:
            self._fault("owners", f"bucket {bucket_id} at generation {generation} is given up, and is not here")
        elif bucket_id not in self.untouched:  # an untouched copy may be of a move that was never decided
            self._moves.left.setdefault((bucket_id, generation), set()).add(fingerprint(bucket))
        self.untouched.discard(bucket_id)

    def _fault(self, check: str, text: str, user_id: bytes = b"") -> None:
        replay = self._replay
        self._report.fault(check, text, file=replay.file, position=replay.position, account=user_id)

    # -- the end ----------------------------------------------------------------------------------------------------

    def owned(self) -> Iterator[Bucket]:
        """The buckets that the map assigns to this shard, without copies left over from moves."""
        for bucket in self.held.values():
            if self._owners is None or self._owners.owner.get(bucket.bucket_id) == (
                self.log.shard,
                bucket.generation,
            ):
                yield bucket

    def _end(self) -> None:
        """Checks the state at the end of the log, and records the calls that are owed and the instants that are
        coming.
        """
        report = self._report
        for bucket in self.owned():
            for account in bucket.accounts.values():
                self._end_account(bucket, account)
            balances = sum(account.balance for account in bucket.accounts.values())
            report.count("accounts", "accounts", len(bucket.accounts))
            report.count("conservation", "accounts", len(bucket.accounts))
            report.count("conservation", "buckets")
            if balances != bucket.expected_balance():
                off = coins(balances - bucket.expected_balance())
                text = f"the balances of bucket {bucket.bucket_id} are {off} above what its entries sum up to"
                report.fault("conservation", text, file=self.log.path)
            for name, total in bucket.totals.items():
                report.add(name, total)
            report.add("balances", balances)

    def _end_account(self, bucket: Bucket, account: Account) -> None:
        report, log = self._report, self.log
        if account.net != account.balance:
            text = f"its entries sum up to {coins(account.net)}, its balance is {coins(account.balance)}"
            report.fault("conservation", text, file=log.path, account=account.user_id)
        if account.firing:
            text = f"no entry of the {shown(account.firing[0])}, at the end of the log"
            report.fault("accounts", text, file=log.path, account=account.user_id)
        if account.class_name:
            report.classes[account.class_name] = report.classes.get(account.class_name, 0) + 1
        owed = cutoffs.owed(account)
        if owed is not None:
            user_id = account.user_id.decode(errors="backslashreplace")
            report.owe(Owed(user_id, bucket.bucket_id, *owed))
        due_ns, _ = account.coming()
        if due_ns > WORD_MAX:
            return
        report.count("cutoffs", "instants coming")
        if due_ns <= log.last_time_ns:
            went_on_ns = log.last_time_ns - max(due_ns, log.life_began_ns)
            if log.life_began_ns and went_on_ns > LATE_NS:
                text = f"nothing came of what was due at {due_ns}, though the shard went on for {went_on_ns // 10**9} s"
                report.fault("accounts", text, file=log.path, account=account.user_id)
            else:
                report.count("cutoffs", "due at the next start")
