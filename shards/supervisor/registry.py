"""What the supervisor knows durably: the owner of each bucket, the shards that have served, and the anchor of billing
time.

The map's log (`shards.journal.MapLog`) holds it as records, plain lists; one decision is a list of them:

    ["create", …] ["assign", …] ["pin", …] …   see `shards.buckets.BucketMap`
    ["founded", shard_id]                       this shard has served: from here on, an empty directory is a loss
    ["anchor", 48 bytes]                        see `shards.system.clock`
    ["uneven", bool]                            buckets should move: the set of shards or a weight changed, or somebody
                                                asked for it; or all have
    ["claim", node, host id, number, epoch]     who serves, where several hosts share the log; see `standby`
    ["restored", …], ["released", …]            see `shards.restored`
    ["settled", shard_id, position]             up to this batch the application owes nothing outside; shared logs only
    ["host", …] ["own", …] ["at", …] …          who serves which shard, where several hosts serve at once: `placement`
    ["wanted", …] ["unwanted", …]               moves that were asked for and are not over: `shards.moves.wanted`
    ["clock", host id, 48 bytes]                the anchor of that host's billing time, where several serve at once
    ["map", block]                              the whole map, in snapshots only

A record is durable before it is applied, and applied before anybody acts on it. Opening takes the lock of the data
directory first: one daemon at a time on a host, whatever kind the log is of. Where several hosts share the log, opening
also waits until this host may serve, by what it hears of the others and by its own clock, and claims that it does; or,
where several serve at once, until none serves everything, and says that it takes part. One of the two it is for all
hosts of a log: a claim ends what is known of shares, and a host that takes part gives back a claim whose host is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from shards import exits
from shards.buckets import HASH_NAME, BucketMap, UnknownRecord
from shards.journal import Backend, Corrupt, Fenced, Gap, JournalError, LastSign, Overtaken, Unavailable, Unfit, Unknown
from shards.moves.wanted import WantedMoves
from shards.restored import Mark, Restored, check_restored
from shards.supervisor import lost_map
from shards.supervisor.clock_watch import ClockWatch
from shards.supervisor.placement import Placement, Shares, Voice
from shards.supervisor.standby import Claim, Standby
from shards.system.clock import Anchor, decode_anchor, encode_anchor, restart
from shards.system.disk import DirectoryRefused, is_full, private_directory, read_file, write_file
from shards.system.host import Host
from shards.system.serial_executor import SerialExecutor

LOCK = "run/lock"  # below the data directory
SNAPSHOT_EVERY_RECORDS = 512
HOST_ID = "host-id"  # below the data directory: tells this host from another one of its name
STANDBY_POLL_S = 0.1
HANDOVER_POLL_S = 0.02  # while some shards have been given up: the others follow
SILENT_LOG_S = 2.0  # a call of the map's log that takes longer is worth a word to whoever waits for it
ERROR_KEPT_NS = 5_000_000_000  # so long an error of the map's log counts while nobody asks it again
ROOM_RETRY_S = 1.0  # how often a log without room, or out of reach, is tried again

T = TypeVar("T")

log = logging.getLogger("shards.supervisor.supervisor")


class Conflict(Exception):
    """The configuration or the version does not fit the data; nothing was started, or this host serves no more."""

    ending: ClassVar[exits.Ending] = exits.CONFIG


def claim_of(payloads: list[bytes]) -> Claim:
    """The host that serves, by the map's log."""
    claim = Claim()
    for payload in payloads:
        for record in msgspec.msgpack.decode(payload):
            if record[0] == "claim":
                claim = Claim(*record[1:])
    return claim


def shares_of(payloads: list[bytes]) -> Shares:
    """Which host serves which shard, by the map's log; empty where one host serves all."""
    shares = Shares()
    for payload in payloads:
        for record in msgspec.msgpack.decode(payload):
            if record[0] == "claim":
                shares = Shares()
            shares.apply(record)
    return shares


