"""Delivery to an endpoint that behaves: what arrives, in which order, and what never does."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import billing.expirationd
from billing.expirationd.endpoint import HELD_S, MANY, UNKNOWN
from billing.signature import parse_secrets
from billing.trial.faults import Fault
from billing.trial.received_calls import ReceivedCalls
from billing.trial.receiver import Receiver
from shards.system.clock import MACHINE_CLOCKS
from tests.expirationd.fake_obligations import FakeObligations, receiving, sending, settings

SECRETS = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


async def test_a_cutoff_arrives_signed_and_never_early() -> None:
    obligations = FakeObligations()
    async with (
        receiving(secrets=SECRETS) as receiver,
        sending(obligations, settings(receiver.url, secrets=SECRETS)) as delivery,
    ):
        obligations.exhaust(delivery, "üser/1".encode())
        await obligations.until(obligations.nothing_owed)
        (call,) = receiver.calls
        assert (call.method, call.user_id, call.seq, call.answered) == ("GET", "üser/1", 1, "200")
        assert call.event_id == f"üser/1-1-{call.exhausted_at_ns}"
        assert call.lateness_us >= 0
        assert obligations.outcomes("üser/1".encode()) == ["started", "delivered"]
        await obligations.until(lambda: len(delivery.outbox) == 0)


async def test_without_the_secret_nothing_is_accepted() -> None:
    obligations = FakeObligations()
    async with receiving(secrets=SECRETS) as receiver, sending(obligations, settings(receiver.url)) as delivery:
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: len(obligations.errors()) >= 2)
        assert set(obligations.errors()) == {"status 401"}
        assert receiver.stats()["acknowledged"] == 0


async def test_a_cutoff_of_a_burst_takes_few_calls_of_delivery() -> None:
    """A storm costs what its calls cost, so they are counted: those of this package, from the notice to the 2xx."""
    obligations, count, calls = FakeObligations(), 400, 0
    package = str(Path(billing.expirationd.__file__).parent)

    def counting(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(package)

    async with receiving() as receiver, sending(obligations, settings(receiver.url, concurrency=16)) as delivery:
        for number in range(count):
            obligations.exhaust(delivery, b"user %d" % number)
        sys.setprofile(counting)
        try:
            await obligations.until(obligations.nothing_owed)
        finally:
            sys.setprofile(None)
        assert calls / count < 49, "owed, begun, requested, written; read, judged, kept, settled, and the next one"


async def test_an_isolated_call_is_begun_in_the_turn_that_finds_it_owed_without_a_task() -> None:
    """A process that slept pays for each thing that it touches: for a task to be woken, too."""
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url, concurrency=2, warm=2)) as delivery:
        await obligations.until_shown(delivery, 2)
        await obligations.until(lambda: delivery.endpoints[0].connections == 2 and not delivery.outbox.in_flight)
        tasks = asyncio.all_tasks()
        for user in (b"a", b"b", b"c"):
            obligations.instants[user, 1] = MACHINE_CLOCKS.wall_ns()
            obligations.cutoffs[user] = [1]
            delivery.owe(1, user, "cutoff", obligations.instants[user, 1])
        obligations.reports.clear()
        delivery.rouse()
        assert [(user, outcome) for _, user, _, outcome, _ in obligations.reports] == [
            (b"a", "started"),
            (b"b", "started"),
        ]
        await obligations.until(obligations.nothing_owed)
        assert asyncio.all_tasks() - tasks == set()
        outcomes = [(user, outcome) for _, user, _, outcome, _ in obligations.reports]
        assert outcomes[2][1] == "delivered"
        assert outcomes[3] == (b"c", "started"), "right behind the answer that made room for it"


async def test_many_at_once_arrive_once_each_over_a_bounded_number_of_connections() -> None:
    obligations = FakeObligations()
    open_at_once: list[int] = []
    receiver: Receiver
    async with (
        receiving(received=ReceivedCalls(on_call=lambda _: open_at_once.append(len(receiver.connections)))) as receiver,
        sending(obligations, settings(receiver.url, concurrency=16, warm=4)) as delivery,
    ):
        for number in range(3000):
            obligations.exhaust(delivery, b"u%d" % number)
        assert delivery.outbox.in_flight == 0  # nothing is written in the call that reports it
        await obligations.until(obligations.nothing_owed)
        assert sorted(call.user_id for call in receiver.calls) == sorted(f"u{number}" for number in range(3000))
        assert max(open_at_once) <= 2 * (16 + 4), "those that are being closed included"
        assert obligations.errors() == []
        assert (delivery.started, delivery.delivered) == (3000, 3000)


async def test_a_server_shown_to_serve_many_gets_warm_connections_and_they_are_replaced_when_closed() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url, warm=3)) as delivery:
        assert receiver.connections == set(), "nobody knows yet whether silent connections do harm"
        await obligations.until_shown(delivery, 3)
        assert delivery.endpoints[0].serves == MANY
        await obligations.until(lambda: len(receiver.connections) >= 3)
        for connection in list(receiver.connections):
            connection.transport.close()
        await obligations.until(lambda: not receiver.connections)
        await obligations.until(lambda: len(receiver.connections) == 3)
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        assert obligations.errors() == []


async def test_a_burst_to_a_server_not_known_yet_uses_its_connections_again() -> None:
    """They were closed after 30 ms of use, as if the server could serve one connection at a time: it serves sixteen."""
    obligations = FakeObligations()
    async with (
        receiving() as receiver,
        sending(obligations, settings(receiver.url, concurrency=16, warm=0)) as delivery,
    ):
        began = time.monotonic()
        for number in range(3000):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(obligations.nothing_owed)
        lasted_s = time.monotonic() - began
        assert delivery.endpoints[0].serves == UNKNOWN
        assert receiver.connects <= 16 * (4 + lasted_s / (10 * HELD_S))  # some rest for a moment on a busy machine
        await obligations.until(lambda: not receiver.connections)
        assert obligations.errors() == []


async def test_what_a_burst_opened_beyond_what_was_shown_is_closed_behind_it() -> None:
    """A server with a thread for each connection may have none left for other clients meanwhile."""
    obligations = FakeObligations()
    async with (
        receiving() as receiver,
        sending(obligations, settings(receiver.url, concurrency=16, warm=3)) as delivery,
    ):
        await obligations.until_shown(delivery, 3)
        for number in range(500):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(obligations.nothing_owed)
        await obligations.until(lambda: len(receiver.connections) == 3)
        assert delivery.endpoints[0].serves == MANY
        assert obligations.errors() == []


async def test_a_delivery_that_another_one_takes_over_from_keeps_no_connection_and_ends_its_calls() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url, warm=3)) as former:
        await obligations.until_shown(former, 3)
        await obligations.until(lambda: len(receiver.connections) >= 3)
        delivered = former.delivered
        receiver.fault = Fault("slow", 500)
        obligations.exhaust(former, b"slow")
        await obligations.until(lambda: former.under_way() == [(1, b"slow")])
        async with sending(obligations, settings(receiver.url, warm=0)) as delivery:
            delivery.take_over(former)
            obligations.exhaust(former, b"never")
            await obligations.until(lambda: obligations.outcomes(b"slow") == ["started", "delivered"])
            await obligations.until(lambda: not receiver.connections)
            assert obligations.outcomes(b"never") == []
            delivery.notify(1, b"never")
            await obligations.until(obligations.nothing_owed)
            assert delivery.figures()["calls_delivered"] == {"cutoff": delivered + 2}
            assert former.counts is delivery.counts


async def test_with_no_warm_connections_none_is_opened_ahead() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url, warm=0)) as delivery:
        for _ in range(5):
            obligations.exhaust(delivery, b"u")
            await obligations.until(obligations.nothing_owed)
        assert delivery.endpoints[0].serves == UNKNOWN
        assert receiver.connects <= 5
        await obligations.until(lambda: not receiver.connections)


async def test_a_connection_known_to_be_closed_is_not_written_on() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url, warm=0)) as delivery:
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        for connection in list(receiver.connections):
            connection.transport.close()
        await obligations.until(lambda: delivery.endpoints[0].connections == 0)  # the news has arrived
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        assert obligations.outcomes(b"u") == ["started", "delivered"] * 2


async def test_a_connection_idle_for_long_is_closed_and_not_used() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url, warm=0, idle_s=0.05)) as delivery:
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        await obligations.until(lambda: not receiver.connections)
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        assert receiver.connects == 2
        assert obligations.errors() == []


async def test_a_user_saved_before_the_first_attempt_is_never_called() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url)) as delivery:
        obligations.exhaust(delivery, b"saved")
        obligations.top_up(delivery, b"saved")
        obligations.exhaust(delivery, b"other")
        await obligations.until(lambda: obligations.nothing_owed() and len(delivery.outbox) == 0)
        assert [call.user_id for call in receiver.calls] == ["other"]
        assert obligations.outcomes(b"saved") == []


async def test_a_user_saved_while_the_connection_is_being_opened_is_never_called() -> None:
    """A full backlog lets the connection come about only when somebody accepts; by then nothing is owed any more."""
    obligations = FakeObligations()
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        async with sending(obligations, settings(url, warm=0, connect_timeout_s=10.0)) as delivery:
            obligations.exhaust(delivery, b"u")
            await obligations.until(lambda: delivery.outbox.in_flight == 1)
            obligations.top_up(delivery, b"u")
            server.settimeout(60)
            accepted = [(await asyncio.to_thread(server.accept))[0] for _ in range(2)]
            await obligations.until(lambda: len(delivery.outbox) == 0)
            assert obligations.reports == []
            assert delivery.endpoints[0].connects == 1
            for connection in accepted:
                connection.close()


async def test_a_restore_follows_the_cutoff_it_belongs_to_and_both_are_never_in_flight_at_once() -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault("slow", 100)) as receiver:
        chosen = settings(receiver.url + "/off", restore_url=receiver.url + "/on")
        async with sending(obligations, chosen) as delivery:
            obligations.exhaust(delivery, b"u")
            await obligations.until(lambda: obligations.outcomes(b"u") == ["started"])
            obligations.top_up(delivery, b"u")
            await obligations.until(obligations.nothing_owed)
            assert [(call.path, call.seq) for call in receiver.calls] == [("/off", 1), ("/on", 1)]
            assert obligations.outcomes(b"u") == ["started", "delivered", "started", "delivered"]


async def test_restores_go_to_an_endpoint_of_their_own_while_that_of_cutoffs_is_dead() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("status", 500)) as dead,
        receiving() as alive,
        sending(obligations, settings(dead.url, restore_url=alive.url + "/on/{user_id}")) as delivery,
    ):
        for number in range(10):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(lambda: delivery.outbox.lanes[0].shut)
        users = sorted({user for user, _ in obligations.started})
        for user in users:
            obligations.top_up(delivery, user)
        await obligations.until(lambda: not obligations.restores)
        assert sorted(call.path for call in alive.calls) == [f"/on/{user.decode()}" for user in users]


async def test_two_cutoffs_of_one_account_arrive_in_their_order() -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault("slow", 20)) as receiver, sending(obligations, settings(receiver.url)) as delivery:
        for _ in range(5):
            obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        assert [call.seq for call in receiver.calls] == [1, 2, 3, 4, 5]


async def test_held_cutoffs_wait_for_release() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url)) as delivery:
        for user in (b"a", b"b"):
            obligations.cutoffs[user] = [1]
            obligations.instants[user, 1] = 5
            delivery.hold(1, user, 5)
        obligations.exhaust(delivery, b"free")
        await obligations.until(lambda: not obligations.cutoffs[b"free"])
        assert [call.user_id for call in receiver.calls] == ["free"]
        assert delivery.release() == 2
        await obligations.until(obligations.nothing_owed)
        assert delivery.outbox.held == 0


async def test_drain_waits_for_what_is_in_flight_and_begins_nothing_new() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("slow", 100)) as receiver,
        sending(obligations, settings(receiver.url, concurrency=2)) as delivery,
    ):
        for number in range(6):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(lambda: delivery.outbox.in_flight == 2)
        assert await delivery.drain(10.0)
        obligations.exhaust(delivery, b"late")
        await asyncio.sleep(0.2)
        assert (delivery.started, delivery.delivered) == (2, 2)
        assert len(receiver.calls) == 2


async def test_closing_in_the_middle_reports_nothing_for_what_is_in_flight() -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault("hang")) as receiver, sending(obligations, settings(receiver.url)) as delivery:
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: len(receiver.calls) == 1)
        assert not await delivery.drain(0.01)
        await delivery.close()
        assert obligations.outcomes(b"u") == ["started"]
        await obligations.until(lambda: not receiver.connections)


async def test_a_broken_invariant_of_the_caller_is_told_and_not_swallowed() -> None:
    obligations = FakeObligations()

    def broken(bucket_id: int, user: bytes) -> None:
        raise AssertionError("the books are wrong")

    obligations.owed = broken  # type: ignore[method-assign]
    async with receiving() as receiver:
        async with sending(obligations, settings(receiver.url)) as delivery:
            delivery.notify(1, b"u")
            await obligations.until(lambda: bool(obligations.broken))
            assert str(obligations.broken.pop()) == "the books are wrong"
        assert receiver.calls == []


async def test_proxies_of_the_environment_are_ignored() -> None:
    obligations = FakeObligations()
    before = os.environ.get("http_proxy")
    os.environ["http_proxy"] = "http://127.0.0.1:1"
    try:
        async with receiving() as receiver, sending(obligations, settings(receiver.url)) as delivery:
            obligations.exhaust(delivery, b"u")
            await obligations.until(obligations.nothing_owed)
            assert len(receiver.calls) == 1
    finally:
        del os.environ["http_proxy"]
        if before is not None:
            os.environ["http_proxy"] = before


async def test_what_was_not_notified_yet_is_not_sent_although_the_ledger_names_it() -> None:
    """A top-up and the next exhaustion may stand in the ledger before they are durable."""
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url)) as delivery:
        obligations.cutoffs[b"u"] = [2]
        obligations.instants[b"u", 2] = 1
        delivery.notify(1, b"u", seq=1)
        await obligations.until(lambda: len(delivery.outbox) == 0)
        assert receiver.calls == []
        delivery.notify(1, b"u", "restore", seq=2)
        await obligations.until(lambda: len(delivery.outbox) == 0)
        assert receiver.calls == []
        delivery.notify(1, b"u", seq=2)
        await obligations.until(obligations.nothing_owed)
        assert [call.seq for call in receiver.calls] == [2]


async def test_the_timestamp_is_the_wall_clocks_at_sending_and_the_instant_stays_billing_time() -> None:
    """The daemon was started an hour before its time; the wall clock was set since, billing time was not."""
    obligations, hour_ns = FakeObligations(), 3600 * 10**9
    async with receiving(secrets=SECRETS) as receiver:

        def billing_ns() -> int:
            return MACHINE_CLOCKS.wall_ns() - hour_ns

        chosen = settings(receiver.url, secrets=SECRETS)
        delivery = obligations.delivery_of(chosen, billing_ns)
        delivery.start()
        try:
            obligations.exhaust(delivery, b"u")
            await obligations.until(obligations.nothing_owed)
        finally:
            await delivery.close()
        (call,) = receiver.calls
        assert call.answered == "200", "the receiver checks that a call is no older than five minutes"


async def test_with_post_the_same_fields_come_as_a_body_and_restores_too() -> None:
    obligations = FakeObligations()
    async with receiving(secrets=SECRETS, fault=Fault("slow", 100)) as receiver:
        chosen = settings(receiver.url + "/off", restore_url=receiver.url + "/on", secrets=SECRETS, method="POST")
        async with sending(obligations, chosen) as delivery:
            obligations.exhaust(delivery, "üser/1".encode())
            await obligations.until(lambda: bool(obligations.started))
            obligations.top_up(delivery, "üser/1".encode())
            await obligations.until(obligations.nothing_owed)
        assert [(call.method, call.path, call.user_id, call.seq) for call in receiver.calls] == [
            ("POST", "/off", "üser/1", 1),
            ("POST", "/on", "üser/1", 1),
        ]
        assert len({call.event_id for call in receiver.calls}) == 1


async def test_a_sentence_says_why_a_user_waits() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("status", 500)) as receiver,
        sending(obligations, settings(receiver.url)) as delivery,
    ):
        assert delivery.why(1, b"u", "") is None
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: len(obligations.errors()) >= 2)
        why = delivery.why(1, b"u", "status 500") or ""
        assert "failed for this user (status 500)" in why or why.startswith("A call is under way")
        for number in range(10):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(lambda: delivery.outbox.lanes[0].shut)
        waiting = [delivery.why(1, b"u%d" % number, "") or "" for number in range(10)]
        assert any(f"{receiver.url} has taken no calls for 0 s (status 500)" in why for why in waiting)
        delivery.hold(1, b"held", 5)
        assert "billing cutoffs release" in (delivery.why(1, b"held", "") or "")


async def test_what_was_gathered_before_a_newer_cutoff_takes_it_back_from_nobody() -> None:
    """A list of all that is owed waits until it is durable, and what time causes meanwhile does not."""
    obligations = FakeObligations()
    async with receiving() as receiver:
        delivery = obligations.delivery_of(settings(receiver.url))
        older = obligations.exhaust(delivery, b"u")
        obligations.top_up(delivery, b"u")
        newer = obligations.exhaust(delivery, b"u")
        delivery.notify(1, b"u", seq=newer)
        delivery.notify(1, b"u", seq=older)
        delivery.start()
        try:
            await obligations.until(obligations.nothing_owed)
            assert [call.seq for call in receiver.calls] == [newer]
        finally:
            await delivery.close()


async def test_nothing_is_sent_while_another_owner_may_live_and_everything_after() -> None:
    obligations = FakeObligations()
    answers: list[bool] = []
    allowed = False

    def may_act() -> bool:
        answers.append(allowed)
        return allowed

    async with receiving() as receiver:
        delivery = obligations.delivery_of(settings(receiver.url), may_act=may_act)
        delivery.start()
        try:
            obligations.exhaust(delivery, b"u")
            await obligations.until(lambda: len(answers) >= 3)
            assert (receiver.calls, obligations.outcomes(b"u")) == ([], [])
            allowed = True
            await obligations.until(obligations.nothing_owed)
            assert [call.user_id for call in receiver.calls] == ["u"]
        finally:
            await delivery.close()
