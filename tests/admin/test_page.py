"""The page's words and plots: what is read at a glance is right, and what comes from outside is escaped."""

from __future__ import annotations

import re
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.admin.figure_sampler import (
    FigureSampler,
    Overrun,
    Sums,
    increase,
    known_late,
    quantile_ns,
    quantile_of,
    row_between,
)
from billing.admin.page import condition, parts, plots, words
from billing.admin.processes import Usage
from billing.admin.server import is_this_host, token_of
from billing.service.service import doing
from shards.supervisor.unserved import Unserved
from shards.worker.histogram import EXACT_VALUES, LATENESS_NS, SYNC_NS, ExactHistogram, Histogram

EVIL = "<script>alert(1)</script>\"'&"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ms"),
        (512_000, "0.512 ms"),
        (187_400_000, "187 ms"),
        (999_600_000, "1 s"),
        (3_140_000_000, "3.1 s"),
        (42 * 10**9, "42 s"),
        (200 * 10**9, "3 min 20 s"),
        (7500 * 10**9, "2 h 5 min"),
        (90_000 * 10**9, "1 d 1 h"),
        (-5_000_000, "−5 ms"),
    ],
)
def test_spans_are_said_in_the_unit_that_fits(ns: int, text: str) -> None:
    assert words.span(ns) == text


