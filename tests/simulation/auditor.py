"""The auditor: it watches the disk, the clients and the endpoint from outside, and says what must not be.

It shares no code with the ledger or the journal: it decodes what becomes durable at the moment it does (every sync of
every file passes here), folds it by its own arithmetic, and holds what clients and endpoint see against it.

Which invariant is checked where:

- I1, I6 (conservation, history = balance), I8 (positions, entry ids, instants rise by one / never go back), I5 (each
  entry was asked for): at each durable batch, `accounts.AuditedAccount.fold` and `_take_entry`.
- I2, I4 (no answer from what is not durable, reads and repeated answers too) and the order of what one after the other
  asked for: at each answer, `answered`. Since the log only grows here (I9: a durable batch that comes back otherwise
  is caught in `_batch`), an answered entry can never be lost unseen; that it is *found again* is asked of the real
  recovery by `World`, at each quiet point.
- I3 (nothing twice): at each durable entry with a request_id or a message, and at each repeated answer.
- I7: a retry with the same request_id is held against the entry that the first one made, or did not.
- I10, I11 (replay equivalence; damage): `World.check_recovery`, and the runs with bit rot.
- I12, I13, I15 (single owner, generations): at each durable record of a shard, against the durable map.
- I14: `tests/simulation/test_move_matrix.py`; here: entries go on across a move without a gap or a change.
- I16: the lock of the directory, `tests/shards/journal`. I17, I19, I21 (never early, stable, never stale): at each
  attempt. And one account is called by one attempt at a time, wherever its bucket is.
- I25 (one user holds up nobody else): throughout, `promptly`; with a crowd of sick users in the last act of some runs,
  `beside`.
- Nothing that waits for an instant is woken before it: at each setting of a worker's alarm, `armed`.
- I18, I24 (every cutoff ends delivered or superseded, everything ends): `finish`.
- I20, I22, I23 are figures of the real machine and are not checked here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack

from tests.simulation.accounts import TIME_CAUSED, AuditedAccount
from tests.simulation.calls import COMMANDS, Call
from tests.simulation.decode import (
    CUTOFF_DELIVERED,
    CUTOFF_FAILED,
    CUTOFF_STARTED,
    OUTSIDE,
    REFUSED,
    Item,
    Segment,
    batches_of,
    item_of,
    records_of,
    segment_of,
)

ENTRY, OWN, LEAVE, RECEIVED = 1, 2, 3, 4


class Violation(AssertionError):
    """Something that must not be."""


def billing_of(anchors: Iterable[tuple[int, int, int, int]], boot_ns: int) -> int:
    """Billing time at a boot instant, by anchors of (boot_ns, billing_ns, correction_ns, slew_ppm)."""
    at_ns = 0
    for anchor_ns, billing_ns, correction_ns, ppm in anchors:
        elapsed = boot_ns - anchor_ns
        if elapsed >= 0 or not at_ns:
            reach = elapsed * ppm // 10**6
            at_ns = billing_ns + elapsed
            if elapsed > 0:
                at_ns += max(-reach, min(reach, correction_ns))
    return at_ns


class Auditor:
    """What is durable, what was answered, what was called."""

    TOLD_AHEAD_NS_MAX = 1_000_000_000  # so far behind the last batch a new boot begins

    def __init__(self, medium: Any, accrues: bool) -> None:
        self.accrues = accrues
        self.users: dict[bytes, AuditedAccount] = {}
        self.owner: dict[int, tuple[int, int]] = {}  # bucket -> (shard, generation), by the map's journal
        self.held: dict[int, dict[int, int]] = {}  # shard -> bucket -> generation, by its own
        self.anchors: list[tuple[int, int, int, int]] = []  # (boot_ns, billing_ns, correction_ns, slew_ppm)
        self.by_request: dict[tuple[bytes, bytes], Item] = {}
        self.entries = self.batches = self.attempts = 0
        self.delivered: dict[tuple[bytes, int], int] = {}  # (user, seq) -> 2xx
        self.restored: dict[bytes, int] = {}  # user -> seq of the last restore that got its 2xx
        self.events: dict[tuple[bytes, int, str], tuple[str, int]] = {}
        self.last_call: dict[bytes, tuple[str, int]] = {}  # the newest call that the endpoint took
        self.first_ns: dict[bytes, int] = {}  # user -> lateness of the first attempt of the newest cutoff
        self.seen: dict[bytes, int] = {}  # user -> the highest entry_id that an answer told
        self._medium = medium
        self._read: dict[int, tuple[Any, Segment, int, int]] = {}  # id of a node -> it, and how far it was read
        self._payloads: dict[tuple[str, int], bytes] = {}
        self._heads: dict[str, int] = {}
        self._tags: set[bytes] = set()
        self._attempted: set[tuple[bytes, int, str]] = set()
        self._asked: dict[tuple[bytes, bytes], Call] = {}
        self._asked_tags: dict[bytes, Call] = {}
        self._plain: dict[tuple[bytes, int, int, bytes], int] = {}
        self._boot = b""
        self._latest: dict[int, int] = {}  # shard -> the last instant in its journal
        self._stamp_ns = 0  # of the newest batch of any shard
        self._calling: dict[bytes, str] = {}  # user -> the attempt that is under way
        self._called_ns: dict[bytes, int] = {}  # user -> when the last attempt was over
        self.on_entry: Callable[[int, int, int, Item], None] = lambda shard, position, index, item: None
        self.on_retire: Callable[[int], None] = lambda shard: None  # it is durable that the shard goes
        self.late: Callable[[], set[int]] = set  # shards that a start does not wait for

    def wrong(self, text: str) -> None:
        """Ends the run."""
        raise Violation(text)

    # -- what becomes durable ---------------------------------------------------------------------------------------

    def on_sync(self, path: str, node: Any) -> None:
        """What of this file is durable has changed, or is reachable by name now."""
        directory, _, name = path.rpartition("/")
        if not name.startswith("segment-") or name.endswith(".torn"):
            return
        if self._medium.directories[directory].stable.get(name) is not node:
            return  # a power cut would take the name away
        progress = self._read.get(id(node))
        if progress is None:
            segment = segment_of(node.stable)
            if segment is None:
                return
            offset, chain = 4096, segment.chain
        else:
            _, segment, offset, chain = progress
        journal = directory.rpartition("/")[2]
        for batch in batches_of(node.stable, segment, offset, chain):
            position, payload, offset, chain, stamp_ns = batch
            if position:
                self._batch(journal, position, payload)
                if journal != "map":
                    self._stamp_ns = max(self._stamp_ns, stamp_ns)
        self._read[id(node)] = node, segment, offset, chain

    def _batch(self, journal: str, position: int, payload: bytes) -> None:
        payload_known = self._payloads.get((journal, position))
        if payload_known is not None:
            if payload_known != payload:
                self.wrong(f"batch {position} of {journal} was durable and is another one now (I9)")
            return
        head = self._heads.get(journal, 0)
        if position != head + 1:
            self.wrong(f"batch {position} of {journal} after {head} (I8)")
        self._heads[journal] = position
        self._payloads[journal, position] = payload
        self.batches += 1
        if journal == "map":
            for record in msgpack.unpackb(payload, use_list=True):
                self._decide(record)
            return
        shard = int(journal.rpartition("-")[2])
        generations = self.held.setdefault(shard, {})
        for index, (kind, bucket, generation, body) in enumerate(records_of(payload)):
            if kind == ENTRY:
                if generations.get(bucket) != generation:
                    self.wrong(f"shard {shard} wrote to bucket {bucket} at {generation}, holding {generations} (I13)")
                owner = self.owner.get(bucket)
                if owner != (shard, generation):
                    self.wrong(f"shard {shard} wrote to bucket {bucket} at {generation}, which is {owner} (I12)")
                item = item_of(body)
                self._take_entry(item)
                self.on_entry(shard, position, index, item)
                self._latest[shard] = max(item.at_ns, self._latest.get(shard, 0))
            elif kind in (OWN, RECEIVED):
                generations[bucket] = generation
                if kind == OWN and self.owner.get(bucket) != (shard, generation):
                    self.wrong(f"shard {shard} made bucket {bucket}, which is {self.owner.get(bucket)} (I12)")
            elif kind == LEAVE:
                if self.owner.get(bucket, (0, 0)) == (shard, generation):
                    self.wrong(f"shard {shard} gave up bucket {bucket}, which it owns (I12)")
                generations.pop(bucket, None)

    def _decide(self, record: list[Any]) -> None:
        kind = record[0]
        if kind == "create":
            _, count, _, shards = record
            for bucket in range(1, count + 1):
                self.owner[bucket] = shards[(bucket - 1) * len(shards) // count], 1
        elif kind == "assign":
            _, bucket, shard, generation = record
            if generation != self.owner[bucket][1] + 1:
                self.wrong(f"bucket {bucket} went from {self.owner[bucket]} to generation {generation} (I13)")
            if self.held.get(shard, {}).get(bucket) != generation:
                self.wrong(f"bucket {bucket} was decided for shard {shard}, which has not stored it (I14)")
            self.owner[bucket] = shard, generation
        elif kind == "retire":
            self.on_retire(record[1])
        elif kind == "anchor":
            _, ppm, boot, boot_ns, billing_ns, correction_ns = struct.unpack("<4sI16sqqq", record[1])
            if boot == self._boot and self.anchors and self.billing_ns(boot_ns) != billing_ns:
                # A shard that was kept out when the boot's time was made (it was damaged), and comes back later in the
                # same boot: time goes on from the last of its instants (I8), or from as far behind its last batch,
                # which may be later, as a call may have been told ahead in an earlier boot.
                reference_ns, latest = self.billing_ns(boot_ns), max(self._latest.values(), default=0)
                until_ns = max(latest, self._stamp_ns) + self.TOLD_AHEAD_NS_MAX + 10**8
                if billing_ns < reference_ns or not latest <= billing_ns <= until_ns:
                    self.wrong(f"billing time jumps by {billing_ns - reference_ns} ns within one boot (I21)")
            if boot != self._boot:
                self._boot, self.anchors = boot, []
                late_shards = self.late()
                last_ns = max((at_ns for shard, at_ns in self._latest.items() if shard not in late_shards), default=0)
                if billing_ns < last_ns:
                    self.wrong(f"a boot begins {last_ns - billing_ns} ns before the last journalled instant (I21)")
            self.anchors.append((boot_ns, billing_ns, correction_ns, ppm))

    def _take_entry(self, item: Item) -> None:
        self.entries += 1
        account = self.users.get(item.user)
        if account is None:
            account = self.users[item.user] = AuditedAccount(item.user)
        for text in account.fold(item, self.accrues):
            self.wrong(f"{item.user!r}: {text}: {item}")
        if item.op in OUTSIDE:
            self._take_asked(item)
        elif item.op == CUTOFF_DELIVERED:
            if not self.delivered.get((item.user, item.a)):
                self.wrong(f"{item.user!r}: cutoff {item.a} is called delivered and had no 2xx (I18)")
            account.reported.add(item.a)
        elif item.op == 55:  # an operator wants it again
            account.retried = True
        elif item.op not in TIME_CAUSED and not CUTOFF_STARTED <= item.op <= 55:
            self.wrong(f"an entry of kind {item.op} (I5)")
        assert CUTOFF_FAILED == 50

    def _take_asked(self, item: Item) -> None:
        call = None
        if item.request_id:
            call = self._asked.get((item.user, item.request_id))
            if (item.user, item.request_id) in self.by_request:
                self.wrong(f"{item.user!r}: request_id {item.request_id!r} twice in the log (I3)")
            self.by_request[item.user, item.request_id] = item
        elif item.message:
            call = self._asked_tags.get(item.message)
            if item.message in self._tags:
                self.wrong(f"{item.user!r}: {item.message!r} twice in the log (I3)")
            self._tags.add(item.message)
        else:
            shape = (item.user, item.op, item.a, item.key if item.op != 10 else b"")
            balance_left = self._plain.get(shape, 0)
            if not balance_left:
                self.wrong(f"nobody asked for {item} that often (I3, I5)")
            self._plain[shape] = balance_left - 1
            return
        if call is None or call.user != item.user or COMMANDS[call.method] != item.op:
            self.wrong(f"nobody asked for {item} (I5)")

    def head(self, journal: str) -> int:
        """The last durable position there."""
        return self._heads.get(journal, 0)

    def durable(self, journal: str, position: int) -> bytes | None:
        """What was written there and is durable."""
        return self._payloads.get((journal, position))

    # -- what clients see -------------------------------------------------------------------------------------------

    def on_send(self, call: Call) -> None:
        """A client is about to send this."""
        op = COMMANDS.get(call.method)
        if call.tries == 1 or op is None:
            call.after = self.seen.get(call.user, 0)
        if op is None or call.tries > 1:
            return
        if call.request_id:
            self._asked.setdefault((call.user, call.request_id), call)
        elif call.tag:
            self._asked_tags[call.tag] = call
        else:
            shape = (call.user, op, call.number, call.key)
            self._plain[shape] = self._plain.get(shape, 0) + 1

    def answered(self, call: Call, reply: dict[str, Any]) -> None:
        """A client got a result: everything it tells must be durable now."""
        account = self.users.get(call.user)
        entry_id = reply["entry_id"]
        item = account.items.get(entry_id) if account is not None else None
        if account is None or item is None:
            self.wrong(f"{call} was told of entry {entry_id}, which is not durable (I4)")
            raise AssertionError
        self.seen[call.user] = max(entry_id, self.seen.get(call.user, 0))
        if call.method not in COMMANDS:
            if entry_id < call.after:
                self.wrong(f"{call} reads entry {entry_id}, after {call.after} had been seen")
            following = account.items.get(entry_id + 1)
            if not self.accrues and reply["balance_nanos"] != account.shown_nanos(reply["at_ns"], item):
                self.wrong(f"{call} reads {reply['balance_nanos']} at {reply['at_ns']}, by {item} (I4, I6)")
            if following is not None and following.at_ns < reply["at_ns"]:
                self.wrong(f"{call} reads a state of {reply['at_ns']} that had been changed before: {following}")
            return
        if item.op != COMMANDS[call.method]:
            self.wrong(f"{call} was answered with {item} (I2)")
        expected = (item.at_ns, item.balance // (3600 * 10**9), item.seq)
        if expected != (reply["at_ns"], reply["balance_nanos"], reply["exhaustion_seq"]):
            self.wrong(f"{call} was answered with {reply}, the log has {item} (I2)")
        if call.request_id:
            if item.request_id != call.request_id:
                self.wrong(f"{call} was answered with the entry of {item.request_id!r} (I3)")
        elif (call.tag and item.message != call.tag) or item.request_id:
            self.wrong(f"{call} was answered with another's entry: {item} (I2)")
        if reply["replayed"]:
            if not call.request_id or call.tries < 2:
                self.wrong(f"{call} was answered as a repetition and is none (I3)")
        elif entry_id <= call.after:
            self.wrong(f"{call} made entry {entry_id}, after {call.after} had been seen")

    def refused(self, call: Call, error: dict[str, Any]) -> None:
        """A client got an error: what has a request_id, and reached the ledger, is in the log as refused."""
        if error["applied"] != "no" or call.method not in COMMANDS:
            return
        if 201 <= error["code"] <= 207 and call.request_id and error["name"] != "REQUEST_ID_CONFLICT":
            item = self.by_request.get((call.user, call.request_id))
            if item is None or not item.flags & REFUSED:
                self.wrong(f"{call} was refused with {error['name']}, which is not durable (I4)")

    def read_history(self, call: Call, rows: list[dict[str, Any]]) -> None:
        """A client got its history: newest first, all of it durable, and holding every answered entry."""
        account = self.users[call.user]
        newest = rows[0]["entry_id"] if rows else 0
        if newest < call.after:
            self.wrong(f"{call} begins with entry {newest}, after {call.after} had been answered (I6)")
        for index, row in enumerate(rows):
            item = account.items.get(newest - index)
            if item is None or row["entry_id"] != newest - index:
                self.wrong(f"{call} has row {row}, which is not durable, or out of order (I4)")
                raise AssertionError
            expected = (item.at_ns, item.balance // (3600 * 10**9))
            if expected != (row["at_ns"], row["balance_after_nanos"]):
                self.wrong(f"{call} has row {row}, the log has {item} (I6)")

    # -- what the endpoint sees -------------------------------------------------------------------------------------

    def billing_ns(self, boot_ns: int) -> int:
        """Billing time at an instant of the present boot."""
        return billing_of(self.anchors, boot_ns)

    def armed(self, anchors: Iterable[tuple[int, int, int, int]], boot_ns: int, due_ns: int) -> None:
        """A worker that follows these anchors lets itself be woken at `boot_ns`, for what is due at `due_ns`."""
        early_ns = due_ns - billing_of(anchors, boot_ns)
        if early_ns > 0:
            self.wrong(f"an alarm is set {early_ns} ns before what it is for")

    def attempt(self, kind: str, user: bytes, event_id: str, seq: int, exhausted_at_ns: int, now_ns: int) -> None:
        """An attempt starts: its request is being written."""
        self.attempts += 1
        account = self.users.get(user)
        if account is None or account.last is None:
            self.wrong(f"a {kind} for {user!r}, of whom nothing is durable (I4)")
            raise AssertionError
        due_ns = account.called_ns(seq, exhausted_at_ns) if kind == "cutoff" else exhausted_at_ns
        if now_ns < due_ns:
            self.wrong(f"{kind} {event_id} starts {due_ns - now_ns} ns early (I17)")
        # A restore is called by the newest cutoff it follows, which may be one after the last that was sent.
        event = (user, seq, kind if kind == "cutoff" else event_id)
        name = self.events.setdefault(event, (event_id, exhausted_at_ns))
        if name != (event_id, exhausted_at_ns):
            self.wrong(f"{kind} {seq} of {user!r} was {name} and is {event_id} at {exhausted_at_ns} now (I19)")
        if kind != "cutoff":
            return
        if event not in self._attempted:
            self._attempted.add(event)
            self.first_ns[user] = now_ns - due_ns
        if seq in account.superseded:
            self.wrong(f"{event_id} starts after what superseded it was durable (I19)")
        if seq in account.reported and not account.retried:
            self.wrong(f"{event_id} starts after it was durably delivered (I19)")
        crossed = account.crossings.get(seq)
        if crossed is None:
            last = account.last
            # What time alone does may go before its entries: E of the last entry, moved by the leases that end before
            # it. With a hold open, each that expires may save the account and let it run dry once more.
            alone = seq == last.seq + 1 and account.falls_ns() == exhausted_at_ns
            if not alone and not (last.holds_nanos and last.seq < seq <= last.seq + 1 + account.holds):
                self.wrong(f"{event_id} has no cause that is durable: {last} (I4, I17)")
            ahead_ns = exhausted_at_ns - self._stamp_ns
            if ahead_ns > self.TOLD_AHEAD_NS_MAX:
                self.wrong(f"{event_id} is {ahead_ns} ns ahead of all journals, where a new boot may come again (I21)")
        elif crossed != exhausted_at_ns:
            self.wrong(f"{event_id} at {exhausted_at_ns}, the log says {crossed} (I17)")

    def uncalled(self) -> Iterator[tuple[bytes, int, int]]:
        """(user, seq, since when) of each cutoff that is owed and the only one of its user, and was never called; of
        users for whom no other call is under way. A cutoff waits from its cause, or from the end of its user's last
        call if that is later: one call at a time is made for a user.
        """
        for account in self.users.values():
            if account.user in self._calling:
                continue
            owed = [seq for seq in account.crossings if seq not in account.superseded]
            fresh = [seq for seq in owed if (account.user, seq, "cutoff") not in self._attempted]
            if len(fresh) == 1 and not any(self.is_owed(account, seq) for seq in owed if seq != fresh[0]):
                yield account.user, fresh[0], max(account.due[fresh[0]], self._called_ns.get(account.user, 0))

    def is_owed(self, account: AuditedAccount, seq: int) -> bool:
        """Whether a cutoff has neither had its 2xx nor been superseded."""
        return seq not in account.superseded and not self.delivered.get((account.user, seq))

    def lateness_ns(self, user: bytes) -> int:
        """From the instant of the user's latest cutoff that was called to its first attempt; -1: none was called."""
        return self.first_ns.get(user, -1)

    def calls(self, user: bytes, event_id: str) -> None:
        """An attempt is under way."""
        if user in self._calling:
            self.wrong(f"{event_id} starts while {self._calling[user]} is under way")
        self._calling[user] = event_id

    def called(self, user: bytes, now_ns: int) -> None:
        """It is over, or whoever made it is."""
        del self._calling[user]
        self._called_ns[user] = now_ns

    def on_accepted(self, kind: str, user: bytes, seq: int) -> None:
        """The endpoint answers 2xx."""
        if kind == "cutoff":
            self.delivered[user, seq] = self.delivered.get((user, seq), 0) + 1
        else:
            self.restored[user] = max(seq, self.restored.get(user, 0))

    # -- the end ----------------------------------------------------------------------------------------------------

    def owed(self) -> list[str]:
        """What still has to be told to the endpoint."""
        return [
            f"{account.user!r} cutoff {seq}"
            for account in self.users.values()
            for seq in account.crossings
            if self.is_owed(account, seq)
        ]

    def finish(self) -> None:
        """At a quiet point, with an endpoint that answers: everything adds up and nothing is owed."""
        for account in self.users.values():
            if not account.conserved():
                self.wrong(f"{account.user!r}: money does not add up (I1)")
            for user, seq, kind in self.events:
                sent_ns = self.events[user, seq, kind][1]
                if user == account.user and kind == "cutoff" and account.crossings.get(seq) != sent_ns:
                    self.wrong(f"cutoff {seq} of {user!r} was sent and is not in the log as such (I5)")
        owed = self.owed()
        if owed:
            self.wrong(f"owed and never delivered: {owed} (I18)")
