"""What is installed and handed on: the packages that each part needs, and distributions that leave nothing out."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import billing
from billing.__main__ import package_of, runs_on
from billing.cli.listing import MODULE_OF
from tests.archives import unpack
from tests.docs.pages import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CLIENT_PROJECT = tomllib.loads((REPOSITORY / "client" / "pyproject.toml").read_text())["project"]
CLIENT = {"msgpack", "msgspec", "crc32c"}
NEEDS_THE_SERVER = {"demo", "loadtest", "receiver", "doctor"}


def requirements_of(project: dict[str, Any], *extras: str) -> dict[str, str]:
    """The packages of others that an installation asks for, with these extras, each with the versions it takes."""
    todo = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    specifiers: dict[str, str] = {}
    while todo:
        for requirement in map(Requirement, todo.pop()):
            if requirement.name == project["name"]:
                todo += [project["optional-dependencies"][extra] for extra in requirement.extras]
            else:
                specifiers[canonicalize_name(requirement.name)] = str(requirement.specifier)
    return specifiers


def asked_for(*extras: str) -> set[str]:
    """The packages that an installation of the daemon asks for."""
    return set(requirements_of(PROJECT, *extras))


def modules_of(packages: set[str]) -> list[str]:
    """The modules that these packages bring."""
    packages_of_modules = packages_distributions().items()
    return sorted(module for module, names in packages_of_modules if packages & set(map(canonicalize_name, names)))


def run_without(packages: set[str], script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where no module of these packages can be imported."""
    hidden = "".join(f"sys.modules[{module!r}] = None\n" for module in modules_of(packages))
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{hidden}{script}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_plain_installation_runs_the_daemon_and_the_command() -> None:
    assert asked_for() >= {"msgpack", "msgspec", "crc32c", "uvloop", "aiohttp", "click", "rich"}


def test_the_distribution_of_the_client_asks_for_no_other_versions_than_that_of_the_daemon() -> None:
    assert set(requirements_of(CLIENT_PROJECT)) == CLIENT
    for extra in ("cli", "loadtest"):
        assert requirements_of(CLIENT_PROJECT, extra).items() <= requirements_of(PROJECT).items()
    assert requirements_of(CLIENT_PROJECT, "loadtest") == requirements_of(PROJECT), "a load test starts the daemon"
    assert CLIENT_PROJECT["version"] == PROJECT["version"] == billing.__version__
    assert CLIENT_PROJECT["requires-python"] == PROJECT["requires-python"]


def test_the_addresses_of_both_distributions_are_pages_of_the_site() -> None:
    site = tomllib.loads((REPOSITORY / "zensical.toml").read_text())["project"]["site_url"]
    assert PROJECT["urls"] == CLIENT_PROJECT["urls"]
    assert PROJECT["urls"]["Documentation"] == site
    for address in set(PROJECT["urls"].values()) - {site}:
        assert address.startswith(site)
        assert (REPOSITORY / "docs" / f"{address.removeprefix(site).rstrip('/')}.md").is_file()


def test_the_client_needs_three_packages_and_no_other() -> None:
    not_needed = asked_for("dev") - CLIENT
    assert asked_for() > CLIENT
    assert "uvloop" in modules_of(not_needed)
    result = run_without(not_needed, "from billing.client import Client; print(Client.__name__)")
    assert (result.stdout, result.returncode) == ("Client\n", 0), result.stderr


def test_what_people_type_needs_the_extra_cli_and_nothing_of_the_daemon() -> None:
    typed = sorted(set(MODULE_OF.values()) - {MODULE_OF[name] for name in NEEDS_THE_SERVER})
    script = f"""
import importlib
for module in {typed!r}:
    importlib.import_module(module)
from billing.__main__ import main
sys.argv = ["billing", "config", "default"]
main()
"""
    result = run_without(asked_for("dev") - set(requirements_of(CLIENT_PROJECT, "cli")), script)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (REPOSITORY / "config.toml").read_text()


def test_a_command_without_a_package_names_it() -> None:
    result = run_without({"uvloop"}, "from billing.__main__ import main\nsys.argv = ['billing', 'serve']\nmain()\n")
    assert result.returncode == 2
    assert "the package uvloop is not installed" in result.stderr
    assert "Traceback" not in result.stderr