def test_amounts_and_sizes() -> None:
    assert words.coins(33_050_365_000_000) == "33,050.36"
    assert words.coins(7) == "0.000000007"
    assert words.coins(-1_500_000_000) == "−1.50"
    assert words.coins_short(0) == "0"
    assert words.coins_short(99_999_999_999_999) == "99,999.99"
    assert words.coins_short(112_470_640_000_000) == "112,470"
    assert words.coins_short(-540_000_000 * 10**9) == "−540 M"
    assert words.coins_short(2**63 - 1) == "9.2 bn"
    assert words.size(64 * 2**20) == "64 MiB"
    assert words.size(1023) == "1023 B"
    assert words.number(0.25) == "0.2"
    assert words.number(12345) == "12,345"


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_in_the_bucket_where_it_belongs(values: list[int], share: float) -> None:
    tally = Histogram(LATENESS_NS)
    for value in values:
        tally.add(value)
    quantile = quantile_ns(list(tally.bounds), tally.counts, share)
    rank = max(1, -(-int(share * len(values) * 1000) // 1000))
    true = sorted(values)[min(rank, len(values)) - 1]
    edges = [0, *tally.bounds, 10**12]
    index = next(index for index, edge in enumerate(edges[1:]) if true <= edge)
    assert edges[max(0, index - 1)] <= quantile <= edges[min(index + 1, len(edges) - 1)]


def test_an_empty_histogram_has_no_quantile() -> None:
    assert quantile_ns(list(LATENESS_NS), [0] * (len(LATENESS_NS) + 1), 0.99) == -1


def looked_at(*shards: ExactHistogram) -> Sums:
    return Sums({number: {"cutoff_sent_ns": late.plain()} for number, late in enumerate(shards, 1)})


def test_the_quantiles_of_a_few_calls_are_among_them() -> None:
    late = ExactHistogram(LATENESS_NS)
    before = looked_at(late)
    late.add(6_000_000)
    after = looked_at(late)
    row = row_between((before, 0), (after, 10**9), 0, [known_late(before, after)])
    assert (row.sent, row.late_p50_ns, row.late_p99_ns) == (1, 6_000_000, 6_000_000)
    late.add(2_000_000)
    more = ExactHistogram(LATENESS_NS)
    more.add(7_000_000)
    last = looked_at(late, more)
    looks = [known_late(before, after), known_late(after, last)]
    row = row_between((before, 0), (last, 2 * 10**9), 0, looks)
    assert (row.sent, row.late_p50_ns, row.late_p99_ns) == (3, 6_000_000, 7_000_000)


def test_a_histogram_of_a_few_values_has_an_exact_quantile() -> None:
    tally = ExactHistogram(SYNC_NS)
    assert quantile_of(tally.plain(), 0.99) == -1
    tally.add(101_000_000)
    assert quantile_of(tally.plain(), 0.99) == 101_000_000
    tally.add(101_000_000, EXACT_VALUES)
    assert 100_000_000 < quantile_of(tally.plain(), 0.99) < 250_000_000


def test_the_quantiles_of_more_calls_than_are_known_one_by_one_are_estimated() -> None:
    late = ExactHistogram(LATENESS_NS)
    before = looked_at(late)
    late.add(6_000_000, EXACT_VALUES + 1)
    after = looked_at(late)
    assert known_late(before, after) is None
    row = row_between((before, 0), (after, 10**9), 0, [None])
    assert row.sent == EXACT_VALUES + 1
    assert 5_000_000 < row.late_p50_ns < row.late_p99_ns < 10_000_000


def test_the_calls_of_a_worker_that_began_anew_are_known_too() -> None:
    old, new = ExactHistogram(LATENESS_NS), ExactHistogram(LATENESS_NS)
    old.add(1_000_000, 5)
    new.add(3_000_000, 2)
    assert known_late(looked_at(old), looked_at(new)) == [3_000_000, 3_000_000]


OVERRUN = Overrun(3, 7_200 * 10**9, "vm <b>", 61 * 10**9)


def test_overrun_that_lasts_names_a_user_and_the_command_that_lists_all() -> None:
    (finding,) = condition.overrunning(OVERRUN)
    assert (finding.kind, finding.alert, finding.command) == (
        condition.WARN, "BillingOverrunGrowing", "billing accounts --overrunning"
    )  # fmt: skip
    assert finding.text == (
        "3 exhausted accounts still have a rate (the highest: vm <b>): 7,200.00 coins an hour that nobody pays."
    )
    (finding,) = condition.overrunning(OVERRUN._replace(accounts=1))
    assert finding.text.startswith("1 exhausted account still has a rate (vm <b>): ")
    tile = parts.overrunning(OVERRUN)
    assert 'href="/?user=vm%20%3Cb%3E" title="vm &lt;b&gt;">vm &lt;b&gt;</a>' in tile
    assert 'data-copy="billing accounts --overrunning"' in tile
    assert "<span>--overrunning</span></code>" in tile, "an option is not broken at its dashes"


def test_overrun_of_some_seconds_is_nothing_wrong() -> None:
    """Between the 2xx of a cutoff and the report of rate 0 every account overruns."""
    fresh = OVERRUN._replace(lasts_ns=59 * 10**9)
    assert (list(condition.overrunning(fresh)), fresh.is_wrong) == ([], False)
    assert list(condition.overrunning(Overrun())) == []


def test_a_counter_that_fell_began_anew() -> None:
    assert increase(10, 15) == 5
    assert increase(10, 3) == 3


def test_a_span_of_little_room_is_no_longer_than_it_was() -> None:
    assert [words.at_least(seconds * 10**9) for seconds in (42, 90, 3599, 7300, 180_000)] == [
        *("42 s", "1 min", "59 min", "2 h", "2 d")
    ]


def test_beyond_the_last_bound_a_span_is_only_known_to_be_longer() -> None:
    assert words.late(148 * 10**9) == "2 min 28 s"
    tally = Histogram(LATENESS_NS)
    tally.add(10 * LATENESS_NS[-1])
    assert words.late(quantile_ns(list(tally.bounds), tally.counts, 0.99)) == "> 30 min"


def test_an_instant_has_its_date_where_it_is_not_of_today() -> None:
    at_ns = 1_795_872_287_922_238_409
    assert words.clock(at_ns, at_ns + 5 * 10**9) == "13:24:47 UTC"
    assert words.clock(at_ns, at_ns + 86_400 * 10**9) == "2026-11-28 13:24 UTC"


def test_a_bar_is_divided_as_the_buckets_are() -> None:
    svg = plots.shares({1: 2000, 2: 1000}, "shard 1: 2,000, shard 2: 1,000")
    assert [float(width) for width in re.findall(r'width="([0-9.]+)"', svg)] == [479.0, 239.0]


def test_a_gap_is_not_drawn_over() -> None:
    plot = plots.lateness([1_000_000] * 3 + [-1] * 4 + [2_000_000], [5_000_000] * 3 + [-1] * 4 + [9_000_000], 3600, 360)
    assert re.findall(r'class="line p99( alone)?"', plot) == ["", " alone"], "two runs, a line and a dot"
    assert len(re.findall(r"<path", plot)) == 4


def test_a_value_alone_is_seen() -> None:
    svg = plots.lateness([-1, 2_000_000, -1], [-1, 2_000_000, -1], 30, 3)
    assert re.findall(r'class="line (p50|p99)( alone)?"', svg) == [("p99", " alone"), ("p50", " alone")]
    joined = plots.lateness([-1, 2_000_000, 2_000_000], [-1, 2_000_000, 2_000_000], 30, 3)
    assert "alone" not in joined


def test_there_is_a_cell_for_each_bucket_in_its_owners_colour() -> None:
    picture = plots.buckets([1, 2, 1], {2})
    assert re.findall(r'<i class="([^"]*)">', picture) == ["s1", "s2 pin", "s1"]


def test_what_comes_from_outside_is_escaped() -> None:
    account = {
        "user_id": EVIL, "state": "active", "available_nanos": 1, "rate_nanos_per_hour": 0, "at_ns": 5,
        "exhausts_at_ns": None, "balance_nanos": 1, "credit_limit_nanos": 0, "holds_nanos": 0, "overrun_nanos": 0,
        "bucket_id": 4, "cutoff": None,
    }  # fmt: skip
    for html in (parts.account(account), parts.account(EVIL)):
        assert "<script>" not in html
        assert "&lt;script&gt;" in html


def test_the_last_cutoff_says_how_late_its_2xx_came() -> None:
    account: dict[str, object] = {
        "user_id": "u", "state": "exhausted", "available_nanos": 0, "rate_nanos_per_hour": 0, "at_ns": 9 * 10**9,
        "exhausts_at_ns": None, "balance_nanos": 0, "credit_limit_nanos": 0, "holds_nanos": 0, "overrun_nanos": 0,
        "bucket_id": 4,
    }  # fmt: skip
    cutoff = {"status": "effective", "attempts": 1, "exhausted_at_ns": 5 * 10**9, "delivered_at_ns": 8 * 10**9}
    assert "effective 3.0 s late after 1 attempt" in parts.account({**account, "cutoff": cutoff})
    assert "effective after 2 attempts" in parts.account(
        {**account, "cutoff": {**cutoff, "attempts": 2, "delivered_at_ns": None}}
    )


def test_a_cutoff_that_was_not_sent_has_no_attempts_to_tell_of() -> None:
    account: dict[str, object] = {
        "user_id": "u", "state": "exhausted", "available_nanos": 0, "rate_nanos_per_hour": 0, "at_ns": 9 * 10**9,
        "exhausts_at_ns": None, "balance_nanos": 0, "credit_limit_nanos": 0, "holds_nanos": 0, "overrun_nanos": 0,
        "bucket_id": 4,
    }  # fmt: skip
    cutoff = {"status": "pending", "attempts": 0, "exhausted_at_ns": 5 * 10**9, "delivered_at_ns": None}
    assert "owed, not sent yet" in parts.account({**account, "cutoff": cutoff})
    assert "superseded before it was sent" in parts.account({**account, "cutoff": {**cutoff, "status": "superseded"}})
    assert "in grace" in parts.account({**account, "cutoff": {**cutoff, "status": "in_grace"}})


def test_what_waits_for_the_operator_is_not_said_to_wait_for_its_turn() -> None:
    class Sampler:
        def total(self, name: str) -> int:
            return 2

        def outages(self) -> list[object]:
            return []

    row = {"user_id": "u", "exhausted_at_ns": 0, "attempts": 0, "last_error": "", "held": True}
    answers = parts.Answers([row, row | {"held": False}], "no shard is served", 5 * 10**9, Usage((), 0, 0))
    html = parts.owed(cast("FigureSampler", Sampler()), answers)
    assert html.index("held back until somebody releases it") < html.index("waits for its turn")


def test_who_runs_out_next_is_a_link_that_cannot_be_broken() -> None:
    def answers_of(coming: dict[str, object] | str) -> parts.Answers:
        return parts.Answers([], coming, 5 * 10**9, Usage((), 0, 0))

    assert parts.following(answers_of("no shard is served")) == ""
    assert parts.following(answers_of({"next_user_id": None, "next_at_ns": None})) == ""
    html = parts.following(answers_of({"next_user_id": '"><b>&', "next_at_ns": 47 * 10**9}))
    assert 'href="/?user=%22%3E%3Cb%3E%26"' in html
    assert "&lt;b&gt;&amp;</a>, in 42 s." in html


def test_logs_on_servers_say_who_leads_them_and_what_is_left() -> None:
    figures = {"log_leader": "nats-2", "log_bytes": 3 << 20, "log_limit_bytes": 4 << 20, "log_round_trip_ns": 1_200_000}
    html = parts.logs({1: {**figures, "grant_left_ns": 1_600_000_000}, 2: {"log_bytes": -1}, 3: {}})
    for cell in ("nats-2", "1.2 ms", "1.6 s", "3 MiB", "4 MiB"):
        assert f">{cell}</td>" in html, cell
    assert html.count("<tr><td>") == 1
    lost = parts.logs({1: {**figures, "log_leader": "", "log_limit_bytes": -1, "grant_left_ns": 0}})
    assert ">nobody</span>" in lost
    assert ">none</span>" in lost
    assert ">none</td>" in lost
    assert parts.logs({1: {"log_bytes": -1}}) == "", "files have no server"
    assert condition.is_nearly_full(figures)
    assert not condition.is_nearly_full({**figures, "log_bytes": 2 << 20})
    assert not condition.is_nearly_full({**figures, "log_limit_bytes": -1})


def test_a_figure_of_some_shards_says_of_how_many() -> None:
    assert words.part_of(1, 2) == "at 1 of 2 shards; 1 does not answer"
    assert words.part_of(2, 4) == "at 2 of 4 shards; 2 do not answer"
    assert words.part_of(0, 2) == "no shard answers"
    assert words.part_of(2, 2) == ""


def test_a_bar_that_is_nearly_nothing_is_seen() -> None:
    svg = plots.bars([1, 0, 100_000], ["0 min", "1 min", "2 min"], "coming")
    heights = [float(height) for height in re.findall(r'height="([0-9.]+)"', svg)]
    assert min(heights) >= 2


@pytest.mark.parametrize("host", ["127.0.0.1:9311", "localhost:9311", "[::1]:9311", "127.0.0.1"])
def test_this_host_by_its_names(host: str) -> None:
    assert is_this_host(host)


@pytest.mark.parametrize("host", ["evil.example:9311", "", "10.0.0.1:9311", "localhost.evil.example", "127.0.0.1.x:1"])
def test_any_other_name_is_not_this_host(host: str) -> None:
    assert not is_this_host(host)


def test_a_token_is_a_bearer_or_the_password_of_basic() -> None:
    assert token_of("Bearer abc") == b"abc"
    assert token_of("Basic YW55Om9wZW4=") == b"open"
    assert token_of("Basic !!") == b""
    assert token_of("") == b""


@pytest.mark.parametrize(
    ("unserved", "text"),
    [
        (Unserved(1, "recovering", "recovering 62 %"), "recovering shard 1: 62 %"),
        (Unserved(1, "recovering", "recovering"), "recovering shard 1"),
        (Unserved(2, "down", "down: killed"), "shard 2: down: killed"),
        (Unserved(0, "unopened", "another host serves"), "another host serves"),
    ],
)
def test_the_status_line_says_what_it_is_doing(unserved: Unserved, text: str) -> None:
    assert doing(unserved) == text
