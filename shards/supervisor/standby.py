"""When a host may take the shards over, where several hosts share one log: a pure rule.

One host serves all shards; any number of others stand by. The map holds who serves, as a claim:

    ["claim", node, host id, number, epoch]    this host serves from here on; node "" gives everything back

`epoch` is the newest of all shards' journals when it was claimed: a newer one is the claimant's.

A claim is decided like every change of the map, at the next version. Of two hosts that claim at once, one hears that it
was overtaken. Money and cutoffs do not depend on claims: every billing instant of a shard belongs to one epoch of its
journal, whoever has claimed what (`shards.journal.jetstream.journal`). A claim only names the host that tries. So all
shards of a daemon go over together, and an owner wrongly believed dead ends as a whole.

A host may claim where

- nobody has claimed, the claim was given back, or it is its own of an earlier life; or
- the claim is another host's that has been heard of since it claimed, and every shard's owner has given it back or has
  not been heard of for 1.01 grants. One shard whose worker is being restarted says nothing of its host: the others go
  on.

A host that has claimed is heard of by a record of a newer epoch than the claim's, also where that was there before this
host began to listen; or by any new record 1.01 grants after the claim became known: by then an owner from before has
noticed that it was displaced. Until it is heard of its workers are on their way to their first record, for which they
have `GRACE_NS` from when the claim became known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from shards.journal import LastSign

GRACE_NS = 10_000_000_000
STILL_SHARE = 1.01  # of the grant, for clocks that run apart


class Claim(NamedTuple):
    """Which host serves. `host_id` distinguishes two hosts of the same name; node "" is nobody."""

    node: str = ""
    host_id: str = ""
    number: int = 0
    epoch: int = 0  # the newest of any shard's journal then


class Standby:
    """What one host that stands by has seen of the others."""

    def __init__(self, node: str, host_id: str, grant_ns: int) -> None:
        self.node = node
        self.host_id = host_id
        self._grant_ns = grant_ns
        self._still_ns = int(STILL_SHARE * grant_ns)
        self._claim: tuple[Claim, int] | None = None  # the boot instant when it became known
        self._epoch = 0  # the newest that was seen
        self._is_heard = False  # the claimant
        self._last: dict[int, tuple[int, int]] = {}  # shard -> the last sequence, and since which boot instant

    def next_claim(self, current: Claim) -> Claim:
        """The record by which this host claims to serve."""
        return Claim(self.node, self.host_id, current.number + 1, self._epoch)

    def why_not(self, claim: Claim, signs: Mapping[int, LastSign], now_ns: int) -> str:
        """Why this host may not claim now; empty where it may. To be asked a few times a second. `now_ns`: boot
        clock.
        """
        if self._claim is None or self._claim[0] != claim:
            self._claim, self._is_heard = (claim, now_ns), False
        self._epoch = max((sign.epoch for sign in signs.values()), default=0)
        self._is_heard |= self._epoch > claim.epoch
        for shard, sign in signs.items():
            known = self._last.get(shard)
            if known is None or known[0] != sign.sequence:
                self._last[shard] = sign.sequence, now_ns
                self._is_heard |= now_ns - self._claim[1] > self._still_ns
        if not claim.node or claim.host_id == self.host_id:
            return ""
        reason = f"{claim.node} serves"
        if claim.node == self.node:
            reason += ", another host of this name: give each host a cluster.node of its own"
        if now_ns - self._claim[1] < GRACE_NS and not self._is_heard:
            return reason
        alive = [
            shard
            for shard, sign in signs.items()
            if not sign.is_given_up and now_ns - self._last[shard][1] < self._still_ns
        ]
        return reason if alive else ""

    def passed_ns(self, shard: int, sign: LastSign, now_ns: int) -> int:
        """A billing instant that has certainly passed by the clock of the shard's owner, if that clock runs as fast as
        this host's. `now_ns`: boot clock.
        """
        since_ns = self._last[shard][1] if shard in self._last else now_ns
        return sign.until_ns - max(0, self._grant_ns - (now_ns - since_ns)) * (not sign.is_given_up)