def test_another_system_than_linux_is_named_before_anything_is_loaded() -> None:
    assert runs_on("linux")
    assert [name for name in ("darwin", "win32", "freebsd14") if runs_on(name)] == []
    script = "sys.platform = 'darwin'\nfrom billing.__main__ import main\nsys.argv = ['billing', 'serve']\nmain()\n"
    result = run_without(set(), script)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("billing runs on Linux, and this is darwin.")


def test_a_missing_module_of_our_own_is_a_bug_and_no_missing_package() -> None:
    assert package_of(ModuleNotFoundError("no", name="billing.nothing")) is None
    assert package_of(ModuleNotFoundError("no", name="aiohttp.web")) == "aiohttp"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, unpacked, and the wheel that is made of it: nothing else is at hand by then."""
    directory = tmp_path_factory.mktemp("distributions")
    tree = directory / "tree"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((REPOSITORY / name).read_bytes())
    build(tree, "build_sdist", directory)
    (archive,) = directory.glob("*.tar.gz")
    unpack(archive, directory / "unpacked")
    (source,) = (directory / "unpacked").iterdir()
    build(source, "build_wheel", directory)
    (wheel,) = directory.glob("*.whl")
    return source, wheel


def build(tree: Path, step: str, directory: Path) -> None:
    """One step of the build backend, as every installer calls it (PEP 517)."""
    script = f"import setuptools.build_meta as backend; backend.{step}({str(directory)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=tree, check=True, capture_output=True, timeout=300)


def tracked() -> set[str]:
    """The files of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True)
    return {name for name in listed.stdout.decode().split("\0") if name and (REPOSITORY / name).is_file()}


def test_the_source_distribution_has_every_file_of_the_repository(distributions: tuple[Path, Path]) -> None:
    source, _ = distributions
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert tracked() - there == set()


def test_the_wheel_has_every_file_of_both_packages(distributions: tuple[Path, Path]) -> None:
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as opened:
        there = set(opened.namelist())
    assert {name for name in tracked() if name.startswith(("billing/", "shards/"))} - there == set()
    assert not [name for name in there if name.startswith(("tests/", "benchmarks/", "examples/", "docs/"))]


def test_the_wheel_alone_prints_configuration_rules_and_runbook(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"}
    script = "import billing; print(billing.__file__)"
    for arguments, expected in (
        (["-c", script], str(tmp_path / "installed")),
        (["-m", "billing", "config", "default"], "[daemon]"),
        (["-m", "billing", "monitoring", "rules"], "BillingCutoffsLate"),
        (["-c", "import billing.admin.server, billing.service.logs, billing.service.serve; print('loaded')"], "loaded"),
    ):
        result = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout


@pytest.fixture(scope="module")
def client_alone(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the client's distribution, made of the unpacked source, and the three packages: nothing else
    is there, pip included.
    """
    source, _ = distributions
    directory = tmp_path_factory.mktemp("client")
    build(source / "client", "build_wheel", directory)
    (wheel,) = directory.glob("*.whl")
    environment = directory / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=300)
    pip(environment, "install", "--no-index", "--no-deps", "--no-compile", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in CLIENT:
        for file in distribution(name).files or ():
            if ".." not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).write_bytes(file.locate().read_bytes())  # type: ignore[attr-defined]
    return environment


def pip(environment: Path, *arguments: object) -> str:
    """Runs pip for another environment; what it prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", environment, *arguments]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_client_alone_is_whole_with_three_packages(client_alone: Path, tmp_path: Path) -> None:
    assert pip(client_alone, "check") == "No broken requirements found.\n"
    script = (
        "from importlib.metadata import distributions\n"
        "from billing.client import Client, InsufficientFunds, SyncClient\n"
        "from billing.client.receiver import Receiver\n"
        "assert Receiver('whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw').is_due\n"
        "print(*(one.name for one in distributions()))\n"
    )
    command = [str(client_alone / "bin/python"), "-I", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == CLIENT | {"billing-client"}


def test_the_client_alone_says_what_its_command_lacks(client_alone: Path, tmp_path: Path) -> None:
    command = [str(client_alone / "bin/billing"), "serve"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("billing: the package ")
    assert "of billing-client the extra cli" in result.stderr
