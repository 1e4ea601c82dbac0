"""The alerts: one table (`alerts.toml`), from which Prometheus' rules, the page /runbook and the output of `billing
monitoring runbook` are made.

Theory. A person must act on an alert, so each row gives its meaning and its remedy. An alert of severity `page` is
worth waking somebody; a `ticket` waits for the morning. Expressions use the metrics of `billing.admin.metrics` (a test
compares the two) and name no job: `selected` adds the job. The thresholds follow from what the daemon promises: a
cutoff leaves within 50 ms at the 99th percentile, the daemon keeps sending each owed cutoff, and it loses none.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

from shards.system.disk import RealDisk, read_file

PAGE: Final = "page"
JOB: Final = "billing"
SITE: Final = "http://{{ $labels.instance }}"  # the address that Prometheus scrapes also serves the runbook
_METRIC: Final = re.compile(r"\b(billing_[a-z_]*[a-z]|up)\b(?!\{)")


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


def selected(expression: str, labels: str) -> str:
    """The expression with these labels added to every metric. `labels`: such as `job="billing"`."""
    return _METRIC.sub(rf"\g<0>{{{labels}}}", expression)


def rules(job: str = JOB, site: str = SITE) -> str:
    """Prometheus' rules file. `job`: the job under which Prometheus scrapes the daemons; `site`: the URL below which
    `/runbook` is served. Texts are JSON strings, which are valid YAML.
    """
    lines = [
        "# Alerts of the billing daemon. Printed by `billing monitoring rules`.",
        "groups:",
        "- name: billing",
        "  rules:",
    ]
    for alert in ALERTS:
        lines += [
            f"  - alert: {alert.name}",
            f"    expr: {json.dumps(selected(alert.expression, f'job={json.dumps(job)}'))}",
            f"    for: {alert.lasting}",
            "    labels:",
            f"      severity: {alert.severity}",
            "    annotations:",
            f"      summary: {json.dumps(alert.summary)}",
            f"      description: {json.dumps(alert.meaning)}",
            f"      action: {json.dumps(alert.action)}",
            f"      runbook_url: {json.dumps(f'{site}/runbook#{alert.name}')}",
        ]
    return "\n".join(lines) + "\n"


def runbook() -> str:
    """The meaning and the remedy of each alert, as text."""
    parts = [
        f"{alert.name} ({alert.severity}, after {alert.lasting})\n\n  when     {alert.expression}\n"
        f"  means    {alert.meaning}\n  do       {alert.action}\n"
        for alert in ALERTS
    ]
    return "\n".join(parts)
