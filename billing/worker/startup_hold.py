"""Which cutoffs of a start wait for an operator.

A machine that comes up with a wrong clock, or from a backup, finds many users exhausted who are not. So cutoffs that
were overdue when the daemon came up are held back until `release` where there are more than `cutoff.hold_above`, or
where the data directory was restored from a backup (`RESTORED` is in it). Overdue is every cutoff that is owed already,
and every account with an exhaustion instant (and the grace of its class) in the past by then: those become owed in the
first moments of serving, one by one, and are told apart by their instants from what runs out while the daemon serves.

It is the number of all shards that counts. A worker with no more of its own than `cutoff.hold_above` holds them back
all the same, and asks until every shard has said what was overdue when it came up, for some ten seconds at most; where
the sum is not too many, they go.

After a restore every start holds the calls that were overdue when the restored daemon first came up, until the release
removes the mark. That instant is added to the mark. Everything that happened since then is in the journal, so whoever
ran out later is called.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shards.system.disk import Disk, read_file, write_file

if TYPE_CHECKING:
    from billing.expirationd.delivery import Delivery
    from billing.worker.machine import BillingMachine
    from shards.machine import Command

_AGAIN_S: Final = 0.1
_TRIES_MAX: Final = 100  # a shard that does not come up must not hold up the cutoffs of the others for ever

log = logging.getLogger("billing.worker.startup_hold")

RESTORED = "restored"
FIRST_SERVED: Final = "first_served_ns"  # within the mark: billing time when the restored daemon first came up
CUTOFF = "cutoff"  # the kind of call


class StartupHold:
    """Decides once, at the start of a worker; see the module's text."""

    def __init__(self, disk: Disk, data_dir: str, hold_above: int) -> None:
        """`hold_above`: -1 never holds back."""
        self._disk = disk
        self._mark = f"{data_dir}/{RESTORED}"
        self._hold_above = hold_above
        self.restored = disk.exists(self._mark)
        self._until_ns = -1  # exhaustions up to this instant wait; -1: none
        self.overdue = 0  # here, at the start; none any more once they were let go
        self._undecided = False  # they wait until the other shards have told theirs

    def take_up(self, machine: BillingMachine, delivery: Delivery, now_ns: int) -> None:
        """At the start: everything that is owed from before is sent, or waits."""
        until_ns, first_ns = now_ns, self._first_served_ns(now_ns) if self.restored else now_ns
        overdue = machine.overdue(now_ns) if self.restored or self._hold_above >= 0 else 0
        is_too_many = 0 <= self._hold_above < overdue
        if self.restored and not is_too_many:
            until_ns, overdue = first_ns, machine.overdue(first_ns)
        self.overdue = overdue
        held = self.restored or is_too_many
        self._undecided = not held and self._hold_above >= 0 and overdue > 0
        if held or self._undecided:
            self._until_ns = until_ns
        if held and overdue:
            self._warn()
        self.hand_over(list(machine.owed()), delivery)

    def ask(self, operate: Callable[[Any, None, Command], None], shards: int, release: Callable[[], object]) -> None:
        """Right after `take_up`: settles with the other shards what is undecided; `operate` as a worker has it."""
        if self._undecided:
            question = _Question(self, operate, shards, release)
            asyncio.get_running_loop().call_later(_AGAIN_S, question.ask)

    def on_overdue(self, overdue: list[int], shards: int, last: bool, release: Callable[[], object]) -> bool:
        """So many were overdue at each shard that answered; True once it is decided. `last`: nobody is waited for."""
        if not self._undecided:
            return True  # an operator was first
        if sum(overdue) > self._hold_above:
            self._undecided = False
            self._warn()
        elif last or len(overdue) >= shards:
            release()
        return not self._undecided

    def hand_over(self, owed: list[tuple[int, bytes, str, int, int, str]], delivery: Delivery) -> None:
        """Tells a delivery of what is owed, as `BillingMachine.owed` says it; all that determined it is durable."""
        for bucket_id, user_id, kind, since_ns, seq, class_name in owed:
            if kind == CUTOFF and since_ns <= self._until_ns:
                delivery.hold(bucket_id, user_id, since_ns, kind, seq, class_name)
            else:
                delivery.notify(bucket_id, user_id, kind, since_ns, seq=seq, class_name=class_name)

    def holds_back(self, machine: BillingMachine, delivery: Delivery, bucket_id: int, user_id: bytes, seq: int) -> bool:
        """Whether the cutoff `seq`, owed just now, waits with the others, because it was overdue at the start."""
        if self._until_ns < 0:
            return False
        call = machine.ledger.owed(bucket_id, user_id)
        if call is None or call.kind != CUTOFF or call.due_ns > self._until_ns:
            return False
        delivery.hold(bucket_id, user_id, call.due_ns, CUTOFF, seq, call.class_name.decode())
        return True

    def release(self, machine: BillingMachine, delivery: Delivery) -> int:
        """The operator says that what is overdue is right; how many accounts waited."""
        until_ns, self._until_ns = self._until_ns, -1
        self._undecided = False
        self.overdue = 0
        waited = sum(kind == CUTOFF and since_ns <= until_ns for _, _, kind, since_ns, *_ in machine.owed())
        if self.restored:
            self.restored = False
            self._remove_mark()
        delivery.release()
        return waited

    def _first_served_ns(self, now_ns: int) -> int:
        """When the restored daemon first came up: the mark says it from then on. Whichever worker is first writes it;
        what else the mark says is kept.
        """
        try:
            mark = json.loads(read_file(self._disk, self._mark) or b"{}")
            if FIRST_SERVED in mark:
                return int(mark[FIRST_SERVED])
            write_file(self._disk, self._mark, json.dumps(mark | {FIRST_SERVED: now_ns}).encode())
        except OSError:
            pass  # another worker of this daemon writes it at this moment, or there is no room for it now
        except (ValueError, TypeError):
            pass  # it says nothing that can be read: all that is overdue waits
        return now_ns

    def _warn(self) -> None:
        if self.restored:
            log.warning("restored from a backup: overdue cutoffs that wait for a release: %d", self.overdue)
        else:
            log.warning("overdue cutoffs that wait: %d; look at them, then billing cutoffs release", self.overdue)

    def _remove_mark(self) -> None:
        try:
            self._disk.unlink(self._mark)
        except FileNotFoundError:
            return  # another worker of this daemon was first
        self._disk.fsync_dir(self._mark.rpartition("/")[0])


class _Question:
    """Asks all shards, until it is decided. As a caller, it takes the answers."""

    mode = 0

    def __init__(
        self,
        startup_hold: StartupHold,
        operate: Callable[[Any, None, Command], None],
        shards: int,
        release: Callable[[], object],
    ) -> None:
        self._startup_hold, self._operate, self._shards, self._release = startup_hold, operate, shards, release
        self._tries = 0

    def ask(self) -> None:
        self._tries += 1
        self._operate(self, None, ("overdue",))

    def answer(self, token: None, reply: Any) -> None:
        overdue = reply if isinstance(reply, list) else [self._startup_hold.overdue]  # else a shard cannot be asked yet
        if not self._startup_hold.on_overdue(overdue, self._shards, self._tries >= _TRIES_MAX, self._release):
            asyncio.get_running_loop().call_later(_AGAIN_S, self.ask)

    def flush(self) -> None:
        """Nothing waits here."""

    def refuse(self, token: None, reply: Any) -> None:
        """This process ends; the next one asks."""
