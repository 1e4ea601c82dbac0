"""The site: every page of docs/ has its place, it is built without a warning, and the made pages say what is true."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from billing.api.methods import METHODS
from billing.config.schema import declared
from billing.ledger.errors import KINDS
from tests.docs import reference
from tests.docs.pages import REPOSITORY, blocks, transcript

ZENSICAL = Path(sys.executable).with_name("zensical")


def pages_of(items: list[dict[str, object]]) -> list[str]:
    """The files that a navigation names, in its order."""
    pages: list[str] = []
    for item in items:
        for value in item.values():
            pages += pages_of(value) if isinstance(value, list) else [str(value)]
    return pages


def test_every_page_stands_in_the_navigation_once() -> None:
    navigation = tomllib.loads((REPOSITORY / "zensical.toml").read_text())["project"]["nav"]
    there = [path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").rglob("*.md")]
    assert sorted(pages_of(navigation)) == sorted(there)


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_that_is_made_of_a_table_is_what_the_table_says(name: str) -> None:
    assert (REPOSITORY / name).read_text() == reference.text_of(name), "make docs"


def test_the_pages_name_every_method_every_refusal_and_every_key() -> None:
    methods, keys = reference.text_of("docs/methods.md"), reference.text_of("docs/configuration.md")
    assert [name for name in METHODS if f"### `{name}`" not in methods] == []
    assert [name for name in KINDS if f"| `{name}` | {KINDS[name].code} |" not in methods] == []
    assert [key for key, _ in declared() if f"| `{key}` |" not in keys] == []
    assert set(reference.MEANINGS) == set(KINDS)


def test_what_the_start_page_types_is_typed_by_the_readme_whose_commands_are_run() -> None:
    def typed(name: str, language: str) -> list[str]:
        texts = [block.text for block in blocks(REPOSITORY / name) if block.language == language]
        return [line for text in texts for line in (transcript(text) if language == "console" else text.splitlines())]

    assert len(typed("docs/index.md", "console")) == 3
    for language in ("console", "sh"):
        assert set(typed("docs/index.md", language)) <= set(typed("README.md", language))


@pytest.mark.skipif(not ZENSICAL.exists(), reason="zensical is not installed")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    configuration = (REPOSITORY / "zensical.toml").read_text()
    (tmp_path / "zensical.toml").write_text(configuration)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    result = subprocess.run([ZENSICAL, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    for page in ("index.html", "methods/index.html", "contract/index.html", "receiving-cutoffs/index.html"):
        built = (tmp_path / "build" / "site" / page).read_text()
        assert "<article" in built
        assert "fonts.googleapis.com" not in built, "a reader's address goes to nobody else"
