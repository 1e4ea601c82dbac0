"""`billing journal dump`: everything in a file is shown, and damage is named with its offset and ends with 65."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from billing.cli.main import root
from billing.ledger import commands
from billing.ledger.entry import Entry, pack
from shards.batch import ENTRY, ENVELOPE, LENGTH, OWN, POSITION, RECEIVED
from shards.journal import backends
from shards.journal.file.journal import FileJournal, FileSettings
from shards.journal.file.recovery import segment_name
from shards.supervisor.registry import Registry
from shards.system.host import REAL

NOW_NS = 1_750_000_000_000_000_000
ENTRY_OF_ANNA = Entry(
    *(commands.TOP_UP, 0, 0, 5, 0, 0, NOW_NS, 1, 5, 0, 0, 0, 5, 0, 0, 0, 0, 0, -1, 0, 0, 0),
    *("änna".encode(), b"", b"\xff\x00id", b"thanks", b"", b"", b""),
)


def batch(*records: tuple[int, int, int, bytes]) -> bytes:
    packed = [ENVELOPE.pack(kind, bucket, generation) + body for kind, bucket, generation, body in records]
    return LENGTH.pack(len(packed)) + b"".join(LENGTH.pack(len(record)) + record for record in packed)


@pytest.fixture
def journal(data_dir: Path) -> Path:
    """A closed journal of shard 1 with two batches, a barrier and a snapshot; its directory."""
    disk = REAL.disk
    directory = data_dir / "shard"
    settings = FileSettings(segment_bytes=65_536)
    opened = FileJournal(str(directory), disk, settings, now_ns=lambda: NOW_NS, salt=lambda: 7)
    opened.open(1, "a test")
    opened.append(batch((OWN, 477, 1, b""), (ENTRY, 477, 1, pack(ENTRY_OF_ANNA))))
    opened.append(batch((OWN, 478, 3, b""), (RECEIVED, 479, 4, b"a whole bucket")))
    opened.idle_barrier()
    opened.save_snapshot(2, [ENVELOPE.pack(OWN, 477, 1) + POSITION.pack(2) + b"the bucket"])
    opened.close()
    return directory


def dump(path: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    result = CliRunner().invoke(root, ["journal", "dump", str(path), "--json", *options])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_a_segment_is_shown_batch_by_batch_and_record_by_record(journal: Path) -> None:
    code, rows, _ = dump(journal / segment_name(1))
    assert code == 0
    assert [row["kind"] for row in rows] == [
        *("segment", "batch", "own", "entry", "batch", "own", "received", "barrier", "end"),
    ]
    assert rows[0]["shard"] == 1
    assert rows[0]["owner"] == "a test"
    assert rows[1]["position"] == 1
    assert rows[1]["time_ns"] == NOW_NS
    entry = rows[3]
    assert (entry["bucket_id"], entry["operation"], entry["user_id"]) == (477, "top_up", "änna")
    assert (entry["asked_amount_nanos"], entry["balance_nanos"], entry["request_id"]) == (5, 5, "ff006964")
    assert "credit_limit_nanos" not in entry  # what is zero or empty is left out
    assert rows[5]["generation"] == 3
    assert rows[6] == {"kind": "received", "bucket_id": 479, "generation": 4, "bytes": 14}


def test_the_text_names_the_same_things(journal: Path) -> None:
    result = CliRunner().invoke(root, ["journal", "dump", str(journal / segment_name(1))])
    lines = result.stdout.splitlines()
    assert lines[0].startswith("segment sync=1 shard=1 ")
    assert lines[3].startswith('    entry bucket_id=477 generation=1 operation="top_up" ')
    assert 'user_id="änna"' in lines[3]
    assert f"at_ns={NOW_NS} (2025-06-15T15:06:40.000000000Z)" in lines[3]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--user", "änna"), ["entry"]),
        (("--operation", "top-up"), ["entry"]),
        (("--user", "bert"), []),
        (("--user", "änna", "--operation", "debit"), []),
    ],
)
def test_entries_can_be_chosen(journal: Path, options: tuple[str, ...], kinds: list[str]) -> None:
    code, rows, _ = dump(journal / segment_name(1), *options)
    assert (code, [row["kind"] for row in rows]) == (0, kinds)


def test_a_snapshot_and_a_manifest_are_shown(journal: Path) -> None:
    (snapshot,) = journal.glob("snapshot-*")
    code, rows, _ = dump(snapshot)
    assert code == 0
    assert [row["kind"] for row in rows] == ["snapshot", "part", "end"]
    assert (rows[1]["bucket_id"], rows[1]["position"]) == (477, 2)
    code, (manifest,), _ = dump(journal / "manifest")
    assert code == 0
    assert (manifest["kind"], manifest["clean"], manifest["head"]) == ("manifest", 1, 2)


def test_the_map_is_shown(data_dir: Path) -> None:
    settings = {"kind": "file", "directory": str(data_dir), "sync": "always", "segment_bytes": 1 << 20}
    log = backends.open(settings | {"sync_interval_ns": 1}, REAL)
    registry = Registry(str(data_dir), REAL, log, lambda: NOW_NS)
    registry.open(16, {1: 1, 2: 1})
    registry.close()
    code, rows, _ = dump(data_dir / "map" / segment_name(1))
    assert code == 0
    assert [row["kind"] for row in rows[:3]] == ["segment", "batch", "map"]
    assert rows[2]["record"][:2] == ["create", 16]


@pytest.mark.parametrize("kept_batches", [0, 1])
def test_damage_is_shown_up_to_it_and_named_with_its_offset(journal: Path, kept_batches: int) -> None:
    path = journal / segment_name(1)
    offset = [row for row in dump(path)[1] if row["kind"] == "batch"][kept_batches]["offset"]
    content = bytearray(path.read_bytes())
    content[offset + 60] ^= 1
    path.write_bytes(content)
    code, rows, message = dump(path)
    assert code == 65
    assert len([row for row in rows if row["kind"] == "batch"]) == kept_batches
    assert f"{path}: offset {offset}: " in message


def test_damage_to_headers_is_named(journal: Path) -> None:
    for path in (journal / segment_name(1), journal / "manifest", *journal.glob("snapshot-*")):
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
        code, rows, message = dump(path)
        assert (code, rows) == (65, [])
        assert str(path) in message


def test_other_files_are_refused(data_dir: Path) -> None:
    (data_dir / "other").write_bytes(b"other")
    (data_dir / "empty").write_bytes(b"")
    assert dump(data_dir / "other")[0] == 65
    assert dump(data_dir / "empty")[0] == 65
    assert CliRunner().invoke(root, ["journal", "dump", str(data_dir / "none")]).exit_code == 2


def test_a_shards_whole_log_is_shown_whatever_it_is_kept_in(data_dir: Path) -> None:
    settings = {"kind": "file", "directory": str(data_dir), "sync": "always", "segment_bytes": 1 << 20}
    log = backends.open(settings | {"sync_interval_ns": 1}, REAL)
    written = log.journal(1, lambda: NOW_NS)
    written.open(1, "test")
    written.append(batch((OWN, 477, 1, b"")))
    written.save_snapshot(1, [b"x"])
    written.append(batch((ENTRY, 477, 1, pack(ENTRY_OF_ANNA))))
    config = data_dir / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{data_dir}"\n')
    result = CliRunner().invoke(root, ["journal", "dump", "--shard", "1", "--config", str(config), "--json"])
    written.close()
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["snapshot", "batch", "own", "batch", "entry", "end"]
    assert rows[-1] == {"kind": "end", "first": 1, "head": 2}
    assert CliRunner().invoke(root, ["journal", "dump", "--shard", "1", str(config)]).exit_code == 2
    assert CliRunner().invoke(root, ["journal", "dump"]).exit_code == 2
