"""The bytes of segments, batches and the manifest: pinned, both directions from one list, and every way to be wrong."""

from __future__ import annotations

import re

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from shards.journal.file import record
from shards.journal.file.record import (
    BARRIER,
    BLOCK_BYTES,
    HEADER_BYTES,
    OVERHEAD_BYTES,
    Batch,
    Malformed,
    Manifest,
    SegmentHeader,
    aligned,
    claimed_end,
    is_proof,
    later_proof,
    pack_batch,
    pack_block,
    pack_manifest,
    salt_seed,
    unpack_block,
    unpack_manifest,
    used_end,
    walk,
)

BOOT = bytes(range(16))
HEADER = SegmentHeader(1, 7, 0x1122334455667788, 1, 1, 8192, 0, 512, 1, 1_727_000_000_000_002_048, 0, BOOT, b"worker-7")
EXAMPLE_BLOCK = (
    "4257414c0100010107000000887766554433221101000000000000000100000000000000002000000000000000000000"
    "000200000100000000000000008819975989f7170000000000000000000102030405060708090a0b0c0d0e0f776f726b"
    "65722d37" + "00" * 68
)
EXAMPLE_BATCH = (
    "b14241542956bcf04cbb719a0500000001000000000000000000000000000000000000000000000001000000018819975989f717"
    "68656c6c6fb1454e44"
)
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
HEADERS = st.builds(
    SegmentHeader, st.integers(0, 1), U32, U64, U64, U64, U64, U32, U32, U64, I64, I64,
    st.binary(min_size=16, max_size=16),
    st.text(max_size=12).map(str.encode).filter(lambda owner: not owner.endswith(b"\0")),
)  # fmt: skip
MANIFESTS = st.builds(Manifest, st.integers(0, 1), U32, U32, U64, U64, U64, U64, U32)


def segment(*payloads: bytes, header: SegmentHeader = HEADER, barriers: frozenset[int] = frozenset()) -> bytes:
    """A whole segment file with these payloads, and a barrier behind the positions given."""
    data = pack_block(header)
    chain, seed = header.prev_chain, salt_seed(header.salt)
    for position, payload in enumerate(payloads, header.first_position):
        chain, batch = pack_batch(seed, header.segment_id, chain, position, 0, position - 1, 5, payload)
        data = data.ljust(aligned(len(data), header.align), b"\0") + batch
        if position in barriers:
            _, batch = pack_batch(seed, header.segment_id, chain, position, BARRIER, position, 5, b"")
            data = data.ljust(aligned(len(data), header.align), b"\0") + batch
    return data.ljust(header.length, b"\0")


# -- pinned ----------------------------------------------------------------------------------------------------------


def test_the_worked_example_of_the_segment_is_these_bytes() -> None:
    block = pack_block(HEADER)
    assert block[:168].hex() == EXAMPLE_BLOCK
    assert set(block[168:4092]) == {0}
    assert unpack_block(block) == HEADER


def test_the_worked_example_of_the_batch_is_these_bytes() -> None:
    chain, data = pack_batch(salt_seed(HEADER.salt), 1, 0, 1, 0, 0, 1_727_000_000_000_002_049, b"hello")
    assert data.hex() == EXAMPLE_BATCH
    assert chain == 0x9A71BB4C


def test_the_docstring_shows_the_same_bytes() -> None:
    text = record.__doc__ or ""
    lines = re.findall(r"^    ([0-9a-f ]+?)(?:  |…)", text, re.MULTILINE)
    example = b"".join(bytes.fromhex(line) for line in lines)
    block, batch = pack_block(HEADER), bytes.fromhex(EXAMPLE_BATCH)
    assert example == block[:101] + batch
    assert block[-4:].hex() in text


def test_the_manifest_is_these_bytes() -> None:
    manifest = Manifest(1, 7, 0x01020304, 3, 9, 101, 150, 0xA0B0C0D0)
    assert pack_manifest(manifest)[:-4].hex() == (
        "424d414e01000100070000000403020103000000000000000900000000000000650000000000000096000000000000"
        "00d0c0b0a0" + "00" * 16
    )
    assert unpack_manifest(pack_manifest(manifest)) == manifest


# -- both directions -------------------------------------------------------------------------------------------------


@given(HEADERS)
def test_a_block_comes_back(header: SegmentHeader) -> None:
    assert unpack_block(pack_block(header)) == header


@given(MANIFESTS)
def test_a_manifest_comes_back(manifest: Manifest) -> None:
    assert unpack_manifest(pack_manifest(manifest)) == manifest


@given(
    st.lists(st.binary(min_size=1, max_size=900), max_size=6),
    st.sampled_from([8, 512, 4096]),
    st.integers(1, 2**40),
    st.integers(0, 2**32 - 1),
)
def test_batches_come_back(payloads: list[bytes], align: int, first: int, chain: int) -> None:
    header = HEADER._replace(align=align, first_position=first, prev_chain=chain, length=65536)
    data = segment(*payloads, header=header, barriers=frozenset({first, first + 2}))
    batches = [batch for batch in walk(data, header) if not batch.flags & BARRIER]
    assert [data[batch.payload_at : batch.payload_end] for batch in batches] == payloads
    assert [batch.position for batch in batches] == list(range(first, first + len(payloads)))
    assert all(batch.offset % align == 0 for batch in batches)
    assert all(map(is_proof, walk(data, header)))


