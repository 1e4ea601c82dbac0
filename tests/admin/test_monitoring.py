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
from billing.admin.metrics import DAEMON, WORKER

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is in Debian's package prometheus")
NAMES = {name for name, _ in WORKER.values()} | set(DAEMON)

# What a running daemon shows, as promtool's own tests of rules take it: series, then which alerts they raise.
CASES = """
rule_files: [rules.yml]
evaluation_interval: 15s
tests:
- interval: 15s
  input_series:
  - {series: 'up{job="billing"}', values: '1x40'}
  - {series: 'billing_shard_up{shard="1"}', values: '1x40'}
  - {series: 'billing_shard_up{shard="2"}', values: '0x40'}
  - {series: 'billing_shard_up{shard="3"}', values: '0x40'}
  - {series: 'billing_shard_held{shard="1"}', values: '0x40'}
  - {series: 'billing_shard_held{shard="2"}', values: '0x40'}
  - {series: 'billing_shard_held{shard="3"}', values: '1x40'}
  - {series: 'billing_cutoff_oldest_owed_seconds{shard="1"}', values: '0+15x40'}
  - {series: 'billing_wheel_mismatches_total{shard="1"}', values: '0x20 1x20'}
  - {series: 'billing_worker_starts_total{shard="1"}', values: '1x40'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{shard="1",le="0.05"}', values: '0+10x40'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{shard="1",le="1"}', values: '0+20x40'}
  - {series: 'billing_cutoff_sent_lateness_seconds_bucket{shard="1",le="+Inf"}', values: '0+20x40'}
  alert_rule_test:
  - {alertname: BillingDown, eval_time: 9m, exp_alerts: []}
  - {alertname: BillingWorkerRestarts, eval_time: 9m, exp_alerts: []}
  promql_expr_test:
  - expr: count(ALERTS{alertname="BillingShardDown",alertstate="firing",shard="2"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingShardDown"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingShardHeld",alertstate="firing",shard="3",severity="page"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingCutoffsOwed",alertstate="firing"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingWheelMismatch",alertstate="firing"})
    eval_time: 6m
    exp_samples: [{labels: '{}', value: 1}]
  - expr: count(ALERTS{alertname="BillingCutoffsLate",alertstate="firing"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
- interval: 15s
  input_series: [{series: 'up{job="other"}', values: '1x40'}]
  promql_expr_test:
  - expr: count(ALERTS{alertname="BillingDown",alertstate="firing"})
    eval_time: 9m
    exp_samples: [{labels: '{}', value: 1}]
"""


def metrics_in(expression: str) -> set[str]:
    found = set(re.findall(r"\bbilling_[a-z_]+", expression))
    return {re.sub(r"_bucket$", "", name) for name in found}


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
    (tmp_path / "cases.yml").write_text(CASES)
    tried = subprocess.run(
        [PROMTOOL, "test", "rules", "cases.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr


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
    shown = json.loads(dashboard())
    taken: set[tuple[int, int]] = set()
    for panel in shown["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert metrics_in(target["expr"]) <= NAMES, panel["title"]
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])
    everything = " ".join(target["expr"] for panel in shown["panels"] for target in panel.get("targets", []))
    assert metrics_in(everything) >= {"billing_cutoff_sent_lateness_seconds", "billing_overrun_coins", "billing_ready"}


@needs_promtool
def test_every_query_of_the_dashboard_is_a_query(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    expressions = {
        target["expr"].replace("$__rate_interval", "5m")
        for panel in json.loads(dashboard())["panels"]
        for target in panel.get("targets", [])
    }
    recorded = "".join(f"  - record: r{i}\n    expr: {json.dumps(one)}\n" for i, one in enumerate(sorted(expressions)))
    (tmp_path / "queries.yml").write_text("groups:\n- name: queries\n  rules:\n" + recorded)
    checked = subprocess.run(
        [PROMTOOL, "check", "rules", "queries.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
