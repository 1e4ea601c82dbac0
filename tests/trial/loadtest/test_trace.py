"""Reading traces: what a line means, and that anything else is named with its line."""

from __future__ import annotations

import gzip
from fractions import Fraction
from pathlib import Path

import pytest

from billing.trial.loadtest.trace import Machine, TraceError, read_trace

HEAD = "start_s,user_id,vm_id,vcpus,memory_gb,duration_s"


def trace(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


def test_a_line_is_a_machine(tmp_path: Path) -> None:
    path = trace(tmp_path, HEAD, "0,tenant-1,vm-1,1,0.75,1159", "0,tenant-1,vm-2,2,3.5,19", "300,tenant-2,vm-3,8,14,")
    assert list(read_trace(path)) == [
        Machine(0, "tenant-1", "vm-1", 1, Fraction(3, 4), 1159),
        Machine(0, "tenant-1", "vm-2", 2, Fraction(7, 2), 19),
        Machine(300, "tenant-2", "vm-3", 8, Fraction(14), None),
    ]


def test_an_empty_trace_has_no_machines(tmp_path: Path) -> None:
    assert list(read_trace(trace(tmp_path, HEAD))) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5,tenant-1,vm-1,1,0.75", "expected 6 fields, got 5"),
        ("5,tenant-1,vm-1,1,0.75,1,1", "expected 6 fields, got 7"),
        ("five,tenant-1,vm-1,1,0.75,1", "five"),
        ("5,tenant-1,vm-1,1,much,1", "much"),
        ("5,,vm-1,1,0.75,1", "owner"),
        ("5,tenant-1,,1,0.75,1", "name"),
        ("5,tenant-1,vm-1,1,-0.75,1", "negative"),
        ("5,tenant-1,vm-1,0,0,1", "size"),
        ("3,tenant-1,vm-1,1,0.75,1", "before the machine above"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = trace(tmp_path, HEAD, "4,tenant-0,vm-0,1,1,1", line)
    with pytest.raises(TraceError, match=says) as error:
        list(read_trace(path))
    assert str(error.value).startswith(f"{path}:3: ")


def test_other_files_are_no_traces(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="expected the columns"):
        list(read_trace(trace(tmp_path, "a,b,c")))
    plain = tmp_path / "plain.csv"
    plain.write_text(HEAD + "\n")
    with pytest.raises(TraceError, match=r"plain\.csv"):
        list(read_trace(plain))
    packed = trace(tmp_path, HEAD, *(f"{second},tenant-1,vm-{second},1,1,1" for second in range(1000))).read_bytes()
    torn = tmp_path / "torn.csv.gz"
    torn.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TraceError, match=r"torn\.csv\.gz"):
        list(read_trace(torn))
    with pytest.raises(TraceError, match="absent"):
        list(read_trace(tmp_path / "absent.csv.gz"))
