"""The doctor reads files: of another kind of log it names the way, and says nothing of an empty directory."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from billing.cli.main import root


def test_a_log_that_is_no_files_is_proved_by_a_backup_of_it(data_dir: Path) -> None:
    config = data_dir / "config.toml"
    config.write_text(
        '[journal]\nkind = "jetstream"\n[cluster]\nservers = ["nats://127.0.0.1:1"]\nreplicas = 1\nshards = 2\n'
    )
    told = CliRunner().invoke(root, ["doctor", "--config", str(config)])
    assert told.exit_code == 78
    assert "take a backup" in told.output
