"""A directory that is not there is named as that by every command that takes one: 2 for the line, 78 for the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from billing.cli.main import main

NOBODY = "127.0.0.1:1"  # no daemon is asked before the directory is looked at


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, capsys.readouterr().err


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration whose data directory is not there."""
    file = tmp_path / "config.toml"
    file.write_text(f'[daemon]\ndata_dir = "{tmp_path}/nowhere"\n')
    return str(file)


@pytest.mark.parametrize(
    "arguments",
    [
        ("journal", "dump", "--shard", "1"),
        ("journal", "dump", "--shard", "0"),
        ("doctor",),
        ("audit",),
        ("rebuild",),
        ("rebuild", "--shard", "1"),
    ],
    ids=" ".join,
)
def test_of_the_configuration(
    config: str, tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = ended(capsys, *arguments, "--config", config)
    assert code == 78
    assert message.startswith("billing: there is no ")
    assert f"directory {tmp_path}/nowhere" in message
    assert "damaged" not in message


def test_a_shard_that_the_data_directory_does_not_have(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nowhere").mkdir()
    assert ended(capsys, "journal", "dump", "--shard", "7", "--config", config) == (
        78,
        f"billing: there is no directory {tmp_path}/nowhere/shard-7\n",
    )


def test_a_shard_that_the_log_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "cluster.toml"
    cluster = 'cluster = { servers = ["nats://127.0.0.1:9"], shards = 2, replicas = 1 }'
    config.write_text(f'journal.kind = "jetstream"\n{cluster}\n')
    assert ended(capsys, "journal", "dump", "--shard", "7", "--config", str(config)) == (
        78,
        "billing: there is no shard 7: cluster.shards is 2\n",
    )


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (("restore", "{}/absent"), "absent"),
        (("rebuild", "--from-backup", "{}/absent"), "absent"),
        (("backup", "{}/absent/copy", "--address", NOBODY), "absent"),
        (("loadtest", "--directory", "{}/absent"), "absent"),
        (("loadtest", "--json", "{}/absent/result.json"), "absent"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_of_the_line(
    tmp_path: Path, arguments: tuple[str, ...], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = ended(capsys, *(argument.format(tmp_path) for argument in arguments))
    assert (code, message) == (2, f"billing: there is no directory {tmp_path}/{missing}\n")


def test_a_file_is_no_directory(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, "restore", config) == (2, f"billing: {tmp_path}/config.toml is no directory\n")


def test_a_directory_is_no_file_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, "loadtest", "--html", str(tmp_path)) == (
        2,
        f"billing: {tmp_path} is a directory, and no file\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [("journal", "dump"), ("import",), ("reconcile",), ("export", "accounts", "--tls-ca")],
    ids=" ".join,
)
def test_a_file_that_cannot_be_reached_is_not_called_missing(
    tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """As one below a directory that this user may not enter; here, a link to itself."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    code, message = ended(capsys, *arguments, str(loop))
    assert code == 2
    assert f"{loop} cannot be read: Too many levels of symbolic links" in message
    assert "exist" not in message