# -- wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 4095])
def test_a_block_that_is_short_is_malformed(length: int) -> None:
    with pytest.raises(Malformed, match=str(length)):
        unpack_block(pack_block(HEADER)[:length])


def test_a_block_of_another_version_is_malformed_even_if_its_checksum_is_right() -> None:
    block = bytearray(pack_block(HEADER)[:-4])
    block[4] = 2
    with pytest.raises(Malformed, match="format 2"):
        unpack_block(bytes(block) + crc32c(bytes(block)).to_bytes(4, "little"))


@pytest.mark.parametrize("length", [0, 71, 73])
def test_a_manifest_of_another_length_is_malformed(length: int) -> None:
    with pytest.raises(Malformed, match=str(length)):
        unpack_manifest(pack_manifest(Manifest(1, 7, 0, 3, 9, 101, 150, 0)).ljust(100, b"\0")[:length])


def test_every_flip_in_block_and_manifest_is_malformed() -> None:
    manifest = pack_manifest(Manifest(0, 7, 1, 3, 9, 1, 0, 0))
    for data, unpack in ((pack_block(HEADER), unpack_block), (manifest, unpack_manifest)):
        for bit in range(len(data) * 8):
            broken = bytearray(data)
            broken[bit >> 3] ^= 1 << (bit & 7)
            with pytest.raises(Malformed):
                unpack(bytes(broken))


def test_zeros_are_no_batch() -> None:
    assert list(walk(bytes(8192), HEADER)) == []


def test_a_batch_of_another_segment_salt_chain_or_position_is_none() -> None:
    data = segment(b"hello", b"world")
    assert len(list(walk(data, HEADER))) == 2
    for header_unlike in (
        HEADER._replace(segment_id=2),
        HEADER._replace(salt=1),
        HEADER._replace(prev_chain=1),
        HEADER._replace(first_position=2),
    ):
        assert list(walk(data, header_unlike)) == []


def test_batches_that_changed_places_are_none() -> None:
    data = segment(b"one!!", b"two!!", b"three")
    size = HEADER_BYTES + 5 + 4
    at = [BLOCK_BYTES, BLOCK_BYTES + 512, BLOCK_BYTES + 1024]
    swapped = bytearray(data)
    swapped[at[1] : at[1] + size] = data[at[2] : at[2] + size]
    swapped[at[2] : at[2] + size] = data[at[1] : at[1] + size]
    assert [batch.position for batch in walk(bytes(swapped), HEADER)] == [1]
    repeated = bytearray(data)
    repeated[at[1] : at[1] + size] = data[at[0] : at[0] + size]
    assert [batch.position for batch in walk(bytes(repeated), HEADER)] == [1]


def test_a_length_is_not_believed_before_the_header_is() -> None:
    data = bytearray(segment(b"hello"))
    data[BLOCK_BYTES + 12 : BLOCK_BYTES + 16] = b"\xff\xff\xff\x7f"
    assert list(walk(bytes(data), HEADER)) == []
    assert claimed_end(bytes(data), HEADER, BLOCK_BYTES) == -1


def test_a_payload_cannot_pass_for_a_header_without_the_salt() -> None:
    unsalted = HEADER._replace(salt=HEADER.salt ^ 1)
    imitation = segment(b"a", b"b", header=unsalted)[BLOCK_BYTES : BLOCK_BYTES + 1024]
    data = segment(imitation)
    assert later_proof(data, HEADER, BLOCK_BYTES) == -1
    assert later_proof(data, unsalted, BLOCK_BYTES) >= 0


def test_a_later_proof_is_found_at_any_byte_and_only_if_it_proves() -> None:
    seed = salt_seed(HEADER.salt)
    proof = pack_batch(seed, 1, 0, 9, 0, 8, 5, b"x")[1]
    no_proof = pack_batch(seed, 1, 0, 9, 0, 7, 5, b"x")[1]
    barrier = pack_batch(seed, 1, 0, 9, BARRIER, 9, 5, b"")[1]
    for offset in (4097, 5000, 8192 - OVERHEAD_BYTES - 1):
        for batch, expected in ((proof, offset), (no_proof, -1), (barrier, offset)):
            data = bytes(offset) + batch
            assert later_proof(data.ljust(8192, b"\0"), HEADER, 4096) == expected
    assert later_proof((bytes(8160) + proof)[:8192], HEADER, 4096) == -1


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_the_used_end_is_behind_the_last_byte_that_is_not_zero(data: bytes, start: int) -> None:
    start = min(start, len(data))
    assert used_end(data, start) == start + len(data[start:].rstrip(b"\0"))


def test_the_used_end_of_much_is_found() -> None:
    data = bytearray(300_000)
    assert used_end(bytes(data), 10) == 10
    for last_used in (10, 65_535, 65_536, 200_000, 299_999):
        data[last_used] = 1
        assert used_end(bytes(data), 10) == last_used + 1


def test_a_whole_batch_never_ends_in_a_zero() -> None:
    for payload in (b"\0", bytes(500)):
        batch = pack_batch(0, 1, 0, 1, 0, 0, 0, payload)[1]
        assert used_end(batch, 0) == len(batch)


def test_a_batch_knows_where_it_ends() -> None:
    data = segment(b"hello")
    (batch,) = walk(data, HEADER)
    assert batch == Batch(4096, 1, 0, 0, 5, 0, batch.chain, 4148, 4153)
    assert batch.end == claimed_end(data, HEADER, 4096) == 4157
