"""`billing import` into the real daemon: once, again after an interruption, and again with a changed file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.commands import CommandResult, carried_out
from tests.system.daemon import Daemon

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tarantool"
SNAPSHOT, LOG = (FIXTURES / f"00000000000000000313.{kind}" for kind in ("snap", "xlog"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    keys = {"shards.bucket_count": 64, "ledger.request_ids_per_bucket": 100}
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1, **keys) as started:
        yield started


def billing(daemon: Daemon, *arguments: object) -> CommandResult:
    return carried_out(*arguments, "--address", daemon.address)


def account(daemon: Daemon, user: str) -> dict[str, object]:
    fields: dict[str, object] = json.loads(billing(daemon, "account", user, "--json").stdout)
    return fields


def test_a_tarantool_snapshot_becomes_accounts_and_may_be_imported_again(daemon: Daemon) -> None:
    dry = billing(daemon, "import", SNAPSHOT, LOG, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "would import 304 accounts with 304 commands" in dry.stdout
    first = billing(daemon, "import", LOG, SNAPSHOT)
    assert (first.returncode, first.stderr) == (0, "")
    assert "imported 304 accounts with 304 commands, 0 of them done before" in first.stdout
    assert "1 user has no money" in first.stdout
    assert account(daemon, "user_03")["balance_nanos"] == 750 * 10**9
    assert account(daemon, "пользователь")["balance_nanos"] == 7 * 10**9
    second = billing(daemon, "import", SNAPSHOT, LOG)
    assert "imported 304 accounts with 304 commands, 304 of them done before" in second.stdout
    assert account(daemon, "user_03")["balance_nanos"] == 750 * 10**9


def test_a_csv_file_brings_limits_and_rates_and_names_what_it_does_not_take(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text(
        "user_id,balance,credit_limit,resource,rate,per\n"
        "csv_01,5,10,vm-1,0.36,hour\ncsv_01,,,vm-2,0.72,hour\ncsv_02,-3,10,,,\ncsv_03,-3,,,,\ncsv_04,many,,,,\n"
    )
    rates = (
        "balances: 2 accounts, together 2 coins; credit limits: 2 accounts, together 20 coins\n"
        "rates: 2 lines in coins per hour; together 1.08 coins per hour\n"
    )
    dry = billing(daemon, "import", file, "--dry-run")
    assert dry.stdout.endswith(rates)
    result = billing(daemon, "import", file)
    assert result.returncode == 1
    assert "imported 2 accounts with 7 commands" in result.stdout
    assert result.stdout.endswith(rates)
    assert "accounts.csv:5: " in result.stderr
    assert "accounts.csv:6: " in result.stderr
    row = account(daemon, "csv_01")
    assert (row["credit_limit_nanos"], row["rate_nanos_per_hour"]) == (10 * 10**9, 1_080_000_000)
    two = account(daemon, "csv_02")
    assert (two["balance_nanos"], two["state"], two["exhaustion_seq"]) == (-3 * 10**9, "active", 0)


def test_what_unit_a_rate_was_understood_to_have_is_told(daemon: Daemon, tmp_path: Path) -> None:
    for column, rates in (
        ("rate", "2 lines in coins per second (which is what a rate is where no unit is named); together 10,800"),
        (
            "rate_per_second",
            "2 lines in coins per second (which is what a rate is where no unit is named); together 10,800",
        ),
        ("rate_per_minute", "2 lines in coins per minute; together 180"),
        ("rate_per_hour", "2 lines in coins per hour; together 3"),
    ):
        file = tmp_path / f"{column}.csv"
        file.write_text(f"user_id,balance,resource,{column}\n{column},5,vm-1,1\n{column},,vm-2,2\n")
        dry = billing(daemon, "import", file, "--dry-run")
        assert dry.stdout.endswith(f"\nrates: {rates} coins per hour\n")
    billing(daemon, "import", file)
    assert account(daemon, "rate_per_hour")["rate_nanos_per_hour"] == 3 * 10**9
    file.write_text("user_id,balance,rate,per\nunnamed,5,1,\nnamed,5,2,hour\n")
    assert billing(daemon, "import", file, "--dry-run").stdout.endswith(
        "\nrates: 1 line in coins per second (which is what a rate is where no unit is named), "
        "1 line in coins per hour; together 3,602 coins per hour\n"
    )
    for heading in ("user_id,rate_per_hour,per", "user_id,rate,rate_per_hour", "user_id,rate_per_hour,rate_per_second"):
        file.write_text(f"{heading}\n")
        assert "which one says what a rate is?" in billing(daemon, "import", file).stderr


def test_another_amount_under_the_same_label_is_refused_and_adds_nothing(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "accounts.jsonl"
    line = (
        '{"user_id": "json_01", "balance": "%s", "rates": [{"rate": "0.000%s"}, {"rate": "0.000%s", "resource": "vm"}]}'
    )
    file.write_text(line.replace("%s", "5"))
    assert billing(daemon, "import", file).returncode == 0
    file.write_text(line.replace("%s", "6"))
    changed = billing(daemon, "import", file)
    assert changed.returncode == 1
    words = " ".join(changed.stderr.split())
    assert "json_01 was imported before as 'import' with another top_up, which stands (REQUEST_ID_CONFLICT)" in words
    assert "give it another --label" in words
    assert changed.stderr.count("REQUEST_ID_CONFLICT") == 3
    assert "1 line was not taken" in words
    assert 4 * 10**9 < int(str(account(daemon, "json_01")["balance_nanos"])) < 5 * 10**9


def test_a_terminal_is_shown_how_far_the_reading_is(tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("user_id,balance\n" + "".join(f"user_{number},1\n" for number in range(2000)))
    reader, terminal = os.openpty()
    command = [sys.executable, "-m", "billing", "import", str(file), "--dry-run"]
    environment = os.environ | {"TERM": "xterm"}
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, env=environment, timeout=300, check=True)
    os.close(terminal)
    progress = os.read(reader, 1 << 16).decode()
    os.close(reader)
    balances = b"balances: 2,000 accounts, together 2,000 coins\n"
    assert result.stdout == b"would import 2,000 accounts with 2,000 commands\n" + balances
    assert "reading" in progress
    assert "2,000 lines" in progress


def test_an_import_that_would_not_be_remembered_whole_is_refused_before_anything_is_sent(
    daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text(
        "user_id,balance,resource,rate\n" + "".join(f"many_01,{'' if n else 5},vm-{n},1\n" for n in range(100))
    )
    result = billing(daemon, "import", file)
    assert (result.returncode, result.stdout) == (1, "")
    assert "one bucket would get 101 commands, and the daemon remembers 100" in result.stderr
    assert "ledger.request_ids_per_bucket = 101" in result.stderr
    assert "there is no account many_01" in billing(daemon, "account", "many_01").stderr
