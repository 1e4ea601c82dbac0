"""The crash matrix of a move: source, target and supervisor × every durable step and message × what can befall it.

Outcome of each: the bucket is still at the source, or now at the target with its generation raised; it is held by that
one alone, its content goes on where it was (the auditor looks at every entry), its request ids, hold and owed cutoffs
are there, and it is served again. Nobody guesses: what was decided is what the map's journal says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from shards.control import Known, MoveAbort, MoveIn, MoveOut, NewOwner, Payload, Served, Stored
from shards.moves.handoff import QUIET_WAIT_NS
from shards.moves.mover import Caps
from tests.simulation.moving import ABOUT_MOVES, BUCKET, HUNG_S, SOURCE, TARGET, Message, MovingBucket

ROLES = ("source", "target", "supervisor")
MOVED = [  # a move's messages, in order, by direction
    (f"supervisor>worker-{SOURCE}", MoveOut),
    (f"worker-{SOURCE}>supervisor", Payload),
    (f"supervisor>worker-{TARGET}", MoveIn),
    (f"worker-{TARGET}>supervisor", Stored),
    (f"supervisor>worker-{SOURCE}", NewOwner),
    (f"worker-{SOURCE}>supervisor", Known),
    (f"supervisor>worker-{TARGET}", NewOwner),
    (f"worker-{TARGET}>supervisor", Served),
]
ABORTED = [  # those with which one that comes to nothing ends
    (f"supervisor>worker-{TARGET}", MoveAbort),
    (f"supervisor>worker-{SOURCE}", MoveAbort),
    (f"worker-{TARGET}>supervisor", Known),
    (f"worker-{SOURCE}>supervisor", Known),
]
UNDECIDED = (MoveOut, Payload, MoveIn, Stored)
CALLS_MAX = 24  # of one process's disk, during a move
OUTCOMES = ((SOURCE, 1), (TARGET, 2))
Step = tuple[str, type]


def named(step: Step) -> str:
    """A step in the name of a test."""
    return f"{step[0]} {step[1].__name__}"


@pytest.fixture
def moving() -> Iterator[MovingBucket]:
    moving_pair = MovingBucket()
    moving_pair.begin()
    yield moving_pair
    moving_pair.close()


def carried_out(moving: MovingBucket) -> tuple[int, int]:
    """A move under load, with what was prepared; (shard, generation) in the end."""

    async def script() -> None:
        load = asyncio.ensure_future(moving.load())
        await asyncio.sleep(0.01)
        await moving.move(TARGET)
        await asyncio.sleep(0.3)
        moving.stopped = True
        moving.world.heal()
        await load

    moving.run(script(), "a move")
    return moving.end()


def test_a_move_without_trouble(moving: MovingBucket) -> None:
    assert carried_out(moving) == (TARGET, 2)
    assert set(moving.seen) == set(MOVED)
    kinds = {kind for _, kind in moving.seen}
    assert [kind for kind in ABOUT_MOVES if kind in kinds] == list(dict.fromkeys(kind for _, kind in MOVED))


@pytest.mark.parametrize("error", ["kill", "power"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("call", range(1, CALLS_MAX + 1))
def test_crash_at_every_call_of_the_disk(moving: MovingBucket, role: str, call: int, error: str) -> None:
    disk = moving.process(role).disk
    disk.fail(error, calls_ahead=call)
    assert carried_out(moving) in OUTCOMES


@pytest.mark.parametrize("role", ROLES)
def test_the_matrix_reaches_behind_the_end_of_the_move(moving: MovingBucket, role: str) -> None:
    disk = moving.process(role).disk
    calls_before = disk.calls

    async def script() -> None:
        await moving.move(TARGET)

    moving.run(script(), "a move")
    assert disk.calls - calls_before < CALLS_MAX


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("step", MOVED, ids=named)
def test_crash_at_every_message(moving: MovingBucket, step: tuple[str, type], role: str, when: str) -> None:
    """The process ends before the message leaves, or a moment later, when it is read or about to be."""
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if (direction, type(message)) == step and not messages_hit:
            process = moving.process(role)
            messages_hit.append(process)
            moving.world.outside.call_in(0 if when == "before" else 100_000, process.kill)
            return [1_000] if when == "before" else [0]
        return [0]

    moving.fate = fate
    assert carried_out(moving) in OUTCOMES
    assert messages_hit


@pytest.mark.parametrize("later_ns", [1, 300_000, 3_000_000])
@pytest.mark.parametrize("step", MOVED, ids=named)
def test_every_message_doubled(moving: MovingBucket, step: tuple[str, type], later_ns: int) -> None:
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if (direction, type(message)) == step:
            messages_hit.append(message)
            return [0, later_ns]
        return [0]

    moving.fate = fate
    assert carried_out(moving) == (TARGET, 2)
    assert messages_hit


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", MOVED, ids=named)
def test_every_message_lost(moving: MovingBucket, step: tuple[str, type], times: int) -> None:
    """Nobody concludes anything from silence but the supervisor. Before the decision it takes the bucket back to
    where it was; behind it, it says what was decided until everybody knows.
    """
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if (direction, type(message)) == step and len(messages_hit) < times:
            messages_hit.append(message)
            return []
        return [0]

    moving.fate = fate
    assert carried_out(moving) == ((SOURCE, 1) if step[1] in UNDECIDED else (TARGET, 2))
    assert len(messages_hit) == (1 if step[1] in UNDECIDED else times)


@pytest.mark.parametrize("fault", ["lost", "doubled"])
@pytest.mark.parametrize("step", ABORTED, ids=named)
@pytest.mark.parametrize("cause", [Payload, Stored])
def test_every_message_of_an_end_that_came_to_nothing(
    moving: MovingBucket, cause: type, step: tuple[str, type], fault: str
) -> None:
    """The bucket must not stand still at the source, nor be in the way at the target: the next move takes it."""
    messages_lost: list[object] = []
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if isinstance(message, cause) and not messages_lost:
            messages_lost.append(message)
            return []
        if (direction, type(message)) == step and not messages_hit:
            messages_hit.append(message)
            return [] if fault == "lost" else [0, 3_000_000]
        return [0]

    moving.fate = fate

    async def script() -> None:
        load = asyncio.ensure_future(moving.load())
        error, _ = await moving.move(TARGET)
        assert error is not None
        await asyncio.sleep(0.5)
        assert (await moving.move(TARGET))[0] is None
        moving.stopped = True
        await load

    moving.run(script(), "a move that comes to nothing, and one that does not")
    assert messages_hit
    assert moving.end() == (TARGET, 2)


@pytest.mark.parametrize("step", [step for step in MOVED if step[1] in UNDECIDED], ids=named)
def test_every_message_late_until_its_move_came_to_nothing(moving: MovingBucket, step: tuple[str, type]) -> None:
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if (direction, type(message)) == step and not messages_hit:
            messages_hit.append(message)
            moving.keep(direction, message)
            return []
        return [0]

    moving.fate = fate

    async def script() -> None:
        load = asyncio.ensure_future(moving.load())
        assert (await moving.move(TARGET))[0] is not None
        await asyncio.sleep(0.1)
        moving.late[0]()
        await asyncio.sleep(0.5)
        assert (await moving.move(TARGET))[0] is None
        moving.stopped = True
        await load

    moving.run(script(), "a move that comes to nothing, and one that does not")
    assert moving.end() == (TARGET, 2)


@pytest.mark.parametrize("step", MOVED, ids=named)
def test_every_message_lost_with_its_wire(moving: MovingBucket, step: tuple[str, type]) -> None:
    """A wire between two processes of a host loses nothing but by its end, which is the worker's end, too."""
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if (direction, type(message)) == step and not messages_hit:
            messages_hit.append(message)
            moving.wires[direction].cut()
            return []
        return [0]

    moving.fate = fate
    assert carried_out(moving) in OUTCOMES
    assert messages_hit


