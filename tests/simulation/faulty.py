"""Faults made by hand in the code that keeps things durable, owned by one, and told: each must be caught.

All of `FAULTS` are. A row is (name, file, what stands there, what is put instead) and the seed that catches it, which
ages with the draws: `mutants` says where it does not any more. The text must occur exactly once: a fault that does not
fit the code any more is told, not passed over. What was a bug once and was found here stands in it.
"""

from __future__ import annotations

from typing import NamedTuple


class Faulty(NamedTuple):
    """One fault."""

    name: str
    file: str
    old: str
    new: str
    also: tuple[
        tuple[str, str, str], ...
    ] = ()  # more of the same fault: (file, what stands there, what is put instead)

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        """All of it."""
        return (self.file, self.old, self.new), *self.also


# What must not be missing where one host serves: each with the seed that catches it.
FAULTS = {
    # -- leases -----------------------------------------------------------------------------------------------------
    Faulty(
        "leases-lost-in-a-block",
        "billing/ledger/extra.py",
        "        if self.leases:\n",
        "        if False:\n",
    ): 7,
    Faulty(
        "credits-end-late",
        "billing/ledger/credits.py",
        "            return credit.ends_ns\n    return NEVER_NS\n",
        "            return credit.ends_ns + 1\n    return NEVER_NS\n",
    ): 0,
    Faulty(
        "credits-lost-in-a-block",
        "billing/ledger/extra.py",
        "        if self.credits:\n",
        "        if False:\n",
    ): 4,
    Faulty(
        "leases-end-late",
        "billing/ledger/rates.py",
        "    ends_ns = NEVER_NS if ttl_ns is None else account.settled_ns + ttl_ns\n",
        "    ends_ns = NEVER_NS if ttl_ns is None else account.settled_ns + ttl_ns + 1\n",
    ): 0,
    Faulty(
        "grace-ends-late",
        "billing/ledger/classes.py",
        "    return min(exhausted_at_ns + grace_ns, INT64_MAX)\n",
        "    return min(exhausted_at_ns + grace_ns + 1, INT64_MAX)\n",
    ): 0,
    Faulty(
        "class-lost-in-a-block",
        "billing/ledger/extra.py",
        "        if self.class_name:\n",
        "        if False:\n",
    ): 5,
    Faulty(
        "a-class-leaves-the-grace-where-it-ends",
        "billing/ledger/posting.py",
        "        elif exhausted and command[0] == ops.SET_CLASS:\n",
        "        elif False:\n",
    ): 1,
    # -- sync, then speak -------------------------------------------------------------------------------------------
    Faulty(
        "reply-before-sync",
        "shards/worker/worker.py",
        "                    caller.answer(token, reply)\n",
        "                    caller.answer(token, reply)\n                    caller.flush()\n",
    ): 0,
    Faulty(
        "reads-do-not-wait",
        "shards/shard.py",
        "            self._replies.append((caller, token, reply))\n\n    def _elsewhere",
        "            caller.answer(token, reply)\n            caller.flush()\n\n    def _elsewhere",
    ): 1,
    Faulty(
        "batch-not-synced",
        "shards/journal/file/active_segment.py",
        "        if sync:\n            self._disk.fdatasync(self.handle)\n",
        "",
    ): 0,
    Faulty(
        "notices-early-without-waiting",
        "shards/shard.py",
        "        early = [notice for notice in notices if notice[1] < first] if first >= 0 else notices[:]\n"
        "        if early:\n",
        "        early, first = notices[:], -1\n        if early:\n",
    ): 0,
    Faulty(
        "owed-before-it-is-durable",
        "billing/expirationd/delivery.py",
        "        if owed is None or notified is None or (owed[0] == notified[0] and owed[2] <= notified[1]):\n",
        "        if True:\n",
    ): 26,
    Faulty(
        "batch-in-flight-forgotten",
        "shards/shard.py",
        "        if self._flight is not None and self._flight.from_ns >= 0:\n",
        "        if False:\n",
    ): 104,
    # -- names and files --------------------------------------------------------------------------------------------
    Faulty(
        "spare-not-synced",
        "shards/journal/file/segment_reserve.py",
        "        write_all(self._disk, self._spare, content, 0)\n        self._disk.fdatasync(self._spare)\n",
        "        write_all(self._disk, self._spare, content, 0)\n",
    ): 3,
    Faulty(
        "snapshot-not-synced",
        "shards/journal/file/snapshot.py",
        "        _write(disk, handle, head, chunks, reached)\n        disk.fsync(handle)\n",
        "        _write(disk, handle, head, chunks, reached)\n",
    ): 50,
    Faulty(
        "trim-beyond-the-older-snapshot",
        "shards/journal/file/journal.py",
        "min(position, self._retained.fallback), False\n",
        "position, False\n",
    ): 7,
    Faulty(
        "trim-before-the-snapshot-stands",
        "shards/journal/file/journal.py",
        "            self._retained.save(head, chunks, self._reached)\n",
        "            while len(self._segments) > 1 and self._segments[1].header.first_position - 1 <= position:\n"
        '                self._disk.unlink(f"{self._directory}/{self._segments[0].name}")\n'
        "                del self._segments[0]\n"
        "            self._retained.save(head, chunks, self._reached)\n",
    ): 7,
    # -- recovery ---------------------------------------------------------------------------------------------------
    Faulty(
        "suspects-not-written-anew",
        "shards/journal/file/journal.py",
        "        body = written_anew(log, salt_seed(salt), self._next_segment_id(), self._align)\n",
        '        body = b""\n',
    ): 0,
    Faulty(
        "cache-is-trusted",
        "shards/journal/file/recovery.py",
        "        unproven.append(batch)\n",
        "        durable, durable_chain, durable_end = head, chain, end\n",
    ): 13,
    Faulty(
        "failed-sync-tried-again",
        "shards/journal/file/active_segment.py",
        "        if sync:\n            self._disk.fdatasync(self.handle)\n",
        "        if sync:\n            try:\n                self._disk.fdatasync(self.handle)\n"
        "            except OSError:\n                self._disk.fdatasync(self.handle)\n",
    ): 13,
    # -- snapshots --------------------------------------------------------------------------------------------------
    Faulty(
        "part-one-batch-behind",
        "shards/worker/snapshotter.py",
        "shard.dump(self._left.pop(), position)",
        "shard.dump(self._left.pop(), position - 1)",
    ): 26,
    Faulty(
        "part-one-batch-ahead",
        "shards/worker/snapshotter.py",
        "shard.dump(self._left.pop(), position)",
        "shard.dump(self._left.pop(), position + 1)",
    ): 1,
    Faulty(
        "position-of-parts-ignored",
        "shards/shard.py",
        "            if position <= loaded.get(bucket_id, -1):\n                continue\n",
        "",
    ): 26,
    Faulty(
        "frozen-buckets-left-out",
        "shards/shard.py",
        "        unserved = self.orphans | self._frozen | self._arrived\n",
        "        unserved = self.orphans\n",
    ): 54,
    Faulty(
        "ids-not-in-the-dump",
        "billing/ledger/block.py",
        "        _join(book.ids),\n",
        "        _join([]),\n",
    ): 46,
    # -- ownership --------------------------------------------------------------------------------------------------
    Faulty(
        "generation-not-raised",
        "shards/moves/move.py",
        "of_bucket = self.bucket_id, self.generation + 1\n",
        "of_bucket = self.bucket_id, self.generation\n",
    ): 2,
    Faulty(
        "commit-not-synced",
        "shards/journal/file/backend.py",
        '(0, now_ns, "always", MAP_SEGMENT_BYTES)',
        '(0, now_ns, "never", MAP_SEGMENT_BYTES)',
    ): 0,
    Faulty(
        "commit-before-it-is-stored",
        "shards/moves/handoff.py",
        "            self._host.when_durable(lambda: self._send(Stored(number, digest_of(block))))\n",
        "            self._send(Stored(number, digest_of(block)))\n",
    ): 2,
    Faulty(
        "payload-before-it-is-durable",
        "shards/moves/handoff.py",
        "        self._host.when_durable(lambda: self._dump(number, bucket_id, "
        "self._host.shard.machine.dumping(bucket_id)))\n",
        "        self._dump(number, bucket_id, self._host.shard.machine.dumping(bucket_id))\n",
    ): 21,
    Faulty(
        "leave-not-recorded",
        "shards/shard.py",
        '        self._own_records.append((LEAVE, bucket_id, generation, b""))\n        self._prefix',
        "        self._prefix",
    ): 4,
    Faulty(
        "freeze-leaves-the-timers",
        "shards/shard.py",
        "        self.machine.disarm(bucket_id)\n",
        "",
    ): 2,
    Faulty(
        "freeze-lets-commands-through",
        "shards/shard.py",
        "_Still(self.held.pop(bucket_id), [])",
        "_Still(self.held[bucket_id], [])",
    ): 2,
    Faulty(
        "moved-bucket-is-not-armed",
        "shards/shard.py",
        "        self._hold(bucket_id, generation)\n        self._begin_chore(self.machine.arming(bucket_id))\n",
        "        self._hold(bucket_id, generation)\n",
    ): 2,
    Faulty(
        "moved-calls-are-not-taken-up",
        "shards/moves/handoff.py",
        "                self._calls.take_up(bucket_id)\n            self._redirect",
        "            self._redirect",
    ): 40,
    Faulty(
        "aborted-calls-are-not-taken-up",
        "shards/moves/handoff.py",
        "            self._frozen_ns.pop(bucket_id, None)\n            self._calls.take_up(bucket_id)\n",
        "            self._frozen_ns.pop(bucket_id, None)\n",
    ): 21,
    Faulty(
        "calls-in-flight-are-not-waited-for",
        "shards/moves/handoff.py",
        "        calls = self._calls.calls_in_flight(bucket_id)\n",
        "        calls = 0\n",
    ): 26,
    Faulty(
        "orphans-are-kept",
        "shards/worker/recover.py",
        "        orphans.append(bucket_id)\n",
        "",
    ): 39,
    # -- the ledger and what it tells -------------------------------------------------------------------------------
    Faulty(
        "exhaustion-rounded-down",
        "billing/ledger/exhaustion.py",
        "    return at_ns - (-available // rate)\n",
        "    return at_ns + available // rate\n",
    ): 0,
    Faulty(
        "request-id-forgotten",
        "billing/ledger/fast_path.py",
        "    if request_id:\n        book.ids.put(user_id, request_id, packed, at_ns, posting.ids_max)\n",
        "",
    ): 16,
    Faulty(
        "delivered-before-2xx",
        "billing/worker/outgoing_calls.py",
        "    (CUTOFF, FAILED_ATTEMPT): ops.CUTOFF_FAILED,\n",
        "    (CUTOFF, FAILED_ATTEMPT): ops.CUTOFF_DELIVERED,\n",
    ): 0,
    Faulty(
        "superseded-cutoff-stays-owed",
        "billing/ledger/cutoffs.py",
        "    for cutoff in superseded:\n        cutoff.status = SUPERSEDED\n",
        "",
    ): 0,
    Faulty(
        "outbox-forgets-what-failed",
        "billing/expirationd/outbox.py",
        "        else:\n            self._make_ready(item)\n\n    def cut",
        "        else:\n            del self._items[item.bucket_id, item.user_id]\n\n    def cut",
    ): 1,
    Faulty(
        "alarm-rounded-down",
        "shards/system/clock.py",
        "            return self.boot_ns + wanted_ns\n",
        "            return self.boot_ns + wanted_ns - 1_000_000\n",
    ): 0,
    Faulty(
        "wall-clock-is-believed",
        "shards/system/clock.py",
        "        if recorded_boot_id == boot_id and anchor.boot_ns - boot_ns <= SLEW_LEAD_NS_MAX:\n",
        "        if False:\n",
    ): 3,
    Faulty(
        "told-ahead-of-any-bound",
        "shards/worker/worker.py",
        "if shard.machine.notices and self._may_tell_early() and (early",
        "if shard.machine.notices and (early",
    ): 6,
    Faulty(
        "last-instant-not-honoured",
        "shards/system/clock.py",
        "Anchor(boot_ns, max(wall_ns, last_ns), 0, 0)",
        "Anchor(boot_ns, wall_ns, 0, 0)",
    ): 3,
    # -- found here -------------------------------------------------------------------------------------------------
    Faulty(
        "a-shard-still-owned-is-held",
        "shards/journal/__init__.py",
        'Terminal for this journal object."""\n\n    ending = exits.AGAIN\n',
        'Terminal for this journal object."""\n\n    ending = exits.DISK\n',
    ): 19,
    # -- one user never holds up another ----------------------------------------------------------------------------
    Faulty(
        "breaker-shared-by-all-users",
        "billing/expirationd/health.py",
        "        return not self.shut or now_ns >= self.fresh_from_ns()\n",
        "        return not self.shut\n",
    ): 1,
    Faulty(
        "probe-oldest-first",
        "billing/expirationd/lane.py",
        "        has_fresh = bool(tidy(self.fresh)) and self.admits_fresh(now_ns)\n",
        "        has_fresh = bool(tidy(self.fresh)) and not (self.shut and (self.retries or self.slow))\n",
    ): 1,
    Faulty(
        "retry-after-pauses-the-lane",
        "billing/expirationd/health.py",
        "        elif outcome == BUSY:\n",
        "        elif outcome == BUSY:\n"
        "            self._shut(now_ns)\n"
        "            self._fresh_after_ns = now_ns + retry_after_ns\n",
    ): 6,
    Faulty(
        "calls-that-hang-hold-everything",
        "billing/expirationd/lane.py",
        "        return [item for item in hanging[self._retries_max :] if waited_for or self._is_passed_by(item)]\n",
        "        return []\n",
    ): 60,
}

