"""What the pages write down for a reader to copy, beside the first calls: programs in Python and Lua, lines of curl, a
session of the console, tables of a configuration. Each is taken from its page and does what the page says.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.client import SyncClient
from billing.config.load import load
from billing.config.schema import Config
from tests.docs.pages import REPOSITORY, blocks
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.private_files import private_file

WAIT_S = 120.0
# From Python 3.13 on, a prompt takes a block only as what is pasted into a terminal, and compiles that whole.
PASTED = """
import ast, asyncio, sys
async def run():
    waits = eval(compile(sys.stdin.read(), "pasted", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {})
    if waits is not None:
        await waits
asyncio.run(run())
"""
PROMPT = [sys.executable, *(["-m", "asyncio"] if sys.version_info < (3, 13) else ["-c", PASTED])]  # with a loop
ALL = 1000  # entries of a page, at most


class DaemonWithAddresses:
    """A daemon with all its doors, and the addresses of the pages that stand for them."""

    def __init__(self, directory: Path) -> None:
        self.http, self.tarantool = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.daemon = Daemon(directory, shards__workers=1, http__listen=self.http, tarantool__listen=self.tarantool)

    def here(self, text: str) -> str:
        """A text of the pages with this daemon's addresses."""
        for there, here in (
            ('["10.0.0.1:3311", "10.0.0.2:3311"], token_file="/etc/billing/token"', f'["{self.daemon.address}"]'),
            ("127.0.0.1:3311", self.daemon.address),
            ("127.0.0.1:3312", self.http),
            ("127.0.0.1:3301", self.tarantool),
        ):
            text = text.replace(there, here)
        return text

    def account(self, user: str) -> dict[str, Any]:
        """An account, over HTTP."""
        with urllib.request.urlopen(f"http://{self.http}/v1/accounts/{user}", timeout=WAIT_S) as answer:
            return dict(json.load(answer))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonWithAddresses]:
    started = DaemonWithAddresses(tmp_path_factory.mktemp("typed"))
    with started.daemon:
        yield started


def test_lines_of_the_feed_are_carried_on_also_where_nothing_happens_for_a_while() -> None:
    page = REPOSITORY / "docs" / "calling.md"
    (carry,) = [found.text for found in blocks(page) if "response.content" in found.text]
    program = f"""
import json
published = []

class Feed:
    content = property(lambda self: self.lines())
    async def lines(self):
        for line in (b'{{"user_id": "u", "entry_id": 1}}\\n', b"\\n", b'{{"user_id": "u", "entry_id": 2}}\\n'):
            yield line

class JetStream:
    async def publish(self, subject, line, headers):
        published.append(headers["Nats-Msg-Id"])

async def main(response, jetstream):
{textwrap.indent(carry, "    ")}
"""
    scope: dict[str, Any] = {}
    exec(program, scope)
    asyncio.run(scope["main"](scope["Feed"](), scope["JetStream"]()))
    assert scope["published"] == ["u/1", "u/2"]


def block(page: str, language: str, part: str) -> str:
    """The block of a page in this language that has this text."""
    (text,) = [
        fenced.text for fenced in blocks(REPOSITORY / page) if fenced.language == language and part in fenced.text
    ]
    return text


def run(command: list[str], served: DaemonWithAddresses, typed: str = "") -> str:
    """What a program prints, on both of its outputs, that is given this on standard input; it must end well."""
    result = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"BILLING_ADDRESS": served.daemon.address},
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_S,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/calling.md"])
def test_the_python_of_the_pages_is_taken_as_it_stands_by_a_prompt_with_a_loop(
    page: str, served: DaemonWithAddresses
) -> None:
    program = block(page, "python", "client.set_rate")
    user = page.removesuffix(".md").rpartition("/")[2]
    printed = run(PROMPT, served, served.here(program).replace("alice", user) + "\n\n")
    assert "Traceback" not in printed
    account = served.account(user)
    assert account["rates_nanos_per_hour"] == {"vm-1": 360_000_000}
    assert 0 <= 5 * 10**9 - account["balance_nanos"] < 10**9


