"""Seeded lives of several shards' followers, on real files and a disk that fails: nothing is lost without a word.

    python -m tests.follower.campaign --seeds 0..1000

A world has shards with journals in memory, buckets that move between them, and of each shard the stores of its history
and of its notices, as their processes use them. At random they are killed, stopped with everything they were sent
waiting, started again late; the disk loses write-backs of a file and its log, without a word or with an error in the
middle of a checkpoint, and then forgets what it had in memory; the power goes, also in the middle of a checkpoint, and
of what was not synced any 512 bytes may be missing; bytes of a file flip, files are cut short or removed; journals are
trimmed as far as the followers' word reaches; the daemon is resized: a shard is drained, goes when nothing stands in
its way any more (`follower.link.obstacle_of`), and comes back with its journal and its files as they stand then, maybe
damaged meanwhile. All of it happens in company.

In the end everything that can be is brought through, and each account is asked for: every entry is in its history, or
the answer says from when it is whole, and so do its statement and its balance; every notice was told, in its account's
order. An answer that lacks something without a word is *silent*, and fails the run. In half of the lives no byte of a
file is damaged: kills, lost write-backs, the loss of power and resizes lose nothing, so there every answer is whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from billing.follower.link import obstacle_of
from billing.follower.proof import Unproved
from billing.follower.store import UNREADABLE, FollowerStore, ShardFile, StoreError, file_of, reason_of
from billing.history import store as history
from billing.history.history_reader import MISSING, HistoryReader, Newest
from billing.history.period_reader import Chain, Standing, balance_at, statement
from billing.ledger import commands as ops
from billing.ledger.entry import FIELDS, history_row, pack, unpack
from billing.notices import opening as notices_opening
from billing.notices import store as notices
from shards.batch import ENTRY, ENVELOPE, LEAVE, LENGTH, OWN, RECEIVED
from tests.simulation.files import MEMORY, FailingDisk, Files

SHARDS: Final = 3
BUCKETS: Final = 4
USERS: Final = 8
STEPS: Final = 90
NEWEST: Final = 2**63 - 1
PROGRESS: Final = 50  # lives from one line of progress to the next
SECOND_NS: Final = 10**9
ENDS: Final = (Unproved, StoreError, *UNREADABLE)  # what a follower's process may end with
HISTORY, NOTICES = "history", "notices"


class SilentLoss(AssertionError):
    """Something is gone, and nothing says so; or was told in the wrong order."""


class Follower:
    """One follower of one shard: its store while its process runs, and what its worker knows of it."""

    def __init__(self, kind: str, directory: str, shard: int, disk: FailingDisk, rng: random.Random) -> None:
        self.kind = kind
        self.directory = directory
        self.shard = shard
        self.files = Files(file_of(directory, shard), disk, rng)
        self.store: Any = None
        self.durable = 0  # as its process last said; its worker remembers
        self.stopped_steps = 0  # so long its process stands still
        self.owes = 0
        self.is_suspect = False
        self.excused = False  # notices: what was owed is lost, and the operator heard of it


class Shard:
    """Its journal, and its followers."""

    def __init__(self, home: str, shard: int, disk: FailingDisk, rng: random.Random) -> None:
        self.shard = shard
        self.batches: list[bytes] = []
        self.first = 1
        self.is_gone = False
        self.followers = [Follower(kind, f"{home}/{kind}", shard, disk, rng) for kind in (HISTORY, NOTICES)]

    @property
    def head(self) -> int:
        return len(self.batches)


class World:
    """See the module."""

    def __init__(self, seed: int, home: str) -> None:
        self.rng = random.Random(seed)
        self.home = home
        self.disk = FailingDisk()
        self.now_ns = SECOND_NS
        self.counts: Counter[str] = Counter()
        self.rots = self.rng.random() < 0.5  # whether files are damaged
        for kind in (HISTORY, NOTICES):
            os.mkdir(f"{home}/{kind}", 0o700)
        self.shards = [Shard(home, number, self.disk, self.rng) for number in range(1, SHARDS + 1)]
        # bucket -> index of the shard that has it, generation
        self.owner = {bucket: (bucket % SHARDS, 1) for bucket in range(1, BUCKETS + 1)}
        self.users = {b"user-%d" % number: 1 + number % BUCKETS for number in range(USERS)}
        self.entries: dict[bytes, list[dict[str, Any]]] = defaultdict(list)  # as the history shows them, oldest first
        self.told_ids: dict[bytes, list[int]] = defaultdict(list)  # entry_ids, each when it was told first
        for index, shard in enumerate(self.shards):
            for follower in shard.followers:
                self.start(shard, follower)
            self.append(shard, [(OWN, bucket, 1, b"") for bucket, (at, _) in self.owner.items() if at == index])

    # -- journals ----------------------------------------------------------------------------------------------------

    def append(self, shard: Shard, records: list[tuple[int, int, int, bytes]]) -> None:
        """A durable batch; whoever runs takes it."""
        packed = [ENVELOPE.pack(*record[:3]) + record[3] for record in records]
        payload = LENGTH.pack(len(packed)) + b"".join(LENGTH.pack(len(record)) + record for record in packed)
        shard.batches.append(payload)
        for follower in shard.followers:
            if (
                follower.store is not None
                and not follower.stopped_steps
                and follower.store._last_taken == shard.head - 1
            ):
                try:
                    self.take(follower, shard.head, payload)
                except ENDS:
                    self.drop(follower, forgets=False)
                    follower.is_suspect = True

    def take(self, follower: Follower, position: int, payload: bytes) -> None:
        if follower.kind == HISTORY:
            follower.store.take(position, payload)
        else:
            follower.store.take(position, payload, self.now_ns)

    def work(self) -> None:
        """Some entries of some accounts, each in the journal of the shard that has their bucket."""
        user = self.rng.choice(list(self.users))
        index, generation = self.owner[self.users[user]]
        records = []
        for owned in [user_id for user_id in self.users if self.owner[self.users[user_id]] == (index, generation)] or [
            user
        ]:
            for _ in range(self.rng.randrange(3)):
                records.append((ENTRY, self.users[owned], self.owner[self.users[owned]][1], self.entry(owned)))
        records.append((ENTRY, self.users[user], generation, self.entry(user)))
        self.append(self.shards[index], records)

    def entry(self, user: bytes) -> bytes:
        """The next entry of an account, a payment of a nano."""
        self.now_ns += self.rng.randrange(1, SECOND_NS)
        entry_id = len(self.entries[user]) + 1
        values: dict[str, int | bytes] = {name: b"" if name in FIELDS[-7:] else 0 for name in FIELDS}
        values |= {"op": ops.TOP_UP, "a": 1, "user_id": user, "entry_id": entry_id, "at_ns": self.now_ns}
        values |= {"amount_nanos": 1, "balance_nanos": entry_id, "exhausts_at_ns": -1}
        body = pack(tuple(values[name] for name in FIELDS))
        self.entries[user].append(history_row(unpack(body)))
        return body

    def move(self, bucket: int, to: int) -> None:
        """A bucket goes to another shard."""
        index, generation = self.owner[bucket]
        if to == index or self.shards[to].is_gone:
            return
        self.append(self.shards[to], [(RECEIVED, bucket, generation + 1, b"")])
        self.append(self.shards[index], [(LEAVE, bucket, generation, b"")])
        self.owner[bucket] = to, generation + 1
        self.counts["moves"] += 1

    def trim(self) -> None:
        """A snapshot was made, and the journal goes as far as both followers have it."""
        shard = self.rng.choice(self.shards)
        floor = min(follower.durable for follower in shard.followers)
        if floor + 1 > shard.first:
            shard.first = floor + 1
            self.counts["trims"] += 1

    # -- followers ---------------------------------------------------------------------------------------------------

    def start(self, shard: Shard, follower: Follower) -> None:
        """A process starts, and is fed to the end of its journal. One that ends at once has a suspicious successor."""
        for _ in range(4):
            try:
                self.open(shard, follower)
                self.feed(shard, follower)
            except ENDS:
                self.ended(follower)
            else:
                return
        raise SilentLoss(f"the {follower.kind} of shard {shard.shard} does not come up again")

    def mend(self, shard: Shard, follower: Follower) -> None:
        """Makes the file of a shard that is gone anew where it is damaged; nothing comes from its journal any more."""
        for _ in range(3):
            try:
                self.open(shard, follower)
                self.checkpoint(follower)
                break
            except ENDS:
                follower.is_suspect = True
            finally:
                self.drop(follower, forgets=False)

    def open(self, shard: Shard, follower: Follower) -> None:
        suspect, follower.is_suspect = follower.is_suspect, False
        file = ShardFile(follower.directory, shard.shard, shard.first, shard.head, self.disk)
        if follower.kind == HISTORY:
            follower.store, _ = history.open_store(file, suspect=suspect)
        else:
            file_id = self.rng.getrandbits(62)
            follower.store, remarks = notices_opening.open_store(
                file, suspect=suspect, file_id=file_id, now_ns=self.now_ns
            )
            if remarks and not self.rots:
                raise SilentLoss(f"nothing was damaged, and the notices of shard {shard.shard} say: {remarks}")
            follower.excused = follower.excused or bool(remarks)
        follower.durable = follower.store.durable
        follower.files.log_is_synced()

    def feed(self, shard: Shard, follower: Follower) -> None:
        """Brings a follower to the end of its journal. Raises Silent where that does not reach back far enough."""
        if follower.store._last_taken < shard.first - 1:
            raise SilentLoss(
                f"the {follower.kind} of shard {shard.shard} lacks batches that its journal has not any more"
            )
        for position in range(follower.store._last_taken + 1, shard.head + 1):
            self.take(follower, position, shard.batches[position - 1])
        follower.store.flush()

    def drop(self, follower: Follower, *, forgets: bool, power: bool = False) -> None:
        """The process is killed. `forgets`: what the medium does not hold is gone from memory as well; with `power`, so
        is what was not synced.
        """
        store: FollowerStore | None = follower.store
        follower.files.let_go(None if store is None else store.db, forgets=forgets, power=power)
        if power:
            follower.durable = 0  # its worker began anew, too
        follower.store, follower.stopped_steps = None, 0

    def running(self) -> Iterator[tuple[Shard, Follower]]:
        for shard in self.shards:
            for follower in shard.followers:
                if follower.store is not None:
                    yield shard, follower

    def any_running(self) -> tuple[Shard, Follower] | None:
        return self.rng.choice(list(self.running()) or [None])

    def ended(self, follower: Follower) -> None:
        """The process ended on its disk: its file is what the medium holds, and the successor knows."""
        self.drop(follower, forgets=True)
        follower.is_suspect = True
        self.counts["ended on the disk"] += 1

    def checkpoint(self, follower: Follower) -> None:
        """Makes durable and proves; then the worker hears of it."""
        try:
            follower.files.checkpoint(lambda: self.settle(follower))
            follower.durable = follower.store.durable
            if follower.kind == NOTICES:
                follower.owes = follower.store.owed()
                if follower.store.durable == follower.store.position:
                    follower.store.publish_claims()
        except ENDS:
            self.ended(follower)

    def settle(self, follower: Follower) -> None:
        """Commits, and makes durable."""
        follower.store.flush()
        follower.store.checkpoint()

    def fail_aloud(self, follower: Follower) -> None:
        """The disk fails in the middle of a checkpoint, and says so."""
        count = self.counts["ended on the disk"]
        follower.files.fails_aloud = True
        self.checkpoint(follower)
        self.counts["failed aloud"] += self.counts["ended on the disk"] - count

    def tell(self, follower: Follower) -> None:
        """A notifier's turn: takes over, tells some of what is owed, and records some of the answers."""
        try:
            self.turn_of(follower.store, follower)
        except ENDS:
            self.drop(follower, forgets=False)
            follower.is_suspect = True

    def turn_of(self, store: notices.Store, follower: Follower) -> None:
        store.flush()
        for bucket in list(store.pending):
            store.claim(bucket)
        if store.has_departed():
            store.delete_claimed()
        for seq, bucket, generation, user, _, name, _ in store.after(0, self.rng.randrange(60)):
            if (bucket, generation) in store.departed or bucket in store.pending:
                continue
            entry_id = int(name.partition("-")[0])
            told_ids = self.told_ids[user]
            if entry_id not in told_ids:
                if told_ids and entry_id < told_ids[-1] and not self.is_excused():
                    raise SilentLoss(f"notice {entry_id} of {user!r} is told behind {told_ids[-1]}")
                told_ids.append(entry_id)
            if self.rng.random() < 0.9:
                store.acknowledge(seq)
        store.flush()
        follower.owes = store.owed()

    def is_excused(self) -> bool:
        """Whether some file of notices lost what nobody can make again, and said so."""
        return any(shard.followers[1].excused for shard in self.shards)

    # -- faults ------------------------------------------------------------------------------------------------------

    def fail_disk(self, follower: Follower) -> None:
        """From now on nothing that is written to its file, and maybe to its log, comes to the medium."""
        follower.files.fail()
        self.counts["lost write-backs"] += 1

    def damage(self, follower: Follower) -> None:
        """Its process is killed, and its file is not what it was."""
        self.drop(follower, forgets=True)
        path = Path(follower.files.path)
        if not path.exists():
            return
        data, kind = bytearray(path.read_bytes()), self.rng.choice(("flip", "flip", "page", "cut", "lost"))
        at = self.rng.randrange(len(data))
        if kind == "flip":
            data[at] ^= 1 << self.rng.randrange(8)
        elif kind == "page":
            begin = at - at % 4096
            data[begin : begin + 4096] = self.rng.randbytes(len(data[begin : begin + 4096]))
        elif kind == "cut":
            del data[at:]
        if kind == "lost":
            path.unlink()
        else:
            path.write_bytes(data)
        self.counts[kind] += 1

    def lose_power(self) -> None:
        """Everything ends; what was not synced may be gone."""
        for shard in self.shards:
            for follower in shard.followers:
                self.drop(follower, forgets=True, power=True)
                if not shard.is_gone:
                    self.start(shard, follower)
        self.counts["power losses"] += 1

    def tear_checkpoint(self, follower: Follower) -> None:
        """The power goes while pages are copied from a log that was synced into the file."""
        try:
            follower.store.flush()
            if not follower.files.tear_checkpoint(follower.store):
                return
        except ENDS:
            self.ended(follower)
            return
        follower.store, follower.stopped_steps = None, 0
        self.lose_power()
        self.counts["torn checkpoints"] += 1

    def stop(self, follower: Follower) -> None:
        """Its process stands still for a while; what it is sent waits."""
        follower.stopped_steps = self.rng.randrange(1, 12)
        self.counts["stops"] += 1

    def resize(self) -> None:
        """A shard goes, or one that is gone comes back."""
        gone = [shard for shard in self.shards if shard.is_gone]
        if not gone or self.rng.random() < 0.3:
            self.retire(self.rng.choice(self.shards))
            return
        shard = self.rng.choice(gone)
        shard.is_gone = False
        for follower in shard.followers:
            follower.durable = 0
            self.start(shard, follower)
        self.counts["shards back"] += 1
        for bucket in self.rng.sample(range(1, BUCKETS + 1), 2):
            self.move(bucket, self.shards.index(shard))

    def retire(self, shard: Shard) -> None:
        """All buckets leave; the shard goes when nothing stands in its way."""
        index = self.shards.index(shard)
        remaining = [
            other_index
            for other_index in range(SHARDS)
            if other_index != index and not self.shards[other_index].is_gone
        ]
        if not remaining:
            return
        for bucket, (at, _) in list(self.owner.items()):
            if at == index:
                self.move(bucket, self.rng.choice(remaining))
        for _ in range(self.rng.randrange(1, 6)):
            for follower in shard.followers:
                is_live = (
                    follower.store is not None
                    and not follower.stopped_steps
                    and follower.store._last_taken == shard.head
                )
                if obstacle_of(follower.kind, shard.shard, is_live, "", follower.durable, shard.head, follower.owes):
                    break
            else:
                shard.is_gone = True
                for follower in shard.followers:
                    self.drop(follower, forgets=False)
                self.counts["shards gone"] += 1
                return
            self.turn()

    # -- a life ------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Every process that runs has a turn."""
        for shard, follower in list(self.running()):
            if follower.stopped_steps:
                self.go_on(shard, follower)
                continue
            if follower.kind == NOTICES:
                self.tell(follower)
            if follower.store is not None:
                self.checkpoint(follower)

    def go_on(self, shard: Shard, follower: Follower) -> None:
        """A process that stands still comes nearer to the end of that, and then is sent what waits."""
        follower.stopped_steps -= 1
        if not follower.stopped_steps:
            try:
                self.feed(shard, follower)
            except ENDS:
                self.ended(follower)

    def step(self) -> None:
        """One thing that happens."""
        rng, chosen = self.rng, self.any_running()
        down = [
            (shard, follower)
            for shard in self.shards
            if not shard.is_gone
            for follower in shard.followers
            if follower.store is None
        ]
        for shard, follower in list(self.running()):
            if follower.stopped_steps:
                self.go_on(shard, follower)
        is_moving = chosen is not None and not chosen[1].stopped_steps
        match rng.choices(range(7), (40, 14, 10, 8, 7, 4, 28))[0]:
            case 0:
                self.work()
            case 1 if chosen is not None and is_moving:
                self.checkpoint(chosen[1])
            case 2 if chosen is not None and is_moving and chosen[1].kind == NOTICES:
                self.tell(chosen[1])
            case 3:
                self.move(rng.randrange(1, BUCKETS + 1), rng.randrange(SHARDS))
            case 4:
                self.trim()
            case 5:
                self.resize()
            case 6 if chosen is not None:
                self.strike(chosen[1])
        for shard, follower in down:
            if rng.random() < 0.4:  # else it stays stopped for a while
                self.start(shard, follower)

    def strike(self, chosen: Follower) -> None:
        """One thing that goes wrong."""
        match self.rng.choices(range(8), (5, 4, 3, 2, 5, 2, 2, 3))[0]:
            case 0:
                self.drop(chosen, forgets=False)
                self.counts["kills"] += 1
            case 1:
                self.fail_disk(chosen)
            case 2 if self.rots:
                self.damage(chosen)
            case 3:
                self.lose_power()
            case 4:
                self.stop(chosen)
            case 5 if not chosen.stopped_steps:
                self.tear_checkpoint(chosen)
            case 6 if self.rots:
                for shard in self.shards:
                    if shard.is_gone:
                        self.damage(self.rng.choice(shard.followers))
            case 7 if not chosen.stopped_steps:
                self.fail_aloud(chosen)

    def live(self) -> None:
        """The whole life, and what must be true at its end."""
        for _ in range(STEPS):
            self.step()
        for shard in self.shards:
            for follower in shard.followers if shard.is_gone else ():  # as `billing rebuild` does
                follower.is_suspect = True
                self.mend(shard, follower)
        for _ in range(60):
            if all(len(self.told_ids[user]) == len(self.entries[user]) for user in self.users):
                break
            self.bring_up()
            self.turn()
        for shard, follower in list(self.running()):
            while follower.stopped_steps:
                self.go_on(shard, follower)
        self.look()

    def bring_up(self) -> None:
        """Starts what does not run and should."""
        for shard in self.shards:
            for follower in shard.followers:
                if follower.store is None and not shard.is_gone:
                    self.start(shard, follower)

    def look(self) -> None:
        """Asks for every account. Raises Silent."""
        for user in self.users:
            told_ids, count = self.told_ids[user], len(self.entries[user])
            if not self.is_excused() and told_ids != list(range(1, count + 1)):
                raise SilentLoss(f"of {count} notices of {user!r} were told {told_ids}")
            for _ in range(3):
                self.bring_up()
                try:
                    self.ask(user)
                    break
                except ENDS as error:  # the process ends; the next one makes a new file
                    reason = reason_of(error)
                    for follower in [shard.followers[0] for shard in self.shards if not shard.is_gone]:
                        self.drop(follower, forgets=False)
                        follower.is_suspect = True
            else:
                raise SilentLoss(f"nobody answers for {user!r}: {reason}")

    def ask(self, user: bytes) -> None:
        """History, statement and balance of an account."""
        entries = self.entries[user]
        if not entries:
            return
        index, generation = self.owner[self.users[user]]
        follower = self.shards[index].followers[0]
        follower.store.flush()  # its process commits what it was handed before it answers
        reader = HistoryReader(follower.directory, follower.shard, follower.store.db, self.disk)
        newest = entries[-1]
        ledger_newest = Newest(newest["entry_id"], newest["balance_after_nanos"], newest["at_ns"])
        standing = Standing(*ledger_newest[::2], ledger_newest.balance_nanos)
        try:
            rows = reader.history(generation, user, NEWEST, 10**6, ledger_newest).rows
            chain = Chain(reader, generation, user, standing)
            period = _answer(statement(chain, user, 0, NEWEST, False, 10, self.now_ns + 1))
            then = _answer(balance_at(chain, user, entries[0]["at_ns"], self.now_ns + 1))
        finally:
            reader.close()
        expected = {entry["entry_id"]: entry for entry in entries}
        bound, is_whole = len(entries) + 1, True
        for row in rows:
            if row["operation"] == MISSING:
                is_whole = False
                if not row["whole_from_ns"]:
                    raise SilentLoss(f"a gap of {user!r} does not say from when it is whole: {row}")
            elif row != expected[row["entry_id"]]:
                raise SilentLoss(f"{row} instead of {expected[row['entry_id']]}")
            elif row["entry_id"] != bound - 1:
                raise SilentLoss(f"before entry {bound} of {user!r} comes {row['entry_id']}")
            bound = row["entry_id"]
        if bound != 1:
            raise SilentLoss(f"the history of {user!r} ends with entry {bound}")
        if not is_whole and period["whole_from_ns"] is None:
            raise SilentLoss(f"the statement of {user!r} lacks entries and does not say so")
        if not self.rots and not is_whole:
            raise SilentLoss(f"nothing was damaged, and the history of {user!r} is said to lack entries")
        wrong = then["balance_nanos"] != 1
        if wrong and then["whole_from_ns"] is None:
            raise SilentLoss(
                f"the balance of {user!r} at its first entry is {then['balance_nanos']}, and nothing says so"
            )
        self.counts["whole" if is_whole else "said"] += 1


