"""What is said of a result: whether it is valid, what it means, what changed, and the page with plots."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import msgspec
import pytest

from billing.trial.loadtest.command import how_long
from billing.trial.loadtest.compare import changed, compare
from billing.trial.loadtest.conclusion import conclusion, in_short, needs, sustained_per_s, unusable
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.report import report
from billing.trial.loadtest.result import Cutoffs, Money, Result, from_json, to_json
from billing.trial.loadtest.summary import csv_of, summary, verdict_line
from billing.trial.loadtest.sweep import why_not
from billing.trial.loadtest.trace_plan import Tracing
from billing.trial.loadtest.validity import faults
from billing.trial.loadtest.watch import events_between, series_of
from billing.trial.loadtest.workload import Workload
from tests.trial.loadtest.made import MS, pairs, result_of, run_of


def recorded(value_ns: int, count: int) -> Histogram:
    histogram = Histogram()
    for _ in range(count):
        histogram.record(value_ns)
    return histogram


def judged(**changes: object) -> list[str]:
    fields: dict[str, object] = {
        "open_loop": True,
        "planned": 1000,
        "sent": 1000,
        "latency": recorded(5 * MS, 1000),
        "lateness": recorded(MS, 1000),
        "cores": 0.5,
    }
    return faults(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"lateness": recorded(3 * MS, 1000)}, "the load generator was late, not the daemon"),
        ({"lateness": recorded(3 * MS, 1000), "latency": recorded(100 * MS, 1000)}, ""),
        ({"lateness": recorded(3 * MS, 1000), "open_loop": False}, ""),
        ({"cores": 0.95}, "used 95% of its core"),
        ({"sent": 999}, "1 of 1,000 planned commands was not sent"),
        ({"latency": recorded(MS, 199)}, "only 199 samples"),
    ],
)
def test_a_measurement_is_valid_or_says_why_not(changes: dict[str, Any], text: str) -> None:
    sentences = judged(**changes)
    assert (len(sentences), text in "".join(sentences)) == (int(bool(text)), True)


def test_a_rate_is_sustained_where_all_was_well() -> None:
    assert sustained_per_s(result_of(run_of(), run_of(1, per_s=1100.0), run_of(2, per_s=1050.0))) == 1050.0
    assert sustained_per_s(result_of(run_of(), run_of(1, valid=False))) is None
    assert sustained_per_s(result_of(run_of(p50_ns=60 * MS))) is None
    assert sustained_per_s(result_of(run_of(money=Money(wrong_balances=1)))) is None
    assert sustained_per_s(result_of(steps=[run_of()], knee_per_s=700.0)) == 700.0


def test_a_closed_loop_shows_no_rate_that_callers_could_have() -> None:
    result = result_of(run_of(), kind="closed")
    assert sustained_per_s(result) is None
    assert needs(result) == []
    assert any("closed loop" in sentence for sentence in conclusion(result))


def test_machines_are_reckoned_from_a_sweep_with_headroom() -> None:
    too_much = run_of(1, per_s=3000.0, p50_ns=60 * MS)
    swept = result_of(steps=[run_of(per_s=2000.0), too_much], knee_per_s=2000.0, kind="sweep")
    rows = {need.machines: need for need in needs(swept)}
    # 10^6 machines once a minute are 16,667 a second; a worker is planned with 0.7 of 1,000
    assert (rows[1_000_000].workers, round(rows[1_000_000].per_s)) == (24, 16_667)
    assert rows[10_000].workers == 1
    assert rows[1_000_000].memory_bytes == 200_000_000

    # a run at a rate of its own says nothing of what the daemon can
    for result in (result_of(run_of(per_s=2000.0)), result_of(run_of(valid=False))):
        assert needs(result) == []
        assert "Capacity is not measured" in " ".join(conclusion(result))
        assert "Not measured" in report(result)
        assert "--sweep" in report(result)


def test_a_few_slow_answers_are_no_limit_of_the_daemon() -> None:
    few = run_of(1, per_s=3000.0, latency=pairs(2 * MS, 5_000, 60 * MS, 9))
    result = result_of(steps=[run_of(per_s=2000.0), few], knee_per_s=2000.0, kind="sweep")
    assert needs(result) == []
    assert "at least 2,000 commands a second" in in_short(result)[0]
    assert "too few answers to tell a 99th percentile (--duration)" in in_short(result)[0]
    assert "Sustained at least (no limit was found): 2,000" in " ".join(conclusion(result))
    assert why_not(few, 50.0) == ["there were too few answers to tell a 99th percentile (--duration)"]
    assert why_not(run_of(1, p50_ns=60 * MS), 50.0) == ["its 99th percentile is above 50 ms"]
    assert why_not(run_of(1, money=Money(wrong_balances=1)), 50.0) == ["money or cutoffs were wrong"]


def test_a_sweep_that_its_generator_ended_has_found_no_limit() -> None:
    late = run_of(1, per_s=3000.0, valid=False, invalid_because=["the generator was late"])
    result = result_of(steps=[run_of(per_s=2000.0), late], knee_per_s=2000.0, kind="sweep")
    assert needs(result) == []
    assert "at least 2,000 commands a second" in in_short(result)[0]
    assert "could not offer more" in in_short(result)[0]
    assert "Capacity is not measured" in " ".join(conclusion(result))
    assert "Not measured: the sweep ended" in report(result)


LATE = judged(lateness=recorded(3 * MS, 1000))


def test_a_generator_that_is_late_is_blamed_itself_and_told_what_it_needs() -> None:
    late = result_of(run_of(), run_of(1, valid=False, invalid_because=LATE))
    assert not late.valid
    for text in (in_short(late)[0], unusable(late), " ".join(conclusion(late))):
        assert "1 of 2 measurements was not valid (the load generator was late, not the daemon: " in text
        assert "it needs more --processes, cores that nothing else uses, or a lower --rate" in text
        assert "did not keep up" not in text
        assert "was not sustained" not in text
    assert in_short(late)[0].startswith("Whether the daemon with 2 workers keeps up is not known: ")
    slow = result_of(run_of(p50_ns=60 * MS), run_of(1, valid=False, invalid_because=LATE, p50_ns=900 * MS))
    assert in_short(slow)[0].startswith("The daemon with 2 workers did not keep up: ")
    assert "the 99th percentile was 60." in in_short(slow)[0], "that of the run that is worth something"


def test_a_result_is_worth_something_where_its_figures_tell_of_the_daemon() -> None:
    late = run_of(1, per_s=3000.0, valid=False, invalid_because=LATE)
    assert result_of(run_of()).valid
    assert result_of(steps=[run_of(), late], knee_per_s=1000.0, kind="sweep").valid, "the generator may end a sweep"
    assert not result_of(steps=[late, late], kind="sweep").valid
    assert result_of(steps=[run_of(p50_ns=60 * MS)], kind="sweep").valid


def cut_off(in_time: int, count: int) -> Result:
    """A result with so many cutoffs, of which so many came within the bound."""
    lateness = Histogram()
    for number in range(count):
        lateness.record(5 * MS if number < in_time else 690 * MS)
    return result_of(run_of(cutoffs=Cutoffs(expected=count, received=count, lateness=lateness.sparse())))


def test_three_sentences_come_first() -> None:
    slow = run_of(p50_ns=60 * MS)
    too_much = run_of(1, per_s=1500.0, p50_ns=60 * MS)
    late = result_of(slow, run_of(1, valid=False, invalid_because=["only 199 samples"]))
    few = result_of(run_of(latency=pairs(60 * MS, 100)))
    swept = result_of(steps=[run_of(), too_much], knee_per_s=1000.0, kind="sweep")
    tardy = result_of(run_of(cutoffs=Cutoffs(expected=50_000, received=50_000, lateness=pairs(690 * MS, 50_000))))
    for result, first, second in (
        (result_of(run_of(per_s=2000.0)), "kept up with the 2,000 commands a second", "300 cutoffs"),
        (swept, "keeps up with 1,000 commands", "300 cutoffs"),
        (result_of(run_of(cutoffs=Cutoffs())), "99 of 100 answers came within 2.0 ms", "No cutoff was due"),
        (late, "did not keep up: the 99th percentile was 60.", "cut off in time"),
        (few, "not known: there were too few answers to tell a 99th percentile, and the slowest took 60.", "cut off"),
        (result_of(slow), "the 99th percentile was 60.", "cut off in time"),
        (tardy, "kept up", "was cut off LATE, beyond the 50.0 ms that are meant: 99 of 100 within"),
        (cut_off(0, 20), "kept up", "was cut off LATE: 0 within the 50.0 ms that are meant, the last 69"),
        (cut_off(479, 480), "kept up", "was cut off in time: 479 within the 50.0 ms that are meant, the last 69"),
        (cut_off(476, 480), "kept up", "was cut off in time: 476 within"),
        (cut_off(475, 480), "kept up", "Too few users were cut off to tell whether 99 of 100 are in time: 475 within"),
        (cut_off(468, 480), "kept up", "Too few users were cut off to tell"),
        (cut_off(467, 480), "kept up", "was cut off LATE: 467 within"),
        (cut_off(19, 20), "kept up", "Too few users were cut off to tell"),
        (cut_off(0, 1), "kept up", "Too few users were cut off to tell"),
    ):
        sentences = in_short(result)
        assert len(sentences) == 3
        assert first in sentences[0]
        assert second in sentences[1]
        assert list(summary(result))[:3] == sentences
        assert "Not a nano was wrong" in sentences[2]
    assert "WRONG" in in_short(result_of(run_of(money=Money(wrong_balances=1))))[2]


def test_a_core_is_only_said_to_be_full_where_one_nearly_was() -> None:
    idle = " ".join(conclusion(result_of(run_of(per_s=1_000.0, cpu_us_per_command=10.0))))
    assert "A command cost 10.0 µs of the daemon's CPU at that rate: 0% of a core for each worker." in idle
    assert "is full at" not in idle
    busy = " ".join(conclusion(result_of(run_of(per_s=160_000.0, cpu_us_per_command=10.0))))
    assert "80% of a core for each worker. At that cost a core that does nothing else is full at 100,000 a" in busy


def test_what_is_told_of_few_answers_is_told_of_all_of_them() -> None:
    sentence = in_short(result_of(run_of(latency=pairs(2 * MS, 100))))[0]
    assert "; all answers came within 2.0 ms" in sentence
    assert "99 of 100" not in sentence


def test_one_number_for_one_thing() -> None:
    result = result_of(run_of(per_s=1981.0), run_of(1, per_s=1990.0), run_of(2, per_s=2015.0))
    page = report(result)
    assert "<b>1,990/s</b>" in page
    assert "2,015/s" not in page
    swept = result_of(steps=[run_of(per_s=23_370.0), run_of(1, per_s=23_493.0)], knee_per_s=23_400.0, kind="sweep")
    assert "<b>23,400/s</b>" in report(swept)


def test_no_cutoff_was_due_is_said() -> None:
    text = " ".join(conclusion(result_of(run_of(cutoffs=Cutoffs()))))
    assert "no cutoff was due" in text
    assert "every one of the 0" not in text


@pytest.mark.parametrize(
    ("runs", "text"), [(3, "3 runs of 12 s, with preparing and judging about 54 s in all"), (0, "each step takes 12 s")]
)
def test_it_says_before_how_long_it_will_take(runs: int, text: str) -> None:
    assert how_long(Workload(seconds=10.0, warmup_s=2.0), runs).startswith(text)


def test_wrong_money_comes_before_everything() -> None:
    for run in (run_of(money=Money(wrong_replies=1)), run_of(cutoffs=Cutoffs(missing=1))):
        result = result_of(run)
        assert next(conclusion(result)).startswith("DO NOT TRUST")
        assert verdict_line(run).startswith("WRONG")
        assert "Money is WRONG" in report(result)
    doubled = Cutoffs(expected=1, received=1, doubled=1)
    assert doubled.clean
    assert not Cutoffs(expected=1, received=1, doubled=1, doubled_is_wrong=True).clean


@pytest.mark.parametrize("wrong", ["wrong_replies", "wrong_balances", "wrong_refusals", "unanswered"])
def test_one_answer_that_is_wrong_is_enough(wrong: str) -> None:
    money = msgspec.structs.replace(Money(accounts=10, answered=20_010), **{wrong: 1})
    assert not result_of(run_of(), run_of(1, money=money)).clean


@pytest.mark.parametrize("wrong", ["missing", "early", "false"])
def test_one_cutoff_that_is_wrong_is_enough(wrong: str) -> None:
    cutoffs = msgspec.structs.replace(Cutoffs(expected=300, received=300), **{wrong: 1})
    assert not result_of(run_of(), run_of(1, cutoffs=cutoffs)).clean
    assert result_of(run_of(), run_of(1)).clean


def test_a_result_survives_its_file_and_nothing_else_is_one() -> None:
    result = result_of(run_of(), run_of(1))
    assert from_json(to_json(result)) == result
    with pytest.raises(ValueError, match="no result of a load test"):
        from_json(b'{"runs": []}')


def test_a_page_is_whole_and_escapes_what_it_shows() -> None:
    page = report(result_of(run_of(), run_of(1), command="billing <b>", configuration="<i>"))
    assert "<b>&lt;" not in page
    assert "billing &lt;b&gt;" in page
    assert "<i>" not in page
    assert "<script" not in page
    outside = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+", page)) - {"http://www.w3.org"}
    assert outside == set()
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == 5
    for svg in drawn:
        ElementTree.fromstring(svg)


def test_a_sweep_shows_its_knee() -> None:
    steps = [run_of(number, per_s=1000.0 * (number + 1), p50_ns=(number + 1) * MS) for number in range(3)]
    page = report(result_of(steps=steps, knee_per_s=2000.0, kind="sweep"))
    assert "Throughput against latency" in page
    assert "The knee is at 2,000" in page
    assert page.count("<svg") == 6


def test_figures_in_rows() -> None:
    rows = csv_of(result_of(run_of(), run_of(1))).splitlines()
    assert len(rows) == 3
    assert len({row.count(",") for row in rows}) == 1
    assert rows[1].startswith("run,0,1000,1000.0,20000,20.000,2007.0,")


def test_a_summary_says_valid_and_right_for_each_run() -> None:
    lines = list(summary(result_of(run_of(), run_of(1, valid=False, invalid_because=["late"]))))
    assert [line.strip() for line in lines if line.startswith("  ") and "VALID" in line] == ["VALID", "INVALID; late"]
    assert sum("RIGHT" in line for line in lines) == 2


def test_a_change_is_beyond_the_noise_of_both() -> None:
    assert changed([10, 11, 12], [20, 21, 22])
    assert not changed([10, 11, 12], [12, 13, 14])  # they meet
    assert not changed([10, 17, 19], [20, 21, 22])  # apart, but by less than one of them spreads
    assert not changed([10, 11], [20, 21])  # too few to say


def test_what_changed_is_told_and_what_is_not_comparable_too() -> None:
    before = result_of(*(run_of(number, cpu_us_per_command=10.0 + number / 10) for number in range(3)))
    after = result_of(*(run_of(number, cpu_us_per_command=8.0 + number / 10) for number in range(3)), connections=8)
    lines = list(compare(before, after))
    changes = [line.split() for line in lines if line.endswith("CHANGED")]
    assert [" ".join(cells) for cells in changes] == ["server CPU a command, µs 10.1 8.1 -19.8% 10–10.2 8–8.2 CHANGED"]
    assert "not the same: connections: 4 and 8" in lines
    p50 = next(line for line in lines if line.startswith("latency p50, ms"))
    assert p50.split()[3:6] == ["2.007", "2.007", "+0.0%"]
    assert p50.endswith("within the noise")
    assert not [line for line in compare(before, before) if line.endswith("CHANGED")]


def test_a_comparison_of_too_few_runs_says_so_and_how_many_it_needs() -> None:
    two = result_of(run_of(cpu_us_per_command=10.0), run_of(1, cpu_us_per_command=10.0))
    three = result_of(*(run_of(number, cpu_us_per_command=1.0) for number in range(3)))
    lines = list(compare(two, three))
    assert lines[0] == ("too few runs to tell what changed: the first has 2 runs, and each needs 3 or more (--runs)")
    assert not [line for line in lines if line.endswith(("CHANGED", "within the noise"))]
    assert next(line for line in lines if line.startswith("server CPU a command")).endswith("too few runs")
    assert "the first has 2 runs and the second has 2 runs, and each" in next(compare(two, two))


def test_what_was_asked_for_differently_is_told_by_name() -> None:
    runs = [run_of(number) for number in range(3)]
    before = result_of(*runs, workload=Workload(accounts=50_000, mix=(40, 40, 20, 0)))
    after = result_of(*runs, workload=Workload(accounts=1_000_000, mix=(1, 1, 1, 97), closed=True), kind="closed")
    assert [line for line in compare(before, after) if line.startswith("not the same")] == [
        "not the same: kind: load and closed",
        "not the same: workload accounts: 50,000 and 1,000,000",
        "not the same: workload mix: 40/40/20/0 and 1/1/1/97",
        "not the same: workload closed: no and yes",
    ]
    replayed = result_of(*runs, tracing=Tracing("a.csv"))
    (line,) = [line for line in compare(before, replayed) if "tracing" in line]
    assert line == "not the same: tracing: none and file a.csv, speed 3,600, users 0, dry 0.3, seconds 0"


def test_a_run_counts_the_cutoffs_of_those_before_it_and_says_so() -> None:
    line = verdict_line(run_of(1, cutoffs=Cutoffs(expected=300, received=300)))
    assert "; cutoffs of all runs so far: 300 expected, 300 received, 0 superseded, 0 missing" in line


def test_a_comparison_of_what_is_not_valid_says_so_and_shows_values() -> None:
    bad = result_of(run_of(valid=False), run_of(1), run_of(2))
    lines = list(compare(bad, result_of(run_of(), run_of(1), run_of(2))))
    assert "INVALID: 1 of 3 runs of the first; such latencies are not to be used" in lines
    assert any(line.startswith("commands answered a second") and "1,000" in line for line in lines)


METRICS = """
# TYPE billing_sync_seconds histogram
billing_sync_seconds_bucket{{le="0.01",shard="1"}} {fast}
billing_sync_seconds_bucket{{le="0.02",shard="1"}} {fast}
billing_sync_seconds_bucket{{le="+Inf",shard="1"}} {all}
billing_sync_seconds_count{{shard="1"}} {all}
billing_sync_seconds_sum{{shard="1"}} 1
# TYPE billing_snapshots_total counter
billing_snapshots_total{{shard="1"}} {snapshots}
# TYPE billing_moves_total counter
billing_moves_total {moves}
"""


def test_events_are_what_grew_between_two_readings() -> None:
    before = series_of(METRICS.format(fast=10, all=11, snapshots=0, moves=3))
    after = series_of(METRICS.format(fast=20, all=23, snapshots=1, moves=5))
    assert events_between(before, after) == [
        ("sync", "shard 1: 2 syncs above 20 ms"),
        ("snapshot", "shard 1: a snapshot finished"),
        ("move", "2 buckets moved"),
    ]
    assert events_between(after, after) == []


def test_percentiles_that_may_not_be_told_are_left_out() -> None:
    few = run_of(latency=pairs(2 * MS, 150), answered=150)
    assert "p50" not in "".join(line for line in summary(result_of(few)) if "intended start:" in line)


def test_the_lateness_of_healthy_users_beside_sick_ones_is_in_all_that_is_told() -> None:
    cutoffs = Cutoffs(expected=20_300, received=20_300, lateness=pairs(90 * MS, 300), healthy_lateness=pairs(3 * MS))
    run = run_of(cutoffs=cutoffs)
    result = result_of(run)
    assert "20,000 cutoffs of healthy users beside sick ones, lateness p99 3." in verdict_line(run)
    assert any("lateness of healthy users beside sick ones: p50 3." in line for line in summary(result))
    assert any("while it was sick for others: 99 % within 3." in line for line in conclusion(result))
    assert "of 100 healthy users&#x27; cutoffs came within, beside sick ones" in report(result) or (
        "of 100 healthy users' cutoffs came within, beside sick ones" in report(result)
    )
    assert from_json(to_json(result)).runs[0].cutoffs.healthy_lateness == pairs(3 * MS)
    assert "healthy_p99_us" in csv_of(result)
    well = result_of(run_of())
    assert not any("healthy" in line for line in [*summary(well), *conclusion(well)])
