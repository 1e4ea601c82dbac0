"""`billing journal dump`: prints the content of a journal, one file or a whole log, without opening it as its owner.

The first bytes of a file distinguish segments, snapshots and manifests. Each item is one row with its kind and named
fields, printed as text or, with `--json`, as one JSON object a line. Every item was checked with the checks of
recovery before it is printed. At the first item that fails them the command reports the offset and exits with 65. One
file alone cannot show whether that is a torn tail or damage: recovery decides that from all files of the shard.

With `--shard` the command reads the log through its backend (`shards.journal.Reader`), whatever the kind of the log:
first its snapshots, then every batch.

It never writes and takes no lock, so it can read the journal of a running daemon.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from billing.cli.entry_fields import entry_fields
from billing.cli.finding import config_file as found_config
from billing.cli.options import Group, config_option, option
from billing.cli.output import as_json as as_one_json
from billing.cli.output import put, say
from billing.cli.places import ExistingFile, Misplaced
from billing.cli.values import instant
from billing.config.load import load, log_of
from shards.batch import ENTRY, ENVELOPE, LEAVE, OWN, POSITION, RECEIVED, BatchCorrupt, split_batch
from shards.exits import Exit
from shards.journal import Corrupt as JournalCorrupt
from shards.journal import Reader, backends
from shards.journal.file import record, snapshot
from shards.system.disk import RealDisk, read_file
from shards.system.host import REAL

MAP = 0  # the number of the journal in which the supervisor keeps the map; shards have numbers from 1
KINDS = {ENTRY: "entry", OWN: "own", LEAVE: "leave", RECEIVED: "received"}

Row = tuple[str, dict[str, Any]]


class Damaged(Exception):
    """The content of a file is invalid from `offset` on."""

    def __init__(self, text: str, offset: int) -> None:
        super().__init__(text)
        self.offset = offset


def rows(path: str) -> Iterator[Row]:
    """(kind, fields) of every item in the file, in order. Raises Damaged at the first invalid item."""
    disk = RealDisk()
    handle = disk.open(path)
    try:
        magic = disk.pread(handle, 4, 0)
    finally:
        disk.close(handle)
    try:
        if magic == b"BWAL":
            yield from segment_rows(read_file(disk, path))
        elif magic == b"BSNP":
            yield from _snapshot_rows(disk, path)
        elif magic == b"BMAN":
            yield "manifest", record.unpack_manifest(read_file(disk, path))._asdict()
        else:
            raise Damaged(f"neither a segment nor a snapshot nor a manifest: it begins with {magic!r}", 0)
    except record.Malformed as error:
        raise Damaged(str(error), 0) from None


def segment_rows(data: bytes) -> Iterator[Row]:
    """The rows of a segment: its header, then each batch followed by its records, then the end. Raises Damaged."""
    header = record.unpack_block(data)
    yield "segment", header._asdict()
    end = record.BLOCK_BYTES
    for batch in record.walk(data, header):
        fields = {
            "offset": batch.offset,
            "position": batch.position,
            "time_ns": batch.time_ns,
            "durable": batch.durable,
        }
        if batch.flags & record.BARRIER:
            yield "barrier", fields
        else:
            payload = data[batch.payload_at : batch.payload_end]
            yield "batch", fields | {"bytes": len(payload)}
            try:
                yield from _payload_rows(header.shard, payload)
            except (BatchCorrupt, ValueError) as error:
                raise Damaged(f"the batch does not parse: {error}", batch.offset) from None
        end = record.aligned(batch.end, header.align)
    if (used := record.used_end(data, end)) > end:
        raise Damaged(f"no good batch begins here, and what is not zero goes on to offset {used}", end)
    yield "end", {"offset": end, "free_bytes": len(data) - end}


def _payload_rows(shard: int, payload: bytes) -> Iterator[Row]:
    if shard == MAP:
        for item in msgspec.msgpack.decode(payload):
            yield "map", {"record": item}
        return
    for kind, bucket_id, generation, body in split_batch(payload):
        fields: dict[str, Any] = {"bucket_id": bucket_id, "generation": generation}
        if kind == ENTRY:
            fields |= entry_fields(body, bucket_id)
        elif body:
            fields["bytes"] = len(body)
        yield KINDS.get(kind, f"kind {kind}"), fields


def _snapshot_rows(disk: RealDisk, path: str) -> Iterator[Row]:
    reader = snapshot.Reader(disk, path)
    try:
        yield "snapshot", reader.head._asdict()
        for chunk in reader.chunks():
            if reader.head.shard == MAP:
                yield from _payload_rows(MAP, chunk)
                continue
            _, bucket_id, generation = ENVELOPE.unpack_from(chunk)
            (position,) = POSITION.unpack_from(chunk, ENVELOPE.size)
            yield "part", {"bucket_id": bucket_id, "generation": generation, "position": position, "bytes": len(chunk)}
        yield "end", {"chunks": reader.count, "reached": reader.reached, "bytes": reader.size}
    finally:
        reader.close()


def log_rows(reader: Reader, shard: int) -> Iterator[Row]:
    """The rows of a whole log: its snapshots, then each batch followed by its records. Raises the journal's errors."""
    for retained in reader.snapshots():
        yield "snapshot", retained._asdict()
    first, head = reader.first, reader.head
    if first <= head:
        for position, payload in reader.replay(first):
            yield "batch", {"position": position, "bytes": len(payload)}
            try:
                yield from _payload_rows(shard, payload)
            except (BatchCorrupt, ValueError) as error:
                raise JournalCorrupt(f"the batch does not parse: {error}", position=position) from None
    yield "end", {"first": first, "head": head}


