"""The command line: what it offers, that it is quick to say so, and with which code each ending ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from billing import __version__
from billing.cli.finding import RULE
from billing.cli.listing import ELSEWHERE, MODULE_OF, SECTIONS
from billing.cli.main import root
from billing.config.schema import Config, declared
from tests.doctor.builder import DataDirectoryBuilder
from tests.system.commands import carried_out

HEAVY = ("pydantic", "aiohttp", "uvloop", "asyncio", "msgpack", "msgspec", "rich", "sqlite3", "billing.config.schema")


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "billing", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=60)


def test_help_lists_every_command_with_one_line() -> None:
    text_of_help = run("--help").stdout
    for name, command in root.commands.items():
        assert (f"\n  {name} " in text_of_help) is not command.hidden
    help_words = " ".join(text_of_help.split())
    for commands in ELSEWHERE.values():
        for name, text in commands.items():
            assert f" {name} {text}" in help_words
    for title, names in SECTIONS.items():
        assert f"\n{title}:\n" in text_of_help
        assert set(names) <= {*root.commands, *MODULE_OF}


def test_help_imports_no_more_than_it_needs() -> None:
    code = (
        "import sys; from billing.cli.main import root; root.main(['--help'], standalone_mode=False);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ELSEWHERE)
def test_a_module_has_the_commands_that_the_table_says(module: str) -> None:
    commands = import_module(module).COMMANDS
    assert {name: command.get_short_help_str(200) for name, command in commands.items()} == ELSEWHERE[module]
    for name, command in commands.items():
        assert root.get_command(click.Context(root), name) is command


def test_no_name_is_given_twice() -> None:
    names = [*root.commands, *(name for commands in ELSEWHERE.values() for name in commands)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [*root.commands, *MODULE_OF])
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(root, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Usage:")


@pytest.mark.parametrize("arguments", [(), ("journal",), ("token",)])
def test_a_line_without_a_command_gets_the_help_once(arguments: Any) -> None:
    result = carried_out(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Usage: {' '.join(('billing', *arguments))} [OPTIONS] COMMAND")
    assert result.stderr.count("Usage") == 1
    assert "Commands" in result.stderr or "Accounts" in result.stderr


def leaves(group: click.Group, context: click.Context) -> Iterator[click.Command]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, click.Context(command, parent=context))
        yield command


def test_one_rule_finds_the_configuration_of_every_command() -> None:
    commands_seen = 0
    for command in leaves(root, click.Context(root)):
        for param in command.params:
            if isinstance(param, click.Option) and "--config" in param.opts and not param.hidden:
                assert RULE in str(param.help), command.name
                commands_seen += 1
    assert commands_seen > 30


def test_the_version() -> None:
    assert run("--version").stdout == f"billing {__version__}\n"


def test_a_call_that_makes_no_sense_ends_with_2() -> None:
    assert run("no-such-command").returncode == 2
    assert run("serve", "--no-such-option").returncode == 2


def test_config_check_says_everything_that_is_wrong_and_ends_with_78(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[shards]\nworkers = "2"\n[rpc]\nlisten = "0.0.0.0:1"\nlistn = 1\n')
    result = carried_out("config", "check", "--config", file)
    assert result.returncode == 78
    assert result.stdout == ""
    assert [line.split(" ")[0] for line in result.stderr.splitlines()[1:]] == [
        "rpc.listen",
        "rpc.listn",
        "shards.workers",
    ]


def test_an_empty_token_file_is_told_before_anybody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    result = carried_out("ping", "--token-file", tmp_path / "token")
    assert result.returncode == 2
    assert f"{tmp_path / 'token'} is empty: expected a token" in " ".join(result.stderr.split())


def test_a_token_file_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    result = carried_out("ping", "--token-file", tmp_path / "nofile")
    assert result.returncode == 2
    message = " ".join(result.stderr.split())
    assert message.count("nofile") == 1
    assert "nofile: No such file or directory" in message


def test_config_check_says_that_nothing_is_wrong() -> None:
    result = carried_out("config", "check", "--config", Path(__file__).parents[2] / "config.toml")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("config.toml can be run\n")


def test_config_check_of_a_log_on_servers_names_the_command_that_asks_them(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    cluster = 'servers = ["nats://127.0.0.1:4222"]\nshards = 2\nreplicas = 1\n'
    file.write_text(f'[journal]\nkind = "jetstream"\n[cluster]\n{cluster}[shards]\nworkers = 2\n')
    result = carried_out("config", "check", "--config", file)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("cluster.shards included, says: billing cluster check\n")


def test_config_show_prints_what_takes_effect_and_from_where(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[shards]\nworkers = 3\n")
    result = carried_out("config", "show", "--config", file, BILLING_RPC__DIRECT="false")
    assert result.returncode == 0
    tables = tomllib.loads(result.stdout)
    assert [f"{section}.{key}" for section, table in tables.items() for key in table] == [
        path for path, _ in declared()
    ]
    assert tables["shards"]["workers"] == 3
    assert tables["rpc"]["direct"] is False
    assert tables["daemon"]["data_dir"] == str(tmp_path / "data")
    lines = result.stdout.splitlines()
    assert "workers = 3  # file" in lines
    assert "direct = false  # environment" in lines
    assert f'listen = "{Config().rpc.listen}"  # default' in lines


def test_what_config_show_prints_is_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "shown.toml"
    file.write_text(carried_out("config", "show").stdout)
    assert carried_out("config", "check", "--config", file).returncode == 0


def test_serve_does_not_start_on_a_faulty_configuration() -> None:
    result = run("serve", BILLING_SHARDS__WORKERS="none", BILLING_LOG__LEVEL="loud")
    assert result.returncode == 78
    assert "shards.workers (environment)" in result.stderr
    assert "log.level (environment)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        (("help",), ("--help",)),
        (("help", "top-up"), ("top-up", "--help")),
        (("buckets", "help"), ("buckets", "--help")),
    ],
)
def test_help_is_a_word_too(arguments: tuple[str, ...], same: tuple[str, ...]) -> None:
    result = carried_out(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == carried_out(*same).stdout
    assert result.stdout.startswith("Usage: billing")


def test_a_choice_of_the_load_test_has_no_empty_word() -> None:
    for command in leaves(root, click.Context(root)):
        for param in command.params:
            if isinstance(param.type, click.Choice):
                assert "" not in param.type.choices, f"{command.name} {param.opts}"


def test_a_span_out_of_its_bounds_is_told_in_units() -> None:
    result = carried_out("forecast", "--within", "8d")
    assert result.returncode == 2
    assert "expected 1s at least and 7d at most, got 8d" in result.stderr


@pytest.mark.parametrize("text", ["tomorrow", "nonsense", "now"])
def test_an_end_of_credit_is_a_date_or_an_instant(text: str) -> None:
    result = carried_out("top-up", "u", "1", "--expires", text)
    assert result.returncode == 2
    assert f"--expires: expected a date or an instant, as 2027-01-01 or 2026-12-31T12:00, got {text!r}" in result.stderr
    assert "yesterday" not in result.stderr


@pytest.mark.parametrize(
    ("argument", "instead"),
    [("reload", "systemctl reload billing"), ("start", "billing serve"), ("status", "billing shards")],
)
def test_words_of_a_service_are_answered_with_what_does_it(argument: str, instead: str) -> None:
    result = CliRunner().invoke(root, [argument])
    assert result.exit_code == 2
    assert f"there is no command {argument}; " in result.stderr
    assert instead in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--never", "--amount", "5"), ("--never", "--runway", "1h")])
def test_a_line_that_only_asks_for_thresholds_takes_none_away(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(root, ["thresholds", "u", *arguments, "--address", "127.0.0.1:1"])
    assert result.exit_code == 2
    assert "`billing account` shows what is set" in result.stderr


def unread(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command whose output nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "billing", *arguments]
        result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    finally:
        os.close(writing)
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    "line",
    ["--help", "--version", "help debit", "account --help", "config default", "completion bash", "monitoring runbook"],
)
def test_a_reader_who_has_seen_enough_is_no_failure(line: str) -> None:
    assert unread(*line.split()) == (0, "")


def test_a_verdict_is_the_same_whoever_reads_it(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.close()
    config = tmp_path / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{data_dir}"\n')
    assert unread("doctor", "--config", str(config)) == (0, "")
    assert unread("journal", "dump", "--shard", "1", "--config", str(config)) == (0, "")
    shutil.rmtree(data_dir / "map")
    assert unread("doctor", "--config", str(config)) == (65, "")


@pytest.mark.parametrize(("timeout", "message"), [("0", "expected 1ms at least, got 0"), ("-5", "got '-5'")])
def test_no_time_to_wait_is_a_bad_value(timeout: str, message: str) -> None:
    result = carried_out("accounts", "--address", "127.0.0.1:1", "--timeout", timeout)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize("tz", ["", "UTC", ":Europe/Moscow", "EST5EDT", "MSK-3", "<+03>-3", "/etc/localtime"])
def test_a_zone_that_the_machine_knows_is_taken(tz: str) -> None:
    assert "time zone" not in run("accounts", "--address", "127.0.0.1:1", TZ=tz).stderr


def test_a_zone_that_there_is_not_is_told_and_times_are_in_utc() -> None:
    result = run("accounts", "--address", "127.0.0.1:1", TZ="Foo/Bar")
    assert "billing: TZ: there is no time zone 'Foo/Bar'; times are in UTC" in result.stderr
    assert result.returncode == 3
    assert "time zone" not in run("accounts", "--address", "127.0.0.1:1", "--zone", "UTC", TZ="Foo/Bar").stderr


@pytest.mark.parametrize("columns", range(50, 121, 10))
def test_help_breaks_no_word_at_its_hyphen(columns: int) -> None:
    for line in carried_out("loadtest", "--help", COLUMNS=str(columns)).stdout.splitlines():
        assert not line.endswith("-"), line


def test_the_report_of_a_load_test_is_named_in_either_way(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text("{}")
    for report_options in (["a.html"], ["--html", "a.html"]):
        report_result = CliRunner().invoke(root, ["loadtest", "report", str(result), *report_options])
        assert report_result.exit_code == 1, "the file holds no result"
    for report_options in ([], ["a.html", "--html", "b.html"]):
        report_result = CliRunner().invoke(root, ["loadtest", "report", str(result), *report_options])
        assert (report_result.exit_code, "one file for the report: HTML or --html FILE" in report_result.output) == (
            2,
            True,
        )


@pytest.mark.parametrize("arguments", [("--help",), ("statement", "--help"), ("demo", "--once")], ids=" ".join)
def test_an_output_that_takes_nothing_is_named(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "billing", *arguments]
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path, env={}
        )
    message = "billing: the output could not be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (1, message)


def test_tls_is_asked_of_no_unix_socket_where_the_line_asks_for_it() -> None:
    for address in (("--address", "unix:/nowhere"), ()):  # without an address it is that of the configuration
        where = {"BILLING_RPC__UNIX_SOCKET": "/nowhere", "BILLING_RPC__LISTEN": ""}
        result = carried_out("account", "u", "--tls", *address, **where)
        assert result.returncode == 2, result.stderr
        assert "--tls asks for TLS, and unix:/nowhere is a unix socket, which speaks none" in result.stderr
