"""A data directory that another kind of log has left its data in is refused before anything is founded there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shards.journal import Unfit, backends
from shards.system.host import REAL
from tests.system.commands import carried_out

SETTINGS: dict[str, dict[str, Any]] = {
    "file": {"sync": "always", "sync_interval_ns": 0, "segment_bytes": 1 << 20},
    "jetstream": {"servers": ["nats://127.0.0.1:1"], "credentials_file": "", "tls_ca": "", "node": "a", "shards": 1},
}
CONFIG = {
    "file": "",
    "jetstream": """[journal]
kind = "jetstream"
[cluster]
servers = ["nats://127.0.0.1:1"]
replicas = 1
shards = 1
""",
}


@pytest.mark.parametrize(
    ("kind", "left", "other"),
    [("file", "cluster", "jetstream"), ("jetstream", "map", "file"), ("jetstream", "shard-2", "file")],
)
def test_what_another_kind_of_log_has_left_is_refused_by_every_command_that_would_read_or_found(
    kind: str, left: str, other: str, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    (data_dir / left).mkdir(parents=True)
    backend = backends.open({"kind": kind, "directory": str(data_dir), **SETTINGS[kind]}, REAL)
    with pytest.raises(Unfit) as refused:
        backend.prepare()
    assert f'journal.kind is "{kind}", and daemon.data_dir has {data_dir}/{left}, which "{other}" leaves' in str(
        refused.value
    )
    config = tmp_path / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{data_dir}"\n{CONFIG[kind]}')
    for command in (("doctor",), ("rebuild",), ("rebuild", "--map")):
        said = carried_out(*command, "--config", config)
        assert (said.returncode, said.stderr) == (78, f"billing: {refused.value}\n")
    assert [path.name for path in data_dir.iterdir()] == [left]


@pytest.mark.parametrize("kind", ["file", "jetstream"])
def test_what_its_own_kind_has_left_is_no_reason(kind: str, tmp_path: Path) -> None:
    for name in ("history", "audit", *backends.KINDS[kind].leaves):
        (tmp_path / name).mkdir()
    backends.check_kind(kind, str(tmp_path), REAL.disk)
    backends.check_kind(kind, f"{tmp_path}/nowhere", REAL.disk)
    backends.check_kind(kind, "", REAL.disk)
