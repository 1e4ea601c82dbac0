"""What nobody waits for rides with the batches of others: the work of an isolated cutoff, counted in batches.

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

    made = world.task(act())
    world.run(made.done, 9, "all users have money and a rate")


def test_an_isolated_cutoff_is_one_batch_and_its_2xx_rides_in_it(world: World) -> None:
    run_dry_apart(world, client_of(world))
    world.run(world.is_quiet, 1, "all is durable")
    before = world.auditor.head("shard-1")
    world.run(lambda: len(world.auditor.delivered) == len(USERS), 30, "everybody is called")
    world.run(world.is_quiet, 1, "all is durable")
    assert world.auditor.head("shard-1") - before == len(USERS)


def test_cutoffs_a_hundredth_of_a_second_apart_share_batches(world: World) -> None:
    run_dry_apart(world, client_of(world), 0.01)
    world.run(world.is_quiet, 1, "all is durable")
    before = world.auditor.head("shard-1")
    world.run(lambda: len(world.auditor.delivered) == len(USERS), 30, "everybody is called")
    world.run(world.is_quiet, 1, "all is durable")
    assert world.auditor.head("shard-1") - before <= len(USERS) // 3


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
