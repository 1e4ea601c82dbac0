"""A shard that is held because its worker ended too often is tried again by itself, and serves once that helps."""

from __future__ import annotations

from shards.supervisor.restart_policy import HELD_DELAYS_S
from tests.simulation.loop import SECOND_NS
from tests.simulation.world import World

ENDS_S = 60  # within that it has ended too often
NAME = "worker-1"


def state_of(world: World) -> str:
    """Of shard 1."""
    assert world.supervisor is not None
    return world.supervisor.workers[1].state


def test_a_shard_that_is_held_is_tried_again_by_itself_and_slowly() -> None:
    world = World(1)
    try:
        world.start()
        world.run(world.is_ready, 60, "a first start")
        process = world.process_of(1)
        assert process is not None
        process.kill()

        def is_held() -> bool:
            world.machine.next_fault[NAME] = 1, "kill"  # whoever starts ends at the first call of its disk
            return state_of(world) == "held"

        held_ns = []
        for number in range(2):
            world.run(is_held, ENDS_S, "ended so often that it is held")
            held_ns.append(world.kernel.now_ns)
            world.run(lambda: state_of(world) != "held", HELD_DELAYS_S[number] + 1, "tried again, by nobody's word")
            assert world.kernel.now_ns - held_ns[-1] >= HELD_DELAYS_S[number] * SECOND_NS
        world.machine.next_fault.clear()
        world.run(world.is_ready, HELD_DELAYS_S[2] + 60, "it serves again")
        world.stop()
    finally:
        world.close()