def moves_of(payloads: list[bytes]) -> tuple[WantedMoves, bool]:
    """The requested moves that have not ended, by the map's log; and whether the load is to be evened out."""
    wanted, is_uneven = WantedMoves(), False
    for payload in payloads:
        for record in msgspec.msgpack.decode(payload):
            wanted.apply(record)
            if record[0] == "uneven":
                is_uneven = record[1]
    return wanted, is_uneven


def may_commit(bucket_map: BucketMap, shares: Shares, record: list[Any], voices: Mapping[int, Voice]) -> bool:
    """Whether a move may be decided: the bucket has the owner that it had, and the workers of both shards that gave and
    stored it are the newest ones by the map. `record`: the `assign`; `voices`: shard id -> that worker.
    """
    _, bucket_id, _, generation = record
    owns = shares.owns
    is_theirs = all(shard in owns and owns[shard].voice == voice for shard, voice in voices.items())
    return is_theirs and bucket_map.generation[bucket_id] + 1 == generation


class StandsBy(Exception):
    """Another host serves, or this host's clock is unfit; nothing was started."""

    def __init__(self, reason: str, clock: str = "", pause_s: float = STANDBY_POLL_S) -> None:
        super().__init__("; ".join(filter(None, (reason, clock and f"the clock of this host is unfit: {clock}"))))
        self.kind = reason, bool(clock)  # what of it does not change from one look to the next
        self.pause_s = pause_s  # until the next look


