"""The pages that people read: README and docs, with their blocks of code and their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([REPOSITORY / "README.md", *REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
PAGES += sorted((REPOSITORY / "examples").glob("*.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_LINE = re.compile(r"(?<![\w.-])billing ((?:[a-z][a-z-]* ?)+)([^`\n|&>#]*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_COMMAND = re.compile(r"`billing ([a-z][a-z-]*)")


class Block(NamedTuple):
    """One fenced block: its language ("" where none is named) and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [Block(language, text) for language, text in _FENCE.findall(page.read_text())]


def links(page: Path) -> Iterator[str]:
    """Where a page points to, but for addresses of the web."""
    yield from (link for link in _LINK.findall(_FENCE.sub("", page.read_text())) if "://" not in link)


def anchors(page: Path) -> set[str]:
    """The places within a page that a link can name: its headings, as the site calls them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def commands(page: Path) -> set[str]:
    """The commands of `billing` that a page names."""
    return set(_COMMAND.findall(page.read_text()))


def lines_with_options(page: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Every line or span of code that types `billing` with options: the words behind it, and the options."""
    for command_text, rest in _LINE.findall(page.read_text()):
        options = _OPTION.findall(command_text + rest)
        if options:
            yield command_text.split(), options


def transcript(text: str) -> list[str]:
    """The lines of a console block that somebody types."""
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
