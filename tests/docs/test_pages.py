"""What the pages say is true where a test can see it: links, commands, keys, the worked example of the signature."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from billing.cli.listing import MODULE_OF
from billing.cli.main import root
from billing.config.schema import Config
from billing.expirationd.request import GetTemplate
from billing.migration.mapping import mapping_of
from billing.signature import parse_secrets, sign
from tests.docs.pages import PAGES, REPOSITORY, anchors, blocks, commands, links

KNOWN = {*MODULE_OF, *root.commands}
SECTIONS = {name for name in Config.model_fields}
KEY = re.compile(r"`(?:BILLING_)?([a-z]+)\.([a-z_]+)(?: = [^`]*)?`")


def named(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link.split("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_into_a_page_names_one_of_its_headings(page: Path) -> None:
    inside = [(page.parent / path if path else page, name) for path, _, name in map(split_at_name, links(page)) if name]
    assert [f"{target.name}#{name}" for target, name in inside if name not in anchors(target)] == []


def split_at_name(link: str) -> tuple[str, str, str]:
    """`page.md#name` as its parts."""
    return link.partition("#")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_every_command_that_is_named_exists(page: Path) -> None:
    assert commands(page) - KNOWN == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_every_key_that_is_named_exists(page: Path) -> None:
    fields = {}
    for section, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        fields[section] = set(field.annotation.model_fields)
    text = page.read_text().replace("`http.client`", "")  # a module of Tarantool
    found = [(section, key) for section, key in KEY.findall(text) if section in SECTIONS]
    assert [f"{section}.{key}" for section, key in found if key not in fields[section]] == []


def test_the_readme_can_be_read_in_one_go() -> None:
    assert (REPOSITORY / "README.md").read_text().count("\n") <= 100


def test_the_examples_of_a_request_and_of_its_signature_are_right() -> None:
    page = (REPOSITORY / "docs" / "receiving-cutoffs.md").read_text()
    told = re.search(r"secret `(\S+)`, id `(\S+)`, timestamp `(\d+)`, target\s+`(\S+)`", page)
    assert told is not None
    secret, event, second, target = told.groups()
    (sample,) = [
        block.text for block in blocks(REPOSITORY / "docs" / "receiving-cutoffs.md") if "GET /cutoff" in block.text
    ]
    template = GetTemplate("https://cloud.example/cutoff", parse_secrets(secret))
    instant = re.search(r"exhausted_at_ns=(\d+)", sample)
    assert instant is not None
    e_ns = int(instant.group(1))
    request = template.request(b"user_02", f"user_02:1:{e_ns}", 1, e_ns, e_ns // 10**9)
    assert sample == request.decode().replace("\r\n", "\n").rstrip("\n") + "\n"
    shown = re.search(r"Signed text and signature:\n\n```\n(.*)\n(.*)\n```", page)
    assert shown is not None
    signed, signature = shown.groups()
    assert signed == f"{event}.{second}.{target}"
    assert sign(parse_secrets(secret), event.encode(), int(second), target.encode()).decode() == signature


def test_the_mapping_file_of_the_page_is_one() -> None:
    page = REPOSITORY / "docs" / "coming-from-tarantool.md"
    (text,) = [block.text for block in blocks(page) if block.language == "toml"]
    mapping = mapping_of(text, page.name)
    assert (mapping.space, mapping.user, mapping.coins, str(mapping.unit)) == ("accounts", "login", "kopecks", "0.01")
    assert mapping.has_history