class Registry:
    """The map of buckets and its log. Call `open` first, and `record` from then on."""

    def __init__(
        self,
        data_dir: str,
        host: Host,
        backend: Backend,
        now_ns: Callable[[], int],
        clock_error_ns_max: int = 0,
        share_workers: int = 0,
        on_assigned: Callable[[list[tuple[int, int, int]]], None] = lambda assigned: None,
    ) -> None:
        """`clock_error_ns_max`: of a host that shares its log; 0: any. `share_workers`: how many shards this host
        serves at most, beside others that serve at once; 0: one host serves all of them. `on_assigned` is told of the
        buckets that changed their shard by what others have decided, each with shard and generation.
        """
        self.map = BucketMap()
        self.founded: set[int] = set()
        self.anchor: tuple[Anchor, bytes] | None = None  # the newest recorded one, with the boot_id it is of
        self.claim = Claim()
        self.settled: dict[int, int] = {}
        self.restored = Restored()
        self._mark = Mark(host.disk, data_dir)
        self.shares = Shares()
        self.placement: Placement | None = None  # where this host serves beside others, from `open` on
        self._share_workers = share_workers
        self._anchors: dict[str, tuple[Anchor, bytes]] = {}  # of hosts that serve at once, by host id
        self._data_dir = data_dir
        self._disk = host.disk
        self._clocks = host.clocks
        self.clock_watch = ClockWatch(host.clocks, clock_error_ns_max if backend.node else 0)
        self._looked_ns = 0  # boot instant of the last look at other hosts' journals; 0: there was none
        self._randbits = host.randbits
        self._lock = -1
        self._warnings: list[str] = []
        self._standby: Standby | None = None
        self._owner = f"pid {host.pid()}"
        self._backend = backend
        self._log = backend.map_log(now_ns)
        self._version = 0  # up to which the log was taken up
        self._asked_ns = 0  # boot instant since when the map's log is asked for something; 0: it is not
        self._log_error = ""  # why the last call of it failed; "": it did not
        self._failed_ns = 0  # boot instant of that failure
        self._was_prepared = False  # the log was found fit, once
        self.is_new = False  # this process has made the map: there were no data
        self._recording = asyncio.Lock()
        self.deciding = asyncio.Lock()  # held while a record decides owners, and while a worker is told
        self._on_assigned = on_assigned
        self.unopened = "the map of the buckets is not open yet"  # why, while it is so; then ""
        self.stands_by = False  # another host serves
        self.held = False  # nothing is compacted: somebody copies the log
        self.uneven = False  # buckets should move, and not all has been evened out since
        self.wanted = WantedMoves()
        self._executor: SerialExecutor | None = None
        self._since_snapshot = 0

    async def open_with_room(
        self,
        bucket_count: int,
        wanted_weights: Callable[[], dict[int, int]],
        stopping: asyncio.Event,
        on_standing_by: Callable[[], None],
    ) -> list[str] | None:
        """As `open`, but where there is no room, the log is out of reach, or another host serves, it waits, and calls
        `on_standing_by` once at the latter. `wanted_weights` is asked before each look. None: it is to stop first.
        """
        kind: tuple[str, bool] | None = None
        while not stopping.is_set():
            try:
                if self._backend.node:  # it may ask servers for as long as another host serves
                    return await self._called(self.open, bucket_count, wanted_weights())
                return self.open(bucket_count, wanted_weights())
            except StandsBy as standing:
                self.unopened, pause_s, self.stands_by = f"this host stands by: {standing}", standing.pause_s, True
                if kind is None:
                    on_standing_by()
                if standing.kind != kind:
                    log.info("%s", self.unopened)
                kind = standing.kind
            except Unavailable as full:
                unopened, pause_s = f"the map of the buckets: waiting: {full}", ROOM_RETRY_S
                if unopened != self.unopened:
                    log.error("the daemon cannot be started: %s; it is tried every %g s", full, ROOM_RETRY_S)
                self.unopened = unopened
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause_s)
        return None

    async def _called(self, call: Callable[..., T], *arguments: Any) -> T:
        assert self._executor is not None
        result: T = await self._executor.call(call, *arguments)
        return result

    async def _of_log(self, call: Callable[..., T], *arguments: Any) -> T:
        """Calls the map's log, and keeps what is wrong with it for `log_trouble`."""
        self._asked_ns = self._clocks.boot_ns()
        try:
            result = await self._called(call, *arguments)
        except (Unavailable, Unknown) as error:
            self._log_error, self._failed_ns = str(error), self._clocks.boot_ns()
            raise
        except Overtaken:
            self._log_error = ""
            raise
        finally:
            self._asked_ns = 0
        self._log_error = ""
        return result

    def log_trouble(self) -> str:
        """Why nothing can be decided at this moment: what the map's log said last, or that it does not answer; "" where
        nothing is known to be wrong with it.
        """
        now_ns = self._clocks.boot_ns()
        if self._log_error and (self._asked_ns or now_ns - self._failed_ns < ERROR_KEPT_NS):
            return self._log_error
        silent_s = (now_ns - self._asked_ns) / 1e9 if self._asked_ns else 0.0
        return f"its log has not answered for {silent_s:.0f} s" if silent_s >= SILENT_LOG_S else ""

    def open(self, bucket_count: int, wanted_weights: dict[int, int]) -> list[str]:
        """Reads what is there, or founds the data directory; returns warnings. `wanted_weights`: shard id -> weight.

        Other shards or weights than before add shards or drain some (`uneven`); the rebalancer does the rest.
        Raises Conflict where the configuration asks for other buckets than the map has, StandsBy where another host
        serves (to be called again), MapLost where shards are there and no map, and the log's errors (Fenced: another
        daemon runs on the directory; Unavailable: no room or out of reach, may be called again).
        """
        try:
            return self._open(bucket_count, wanted_weights)
        except OSError as error:
            self.close()
            if not is_full(error):
                raise
            raise Unavailable(f"the disk is full: {error.strerror}", file=self._data_dir) from error
        except DirectoryRefused as refused:
            raise Unfit(str(refused)) from refused
        except Unavailable:
            self.close()
            raise

    def _open(self, bucket_count: int, wanted_weights: dict[int, int]) -> list[str]:
        if self._lock < 0:
            check_restored(self._disk, self._data_dir)
            self._warnings = private_directory(self._disk, self._data_dir)
            private_directory(self._disk, f"{self._data_dir}/run")
            try:
                self._lock = self._disk.lock(f"{self._data_dir}/{LOCK}")
            except BlockingIOError:
                raise Fenced("another daemon runs on it", file=self._data_dir) from None
            self._warnings += self._prepared()
            self._load()
            if self._backend.node and self._standby is None:
                self._standby = Standby(self._backend.node, self._host_id(), self._backend.grant_ns)
        warnings = [*self._warnings, *self._log.warnings]
        if self._standby is not None:
            self._begin_to_serve(self._standby)
        try:
            self._make_map(bucket_count, wanted_weights)
        except Overtaken:
            raise StandsBy("another host was faster") from None
        self.unopened, self.stands_by = "", False
        return warnings

    def _prepared(self) -> list[str]:
        """Prepares the log. Raises Unfit; once it was found fit, Unavailable where it only lets this host in no more,
        which may pass.
        """
        try:
            warnings = self._backend.prepare()
        except Unfit:
            if self._was_prepared:
                with contextlib.suppress(Corrupt, Gap):
                    self._load()
            raise
        self._was_prepared = True
        return warnings

    def _make_map(self, bucket_count: int, wanted_weights: dict[int, int]) -> None:
        if not self.map.bucket_count:
            lost_map.refuse([shard_id for shard_id in sorted(wanted_weights) if self._backend.holds(shard_id)])
            self._decide_now([["create", bucket_count, HASH_NAME, sorted(wanted_weights)]])
            self.is_new = True
        if bucket_count != self.map.bucket_count:
            raise Conflict(
                f"shards.bucket_count: the data were made with {self.map.bucket_count} buckets, "
                f"the configuration says {bucket_count}; the number is fixed for the life of the data"
            )
        if self.map.hash_name != HASH_NAME:
            raise Conflict(f"the data hash with {self.map.hash_name}, this version with {HASH_NAME}")
        changes = [] if self.placement is not None else self.changes(wanted_weights)
        if changes:
            self._decide_now(changes)

    def _check_shares(self) -> None:
        """Raises Conflict where hosts that serve at once could not do what one host that serves everything does with
        these data.
        """
        moved = next((bucket_id for bucket_id, generation in enumerate(self.map.generation) if generation > 1), 0)
        if self.shares.is_used:
            moved = 0  # it was moved while several hosts served
        if moved or len(set(self.map.weights.values())) > 1:
            what = "a shard was given a weight, which hosts that serve at once do not heed"
            if moved:
                what = (
                    f"bucket {moved} was moved from one shard to another while one host served all: what is owed to "
                    "notify.url of it may stand in a file of that host alone"
                )
            raise Conflict(
                f"cluster.listen: {what}: leave cluster.listen out, so that one host serves all shards and the others "
                "stand by"
            )

    def _load(self) -> None:
        self._version, payloads = self._log.load(self._owner)
        self._restore(payloads)

    async def _reload(self) -> None:
        """Applies what other hosts have decided. Raises Fenced where this host serves no more."""
        self._version, payloads = await self._of_log(self._log.load, self._owner)
        old_generations = self.map.generation
        self._restore(payloads)
        if self.map.generation != old_generations:
            pairs = zip(self.map.generation, old_generations, strict=False)
            changed = [bucket_id for bucket_id, (generation, before) in enumerate(pairs) if generation > before]
            self._on_assigned([(bucket_id, *self.map.owner_of(bucket_id)) for bucket_id in changed])
        self._check_part()

    def _check_part(self) -> None:
        """Raises Fenced where this host no longer takes part."""
        if self._is_displaced():
            raise Fenced(f"{self.claim.node or 'another host'} serves now")

    def _is_displaced(self) -> bool:
        if self.placement is not None:
            return bool(self.claim.node)
        return self._standby is not None and (self.claim.host_id != self._standby.host_id or self.shares.is_used)

    async def catch_up(self) -> bool:
        """Applies what other hosts have decided; returns whether there was anything. Raises Fenced, and what `load`
        raises.
        """
        async with self._recording:
            if await self._of_log(self._log.is_newest):
                return False
            await self._reload()
            return True

    async def record_if(self, make: Callable[[], list[list[Any]]]) -> bool:
        """Makes the records durable that `make` says by the newest map, and applies them; `make` is asked again where
        another host has decided meanwhile. False: it had none. Raises the log's errors.
        """
        async with self._recording:
            self._check_part()
            while records := make():
                payload = msgspec.msgpack.encode(records)
                try:
                    self._version = await self._of_log(self._log.decide, self._version, payload)
                except Overtaken:
                    await self._reload()
                    continue
                self._apply_all(payload)
                self._since_snapshot += len(records)
                return True
            return False

    async def record_surely(self, make: Callable[[], list[list[Any]]]) -> bool:
        """As `record_if`, tried again as long as the log is out of reach. Raises Fenced."""
        while True:
            try:
                return await self.record_if(make)
            except Fenced:
                raise
            except JournalError:
                await asyncio.sleep(ROOM_RETRY_S)

    async def commit(self, record: list[Any], voices: Mapping[int, Voice]) -> bool:
        """Decides a move where several hosts serve at once: True once the log holds the decision, False once the log
        rules it out for good. It reads the log until one of the two is known. Raises Fenced.
        """
        _, bucket_id, shard_id, generation = record
        is_logged = False
        while True:
            try:
                await self.record_if(lambda: [record] if may_commit(self.map, self.shares, record, voices) else [])
                # What was written without an answer is in the log by now, or something else is in its place there.
                return self.map.owner_of(bucket_id) == (shard_id, generation)
            except Fenced:
                raise
            except JournalError as error:
                if not is_logged:
                    log.error("the move of bucket %d is not decided yet: %s", bucket_id, error)
                is_logged = True
            await asyncio.sleep(ROOM_RETRY_S)

    async def signs(self) -> Mapping[int, LastSign]:
        """The last sign of life of every shard's owner. Raises Unavailable, Unknown."""
        return await self._called(self._backend.signs)

    @property
    def host_id(self) -> str:
        """The id of this host, where it shares its log."""
        return "" if self._standby is None else self._standby.host_id

    @property
    def newest_anchor(self) -> tuple[Anchor, bytes] | None:
        """The anchor from which billing time goes on on this host, within the same boot."""
        return self.anchor if self.placement is None else self._anchors.get(self.host_id)

    def anchor_record(self, block: bytes) -> list[Any]:
        """The record of an anchor that this host makes."""
        return ["anchor", block] if self.placement is None else ["clock", self.host_id, block]

    def _host_id(self) -> str:
        path = f"{self._data_dir}/{HOST_ID}"
        if not self._disk.exists(path):
            write_file(self._disk, path, b"%016x\n" % self._randbits(64))
        return read_file(self._disk, path).decode(errors="replace").strip()

    def _begin_to_serve(self, standby: Standby) -> None:
        """Claims that this host serves. Raises StandsBy."""
        if not self._log.is_newest():
            self._load()
        if self._share_workers:
            self._check_shares()
        looked_ns = self._clocks.boot_ns()
        signs = self._backend.signs()
        claim = self.claim
        if self.shares.is_used and not self._share_workers:
            claim = Claim("a host with a cluster.listen", "of several", 0)
        reason = standby.why_not(claim, signs, self._clocks.boot_ns())
        if not reason and self._share_workers:
            reason = self._why_not_join(standby, signs)
        clock = self.clock_fault(standby, signs, looked_ns)
        if reason or clock:
            is_given_up = any(sign.is_given_up for sign in signs.values())
            raise StandsBy(reason, clock, HANDOVER_POLL_S if is_given_up and not clock else STANDBY_POLL_S)
        decided: list[list[Any]] = [["claim", *standby.next_claim(self.claim)]]
        if self._share_workers:
            decided = [["claim", *Claim(number=self.claim.number + 1)]] if self.claim.node else []
            decided.append(["host", standby.host_id, standby.node, self._share_workers])
        try:
            self._decide_now(decided)
        except Overtaken:
            raise StandsBy("another host was faster") from None

    def _why_not_join(self, standby: Standby, signs: Mapping[int, LastSign]) -> str:
        if self.placement is None:
            grant_ns = self._backend.grant_ns
            self.placement = Placement(standby.node, standby.host_id, self._share_workers, grant_ns)
        self.placement.hear(self.shares, signs, self._clocks.boot_ns())
        return self.placement.why_not_join(self.shares)

    @property
    def grants_time(self) -> bool:
        """Whether an owner of a shard acts only at instants that the log has granted to it."""
        return self._backend.grant_ns > 0

    def clock_fault(self, observer: Standby | Placement, signs: Mapping[int, LastSign], looked_ns: int) -> str:
        """Why this host's clock is unfit to take a shard over by; "" where it is fit. To be asked with each look at the
        signs of other hosts, while this one serves nothing. looked_ns: boot instant before it.
        """
        boot_ns, wall_ns = self._clocks.paired()
        if self._looked_ns:
            for shard, sign in signs.items():
                sent_ns = sign.until_ns - self._backend.grant_ns
                self.clock_watch.guard.heard(shard, sent_ns, self._looked_ns, boot_ns)
        self._looked_ns = looked_ns
        passed_ns = (observer.passed_ns(shard, sign, boot_ns) for shard, sign in signs.items())
        last_ns = max(0, *passed_ns)  # an owner that was granted no time yet says nothing
        begun = restart(self.newest_anchor, last_ns, self._disk.boot_id(), boot_ns, wall_ns)
        return self.clock_watch.look(boot_ns, wall_ns, begun.anchor.at(boot_ns))

    async def is_displaced(self) -> bool:
        """Whether another host serves now. False where that cannot be seen at this moment."""
        if self._standby is None:
            return False
        async with self._recording:
            try:
                if not await self._of_log(self._log.is_newest):
                    await self._reload()
            except Fenced:
                return True
            except (Unavailable, Unknown):
                return False
        return self._is_displaced()

    async def settle(self, settled: dict[int, int]) -> None:
        """Records up to which batch each shard's application has nothing left to tell, so that another host may begin
        there.
        """
        if self._standby is None:
            return
        news = _settled(
            {shard_id: up_to for shard_id, up_to in settled.items() if up_to > self.settled.get(shard_id, -1)}
        )
        if news:
            await self.record(*news)

    async def note_restored(self) -> None:
        """Records what this host's application has made of the mark of a restore. Raises what `record` raises, and
        OSError.
        """
        if news := self._mark.news(self.restored):
            await self.record(*news)

    async def give_back(self) -> None:
        """Tells the hosts that stand by that this one has stopped, so that they need not wait until its grant has run
        out.
        """
        if self._standby is None or self.placement is not None or await self.is_displaced():
            return
        with contextlib.suppress(Unavailable, Unknown, Fenced):
            await self.record(["claim", *Claim(number=self.claim.number + 1)])

    def _decide_now(self, records: list[list[Any]]) -> None:
        payload = msgspec.msgpack.encode(records)
        self._version = self._log.decide(self._version, payload)
        self._apply_all(payload)

    def _restore(self, payloads: list[bytes]) -> None:
        self.map, self.founded, self.anchor, self.uneven = BucketMap(), set(), None, False
        self.claim, self.settled, self.restored = Claim(), {}, Restored()
        self.shares, self._anchors, self.wanted = Shares(), {}, WantedMoves()
        for payload in payloads:
            self._apply_all(payload)
        self._mark.follow(self.restored)

    def changes(self, wanted_weights: dict[int, int]) -> list[list[Any]]:
        """The records that change shards and weights to the wanted ones; every other shard gets weight 0."""
        weights = self.map.weights
        changes: list[list[Any]] = [
            ["weight", shard_id, wanted_weights[shard_id]]
            for shard_id in wanted_weights
            if weights.get(shard_id) != wanted_weights[shard_id]
        ]
        changes += [
            ["weight", shard_id, 0] for shard_id, weight in weights.items() if shard_id not in wanted_weights and weight
        ]
        return [*changes, ["uneven", True]] if changes else []

    def use(self, executor: SerialExecutor) -> None:
        """Writes records on this thread from now on."""
        self._executor = executor

    def _apply_all(self, payload: bytes) -> None:
        for record in msgspec.msgpack.decode(payload):
            self._apply(record)

    def _apply(self, record: Any) -> None:
        match record:
            case ["map", bytes(block)]:
                self.map = BucketMap.decode(block)
            case ["founded", int(shard_id)]:
                self.founded.add(shard_id)
            case ["claim", str(node), str(host_id), int(number), int(epoch)]:
                self.claim = Claim(node, host_id, number, epoch)
                self.shares, self.wanted = Shares(), WantedMoves()
            case ["clock", str(host_id), bytes(block)]:
                self._anchors[host_id] = decode_anchor(block)
            case ["settled", int(shard_id), int(position)]:
                self.settled[shard_id] = position
            case ["uneven", bool(uneven)]:
                self.uneven = uneven
            case ["anchor", bytes(block)]:
                self.anchor = decode_anchor(block)
            case _:
                if (restored := self.restored.after(record)) is not None:
                    self.restored = restored
                elif not self.wanted.apply(record) and not self.shares.apply(record):
                    try:
                        self.map.apply(record)
                    except UnknownRecord as error:
                        raise Conflict(
                            f"the map holds {error}, which this version does not know: a newer one wrote it; install it"
                        ) from None

    async def record(self, *records: list[Any]) -> None:
        """Makes records durable as one batch, then applies them. Raises the journal's errors; MapConflict, with nothing
        written, where the map would refuse one: it would at every start, too.
        """
        assert self._executor is not None
        async with self._recording:  # a decision is made knowing all before it, those of this process included
            version = await self._decide(records)
            self._since_snapshot += len(records)
        if self._since_snapshot >= SNAPSHOT_EVERY_RECORDS and not self.held:
            self._since_snapshot = 0
            state: list[Any] = [["map", self.map.encode()], *(["founded", shard_id] for shard_id in self.founded)]
            state.append(["uneven", self.uneven])
            if self.claim.number:
                state.append(["claim", *self.claim])
            state += self.shares.records()
            state += self.wanted.records()
            state += (["clock", host_id, encode_anchor(*anchor)] for host_id, anchor in self._anchors.items())
            state += _settled(self.settled)
            state += self.restored.records()
            if self.anchor is not None:
                state.append(["anchor", encode_anchor(*self.anchor)])
            with contextlib.suppress(Unavailable):  # no room: the next occasion comes
                await self._executor.call(self._log.compact, version, msgspec.msgpack.encode(state))

    async def _decide(self, records: tuple[list[Any], ...]) -> int:
        """Waits where there is no room, or the log is out of reach: whoever wanted this record waits with it. Where
        another supervisor has decided meanwhile, what it decided is taken up, and the record looked at again.
        """
        is_logged = is_behind = False
        while True:
            try:
                if is_behind:
                    await self._reload()
                    is_behind = False
                self._check_part()
                for record in records:
                    self.map.check_record(record)
                payload = msgspec.msgpack.encode(records)
                self._version = await self._of_log(self._log.decide, self._version, payload)
                self._apply_all(payload)
                return self._version
            except Overtaken:
                is_behind = True
                continue
            except Unavailable as error:
                if not is_logged:
                    log.error("the map cannot be written: %s; it is tried every %g s", error, ROOM_RETRY_S)
                is_logged = True
            await asyncio.sleep(ROOM_RETRY_S)

    @property
    def version(self) -> int:
        """The version of the map that is known here, as its log counts."""
        return self._version

    def close(self) -> None:
        """Closes the map's log, and unlocks the data directory."""
        self._log.close()
        if self._lock >= 0:
            self._disk.close(self._lock)
            self._lock = -1


def records_of_restore(settled: dict[int, int], restored: Restored, payloads: list[bytes]) -> bytes:
    """The records that say that the log was restored, and up to which batch each shard's application has nothing left
    to tell. `payloads`: the map of the backup, whose hosts take part no more: which hosts there are, and which are
    drained, is of the cluster, not of the data.
    """
    gone = [["gone", node] for node in sorted({member.node for member in shares_of(payloads).members.values()})]
    return msgspec.msgpack.encode([*_settled(settled), *restored.records(), *gone])


def _settled(settled: dict[int, int]) -> list[list[Any]]:
    return [["settled", shard_id, position] for shard_id, position in settled.items()]
