"""The Grafana dashboard, as the JSON that Grafana imports: panels from one table, the most urgent ones first."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from billing.admin.alerts import selected

COLUMNS: Final = 24  # of Grafana's grid
SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
SELECTOR: Final = 'job=~"$job",instance=~"$instance"'


class Panel(NamedTuple):
    """One panel; queries are (expression, legend)."""

    title: str
    unit: str  # Grafana's name of it
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    wide: int = 8
    help: str = ""


def _quantiles(metric: str, by: str = "le") -> tuple[tuple[str, str], ...]:
    shard = " shard {{shard}}" if "shard" in by else ""
    return tuple(
        (f"histogram_quantile({share}, sum by ({by}) (rate({metric}_bucket[$__rate_interval])))", f"p{name}{shard}")
        for share, name in ((0.5, "50"), (0.99, "99"))
    )


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Now",
        (
            Panel("Ready", "bool_yes_no", (("billing_ready", ""),), "stat", 4),
            Panel("Cutoffs owed", "short", (("sum(billing_cutoffs_owed)", ""),), "stat", 4),
            Panel("Oldest owed", "s", (("max(billing_cutoff_oldest_owed_seconds)", ""),), "stat", 4),
            Panel("Held back", "short", (("sum(billing_cutoffs_held)", ""),), "stat", 4),
            Panel("Due within a minute", "short", (("sum(billing_cutoffs_due_within_minute)", ""),), "stat", 4),
            Panel("Accounts", "short", (("sum(billing_accounts)", ""),), "stat", 4),
        ),
    ),
    (
        "Cutoffs",
        (
            Panel(
                "From running out to the first call", "s", _quantiles("billing_cutoff_sent_lateness_seconds"), wide=12
            ),
            Panel("From running out to the 2xx", "s", _quantiles("billing_cutoff_done_lateness_seconds"), wide=12),
            Panel(
                "Calls a second",
                "short",
                (
                    ("sum by (kind) (rate(billing_cutoff_calls_total[$__rate_interval]))", "{{kind}} begun"),
                    ("sum by (kind) (rate(billing_cutoff_calls_delivered_total[$__rate_interval]))", "{{kind}} 2xx"),
                    ("sum by (kind) (rate(billing_cutoff_calls_failed_total[$__rate_interval]))", "{{kind}} failed"),
                ),
            ),
            Panel("Owed, by shard", "short", (("billing_cutoffs_owed", "shard {{shard}}"),)),
            Panel(
                "Overrun",
                "short",
                (
                    ("sum(billing_overrun_coins)", "coins in all"),
                    ("sum(increase(billing_overrun_grown_coins_total[1d]))", "coins in a day"),
                    ("sum(billing_overrun_coins_per_second) * 3600", "coins an hour"),
                ),
                help="What machines of exhausted accounts used without paying.",
            ),
        ),
    ),
    (
        "Commands",
        (
            Panel(
                "Commands a second, by method",
                "short",
                (("sum by (method) (rate(billing_requests_total[$__rate_interval]))", "{{method}}"),),
                wide=12,
            ),
            Panel(
                "Errors a second, by name",
                "short",
                (("sum by (error) (rate(billing_errors_total[$__rate_interval]))", "{{error}}"),),
                wide=12,
            ),
            Panel("From reading a request to writing its reply", "s", _quantiles("billing_request_duration_seconds")),
            Panel("Connections", "short", (("billing_connections", "shard {{shard}}"),)),
            Panel(
                "Entries a second",
                "short",
                (("rate(billing_entries_total[$__rate_interval])", "shard {{shard}}"),),
            ),
            Panel("Entries in a batch", "short", _quantiles("billing_batch_entries")),
            Panel(
                "CPU of each process",
                "percentunit",
                (("rate(billing_process_cpu_seconds_total[$__rate_interval])", "{{process}}"),),
            ),
            Panel("Memory of each process", "bytes", (("billing_process_resident_memory_bytes", "{{process}}"),)),
        ),
    ),
    (
        "Disk and loop",
        (
            Panel("Sync", "s", _quantiles("billing_sync_seconds", "le, shard")),
            Panel("Loop lag", "s", _quantiles("billing_loop_lag_seconds", "le, shard")),
            Panel("Longest pause of a minute", "s", (("billing_loop_pause_minute_max_seconds", "shard {{shard}}"),)),
            Panel("Journal", "bytes", (("billing_journal_bytes", "shard {{shard}}"),)),
            Panel(
                "Log on servers",
                "bytes",
                (("billing_log_bytes", "shard {{shard}}"), ("billing_log_limit_bytes", "limit of shard {{shard}}")),
                help="With journal.kind = jetstream: what each shard's stream holds, and its max_bytes.",
            ),
            Panel("Round trip to the log", "s", (("billing_log_round_trip_seconds", "shard {{shard}}"),)),
            Panel("Grant of time left", "s", (("billing_grant_left_seconds", "shard {{shard}}"),)),
            Panel("Snapshot age", "s", (("billing_snapshot_age_seconds", "shard {{shard}}"),)),
            Panel("History behind", "s", (("billing_history_lag_seconds", "shard {{shard}}"),)),
        ),
    ),
    (
        "Shards and time",
        (
            Panel("Buckets", "short", (("billing_buckets", "shard {{shard}}"),)),
            Panel(
                "Moves a minute",
                "short",
                (
                    ("rate(billing_moves_total[$__rate_interval]) * 60", "moved"),
                    ("rate(billing_moves_aborted_total[$__rate_interval]) * 60", "given up"),
                ),
            ),
            Panel("Starts of workers", "short", (("billing_worker_starts_total", "shard {{shard}}"),)),
            Panel("Wall time minus billing time", "s", (("billing_clock_offset_seconds", ""),)),
            Panel("Timers found wrong", "short", (("billing_wheel_mismatches_total", "shard {{shard}}"),)),
            Panel("Request ids gone early", "short", (("billing_request_ids_evicted_early_total", "shard {{shard}}"),)),
        ),
    ),
)


def dashboard() -> str:
    """The whole dashboard as JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(_placed({"type": "row", "title": title, "collapsed": False, "panels": []}, 0, y, COLUMNS, 1))
        y += 1
        x = tall = 0
        for panel in row:
            if x + panel.wide > COLUMNS:
                x, y = 0, y + tall
            tall = 4 if panel.kind == "stat" else 8
            panels.append(_placed(_panel(panel), x, y, panel.wide, tall))
            x += panel.wide
        y += tall
    for number, placed in enumerate(panels, 1):
        placed["id"] = number
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}
    document = {
        "uid": "billing",
        "title": "Billing",
        "description": "The real-time prepaid billing daemon",
        "tags": ["billing"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, _variable("job", ""), _variable("instance", '{job=~"$job"}')]},
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"


def _variable(label: str, within: str) -> dict[str, Any]:
    """A variable of the dashboard: the viewer chooses among the values that the label has in `billing_info`; at first
    all are chosen.
    """
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values(billing_info{within}, {label})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panel: dict[str, Any], x: int, y: int, wide: int, tall: int) -> dict[str, Any]:
    return {**panel, "gridPos": {"x": x, "y": y, "w": wide, "h": tall}}


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0} if panel.unit != "s" else {"unit": "s"},
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": selected(expression, SELECTOR),
                "legendFormat": legend,
                "datasource": SOURCE,
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }
