"""Which host serves which shard, where several hosts serve at once: a pure rule, and the records that it decides by.

The map's log holds who is to serve each shard, and who takes part:

    ["host", host id, node, workers]                 this host takes part, and serves so many shards at most
    ["own", shard, number, node, host id]            this host serves the shard from here on; node "" : nobody does
    ["at", shard, number, links, direct]             where its worker is reached: by workers of other hosts, by clients
    ["wish", shard, number, host id]                 the owner is asked to hand the shard over to that host; or it is
                                                     about to give it back, and that host is to look out for it
    ["life", shard, number, life]                    the owner's worker has opened the journal, and serves from here on
    ["drained", node, bool]                          this node is to serve nothing, if others can
    ["gone", node]                                   this host takes part no more, and is not drained; one that lives
                                                     says so with another "host"

`number` rises by one with each `own` of a shard, and every record about an ownership names it: what is said about an
older one changes nothing. Whoever decides anything has read everything before it (`shards.journal.MapLog`), so of two
hosts that take a shard at once one learns that it was too late.

**Who serves a shard is the journal's to say.** Every billing instant of a shard belongs to one epoch of its journal,
whoever owns what here. An `own` names the host that tries; the journal lets it in once the owner before it has given
the shard back or was not heard of for a grant of time. Which shard has a bucket is decided by these records: a move
counts only while the newest `own` and `life` of both shards are those of the workers that took part.

A host **takes** a shard that nobody owns, that its own earlier life owned, or whose owner has served since it became
the owner (it was heard of, or said so: `life`, `at`), and has given the shard back or was not heard of for 1.01
grants. A new owner is on its way to its first record, for which it has `GRACE_NS`. Of several hosts that may take a
shard, the one that serves least tries first; a drained one waits `DRAINED_WAIT_NS` for the others. The one that a
`wish` names waits for nobody.

A host **wishes** for a shard of another one where that makes the load more even: `served + 1` of `workers` here must be
less than what the other one serves of its own, or the other one is drained. A wish is made only while no shard is on
its way, one at a time, and only by a host that has been part of this for `STEADY_NS`. So shards move one after the
other, each step makes the load more even, and no step is undone by the next; a host that dies and comes back every few
seconds is given nothing.

It reads no clock and no log: instants are of the boot clock, signs are what was heard of the journals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from shards.journal import LastSign

GRACE_NS = 10_000_000_000
STILL_SHARE = 1.01  # of the grant, for clocks that run apart
STAGGER_NS = 20_000_000  # so much later a host takes a shard, for each that it serves
DRAINED_WAIT_NS = 5_000_000_000
STEADY_NS = 5_000_000_000
AWAITED_NS = 3_000_000_000
PAUSE_NS = 500_000_000  # between a shard that arrived and the next wish


class Voice(NamedTuple):
    """Identifies one worker process of a shard. Its reports count as long as the map has no later one; a later one is
    greater.
    """

    number: int  # of the `own` record
    life: int  # of the `life` record; 0: there was none yet


class Own(NamedTuple):
    """The owner of a shard. `host_id` distinguishes two hosts of the same name; node "" is nobody."""

    number: int
    node: str
    host_id: str
    links: str = ""  # "host:port" of its worker for those of other hosts; "": it does not serve yet
    direct: str = ""  # "host:port" of its worker for clients; "": it has none
    wish: str = ""  # the host that it is to be handed over to
    life: int = 0  # of its worker: rises with each process that opens the journal; 0: none has yet

    @property
    def voice(self) -> Voice:
        """The worker process whose reports count in a move."""
        return Voice(self.number, self.life)


class Member(NamedTuple):
    """A host that serves, or may serve, some of the shards."""

    node: str
    workers: int


class Shares:
    """What the map's log says of hosts and their shards; only records change it."""

    def __init__(self) -> None:
        self.owns: dict[int, Own] = {}
        self.members: dict[str, Member] = {}  # by host id
        self.drained: set[str] = set()  # nodes

    def apply(self, record: Any) -> bool:
        """Applies a record; False where the record is of another kind."""
        match record:
            case ["host", str(host_id), str(node), int(workers)]:
                self.members = {other_id: member for other_id, member in self.members.items() if member.node != node}
                self.members[host_id] = Member(node, workers)
            case ["own", int(shard), int(number), str(node), str(host_id)]:
                self.owns[shard] = Own(number, node, host_id)
            case ["at", int(shard), int(number), str(links), str(direct)]:
                owner = self.owns.get(shard)
                if owner is not None and owner.number == number:
                    self.owns[shard] = owner._replace(links=links, direct=direct)
            case ["wish", int(shard), int(number), str(host_id)]:
                owner = self.owns.get(shard)
                if owner is not None and owner.number == number:
                    self.owns[shard] = owner._replace(wish=host_id)
            case ["life", int(shard), int(number), int(life)]:
                owner = self.owns.get(shard)
                if owner is not None and owner.number == number:
                    self.owns[shard] = owner._replace(life=life, links="")
            case ["drained", str(node), bool(drained)]:
                self.drained = self.drained | {node} if drained else self.drained - {node}
            case ["gone", str(node)]:
                self.members = {host_id: member for host_id, member in self.members.items() if member.node != node}
                self.drained = self.drained - {node}
            case _:
                return False
        return True

    def records(self) -> list[list[Any]]:
        """Records that stand for all records until now."""
        records: list[list[Any]] = [["host", host_id, *member] for host_id, member in self.members.items()]
        records += [["drained", node, True] for node in sorted(self.drained)]
        for shard, owner in self.owns.items():
            records.append(["own", shard, owner.number, owner.node, owner.host_id])
            if owner.life:
                records.append(["life", shard, owner.number, owner.life])
            if owner.links:
                records.append(["at", shard, owner.number, owner.links, owner.direct])
            if owner.wish:
                records.append(["wish", shard, owner.number, owner.wish])
        return records

    def next_own(self, shard: int, node: str, host_id: str) -> list[Any]:
        """The record by which this host takes a shard or, with node "", gives it back."""
        known = self.owns.get(shard)
        return ["own", shard, 1 if known is None else known.number + 1, node, host_id]

    def served_by(self, host_id: str) -> list[int]:
        """The shards that a host owns, ascending."""
        return sorted(shard for shard, owner in self.owns.items() if owner.host_id == host_id)

    @property
    def is_used(self) -> bool:
        """Whether several hosts serve at once with this log, or have done so."""
        return bool(self.members or self.owns)


class Take(NamedTuple):
    """This host is to take the shard."""

    shard: int


class Wish(NamedTuple):
    """This host is to ask the owner for the shard."""

    shard: int


class Placement:
    """What one host knows of the others, and its decisions about shards."""

    def __init__(self, node: str, host_id: str, workers: int, grant_ns: int) -> None:
        """`workers`: how many shards this host can serve; `grant_ns`: how long a silent owner may still be alive."""
        self.node = node
        self.host_id = host_id
        self.workers = workers
        self._grant_ns = grant_ns
        self._still_ns = int(STILL_SHARE * grant_ns)
        self._last: dict[int, tuple[int, int]] = {}  # shard -> the last sequence, and since which boot instant
        self._known: dict[int, tuple[int, int, int]] = {}  # shard -> number of its owner, since when, epoch then
        self._heard: set[int] = set()  # shards whose owner was heard of since it became the owner
        self._free_ns: dict[int, int] = {}  # shard -> since when it may be taken
        self._steady_ns = -1  # since when nothing has disturbed this host's part; −1: not known yet
        self._promised_ns: dict[tuple[int, int], int] = {}  # (shard, number) that this host is to get -> since when
        self._changed_ns = 0  # when any shard last changed its owner

    def hear(self, shares: Shares, signs: Mapping[int, LastSign], now_ns: int) -> None:
        """Takes the newest signs of the shards' owners; to be called a few times a second, with the newest map."""
        if self._steady_ns < 0:
            self._steady_ns = now_ns
        promised = [(shard, owner.number) for shard, owner in shares.owns.items() if owner.wish == self.host_id]
        self._promised_ns = {promise: self._promised_ns.get(promise, now_ns) for promise in promised}
        for shard, sign in signs.items():
            owner = shares.owns.get(shard)
            number = 0 if owner is None else owner.number
            known = self._known.get(shard)
            if known is None or known[0] != number:
                known = self._known[shard] = number, now_ns, sign.epoch
                self._heard.discard(shard)
                self._changed_ns = now_ns
            last = self._last.get(shard)
            if last is None or last[0] != sign.sequence:
                self._last[shard] = sign.sequence, now_ns
                if last is not None and (sign.epoch > known[2] or now_ns - known[1] > self._still_ns):
                    self._heard.add(shard)
            if self._is_free(owner, shard, sign, now_ns):
                self._free_ns.setdefault(shard, now_ns)
            else:
                self._free_ns.pop(shard, None)

    def heirs(self, shares: Shares) -> dict[int, str]:
        """For each shard that this host is about to give back, the host that is to take it: of those that are not
        drained, the one that serves least by then. If that host is gone, another one takes the shard.
        """
        loads = {
            host_id: len(shares.served_by(host_id))
            for host_id, member in shares.members.items()
            if host_id != self.host_id and member.node not in shares.drained
        }
        heirs = {}
        for shard in shares.served_by(self.host_id) if loads else ():
            heirs[shard] = min(
                loads, key=lambda candidate: (loads[candidate] / shares.members[candidate].workers, candidate)
            )
            loads[heirs[shard]] += 1
        return heirs

    def disturbed(self, now_ns: int) -> None:
        """A shard of this host failed or was taken from it: it asks for no other shard for a while."""
        self._steady_ns = now_ns

    def _is_free(self, owner: Own | None, shard: int, sign: LastSign, now_ns: int) -> bool:
        if owner is None or not owner.node or owner.host_id == self.host_id:
            return True
        has_served = shard in self._heard or owner.links or owner.life  # it said so once its journal was open
        if not has_served and now_ns - self._known[shard][1] < GRACE_NS:
            return False
        return sign.is_given_up or now_ns - self._last[shard][1] >= self._still_ns

    def is_awaiting(self, shares: Shares, served: set[int], failed: set[int], now_ns: int) -> bool:
        """Whether this host is about to take a shard, so that it should look again soon; for `AWAITED_NS` at most,
        since a shard that has not come by then may never come.
        """
        if len(served) >= self.workers:
            return False
        free = [shard for shard in self._free_ns if shard not in served | failed]
        since_ns = [*(self._free_ns[shard] for shard in free), *self._promised_ns.values()]
        return any(now_ns - one_ns < AWAITED_NS for one_ns in since_ns)

    def is_alive(self, shard: int) -> bool:
        """Whether, as far as this host knows, another host serves the shard or is about to."""
        return shard in self._last and shard not in self._free_ns

    def why_not_join(self, shares: Shares) -> str:
        """Why this host may not join: another host of its name is alive. Empty where it may."""
        for host_id, member in shares.members.items():
            if member.node == self.node and host_id != self.host_id:
                alive = [shard for shard in shares.served_by(host_id) if self.is_alive(shard)]
                if alive:
                    return f"{self.node} serves, another host of this name: give each host a cluster.node of its own"
        return ""

    def why_to_go(self, shares: Shares) -> str:
        """Why this host must leave: another host of its name has joined, which saw no sign of this one, since it served
        nothing. Empty where it may stay.
        """
        names = {member.node for member in shares.members.values()}
        if self.host_id in shares.members or self.node not in names:
            return ""
        return f"{self.node} has joined, another host of this name: give each host a cluster.node of its own"

    def passed_ns(self, shard: int, sign: LastSign, now_ns: int) -> int:
        """A billing instant that has certainly passed by the clock of the shard's owner, if that clock runs as fast as
        this host's. `now_ns`: boot clock.
        """
        since_ns = self._last[shard][1] if shard in self._last else now_ns
        return sign.until_ns - max(0, self._grant_ns - (now_ns - since_ns)) * (not sign.is_given_up)

    def next_step(self, shares: Shares, served: set[int], failed: set[int], now_ns: int) -> Take | Wish | None:
        """What to do now, one step at a time. `served`: shards that have a worker here; `failed`: shards that this host
        could not serve, and does not try again.
        """
        free = [shard for shard in sorted(self._free_ns) if shard not in served | failed]
        if len(served) < self.workers:
            wait_ns = STAGGER_NS * len(served) + DRAINED_WAIT_NS * (self.node in shares.drained)
            for shard in free:
                owner = shares.owns.get(shard)
                if self._known[shard][0] != (0 if owner is None else owner.number):
                    continue  # it was handed over since the last look
                is_mine = owner is not None and self.host_id in (owner.host_id, owner.wish)
                if is_mine or now_ns - self._free_ns[shard] >= wait_ns:
                    return Take(shard)
        is_calm = not free and now_ns - self._changed_ns >= PAUSE_NS and 0 <= self._steady_ns <= now_ns - STEADY_NS
        if is_calm and not failed and self.node not in shares.drained and len(served) < self.workers:
            return self._wish(shares, served, now_ns)
        return None

    def _wish(self, shares: Shares, served: set[int], now_ns: int) -> Wish | None:
        if any(owner.wish or not owner.links for owner in shares.owns.values()):
            return None  # a shard is on its way
        if any(
            now_ns - since_ns > self._grant_ns // 2
            for shard, (_, since_ns) in self._last.items()
            if shard not in served
        ):
            return None  # an owner is silent: it may be gone
        best: tuple[float, int] | None = None
        for host_id, member in shares.members.items():
            owned = shares.served_by(host_id)
            if host_id == self.host_id or not owned:
                continue
            is_drained = member.node in shares.drained
            if is_drained or (len(served) + 1) * member.workers < len(owned) * self.workers:
                load = len(owned) / member.workers + is_drained * len(shares.owns)
                best = max(best or (load, owned[-1]), (load, owned[-1]))
        if best is None:
            return None
        return Wish(best[1])
