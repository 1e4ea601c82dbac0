"""The command `billing monitoring`: prints the files for Prometheus and Grafana, and the meaning of each alert."""

from __future__ import annotations

import click

from billing.cli.options import Listing
from billing.cli.output import put


@click.group(cls=Listing)
def monitoring() -> None:
    """Prints alert rules, the Grafana dashboard, and what each alert means."""


@monitoring.command("rules")
@click.option("--job", default="billing", show_default=True, help="The job under which Prometheus scrapes the daemon.")
@click.option("--url", metavar="URL", help="Where /runbook is read; else at the address that Prometheus scrapes.")
def print_rules(job: str, url: str | None) -> None:
    """Alert rules for Prometheus; each names its entry in the daemon's /runbook."""
    from billing.admin.alerts import SITE, rules

    put(rules(job, (url or SITE).rstrip("/")), newline=False)


@monitoring.command("grafana")
def print_dashboard() -> None:
    """The dashboard, as the JSON that Grafana imports."""
    from billing.admin.grafana import dashboard

    put(dashboard(), newline=False)


@monitoring.command("runbook")
def print_runbook() -> None:
    """The meaning and the remedy of each alert."""
    from billing.admin.alerts import runbook

    put(runbook(), newline=False)


COMMANDS: dict[str, click.Command] = {"monitoring": monitoring}
