"""The systemd unit: well-formed, hard, and without what would break the daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import msgspec
import pytest

from billing.config.load import load
from billing.config.schema import Config
from billing.service.unit import SECRETS, hidden_python, numbered, service_unit, socket_unit
from tests.system.private_files import private_file

ANALYZE = shutil.which("systemd-analyze")
EXPOSURE_MAX = 1.5
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is in Debian's package systemd")
URLS = ["http://127.0.0.1:8080/cutoff", "https://192.0.2.7/cutoff", "https://cloud.example/cutoff?u={user_id}"]


def config_with(**keys: str) -> Config:
    return load(None, {f"BILLING_{key.upper()}": value for key, value in keys.items()}).config


def unit_of(config: Config) -> str:
    return service_unit(config, Path("/etc/billing/config.toml"), "/usr/bin/python3")


def lines_of(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


@needs_systemd
@pytest.mark.parametrize("url", URLS)
def test_it_is_hard(url: str, tmp_path: Path) -> None:
    assert ANALYZE is not None
    unit = tmp_path / "billing.service"
    unit.write_text(unit_of(config_with(cutoff__url=url)))
    analysis = subprocess.run(
        [ANALYZE, "security", "--offline=true", f"--threshold={round(EXPOSURE_MAX * 10)}", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    exposure = re.search(r"Overall exposure level for billing.service: ([0-9.]+)", analysis.stdout)
    assert exposure, analysis.stdout + analysis.stderr
    assert float(exposure[1]) <= EXPOSURE_MAX
    assert analysis.returncode == 0


@needs_systemd
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    assert ANALYZE is not None
    config = config_with(rpc__unix_socket="/run/billing/rpc.sock")
    (tmp_path / "billing.service").write_text(unit_of(config))
    (tmp_path / "billing.socket").write_text(socket_unit(config, Path("/etc/billing/config.toml")))
    for file in tmp_path.iterdir():
        file.chmod(0o644)  # others who may write are told of, too
    analysis = subprocess.run(
        [ANALYZE, "verify", str(tmp_path / "billing.service"), str(tmp_path / "billing.socket")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    of_ours = [line for line in analysis.stderr.splitlines() if "billing." in line]  # others are read as well
    assert (analysis.returncode, of_ours) == (0, [])


def test_a_host_that_shares_its_log_may_ask_for_its_clocks_error_and_reach_the_log() -> None:
    unit = unit_of(Config())
    assert lines_of(unit, "ProtectClock") == ["yes"]
    assert "adjtimex" not in unit
    servers = ["tls://192.0.2.1:4222", "tls://192.0.2.2:4222", "tls://192.0.2.3:4222"]
    log = {"journal__kind": "jetstream", "cluster__servers": ",".join(servers), "shards__workers": "12"}
    shared = unit_of(config_with(**log, cutoff__url=URLS[0]))
    assert lines_of(shared, "ProtectClock") == []
    assert lines_of(shared, "SystemCallFilter")[-1] == "adjtimex clock_adjtime", "behind what takes it away"
    assert lines_of(shared, "CapabilityBoundingSet") == [""], "asking is all it may do"
    assert lines_of(shared, "IPAddressAllow") == ["192.0.2.1 192.0.2.2 192.0.2.3 localhost"]


def test_the_traps_are_left_out() -> None:
    unit = unit_of(Config())
    assert lines_of(unit, "PrivateUsers") == [], "peers of the unix socket would read as nobody"
    assert lines_of(unit, "ProcSubset") == [], "the boot id would be hidden"
    assert "~@resources" not in " ".join(lines_of(unit, "SystemCallFilter")), "the history's process is nicer"
    assert lines_of(unit, "RestartPreventExitStatus") == ["65 74 78"]
    assert lines_of(unit, "Type") == ["notify"]
    assert lines_of(unit, "LimitCORE") == ["0"]


def test_secrets_become_credentials(tmp_path: Path) -> None:
    secret = private_file(tmp_path / "secret", "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" + "\n")
    unit = unit_of(config_with(cutoff__secret_file=secret))
    assert lines_of(unit, "LoadCredential") == [f"cutoff-secret_file:{secret}"]
    assert "BILLING_CUTOFF__SECRET_FILE=%d/cutoff-secret_file" in lines_of(unit, "Environment")
    assert lines_of(unit_of(Config()), "LoadCredential") == []
    several = {
        "cluster__listen": "127.0.0.1:3400",
        "cluster__servers": "nats://127.0.0.1:4222",
        "cluster__replicas": "1",
    }
    unit = unit_of(config_with(journal__kind="jetstream", cluster__secret_file=secret, **several))
    assert lines_of(unit, "LoadCredential") == [f"cluster-secret_file:{secret}"]
    assert "BILLING_CLUSTER__SECRET_FILE=%d/cluster-secret_file" in lines_of(unit, "Environment")


def test_every_secret_file_of_the_schema_may_be_a_credential() -> None:
    assert {"rpc.tokens_file", "rpc.tls_key", "cutoff.secret_file", "cluster.secret_file"} <= set(SECRETS)
    assert {"cluster.credentials_file", "cluster.tls_key"} <= set(SECRETS)


def test_only_known_addresses_can_be_reached_where_all_are_known() -> None:
    assert lines_of(unit_of(config_with(cutoff__url=URLS[0])), "IPAddressAllow") == ["localhost"]
    assert lines_of(unit_of(config_with(cutoff__url=URLS[1])), "IPAddressAllow") == ["192.0.2.7 localhost"]
    assert lines_of(unit_of(config_with(cutoff__url=URLS[2])), "IPAddressAllow") == []
    shared = {"journal__kind": "jetstream", "cluster__servers": "nats://192.0.2.1:4222", "cluster__replicas": "1"}
    near = config_with(cluster__listen="127.0.0.1:3400", **shared)
    assert lines_of(unit_of(near), "IPAddressAllow") == ["192.0.2.1 localhost"]
    far = msgspec.structs.replace(near, cluster=msgspec.structs.replace(near.cluster, listen="192.0.2.7:3400"))
    assert lines_of(unit_of(far), "IPAddressAllow") == [], "other hosts link to this one from wherever they are"


def test_the_socket_unit_listens_where_the_configuration_does() -> None:
    unit = socket_unit(config_with(rpc__unix_socket="/run/billing/rpc.sock"), Path("x.toml"))
    tcp = ["127.0.0.1:3311", "127.0.0.1:3312", "127.0.0.1:9311"]
    assert lines_of(unit, "ListenStream") == [*tcp, "/run/billing/rpc.sock"]


def test_the_socket_unit_has_numbers_for_names_since_systemd_takes_no_names_and_no_port_0() -> None:
    config = config_with(rpc__listen="localhost:3311", http__listen="[::1]:3312", admin__listen="")
    assert lines_of(socket_unit(config, Path("x.toml")), "ListenStream") == ["127.0.0.1:3311", "[::1]:3312"]
    with pytest.raises(click.ClickException, match=r"^rpc\.listen: expected a port"):
        socket_unit(config_with(rpc__listen="127.0.0.1:0"), Path("x.toml"))
    with pytest.raises(click.ClickException, match=r"^http\.listen: the host of nowhere\.invalid:1 has no address"):
        numbered("http.listen", "nowhere.invalid:1")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("/etc/billing/config.toml", "/etc/billing/config.toml"),
        ("/srv/my billing/config.toml", '"/srv/my billing/config.toml"'),
        ("/srv/100%/config.toml", "/srv/100%%/config.toml"),
        ('/srv/"a"\\b $HOME;/c', r'"/srv/\"a\"\\b $$HOME;/c"'),
    ],
)
def test_a_path_is_one_word_of_the_command_whatever_is_in_it(file: str, expected: str) -> None:
    unit = service_unit(config_with(), Path(file), "/usr/bin/python3")
    assert lines_of(unit, "ExecStart") == [f"/usr/bin/python3 -I -m billing serve --config {expected}"]


def test_paths_of_secrets_and_sockets_keep_their_per_cent_signs(tmp_path: Path) -> None:
    secret = private_file(tmp_path / "50% off", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    config = config_with(cutoff__secret_file=secret, rpc__unix_socket="/run/billing/a%b.sock")
    assert lines_of(unit_of(config), "LoadCredential") == [f"cutoff-secret_file:{tmp_path}/50%% off"]
    assert "/run/billing/a%%b.sock" in lines_of(socket_unit(config, Path("/etc/billing/config.toml")), "ListenStream")


@needs_systemd
def test_systemd_reads_an_odd_path_as_it_is(tmp_path: Path) -> None:
    assert ANALYZE is not None
    unit = tmp_path / "billing.service"
    unit.write_text(service_unit(config_with(), Path("/srv/my 100% billing/config.toml"), "/usr/bin/python3"))
    analysis = subprocess.run([ANALYZE, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert "ExecStart" not in analysis.stderr
    assert "Failed to resolve" not in analysis.stderr


def test_a_python_that_no_service_sees_is_named() -> None:
    debian, packaged = Path("/usr/bin/python3.11"), Path("/opt/billing/bin/python3")
    assert hidden_python(packaged, debian) is None
    assert hidden_python(packaged, Path("/opt/home/python3")) is None
    for python, interpreter, home in (
        (packaged, Path("/root/.pyenv/versions/3.11.7/bin/python3.11"), "/root"),
        (Path("/home/me/billing/.venv/bin/python"), debian, "/home"),
    ):
        complaint = hidden_python(python, interpreter)
        assert complaint is not None
        assert f"the unit runs {python}, which is {interpreter}" in complaint
        assert f"below {home}," in complaint
