"""The main process's end of the replica: starts its process, and tells it which shards to follow.

A process that ends is started again, each time after a longer delay, until one has lived for a while. After one that
ended on a disk error or on damage, the next is told to distrust its files (`billing.follower.store`). Interrupted work
is done again from where the files end.

The replica asks other hosts for the batches that its files lack, and they ask it. Questions and answers pass through
here, and between the main processes over a link of one of their workers.
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

BATCHES: Final = "history_batches"  # an operation with the fields of `Read.question`; answered with {"given": …}
READ_S: Final = 10.0  # how long a question of another host waits for this host's process

SILENT_NS: Final = 30_000_000_000  # it reports each second, and waits for the log's servers for at most 10 s

log = logging.getLogger("billing.history.replica")


class Follow(messages.Message, frozen=True, tag=32):
    """The order to the process from now on; all fields but `suspect`, `shards` and `hosts` are the same each
    time.
    """

    directory: str  # holds the history files
    log: dict[str, Any]  # settings for `shards.journal.backends`
    keep_days: int  # `history.keep_days`
    suspect: bool  # the process before ended on a disk error or on damage
    shards: list[int]  # shards that other hosts serve
    hosts: list[str]  # names of the hosts that can be asked for missing batches


class Read(messages.Message, frozen=True, tag=33):
    """Another host asks for batches; answered with `Answer` (the result of `gaps.given_of`) or `Refused`."""

    number: int
    question: tuple[int, int, int, int, int]  # shard, after, rows, last, bytes_max: see `gaps.given_of`


class Got(messages.Message, frozen=True, tag=34):
    """The answer to `Wanted`."""

    number: int
    given: Any  # the answer of the other host; None where it has none of them, or has not answered
    has_answered: bool


class Wanted(messages.Message, frozen=True, tag=35):
    """The process asks another host for batches; answered with `Got`."""

    number: int
    host: str
    question: tuple[int, int, int, int, int]  # as in `Read`


to_replica: Final = msgspec.msgpack.Decoder(Follow | Read | Got | messages.LogLevel).decode
from_replica: Final = msgspec.msgpack.Decoder(messages.ToWorker | Wanted).decode


class ReplicaLink:
    """The link of one daemon to its replica."""

    def __init__(
        self, directory: str, log: dict[str, Any], keep_days: int, spawn: Spawn, boot_ns: Callable[[], int]
    ) -> None:
        """`directory`: of the history files; its parent exists. `log` and `keep_days`: see `Follow`."""
        self._order = Follow(directory, log, keep_days, False, [], [])
        self.ask: Callable[[str, tuple[Any, ...]], Awaitable[dict[str, Any]]] = _nobody  # sends an operation to a host
        self._reading: dict[int, asyncio.Future[Any]] = {}  # questions of other hosts, by number
        self._number = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._lacks: dict[int, str] = {}
        self._spawn = spawn
        self._boot_ns = boot_ns
        self._wanted = asyncio.Event()  # set once there is a shard to follow, or another host asks
        self._task: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._lost = asyncio.Event()
        self._reason = ""  # why the process ended, as it reported
        self._followed: list[int] = []  # the shards in its last report
        self._heard_ns = 0  # boot instant of that report

    def followed(self) -> dict[int, bool]:
        """Returns, for each of the shards, whether it is followed, as far as its journal can be read. A process that
        has been silent for `SILENT_NS` counts as hanging, and follows none.
        """
        followed = self._followed if self._boot_ns() - self._heard_ns < SILENT_NS else []
        return {shard: shard in followed for shard in self._order.shards}

    def lacks(self) -> dict[int, str]:
        """Returns, for operators, {shard: text}: which batches this host's history of the shard lacks, and whether they
        are coming.
        """
        return self._lacks

    def follow(self, shards: Collection[int], hosts: Collection[str] = ()) -> None:
        """Makes the process follow these shards and no others from now on, and fill the gaps of this host's files,
        whoever serves their shards, with the batches of these hosts. The process is started once there is a shard to
        follow.
        """
        shard_ids, host_names = sorted(shards), sorted(hosts)
        if (shard_ids, host_names) == (self._order.shards, self._order.hosts):
            return
        self._order = msgspec.structs.replace(self._order, shards=shard_ids, hosts=host_names)
        if self._wire is not None:
            self._wire.send(self._order)
        if shard_ids:
            self._start()

    def tell_log_level(self) -> None:
        """Tells the process the log level of this one, which has changed."""
        if self._wire is not None:
            self._wire.send(messages.log_level())

    def _start(self) -> None:
        self._wanted.set()
        self._task = self._task or asyncio.get_running_loop().create_task(self._keep())

    async def read(self, operation: tuple[Any, ...]) -> dict[str, Any]:
        """Returns what this host's files have for another host. `operation`: `(BATCHES, *Read.question)`; the reply is
        that of the operation.
        """
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
        """Ends the process once it has made its files durable."""
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
        """Runs one process from start to end. Returns its exit code, or `Exit.AGAIN` if it cannot be started."""
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
                self._wire.close()  # the process then ends in good order
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
        wire.send(messages.log_level())
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
