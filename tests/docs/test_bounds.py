"""The numbers that the pages promise are those that the code has, and their tables name what there is."""

from __future__ import annotations

import re

import pytest

from billing.api.methods import ROLES
from billing.audit.recorder import REFUSALS_A_MINUTE
from billing.audit.trail import FILE_BYTES_MAX, FILES_KEPT
from billing.config.schema import Config
from billing.expirationd.health import Pace
from billing.ledger.balances import HOLDS_MAX
from billing.ledger.commands import REQUEST_ID_BYTES_MAX, USER_ID_BYTES_MAX
from billing.ledger.rates import LINES_MAX
from billing.ledger.requests import KEPT_NS
from billing.migration.command import JSON_LINES, TARANTOOL
from billing.notices import notice
from billing.signature import TOLERANCE_S
from shards.exits import Exit
from shards.system.clock import SLEW_PPM_MAX
from tests.docs.pages import REPOSITORY

DOCS = REPOSITORY / "docs"
KEPT_DAYS = KEPT_NS // (24 * 3600 * 10**9)
WORDS = {5: "five", 7: "seven"}
CONFIG = Config()


@pytest.mark.parametrize(
    ("page", "promise"),
    [
        ("accounts-and-money.md", f"at most {HOLDS_MAX:,} open holds and {LINES_MAX:,} rate lines"),
        ("accounts-and-money.md", f"idempotent for {WORDS[KEPT_DAYS]} days"),
        ("contract.md", f"1 to {REQUEST_ID_BYTES_MAX} bytes"),
        ("methods.md", f"a text of 1 to {USER_ID_BYTES_MAX} bytes"),
        (
            "operating.md",
            f"{FILE_BYTES_MAX * FILES_KEPT >> 20} MB are kept, and {REFUSALS_A_MINUTE} refused sign-ins a minute",
        ),
        ("receiving-cutoffs.md", f"more than {WORDS[TOLERANCE_S // 60]} minutes from your own clock"),
        ("receiving-cutoffs.md", f"`cutoff.timeout_s` ({CONFIG.cutoff.timeout_s:g} s by default)"),
        ("why-these-figures.md", f"{CONFIG.shards.bucket_count} buckets"),
        ("why-these-figures.md", f"{KEPT_DAYS} days of request ids"),
        ("why-these-figures.md", f"{SLEW_PPM_MAX} ppm of slew"),
        ("why-these-figures.md", f"{CONFIG.cutoff.timeout_s:g} s of `cutoff.timeout_s`"),
        ("calling.md", f"MessagePack-RPC over TCP (`rpc.listen`, {CONFIG.rpc.listen})"),
        ("calling.md", f"On `http.listen` ({CONFIG.http.listen})"),
        ("operating.md", f"`admin.listen` (http://{CONFIG.admin.listen})"),
        (
            "operating.md",
            f"`rpc.listen` of `BILLING_CONFIG`, `./config.toml` or `/etc/billing/config.toml`; {CONFIG.rpc.listen}",
        ),
    ],
)
def test_a_number_of_the_pages_is_that_of_the_code(page: str, promise: str) -> None:
    assert promise in " ".join((DOCS / page).read_text().split())


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    _, _, behind = (DOCS / page).read_text().partition(f"\n## {heading}\n")
    assert behind, f"{page} has no heading {heading!r}"
    return behind.partition("\n## ")[0]


def firsts(text: str) -> list[str]:
    """The first cells of a table's rows, below its heading."""
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]


DAEMON = {Exit.CLEAN, Exit.CONFIG, Exit.DAMAGED, Exit.DISK, Exit.AGAIN, Exit.BUG}
COMMAND = {Exit.CLEAN, Exit.REFUSED, Exit.USAGE, Exit.UNREACHABLE, Exit.NOT_ALLOWED}


def test_the_exit_codes_of_the_pages_are_those_of_the_one_table() -> None:
    assert {int(cell) for cell in firsts(section("operating.md", "Exit codes"))} == DAEMON
    assert DAEMON | COMMAND | {Exit.INTERRUPTED} == set(Exit)
    for page in ("contract.md", "architecture.md"):
        (sentence,) = re.findall(r"Exit codes[^:]*: (0 clean stop.+?)\.\s", " ".join((DOCS / page).read_text().split()))
        assert {int(code) for code in re.findall(r"(?:^|, )(\d+) ", sentence)} == DAEMON, page
    (sentence,) = re.findall(r"Of commands: (.+?)\.\s", " ".join((DOCS / "contract.md").read_text().split()))
    assert {int(code) for code in re.findall(r"(?:^|, )(\d+) ", sentence)} == COMMAND


def test_the_pages_name_every_notice_and_every_role() -> None:
    constants = [value for name, value in vars(notice).items() if name.isupper() and isinstance(value, str)]
    kinds = {value for value in constants if re.fullmatch(r"[a-z]+\.[a-z_]+", value)}
    table = " ".join(line.split("|")[1] for line in (DOCS / "notices.md").read_text().splitlines() if line[:1] == "|")
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", table)) == kinds
    assert len(kinds) >= 8
    assert {cell.strip("`") for cell in firsts(section("security.md", "Who may do what"))} == ROLES


def test_the_pages_tell_the_schedule_of_repeats() -> None:
    pace = Pace()
    *waits, last = [f"{wait_ns / 10**9:g}" for wait_ns in pace.waits_ns]
    schedule = f"{', '.join(waits)} and {last} s"
    assert last == f"{pace.repeat_ns / 10**9:g}"
    for page in ("contract.md", "receiving-cutoffs.md"):
        text = " ".join((DOCS / page).read_text().split())
        assert schedule in text, page
        assert f"then every {last} s with jitter" in text, page


def test_the_page_about_moving_in_names_what_the_import_reads() -> None:
    text = (DOCS / "operating.md").read_text() + (DOCS / "coming-from-tarantool.md").read_text()
    assert [kind for kind in (*TARANTOOL, ".csv", *JSON_LINES) if kind not in text] == []