# What history and notices must not do: each with the seed, played with followers, that catches it.
BESIDE = {
    Faulty(
        "trimmed-before-it-is-proved",
        "billing/follower/store.py",
        "        if frames > 0 and self._proved != (salts, frames):\n",
        "        if frames < 0 and self._proved != (salts, frames):\n",
    ): 16,
    Faulty(
        "what-a-former-shard-owed-is-not-taken-over",
        "billing/notices/store.py",
        "        for _, _, _, *rest in [*behind, *own_rows]:",
        "        for _, _, _, *rest in [*own_rows]:",
    ): 0,
    Faulty(
        "order-across-a-move-broken",
        "billing/notices/store.py",
        "        for _, _, _, *rest in [*behind, *own_rows]:",
        "        for _, _, _, *rest in [*own_rows, *behind]:",
    ): 0,
    Faulty(
        "deleted-before-the-taker-has-proved-it",
        "billing/notices/store.py",
        "WHERE file_id = ? AND proved = 1",
        "WHERE file_id = ?",
    ): 136,
    Faulty(
        "acknowledged-before-2xx",
        "billing/notices/notifier.py",
        "        if outcome == DELIVERED:\n            queue",
        "        if outcome:\n            queue",
    ): 0,
    Faulty(
        "drained-before-durable",
        "billing/follower/link.py",
        "    if durable < head:\n",
        "    if durable < 0:\n",
    ): 3,
    Faulty(
        "retired-with-owed-notices",
        "billing/follower/link.py",
        "    if owes:\n",
        "    if False:\n",
    ): 2,
}