@pytest.mark.parametrize("step", MOVED, ids=named)
def test_every_message_late_until_a_later_move_is_over(moving: MovingBucket, step: tuple[str, type]) -> None:
    """Before the decision it is lost at first; behind it, it comes twice: also when the bucket has gone on and back."""
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if (direction, type(message)) == step and not messages_hit:
            messages_hit.append(message)
            moving.keep(direction, message)
            return [] if step[1] in UNDECIDED else [0]
        return [0]

    moving.fate = fate

    async def script() -> None:
        load = asyncio.ensure_future(moving.load())
        await asyncio.sleep(0.01)
        await moving.move(TARGET)
        for shard in (TARGET, SOURCE, TARGET):
            await moving.move(shard)
        moving.late[0]()
        await asyncio.sleep(0.2)
        moving.stopped = True
        moving.world.heal()
        await load

    moving.run(script(), "moves")
    assert messages_hit
    assert moving.end() == (TARGET, 4)


def test_a_bucket_that_is_too_large_to_be_carried_is_refused_by_name(moving: MovingBucket) -> None:
    moving.handoff().block_bytes_max = 500
    error, _ = moving.run(moving.move(TARGET), "a move that is refused")
    assert "MOVE_REFUSED" in str(error)
    assert "a move carries 500 at most" in str(error)
    assert carried_out(moving) == (SOURCE, 1)


