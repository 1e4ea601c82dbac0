"""One move of one bucket, in a world where nothing else goes wrong, with one thing that does.

The bucket holds what must move: money, a rate that runs out, a hold, thresholds, request ids, and a cutoff that is owed
and was refused already. Clients go on calling all the time. In the end it must be at one place, whole, and served.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from shards import control
from shards.buckets import bucket_id_of
from shards.control import Known, MoveAbort, MoveIn, MoveOut, NewOwner, Payload, Served, Stored, Unmoved
from shards.moves.handoff import Handoff
from shards.system.links import frame_of
from tests.simulation.auditor import Violation
from tests.simulation.calls import COIN, Call, Programs
from tests.simulation.clients import Client
from tests.simulation.machine import SimProcess
from tests.simulation.wires import Stream
from tests.simulation.world import World

BUCKETS = 4
SOURCE, TARGET = 1, 2
BUCKET = 1
HUNG_S = 60.0

Message = control.ToWorker | control.ToSupervisor
Fate = Callable[[str, Message], list[int]]  # (direction, message) -> delays; see `tests.simulation.wires.Filter`


class MovingBucket:
    """The world, its bucket, and the wires between supervisor and workers."""

    def __init__(self, seed: int = 1) -> None:
        self._room = logging.getLogger("shards")
        self._level = self._room.level
        self._room.setLevel(logging.CRITICAL + 1)
        self.world = World(seed, workers=2, buckets=BUCKETS, leases=False)
        self.users = [b"%d" % n for n in range(1, 200) if bucket_id_of(b"%d" % n, BUCKETS) == BUCKET][:4]
        rng = random.Random(seed)
        self.programs = Programs(random.Random(seed), self.users)
        self.clients = [self._client(f"client-{n}", rng) for n in range(2)]
        self.operator = self._client("operator", rng)
        self.fate: Fate = lambda direction, message: [0]
        self.seen: list[tuple[str, type[Message]]] = []  # (direction, kind) of the messages about moves
        self.late: list[Callable[[], None]] = []  # what delivers a message that was held back
        self.wires: dict[str, Stream] = {}  # direction -> the wire of its last message
        self.world.machine.on_control = self._on_control
        self.stopped = False

    def _client(self, name: str, rng: random.Random) -> Client:
        world = self.world
        seed = random.Random(rng.getrandbits(64))
        return Client(name, world.outside, world.door, world.auditor, self.programs, seed, world.trace)

    # -- wires ------------------------------------------------------------------------------------------------------

    def _on_control(self, process: SimProcess, stream: Stream) -> None:
        for end in stream.ends:
            end.filter = self._filter(process, stream, end.side)

    def _filter(self, process: SimProcess, stream: Stream, side: int) -> Callable[[bytes], list[int]]:
        def decide(data: bytes) -> list[int]:
            message = control.to_supervisor(data[4:]) if side else control.to_worker(data[4:])
            if not isinstance(message, ABOUT_MOVES):
                return [0]
            direction = f"{process.name}>supervisor" if side else f"supervisor>{process.name}"
            self.seen.append((direction, type(message)))
            self.wires[direction] = stream
            return self.fate(direction, message)

        return decide

    def keep(self, direction: str, message: Message) -> None:
        """Holds a copy of a message back, which `late` then delivers."""
        stream, side = self.wires[direction], int(direction.endswith(">supervisor"))
        self.late.append(lambda: stream.carry(stream.ends[side], frame_of(message)))

    # -- the story --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A served bucket with everything in it."""
        world = self.world
        world.start()
        world.run(world.is_ready, 60, "a first start")
        self.run(self.clients[0].open_accounts(), "accounts are opened")
        first, second, third, fourth = self.users
        world.endpoint_faults.wrong["refused"] = 1.0

        async def fill() -> None:
            for call in (
                self._call("set_rate", first, 5000 * COIN, per="hour", message=b"burns", request_id=b"kept"),
                self._call("hold", second, COIN, request_id=b"held"),
                self._call("set_thresholds", second, [{"amount": 2 * COIN}], request_id=b"low"),
                self._call("set_rate", second, 1800 * COIN, per="hour", message=b"slow", request_id=b"slow"),
                self._call("debit", third, 3 * COIN, message=b"out", request_id=b"out"),
                self._call("top_up", fourth, 5, message=b"five", request_id=b"five"),
            ):
                await self.clients[0].until_known(call)
            await asyncio.sleep(0.4)

        self.run(fill(), "the bucket is filled")

    @staticmethod
    def _call(method: str, user: bytes, *params: Any, **options: Any) -> Call:
        call = Call(method, user, list(params), options)
        call.tag = options.get("message", b"")
        return call

    def run(self, coroutine: Any, description: str, seconds: float = 300) -> Any:
        """To the end of a coroutine of the outside world."""
        task = self.world.task(coroutine)
        self.world.run(task.done, seconds, description)
        return task.result()

    async def load(self) -> None:
        """Clients that call until it is enough."""
        await asyncio.gather(*(client.run(1, lambda: self.stopped) for client in self.clients))

    async def client_call(self, method: str, user: bytes, *params: Any, **options: Any) -> dict[str, Any]:
        """What a client is answered at last."""
        answer: dict[str, Any] = await self.clients[0].until_known(self._call(method, user, *params, **options))
        return answer

    async def move(self, shard: int) -> tuple[Any, Any]:
        """(error, result) of the operator's wish."""
        return await self.operator.ask("move_bucket", BUCKET, shard)

    def handoff(self) -> Handoff:
        """The source's part in moves."""
        worker = self.world.processes[SOURCE].worker
        assert worker is not None
        return worker.handoff

    def process(self, role: str) -> SimProcess:
        """The running process of "source", "target" or "supervisor"."""
        if role == "supervisor":
            assert self.world.supervising is not None
            return self.world.supervising
        process = self.world.process_of(SOURCE if role == "source" else TARGET)
        assert process is not None, role
        return process

    def end(self) -> tuple[int, int]:
        """Everything comes to rest and is looked at; (shard, generation) of the bucket."""
        world = self.world
        self.stopped = True
        self.fate = lambda direction, message: [0]
        world.heal()
        world.rest()
        owner, generation = world.auditor.owner[BUCKET]
        holding = {
            shard: generations[BUCKET] for shard, generations in world.auditor.held.items() if BUCKET in generations
        }
        if holding != {owner: generation}:
            raise Violation(f"bucket {BUCKET} is owned by {owner} at {generation} and held by {holding} (I14)")

        async def read_again() -> None:
            for client in (self.clients[0], self.operator):
                for user in self.users:
                    answer = await client.until_known(Call("get_account", user, [], {}))
                    assert "entry_id" in answer, answer
            repeated = self._call("top_up", self.users[3], 5, message=b"five", request_id=b"five")
            repeated.tries = 1
            answer = await self.clients[0].until_known(repeated)
            assert answer["replayed"], answer

        self.run(read_again(), "the bucket is read")
        world.rest()
        world.stop()
        return owner, generation

    def close(self) -> None:
        """Nothing of it is left."""
        self.world.close()
        self._room.setLevel(self._level)


ABOUT_MOVES = (MoveOut, Payload, MoveIn, Stored, NewOwner, Known, Served, MoveAbort, Unmoved)
