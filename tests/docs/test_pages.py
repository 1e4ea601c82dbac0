"""What the pages say is true where a test can see it: links, commands, keys, the worked example of the signature."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from msgspec import structs

from billing.cli.listing import MODULE_OF
from billing.cli.main import root
from billing.config.schema import sections
from billing.expirationd.request import GetTemplate
from billing.ledger.errors import KINDS
from billing.migration.mapping import mapping_of
from billing.migration.plan import refusal_of
from billing.migration.sources import Account, from_csv, from_json_lines, merged
from billing.signature import parse_secrets, sign
from tests.docs.pages import PAGES, REPOSITORY, anchors, blocks, commands, lines_with_options, links

KNOWN = {*MODULE_OF, *root.commands}
SECTIONS = set(sections())
REFUSAL = re.compile(r"`([A-Z]+_[A-Z_]+)`")
ENVIRONMENT = ("BILLING_", "CUTOFF_SECRET")  # how the names of variables begin
KEY = re.compile(r"`(?:BILLING_)?([a-z]+)\.([a-z_]+)(?: = [^`]*)?`")


def named(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_period_adds_up_on_every_page_alike(page: Path) -> None:
    sums = re.findall(r"opening \+ credits[-−+ a-z]*", page.read_text().replace("−", "-"))
    assert {sum_.strip() for sum_ in sums} <= {"opening + credits - debits - accrued"}


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


def options_of(words: list[str]) -> set[str]:
    """The options of the command that these words name, as far as they name one."""
    command: click.Command = root
    for word in words:
        subcommand = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        if subcommand is None:
            break
        command = subcommand
    return {"--help", *(name for option in command.params for name in (*option.opts, *option.secondary_opts))}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_every_option_of_a_command_that_is_typed_exists(page: Path) -> None:
    typed = [(command_words, set(options)) for command_words, options in lines_with_options(page)]
    assert [
        (command_words, options - options_of(command_words))
        for command_words, options in typed
        if options - options_of(command_words)
    ] == []


def test_a_page_with_a_wrong_option_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Type `billing cutoffs release --every 3`, or\n.venv/bin/billing token add me --role read  # --no\n"
    )
    (wrong, options), (right, options_right) = lines_with_options(page)
    assert (wrong, set(options) <= options_of(wrong)) == (["cutoffs", "release"], False)
    assert (right, set(options_right) <= options_of(right)) == (["token", "add", "me"], True)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_every_refusal_that_is_named_exists(page: Path) -> None:
    refusals = REFUSAL.findall(page.read_text())
    assert [name for name in refusals if name not in KINDS and not name.startswith(ENVIRONMENT)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_every_key_that_is_named_exists(page: Path) -> None:
    names = {(section, field.name) for section, table in sections().items() for field in structs.fields(table)}
    text = page.read_text().replace("`http.client`", "")  # a module of Tarantool
    keys = [(section, key) for section, key in KEY.findall(text) if section in SECTIONS]
    assert [f"{section}.{key}" for section, key in keys if (section, key) not in names] == []


@pytest.mark.parametrize("name", ["SECURITY.md", "TORTURE.md"])
def test_every_file_that_the_tables_of_the_tests_name_is_there(name: str) -> None:
    """A file of a folder that was named just before stands there by its own name alone."""
    paths = re.findall(r"`([\w/]+\.py)`", (REPOSITORY / "tests" / name).read_text())
    names = {path.name for room in ("billing", "shards", "tests") for path in (REPOSITORY / room).rglob("*.py")}
    assert paths
    assert [path for path in paths if not ((REPOSITORY / path).is_file() if "/" in path else path in names)] == []


def test_the_readme_can_be_read_in_one_go() -> None:
    assert (REPOSITORY / "README.md").read_text().count("\n") <= 100


def test_the_examples_of_a_request_and_of_its_signature_are_right() -> None:
    page = (REPOSITORY / "docs" / "receiving-cutoffs.md").read_text()
    example = re.search(r"secret `(\S+)`, id `(\S+)`, timestamp `(\d+)`, target\s+`(\S+)`", page)
    assert example is not None
    secret, event, second, target = example.groups()
    (sample,) = [
        block.text for block in blocks(REPOSITORY / "docs" / "receiving-cutoffs.md") if "GET /cutoff" in block.text
    ]
    template = GetTemplate("https://cloud.example/cutoff", parse_secrets(secret))
    instant = re.search(r"exhausted_at_ns=(\d+)", sample)
    assert instant is not None
    e_ns = int(instant.group(1))
    request = template.request(b"user_02", f"user_02:1:{e_ns}", 1, e_ns, e_ns // 10**9)
    assert sample == request.decode().replace("\r\n", "\n").rstrip("\n") + "\n"
    match = re.search(r"Signed text and signature:\n\n```\n(.*)\n(.*)\n```", page)
    assert match is not None
    signed, signature = match.groups()
    assert signed == f"{event}.{second}.{target}"
    assert sign(parse_secrets(secret), event.encode(), int(second), target.encode()).decode() == signature


def test_the_mapping_file_of_the_page_is_one() -> None:
    page = REPOSITORY / "docs" / "coming-from-tarantool.md"
    (text,) = [block.text for block in blocks(page) if block.language == "toml"]
    mapping = mapping_of(text, page.name)
    assert (mapping.space, mapping.user, mapping.coins, str(mapping.unit)) == ("accounts", "login", "kopecks", "0.01")
    assert mapping.has_history


def test_the_files_that_the_page_imports_are_taken_whole() -> None:
    page = REPOSITORY / "docs" / "coming-from-tarantool.md"
    text = {block.language: block.text.splitlines() for block in blocks(page)}
    parsed = [*merged(from_csv(text["csv"], "a.csv")), *merged(from_json_lines(text["json"], "a.jsonl"))]
    accounts = {row.user_id: row for row in parsed if isinstance(row, Account)}
    assert len(parsed) == len(accounts) == 4
    assert [refusal_of(account) for account in accounts.values()] == [None] * 4
    assert [line.resource for line in accounts["alice"].rates] == ["vm-1", "vm-2"]
    assert (accounts["bob"].balance_nanos, accounts["bob"].credit_limit_nanos) == (-3 * 10**9, 10 * 10**9)
