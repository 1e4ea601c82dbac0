"""What nobody waits for rides with the batches of others: the work of an isolated cutoff, counted in batches and
syncs.

The whole daemon on the virtual clock, so that the count is exact however busy the machine is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.simulation.calls import COIN, Call, Programs
from tests.simulation.clients import Client
from tests.simulation.world import World

USERS = [b"%d" % number for number in range(1, 21)]
APART_S = 0.5


@pytest.fixture
def world() -> Iterator[World]:
    """One worker, and an endpoint that answers within some 4 ms."""
    world = World(1, workers=1, leases=False)
    world.start()
    world.run(world.is_ready, 60, "a start")
    yield world
    world.close()


def client_of(world: World) -> Client:
    programs = Programs(random.Random(1), USERS)
    return Client("client", world.outside, world.door, world.auditor, programs, random.Random(1), world.trace)


def run_dry_apart(world: World, client: Client, apart_s: float = APART_S) -> None:
    """Each of the users runs dry by time alone, `apart_s` after the one before."""

    async def act() -> None:
        for number, user in enumerate(USERS):
            coins = 10 + number * apart_s
            for method, amount, options in (("top_up", int(coins * COIN), {}), ("set_rate", COIN, {"per": "second"})):
                tag = b"%b %b" % (method.encode(), user)
                call = Call(method, user, [amount], {**options, "message": tag, "request_id": tag})
                call.number, call.tag = amount * (3600 if method == "set_rate" else 1), tag
                await client.until_known(call)

    task = world.task(act())
    world.run(task.done, 9, "all users have money and a rate")


def syncs_of(world: World) -> int:
    """How often the worker has synced its journal."""
    process = world.process_of(1)
    assert process is not None
    return sum(call.startswith("fdatasync segment") for call in process.disk.trace)


def test_an_isolated_cutoff_is_one_batch_and_its_2xx_rides_in_it(world: World) -> None:
    run_dry_apart(world, client_of(world))
    world.run(world.is_quiet, 1, "all is durable")
    head = world.auditor.head("shard-1")
    world.run(lambda: len(world.auditor.delivered) == len(USERS), 30, "everybody is called")
    world.run(world.is_quiet, 1, "all is durable")
    # The first comes behind a rest of seconds, so its exhaustion is durable before it is called.
    assert world.auditor.head("shard-1") - head == len(USERS) + 1


def test_cutoffs_a_hundredth_of_a_second_apart_share_batches(world: World) -> None:
    run_dry_apart(world, client_of(world), 0.01)
    world.run(world.is_quiet, 1, "all is durable")
    head = world.auditor.head("shard-1")
    world.run(lambda: len(world.auditor.delivered) == len(USERS), 30, "everybody is called")
    world.run(world.is_quiet, 1, "all is durable")
    assert world.auditor.head("shard-1") - head <= len(USERS) // 3


@pytest.mark.parametrize("apart_s", [0.01, 0.04, 0.2])
def test_cutoffs_that_come_one_by_one_need_no_barriers_between_their_batches(world: World, apart_s: float) -> None:
    """The next batch proves the one before it, and nobody was told what the last one holds."""
    run_dry_apart(world, client_of(world), apart_s)
    world.run(world.is_quiet, 1, "all is durable")
    world.run(lambda: bool(world.auditor.delivered), 12, "the first is called")
    syncs, batches = syncs_of(world), world.auditor.head("shard-1")
    world.run(lambda: len(world.auditor.delivered) == len(USERS), 30, "everybody is called")
    world.run(world.is_quiet, 1, "all is durable")
    assert syncs_of(world) - syncs == world.auditor.head("shard-1") - batches


def test_what_was_read_of_the_last_batch_is_proved_as_soon_as_an_answer_is(world: World) -> None:
    client = client_of(world)
    run_dry_apart(world, client, 5.0)
    world.run(lambda: bool(world.auditor.delivered), 12, "the first is called")
    world.run(world.is_quiet, 1, "its batch is durable")
    syncs = syncs_of(world)
    reading = world.task(client.until_known(Call("get_account", USERS[0], [], {})))
    world.run(reading.done, 1, "an answer")
    asked_ns = world.kernel.now_ns
    world.run(lambda: syncs_of(world) > syncs, 1, "a barrier")
    assert world.kernel.now_ns - asked_ns < 100_000_000, "of virtual time"


def test_a_read_does_not_wait_for_the_ride_and_takes_along_what_it_saw(world: World) -> None:
    client = client_of(world)
    run_dry_apart(world, client)
    world.run(lambda: bool(world.auditor.delivered), 12, "the first is called")
    asked_ns = world.kernel.now_ns
    reading = world.task(client.until_known(Call("get_account", USERS[0], [], {})))
    world.run(reading.done, 1, "an answer")
    assert world.kernel.now_ns - asked_ns < 10_000_000, "of virtual time"
    assert reading.result()["state"] == "exhausted"  # and the auditor saw that the entry it names is durable


def test_what_rides_when_the_process_dies_is_called_again_under_the_same_name(world: World) -> None:
    run_dry_apart(world, client_of(world))
    world.run(lambda: bool(world.auditor.attempts), 12, "the first is being called")
    process = world.process_of(1)
    assert process is not None
    process.kill()
    world.run(lambda: len(world.auditor.delivered) == len(USERS), 60, "everybody is called")
    world.rest()
    assert world.auditor.attempts > len(USERS)
