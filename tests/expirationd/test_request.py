"""The bytes of a cutoff: every user id arrives as it was, and none can break out of its place."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.expirationd.request import GetTemplate
from billing.signature import parse_secrets, verify

SECRETS = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
E = 1_700_000_000_000_000_000


def taken_apart(request: bytes) -> tuple[str, dict[str, str]]:
    assert request.endswith(b"\r\n\r\n")
    assert request.count(b"\r\n\r\n") == 1
    lines = request.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = lines[0].split(" ")
    assert (method, version) == ("GET", "HTTP/1.1")
    headers = [line.split(": ", 1) for line in lines[1:]]
    assert len({name for name, _ in headers}) == len(headers)
    return target, {name: value for name, value in headers}


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("http://h/off?user={user_id}", "http://h", "/off?user=u1&"),
        ("http://h/off", "http://h", "/off?user_id=u1&"),
        ("http://h", "http://h", "/?user_id=u1&"),
        ("http://h?", "http://h", "/?user_id=u1&"),
        ("http://h/?zone=3", "http://h", "/?zone=3&user_id=u1&"),
        ("https://H:443/users/{user_id}/off", "https://h", "/users/u1/off?"),
        ("https://h:80/{user_id}?u={user_id}", "https://h:80", "/u1?u=u1&"),
        ("http://[::1]:8080/x", "http://[::1]:8080", "/x?user_id=u1&"),
        ("http://h:80/%7Bx%7D", "http://h", "/%7Bx%7D?user_id=u1&"),
    ],
)
def test_where_the_user_id_goes(url: str, origin: str, target: str) -> None:
    template = GetTemplate(url)
    assert template.origin == origin
    got, headers = taken_apart(template.request(b"u1", "u1-3-5", 3, 5, 1))
    assert got == target + "event_id=u1-3-5&seq=3&exhausted_at_ns=5"
    assert headers == {
        "Host": origin.split("//")[1],
        "User-Agent": "billing",
        "Accept": "*/*",
        "Cache-Control": "no-store",
        "webhook-id": "u1-3-5",
        "webhook-timestamp": "1",
    }


@given(user=st.text(min_size=1, max_size=40), event=st.text(min_size=1, max_size=60))
def test_any_user_id_arrives_as_it_was(user: str, event: str) -> None:
    template = GetTemplate("http://h/users/{user_id}/off?zone=3&u={user_id}", SECRETS)
    target, headers = taken_apart(template.request(user.encode(errors="replace"), event, 3, E, 1_700_000_000))
    parts = urlsplit(target)
    assert parts.path.count("/") == 3
    assert parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) == [
        ("zone", "3"),
        ("u", user.encode(errors="replace").decode()),
        ("event_id", event.encode(errors="replace").decode()),
        ("seq", "3"),
        ("exhausted_at_ns", str(E)),
    ]
    assert verify(
        SECRETS,
        headers["webhook-id"].encode(),
        headers["webhook-timestamp"].encode(),
        headers["webhook-signature"].encode(),
        target.encode(),
        1_700_000_000,
    )


@pytest.mark.parametrize("user", ["a&seq=9", "a b", "a\r\nX: y", "../..", "ü", "%41", "a#b", "a?b", "a+b", "a/b", "\0"])
def test_hostile_user_ids(user: str) -> None:
    request = GetTemplate("http://h/off?u={user_id}").request(user.encode(), f"{user}-1-2", 1, 2, 3)
    target, headers = taken_apart(request)
    assert dict(parse_qsl(urlsplit(target).query, strict_parsing=True)) == {
        "u": user,
        "event_id": f"{user}-1-2",
        "seq": "1",
        "exhausted_at_ns": "2",
    }
    assert headers["webhook-id"].isprintable()


@pytest.mark.parametrize(
    "url", ["", "ftp://h/", "http://", "http://u:p@h/", "http://h/#x", "http://h/\n", "http://{user_id}/", "h", "//h/x"]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        GetTemplate(url)


@given(st.text(min_size=1, max_size=40).filter(lambda text: "\0" not in text), st.integers(1, 2**31))
def test_what_is_prepared_is_sent_as_if_it_had_not_been_and_is_forgotten_two_turns_on(user: str, second: int) -> None:
    call = (user.encode(errors="replace"), f"{user}-3-5", 3, 5)
    template, plain = GetTemplate("http://h/off", SECRETS), GetTemplate("http://h/off", SECRETS)
    template.prepare(*call)
    template.prepare(*call)
    template.turn()
    assert template.request(*call, second) == template.request(*call, second) == plain.request(*call, second)
    assert template.found_prepared == 1
    template.prepare(*call)
    template.turn()
    template.turn()
    assert template.request(*call, second) == plain.request(*call, second)
    assert template.found_prepared == 1