def test_the_blocking_client_answers_what_the_page_says(served: DaemonWithAddresses) -> None:
    with SyncClient(served.daemon.address) as client:
        client.top_up("alice", "5")
    program = served.here(block("docs/calling.md", "python", "SyncClient"))
    examples = re.findall(r"^    (account\.\w+) +# (?:(\d+)|(Decimal\(\S+\)))", program, re.MULTILINE)
    assert len(examples) == 2
    assertions = "".join(f"print({expression} == {number or text})\n" for expression, number, text in examples)
    assert run([sys.executable, "-c", program + assertions], served).split() == ["True", "True"]


def test_the_feed_that_the_page_carries_into_a_table_brings_each_entry_once(served: DaemonWithAddresses) -> None:
    with SyncClient(served.daemon.address) as client:
        client.top_up("feeding", "5")
        client.debit("feeding", "2")
    program = served.here(block("docs/calling.md", "python", "client.entries"))
    begin = """
import asyncio, json, sqlite3
from billing.client import Client
db = sqlite3.connect(":memory:")
db.execute("CREATE TABLE entries (user_id, entry_id, at_ns, operation, amount_nanos, PRIMARY KEY (user_id, entry_id))")
db.execute("CREATE TABLE place (cursor)")
db.execute("INSERT INTO place VALUES (NULL)")
cursor = None
"""
    driver = """
print(json.dumps(db.execute("SELECT * FROM entries WHERE user_id = 'feeding' ORDER BY entry_id").fetchall()))
print(json.dumps(db.execute("SELECT cursor FROM place").fetchone()[0] == cursor))
"""
    carried = run(PROMPT, served, begin + program + "\n" + driver)
    lines = [line.lstrip(">. ") for line in carried.splitlines()]
    rows = json.loads(next(line for line in lines if line.startswith("[[")))
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("feeding", 1, "top_up", 5 * 10**9),
        ("feeding", 2, "debit", -2 * 10**9),
    ]
    assert "true" in lines, "the cursor stands where the rows are"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_feed_by_curl_goes_on_behind_a_cursor(served: DaemonWithAddresses) -> None:
    with SyncClient(served.daemon.address) as client:
        client.top_up("curling", "5")
        client.top_up("curling", "1")
        first = client.entries(limit=ALL)
    once, _, events = block("docs/calling.md", "", "$CURSOR").splitlines()
    environment = f"CURSOR={shlex.quote(first[-2].cursor)}; "
    line = run(["bash", "-c", environment + served.here(once.partition("#")[0]) + " --silent --fail"], served)
    assert json.loads(line)["user_id"] == first[-1].user_id
    assert events.startswith("curl -N -H 'Accept: text/event-stream'")


@pytest.mark.skipif(shutil.which("tarantool") is None, reason="the Debian package tarantool is not installed")
def test_the_lua_of_the_page_runs_in_tarantool(served: DaemonWithAddresses, tmp_path: Path) -> None:
    file = tmp_path / "typed.lua"
    file.write_text(served.here(block("docs/calling.md", "lua", "net.box")).replace("alice", "lua") + "os.exit(0)\n")
    run(["tarantool", str(file)], served)
    assert served.account("lua")["balance"] == "2"


def test_the_console_answers_the_scene_of_the_page(served: DaemonWithAddresses) -> None:
    lines = block("docs/coming-from-tarantool.md", "", "billing> ").splitlines()
    typed = [line.removeprefix("billing> ") for line in lines if line.startswith("billing> ")]
    answers = [line for line in lines if not line.startswith("billing> ")]
    printed = run([sys.executable, "-m", "billing", "console"], served, "\n".join(typed) + "\n")
    assert len(answers) == 4
    assert [line for line in printed.splitlines() if line.strip() in answers] == answers


@pytest.mark.parametrize(
    ("page", "language", "part"),
    [("accounts-and-money.md", "toml", "[cutoff.class.business]"), ("log-on-a-majority.md", "", "[cluster]")],
)
def test_the_tables_of_the_pages_are_a_configuration(page: str, language: str, part: str, tmp_path: Path) -> None:
    credentials = private_file(tmp_path / "nats", "billing:password\n")
    file = tmp_path / "config.toml"
    text = block(f"docs/{page}", language, part).replace("/etc/billing/nats", credentials)
    file.write_text(text + f'[daemon]\ndata_dir = "{tmp_path / "data"}"\n')
    config, standard = load(file, {}).config, Config()
    assert [section for section in tomllib.loads(text) if getattr(config, section) == getattr(standard, section)] == []
