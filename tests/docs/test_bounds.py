"""The numbers that the pages promise are those that the code has."""

from __future__ import annotations

import pytest

from billing.audit.recorder import REFUSALS_A_MINUTE
from billing.audit.trail import FILE_BYTES_MAX, FILES_KEPT
from billing.config.schema import Config
from billing.ledger.balances import HOLDS_MAX
from billing.ledger.commands import REQUEST_ID_BYTES_MAX, USER_ID_BYTES_MAX
from billing.ledger.rates import LINES_MAX
from billing.ledger.requests import KEPT_NS
from billing.signature import TOLERANCE_S
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
