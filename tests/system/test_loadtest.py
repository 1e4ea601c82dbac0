"""`billing loadtest`, small: each kind of load, each kind of trouble, and always the verdict."""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from billing.cli.main import root
from billing.trial.loadtest.result import histogram_of
from tests.system.daemon import Daemon
from tests.system.loadtest import loadtest, right
from tests.system.ports import free_port
from tests.system.private_files import tokens_file

SMALL = ("--accounts", "100", "--rate", "200", "--duration", "2", "--warmup", "0.5", "--quiet")
USERS = 40


def make_trace(path: Path, seed: int) -> int:
    """Some users with one to six machines each, in the format of the real trace; the number of machines."""
    rng = random.Random(seed)
    lines = ["start_s,user_id,vm_id,vcpus,memory_gb,duration_s"]
    starts = sorted((300 * rng.randrange(30), f"tenant-{number:06}") for number in range(USERS))
    for start_s, user in starts:
        for _ in range(rng.randrange(1, 7)):
            duration_s = "" if rng.random() < 0.1 else str(rng.randrange(1, 9000))
            memory_gb = rng.choice(("0.75", "1.75", "3.5", "14"))
            lines.append(f"{start_s},{user},vm-{len(lines):06},{rng.choice((1, 2, 8))},{memory_gb},{duration_s}")
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return len(lines) - 1


def test_a_load_with_everything_it_can_write(data_dir: Path) -> None:
    files = {kind: data_dir / f"result.{kind}" for kind in ("csv", "hgrm", "html")}
    outputs = [text for kind, file in files.items() for text in (f"--{kind}", str(file))]
    cutoffs = ("--exhaust-per-second", "80", "--storm", "50", "--mix", "30/30/20/20", "--skew", "zipf:1.1")
    brief = ("--rate", "600", "--duration", "1", "--workers", "1")
    result = right(loadtest(data_dir, *SMALL, *brief, *cutoffs, "--runs", "2", "--processes", "2", *outputs))
    assert [run.number for run in result.runs] == [0, 1]
    for run in result.runs:
        assert run.cutoffs.received - 130 * run.number == 130
        assert histogram_of(run.cutoffs.lateness).total == 130
        assert run.answered == histogram_of(run.latency).total == histogram_of(run.service).total
        assert 300 < run.answered < 1000
        assert run.cpu_by_role["worker"] > 0
        assert run.valid or run.invalid_because
        assert {sample["role"] for sample in run.samples} >= {"supervisor", "worker"}
    assert result.environment["cores"] >= 1
    assert result.daemon["journal_sync"] == "always"
    assert "[journal]" in result.configuration
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [row["right"] for row in rows] == ["1", "1"]
    assert "Percentile" in files["hgrm"].read_text()
    html = files["html"].read_text()
    assert html.count("<svg") >= 5
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")
    assert sorted(path.name for path in data_dir.iterdir()) == sorted(
        ["result.json", *(file.name for file in files.values())]
    )


@pytest.fixture(scope="module")
def daemon(module_dir: Path) -> Iterator[Daemon]:
    """One that runs already; where its cutoffs go nobody listens."""
    url = f"http://127.0.0.1:{free_port()}/cutoff/{{user_id}}"
    with Daemon(module_dir, shards__workers=1, cutoff__url=url) as started:
        yield started


def at(daemon: Daemon) -> tuple[str, ...]:
    """The options that name it."""
    return ("--address", daemon.address, "--config", str(daemon.config))


def test_a_closed_loop_only_by_name(daemon: Daemon, data_dir: Path) -> None:
    closed = ("--closed", "--depth", "16", "--warmup", "0.1", "--duration", "0.5")
    result = right(loadtest(data_dir, *SMALL, *closed, "--runs", "1", *at(daemon)))
    assert result.kind == "closed"
    assert result.runs[0].lateness == []
    assert result.runs[0].answered > 0


def test_a_sweep_finds_where_it_stops_being_sustained(daemon: Daemon, data_dir: Path) -> None:
    result = right(loadtest(data_dir, *SMALL, *at(daemon), "--sweep", "--duration", "1", "--p99-ms", "0.01"))
    assert result.kind == "sweep"
    assert len(result.steps) == 2  # nothing is as fast as that; tried once more
    assert result.knee_per_s is None


