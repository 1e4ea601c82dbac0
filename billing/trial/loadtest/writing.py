"""Writes a result to the files asked for: `json`, `csv`, `hgrm` and `html`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from billing.trial.loadtest.report import report
from billing.trial.loadtest.result import Result, from_json, to_json
from billing.trial.loadtest.summary import csv_of, hgrm_of

FORMATS: Final[dict[str, Callable[[Result], bytes]]] = {
    "json": to_json,
    "csv": lambda result: csv_of(result).encode(),
    "hgrm": lambda result: hgrm_of(result).encode(),
    "html": lambda result: report(result).encode(),
}


def write(result: Result, outputs: Mapping[str, Path]) -> None:
    """Writes each format to its file. `outputs`: format -> path. Raises OSError."""
    for kind, path in outputs.items():
        path.write_bytes(FORMATS[kind](result))


def read(path: Path) -> Result:
    """Reads a result that was written as JSON. Raises ValueError and OSError."""
    try:
        return from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
