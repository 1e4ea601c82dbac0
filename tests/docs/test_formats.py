"""docs/architecture.md: its worked bytes are those that the code writes, its map names every package, and its table of
formats names modules.
"""

from __future__ import annotations

import re

from billing.ledger import commands as ops
from billing.ledger.ledger import Ledger, Rules
from shards.batch import ENTRY, ENVELOPE, join_batch
from shards.journal.file.record import END, FIRST_CHAIN, HEADER_BYTES, pack_batch, salt_seed
from tests.docs.pages import REPOSITORY, blocks

PAGE = REPOSITORY / "docs" / "architecture.md"
SALT = 0x1122334455667788  # of the segment; that of the page is not told, since only the header's checksum shows it
BUCKET = 477


def shown() -> tuple[bytes, str]:
    """The bytes of the page, and what it says beside them."""
    (text,) = [block.text for block in blocks(PAGE) if r"\xb1BAT" in block.text]
    lines = [re.fullmatch(r"((?:[0-9a-f]+ ?)+) {2,}(.+)", line) for line in text.splitlines()]
    assert all(lines)
    return bytes.fromhex("".join(line[1] for line in lines if line)), "\n".join(line[2] for line in lines if line)


def test_the_batch_of_the_page_is_what_a_shard_writes() -> None:
    raw, sentences = shown()
    instant = re.search(r"written at (\d+) ns", sentences)
    assert instant is not None
    at_ns = int(instant[1])
    ledger = Ledger(Rules(False, 10, False), lambda _, due_ns: due_ns)
    ledger.create(BUCKET)
    ledger.wake(BUCKET)
    ledger.apply(BUCKET, at_ns, (ops.TOP_UP, b"1", 5 * 10**9, 0, 0, b"", b"invoice-17", b"", b"", b"ops"))
    payload = join_batch([], ledger.records, {BUCKET: ENVELOPE.pack(ENTRY, BUCKET, 1)})
    chain, batch = pack_batch(salt_seed(SALT), 1, FIRST_CHAIN, 1, 0, 0, at_ns, payload)
    assert raw == batch
    assert raw[8:12] == chain.to_bytes(4, "little")
    assert f"{len(raw) - HEADER_BYTES - len(END)} bytes of payload" in sentences


def test_the_modules_of_the_table_are_there() -> None:
    named = re.findall(r"`((?:billing|shards)/[a-z_/.]+)`", PAGE.read_text().partition("\n## Formats\n")[2])
    assert len(named) >= 7
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def mapped() -> tuple[set[str], set[str]]:
    """The folders and modules at the head of the map's lines, and the modules named on the lines below one of these."""
    heads: list[str] = []
    below = set()
    for line in PAGE.read_text().partition("```\n")[2].partition("```")[0].splitlines():
        *names, _ = re.split(" {2,}", line.strip())
        if not line.startswith(" "):
            heads += names
        elif not line.startswith(" " * 8):
            below |= {heads[-1] + name for name in names if name != "…"}
    return set(heads), below


def test_the_map_names_every_package() -> None:
    heads, below = mapped()
    there = [
        *(REPOSITORY.glob("billing/*/__init__.py")),
        *(REPOSITORY.glob("billing/*.py")),
        *(REPOSITORY.glob("shards/*/__init__.py")),
    ]
    names = {
        f"{path.parent.relative_to(REPOSITORY)}/" if path.stem == "__init__" else str(path.relative_to(REPOSITORY))
        for path in there
    }
    assert names - heads - below == {"billing/", "billing/__main__.py"}


def test_what_the_map_names_is_there() -> None:
    heads, below = mapped()
    assert len(below) > 20
    assert [name for name in heads if not (REPOSITORY / name).exists()] == []
    assert [name for name in below if not (REPOSITORY / (name if name.endswith("/") else f"{name}.py")).exists()] == []