@pytest.mark.parametrize(("wait_ns", "is_before"), [(QUIET_WAIT_NS, False), (0, True)])
def test_a_bucket_is_moved_when_nothing_of_it_is_due_within_a_handoff(
    moving: MovingBucket, wait_ns: int, is_before: bool
) -> None:
    """An account runs out of money some milliseconds after the wish: the bucket is frozen when that is over."""
    moving.handoff().quiet_wait_ns = wait_ns
    world, user, left_ns = moving.world, moving.users[1], []
    world.endpoint_faults.wrong.clear()

    def fate(direction: str, message: Message) -> list[int]:
        if isinstance(message, Payload):
            left_ns.append(world.kernel.wall_ns())
        return [0]

    moving.fate = fate

    async def script() -> int:
        balance = (await moving.client_call("get_account", user))["available_nanos"]
        answer = await moving.client_call("set_rate", user, balance * 3600 * 1000 // 12, per="hour", message=b"soon")
        assert (await moving.move(TARGET))[0] is None
        return int(answer["exhausts_at_ns"])

    due_ns = moving.run(script(), "a move that waits")
    assert (left_ns[0] < due_ns) is is_before
    assert moving.end() == (TARGET, 2)


def test_several_buckets_move_at_once_and_no_more_than_the_caps_allow(moving: MovingBucket) -> None:
    """Two out of each shard of two, three in all: the fourth waits its turn."""
    supervisor = moving.world.supervisor
    assert supervisor is not None
    mover = supervisor.mover
    mover.settings, moves_under_way = mover.settings._replace(caps=Caps(total=3, sending=2, receiving=2)), []

    def fate(direction: str, message: Message) -> list[int]:
        under_way = [running_move for running_move in mover.running.values() if running_move.move is not None]
        moves_under_way.append(len(under_way))
        assert max(sum(running_move.source == shard for running_move in under_way) for shard in (SOURCE, TARGET)) <= 2
        return [200_000]

    moving.fate = fate
    owners_before = supervisor.map.owner.tolist()[1:]

    async def script() -> None:
        load = asyncio.ensure_future(moving.load())
        wishes = [moving.operator.ask("move_bucket", 1 + index, 3 - owner) for index, owner in enumerate(owners_before)]
        for error, _ in await asyncio.gather(*wishes):
            assert error is None
        moving.stopped = True
        await load

    moving.run(script(), "moves beside each other")
    assert max(moves_under_way) == 3
    assert supervisor.map.owner.tolist()[1:] == [3 - owner for owner in owners_before]
    assert moving.end() == (TARGET, 2)


@pytest.mark.parametrize("caps", [Caps(), Caps(total=3, sending=3, receiving=3)], ids=["locked", "more at once"])
def test_a_rebalance_under_way_goes_on_by_what_a_reload_has_changed(moving: MovingBucket, caps: Caps) -> None:
    """A shard that is locked meanwhile gives no further bucket; of more moves at once there are as many at once."""
    supervisor, process = moving.world.supervisor, moving.world.supervising
    assert supervisor is not None
    assert process is not None
    mover, registry, moves_at_once = supervisor.mover, supervisor.registry, [0]
    locked = frozenset((SOURCE,)) if caps == Caps() else frozenset[int]()

    def rebalance(*records: list[object]) -> None:
        async def begin() -> None:
            await registry.record(*records)
            mover.begin_rebalance()

        process.loop.call_soon(lambda: supervisor.spawn(begin()))
        moving.world.run(lambda: mover.rebalancing, 60, "a rebalance")
        moving.world.run(lambda: not mover.rebalancing, 60, "its end")

    rebalance(["weight", TARGET, 0])
    owned = len(registry.map.buckets_of(SOURCE))

    def fate(direction: str, message: Message) -> list[int]:
        if isinstance(message, Payload) and mover.settings.caps == Caps() and not mover.settings.locked:
            mover.take_settings(mover.settings._replace(caps=caps, locked=locked))
        moves_at_once.append(sum(running_move.move is not None for running_move in mover.running.values()))
        return [200_000]

    moving.fate = fate
    rebalance(["weight", TARGET, 1], ["weight", SOURCE, 0])
    assert max(moves_at_once) == caps.total
    assert len(registry.map.buckets_of(SOURCE)) == (owned - 1 if locked else 0)


def test_what_was_given_away_is_kept_until_its_new_owner_has_proved_itself(moving: MovingBucket) -> None:
    """Everything ends when the decision was made and before the source hears of it; then the target's data is damaged.
    The source serves nothing of the bucket, and forgets nothing, through snapshots and restarts, until it is mended.
    """
    world = moving.world
    messages_seen: list[object] = []

    def end_all() -> None:
        world.restart_wanted = False
        for process in list(world.machine.processes.values()):
            process.kill()

    def fate(direction: str, message: Message) -> list[int]:
        if isinstance(message, NewOwner) and not messages_seen:
            messages_seen.append(message)
            world.outside.call_in(0, end_all)
        return [] if isinstance(message, NewOwner) else [0]

    def orphans() -> set[int]:
        worker = world.processes[SOURCE].worker
        return set() if worker is None else set(worker.shard.orphans)

    def state_of(shard_id: int) -> str:
        workers = world.supervisor.workers if world.supervisor is not None else {}
        return workers[shard_id].state if shard_id in workers else "down"

    async def until(holds: Callable[[], object]) -> None:
        for _ in range(1000):
            if holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(world.state())

    moving.fate = fate
    medium, path = world.machine.medium, f"/data/shard-{TARGET}/segment-0000000001"

    async def script() -> None:
        asking = asyncio.ensure_future(moving.move(TARGET))
        await until(lambda: messages_seen and world.supervisor is None)
        moving.fate = lambda direction, message: [0]
        payload = medium.node(path).content.index(b"slow")  # a note in the bucket that has come
        world.rotten = True
        medium.flip(path, 8 * payload)
        world.restart_wanted = True
        world.start()
        await until(lambda: state_of(SOURCE) == "serving" and state_of(TARGET) == "held")
        assert orphans() == {BUCKET}
        worker = world.processes[SOURCE].worker
        assert worker is not None
        worker.snapshotter.begin()
        worker.wake()
        snapshotter = worker.snapshotter
        await until(lambda: snapshotter.count == 1)
        moving.process("source").kill()
        await until(lambda: state_of(SOURCE) != "serving")
        await until(lambda: state_of(SOURCE) == "serving")
        assert orphans() == {BUCKET}
        medium.flip(path, 8 * payload)
        await world.restart()
        await until(world.is_ready)
        await until(lambda: not orphans())
        asking.cancel()

    moving.run(script(), "damage, and its end")
    assert moving.end() == (TARGET, 2)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("step", MOVED, ids=named)
def test_a_peer_that_hangs_at_every_message(moving: MovingBucket, step: tuple[str, type], role: str) -> None:
    messages_hit: list[object] = []

    def fate(direction: str, message: Message) -> list[int]:
        if (direction, type(message)) == step and not messages_hit:
            loop = moving.process(role).loop
            loop.hung_until_ns = moving.world.kernel.now_ns + int(HUNG_S * 1e9)
            messages_hit.append(loop)
        return [0]

    moving.fate = fate
    assert carried_out(moving) in OUTCOMES
    assert messages_hit
