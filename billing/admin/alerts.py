"""The alerts: one table (`alerts.toml`), out of which come Prometheus' rules, the page /runbook, and what
`billing monitoring runbook` prints.

Theory. An alert is something a person must act on, so each row says what it means and what to do; `page` is worth
waking somebody, `ticket` waits for the morning. Expressions use the metrics of `billing.admin.metrics` (a test holds
the two together). Thresholds are those of what is promised: a cutoff leaves within 50 ms at the 99th percentile,
whatever is owed is being sent, nothing is lost.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

from shards.system.disk import RealDisk, read_file

PAGE: Final = "page"


class Alert(NamedTuple):
    """One alert. `lasting`: how long the expression must hold."""

    name: str
    severity: str
    lasting: str
    expression: str
    summary: str
    meaning: str
    action: str


def _read() -> tuple[Alert, ...]:
    tables = tomllib.loads(read_file(RealDisk(), str(Path(__file__).parent / "alerts.toml")).decode())
    return tuple(Alert(**{key: " ".join(text.split()) for key, text in table.items()}) for table in tables["alert"])


ALERTS: Final = _read()


def rules() -> str:
    """Prometheus' rules file. Texts are JSON strings, which YAML reads as they are."""
    lines = [
        "# Alerts of the billing daemon. Printed by `billing monitoring rules`.",
        "groups:",
        "- name: billing",
        "  rules:",
    ]
    for alert in ALERTS:
        lines += [
            f"  - alert: {alert.name}",
            f"    expr: {json.dumps(alert.expression)}",
            f"    for: {alert.lasting}",
            "    labels:",
            f"      severity: {alert.severity}",
            "    annotations:",
            f"      summary: {json.dumps(alert.summary)}",
            f"      description: {json.dumps(alert.meaning)}",
            f"      action: {json.dumps(alert.action)}",
        ]
    return "\n".join(lines) + "\n"


def runbook() -> str:
    """What each alert means and what to do, as text."""
    parts = [
        f"{alert.name} ({alert.severity}, after {alert.lasting})\n\n  when     {alert.expression}\n"
        f"  means    {alert.meaning}\n  do       {alert.action}\n"
        for alert in ALERTS
    ]
    return "\n".join(parts)
