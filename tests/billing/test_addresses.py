"""Addresses in the configuration: what may be listened on, and which URLs a user id may be put into."""

from __future__ import annotations

import pytest

from billing.addresses import Listen, check_listen, check_url, parse_listen


@pytest.mark.parametrize(
    ("text", "listen", "loopback"),
    [
        ("127.0.0.1:3311", Listen("127.0.0.1", 3311), True),
        ("localhost:0", Listen("localhost", 0), True),
        ("[::1]:65535", Listen("::1", 65535), True),
        ("0.0.0.0:80", Listen("0.0.0.0", 80), False),
        ("[::]:80", Listen("::", 80), False),
        ("192.168.0.1:80", Listen("192.168.0.1", 80), False),
        ("billing.example.org:80", Listen("billing.example.org", 80), False),
        ("localhost.example.org:80", Listen("localhost.example.org", 80), False),
    ],
)
def test_addresses_to_listen_on(text: str, listen: object, loopback: bool) -> None:
    assert parse_listen(text) == listen
    assert listen.loopback is loopback
    assert check_listen(text) == text


@pytest.mark.parametrize(
    "text", [":80", "host", "host:", "host:x", "host:65536", "a:b:1", "[::1]", "h h:1", "h:-1", "h:1\n"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_listen(text)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:8080/cutoff?user_id={user_id}",
        "https://cloud.example.org/users/{user_id}/off",
        "http://[::1]:1/",
        "http://localhost",
        "http://h/?a=1&b=%20",
        "http://h/{user_id}?u={user_id}",
    ],
)
def test_urls_that_can_be_called(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "cutoff",
        "//h/",
        "ftp://h/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://h:0/",
        "http://h:99999/",
        "http://user:password@h/",
        "http://user@h/",
        "http://h/#fragment",
        "http://h/#",
        "http://{user_id}/",
        "http://{user_id}.example.org/",
        "http://h:{user_id}/",
        "http://h/{user}",
        "http://h/{user_id",
        "http://h/{}",
        "http://h/a b",
        "http://h/\n",
        "http://h/\x7f",
        "http://h\\@other/",
        "http://ünïcode/",
        "http://cloud..example/",
        "https://.example/",
        f"http://{'x' * 64}.example/",
        "http://[::1/",
        " http://h/",
    ],
)
def test_urls_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_url(url)
