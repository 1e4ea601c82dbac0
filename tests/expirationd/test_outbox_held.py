"""What the outbox holds back until it is released."""

from billing.expirationd.health import FAILED, OK, Pace
from tests.expirationd.world import S, World


def test_held_items_wait_for_release_and_then_go_oldest_first() -> None:
    world = World(Pace(concurrency=1))
    for number in range(200):
        world.owed[1, b"%d" % number] = [("cutoff", 1, -number)]
        world.outbox.hold(1, b"%d" % number, -number)
    world.run(S)
    assert world.attempts == []
    assert world.outbox.held == 200
    world.owe(b"new")
    world.run(S)
    assert [user for _, user, _, _ in world.attempts] == [b"new"]
    assert world.outbox.release() == 200
    world.run(2 * S)
    assert [int(user) for _, user, _, _ in world.attempts[1:]] == list(reversed(range(200)))
    assert world.outbox.held == 0
    assert len(world.outbox) == 0


def test_a_held_account_with_a_new_event_is_held_no_longer() -> None:
    world = World()
    world.owed[1, b"u"] = [("cutoff", 1, 0)]
    world.outbox.hold(1, b"u", 0)
    world.run(S)
    world.owed[1, b"u"].clear()
    world.owe(b"u", seq=2)
    world.run(S)
    assert world.attempts == [(S, b"u", "cutoff", 2)]
    assert world.outbox.held == 0
    assert world.outbox.release() == 0


def test_what_is_to_be_held_is_not_begun_although_something_older_of_the_account_is_ready_waits_or_flies() -> None:
    """A restore is owed since before the start; meanwhile the account runs out, and that is to wait."""
    world = World(Pace(concurrency=1, jitter=0.0), lanes=2)
    outcomes = {b"ready": OK, b"waits": FAILED, b"flies": OK}
    world.answer = lambda item: (outcomes[item.user_id], S, -1)
    world.owe(b"waits", kind="restore")
    world.run(S)
    for user in (b"flies", b"ready"):
        world.owe(user, kind="restore")
    world.send_what_is_due()
    assert [user for _, user, _, _ in world.attempts] == [b"waits", b"flies"]
    for user in outcomes:
        if user != b"flies":  # an exhausted account owes no restore
            world.owed[1, user].clear()
        world.owed[1, user].append(("cutoff", 2, 0))
        world.outbox.hold(1, user, 0)
    world.run(60 * S)
    assert len(world.attempts) == 2
    assert world.outbox.held == 3
    world.outbox.hold(1, b"ready", 0)
    assert world.outbox.release() == 3
    outcomes[b"waits"] = OK
    world.run(70 * S)
    assert sorted(user for _, user, kind, _ in world.attempts[2:] if kind == "cutoff") == sorted(outcomes)
    assert (world.outbox.held, len(world.outbox)) == (0, 0)


def test_a_release_before_the_request_could_be_begun_lets_it_go_and_so_does_something_new() -> None:
    world = World(Pace(concurrency=1))
    for user in (b"flies", b"released", b"new"):
        world.owe(user, kind="restore")
    world.send_what_is_due()
    world.outbox.hold(1, b"released", 0)
    assert world.outbox.release() == 0
    world.outbox.hold(1, b"new", 0)
    world.owe(b"new", seq=2)
    world.run(S)
    assert [user for _, user, _, _ in world.attempts] == [b"flies", b"released", b"new", b"new"]


def test_what_is_superseded_or_goes_with_its_bucket_is_held_no_longer_and_nothing_of_it_comes_at_a_release() -> None:
    world = World(Pace(concurrency=1))
    outbox = world.outbox
    for user, seq in ((b"saved", 2), (b"newer", 5), (b"kept", 1)):
        world.owed[1, user] = [("cutoff", seq, 0)]
        outbox.hold(1, user, 0, notified=("cutoff", seq))
    outbox.hold(7, b"moved", 0, notified=("cutoff", 1))
    assert outbox.held == 4
    outbox.superseded(1, b"saved", 1)
    outbox.superseded(1, b"newer", 4)
    assert outbox.held == 4, "each still owes a newer one"
    outbox.superseded(1, b"saved", 2)
    outbox.superseded(1, b"nobody", 2)
    outbox.leave(7)
    outbox.leave(8)
    assert (outbox.held, len(outbox)) == (2, 2)
    assert not outbox.is_held(7, b"moved")
    outbox.hold(7, b"moved", 0, notified=("cutoff", 1))  # the bucket has come back
    world.owed[7, b"moved"] = [("cutoff", 1, 0)]
    assert outbox.release() == 3
    world.run(S)
    assert sorted(user for _, user, _, _ in world.attempts) == [b"kept", b"moved", b"newer"]
    assert (outbox.held, len(outbox)) == (0, 0)


def test_what_flies_although_it_is_superseded_goes_on() -> None:
    world = World()
    world.owe(b"u")
    world.send_what_is_due()
    world.outbox.superseded(1, b"u", 1)
    assert world.outbox.in_flight == 1
    world.run(S)
    assert len(world.outbox) == 0
