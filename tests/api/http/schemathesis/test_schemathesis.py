"""The document of the HTTP door, by other people's reading of it.

`openapi-spec-validator` says that it is OpenAPI 3.1. Schemathesis asks the running daemon what the document allows, and
what it does not, and holds each answer to the document: its status, its
content type, its fields; what is allowed is done, and what is not is refused. The same examples at each run; with
`HYPOTHESIS_PROFILE=explore` also every bound of every field, which takes some minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.api.http.openapi import document
from billing.api.http.routes import ROUTES
from tests.conftest import REPOSITORY
from tests.system.daemon import Daemon
from tests.system.ports import free_port

HERE = Path(__file__).parent


def test_the_document_is_openapi_3_1() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # takes as long as collecting a hundred modules

    openapi = document()
    assert openapi["openapi"].startswith("3.1.")
    assert [str(fault) for fault in OpenAPIV31SpecValidator(openapi).iter_errors()] == []
    operations = [(verb.upper(), path) for path, verbs in openapi["paths"].items() for verb in verbs]
    assert sorted(operations) == sorted((route.verb, route.path) for route in ROUTES)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    listen = f"127.0.0.1:{free_port()}"
    with Daemon(tmp_path_factory.mktemp("d"), http__listen=listen, shards__workers=2):
        yield listen


def test_the_daemon_answers_as_its_document_says(address: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(HERE / "schemathesis.toml"), "run"]
    phases = "examples,fuzzing,stateful" + (",coverage" if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else "")
    result = subprocess.run(
        [*command, "--no-color", "--phases", phases, f"http://{address}/v1/openapi.json"],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": f"{__package__}.hooks", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"([0-9]+) generated, ([0-9]+) passed", result.stdout)
    assert passed is not None, result.stdout
    assert int(passed[1]) == int(passed[2]) > 120