def plain(value: object) -> Any:
    """A field's value for JSON: bytes become text if they are printable UTF-8, otherwise hex."""
    if isinstance(value, bytes):
        text = value.rstrip(b"\0").decode(errors="replace")
        return text if text.isprintable() and "\ufffd" not in text else value.hex()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


@click.group(cls=Group)
def journal() -> None:
    """Looks into the files of a journal."""


@journal.command()
@click.argument("file", required=False, type=ExistingFile(Path))
@option("--shard", type=click.IntRange(0), metavar="K", help="The whole log of shard K; 0: that of the map.")
@option("--user", metavar="USER", help="Only the entries of this user.")
@option("--operation", metavar="NAME", help="Only the entries of this operation, as top_up.")
@option("--json", "as_json", is_flag=True, help="One JSON object a line; bytes that are no text in hex.")
@config_option
def dump(
    file: Path | None,
    shard: int | None,
    user: str | None,
    operation: str | None,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Prints every batch and record of a segment, or a snapshot's parts, or a manifest; or a shard's whole log."""
    if (file is None) == (shard is None):
        raise click.UsageError("name a file, or a shard with --shard")
    if file is not None and config_file is not None:
        raise click.UsageError("--config is only taken with --shard")
    wanted = {"user_id": user, "operation": None if operation is None else operation.replace("-", "_")}
    try:
        if file is not None:
            _show(rows(str(file)), wanted, as_json)
        elif shard is not None:
            config = load(found_config(config_file, os.environ), os.environ).config
            if config.journal.is_shared and shard > config.cluster.shards:
                raise Misplaced(f"there is no shard {shard}: cluster.shards is {config.cluster.shards}")
            reader = backends.open(log_of(config), REAL).reader(shard)
            try:
                _show(log_rows(reader, shard), wanted, as_json)
            finally:
                reader.close()
    except Damaged as error:
        say(f"billing: {file}: offset {error.offset}: {error}")
        raise SystemExit(Exit.DAMAGED) from None


def _show(rows: Iterator[Row], wanted: dict[str, str | None], as_json: bool) -> None:
    """Prints the rows. If a value of `wanted` (field -> value) is not None, prints only entries with that value."""
    for kind, fields in rows:
        shown = {name: plain(value) for name, value in fields.items()}
        if not all(text is None or (kind == "entry" and shown.get(key) == text) for key, text in wanted.items()):
            continue
        if not put(as_one_json({"kind": kind} | shown) if as_json else _line(kind, shown)):
            return  # the reader has closed the pipe


def _line(kind: str, shown: dict[str, Any]) -> str:
    """A row as text, with each instant also as a date and time."""
    indent = "" if kind in ("segment", "snapshot", "manifest", "batch", "barrier", "end") else "    "
    parts = []
    for name, value in shown.items():
        parts.append(f"{name}={json.dumps(value, ensure_ascii=False)}")
        if name in ("time_ns", "at_ns") and isinstance(value, int) and value >= 0:
            parts[-1] += f" ({instant(value)})"
    return f"{indent}{kind} {' '.join(parts)}"


for command in journal.commands.values():
    journal.hands_on(command.params)

COMMANDS: dict[str, click.Command] = {"journal": journal}
