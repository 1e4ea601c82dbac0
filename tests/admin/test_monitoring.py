"""Alert rules and the Grafana dashboard: accepted by promtool, and made of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from billing.admin.alerts import ALERTS, rules, runbook
from billing.admin.grafana import COLUMNS, dashboard
from billing.admin.metrics import CALLS_OUT, DAEMON, WORKER

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is in Debian's package prometheus")
NAMES = {name for name, _ in (*WORKER.values(), *CALLS_OUT.values())} | set(DAEMON)

# What a running daemon shows, as promtool's own tests of rules take it: series, then which alerts they raise.
# `@` stands for the labels of the daemon.
CASES = """
rule_files: [rules.yml]
evaluation_interval: 15s
tests:
- interval: 15s
  input_series:
  - {series: 'up{@}', values: '1x40'}
  - {series: 'billing_shard_up{@,shard="1"}', values: '1x40'}
  - {series: 'billing_shard_up{@,shard="2"}', values: '0x40'}
  - {series: 'billing_shard_up{@,shard="3"}', values: '0x40'}
  - {series: 'billing_shard_up{@,shard="4"}', values: '0x40'}
  - {series: 'billing_shard_held{@,shard="1"}', values: '0x40'}
  - {series: 'billing_shard_held{@,shard="2"}', values: '0x40'}
  - {series: 'billing_shard_held{@,shard="3"}', values: '0x40'}
  - {series: 'billing_shard_held{@,shard="4"}', values: '1x40'}
  - {series: 'billing_cutoff_oldest_owed_seconds{@,shard="1"}', values: '0+15x40'}
  - {series: 'billing_wheel_mismatches_total{@,shard="1"}', values: '0x20 1x20'}
  - {series: 'billing_worker_starts_total{@,shard="1"}', values: '1x40'}
  - {series: 'billing_follower_up{@,shard="1",follower="notices"}', values: '0x80'}
  - {series: 'billing_follower_up{@,shard="1",follower="history"}', values: '1x40'}
  - {series: 'billing_follower_up{@,shard="2",follower="notices"}', values: '1x80'}
  - {series: 'billing_notices_lag_seconds{@,shard="1"}', values: '0+15x80'}
  - {series: 'billing_notices_lag_seconds{@,shard="2"}', values: '0+15x80'}
  - {series: 'billing_notices_awaited_buckets{@,shard="1"}', values: '2x40'}
  - {series: 'billing_cutoffs_due_peak_per_second{@,shard="1"}', values: '5x40'}
  - {series: 'billing_cutoffs_due_peak_per_second{@,shard="2"}', values: '500x40'}
  - {series: 'billing_cutoff_endpoint_takes_per_second{@,shard="1"}', values: '10x40'}
  - {series: 'billing_cutoff_endpoint_takes_per_second{@,shard="2"}', values: '-1x20 100x20'}
  - {series: 'billing_log_bytes{@,shard="1"}', values: '800x40'}
  - {series: 'billing_log_bytes{@,shard="2"}', values: '600x40'}
  - {series: 'billing_log_bytes{@,shard="3"}', values: '2000x40'}
  - {series: 'billing_log_limit_bytes{@,shard="1"}', values: '1000x40'}
  - {series: 'billing_log_limit_bytes{@,shard="2"}', values: '1000x40'}
  alert_rule_test:
  - {alertname: BillingDown, eval_time: 9m, exp_alerts: []}
  - {alertname: BillingWorkerRestarts, eval_time: 9m, exp_alerts: []}
  promql_expr_test:
  - expr: count(ALERTS{alertname="BillingShardDown",alertstate="firing",severity="page"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingShardHeld",alertstate="firing",severity="page"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingCutoffsOwed",alertstate="firing"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingLogNearlyFull",alertstate="firing"})  # that of shard 3 has no limit
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingWheelMismatch",alertstate="firing"})
    eval_time: 6m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingEndpointTooSlow"}) or vector(0)  # shard 2 has not seen it at its limit
    eval_time: 5m
    exp_samples: [{labels: '{}', value: 0}]
  - expr: ALERTS{alertname="BillingEndpointTooSlow",alertstate="pending"}  # one for the daemon
    eval_time: 9m
    exp_samples:
    - {labels: 'ALERTS{alertname="BillingEndpointTooSlow",alertstate="pending",@,severity="ticket"}', value: 1}
  - expr: count(ALERTS{alertname="BillingFollowerDown",alertstate="firing",follower="notices"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingFollowerDown"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: ALERTS{alertname="BillingNotifierBehind"}  # of shard 2 alone: that of shard 1 does not run
    eval_time: 16m
    exp_samples:
    - labels: 'ALERTS{alertname="BillingNotifierBehind",alertstate="firing",@,shard="2",severity="ticket"}'
      value: 1
  - expr: ALERTS{alertname="BillingNoticesAwaited",alertstate="pending"}  # one for the daemon
    eval_time: 9m
    exp_samples:
    - {labels: 'ALERTS{alertname="BillingNoticesAwaited",alertstate="pending",@,severity="ticket"}', value: 1}
- interval: 15s
  input_series:
  - {series: 'up{@}', values: '1x40'}
  - {series: 'billing_clock_error_seconds{@}', values: '0.13x20 0.26x20'}
  - {series: 'billing_clock_error_limit_seconds{@}', values: '0.25x40'}
  - {series: 'billing_clock_kept{@}', values: '0x40'}
  - {series: 'billing_stands_by{@}', values: '1x20 0x20'}
  - {series: 'billing_shards_without_host{@}', values: '2x20 0x20'}
  - {series: 'billing_shards_lost_total{@}', values: '0x20 1x20'}
  promql_expr_test:
  - expr: count by (alertname) (ALERTS{alertstate="firing"})
    eval_time: 4m
    exp_samples:
    - {labels: '{alertname="BillingClockDoubtful"}', value: 1}
    - {labels: '{alertname="BillingNoHostServes"}', value: 1}
    - {labels: '{alertname="BillingShardWithoutHost"}', value: 1}
  - expr: count by (alertname) (ALERTS{alertstate="firing",alertname=~"BillingClock.*t.*|Billing(No|Shard).*"})
    eval_time: 9m
    exp_samples:
    - {labels: '{alertname="BillingClockUnfit"}', value: 1}
    - {labels: '{alertname="BillingShardsLost"}', value: 1}
- interval: 15s
  input_series:
  - {series: 'up{@}', values: '1x40'}
  - {series: 'billing_shard_up{@,shard="1"}', values: '1x40'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{@,le="0.05"}', values: '0+10x40'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{@,le="1"}', values: '0+20x40'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{@,le="+Inf"}', values: '0+20x40'}
  promql_expr_test:
  - expr: count(ALERTS{alertname="BillingCutoffsLate",alertstate="firing"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
- interval: 15s
  input_series: [{series: 'up{job="other",instance="b:80"}', values: '1x40'}]
  promql_expr_test:
  - expr: count(ALERTS{alertname="BillingDown",alertstate="firing"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
"""

# The endpoint is away for eight minutes from the second on, seen by both shards; what it missed is then sent late.
OUTAGE = """
rule_files: [rules.yml]
evaluation_interval: 15s
tests:
- interval: 15s
  input_series:
  - {series: 'up{@}', values: '1x80'}
  - {series: 'billing_shard_up{@,shard="1"}', values: '1x80'}
  - {series: 'billing_shard_up{@,shard="2"}', values: '1x80'}
  - {series: 'billing_cutoff_endpoints_shut{@,shard="1"}', values: '0x7 1x32 0x40'}
  - {series: 'billing_cutoff_endpoints_shut{@,shard="2"}', values: '0x7 1x32 0x40'}
  - {series: 'billing_cutoff_oldest_owed_seconds{@,shard="1"}', values: '0x7 0+15x32 0x40'}
  - {series: 'billing_cutoff_oldest_owed_seconds{@,shard="2"}', values: '0x7 0+15x32 0x40'}
  - {series: 'billing_cutoffs_held{@,shard="1"}', values: '0x80'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{@,le="0.05"}', values: '0x80'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{@,le="+Inf"}', values: '0x39 1000x41'}
  - {series: 'billing_cutoff_waiting_seconds{@,shard="1"}', values: '0x7 0+15x32 0x40'}
  promql_expr_test:
  - expr: count(count_over_time(ALERTS{alertstate="firing",severity="page"}[20m]))
    eval_time: 20m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingEndpointShut",alertstate="firing"})
    eval_time: 6m
    exp_samples: [{labels: '{}', value: 1}]
"""


def metrics_in(expression: str) -> set[str]:
    names = set(re.findall(r"\bbilling_[a-z_]+", expression))
    return {re.sub(r"_bucket$", "", name) for name in names}


@needs_promtool
def test_promtool_takes_the_rules_and_they_fire_when_they_should(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    (tmp_path / "rules.yml").write_text(rules())
    checked = subprocess.run(
        [PROMTOOL, "check", "rules", "--lint=all", "--lint-fatal", "rules.yml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
    assert promtool_says(tmp_path, CASES) == "SUCCESS"


@needs_promtool
def test_one_outage_is_one_page(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules())
    assert promtool_says(tmp_path, OUTAGE) == "SUCCESS"


def promtool_says(directory: Path, cases: str) -> str:
    """SUCCESS, or all that promtool says of what came otherwise."""
    assert PROMTOOL is not None
    (directory / "cases.yml").write_text(cases.replace("@", 'job="billing",instance="a:9311"'))
    result = subprocess.run(
        [PROMTOOL, "test", "rules", "cases.yml"], cwd=directory, capture_output=True, text=True, check=False
    )
    return result.stdout.split()[-1] if result.returncode == 0 else result.stdout + result.stderr


def test_each_rule_keeps_to_its_job_and_names_its_entry_of_the_runbook() -> None:
    written = rules("prod", "https://billing.example")
    for alert in ALERTS:
        assert f"https://billing.example/runbook#{alert.name}" in written
    for expression in re.findall(r'expr: (".*")', written):
        named = re.findall(r"\b(?:billing_[a-z_]+|up)\b(\S*)", json.loads(expression))
        assert named
        assert all(labels.startswith('{job="prod"}') for labels in named), expression


def test_alerts_ask_for_metrics_that_there_are() -> None:
    for alert in ALERTS:
        assert metrics_in(alert.expression) <= NAMES, alert.name


def test_each_alert_is_told_apart_and_says_what_to_do() -> None:
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert alert.severity in ("page", "ticket")
        assert len(alert.action) > 20
        assert alert.name in runbook()
        assert alert.action in runbook()


def test_the_dashboard_shows_metrics_that_there_are_and_nothing_overlaps() -> None:
    board = json.loads(dashboard())
    occupied: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not cells & occupied, panel["title"]
        occupied |= cells
        for target in panel.get("targets", []):
            assert metrics_in(target["expr"]) <= NAMES, panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    everything = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
    assert metrics_in(everything) >= {"billing_cutoff_sent_lateness_seconds", "billing_overrun_coins", "billing_ready"}


@needs_promtool
def test_every_query_of_the_dashboard_is_a_query(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    expressions = {
        target["expr"].replace("$__rate_interval", "5m").replace("$job", "billing").replace("$instance", ".*")
        for panel in json.loads(dashboard())["panels"]
        for target in panel.get("targets", [])
    }
    recorded = "".join(
        f"  - record: r{i}\n    expr: {json.dumps(expression)}\n" for i, expression in enumerate(sorted(expressions))
    )
    (tmp_path / "queries.yml").write_text("groups:\n- name: queries\n  rules:\n" + recorded)
    checked = subprocess.run(
        [PROMTOOL, "check", "rules", "queries.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
