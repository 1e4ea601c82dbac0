"""`billing monitoring`: prints what Prometheus and Grafana take, and what each alert means."""

from __future__ import annotations

import click


@click.group()
def monitoring() -> None:
    """Prints alert rules, the Grafana dashboard, and what each alert means."""


@monitoring.command("rules")
def print_rules() -> None:
    """Alert rules for Prometheus; they expect the job to be called billing."""
    from billing.admin.alerts import rules

    click.echo(rules(), nl=False)


@monitoring.command("grafana")
def print_dashboard() -> None:
    """The dashboard, as the JSON that Grafana imports."""
    from billing.admin.grafana import dashboard

    click.echo(dashboard(), nl=False)


@monitoring.command("runbook")
def print_runbook() -> None:
    """What each alert means, and what to do."""
    from billing.admin.alerts import runbook

    click.echo(runbook(), nl=False)


COMMANDS: dict[str, click.Command] = {"monitoring": monitoring}
