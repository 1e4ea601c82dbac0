"""An endpoint that is gone for 24 hours with 100,000 cutoffs pending, in virtual time; and the whole of a delivery for
six hours, with as many pending as there is time to try.
"""

import random
from collections import Counter
from itertools import pairwise
from typing import Any

from billing.expirationd.delivery import Delivery, DeliveryDependencies, DeliverySettings, Obligations, Owed, one_by_one
from billing.expirationd.health import OK, UNREACHABLE, Pace
from shards.system.clock import Clocks
from tests.expirationd.late_endpoint import LateEndpoint
from tests.expirationd.world import MS, S, World
from tests.simulation.loop import Kernel, SimLoop

PENDING = 100_000
DAY_NS = 24 * 3600 * S
QUARTER_NS, PENDING_THEN = DAY_NS // 4, PENDING // 4


def test_gone_for_a_day_it_is_probed_once_a_second_then_drained_oldest_first() -> None:
    """One probe a second, nothing lost, no more memory than at first, all out as soon as it is back."""
    pace = Pace(concurrency=64)
    world = World(pace)
    world.answer = lambda item: (OK, MS, -1) if world.now_ns >= DAY_NS else (UNREACHABLE, 0, -1)
    for number in range(PENDING):
        world.owe(b"%d" % number, since_ns=number)
    world.run(DAY_NS - 1)
    assert 86_400 <= len(world.attempts) <= 86_470  # those in flight when it died, then one a second
    instants = [at_ns for at_ns, _, _, _ in world.attempts[70:]]
    assert all(late - early >= S for early, late in pairwise(instants))
    assert len(world.outbox) == PENDING
    lane = world.outbox.lanes[0]
    assert len(lane.fresh) + len(lane.retries) <= 2 * PENDING + 128, "each account has a place, and few have stale ones"
    attempts = Counter(user for _, user, _, _ in world.attempts)
    standings = [world.outbox.standing(1, user) for user in attempts]
    assert None not in standings
    assert sum(attempts.values()) == sum(standing[1] for standing in standings if standing is not None), (
        "each failure is remembered"
    )
    assert len(attempts) > 70_000, "who was never tried goes first, another user each time"
    last_ns: dict[bytes, int] = {}
    for at_ns, user, _, _ in world.attempts:
        assert at_ns - last_ns.get(user, -S) >= pace.waits_ns[0], "nobody is tried before the schedule allows it"
        last_ns[user] = at_ns
    world.attempts.clear()
    world.run(DAY_NS + 3 * S)
    assert len(world.outbox) == 0
    drained = [int(user) for _, user, _, _ in world.attempts]
    assert sorted(drained) == list(range(PENDING))
    assert drained[1:] == sorted(drained[1:])


def test_delivery_too_probes_an_endpoint_that_is_gone_for_hours_and_then_sends_all_of_it_once() -> None:
    kernel = Kernel(random.Random(3))
    loop = SimLoop(kernel, "worker")  # type: ignore[abstract]
    began_ns = kernel.now_ns
    endpoint = LateEndpoint(kernel, began_ns + QUARTER_NS)
    owed = {b"%d" % number: number for number in range(PENDING_THEN)}
    failures: Counter[str] = Counter()
    deliveries: list[Delivery] = []
    broken: list[BaseException] = []

    def owed_of(bucket_id: int, user: bytes) -> Owed | None:
        return ("cutoff", f"{user.decode()}-1", 1, owed[user], 0, owed[user], "") if user in owed else None

    def report(kind: str, bucket_id: int, user: bytes, seq: int, outcome: str, error: str, now_ns: int) -> None:
        if outcome == "failed":
            failures[error] += 1
        elif outcome == "delivered":
            del owed[user]

    async def send() -> None:
        settings = DeliverySettings("http://away.example/off", concurrency=64, warm=0)

        def endpoint_of(*_: Any) -> Any:
            return endpoint

        dependencies = DeliveryDependencies(Clocks(kernel.boot_ns, kernel.wall_ns), random.Random(1), endpoint_of)
        obligations = Obligations(owed_of, one_by_one(report))
        delivery = Delivery(obligations, settings, lambda: kernel.now_ns, broken.append, dependencies)
        delivery.start()
        for user, since_ns in owed.items():
            delivery.owe(1, user, "cutoff", since_ns)
        delivery.rouse()
        deliveries.append(delivery)

    loop.create_task(send())
    assert kernel.run(lambda: not owed, began_ns + 2 * QUARTER_NS)
    assert broken == []
    assert kernel.troubles == []
    assert 21_500 <= len(endpoint.refused) <= 21_670, "some at first, then one a second, or a millisecond later"
    assert failures == {"connection refused": len(endpoint.refused)}
    assert all(late - early >= S for early, late in pairwise(endpoint.refused[64:])), "behind those begun together"
    users = [request.partition(b"user_id=")[2].partition(b"&")[0] for request in endpoint.requests]
    assert len(users) == len(set(users)) == PENDING_THEN
    assert endpoint.most_at_once == 64, "the backlog leaves at full speed"
    assert kernel.now_ns - began_ns - QUARTER_NS < 4 * S
    numbers = [int(user) for user in users]
    assert numbers[1:] == sorted(numbers[1:]), "oldest first"
    assert kernel.run(lambda: not deliveries[0].outbox.in_flight, began_ns + 2 * QUARTER_NS)
    assert (len(deliveries[0].outbox), deliveries[0].delivered) == (0, PENDING_THEN)
    loop.die()
