"""A worker's end of a follower: sends durable batches to the follower's process, and questions behind them.

**Batches and questions share one ordered connection.** The worker hands a batch over once it is durable, in the same
turn of the loop in which it answers the batch's commands. So the answer to a question covers every entry that was
answered before the question was asked.

**Behind the hot path.** Handing a batch over is one message of bytes that exist already: nothing is done per entry.
Small batches are gathered for at most `gather_s` or `gather_bytes`, or until somebody asks: one write and one wake-up
of the process per batch would cost more than the commands in it. The link sends at most `unreached_bytes_max` that the
process has not acknowledged, then stops sending; `feed` reads the missing batches from the journal later, as it does
after each start of the process. A reading ends at the head that the journal had when the reading began, and batches are
appended meanwhile. So the link keeps the newest batches, up to a quarter of `unreached_bytes_max`. As soon as the
reading reaches the first of them, the link sends them and reads no more. Without that, a follower under a steady load
would read for ever. A question asked while the follower catches up waits until the batch that was the head when it was
asked has been sent.

**Phases.** `DOWN`: there is no process, and questions are refused · `STARTING`: a process was started and is opening
its file · `BEHIND`: it is fed from the journal · `LIVE`: each batch is sent as it comes.

**No question waits for ever.** A question is answered, or refused with UNAVAILABLE: when the process ends, while a
restart is pending, after `answer_timeout_s`, and where `questions_max` wait already. A process that has its file open
and has sent nothing for `ping_s` gets a Ping. If it sends nothing for `silent_s` after that, it is *silent*: it counts
as down, the log and the figures report it, and questions are refused at once, until it sends something again. It is not
killed: it may be in the middle of a long operation, and only an operator can tell. A process that ends is started
again, each time after a longer delay, until one has been live for `STABLE_NS`: on a full disk every process becomes
live for a moment and fails with its next commit. A process that was live and was then killed from outside does not
count as a failure. After one that ended on a disk error or on damage, the next is told to distrust the file (see
`store`). None of this ever ends the worker: the journal holds all batches, and is not trimmed above `trim_floor`.
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

SLIM_ABOVE_BYTES: Final = 16 << 20  # only a moved bucket makes so large a batch; followers make no row of it
GATHER_S: Final = 0.005  # the default; for followers whose answers somebody waits for
GATHER_BYTES: Final = 64 << 10  # the default as well
RESTART_DELAYS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_NS: Final = 60_000_000_000
END_TIMEOUT_S: Final = 10.0
FROM_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM)
DOWN, STARTING, BEHIND, LIVE = range(4)


def command_of(module: str) -> list[str]:
    """The command line that starts a follower's process; the number of its descriptor is appended to it. `utf8=1` makes
    paths UTF-8 in the process as they are in the worker, whatever the locale.
    """
    return [sys.executable, *(["-I"] if sys.flags.isolated else []), "-X", "utf8=1", "-m", module]


def obstacle_of(noun: str, shard_id: int, is_live: bool, reason: str, durable: int, head: int, owes: int) -> str:
    """Why a shard cannot leave this worker yet because of one of its followers; empty where it can."""
    if not is_live:
        return f"the {noun} of shard {shard_id} is behind: {reason}"
    if durable < head:
        return f"the {noun} of shard {shard_id} is proved up to batch {durable} of {head}"
    if owes:
        return f"the {noun} of shard {shard_id} still have {owes} to hand over"
    return ""


def failures_after(failures: int, live_ns: int, from_outside: bool) -> int:
    """Returns the number of consecutive failed processes after one more has ended. `live_ns`: how long that one was
    live (0: it never was); `from_outside`: a signal from outside ended it.
    """
    if live_ns >= STABLE_NS or (live_ns and from_outside):
        return 0
    return failures + 1


def _silence(pid: int, seconds: float) -> str:
    return f"its process {pid} has said nothing for {seconds:.0f} s"


class Limits(NamedTuple):
    """The limits on what a link sends ahead, holds and waits for."""

    unreached_bytes_max: int = 32 << 20  # sent and not acknowledged; a quarter of it while catching up
    questions_max: int = 1024  # questions that are not answered yet
    answer_timeout_s: float = messages.ANSWER_TIMEOUT_S
    ping_s: float = 1.5
    silent_s: float = 4.0


DEFAULT_LIMITS: Final = Limits()


class FollowerKind(NamedTuple):
    """What the links of one kind of follower share."""

    noun: str  # the kind's name in log messages and figures
    command: Sequence[str]  # starts a process; the number of its descriptor is appended
    gather_s: float = GATHER_S  # small batches are gathered for at most this long
    gather_bytes: int = GATHER_BYTES  # or until they are so many bytes together
    limits: Limits = DEFAULT_LIMITS


class FollowedShard(NamedTuple):
    """A shard that is followed: its open journal, and the directory of its file."""

    directory: str  # holds all files of this kind; its parent exists
    shard_id: int
    journal: Journal


class _Question(NamedTuple):
    """A question that is not answered yet. `head`: the journal's head when it was asked; the question is sent once the
    batch at `head` has been sent.
    """

    head: int
    message: messages.Ask
    done: Callable[[Any], None]
    timeout: asyncio.TimerHandle


class FollowerLink:
    """One follower of one shard. All calls are made on the worker's loop; the journal stays open until `close` has
    returned.
    """

    def __init__(
        self, kind: FollowerKind, shard: FollowedShard, options: tuple[Any, ...] = (), host: Host = REAL
    ) -> None:
        """`options`: settings of the kind, passed to the process. `host` provides the clocks, starts the process, and
        provides the thread that reads the journal.
        """
        noun, command, self._gather_s, self._gather_bytes, self._limits = kind
        self._noun = noun
        self._directory, shard_id, journal = shard
        self._command = [*command, f"shard={shard_id}"]  # for people who read a list of processes
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
        self._head = journal.head  # the last durable batch that this link knows of
        self._reached = self._durable = 0
        self._owes = 0
        self._figures: dict[str, Any] = {}  # the newest figures that the process sent
        self._watched = self._watched_ns = 0  # the batch whose lag is measured, and when it was handed over; 0: none
        self._lag_ns = 0  # how long the last such batch took until it was committed
        self._starts = 0
        self._suspect = False  # the process before ended on a disk error or on damage
        # State of the present process:
        self._life = 0
        self._process: Child | None = None
        self._wire: Wire | None = None
        self._lost = asyncio.Event()
        self._live_since_ns = 0  # when it first became live; 0: it has not
        self._has_failed = False  # it sent Failed, or this link gave it up
        self._is_renewed = False  # it is ending so that another one starts with new options
        self._reading = False  # a slice is being read, perhaps for the process before
        self._sent = 0
        self._sent_bytes = self._reached_bytes = 0
        self._newest: deque[tuple[int, bytes]] = deque()  # the newest batches, contiguous; kept while BEHIND
        self._newest_bytes = 0
        self._gathered: list[messages.Batch] = []  # counted in `_sent`, but not written to the wire yet
        self._gathered_bytes = 0
        self._gathering: asyncio.TimerHandle | None = None
        self._heard_ns = self._looked_ns = 0  # when it last sent something; when `_watch` last ran
        self._pinged_ns = 0  # when the Ping was sent that is not answered yet; else 0
        self._is_silent = False
        self._questions: dict[int, _Question] = {}  # by number
        self._waiting: deque[int] = deque()  # numbers of the questions that are not sent yet
        self._number = 0

    # -- called by the worker ----------------------------------------------------------------------------------------

    def start(self, after_s: float = 0.0) -> None:
        """Starts the process after `after_s` seconds, and again whenever it ends, until `close`. Questions wait
        for it.
        """
        assert self._task is None
        self._phase = STARTING
        self._task = self._loop.create_task(self._keep(after_s))

    def hand(self, position: int, payload: bytes) -> None:
        """Takes the durable batch at `position`, in the turn of the loop in which its commands are answered. The worker
        hands over every batch appended since `start`, in order; a batch that was handed over before is ignored.
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
        """Sends a question that the follower's kind knows, and calls `done` with its answer, or with UNAVAILABLE. The
        answer covers every batch handed over before the question.
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
        """Sets the options that the process is given. If they differ from those before, a process that is running
        commits, ends and is started again at once.
        """
        if options == self._options:
            return
        self._options = options
        if self._wire is not None and not self._closing.is_set():
            self._is_renewed = True
            self._refuse_all("it begins anew with other settings")
            self._post(messages.Close())
            self._loop.call_later(END_TIMEOUT_S, self._kill, self._life)

    def tell_log_level(self) -> None:
        """Tells the process the log level of this one, which has changed."""
        if self._wire is not None:
            self._wire.send(messages.log_level())

    def trim_floor(self) -> int:
        """The journal may be trimmed up to this position: the follower's file holds it, proved."""
        return self._durable

    def obstacle(self) -> str:
        """Why the shard cannot leave this worker yet because of this follower; empty where it can: the file holds all
        of the journal, proved, and the follower owes nothing. The caller asks again later; a live process that has
        unproved batches is told to prove them now.
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
        """A sentence for operators if the process is silent; else empty."""
        return f"the {self._noun}: {self._trouble()}" if self._is_silent else ""

    def _since(self, boot_ns: int) -> int:
        """The nanoseconds since an instant of the boot clock; 0 where the instant is 0 (none)."""
        return self._boot_ns() - boot_ns if boot_ns else 0

    def _trouble(self) -> str:
        """Why the follower is not live; empty where it is."""
        if self._is_silent and self._process is not None:
            return _silence(self._process.pid, self._since(self._heard_ns) / 1e9)
        return "" if self._phase == LIVE else self._reason

    async def close(self) -> None:
        """Ends the process once it has made durable what was handed over. Questions are refused."""
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
        if self._gathered_bytes >= self._gather_bytes:
            self._send_gathered()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(self._gather_s, self._send_gathered)

    def _send_gathered(self) -> None:
        """Sends the gathered batches in one write."""
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
        """Sends the newest batches that were kept, or else reads the next slice. Does nothing while a slice is being
        read or too many bytes are not acknowledged.
        """
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
        """Sends the newest batches if the first of them follows the last batch that was sent."""
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
        """Sends the waiting questions whose head has been sent."""
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

    # -- messages from the process ----------------------------------------------------------------------------------

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
        """Checks every `ping_s` whether the process still sends anything, as long as it lives."""
        if life != self._life or self._wire is None:
            return
        now_ns, limits = self._boot_ns(), self._limits
        slept = now_ns - self._looked_ns > 2e9 * limits.ping_s  # this process was suspended: frames may be unread
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
        """Refuses all questions, and new ones until the next process is started."""
        self._reason = reason
        self._phase = DOWN
        self._waiting.clear()
        for number in list(self._questions):
            self._answer(number, self._unavailable(reason))

    def _unavailable(self, reason: str) -> Refused:
        return Refused("UNAVAILABLE", f"the {self._noun} cannot be read now: {reason}")

    # -- process life ------------------------------------------------------------------------------------------------

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
            what = f"the {self._noun} of shard {self._shard_id}"
            if code == -signal.SIGTERM:  # a process that is up ignores it, so it was for all processes of the daemon
                log.info("%s was ended by SIGTERM while it started; again in %g s", what, delay_s)
            else:
                log.error("%s: %s; again in %g s", f"{what} stopped", self._reason, delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay_s)

    async def _run_once(self) -> int:
        """Runs one process from start to end. Returns its exit code, or `Exit.AGAIN` if it cannot be started."""
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
        self._gathered, self._gathered_bytes = [], 0  # these were for the process before
        self._sent = self._sent_bytes = self._reached_bytes = 0
        self._heard_ns = self._looked_ns = self._boot_ns()
        self._pinged_ns, self._is_silent = 0, False
        self._loop.call_later(self._limits.ping_s, self._watch, self._life)
        journal, suspect = self._journal, self._suspect
        wire.send(messages.log_level())
        wire.send(messages.Open(self._directory, self._shard_id, journal.first, journal.head, suspect, self._options))
        if self._closing.is_set():
            wire.send(messages.Close())

    def _on_closed(self, wire: Wire) -> None:
        reason = self._reason if self._phase == DOWN else "its process ended"
        self._wire = None
        self._is_silent = False
        self._figures = {}  # without a process there are no figures
        self._refuse_all(reason)
        self._lost.set()

    def _give_up(self, reason: str) -> None:
        """Ends this process after a failure, by closing its connection; another one is started."""
        self._has_failed = True
        self._refuse_all(reason)
        if self._wire is not None:
            self._wire.close()
        self._loop.call_later(END_TIMEOUT_S, self._kill, self._life)

    def _kill(self, life: int) -> None:
        """Kills the process if it is still that of `life`: it did not end by itself."""
        if life == self._life and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
