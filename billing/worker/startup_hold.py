"""Decides which overdue cutoffs wait for an operator after a start.

A machine that starts with a wrong clock, or from a backup, finds many users exhausted who are not. So cutoffs that were
overdue at the start are held back until `release` if there are more than `cutoff.hold_above`, or if the data directory
was restored from a backup (the file `restored`, the mark, is in it). Overdue is every cutoff that is owed already,
and every account whose exhaustion instant (plus the grace of its class) lies before the start: these become owed one by
one in the first moments of serving, and their instants distinguish them from accounts that run out later.

The number that counts is the sum over all shards. A worker whose own number is not above `cutoff.hold_above` holds its
cutoffs back all the same, and asks all shards, for some ten seconds at most, until each has answered how many were
overdue when it came up; if the sum is not too high, the worker releases its cutoffs.

A bucket that moves takes its hold along. When a bucket with owed cutoffs arrives, those that are due wait until all
shards have answered up to which instant they hold cutoffs back (`held_until_ns`), which takes a moment. Then those up
to the latest of these instants wait for the release, and the others are sent. An operator's order to try a held cutoff
(`let_go`) frees that user's cutoffs until the process ends, also where the configuration changes.

After a restore, every start holds the calls that were overdue when the restored daemon first came up, until the release
removes the mark. The mark keeps that instant, and each host that shares the log has it: `shards.restored`. Everything
that happened since then is in the journal, so the calls for accounts that ran out later are made.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shards.restored import FIRST_SERVED, RESTORED
from shards.system.disk import Disk, read_file, write_file

if TYPE_CHECKING:
    from billing.expirationd.delivery import Delivery
    from billing.worker.machine import BillingMachine, OwedRow
    from shards.machine import Command

    Operate = Callable[[Any, None, Command], None]

UNDECIDED: Final = -2  # the answer of a shard that does not know yet up to which instant it holds cutoffs back
_AGAIN_S: Final = 0.1
_TRIES_MAX: Final = 100  # a shard that does not come up must not hold up the cutoffs of the others for ever

log = logging.getLogger("billing.worker.startup_hold")

CUTOFF = "cutoff"  # the kind of call


class StartupHold:
    """The decision of one worker at its start; see the module's docstring."""

    def __init__(self, disk: Disk, data_dir: str, hold_above: int) -> None:
        """`hold_above`: -1 never holds back."""
        self._disk = disk
        self._mark = f"{data_dir}/{RESTORED}"
        self._hold_above = hold_above
        self.restored = disk.exists(self._mark)
        self._until_ns = -1  # exhaustions up to this instant wait; -1: none
        self.overdue = 0  # overdue cutoffs of this shard at the start; 0 after their release
        self._undecided = False  # the cutoffs wait until the other shards have answered
        self._until_of: dict[int, int] = {}  # the same as `_until_ns` for buckets that arrived
        self._arrived: dict[int, int] = {}  # bucket that arrived -> when; the other shards have not answered yet
        self._freed: set[tuple[int, bytes]] = set()  # accounts whose cutoffs an operator wants sent
        self._releases = 0

    def take_up(self, machine: BillingMachine, delivery: Delivery, now_ns: int) -> None:
        """At the start: hands the calls that are owed from before over to the delivery, to be sent or held."""
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

    def ask(self, operate: Operate, shards: int, release: Callable[[], object]) -> None:
        """Right after `take_up`: if the decision depends on the other shards, begins to ask them. `operate`: as of a
        worker.
        """

        def on_reply(reply: Any, last: bool) -> bool:
            overdue = reply if isinstance(reply, list) else [self.overdue]
            return self.on_overdue(overdue, shards, last, release)

        if self._undecided:
            question = _Question(operate, ("overdue",), on_reply)
            asyncio.get_running_loop().call_later(_AGAIN_S, question.ask)

    def arrive(self, bucket_id: int, now_ns: int, operate: Operate, hand_over: Callable[[int], None]) -> None:
        """A bucket with owed calls has arrived, which the caller hands over next: begins to ask the other shards.
        `hand_over(bucket_id)` hands over the owed calls of the bucket, if it is still here.
        """
        if self._hold_above < 0:
            return
        self._arrived[bucket_id] = now_ns
        releases = self._releases

        def on_reply(reply: Any, last: bool) -> bool:
            until_ns = reply if isinstance(reply, list) else [UNDECIDED]
            if UNDECIDED in until_ns and not last:
                return False
            self._arrived.pop(bucket_id, None)
            if self._releases == releases and max(until_ns) >= 0:
                self._until_of[bucket_id] = max(until_ns)
            hand_over(bucket_id)
            return True

        _Question(operate, ("held_until",), on_reply).ask()

    def held_until_ns(self) -> int:
        """The instant up to which this shard holds cutoffs back; -1 if it holds none, UNDECIDED if that depends on the
        other shards. (A bucket that has just arrived is for its former shard to answer for.)
        """
        return UNDECIDED if self._undecided else max(self._until_ns, *self._until_of.values(), -1)

    def on_overdue(self, overdue: list[int], shards: int, last: bool, release: Callable[[], object]) -> bool:
        """Takes the numbers of overdue cutoffs of the shards that answered; True once the decision is made. `last`:
        decides now, even if a shard has not answered.
        """
        if not self._undecided:
            return True  # an operator has released the cutoffs before
        if sum(overdue) > self._hold_above:
            self._undecided = False
            self._warn()
        elif last or len(overdue) >= shards:
            release()
        return not self._undecided

    def let_go(self, bucket_id: int, user_id: bytes) -> None:
        """An operator wants the cutoffs of this user sent."""
        if self._until_ns >= 0 or self._until_of or self._arrived:
            self._freed.add((bucket_id, user_id))

    def _holds(self, bucket_id: int, user_id: bytes, since_ns: int) -> bool:
        """Whether a cutoff that is owed since this instant waits for the release."""
        until_ns = max(self._until_ns, self._until_of.get(bucket_id, -1), self._arrived.get(bucket_id, -1))
        return since_ns <= until_ns and (bucket_id, user_id) not in self._freed

    def hand_over(self, owed: list[OwedRow], delivery: Delivery) -> None:
        """Hands owed calls, as `BillingMachine.owed` gives them, over to a delivery; their causes are durable."""
        for bucket_id, user_id, kind, since_ns, seq, class_name in owed:
            if kind == CUTOFF and self._holds(bucket_id, user_id, since_ns):
                delivery.hold(bucket_id, user_id, since_ns, kind, seq, class_name)
            else:
                delivery.notify(bucket_id, user_id, kind, since_ns, seq=seq, class_name=class_name)

    @property
    def may_hold(self) -> bool:
        """Whether any cutoff may have to wait."""
        return self._until_ns >= 0 or bool(self._until_of or self._arrived)

    def holds_back(self, machine: BillingMachine, delivery: Delivery, bucket_id: int, user_id: bytes, seq: int) -> bool:
        """Holds the cutoff `seq`, which has just become owed, if it was overdue at the start; returns whether so."""
        if not self.may_hold:
            return False
        call = machine.ledger.owed(bucket_id, user_id)
        if call is None or call.kind != CUTOFF or not self._holds(bucket_id, user_id, call.due_ns):
            return False
        delivery.hold(bucket_id, user_id, call.due_ns, CUTOFF, seq, call.class_name.decode())
        return True

    def release(self, machine: BillingMachine, delivery: Delivery) -> int:
        """Releases the held cutoffs and removes the mark of a restore; returns how many accounts waited."""
        waited = sum(
            kind == CUTOFF and self._holds(bucket_id, user_id, since_ns)
            for bucket_id, user_id, kind, since_ns, *_ in machine.owed()
        )
        self._until_ns = -1
        self._undecided = False
        self._until_of.clear()
        self._arrived.clear()
        self._freed.clear()
        self._releases += 1
        self.overdue = 0
        if self.restored:
            self.restored = False
            self._remove_mark()
        delivery.release()
        return waited

    def _first_served_ns(self, now_ns: int) -> int:
        """The instant at which the restored daemon first came up, from the mark. The first worker that comes up writes
        it into the mark, and keeps what else the mark holds.
        """
        try:
            mark = json.loads(read_file(self._disk, self._mark) or b"{}")
            if FIRST_SERVED in mark:
                return int(mark[FIRST_SERVED])
            write_file(self._disk, self._mark, json.dumps(mark | {FIRST_SERVED: now_ns}).encode())
        except OSError:
            pass  # another worker of this daemon is writing the mark at this moment, or the disk is full
        except (ValueError, TypeError):
            pass  # the mark cannot be read: all overdue cutoffs wait
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
            return  # another worker of this daemon has removed it
        self._disk.fsync_dir(self._mark.rpartition("/")[0])


class _Question:
    """Asks all shards until the answer is taken. It is a caller of `operate` and gets the replies."""

    mode = 0

    def __init__(self, operate: Operate, operation: Command, on_reply: Callable[[Any, bool], bool]) -> None:
        """`on_reply(reply, last)` returns whether it takes the reply, and must take the last one. A reply that is no
        list means that a shard cannot be asked yet.
        """
        self._operate, self._operation, self._on_reply = operate, operation, on_reply
        self._tries = 0

    def ask(self) -> None:
        self._tries += 1
        self._operate(self, None, self._operation)

    def answer(self, token: None, reply: Any) -> None:
        if not self._on_reply(reply, self._tries >= _TRIES_MAX):
            asyncio.get_running_loop().call_later(_AGAIN_S, self.ask)

    def flush(self) -> None:
        """Does nothing: no answer is kept here."""

    def refuse(self, token: None, reply: Any) -> None:
        """This shard may tell nothing at this moment: its disk takes no writes, its grant has run out, or the process
        is ending.
        """
        self.answer(token, reply)
