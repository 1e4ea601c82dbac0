"""The receiver's side: what is genuine, what is due, and what the reference library makes of the same bytes."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from billing.client import receiver as module
from billing.client.receiver import Call, NotGenuine, Notice, Place, Receiver, wsgi_target
from billing.expirationd.request import GetTemplate, PostTemplate
from billing.ledger.entry import event_id
from billing.signature import parse_secrets, sign
from shards.system.clock import MACHINE_CLOCKS

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLDER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx"
E_NS = 1_700_000_000_123_456_789
NOW_S = 1_700_000_100
URLS = ("http://r/cutoff", "http://r/users/{user_id}/off?zone=3", "http://r/{user_id}")


def sent(
    template: GetTemplate | PostTemplate, user: str, seq: int = 7, more: str = "", at_s: int = NOW_S
) -> tuple[str, dict[str, str], bytes]:
    """(target, headers, body) of a call as it comes off the wire; `more`: behind its event_id."""
    raw = template.request(user.encode(), event_id(user.encode(), seq, E_NS) + more, seq, E_NS, at_s)
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first.split(" ")[1], dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize("kind", [GetTemplate, PostTemplate])
@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("user", ["u1", "üser/1 a.b&c=d", "名:前", "%41"])
def test_what_the_daemon_sends_is_genuine_and_says_everything(kind: Any, url: str, user: str) -> None:
    receiver = Receiver(f"# being changed\n{OLDER}\n{SECRET}\n")
    template = kind(url, parse_secrets(SECRET))
    name = event_id(user.encode(), 7, E_NS)
    assert receiver.call(*sent(template, user), now_s=NOW_S + 300.9) == Call(user, name, 7, E_NS, False)
    restored = receiver.call(*sent(template, user, more=":restore"), now_s=NOW_S - 300)
    assert restored == Call(user, f"{name}:restore", 7, E_NS, True)


@pytest.mark.parametrize("kind", [GetTemplate, PostTemplate])
def test_what_was_changed_or_is_old_or_is_not_signed_is_not_genuine(kind: Any) -> None:
    receiver = Receiver(SECRET)
    target, headers, body = sent(kind("http://r/cutoff", parse_secrets(SECRET)), "u1")
    wrong: list[tuple[str, dict[str, str], bytes, float]] = [
        (target, headers, body, NOW_S + 301),
        (target, headers, body, NOW_S - 301),
        (target, headers | {"webhook-timestamp": str(NOW_S + 1)}, body, NOW_S),
        (target, headers | {"webhook-id": headers["webhook-id"] + ":restore"}, body, NOW_S),
        (target, headers | {"webhook-signature": "v1,"}, body, NOW_S),
        (target, headers | {"webhook-signature": "ключ"}, body, NOW_S),
        (target, {}, body, NOW_S),
        *((target, {k: v for k, v in headers.items() if k != name}, body, NOW_S) for name in headers if "webh" in name),
        (target.replace("u1", "u2"), headers, body.replace(b"u1", b"u2"), NOW_S),
        (target + "&seq=9", headers, body + b" ", NOW_S),
        (*sent(kind("http://r/cutoff", parse_secrets(OLDER)), "u1"), NOW_S),
    ]
    for *parts, now_s in wrong:
        with pytest.raises(NotGenuine):
            receiver.call(*parts, now_s=now_s)  # type: ignore[arg-type]
    assert receiver.call(target, list(headers.items()), body, now_s=NOW_S).seq == 7


def signed(content: bytes, name: str = "u:1:2") -> dict[str, str]:
    signature = sign(parse_secrets(SECRET), name.encode(), NOW_S, content).decode()
    return {"Webhook-Id": name, "Webhook-Timestamp": str(NOW_S), "Webhook-Signature": signature}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"user_id":5,"event_id":"u:1:2","seq":1,"exhausted_at_ns":2}',
        b'{"user_id":"u","event_id":"u:2:2","seq":1,"exhausted_at_ns":2}',
        b'{"user_id":"u","event_id":"u:1:2","seq":1e400,"exhausted_at_ns":2}',
        b'{"user_id":"u","event_id":"u:1:2","seq":[],"exhausted_at_ns":2}',
        b'{"type":"account.debited","timestamp":"2026-11-28T00:00:00Z"}',
    ],
)
def test_what_is_signed_and_something_else_is_no_call_and_no_notice(body: bytes) -> None:
    receiver = Receiver(SECRET)
    with pytest.raises(NotGenuine):
        receiver.call("/cutoff", signed(body), body, now_s=NOW_S)
    with pytest.raises(NotGenuine):
        receiver.notice(signed(body), body, now_s=NOW_S)
    with pytest.raises(NotGenuine):
        receiver.call("/cutoff", signed(b"/cutoff"), now_s=NOW_S)


def test_a_receiver_without_a_secret_is_none() -> None:
    with pytest.raises(ValueError, match="secrets"):
        Receiver("")


def call(user: str, seq: int, is_restore: bool) -> Call:
    return Call(user, f"{user}:{seq}:{E_NS}{':restore' * is_restore}", seq, E_NS, is_restore)


CALLS = st.builds(call, st.sampled_from(["u", "v"]), st.integers(1, 6), st.booleans())


@given(st.lists(CALLS, max_size=40))
def test_whatever_comes_again_or_late_the_newest_state_stays_and_nothing_is_done_twice(came: list[Call]) -> None:
    places: dict[str, Place] = {}
    acted: list[Call] = []
    for call in came:
        receiver = Receiver(SECRET, places)  # a receiver that was started anew in between knows as much
        if receiver.is_due(call):
            acted.append(call)
            receiver.done(call)
        assert not receiver.is_due(call)
        receiver.done(call)
    for user in {call.user_id for call in came}:
        newest = max((call for call in came if call.user_id == user), key=lambda call: (call.seq, call.is_restore))
        of_user = [call for call in acted if call.user_id == user]
        assert of_user[-1] == newest
        assert len(set(of_user)) == len(of_user)
        assert of_user == sorted(of_user, key=lambda call: (call.seq, call.is_restore))


def test_a_daemon_that_was_restored_from_a_backup_is_obeyed_though_its_numbers_begin_earlier() -> None:
    receiver = Receiver(SECRET)
    receiver.done(call("u", 9, False))
    again = Call("u", f"u:4:{E_NS + 1}", 4, E_NS + 1, False)
    assert receiver.is_due(again)
    receiver.done(again)
    restore = again._replace(is_restore=True)
    assert receiver.is_due(restore)
    receiver.done(restore)
    assert not receiver.is_due(again)
    assert not receiver.is_due(call("u", 4, False)), "one of before the restore comes late"
    told = Notice("u:7:account-debited", "account.debited", "2026-11-28T15:00:00.000000000Z", {})
    receiver.done(told)
    assert not receiver.is_due(told)


def test_places_that_an_earlier_version_kept_are_taken_and_go_by_seq_until_the_next_call() -> None:
    places: dict[str, Place] = {"u": (3, False)}
    receiver = Receiver(SECRET, places)
    assert not receiver.is_due(call("u", 3, False))
    assert not receiver.is_due(call("u", 2, False)._replace(exhausted_at_ns=E_NS + 1))
    assert receiver.is_due(call("u", 3, True))
    receiver.done(call("u", 4, False))
    assert places == {"u": (4, False, E_NS)}


def test_what_failed_is_due_again() -> None:
    receiver = Receiver(SECRET)
    assert receiver.is_due(call("u", 1, False))
    assert receiver.is_due(call("u", 1, False)), "nothing was done"


def test_notices_are_known_by_their_event_and_the_oldest_are_forgotten() -> None:
    receiver = Receiver(SECRET)
    notices = [Notice(f"u:{number}:account-debited", "account.debited", "", {}) for number in range(3)]
    most = module.EVENT_IDS_MAX
    for number in range(most):
        receiver.done(Notice(str(number), "", "", {}))
    for notice in notices:
        assert receiver.is_due(notice)
        receiver.done(notice)
        assert not receiver.is_due(notice)
    assert [receiver.is_due(Notice(str(number), "", "", {})) for number in (0, 2, 3, most - 1)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("change", "genuine"),
    [
        ({}, True),
        ({"webhook-id": "another"}, False),
        ({"webhook-timestamp": "1"}, False),
        ({"webhook-signature": "v1,AAAA"}, False),
    ],
)
def test_the_reference_library_thinks_the_same_of_a_notice(change: dict[str, str], genuine: bool) -> None:
    now_s = MACHINE_CLOCKS.wall_ns() // 10**9
    body = json.dumps({"type": "account.debited", "timestamp": "2026-11-28T15:00:00.000000000Z", "data": {"a": "ü"}})
    name = "u:7:account-debited"
    signature = sign(parse_secrets(SECRET), name.encode(), now_s, body.encode()).decode()
    headers = {"webhook-id": name, "webhook-timestamp": str(now_s), "webhook-signature": signature} | change
    receiver = Receiver(SECRET)
    if genuine:
        assert Webhook(SECRET).verify(body, headers) == json.loads(body)
        assert receiver.notice(headers, body.encode(), now_s=now_s) == Notice(
            name, "account.debited", "2026-11-28T15:00:00.000000000Z", {"a": "ü"}
        )
        return
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)
    with pytest.raises(NotGenuine):
        receiver.notice(headers, body.encode(), now_s=now_s)


@given(st.text(min_size=1, max_size=20))
def test_a_target_that_wsgi_took_apart_is_put_together_again(user: str) -> None:
    target = f"/users/{quote(user.replace('/', ''), safe='')}/off?zone=3"
    path, _, query = target.partition("?")
    decoded = unquote(path, encoding="latin-1")
    environ = {"SCRIPT_NAME": "/users", "PATH_INFO": decoded.removeprefix("/users"), "QUERY_STRING": query}
    assert wsgi_target(environ) == target
    assert wsgi_target({"RAW_URI": target, "PATH_INFO": "/other"}) == target
    assert wsgi_target({"PATH_INFO": decoded}) == path
