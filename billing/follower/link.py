"""A worker's end of a follower: hands durable batches to its process, and questions behind them.

**Order is the whole trick.** Batches and questions travel one wire, in order; a batch is handed over when it is
durable, in the turn of the loop in which what it holds is answered. So an answer holds every entry answered before its
question.

**Behind the hot path.** Handing a batch over is one message of bytes that exist already: nothing is done per entry.
Small batches are gathered for `gather_s` at most, or until somebody asks: a write and a process woken for each would
cost more than the commands in it.
What the process has not committed is held up to `unreached_bytes_max`; above that the link stops sending. What is
missing is then read again from the journal by `feed`; so it is after each start, too. A reading ends at the head of the
moment when it began, and while it lasts more is appended: so the newest batches are kept meanwhile, a quarter of that
many bytes, and as soon as what was read reaches the first of them, they are sent and no more is read. Without that, a
steady load keeps a follower reading for ever. Meanwhile questions wait for the head of the moment they were asked at.

**Phases.** `DOWN` no process, questions are refused · `STARTING` a process was started and opens its file · `BEHIND` it
is fed from the journal · `LIVE` each batch is sent as it comes.

**Nobody hangs.** A question is answered, or refused with UNAVAILABLE: when the process ends, while it waits for its
restart, after `answer_timeout_s`, and where `questions_max` wait already. A process that has its file open and says
nothing for `ping_s` is asked whether it is there; from `silent_s` after that on it is *silent*: it counts as down, the
log and the figures say so, and questions are refused at once, until it says something. It is not ended: it may be in
the middle of something long, and only somebody who looks at it can tell. A process that ends is started again, later
each time, until one of them has been live for `STABLE_NS`: on a full disk each is live for a moment, and fails with its
next commit. One that was killed from outside once it was live has not failed. One that ended on the disk or on damage
has a suspicious successor (see `store`). Trouble here never ends the worker: the journal has everything, and is not
trimmed above `trim_floor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, assert_never

from billing.follower import messages
from billing.follower.feed import Feed, Slice
from billing.ledger.errors import Refused
from shards.batch import slim
from shards.exits import Exit
from shards.journal import Journal
from shards.system.host import REAL, Child, Host
from shards.system.links import Wire

log = logging.getLogger("billing.follower")

SLIM_ABOVE_BYTES: Final = 16 << 20  # only a bucket that moved makes a batch so large; it is no row, and stays here
GATHER_S: Final = 0.005  # by default: of a follower that others wait for
GATHER_BYTES: Final = 64 << 10
RESTART_DELAYS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_NS: Final = 60_000_000_000
END_TIMEOUT_S: Final = 10.0
FROM_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM)
DOWN, STARTING, BEHIND, LIVE = range(4)


def command_of(module: str) -> list[str]:
    """What starts a follower's process, to which the number of its descriptor is appended. In whatever locale, paths
    are UTF-8 there, as they are for the worker.
    """
    return [sys.executable, *(["-I"] if sys.flags.isolated else []), "-X", "utf8=1", "-m", module]


def obstacle_of(noun: str, shard_id: int, is_live: bool, reason: str, durable: int, head: int, owes: int) -> str:
    """Why a shard cannot go yet, for want of one of its followers; empty where it can."""
    if not is_live:
        return f"the {noun} of shard {shard_id} is behind: {reason}"
    if durable < head:
        return f"the {noun} of shard {shard_id} is proved up to batch {durable} of {head}"
    if owes:
        return f"the {noun} of shard {shard_id} still have {owes} to hand over"
    return ""


def failures_after(failures: int, live_ns: int, from_outside: bool) -> int:
    """How many processes in a row have failed, after one more has ended, which was live for so long (0: it never was).
    `from_outside`: somebody killed it.
    """
    if live_ns >= STABLE_NS or (live_ns and from_outside):
        return 0
    return failures + 1


def _silence(pid: int, seconds: float) -> str:
    return f"its process {pid} has said nothing for {seconds:.0f} s"


class Limits(NamedTuple):
    """What is waited for, at most."""

    unreached_bytes_max: int = 32 << 20  # handed over and not committed; a quarter of it while catching up
    questions_max: int = 1024  # asked and not answered
    answer_timeout_s: float = 7.0  # clients wait for 10 s, and are to hear the reason
    ping_s: float = 1.5
    silent_s: float = 4.0


DEFAULT_LIMITS: Final = Limits()


class FollowerKind(NamedTuple):
    """What tells the links of one kind of follower from those of another."""

    noun: str  # for log and figures
    command: Sequence[str]  # starts a process, to which the number of its descriptor is appended
    gather_s: float = GATHER_S  # so long small batches are gathered, at most
    limits: Limits = DEFAULT_LIMITS


class FollowedShard(NamedTuple):
    """A shard that is followed: its journal, which is open, and where its file stands."""

    directory: str  # of all files of this kind; its parent exists
    shard_id: int
    journal: Journal


class _Question(NamedTuple):
    """Asked and not answered. `head`: of the moment; it is sent once the process was given this batch."""

    head: int
    message: messages.Ask
    done: Callable[[Any], None]
    timeout: asyncio.TimerHandle


class FollowerLink:
    """One follower of one shard. All calls on the loop of its worker; the journal is closed after `close`."""

    def __init__(
        self, kind: FollowerKind, shard: FollowedShard, options: tuple[Any, ...] = (), host: Host = REAL
    ) -> None:
        """`options`: what the process is told of its kind. `host` has the clocks, starts the process, and has the
        thread that reads the journal again.
        """
        noun, command, self._gather_s, self._limits = kind
        self._noun = noun
        self._directory, shard_id, journal = shard
        self._command = [*command, f"shard={shard_id}"]  # read by people, in a list of processes
        self._shard_id = shard_id
        self._journal = journal
        self._boot_ns = host.clocks.boot_ns
        self._options = options
        self._spawn = host.spawn
        self._loop = asyncio.get_running_loop()
        self._feed = Feed(journal, f"{noun}-{shard_id}", host.executor)
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._phase = DOWN
        self._reason = "it has not been started"  # why it is not live
        self._head = journal.head  # the last durable batch that is known here
        self._reached = self._durable = 0
        self._owes = 0
        self._figures: dict[str, Any] = {}  # what the process said of itself
        self._watched = self._watched_ns = 0  # a batch, and when it was handed over; 0: none is watched
        self._lag_ns = 0  # what it took the last batch that was watched
        self._starts = 0
        self._suspect = False  # the process before ended on the disk, or on damage
        # of the present process:
        self._life = 0
        self._process: Child | None = None
        self._wire: Wire | None = None
        self._lost = asyncio.Event()
        self._live_since_ns = 0  # when it was live first; 0: it never was
        self._has_failed = False  # it said so, or was given up
        self._is_renewed = False  # it ends for another one, which is told other options
        self._reading = False  # a slice is being read, maybe still for the process before
        self._sent = 0
        self._sent_bytes = self._reached_bytes = 0
        self._newest: deque[tuple[int, bytes]] = deque()  # the newest batches without a gap, while it is behind
        self._newest_bytes = 0
        self._gathered: list[messages.Batch] = []  # sent in the sense of `_sent`, but not on the wire yet
        self._gathered_bytes = 0
        self._gathering: asyncio.TimerHandle | None = None
        self._heard_ns = self._looked_ns = 0  # when it last said something; when that was last looked at
        self._pinged_ns = 0  # when it was asked whether it is there, and has not answered yet; else 0
        self._is_silent = False
        self._questions: dict[int, _Question] = {}  # by number
        self._waiting: deque[int] = deque()  # numbers of those not sent yet
        self._number = 0

    # -- what the worker calls ---------------------------------------------------------------------------------------

    def start(self, after_s: float = 0.0) -> None:
        """Starts the process, so much later, and again whenever it ends, until `close`. Questions wait for it."""
        assert self._task is None
        self._phase = STARTING
        self._task = self._loop.create_task(self._keep(after_s))

    def hand(self, position: int, payload: bytes) -> None:
        """Takes the batch at `position`, which is durable, in the turn of the loop in which it is answered. Every batch
        that is appended from `start` on, in order; an earlier one does no harm.
        """
        if position > self._head:
            self._head = position
            if not self._watched_ns:
                self._watched, self._watched_ns = position, self._boot_ns()
        if (
            self._phase == LIVE
            and position == self._sent + 1
            and self._unreached_bytes <= self._limits.unreached_bytes_max
        ):
            self._send(position, payload)
        elif position > self._sent:
            if self._phase == LIVE:
                self._phase = BEHIND
            self._keep_newest(position, payload)
            self._catch_up()

    def ask(self, question: tuple[Any, ...], done: Callable[[Any], None]) -> None:
        """Calls `done` with the answer to a question that the follower's kind knows, or with UNAVAILABLE. The answer
        holds every batch handed over before.
        """
        if self._phase == DOWN:
            done(self._unavailable(self._reason))
            return
        if self._is_silent:
            done(self._unavailable(self._trouble()))
            return
        if len(self._questions) >= self._limits.questions_max:
            done(self._unavailable(f"{self._limits.questions_max} questions are waiting"))
            return
        self._number = number = self._number + 1
        message = messages.Ask(number, question)
        timeout = self._loop.call_later(self._limits.answer_timeout_s, self._answer_late, number)
        self._questions[number] = _Question(self._head, message, done, timeout)
        if self._phase == LIVE and self._wire is not None:
            self._post(message)
        else:
            self._waiting.append(number)

    def take_options(self, options: tuple[Any, ...]) -> None:
        """What the process is told of its kind from now on. Where that differs from what it was told before, it ends in
        order, and the next one begins at once.
        """
        if options == self._options:
            return
        self._options = options
        if self._wire is not None and not self._closing.is_set():
            self._is_renewed = True
            self._refuse_all("it begins anew with other settings")
            self._post(messages.Close())
            self._loop.call_later(END_TIMEOUT_S, self._kill, self._life)

    def trim_floor(self) -> int:
        """The journal may be trimmed up to this position: the follower's file holds it, proved."""
        return self._durable

    def obstacle(self) -> str:
        """Why the shard cannot go yet, for want of this follower; empty where it can: all of the journal is in the
        file, proved, and nothing is left to do with it. To be asked again; what can be hastened is.
        """
        is_live = self._phase == LIVE
        if is_live and self._durable < self._head and self._wire is not None:
            self._post(messages.Settle())
        return obstacle_of(
            self._noun, self._shard_id, is_live, self._reason, self._durable, self._head, self._owes
        )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Counters for the operator."""
        noun, silent_ns = self._noun, self._since(self._heard_ns) if self._is_silent else 0
        return {
            f"{noun}_up": int(self._phase in (BEHIND, LIVE) and not self._is_silent),
            f"{noun}_position": self._reached,
            f"{noun}_proved_position": self._durable,
            f"{noun}_behind_batches": max(0, self._head - self._reached),
            f"{noun}_lag_ns": max(self._lag_ns, self._since(self._watched_ns), silent_ns),
            f"{noun}_silent_ns": silent_ns,
            f"{noun}_unreached_bytes": self._unreached_bytes,
            f"{noun}_starts": self._starts,
            f"{noun}_pid": 0 if self._wire is None or self._process is None else self._process.pid,
            f"{noun}_trouble": self._trouble(),
            **self._figures,
        }

    def silence(self) -> str:
        """That its process hangs, for people; empty where it does not."""
        return f"the {self._noun}: {self._trouble()}" if self._is_silent else ""

    def _since(self, boot_ns: int) -> int:
        """For how long, from an instant; 0 where there is none."""
        return self._boot_ns() - boot_ns if boot_ns else 0

    def _trouble(self) -> str:
        """Why it is not live; empty where it is."""
        if self._is_silent and self._process is not None:
            return _silence(self._process.pid, self._since(self._heard_ns) / 1e9)
        return "" if self._phase == LIVE else self._reason

    async def close(self) -> None:
        """Lets what was handed over be written durably, and ends the process. Questions are refused."""
        self._closing.set()
        self._refuse_all("the daemon is stopping")
        if self._wire is not None:
            self._post(messages.Close())
            self._loop.call_later(END_TIMEOUT_S, self._kill, self._life)
        if self._task is not None:
            await self._task
        self._feed.close()

    # -- batches -----------------------------------------------------------------------------------------------------

    @property
    def _unreached_bytes(self) -> int:
        return self._sent_bytes - self._reached_bytes

    def _send(self, position: int, payload: bytes) -> None:
        if len(payload) > SLIM_ABOVE_BYTES:
            payload = slim(payload)
        self._gathered.append(messages.Batch(position, payload))
        self._gathered_bytes += len(payload)
        self._sent = position
        self._sent_bytes += len(payload)
        if self._gathered_bytes >= GATHER_BYTES:
            self._send_gathered()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(self._gather_s, self._send_gathered)

    def _send_gathered(self) -> None:
        """Puts what was gathered on the wire, as one write."""
        gathered, self._gathered = self._gathered, []
        self._gathered_bytes = 0
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if gathered and self._wire is not None:
            self._wire.send_all(gathered)

    def _post(self, message: messages.ToFollower) -> None:
        """Sends a message behind all batches handed over before."""
        assert self._wire is not None
        self._send_gathered()
        self._wire.send(message)

    def _keep_newest(self, position: int, payload: bytes) -> None:
        newest = self._newest
        if newest and newest[-1][0] != position - 1:
            self._forget_newest()
        newest.append((position, payload))
        self._newest_bytes += len(payload)
        while self._newest_bytes > self._limits.unreached_bytes_max // 4:
            self._newest_bytes -= len(newest.popleft()[1])

    def _forget_newest(self) -> None:
        self._newest.clear()
        self._newest_bytes = 0

    def _catch_up(self) -> None:
        """Sends what was kept, or reads the next slice, unless one is under way, or too much is not committed yet."""
        if self._phase != BEHIND or self._reading or self._closing.is_set():
            return
        if self._unreached_bytes <= self._limits.unreached_bytes_max // 4:
            self._send_newest()
            if self._sent >= self._head:
                self._go_live()
            else:
                self._reading = True
                self._feed.read(self._sent, partial(self._on_slice, self._life))

    def _send_newest(self) -> None:
        """Sends the newest batches, where the first of them follows what was sent."""
        newest = self._newest
        while newest and newest[0][0] <= self._sent:
            self._newest_bytes -= len(newest.popleft()[1])
        if newest and newest[0][0] == self._sent + 1:
            for position, payload in newest:
                self._send(position, payload)
            self._forget_newest()

    def _go_live(self) -> None:
        self._phase = LIVE
        self._live_since_ns = self._live_since_ns or self._boot_ns()
        self._feed.forget()
        self._forget_newest()
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Sends the questions that waited for what was sent by now."""
        while self._waiting:
            question = self._questions.get(self._waiting[0])
            if question is not None:
                if question.head > self._sent:
                    break
                self._post(question.message)
            self._waiting.popleft()

    def _on_slice(self, life: int, journal_slice: Slice | None, error: BaseException | None) -> None:
        self._reading = False
        if life != self._life or self._phase != BEHIND or self._closing.is_set():
            self._catch_up()
            return
        if journal_slice is None:
            self._give_up(f"the journal cannot be read again: {error}")
            return
        for position, payload in journal_slice.batches:
            self._send(position, payload)
        self._send_waiting()
        self._catch_up()

    # -- what the process says ---------------------------------------------------------------------------------------

    def _on_frame(self, wire: Wire, message: messages.ToWorker) -> None:
        self._heard_ns, self._pinged_ns = self._boot_ns(), 0
        if self._is_silent:
            self._is_silent = False
            log.info("the %s of shard %d answers again", self._noun, self._shard_id)
        match message:
            case messages.Reached():
                self._reached, self._reached_bytes = message.position, message.payload_bytes
                self._durable, self._owes = message.durable, message.owes
                if self._watched_ns and self._reached >= self._watched:
                    self._lag_ns = self._boot_ns() - self._watched_ns
                    self._watched_ns = 0
                self._catch_up()
            case messages.Answer():
                self._answer(message.number, message.answer)
            case messages.Refused():
                self._answer(message.number, self._unavailable(message.reason))
            case messages.Opened():
                self._sent = message.position
                self._phase = BEHIND
                for remark in message.remarks:
                    self._remark(remark)
                self._reason = "it is catching up with the journal"
                self._suspect = False
                self._catch_up()
            case messages.Told():
                self._figures = message.figures
            case messages.Remark():
                self._remark(message.text)
            case messages.Logged():
                messages.hand_on(message)
            case messages.Failed():
                self._suspect = self._suspect or message.code in (Exit.DAMAGED, Exit.DISK)
                self._give_up(message.reason)
            case _:
                assert_never(message)

    def _watch(self, life: int) -> None:
        """Looks whether the process is there, again and again as long as it lives."""
        if life != self._life or self._wire is None:
            return
        now_ns, limits = self._boot_ns(), self._limits
        slept = now_ns - self._looked_ns > 2e9 * limits.ping_s  # this process did: what it was told is not read yet
        self._looked_ns = now_ns
        if self._phase in (BEHIND, LIVE) and not self._is_silent:
            if self._pinged_ns and slept:
                self._pinged_ns = now_ns
            elif self._pinged_ns and now_ns - self._pinged_ns >= limits.silent_s * 1e9:
                self._fall_silent()
            elif not self._pinged_ns and now_ns - self._heard_ns >= limits.ping_s * 1e9:
                self._post(messages.Ping())
                self._pinged_ns = now_ns
        self._loop.call_later(limits.ping_s, self._watch, life)

    def _fall_silent(self) -> None:
        assert self._process is not None
        self._is_silent = True
        silent_s = self._since(self._heard_ns) // 10**9
        what = self._noun, self._shard_id, silent_s, self._process.pid
        log.error("the %s of shard %d is silent: it has said nothing for %d s; its process is %d", *what)
        self._waiting.clear()
        for number in list(self._questions):
            self._answer(number, self._unavailable(self._trouble()))

    def _remark(self, text: str) -> None:
        log.warning("the %s of shard %d: %s", self._noun, self._shard_id, text)

    def _answer(self, number: int, answer: Any) -> None:
        question = self._questions.pop(number, None)
        if question is not None:
            question.timeout.cancel()
            question.done(answer)

    def _answer_late(self, number: int) -> None:
        silent_s, process = self._since(self._heard_ns) / 1e9, self._process
        reason = "it does not answer in time"
        if process is not None and silent_s >= self._limits.silent_s:
            reason = _silence(process.pid, silent_s)
        self._answer(number, self._unavailable(reason))

    def _refuse_all(self, reason: str) -> None:
        """No question waits any more, and none is taken before the next process."""
        self._reason = reason
        self._phase = DOWN
        self._waiting.clear()
        for number in list(self._questions):
            self._answer(number, self._unavailable(reason))

    def _unavailable(self, reason: str) -> Refused:
        return Refused("UNAVAILABLE", f"the {self._noun} cannot be read now: {reason}")

    # -- its life ----------------------------------------------------------------------------------------------------

    async def _keep(self, after_s: float) -> None:
        failures = 0
        if after_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), after_s)
        while not self._closing.is_set():
            self._phase, self._reason = STARTING, "it is starting"
            code = await self._run_once()
            if self._closing.is_set():
                return
            if self._is_renewed:
                continue
            live_ns = self._boot_ns() - self._live_since_ns if self._live_since_ns else 0
            failures = failures_after(failures, live_ns, code in FROM_OUTSIDE and not self._has_failed)
            delay_s = RESTART_DELAYS_S[min(failures, len(RESTART_DELAYS_S) - 1)]
            what = f"the {self._noun} of shard {self._shard_id} stopped"
            log.error("%s: %s; again in %g s", what, self._reason, delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay_s)

    async def _run_once(self) -> int:
        """One process from start to end; its exit code, or that it cannot be started."""
        self._lost.clear()
        self._live_since_ns, self._has_failed, self._is_renewed = 0, False, False
        self._life += 1
        try:
            self._process, parent_end = await self._spawn(self._command, [])
        except OSError as error:
            self._refuse_all(f"it cannot be started: {error}")
            return Exit.AGAIN
        self._starts += 1
        process = self._process
        await self._loop.create_connection(
            lambda: Wire(self._on_frame, self._on_closed, self._on_connected, messages.to_worker), sock=parent_end
        )
        await self._lost.wait()
        try:
            code = await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            self._has_failed = True
            self._kill(self._life)
            code = await process.wait()
        self._process = None
        return code

    def _on_connected(self, wire: Wire) -> None:
        self._wire = wire
        self._gathered, self._gathered_bytes = [], 0  # was meant for a process before
        self._sent = self._sent_bytes = self._reached_bytes = 0
        self._heard_ns = self._looked_ns = self._boot_ns()
        self._pinged_ns, self._is_silent = 0, False
        self._loop.call_later(self._limits.ping_s, self._watch, self._life)
        journal, suspect = self._journal, self._suspect
        wire.send(messages.Open(self._directory, self._shard_id, journal.first, journal.head, suspect, self._options))
        if self._closing.is_set():
            wire.send(messages.Close())

    def _on_closed(self, wire: Wire) -> None:
        reason = self._reason if self._phase == DOWN else "its process ended"
        self._wire = None
        self._is_silent = False
        self._figures = {}  # nobody knows it any more
        self._refuse_all(reason)
        self._lost.set()

    def _give_up(self, reason: str) -> None:
        """Ends this process; the next one may fare better."""
        self._has_failed = True
        self._refuse_all(reason)
        if self._wire is not None:
            self._wire.close()
        self._loop.call_later(END_TIMEOUT_S, self._kill, self._life)

    def _kill(self, life: int) -> None:
        """Ends a process that does not end by itself."""
        if life == self._life and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
