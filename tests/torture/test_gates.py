"""The faults of `gates` fit the code, and their tests are there; `python -m tests.torture.gates` tries them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.torture.gates import GATES, Gate, fault


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_a_fault_fits_the_code_and_its_test_is_there(gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / gate.file
    path.parent.mkdir(parents=True)
    path.write_text((REPOSITORY / gate.file).read_text())
    fault(gate, tmp_path)
    compile(path.read_text(), gate.file, "exec")
    file, _, name = gate.test.partition("::")
    assert f"def {name}(" in (REPOSITORY / file).read_text()
