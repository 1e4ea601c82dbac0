"""The configuration: strict, complete, and every fault told at once with its path, its source and what is expected."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from billing.config.load import ConfigError, Fault, Loaded, as_effective, load
from billing.config.reload import Reload, differences, with_changes
from billing.config.schema import Config, Cutoff, Daemon, as_toml, class_of, declared, shown_text, value_text
from billing.expirationd.delivery import OfClass
from billing.ledger.classes import CutoffClass
from billing.worker.classes import calls_of_classes, rules_of_classes

REPOSITORY = Path(__file__).parents[2]
FIXED_BY_CONTRACT = {
    "daemon": {"data_dir"},
    "shards": {"workers", "bucket_count"},
    "rpc": {"listen", "unix_socket", "tokens_file", "tls_cert", "tls_key", "tls_client_ca"},
    "journal": {"kind", "sync"},
    "cutoff": {
        "url",
        "restore_url",
        "secret_file",
        "concurrency",
        "hold_above",
        "recheck_s",
        "after_exhaustion",
    },
    "notify": {"url"},
    "admin": {"listen"},
}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str, name: str = "config.toml", mode: int = 0o600) -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    return write_file


def faults_of(file: Path | None, environ: dict[str, str] | None = None) -> list[Fault]:
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {})
    assert len(str(caught.value).splitlines()) == len(caught.value.faults)
    return caught.value.faults


def test_the_default_file_is_what_is_declared() -> None:
    assert (REPOSITORY / "config.toml").read_text() == as_toml(Config())
    command = [sys.executable, "-m", "billing.config.schema"]
    printed = subprocess.run(command, capture_output=True, check=True, cwd=REPOSITORY)
    assert printed.stdout.decode() == as_toml(Config())


def test_the_default_file_is_complete_and_loads_to_the_defaults() -> None:
    document = tomllib.loads(as_toml(Config()))
    assert [f"{section}.{key}" for section, table in document.items() for key in table] == [p for p, _ in declared()]
    loaded = load(REPOSITORY / "config.toml", {})
    assert replace(loaded.config, daemon=Config().daemon) == Config()
    assert loaded.config.daemon.data_dir == str(REPOSITORY / "data")
    assert set(loaded.sources.values()) == {"file"}


def test_the_keys_and_defaults_that_the_contract_fixes() -> None:
    keys = {path for path, _ in declared()}
    assert {f"{section}.{key}" for section, fixed in FIXED_BY_CONTRACT.items() for key in fixed} <= keys
    config = Config()
    assert config.rpc.listen == "127.0.0.1:3311"
    assert config.admin.listen == "127.0.0.1:9311"
    assert config.rpc.unix_socket == ""
    assert (config.journal.kind, config.journal.sync) == ("file", "always")
    assert config.shards.bucket_count == 3000
    assert (config.cutoff.recheck_s, config.cutoff.hold_above) == (0, -1)


def test_every_key_says_in_one_line_what_it_means() -> None:
    for path, key in declared():
        assert key.meaning, path
        assert "\n" not in key.meaning, path
        assert not key.meaning.endswith("."), path


def test_no_file_means_defaults_relative_to_the_working_directory() -> None:
    loaded = load(None, {})
    assert loaded.config.daemon.data_dir == os.path.join(os.getcwd(), "data")
    assert loaded.sources["daemon.data_dir"] == "default"
    assert loaded.file is None


def test_later_sources_win_and_are_told(write: Write) -> None:
    file = write('[shards]\nworkers = 3\nbucket_count = 64\n[cutoff]\ntimeout_s = 5\n[log]\nlevel = "debug"\n')
    environ = {
        "BILLING_SHARDS__WORKERS": "5",
        "BILLING_RPC__DIRECT": "False",
        "BILLING_CUTOFF__CONNECT_TIMEOUT_S": "0.5",
        "BILLING_DAEMON__DATA_DIR": "elsewhere",
        "BILLING_TOKEN": "not a key of the configuration",
        "SHARDS__WORKERS": "9",
    }
    config, sources, _ = load(file, environ)
    assert (config.shards.workers, config.shards.bucket_count) == (5, 64)
    assert (config.cutoff.timeout_s, config.cutoff.connect_timeout_s) == (5, 0.5)
    assert config.rpc.direct is False
    assert config.daemon.data_dir == str(file.parent / "elsewhere")
    assert sources["shards.workers"] == sources["rpc.direct"] == "environment"
    assert sources["shards.bucket_count"] == sources["log.level"] == "file"
    assert sources["rpc.listen"] == "default"


def test_relative_paths_are_relative_to_the_folder_of_the_file(write: Write) -> None:
    write(SECRET, "secret.txt")
    file = write(
        '[daemon]\ndata_dir = "../data"\n[rpc]\nunix_socket = "run/rpc.sock"\n[cutoff]\nsecret_file = "secret.txt"\n'
    )
    config = load(file, {}).config
    assert config.daemon.data_dir == str(file.parent.parent / "data")
    assert config.rpc.unix_socket == str(file.parent / "run/rpc.sock")
    assert config.cutoff.secret_file == str(file.parent / "secret.txt")
    assert config.rpc.tokens_file == ""


def test_a_path_of_the_file_names_the_same_bytes_in_a_locale_that_is_not_utf_8(write: Write, tmp_path: Path) -> None:
    compiled = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE")]
    if shutil.which("localedef") is None or subprocess.run(compiled, capture_output=True).returncode != 0:
        pytest.skip("localedef cannot make the locale de_DE: the Debian package locales is not installed")
    file = write('[daemon]\ndata_dir = "gebühren"\n[rpc]\nlisten = ""\nunix_socket = "д.sock"\n')
    environment = {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE", "BILLING_CONFIG": str(file)}

    def printed(*words: str) -> bytes:
        command = [sys.executable, "-m", "billing", *words]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment
        )
        return result.stdout

    shown = printed("config", "show")
    for name in ("gebühren", "д.sock"):
        assert bytes(file.parent / name) in shown, "a terminal of this locale is told the bytes of the name"
    assert b"unix:" + bytes(file.parent / "д.sock") in printed("ping")


def test_a_door_by_the_name_that_other_programs_give_it(write: Write) -> None:
    file = write('[rpc]\nport = 3311\n[admin]\nhost = "x"\n[journal]\nport = 1\n')
    text_of = {path: text for path, _, text in faults_of(file)}
    assert text_of["rpc.port"] == "no such key; did you mean rpc.listen?"
    assert text_of["admin.host"] == "no such key; did you mean admin.listen?"
    assert "listen" not in text_of["journal.port"]


def test_all_faults_are_told_at_once(write: Write) -> None:
    file = write(
        '[shards]\nworkers = "2"\nbuckets = 5\n[rpc]\nlisten = "0.0.0.0:3311"\ntls_key = "nowhere.pem"\n'
        '[journal]\nsync = "sometimes"\n[cutof]\nurl = "x"\n[cutoff]\nurl = "ftp://x/"\n'
    )
    faults = faults_of(file, {"BILLING_RPC__LISTN": "x", "BILLING_CUTOFF__CONCURRENCY": "many"})
    key = file.parent / "nowhere.pem"
    assert faults == [
        ("cutof", "file", "no such section; did you mean cutoff?"),
        ("cutoff.concurrency", "environment", "expected a whole number, 1 to 4096, got 'many'"),
        ("cutoff.url", "file", 'expected "http://host/path" or "https://host/path", got \'ftp://x/\''),
        ("journal.sync", "file", 'expected "always", "interval" or "never", got \'sometimes\''),
        (
            "rpc.listen",
            "file",
            "expected rpc.tokens_file or rpc.tls_client_ca, since 0.0.0.0:3311 is not loopback",
        ),
        ("rpc.listn", "environment", "BILLING_RPC__LISTN overrides no key; did you mean rpc.listen?"),
        ("rpc.tls_key", "file", "expected rpc.tls_cert beside it"),
        ("rpc.tls_key", "file", f"expected a file: [Errno 2] No such file or directory: '{key}'"),
        ("shards.buckets", "file", "no such key; did you mean shards.bucket_count?"),
        ("shards.workers", "file", "expected a whole number, 1 to 64, got '2'"),
    ]


def test_what_was_meant_is_told_also_of_another_section_and_of_a_section_that_is_none(write: Write) -> None:
    file = write('[ledger]\ntls_cert = ""\nxyz = 1\n')
    faults = faults_of(file, {"BILLING_RCP__LISTEN": "x"})
    assert faults == [
        ("ledger.tls_cert", "file", "no such key; did you mean rpc.tls_cert?"),
        ("ledger.xyz", "file", "no such key"),
        ("rcp.listen", "environment", "BILLING_RCP__LISTEN overrides no key; did you mean rpc.listen?"),
    ]


def test_a_file_of_tokens_that_is_not_there_is_said_to_be_made_by_a_command(write: Write, tmp_path: Path) -> None:
    [(path, _, text)] = faults_of(write(f'[rpc]\ntokens_file = "{tmp_path}/none"\n'), {})
    assert (path, text.endswith("; the first `billing token add` makes it")) == ("rpc.tokens_file", True)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[shards]\nworkers = 0", "shards.workers"),
        ("[shards]\nworkers = 2.0", "shards.workers"),
        ("[shards]\nworkers = true", "shards.workers"),
        ("[shards]\nworkers = [2]", "shards.workers"),
        ("[shards]\nworkers = 65", "shards.workers"),
        ("[shards]\nworkers = 3\nbucket_count = 2", "shards.workers"),
        ("[shards]\nbucket_count = 65536", "shards.bucket_count"),
        ("[journal]\nsegment_bytes = 65537", "journal.segment_bytes"),
        ('[journal]\nkind = "nats"', "journal.kind"),
        ("[rpc]\ndirect = 1", "rpc.direct"),
        ("[rpc]\nlisten = 3311", "rpc.listen"),
        ('[rpc]\nlisten = "3311"', "rpc.listen"),
        ('[rpc]\nlisten = "127.0.0.1:70000"', "rpc.listen"),
        ('[rpc]\nlisten = "::1:3311"', "rpc.listen"),
        ('[rpc]\nlisten = ""', "rpc.listen"),
        ('[rpc]\nlisten = "0.0.0.0:3311"', "rpc.listen"),
        ('[rpc]\nlisten = "[::]:3311"', "rpc.listen"),
        ('[rpc]\nlisten = "example.org:3311"', "rpc.listen"),
        ('[rpc]\nunix_socket = "' + "x" * 200 + '"', "rpc.unix_socket"),
        ('[rpc]\ntls_cert = "config.toml"', "rpc.tls_cert"),
        ('[rpc]\ntls_client_ca = "config.toml"', "rpc.tls_client_ca"),
        ('[rpc]\ntokens_file = "."', "rpc.tokens_file"),
        ('[rpc]\ntokens_file = "a\\u0000b"', "rpc.tokens_file"),
        ('[admin]\nlisten = "10.0.0.1:9311"', "admin.listen"),
        ('[admin]\nlisten = "127.0.0.1:3311"', "admin.listen"),
        ("[cutoff]\ntimeout_s = nan", "cutoff.timeout_s"),
        ("[cutoff]\ntimeout_s = 1", "cutoff.timeout_s"),
        ("[cutoff]\nhold_above = -2", "cutoff.hold_above"),
        ('[cutoff]\nurl = ""', "cutoff.url"),
        ('[daemon]\ndata_dir = ""', "daemon.data_dir"),
        ("shards = 2", "shards"),
        ("workers = 2", "workers"),
    ],
)
def test_one_mistake_is_one_fault_at_its_path(write: Write, text: str, path: str) -> None:
    faults = faults_of(write(text))
    assert [fault.path for fault in faults] == [path]
    assert faults[0].source == "file"


@pytest.mark.parametrize("listen", ["127.0.0.1:3311", "127.9.9.9:1", "[::1]:3311", "localhost:3311", "127.0.0.1:0"])
def test_loopback_needs_no_guard(write: Write, listen: str) -> None:
    assert load(write(f'[rpc]\nlisten = "{listen}"'), {}).config.rpc.listen == listen


TOKENS = "metering:charge,read:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CERTIFICATE = """
-----BEGIN CERTIFICATE-----
MIIBNDCB56ADAgECAhQo29EdguSzE6ni33knkjeskqcdZjAFBgMrZXAwDzENMAsG
A1UEAwwEdGVzdDAgFw0yNjExMjMwOTMzNDdaGA8yMTI2MTAzMDA5MzM0N1owDzEN
MAsGA1UEAwwEdGVzdDAqMAUGAytlcAMhAJqSc1uWg53Ng4FodEyylbViiIr8ncmA
03ST3YjxLsP9o1MwUTAdBgNVHQ4EFgQUO7bD+KSoWTvHRGAByZbavOaX6hkwHwYD
VR0jBBgwFoAUO7bD+KSoWTvHRGAByZbavOaX6hkwDwYDVR0TAQH/BAUwAwEB/zAF
BgMrZXADQQD4R+I9RLiA8j3drfJ77Xj+Qg3VxgXTiUjGK/2bxHS1EIGx/8jRib1y
nrq9p1NhUcsM5W31hmWuBatFLKvscYAD
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEICVz7Nr+Ywa3VP3Rh+lT0X674CCO/r/ai6IBttIAW8X0
-----END PRIVATE KEY-----
"""


def test_beyond_loopback_tokens_or_client_certificates_are_needed(write: Write) -> None:
    write(TOKENS, "tokens")
    write(CERTIFICATE, "pem")
    assert load(write('[rpc]\nlisten = "0.0.0.0:1"\ntokens_file = "tokens"'), {})
    tls = 'tls_cert = "pem"\ntls_key = "pem"\n'
    assert load(write(f'[rpc]\nlisten = "0.0.0.0:1"\n{tls}tls_client_ca = "pem"'), {})
    assert [fault.path for fault in faults_of(write(f'[rpc]\nlisten = "0.0.0.0:1"\n{tls}'))] == ["rpc.listen"]


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o620, False)]
)
def test_a_secret_is_readable_by_few(write: Write, mode: int, fine: bool) -> None:
    write(SECRET, "secret", mode)
    file = write('[cutoff]\nsecret_file = "secret"')
    if fine:
        assert load(file, {}).config.cutoff.secret_file == str(file.parent / "secret")
    else:
        (fault,) = faults_of(file)
        assert f"{mode:04o}" in fault.expected


def test_what_stands_in_the_named_files_is_looked_at_and_never_repeated(write: Write) -> None:
    write("metering:charge:hunter2", "tokens")
    write("hunter2", "secret")
    write(CERTIFICATE.partition("-----BEGIN PRIVATE")[0], "certificate")
    write("hunter2", "key")
    tls = 'tls_cert = "certificate"\ntls_key = "key"\ntls_client_ca = "key"\n'
    file = write(f'[rpc]\ntokens_file = "tokens"\n{tls}[cutoff]\nsecret_file = "secret"\n')
    faults = faults_of(file)
    assert [fault.path for fault in faults] == [
        "cutoff.secret_file",
        "rpc.tls_cert",
        "rpc.tls_client_ca",
        "rpc.tokens_file",
    ]
    assert "line 1" in faults[0].expected
    assert "hunter2" not in str(faults)
    (file.parent / "secret").write_bytes(b"\xff\xfe")
    assert "UTF-8" in faults_of(file)[0].expected


AT_ONCE = """
[journal]
kind = "jetstream"
[shards]
workers = 4
{shards}
[rpc]
listen = "{rpc}"
tokens_file = "{tokens}"
[cluster]
servers = ["nats://127.0.0.1:1", "nats://127.0.0.1:2", "nats://127.0.0.1:3"]
{cluster}
"""


@pytest.mark.parametrize(
    ("cluster", "shards", "rpc", "paths"),
    [
        ('listen = "127.0.0.1:3320"', "", "127.0.0.1:3311", []),  # fewer workers than shards: other hosts have some
        ("", "", "127.0.0.1:3311", ["shards.workers"]),
        ('listen = "127.0.0.1:65524"', "", "127.0.0.1:3311", ["cluster.listen"]),
        ('listen = "10.0.0.1:3320"', "", "127.0.0.1:3311", ["cluster.listen"]),
        ('listen = "10.0.0.1:3320"\nsecret_file = "{tokens}"', "", "127.0.0.1:3311", []),
        ('listen = "0.0.0.0:3320"\nsecret_file = "{tokens}"', "", "0.0.0.0:3311", ["cluster.advertise"]),
        ('listen = "10.0.0.1:3320"\nsecret_file = "{tokens}"', "", "0.0.0.0:3311", ["cluster.advertise"]),
        ('listen = "0.0.0.0:0"\nsecret_file = "{tokens}"\nadvertise = "h:1"', "", "0.0.0.0:3311", []),
        ('listen = "127.0.0.1:0"\ntls_cert = "{tokens}"', "", "127.0.0.1:3311", ["cluster.tls_ca", "cluster.tls_cert"]),
        ('listen = "127.0.0.1:0"', 'weights = "1=2"', "127.0.0.1:3311", ["shards.weights"]),
    ],
)
def test_hosts_that_serve_at_once_can_be_reached_and_only_by_each_other(
    write: Write, cluster: str, shards: str, rpc: str, paths: list[str]
) -> None:
    tokens = str(write("root:admin:" + "0" * 64, "pem"))
    text = AT_ONCE.format(cluster=cluster.format(tokens=tokens), shards=shards, rpc=rpc, tokens=tokens)
    fault_paths = sorted(fault.path for fault in faults_of(write(text))) if paths else []
    if not paths:
        assert load(write(text), {}).config.cluster.listen == cluster.split('"')[1]
    assert fault_paths == paths


def test_a_faulty_key_is_not_blamed_for_a_combination_as_well(write: Write) -> None:
    write(CERTIFICATE, "pem")
    faults = faults_of(write('[rpc]\ntls_cert = 7\ntls_key = "pem"\nunix_socket = 5\nlisten = ""'))
    assert [fault.path for fault in faults] == ["rpc.tls_cert", "rpc.unix_socket"]


@pytest.mark.parametrize(
    "text", ["[shards\n", "workers = ", "\x00", "[shards]\nworkers = 1\nworkers = 2", "a=" + "[" * 9999]
)
def test_a_file_that_is_no_toml_is_one_fault(write: Write, text: str) -> None:
    file = write(text)
    assert [fault.path for fault in faults_of(file, {"BILLING_RPC__LISTEN": ""})] == [str(file)]


def test_a_file_that_is_missing_or_no_text_is_one_fault(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "none.toml")[0].path == str(tmp_path / "none.toml")
    assert faults_of(tmp_path)[0].path == str(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert faults_of(tmp_path / "binary")[0].path == str(tmp_path / "binary")


def test_what_is_told_has_one_line_a_fault_whatever_the_names(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write('"a\\nb\\u001b" = 1\n[shards]\n"x\\ny" = 1\nworkers = "\\u001b[31m"'), {})
    assert len(str(caught.value).splitlines()) == 3
    assert "\x1b" not in str(caught.value)


@given(st.dictionaries(st.sampled_from([path for path, _ in declared()]), st.text(max_size=20), max_size=5))
def test_any_environment_loads_or_is_a_fault(overrides: dict[str, str]) -> None:
    environ = {
        "BILLING_" + path.upper().replace(".", "__"): os.fsdecode(text.encode()) for path, text in overrides.items()
    }
    try:
        loaded = load(None, environ)
    except ConfigError as error:
        paths = {fault.path for fault in error.faults}
        assert paths <= {path for path, _ in declared()}
    else:
        assert Config.from_json(loaded.config.to_json()) == loaded.config


values = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
keys = st.one_of(st.sampled_from([path for path, _ in declared()]), st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4})?"))


def is_refused_or_loaded(file: Path) -> None:
    try:
        loaded = load(file, {})
    except ConfigError as error:
        assert error.faults  # noqa: PT017 (either way is right, as long as it is told so)
    else:
        assert loaded.file == file


@given(st.binary(max_size=200))
def test_any_bytes_as_a_file_load_or_are_a_fault(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_bytes(content)
    is_refused_or_loaded(file)


@given(st.dictionaries(keys, values, max_size=6))
def test_any_table_as_a_file_loads_or_is_a_fault(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed-table.toml"
    lines = [f"{key.strip()} = {toml_of(value)}" for key, value in table.items()]
    file.write_bytes("\n".join(lines).encode(errors="replace"))
    is_refused_or_loaded(file)


def toml_of(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_of(key)} = {toml_of(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)


def test_a_configuration_goes_to_other_processes_whole(write: Write) -> None:
    config = load(write('[cutoff]\nurl = "https://h/{user_id}?a=1"\ntimeout_s = 4\n'), {}).config
    assert Config.from_json(config.to_json()) == config


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Config().shards.workers = 3  # type: ignore[misc]


@given(st.text())
def test_values_are_shown_as_a_file_has_them(text: str) -> None:
    config = Config(daemon=Daemon(data_dir=text))
    assert tomllib.loads("x = " + value_text(config, "daemon", "data_dir")) == {"x": text}


def test_the_configuration_is_shown_without_the_secrets_of_its_urls_unless_they_are_asked_for(write: Write) -> None:
    loaded = load(write('[cutoff]\nurl = "http://h/off?token=abc&user_id={user_id}"\n'), {})
    line = next(line for line in as_effective(loaded).splitlines() if line.startswith("url = "))
    assert line.startswith('url = "http://h/off?token=***&user_id={user_id}"  # ')
    assert line.endswith("; --secrets shows it whole")
    assert "abc" not in as_effective(loaded)
    assert 'url = "http://h/off?token=abc&user_id={user_id}"  # ' in as_effective(loaded, secrets=True)


def test_a_log_shows_no_secret_of_a_url(write: Write) -> None:
    file = write('[cutoff]\nurl = "http://h/off?token=hunter2&user_id={user_id}"\n')
    config = load(file, {}).config
    assert shown_text(config, "cutoff", "url") == '"http://h/off?token=***&user_id={user_id}"'
    assert shown_text(config, "shards", "workers") == "2"


async def test_what_needs_a_restart_first_is_not_reloaded(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    few = "[shards]\nworkers = 2\nbucket_count = 2\n"
    file, taken_up = write(few), list[Config]()

    async def take_up(config: Config) -> None:
        taken_up.append(config)

    reload = Reload(file, {}, load(file, {}).config, take_up)
    write("[shards]\nworkers = 3\nbucket_count = 64\n")
    await reload()
    assert "without a restart shards.workers: expected no more workers than shards.bucket_count" in caplog.text
    assert (taken_up, reload.config.shards.workers) == ([], 2)
    write("[shards]\nworkers = 1\nbucket_count = 64\n")
    await reload()
    assert [(config.shards.workers, config.shards.bucket_count) for config in taken_up] == [(1, 2)]


async def test_files_that_hang_hold_up_reloads_and_nothing_else(write: Write) -> None:
    """As on a mount whose server is gone. What was written last is in force in the end, however often it was asked."""
    file, taken_up = write("[shards]\nworkers = 2\n"), list[int]()
    has_read, goes_on = threading.Event(), threading.Event()

    async def take_up(config: Config) -> None:
        taken_up.append(config.shards.workers)

    def read(path: Path | None, environ: Mapping[str, str]) -> Loaded:
        loaded = load(path, environ)
        has_read.set()
        assert goes_on.wait(60)
        return loaded

    reload = Reload(file, {}, load(file, {}).config, take_up, read)
    write("[shards]\nworkers = 3\n")
    first = asyncio.create_task(reload())
    while not has_read.is_set():
        await asyncio.sleep(0)
    write("[shards]\nworkers = 4\n")
    asked = [asyncio.create_task(reload()) for _ in range(50)]
    await asyncio.sleep(0)
    assert (taken_up, sum(task.done() for task in asked)) == ([], 49), "one waits for its turn, and is all of them"
    goes_on.set()
    await asyncio.gather(first, *asked)
    assert taken_up == [3, 4]
    await reload()
    assert taken_up == [3, 4, 4]


@pytest.mark.parametrize(
    ("listen", "expected"), [("127.0.0.1:0", ([], ["shards.workers"])), ("", (["shards.workers"], []))]
)
def test_how_many_shards_a_host_takes_of_several_needs_a_restart(
    write: Write, listen: str, expected: tuple[list[str], list[str]]
) -> None:
    head = '[journal]\nkind = "jetstream"\n[cluster]\nshards = 2\nreplicas = 1\nservers = ["nats://127.0.0.1:4222"]\n'
    old, new = (load(write(f'{head}listen = "{listen}"\n[shards]\nworkers = {n}\n'), {}).config for n in (2, 3))
    assert differences(old, new) == expected


def test_a_reload_takes_the_content_of_files_of_what_it_takes_up_and_keeps_that_of_the_rest(write: Write) -> None:
    folder = write("").parent
    first, second, tokens = "QUFB" * 8, "QkJC" * 8, f"shop:read:{'0' * 64}\n"
    for name, content in (("secret", first), ("old.tokens", tokens), ("new.tokens", tokens)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
    old = load(write('[cutoff]\nsecret_file = "secret"\n[rpc]\ntokens_file = "old.tokens"\n'), {}).config
    (folder / "secret").write_text(second)
    (folder / "old.tokens").unlink()
    emptied = load(write('[cutoff]\nsecret_file = "secret"\n'), {}).config
    assert differences(old, emptied) == ([], ["rpc.tokens_file"])
    kept = with_changes(old, emptied, [])
    assert kept.files == {kept.cutoff.secret_file: second.encode(), kept.rpc.tokens_file: tokens.encode()}
    renamed = load(write('[rpc]\ntokens_file = "new.tokens"\n'), {}).config
    may, _ = differences(kept, renamed)
    assert with_changes(kept, renamed, may).files == {renamed.rpc.tokens_file: tokens.encode()}


# -- classes of cutoffs ------------------------------------------------------------------------------------------------

CLASSES = """
[cutoff]
url = "http://a/off?key=secret"
restore_url = "http://a/on"
after_exhaustion = "accrue"
[cutoff.class.gold]
grace_s = 0.1
[cutoff.class.silver-2]
after_exhaustion = "clamp"
url = "http://b/off?token=hidden"
restore_url = ""
"""


def test_what_a_class_leaves_out_is_as_in_cutoff(write: Write) -> None:
    classes = load(write(CLASSES), {}).config.cutoff.classes
    assert asdict(classes["gold"]) == {
        "grace_s": 0.1, "after_exhaustion": "accrue", "url": "http://a/off?key=secret", "restore_url": "http://a/on",
    }  # fmt: skip
    assert asdict(classes["silver-2"]) == {
        "grace_s": 0.0, "after_exhaustion": "clamp", "url": "http://b/off?token=hidden", "restore_url": "",
    }  # fmt: skip


def test_classes_go_to_other_processes_and_are_shown_without_secrets(write: Write) -> None:
    loaded = load(write(CLASSES), {})
    assert Config.from_json(loaded.config.to_json()) == loaded.config
    shown = as_effective(loaded)
    assert "hidden" not in shown
    assert "key=secret" not in shown
    effective = write(as_effective(loaded, secrets=True), "whole.toml")
    assert load(effective, {}).config == loaded.config


def test_the_rules_of_classes_are_exact() -> None:
    base = Cutoff(after_exhaustion="accrue")
    long = class_of(base, grace_s=315_360_000, restore_url="http://a/on")
    cutoff = replace(base, classes={"gold": class_of(base, grace_s=0.1), "long": long})
    assert rules_of_classes(cutoff) == {
        b"gold": CutoffClass(10**8, True, False),
        b"long": CutoffClass(315_360_000 * 10**9, True, True),
    }
    assert calls_of_classes(cutoff) == (OfClass("long", "", "http://a/on"),)


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("[cutoff.class.gold]\ngrace_s = -1\n", "cutoff.class.gold.grace_s", "0 to 315360000"),
        ("[cutoff.class.gold]\ngrace_s = 315360001\n", "cutoff.class.gold.grace_s", "0 to 315360000"),
        ('[cutoff.class.gold]\ngrace_s = "1"\n', "cutoff.class.gold.grace_s", "a number"),
        ('[cutoff.class.gold]\nurl = ""\n', "cutoff.class.gold.url", "a URL"),
        ('[cutoff.class.gold]\nurl = "ftp://x"\n', "cutoff.class.gold.url", "http"),
        ("[cutoff.class.gold]\ngrace = 1\n", "cutoff.class.gold.grace", "did you mean grace_s?"),
        ('[cutoff.class.gold]\nafter_exhaustion = "stop"\n', "cutoff.class.gold.after_exhaustion", '"clamp"'),
        ("[cutoff.class.Gold]\n", "cutoff.class.Gold", "small letters"),
        ("[cutoff.class.default]\n", "cutoff.class", "another name than default"),
        ("[cutoff]\nclass = 5\n", "cutoff.class", "tables"),
        ("[cutoff]\nclass.gold = 5\n", "cutoff.class.gold", "a table"),
        ("".join(f"[cutoff.class.c{number}]\n" for number in range(101)), "cutoff.class", "at most 100"),
    ],
)
def test_what_is_wrong_with_a_class_is_told_at_its_place(write: Write, text: str, path: str, expected: Any) -> None:
    (fault,) = faults_of(write(text))
    assert (fault.path, fault.source) == (path, "file")
    assert expected in fault.expected


def test_urls_of_classes_are_reloaded_and_their_rules_need_a_restart(write: Write) -> None:
    old = load(write(CLASSES), {}).config
    moved = load(write(CLASSES.replace("http://b/off", "http://c/off")), {}).config
    assert differences(old, moved) == (["cutoff.class"], [])
    assert with_changes(old, moved, ["cutoff.class"]) == moved
    longer = load(write(CLASSES.replace("grace_s = 0.1", "grace_s = 0.2")), {}).config
    assert differences(old, longer) == ([], ["cutoff.class"])
    elsewhere = load(write(CLASSES.replace("http://a/off", "http://d/off")), {}).config
    assert differences(old, elsewhere) == (["cutoff.url", "cutoff.class"], []), "what inherits moves with it"
    assert with_changes(old, elsewhere, ["cutoff.url", "cutoff.class"]) == elsewhere


def test_urls_of_classes_are_reloaded_also_where_their_rules_have_changed_too(write: Write) -> None:
    old = load(write(CLASSES), {}).config
    text = CLASSES.replace("http://a/off", "http://d/off").replace("http://a/on", "http://d/on")
    text = text.replace("http://b/off", "http://e/off").replace('restore_url = ""', 'restore_url = "http://e/on"')
    text = text.replace("grace_s = 0.1", "grace_s = 0.2")
    new = load(write(text), {}).config
    may, need = differences(old, new)
    assert (may, need) == (["cutoff.url", "cutoff.restore_url", "cutoff.class"], ["cutoff.class"])
    classes = with_changes(old, new, may).cutoff.classes
    assert classes["gold"] == replace(
        old.cutoff.classes["gold"], url=new.cutoff.url, restore_url=new.cutoff.restore_url
    )
    silver = classes["silver-2"]
    assert silver == replace(old.cutoff.classes["silver-2"], url=new.cutoff.classes["silver-2"].url), "without restores"
    without = load(write(text[: text.index("[cutoff.class.gold]")]), {}).config
    may, need = differences(old, without)
    assert "cutoff.class" in may
    assert "cutoff.class" in need
    classes = with_changes(old, without, may).cutoff.classes
    assert classes["gold"].url == without.cutoff.url, "it follows [cutoff] until the restart"
    assert classes["silver-2"] == old.cutoff.classes["silver-2"]


def test_a_data_directory_that_sqlite_could_not_open_files_in_is_refused(tmp_path: Path) -> None:
    """The daemon served, and history and notices failed for ever."""
    long = tmp_path.joinpath(*["d" * 100] * 4)
    long.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(long)
    for name in (long / "data", link / "data"):
        (tmp_path / "config.toml").write_text(f'[daemon]\ndata_dir = "{name}"\n')
        with pytest.raises(ConfigError, match=r"daemon\.data_dir \(file\): expected a path of 400 bytes at most"):
            load(tmp_path / "config.toml", {})
