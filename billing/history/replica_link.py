"""The main process's end of the replica: starts its process, and tells it which shards it is to follow.

A process that ends is started again, later each time, until one of them has lived for a while; one that ended on the
disk or on damage has a suspicious successor (`billing.follower.store`). What it was doing when it ended is done again
from where its files stand.

What a file lacks it asks other hosts for, and they ask it: questions and answers pass here, and between the main
processes over a link of one of their workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, assert_never

import msgspec

from billing.follower import messages
from billing.follower.link import END_TIMEOUT_S, FROM_OUTSIDE, RESTART_DELAYS_S, command_of, failures_after
from shards.exits import Exit
from shards.system.host import Spawn
from shards.system.links import Wire

COMMAND: Final = command_of("billing.history.replica")

BATCHES: Final = "history_batches"  # an operation: what is in `Read`; answered with {"given": …}
READ_S: Final = 10.0  # so long another host waits for this one's process

SILENT_NS: Final = 30_000_000_000  # it says something each second, and waits for the log's servers for 10 s at most

log = logging.getLogger("billing.history.replica")


class Follow(messages.Message, frozen=True, tag=32):
    """What the process is to do from now on; all but `shards` is the same each time."""

    directory: str  # of the history files
    log: dict[str, Any]  # as `shards.journal.backends` takes it
    keep_days: int  # see `history.keep_days`
    suspect: bool  # the process before ended on the disk or on damage
    shards: list[int]  # those of other hosts
    hosts: list[str]  # that can be asked for what a file lacks, by name


class Read(messages.Message, frozen=True, tag=33):
    """Another host asks for batches; answered with `Answer` (what `gaps.given_of` gives) or `Refused`."""

    number: int
    question: tuple[int, int, int, int, int]  # shard, after, rows, last, bytes_max, as of `gaps.given_of`


class Got(messages.Message, frozen=True, tag=34):
    """To `Wanted`."""

    number: int
    given: Any  # as the other host gave it; None where it has nothing, or has not answered
    has_answered: bool


class Wanted(messages.Message, frozen=True, tag=35):
    """The process asks another host for batches; answered with `Got`."""

    number: int
    host: str
    question: tuple[int, int, int, int, int]  # as of `Read`


to_replica: Final = msgspec.msgpack.Decoder(Follow | Read | Got).decode
from_replica: Final = msgspec.msgpack.Decoder(messages.ToWorker | Wanted).decode


class ReplicaLink:
    """Of one daemon."""

    def __init__(
        self, directory: str, log: dict[str, Any], keep_days: int, spawn: Spawn, boot_ns: Callable[[], int]
    ) -> None:
        """`directory`: of the history files; its parent exists. The rest as `Follow` has it."""
        self._order = Follow(directory, log, keep_days, False, [], [])
        self.ask: Callable[[str, tuple[Any, ...]], Awaitable[dict[str, Any]]] = _nobody  # an operation, of a host
        self._reading: dict[int, asyncio.Future[Any]] = {}  # questions of other hosts, by number
        self._number = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._lacks: dict[int, str] = {}
        self._spawn = spawn
        self._boot_ns = boot_ns
        self._wanted = asyncio.Event()  # there is a shard to follow
        self._task: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._lost = asyncio.Event()
        self._reason = ""  # why the process ended, in its own words
        self._followed: list[int] = []  # as it said last
        self._heard_ns = 0  # boot instant, when it said so

    def followed(self) -> dict[int, bool]:
        """Whether each of the shards is followed, as far as its journal can be read. A process that has said nothing
        for `SILENT_NS` hangs, and follows none.
        """
        followed = self._followed if self._boot_ns() - self._heard_ns < SILENT_NS else []
        return {shard: shard in followed for shard in self._order.shards}

    def lacks(self) -> dict[int, str]:
        """For people: by shard with a gap, what this host's history of it lacks, and whether that is coming."""
        return self._lacks

    def follow(self, shards: Collection[int], hosts: Collection[str] = ()) -> None:
        """Lets it follow these shards and no others from now on, and fill gaps of this host's files, whoever serves
        their shards, with what these hosts have. It is started once there is a shard to follow.
        """
        shard_ids, host_names = sorted(shards), sorted(hosts)
        if (shard_ids, host_names) == (self._order.shards, self._order.hosts):
            return
        self._order = msgspec.structs.replace(self._order, shards=shard_ids, hosts=host_names)
        if self._wire is not None:
            self._wire.send(self._order)
        if shard_ids:
            self._start()

    def _start(self) -> None:
        self._wanted.set()
        self._task = self._task or asyncio.get_running_loop().create_task(self._keep())

    async def read(self, operation: tuple[Any, ...]) -> dict[str, Any]:
        """What this host's files have for another host: `(BATCHES, *Read.question)`, answered as there."""
        self._start()
        if self._wire is None:
            return _refusal("the process that reads the histories is starting")
        self._number = number = self._number + 1
        self._reading[number] = future = asyncio.get_running_loop().create_future()
        self._wire.send(Read(number, operation[1:]))
        try:
            return {"given": await asyncio.wait_for(future, READ_S)}
        except (TimeoutError, ConnectionError) as error:
            return _refusal(str(error) or f"the process that reads the histories says nothing for {READ_S:g} s")
        finally:
            del self._reading[number]

    async def _get(self, wanted: Wanted) -> None:
        reply = await self.ask(wanted.host, (BATCHES, *wanted.question))
        if self._wire is not None:
            self._wire.send(Got(wanted.number, reply.get("given"), "given" in reply))

    async def close(self) -> None:
        """Lets it write what it has durably, and ends it."""
        for task in self._asking:
            task.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self) -> None:
        failures = 0
        while True:
            await self._wanted.wait()
            began_ns = self._boot_ns()
            code = await self._run_once()
            failures = failures_after(failures, self._boot_ns() - began_ns, code in FROM_OUTSIDE)
            delay_s = RESTART_DELAYS_S[min(failures, len(RESTART_DELAYS_S) - 1)]
            what = "the history of shards that other hosts serve is not followed"
            log.error("%s: %s; again in %g s", what, self._reason or "its process ended", delay_s)
            await asyncio.sleep(delay_s)

    async def _run_once(self) -> int:
        """One process from start to end; its exit code, or that it cannot be started."""
        self._lost.clear()
        self._reason = ""
        try:
            process, parent_end = await self._spawn(COMMAND, [])
        except OSError as error:
            self._reason = f"it cannot be started: {error}"
            return Exit.AGAIN
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Wire(self._on_frame, self._on_closed, self._on_open, from_replica), sock=parent_end
            )
            await self._lost.wait()
        finally:
            if self._wire is not None:
                self._wire.close()  # which ends it in good order
            else:
                parent_end.close()
            try:
                code = await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                code = await process.wait()
        return code

    def _on_open(self, wire: Wire) -> None:
        self._wire = wire
        wire.send(self._order)
        self._order = msgspec.structs.replace(self._order, suspect=False)

    def _on_closed(self, wire: Wire) -> None:
        self._wire = None
        self._followed = []
        for future in self._reading.values():
            if not future.done():
                future.set_exception(ConnectionError("the process that reads the histories has ended"))
        self._lost.set()

    def _on_frame(self, wire: Wire, message: messages.ToWorker | Wanted) -> None:
        match message:
            case messages.Told():
                self._followed, self._heard_ns = message.figures["followed"], self._boot_ns()
                self._lacks = dict(message.figures["lacks"])
            case Wanted():
                task = asyncio.get_running_loop().create_task(self._get(message))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            case messages.Answer() | messages.Refused():
                future = self._reading.get(message.number)
                if future is None or future.done():
                    return
                if isinstance(message, messages.Answer):
                    future.set_result(message.answer)
                else:
                    future.set_exception(ConnectionError(message.reason))
            case messages.Logged():
                messages.hand_on(message)
            case messages.Failed():
                self._reason = message.reason
                suspect = message.code in (Exit.DAMAGED, Exit.DISK)
                self._order = msgspec.structs.replace(self._order, suspect=suspect)
                wire.close()
            case messages.Opened() | messages.Reached() | messages.Remark():
                raise AssertionError(f"a replica says no {type(message).__name__}")
            case _:
                assert_never(message)


async def _nobody(host: str, operation: tuple[Any, ...]) -> dict[str, Any]:
    return _refusal(f"{host} is not reached from here")


def _refusal(why: str) -> dict[str, Any]:
    return {"refused": "UNAVAILABLE", "message": why}
