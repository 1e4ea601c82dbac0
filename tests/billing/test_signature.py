"""Signatures: the published vector, rotation, and nothing accepted that is not right."""

import pytest

from billing.signature import parse_secrets, sign, verify

TEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="
EVENT = b"u1-3-1700000000000000000"
TARGET = b"/cutoff?user_id=u1"
NOW_S = 1_700_000_000


def test_the_vector_that_standard_webhooks_publishes() -> None:
    signature = sign(parse_secrets(TEXT), b"msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_worked_example_of_the_docstring() -> None:
    assert sign(parse_secrets(TEXT), EVENT, NOW_S, TARGET) == b"v1,NwnZs2z1XCFVoZc40fIqdEzpnF6YCV13S2/a+GOYfC4="


def test_while_a_secret_is_changed_both_old_and_new_receivers_accept() -> None:
    old, new = parse_secrets(TEXT), parse_secrets(OTHER)
    both = parse_secrets(f"# the new one first\n{OTHER}\n\n{TEXT}\n")
    signature = sign(both, EVENT, NOW_S, TARGET)
    assert len(signature.split(b" ")) == 2
    for receiver in (old, new, both):
        assert verify(receiver, EVENT, b"%d" % NOW_S, signature, TARGET, NOW_S)


def test_the_prefix_may_be_missing() -> None:
    assert parse_secrets(TEXT.removeprefix("whsec_")) == parse_secrets(TEXT)


@pytest.mark.parametrize(
    ("event", "timestamp", "signature", "target", "now_s"),
    [
        (b"u2-3-1700000000000000000", b"1700000000", None, TARGET, NOW_S),
        (EVENT, b"1700000001", None, TARGET, NOW_S),
        (EVENT, b"1700000000", None, b"/cutoff?user_id=u2", NOW_S),
        (EVENT, b"1700000000", None, TARGET, NOW_S + 301),
        (EVENT, b"1700000000", None, TARGET, NOW_S - 301),
        (EVENT, b"", None, TARGET, NOW_S),
        (EVENT, b"1.7e9", None, TARGET, NOW_S),
        (EVENT, b"9" * 5000, None, TARGET, NOW_S),
        (EVENT, b"1700000000", b"", TARGET, NOW_S),
        (EVENT, b"1700000000", b"v1,", TARGET, NOW_S),
        (EVENT, b"1700000000", b"v1a,NwnZs2z1XCFVoZc40fIqdEzpnF6YCV13S2/a+GOYfC4=", TARGET, NOW_S),
        (EVENT, b"1700000000", b"\xff\xfe v1,\xff", TARGET, NOW_S),
    ],
)
def test_what_is_not_right_is_refused(
    event: bytes, timestamp: bytes, signature: bytes | None, target: bytes, now_s: int
) -> None:
    secrets = parse_secrets(TEXT)
    sent_signature = sign(secrets, EVENT, NOW_S, TARGET) if signature is None else signature
    assert not verify(secrets, event, timestamp, sent_signature, target, now_s)


def test_signatures_of_other_versions_beside_a_right_one_do_no_harm() -> None:
    secrets = parse_secrets(TEXT)
    signature = b"v1a,unknown v2,unknown " + sign(secrets, EVENT, NOW_S, TARGET)
    assert verify(secrets, EVENT, b"1700000000", signature, TARGET, NOW_S + 299)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected 1 to 2 secrets"),
        ("# nothing\n", "expected 1 to 2 secrets"),
        (f"{TEXT}\n{OTHER}\n{TEXT}", "expected 1 to 2 secrets, one a line, got 3"),
        ("whsec_!!!", "line 1: expected base64"),
        (f"{TEXT}\nnot base64", "line 2: expected base64"),
        ("whsec_c2hvcnQ=", "line 1: expected 24 to 64 bytes in base64, got 5"),
    ],
)
def test_a_bad_secrets_file_is_told_without_its_content(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as raised:
        parse_secrets(text)
    assert "MfKQ" not in str(raised.value)
    assert "c2hv" not in str(raised.value)