def test_a_trace_with_a_daemon_of_its_own(data_dir: Path) -> None:
    trace = data_dir / "trace.csv.gz"
    machines = make_trace(trace, seed=1)
    result = right(loadtest(data_dir, "--trace", str(trace), "--speed", "9000", "--quiet", "--processes", "2"))
    (run,) = result.runs
    assert result.kind == "trace"
    assert 2 * machines + USERS <= run.planned <= 2 * machines + 2 * USERS
    assert run.cutoffs.received == run.cutoffs.expected >= (USERS * 3 // 10 if run.valid else 1)


def test_a_daemon_that_runs_already_twice(daemon: Daemon, data_dir: Path) -> None:
    trace = data_dir / "trace.csv.gz"
    make_trace(trace, seed=2)
    traced = right(loadtest(data_dir, "--trace", str(trace), "--speed", "9000", "--quiet", *at(daemon)))
    assert traced.daemon["own"] is False
    result = right(loadtest(data_dir, *SMALL, "--exhaust-per-second", "20", "--runs", "1", *at(daemon)))
    assert result.runs[0].cutoffs.received == 40
    assert result.runs[0].cpu_by_role["worker"] > 0  # it is on this host


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--kill-worker-every", "2.5", "--duration", "3"), {"kill": 1}),
        (("--move-buckets", "0.4", "--snapshot-every", "1"), {"move": 2, "snapshot": 2}),
    ],
)
def test_trouble_excuses_nothing(data_dir: Path, options: tuple[str, ...], kinds: dict[str, int]) -> None:
    result = right(loadtest(data_dir, *SMALL, "--exhaust-per-second", "20", "--runs", "1", *options))
    (run,) = result.runs
    for kind, least in kinds.items():
        assert run.chaos_did[kind] >= least
        assert any(event["kind"] == kind for event in run.events)
    assert run.cutoffs.received == 20 * run.seconds


def test_an_endpoint_that_misbehaves_in_every_way_gets_every_cutoff(data_dir: Path) -> None:
    kinds = ("slow=300", "5xx", "refuse", "hang", "flap=0.1")
    faults = ("--receiver-faults", ",".join(kinds), "--fault-every", "0.6", "--duration", "6")
    cutoffs = ("--workers", "1", "--exhaust-per-second", "20", "--runs", "1")
    result = right(loadtest(data_dir, *SMALL, *cutoffs, *faults))
    (run,) = result.runs
    faults_met = {event["text"].split()[2] for event in run.events if event["kind"] == "fault"}
    assert faults_met == {"status=503" if kind == "5xx" else kind for kind in kinds}
    assert run.cutoffs.received == 120


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--mix", "1/2/3"), "four weights"),
        (("--skew", "normal"), "zipf"),
        (("--receiver-faults", "lazy"), "expected one of"),
        (("--address", "127.0.0.1:1", "--kill-worker-every", "1"), "of our own"),
        (("--sweep", "--closed"), "open loop"),
    ],
)
def test_what_makes_no_sense_is_said(data_dir: Path, options: tuple[str, ...], text: str) -> None:
    result = CliRunner().invoke(root, ["loadtest", "--json", str(data_dir / "result.json"), *options])
    assert result.exit_code == 2
    assert text in result.stderr


def test_a_token_that_may_only_read_is_named_before_anything_is_offered(data_dir: Path) -> None:
    tokens = tokens_file(data_dir / "tokens", ("watcher", "read", "watching"))
    token = data_dir / "token"
    token.write_text("watching\n")
    receiver = f"127.0.0.1:{free_port()}"
    settings = {"cutoff__url": f"http://{receiver}/cutoff/{{user_id}}", "rpc__tokens_file": tokens}
    with Daemon(data_dir, shards__workers=1, **settings) as daemon:
        options = ("--address", daemon.address, "--config", str(daemon.config), "--token-file", str(token))
        outcome = loadtest(data_dir, *SMALL, *options)
    assert outcome.code == 4
    words = "a load test calls debit, set_rate, top_up too, and needs charge, read, top_up"
    assert f"FORBIDDEN: the token's roles are read; {words}" in outcome.err


def test_without_an_account_there_is_no_load_and_nothing_is_started() -> None:
    result = CliRunner().invoke(root, ["loadtest", "--accounts", "0"])
    assert result.exit_code == 2
    assert "no account" in result.stderr
    assert "listens" not in result.stderr


def test_for_a_file_that_is_no_trace_nothing_is_started() -> None:
    result = CliRunner().invoke(root, ["loadtest", "--trace", __file__])
    assert result.exit_code == 1
    assert f"{Path(__file__).name}: Not a gzipped file" in result.stderr
    assert "listens" not in result.stderr
