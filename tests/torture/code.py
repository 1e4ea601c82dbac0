"""What a piece runs, as one digest, so that what held is run again when any of it has changed, and only then.

That is the daemon (all of `billing/` and `shards/`, the packages it asks for, the default configuration); the module
that the piece starts with every module of `tests/` that it reaches, by an import or by its name in a string of one
line, as in a command; and what is no Python beside those, such as a library in C. Documents are not.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DAEMON = ("billing", "shards", "pyproject.toml", "config.toml")
MODULE = re.compile(r"\btests(?:\.\w+)+")


def code_of(module: str, root: Path = REPOSITORY) -> str:
    """The digest for `python -m module`: twelve hexadecimal digits."""
    reached = reached_from(module, root)
    files_beside = {
        file for path in reached for file in path.parent.iterdir() if _counts(file) and file.suffix != ".py"
    }
    digest = hashlib.sha256()
    for path in sorted(reached | files_beside | set(_daemon(root))):
        digest.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def reached_from(module: str, root: Path = REPOSITORY) -> set[Path]:
    """The files of `tests/` that `python -m module` runs."""
    reached: set[Path] = set()
    ahead = list(_files_of(module, root, started=True))
    while ahead:
        path = ahead.pop()
        if path not in reached:
            reached.add(path)
            ahead += _reached_from(path, root)
    return reached


def _daemon(root: Path) -> Iterator[Path]:
    for top in [root / name for name in DAEMON]:
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


def _reached_from(path: Path, root: Path) -> list[Path]:
    paths: list[Path] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and MODULE.fullmatch(f"{node.module}.x"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths += [file for name in names for file in _files_of(name, root)]
        elif isinstance(node, ast.Import):
            paths += [
                file for alias in node.names if MODULE.fullmatch(alias.name) for file in _files_of(alias.name, root)
            ]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            paths += [file for name in MODULE.findall(node.value) for file in _files_of(name, root, started=True)]
    return paths
