"""Traces of real machines: a gzip file of comma-separated lines, read as a stream.

    start_s,user_id,vm_id,vcpus,memory_gb,duration_s
    0,tenant-000001,vm-000001,1,0.75,1159
    299700,tenant-054107,vm-259158,1,1.75,

One line is one machine: its start (seconds from the start of the trace), its owner, its name, its size, and how long it
ran. A machine without a duration was still running when the trace ended. Lines come in the order of `start_s`. Sizes
are exact: memory is a fraction, never a float.

Any other line is an error, whose text names file and line, so that half a trace is never replayed.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

COLUMNS: Final = ["start_s", "user_id", "vm_id", "vcpus", "memory_gb", "duration_s"]


class TraceError(Exception):
    """A file is not a valid trace. The text names the file and, if it is known, the line."""


class Machine(NamedTuple):
    """One virtual machine. `duration_s`: None if the machine outlived the trace."""

    start_s: int
    user_id: str
    vm_id: str
    vcpus: int
    memory_gb: Fraction
    duration_s: int | None


def read_trace(path: Path) -> Iterator[Machine]:
    """Yields the machines of a trace, in the order of their start. Raises TraceError."""
    line = 1
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != COLUMNS:
                raise TraceError(f"{path}:1: expected the columns {','.join(COLUMNS)}")
            earliest_s = 0
            for row in rows:
                line = rows.line_num
                machine = _machine(row)
                if machine.start_s < earliest_s:
                    raise ValueError("it starts before the machine above it")
                earliest_s = machine.start_s
                yield machine
    except ValueError as error:
        raise TraceError(f"{path}:{line}: {error}") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise TraceError(f"{path}: {error}") from error


def _machine(row: list[str]) -> Machine:
    """Parses a line. Raises ValueError."""
    if len(row) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} fields, got {len(row)}")
    start_s, user_id, vm_id, vcpus, memory_gb, duration_s = row
    machine = Machine(
        int(start_s), user_id, vm_id, int(vcpus), Fraction(memory_gb), int(duration_s) if duration_s else None
    )
    if not user_id or not vm_id:
        raise ValueError("a machine has a name and an owner")
    if machine.start_s < 0 or machine.vcpus < 0 or machine.memory_gb < 0 or (machine.duration_s or 0) < 0:
        raise ValueError("no number may be negative")
    if machine.vcpus == 0 == machine.memory_gb:
        raise ValueError("a machine has a size")
    return machine
