"""Cutoff classes with URLs of their own: where their calls go, and that no class waits for the endpoint of another."""

from billing.expirationd.delivery import OfClass
from billing.signature import parse_secrets
from billing.trial.faults import Fault
from shards.system.clock import MACHINE_CLOCKS
from tests.expirationd.fake_obligations import LONG_S, MS, QUICK, FakeObligations, receiving, sending, settings

SECRETS = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


async def test_each_class_is_called_at_its_own_urls_signed_over_their_path_and_query() -> None:
    obligations = FakeObligations()
    obligations.classes = {b"g": "gold", b"s": "silver", b"n": "nowhere"}
    async with receiving(secrets=SECRETS) as receiver:
        url = receiver.url
        gold = OfClass("gold", f"{url}/gold/off?zone=3", f"{url}/gold/on")
        classes = (gold, OfClass("silver", "", f"{url}/silver/on"))
        chosen = settings(f"{url}/off", restore_url=f"{url}/on", secrets=SECRETS, classes=classes)
        async with sending(obligations, chosen) as delivery:
            for user in (b"u", b"g", b"s", b"n"):
                obligations.exhaust(delivery, user)
            await obligations.until(obligations.nothing_owed)
            for user in (b"u", b"g", b"s", b"n"):
                obligations.cutoffs[user] = [next(seq for who, seq in obligations.started if who == user)]
                obligations.top_up(delivery, user)
            await obligations.until(obligations.nothing_owed)
        called = sorted((call.user_id, call.path, call.answered) for call in receiver.calls)
        assert called == [
            ("g", "/gold/off", "200"), ("g", "/gold/on", "200"),
            ("n", "/off", "200"), ("n", "/on", "200"),
            ("s", "/off", "200"), ("s", "/silver/on", "200"),
            ("u", "/off", "200"), ("u", "/on", "200"),
        ]  # fmt: skip
        (off,) = (call.target for call in receiver.calls if call.path == "/gold/off")
        assert off.startswith("/gold/off?zone=3&user_id=g&event_id=g-")


async def test_an_endpoint_that_is_down_holds_up_its_own_class_alone_even_beside_another_on_one_server() -> None:
    obligations = FakeObligations()
    obligations.classes = {b"g%d" % number: "gold" for number in range(50)}
    async with receiving(fault=Fault("status", 500)) as dead, receiving() as well:
        chosen = settings(f"{dead.url}/off", classes=(OfClass("gold", f"{well.url}/off", None),))
        async with sending(obligations, chosen) as delivery:
            for number in range(50):
                obligations.exhaust(delivery, b"u%d" % number)
            await obligations.until(lambda: delivery.outbox.lanes[0].shut)
            for user in obligations.classes:
                obligations.exhaust(delivery, user)
            await obligations.until(lambda: not any(obligations.cutoffs.get(user) for user in obligations.classes))
            assert len(well.calls) == 50
            assert [outage["endpoint"] for outage in delivery.outages.plain()] == [dead.url]
            assert not delivery.outbox.lanes[1].shut
            assert len(delivery.outbox) == 50, "the others wait for their own endpoint"
    one_server = settings(f"{dead.url}/off", classes=(OfClass("gold", f"{dead.url}/gold", None),))
    async with sending(FakeObligations(), one_server) as delivery:
        assert len(delivery.outbox.lanes) == 2


async def test_calls_that_hang_are_ended_when_their_own_endpoint_says_and_not_later_for_a_slower_one() -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault("hang")) as slow, receiving(fault=Fault("hang")) as quick:
        classes = (OfClass("gold", f"{quick.url}/off", None),)
        pace = QUICK._replace(hang_min_ns=20 * MS)
        chosen = settings(f"{slow.url}/off", classes=classes, concurrency=2, pace=pace)
        async with sending(obligations, chosen) as delivery:
            now_ns = MACHINE_CLOCKS.wall_ns()
            delivery.outbox.lanes[0].success(now_ns, int(LONG_S * 1e9))  # so long its calls usually take
            for user in (b"a", b"b", b"c"):
                obligations.exhaust(delivery, user)
            await obligations.until(lambda: len(obligations.started) == 2)
            obligations.classes = {user: "gold" for user in (b"x", b"y", b"z")}
            for user in obligations.classes:
                obligations.exhaust(delivery, user)
            await obligations.until(lambda: obligations.outcomes(b"z") == ["started"])
            assert obligations.outcomes(b"a") == obligations.outcomes(b"b") == ["started"]
            assert obligations.outcomes(b"y") == ["started", "failed"]


async def test_who_changes_class_while_a_call_is_owed_is_called_where_the_new_class_says() -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault("status", 500)) as dead, receiving() as well:
        chosen = settings(f"{dead.url}/off", classes=(OfClass("gold", f"{well.url}/off", None),))
        async with sending(obligations, chosen) as delivery:
            for number in range(10):
                obligations.exhaust(delivery, b"u%d" % number)
            await obligations.until(lambda: delivery.outbox.lanes[0].shut)
            obligations.classes[b"u5"] = "gold"
            delivery.notify(1, b"u5", class_name="gold")
            await obligations.until(lambda: not obligations.cutoffs[b"u5"])
            assert [call.user_id for call in well.calls] == ["u5"]


async def test_a_class_without_a_restore_url_has_no_restores() -> None:
    async with receiving() as receiver, sending(FakeObligations(), settings(receiver.url)) as delivery:
        assert delivery.calls("cutoff", "gold")
        assert not delivery.calls("restore", "gold")
    async with receiving() as receiver:
        chosen = settings(receiver.url, restore_url=receiver.url, classes=(OfClass("gold", "", ""),))
        async with sending(FakeObligations(), chosen) as delivery:
            assert delivery.calls("restore", "")
            assert delivery.calls("cutoff", "gold")
            assert not delivery.calls("restore", "gold"), "those of the others are not for it"


async def test_calls_are_counted_by_kind_also_where_only_a_class_has_a_url_for_it() -> None:
    obligations = FakeObligations()
    obligations.classes = {b"g": "gold"}
    async with receiving() as receiver:
        gold = OfClass("gold", f"{receiver.url}/gold/off", f"{receiver.url}/gold/on")
        async with sending(obligations, settings(f"{receiver.url}/off", classes=(gold,))) as delivery:
            for user in (b"g", b"u"):
                obligations.exhaust(delivery, user)
            await obligations.until(obligations.nothing_owed)
            obligations.cutoffs[b"g"] = [next(seq for user, seq in obligations.started if user == b"g")]
            obligations.top_up(delivery, b"g")
            await obligations.until(obligations.nothing_owed)
            figures = delivery.figures()
            assert figures["calls_started"] == figures["calls_delivered"] == {"cutoff": 2, "restore": 1}
            assert figures["calls_failed"] == {"cutoff": 0, "restore": 0}