def _answer(steps: Any) -> dict[str, Any]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return dict(end.value[0])


def play(seed: int) -> Counter[str]:
    """One life; what happened in it. Raises Silent."""
    with tempfile.TemporaryDirectory(prefix="billing-", dir=MEMORY) as home:
        world = World(seed, home)
        world.live()
        for _, follower in list(world.running()):
            follower.store.db.close()
        return world.counts


def first_failing(seeds: range) -> tuple[int, str] | None:
    """The first seed whose life fails, and how."""
    for seed in seeds:
        try:
            play(seed)
        except Exception as error:
            return seed, f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.follower.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0..100")
    first, _, last = parser.parse_args().seeds.partition("..")
    seeds = range(int(first), int(last))
    counts: Counter[str] = Counter()
    for seed in seeds:
        counts["runs"] += 1
        try:
            counts += play(seed)
        except SilentLoss as silent:
            counts["silent"] += 1
            print(f"seed {seed}: {silent}", file=sys.stderr)
        if counts["runs"] % PROGRESS == 0 or counts["runs"] == len(seeds):
            silent_ones = counts["silent"]
            print(f"{counts['runs']} of {len(seeds)} lives, {silent_ones} with a silent loss", flush=True)
    print(json.dumps(counts))
    return int(counts["silent"] > 0)


if __name__ == "__main__":
    sys.exit(main())
