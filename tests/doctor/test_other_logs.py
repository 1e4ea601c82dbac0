"""The doctor reads a log on servers, too, if they can be reached; `tests/system/test_jetstream.py` has one that is."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from billing.cli.main import root
from shards.exits import Exit


def test_a_log_on_servers_that_cannot_be_reached_is_not_proved(data_dir: Path) -> None:
    config = data_dir / "config.toml"
    config.write_text(
        '[journal]\nkind = "jetstream"\n[cluster]\nservers = ["nats://127.0.0.1:1"]\nreplicas = 1\nshards = 2\n'
    )
    result = CliRunner().invoke(root, ["doctor", "--config", str(config)])
    assert result.exit_code == Exit.UNREACHABLE, result.output
    cut = ["--truncate-at", "5", "--accept-loss"]
    result = CliRunner().invoke(root, ["doctor", "--config", str(config), *cut])
    assert result.exit_code == Exit.REFUSED
    assert "restore a backup" in result.output
