"""Answers taken apart: whatever comes, and however it is cut into pieces, the status decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.expirationd.answer import HEAD_BYTES_MAX, AnswerReader, Malformed, whole_answer

BODY_BYTES_MAX = 100
Taken = tuple[int, str, bool]  # status, Retry-After, whether the connection can be used again

ANSWERS: list[tuple[bytes, Taken]] = [
    (b"HTTP/1.1 204 No Content\r\n\r\n", (204, "", True)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, "", True)),
    (b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length:2\r\nDate: now\r\n\r\nok", (200, "", True)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, close\r\n\r\nok", (200, "", False)),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, "", False)),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\nok", (200, "", True)),
    (b"HTTP/1.1 200 OK\r\n\r\nuntil it ends", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", (200, "", True)),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nTrailer: z\r\n\r\n", (200, "", True)),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokX", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40, (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n" + b"x" * 101, (200, "", False)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", (200, "", False)),
    (b'HTTP/1.1 204 No Content\r\nContent-Length: 12\r\n\r\n{"ok": true}', (204, "", False)),
    (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (204, "", False)),
    (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", (204, "", True)),
    (b"HTTP/1.1 204 No Content\r\nServer: x\r\nDate: now\r\nConnection: keep-alive\r\n\r\n", (204, "", True)),
    (b"HTTP/1.1 204 No Content\r\nServer: x\r\nConnection: keep-alive, close\r\n\r\n", (204, "", False)),
    (b"HTTP/1.1 204 No Content\r\nServer: x\r\nConnection: close\r\n\r\n", (204, "", False)),
    (b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\nmore", (204, "", False)),
    (b"HTTP/1.1 204 No Content\r\nRetry-After: 7\r\n\r\n", (204, "7", True)),
    (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", (200, "", True)),
    (b"HTTP/1.0 204 No Content\r\n\r\n", (204, "", False)),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (304, "", True)),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", (101, "", False)),
    (b"HTTP/1.1 503 Busy\r\nRetry-After:  120 \r\nContent-Length: 0\r\n\r\n", (503, "120", True)),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", (200, "", True)),
    (b"\r\n\r\nHTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, "", True)),
    (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", (200, "", True)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 No\r\n\r\n", (200, "", False)),
]


def read_in(pieces: list[bytes]) -> Taken:
    reader = whole_answer(pieces[0], BODY_BYTES_MAX) if len(pieces) == 1 else None
    if reader is None:
        reader = AnswerReader(BODY_BYTES_MAX)
        for piece in pieces:
            reader.feed(piece)
    assert reader.head_done
    return reader.status, reader.retry_after, reader.done and reader.reusable


@pytest.mark.parametrize(("answer", "expected"), ANSWERS, ids=range(len(ANSWERS)))
def test_in_one_piece_and_by_the_byte(answer: bytes, expected: Taken) -> None:
    assert read_in([answer]) == expected
    assert read_in([answer[at : at + 1] for at in range(len(answer))]) == expected
    assert read_in([b"", answer]) == expected, "the common answers are known by their bytes, and come to the same"


def test_the_common_answers_are_known_by_their_bytes_unless_the_body_is_too_long() -> None:
    known = [answer for answer, _ in ANSWERS if whole_answer(answer, BODY_BYTES_MAX) is not None]
    assert known[:3] == [answer for answer, _ in ANSWERS[:3]]
    assert all(whole_answer(answer, BODY_BYTES_MAX) is whole_answer(answer, BODY_BYTES_MAX) for answer in known)
    assert whole_answer(ANSWERS[1][0], 1) is None
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000
    assert whole_answer(long, 2000) is not whole_answer(long, 2000), "not kept"


@given(st.sampled_from(ANSWERS), st.sets(st.integers(0, 120), max_size=6))
def test_however_it_is_cut_into_pieces(case: tuple[bytes, Taken], cuts: set[int]) -> None:
    answer, expected = case
    ends = [*sorted(cut for cut in cuts if cut < len(answer)), len(answer)]
    assert read_in([answer[a:b] for a, b in zip([0, *ends], ends, strict=False)]) == expected


@given(st.integers(200, 599), st.binary(max_size=200), st.lists(st.integers(0, 220), max_size=4))
def test_nothing_behind_the_status_line_changes_the_status(status: int, rest: bytes, cuts: list[int]) -> None:
    answer = b"HTTP/1.1 %d X\r\n%b" % (status, rest)
    reader = AnswerReader(BODY_BYTES_MAX)
    ends = [*sorted(cuts), len(answer)]
    for a, b in zip([0, *ends], ends, strict=False):
        reader.feed(answer[a:b])
    assert reader.status == status


@given(st.binary(min_size=1, max_size=300))
def test_whatever_comes_it_is_an_answer_or_malformed(data: bytes) -> None:
    reader = AnswerReader(BODY_BYTES_MAX)
    try:
        reader.feed(data)
    except Malformed:
        assert reader.status == 0
    else:
        assert reader.status == 0 or data.lstrip(b"\r\n").startswith(b"HTTP/1.")


@pytest.mark.parametrize(
    "data",
    [
        *[
            b"220 mail.example ESMTP\r\n",
            b"\x16\x03\x01",
            b"HTTP/2 200\r\n",
            b"HTTP/1.1 2x0 OK\r\n",
            b"http/1.1 200 OK\r\n",
        ],
        *[
            b"HTTP/1.1  200 OK\r\n",
            b"HTTP/1.1 200OK\r\n",
            b"HTTP/1.1 099 X\r\n",
            b"HTTP/1.1 20\r\n",
            b"HTTP/1.12 200\r\n",
        ],
    ],
)
def test_what_is_no_status_line_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        AnswerReader(BODY_BYTES_MAX).feed(data)


def test_headers_of_any_length_up_to_the_limit_and_beyond_it_only_the_connection_is_lost() -> None:
    long = b"HTTP/1.1 204 X\r\nA: " + b"y" * (HEAD_BYTES_MAX - 100) + b"\r\n\r\n"
    assert read_in([long]) == (204, "", True)
    endless = AnswerReader(BODY_BYTES_MAX)
    endless.feed(b"HTTP/1.1 204 X\r\n")
    fed = 0
    while not endless.head_done:
        endless.feed(b"A: b\r\n" * 1000)
        fed += 6000
        assert fed <= HEAD_BYTES_MAX + 6000
    assert (endless.status, endless.reusable) == (204, False)


def test_informational_answers_without_end_are_malformed() -> None:
    reader = AnswerReader(BODY_BYTES_MAX)
    informational = b"HTTP/1.1 100 Continue\r\n\r\n"
    for _ in range(HEAD_BYTES_MAX // len(informational)):
        reader.feed(informational)
    with pytest.raises(Malformed):
        reader.feed(informational)


def test_a_long_header_by_the_byte_is_not_searched_again_for_each() -> None:
    """A quarter of a megabyte in single bytes takes as many steps, not their square."""
    reader = AnswerReader(BODY_BYTES_MAX)
    reader.feed(b"HTTP/1.1 204 X\r\nA: ")
    for _ in range(200_000):
        reader.feed(b"y")
    reader.feed(b"\r\n\r\n")
    assert (reader.status, reader.done, reader.reusable) == (204, True, True)