# What must not be missing between hosts: each with the seed, played with several over one log, that catches it.
BETWEEN = {
    Faulty(
        "commands-are-stamped-beyond-the-grant",
        "shards/worker/worker.py",
        "        if now_ns < granted_ns:\n",
        "        if now_ns < granted_ns or True:\n",
    ): 48,
    Faulty(
        "reads-are-answered-beyond-the-grant",
        "shards/worker/worker.py",
        "        if now_ns < granted_ns:\n",
        "        if now_ns < granted_ns or True:\n",
        (
            (
                "shards/worker/worker.py",
                "                elif not self.may_act():\n",
                "                elif False:\n",
            ),
        ),
    ): 21,
    Faulty(
        "cutoffs-leave-beyond-the-grant",
        "shards/worker/worker.py",
        "        if granted_ns == ALL_TIME_NS or self.clock.at(self._boot_ns()) < granted_ns:\n",
        "        if True:\n",
    ): 21,
    Faulty(
        "a-grant-that-nobody-acknowledged-counts",
        "shards/journal/jetstream/journal.py",
        "        record = pack(Record(*fields, body))\n        try:\n",
        "        record = pack(Record(*fields, body))\n        self._granted_ns = until_ns\n        try:\n",
    ): 2,
    Faulty(
        "stillness-is-not-waited-for",
        "shards/journal/jetstream/journal.py",
        "        if now_ns - self._still[1] < STILL_SHARE * self._terms.grant_ns:\n",
        "        if False:\n",
    ): 0,
    Faulty(
        "began-is-ignored",
        "shards/worker/recovering.py",
        "        self._last_ns = max(self.journal.last_time_ns, opened.began_ns)\n",
        "        self._last_ns = self.journal.last_time_ns\n",
    ): 9,
    Faulty(
        "expected-sequence-is-not-sent",
        "shards/journal/jetstream/streams.py",
        "{EXPECTED: str(expected)}",
        "{}",
    ): 0,
    Faulty(
        "published-behind-whatever-is-there",
        "shards/journal/jetstream/publisher.py",
        "                sequence = stream.publish(subject, message, expected)\n",
        "                expected = stream.state().last\n"
        "                sequence = stream.publish(subject, message, expected)\n",
    ): 0,
    Faulty(
        "another-message-passes-for-ours",
        "shards/journal/jetstream/publisher.py",
        "                    if stored.payload != message:\n",
        "                    if False:\n",
    ): 0,
    Faulty(
        "a-lost-end-is-not-noticed",
        "shards/journal/jetstream/witness.py",
        "        if last < sequence:\n",
        "        if False:\n",
    ): 0,
    Faulty(
        "who-stands-by-remembers-no-end",
        "shards/journal/jetstream/backend.py",
        "            if newest is not None and self._cluster:",
        "            if False:",
    ): 5,
    Faulty(
        "the-end-of-the-map-is-not-remembered",
        "shards/journal/jetstream/map_log.py",
        "            self._witness.check(witnessed, NAME, state.last, self._chain_at, self._nonce)\n",
        "            pass\n",
    ): 2,
    Faulty(
        "a-bad-clock-is-no-hindrance",
        "shards/supervisor/clock_guard.py",
        "        return judgement.error_ns > self.error_ns_max\n",
        "        return False\n",
    ): 4,
}

