"""What a piece runs, as one digest, so that what held is run again when any of it has changed, and only then.

That is the module that the piece starts, with every module of `tests/`, `billing/`, and `shards/` that it reaches (by
an import, wherever it stands, or by its name in a string of one line, as in a command), and what is no Python beside
those, such as a library in C. Documents are not. A piece that is not one of `IN_ONE_PROCESS` starts the daemon, which
chooses by its configuration what it loads: for it all of `billing/` and `shards/` counts. The packages that the daemon
asks for and the default configuration count for each.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).parents[2]
DAEMON: Final = ("billing", "shards")
FOR_ALL: Final = ("pyproject.toml", "config.toml")
MODULE: Final = re.compile(r"\b(?:tests|billing|shards)(?:\.\w+)+")
IN_ONE_PROCESS: Final = {
    "tests.follower.campaign",
    "tests.fuzz",
    "tests.ledger.programs",
    "tests.simulation",
    "tests.torture.damage",
}


def code_of(module: str, root: Path = REPOSITORY, in_one_process: Collection[str] = IN_ONE_PROCESS) -> str:
    """The digest for `python -m module`: twelve hexadecimal digits."""
    reached = reached_from(module, root)
    files_beside = {
        file for path in reached for file in path.parent.iterdir() if _counts(file) and file.suffix != ".py"
    }
    daemon = () if module in in_one_process else DAEMON
    digest = hashlib.sha256()
    for path in sorted(reached | files_beside | set(_all_of(root, *daemon, *FOR_ALL))):
        digest.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def reached_from(module: str, root: Path = REPOSITORY) -> set[Path]:
    """The files that `python -m module` runs, as far as imports and strings tell."""
    reached: set[Path] = set()
    ahead = list(_files_of(module, root, started=True))
    while ahead:
        path = ahead.pop()
        if path not in reached:
            reached.add(path)
            ahead += _reached_from(path, root)
    return reached


def _all_of(root: Path, *names: str) -> Iterator[Path]:
    for top in [root / name for name in names]:
        yield from filter(_counts, top.rglob("*") if top.is_dir() else [top])


def _counts(file: Path) -> bool:
    return file.is_file() and file.suffix not in (".md", ".pyc")


def _files_of(module: str, root: Path, started: bool = False) -> Iterator[Path]:
    """The files that importing (or starting) it runs; none where there is no such module."""
    parts = module.split(".")
    path_of_module = root.joinpath(*parts)
    packages = [root.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
    for path in (path_of_module.with_suffix(".py"), *packages, *([path_of_module / "__main__.py"] if started else [])):
        if path.is_file():
            yield path


@cache
def _named_in(text: bytes) -> tuple[list[str], list[str]]:
    """The modules that a source imports, and those that its strings of one line name."""
    imported: list[str] = []
    named: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and MODULE.fullmatch(f"{node.module}.x"):
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names if MODULE.fullmatch(f"{alias.name}.x")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            named += MODULE.findall(node.value)
    return imported, named


def _reached_from(path: Path, root: Path) -> list[Path]:
    imported, named = _named_in(path.read_bytes())
    return [
        *(file for name in imported for file in _files_of(name, root)),
        *(file for name in named for file in _files_of(name, root, started=True)),
    ]