# Real faults, too, which 200 seeds do not show yet, each with what would: `mutants --unseen` tries them. One that is
# caught belongs above.
UNSEEN = [
    # seed 548 at 40f0140, of several hosts; test_jetstream_contract.py in any case
    Faulty(
        "a-grant-lasts-longer-while-time-stands-still",
        "shards/journal/jetstream/journal.py",
        "self._line_ns() + self._terms.grant_ns)",
        "now_ns + self._terms.grant_ns)",
    ),
    # seed 1046 at 40f0140: power goes within 0.1 s of a call, the clock is set back, and a debit comes at once
    Faulty(
        "a-new-boot-begins-at-the-last-instant",
        "shards/journal/file/journal.py",
        "            self._last_time_ns += TOLD_AHEAD_NS\n",
        "            pass\n",
    ),
    # seed 296: replay makes each entry again and sees nearly all of it; so does the test that flips every bit of a file
    Faulty(
        "chain-not-checked",
        "shards/journal/file/record.py",
        "        if crc32c(view[payload_at:payload_end], chain) != next_chain:\n            return\n",
        "",
    ),
    # rot behind a batch that nothing but the barrier proves
    Faulty(
        "damage-passes-for-a-torn-tail",
        "shards/journal/file/recovery.py",
        "    if proof >= 0:\n",
        "    if False:\n",
    ),
    # a snapshot between two cuts of one turn, and no other before the power fails
    Faulty(
        "part-holds-what-is-not-durable",
        "shards/worker/snapshotter.py",
        "        if not shard.is_drained():\n            return False\n",
        "",
    ),
    # an end in the very turn that answers without writing
    Faulty(
        "an-end-that-waits-for-nothing",
        "shards/worker/worker.py",
        "                        self._release(ready)\n                        self._idle.set()\n",
        "                        self._release(ready)\n",
    ),
    # seed 115 of earlier draws found it
    Faulty(
        "an-end-while-peers-are-served",
        "shards/worker/serving.py",
        "        worker.close()\n        await worker.quiesce()  # what came in between\n"
        "        worker.snapshotter.close()\n",
        "        worker.snapshotter.close()\n",
    ),
    # seed 11 of earlier draws found it
    Faulty(
        "rebalancing-forgotten-at-a-crash",
        "shards/supervisor/registry.py",
        '        return [*changes, ["uneven", True]] if changes else []\n',
        "        self.uneven = bool(changes)\n        return changes\n",
    ),
]
