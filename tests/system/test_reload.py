"""SIGHUP: what may change changes while the daemon serves, what may not is named, and what is wrong changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import trustme

from billing.trial.receiver import Receiver
from tests.system.daemon import Daemon
from tests.system.endpoint import until
from tests.system.ports import free_port
from tests.system.private_files import pem_file, tokens_file
from tests.system.rpc import ConnectionLost, Rpc
from tests.system.test_admin import at, scraped_when


async def reload(daemon: Daemon, words: str, **changes: object) -> None:
    """Writes keys anew (`section__key`), and returns when the log says what it should say behind that."""
    lines = daemon.config.read_text().splitlines()
    for name, value in changes.items():
        section, key = name.split("__")
        lines = [line for line in lines if not line.startswith(f"{key} = ")]
        text = str(value) if isinstance(value, int) else f'"{value}"'
        index = lines.index(f"[{section}]") if f"[{section}]" in lines else len(lines)
        lines[index : index + 1] = [f"[{section}]", f"{key} = {text}"]
    daemon.config.write_text("\n".join(lines) + "\n")
    await hang_up(daemon, words)


async def hang_up(daemon: Daemon, words: str) -> None:
    """Sends SIGHUP, and returns when the log says what it should say behind that."""
    size = daemon.log.stat().st_size
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)
    for _ in range(3000):
        if words in daemon.log.read_text()[size:]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(daemon.log.read_text()[size:])


async def until_buckets(daemon: Daemon, buckets: list[int]) -> list[dict[str, Any]]:
    """Waits until the shards own so many buckets, in order of their ids."""
    rows: list[dict[str, Any]] = []
    for _ in range(300):
        try:
            rpc = await Rpc.connect(daemon.rpc_port)
            rows = await rpc.ask("shards_info")
            rpc.close()
        except (ConnectionLost, OSError):
            rows = []
        if [row["buckets"] for row in rows] == buckets:
            return rows
        await asyncio.sleep(0.1)
    raise AssertionError(rows)


async def test_shards_come_and_go_by_weight_while_clients_call(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, shards__bucket_count=60) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        users = [f"u{number}" for number in range(200)]
        for number, user in enumerate(users):
            await rpc.ask("top_up", user, 1000 + number)
        await reload(daemon, "reloaded shards.workers: 3", shards__workers=3)
        await until_buckets(daemon, [20, 20, 20])
        await reload(daemon, "reloaded shards.weights", shards__weights="1=4 3=0")
        rows = await until_buckets(daemon, [48, 12, 0])
        assert [row["weight"] for row in rows] == [4, 1, 0]
        await reload(daemon, "reloaded shards.workers: 2", shards__workers=2, shards__weights="")
        await until_buckets(daemon, [30, 30])
        rpc = await Rpc.connect(daemon.rpc_port)
        assert len(await rpc.ask("accounts")) == len(users), "questions to all shards know which there are"
        for number, user in enumerate(users):
            assert (await rpc.ask("get_account", user))["balance_nanos"] == 1000 + number
        assert (await rpc.ask("check_owners"))["faults"] == []
        daemon.kill()
        daemon.start()
        await until_buckets(daemon, [30, 30])


async def test_a_plan_that_was_interrupted_is_taken_up_again(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, shards__bucket_count=600) as daemon:
        await reload(daemon, "shard 2 serves", shards__workers=2)
        daemon.kill()
        daemon.start()
        await until_buckets(daemon, [300, 300])


async def test_cutoffs_go_to_the_new_url(data_dir: Path, receiver: Receiver) -> None:
    with Daemon(data_dir, shards__workers=1, cutoff__url=f"http://127.0.0.1:{free_port()}/nobody") as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "u", 100)
        due = (await rpc.ask("set_rate", "u", 10_000))["exhausts_at_ns"]
        while (await rpc.ask("get_account", "u"))["cutoff"] is None:
            await asyncio.sleep(0.01)
        await reload(daemon, "reloaded cutoff.url", cutoff__url=f"{receiver.url}/cutoff")
        await until(lambda: receiver.calls)
        assert [(call.user_id, call.exhausted_at_ns) for call in receiver.calls] == [("u", due)]


async def test_cutoffs_of_classes_go_to_the_new_urls_too(data_dir: Path, receiver: Receiver) -> None:
    """Also where what a class inherits has changed, and where the rules of a class need a restart."""
    classes = '[cutoff.class.gold]\ngrace_s = 0\n[cutoff.class.own]\nurl = "{url}/own?key=hidden"\n'
    daemon = Daemon(data_dir, shards__workers=1, cutoff__url=f"{receiver.url}/old")
    plain = daemon.config.read_text()
    daemon.config.write_text(plain + classes.format(url=f"{receiver.url}/old"))
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for user in ("gold", "own"):
            await rpc.ask("top_up", user, 10)
            await rpc.ask("set_class", user, user)
        for path, grace_s in (("new", 0), ("newer", 1)):
            changed = classes.format(url=f"{receiver.url}/{path}").replace("grace_s = 0", f"grace_s = {grace_s}")
            daemon.config.write_text(plain.replace("/old", f"/{path}") + changed)
            await reload(daemon, "reloaded cutoff.class: calls of its classes may go elsewhere now")
            seen = len(receiver.calls)
            for user in ("gold", "own"):
                await rpc.ask("top_up", user, 10)
                await rpc.ask("debit", user, 100, {"mode": "partial"})
            await until(lambda seen=seen: len(receiver.calls) >= seen + 2)  # type: ignore[misc]
            paths = {call.user_id: call.path for call in receiver.calls[seen:]}
            assert paths == {"gold": f"/{path}", "own": f"/{path}/own"}
            records = await rpc.ask("audit", {"act": "reload"})
            details = records[-1]["details"]
            assert details["cutoff.class.own.url"] == f'"{receiver.url}/{path}/own?key=***"'
            assert details["cutoff.class.gold.url"] == details["cutoff.url"]
        assert "cutoff.class has changed and needs a restart" in daemon.log.read_text()


async def test_calls_under_way_end_and_delay_nobody_else(data_dir: Path) -> None:
    """A call that hangs is not made twice at once, the users beside it are called in time, and nothing that was counted
    is forgotten.
    """
    asked: list[str] = []
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                user = request.split(b"user_id=")[1].split(b"&")[0].decode()
                asked.append(user)
                if user == "slow":
                    await answered.wait()
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/cutoff"
    with Daemon(data_dir, shards__workers=2, cutoff__url=url, cutoff__timeout_s=50.0) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for user in ("before", "slow"):
            bucket_id = (await rpc.ask("top_up", user, 10))["bucket_id"]
            await rpc.ask("debit", user, 10)
            while user not in asked:
                await asyncio.sleep(0.02)
        for timeout_s in (49, 48):
            await reload(daemon, "reloaded cutoff.timeout_s", cutoff__timeout_s=timeout_s)
        users = [f"u{number}" for number in range(16)]
        for user in users:
            await rpc.ask("top_up", user, 10)
            await rpc.ask("debit", user, 10)
        await until(lambda: set(users) <= set(asked))
        assert asked.count("slow") == 1, "its call is still under way"
        pending = await rpc.ask("pending_cutoffs")
        assert [(row["user_id"], row["attempts"]) for row in pending if row["user_id"] == "slow"] == [("slow", 1)]
        assert (await rpc.ask("explain", "slow"))["why"].startswith("A call is under way, for ")
        async with at(daemon) as session:
            await scraped_when(session, "billing_cutoff_calls_in_flight", "", 1)
        answered.set()
        while (await rpc.ask("get_account", "slow"))["cutoff"]["status"] == "pending":
            await asyncio.sleep(0.02)
        assert sorted(asked) == sorted(["before", "slow", *users])
        async with at(daemon) as session:
            await scraped_when(session, "billing_cutoff_calls_delivered_total", "kind=cutoff", 18)
        target = 3 - (await rpc.ask("route"))["owners"][bucket_id - 1]
        assert (await rpc.ask("move_bucket", bucket_id, target))["shard_id"] == target, "no call is in flight"
    server.close()


async def test_a_call_that_hangs_at_the_former_url_goes_to_the_new_one_and_its_bucket_can_move(
    data_dir: Path, receiver: Receiver
) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/cutoff"
    with Daemon(data_dir, shards__workers=2, cutoff__url=url) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        buckets = {}
        for user in ("paid", "poor"):
            buckets[user] = (await rpc.ask("top_up", user, 10))["bucket_id"]
            await rpc.ask("debit", user, 10)
            await asyncio.wait_for(asked.wait(), 60)
            asked.clear()
        await rpc.ask("top_up", "paid", 10)  # there is no restore URL, so nothing is owed any more
        await reload(daemon, "reloaded cutoff.url", cutoff__url=f"{receiver.url}/cutoff")
        await until(lambda: receiver.calls)
        assert [call.user_id for call in receiver.calls] == ["poor"]
        owners = (await rpc.ask("route"))["owners"]
        for user, bucket_id in buckets.items():
            target = 3 - owners[bucket_id - 1]
            assert (await rpc.ask("move_bucket", bucket_id, target))["shard_id"] == target, user
    server.close()


async def test_what_needs_a_restart_is_named_and_what_is_wrong_changes_nothing(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        route = await rpc.ask("route")
        await reload(daemon, "journal.sync has changed and needs a restart", journal__sync="never")
        assert (await rpc.ask("server_info"))["journal_sync"] == "always"
        daemon.kill((await rpc.ask("shards_info"))[1]["worker_pid"])
        daemon.wait_ready()
        for _ in range(8):  # a worker that starts later has the values of the start, too
            connection = await Rpc.connect(daemon.rpc_port)
            assert (await connection.ask("server_info"))["journal_sync"] == "always"
        await reload(daemon, "nothing has changed", shards__workers=65)
        assert "shards.workers" in daemon.log.read_text()
        await reload(daemon, "nothing has changed", shards__workers=3, shards__weights="9=1")
        rpc = await Rpc.connect(daemon.rpc_port)
        assert await rpc.ask("route") == route


async def signed_in(daemon: Daemon, token: str) -> Any:
    """The error of a sign-in; None where it succeeded."""
    rpc = await Rpc.connect(daemon.rpc_port)
    error, _ = await rpc.call("hello", {"token": token})
    rpc.close()
    return error


async def test_tokens_are_read_again_and_the_old_ones_are_worth_nothing(data_dir: Path) -> None:
    tokens = data_dir / "tokens"
    tokens_file(tokens, ("shop", "top_up", "old"), ("till", "top_up", "kept"))
    with Daemon(data_dir, rpc__tokens_file=str(tokens)) as daemon:
        assert await signed_in(daemon, "old") is None
        revoked, unrevoked = await Rpc.connect(daemon.rpc_port), await Rpc.connect(daemon.rpc_port)
        await revoked.ask("hello", {"token": "old"})
        await unrevoked.ask("hello", {"token": "kept"})
        await revoked.ask("top_up", "u", "1")
        tokens_file(tokens, ("shop", "top_up", "new"), ("till", "top_up", "kept"))
        assert await signed_in(daemon, "new") is not None, "nobody has asked for a reload yet"
        await reload(daemon, "files that are named were read again")
        agreed = 0  # the workers hear of it a moment later, each in its own; whichever takes the connection must have
        for _ in range(400):
            answers = await signed_in(daemon, "new") is None, await signed_in(daemon, "old") is not None
            agreed = agreed + 1 if all(answers) else 0
            if agreed == 20:
                break
            await asyncio.sleep(0.02)
        assert agreed == 20
        assert (await signed_in(daemon, "old")).startswith("UNAUTHENTICATED")
        async with asyncio.timeout(60):
            while revoked.is_open:
                await asyncio.sleep(0.02)
        assert (await unrevoked.ask("top_up", "u", "1"))["balance_nanos"] == 2 * 10**9, "whose token stands stays"


def page_status(daemon: Daemon, token: str) -> int:
    """What the operators' pages say to this token."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.admin_port}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_the_operators_pages_take_the_new_tokens_as_well(data_dir: Path) -> None:
    tokens = data_dir / "tokens"
    tokens_file(tokens, ("prometheus", "read", "old"), ("shop", "top_up", "shop"))
    with Daemon(data_dir, shards__workers=1, rpc__tokens_file=str(tokens)) as daemon:
        assert [page_status(daemon, token) for token in ("old", "new", "shop")] == [200, 401, 403]
        tokens_file(tokens, ("prometheus", "read", "new"), ("shop", "read", "shop"))
        assert page_status(daemon, "new") == 401, "nobody has asked for a reload yet"
        await reload(daemon, "files that are named were read again")
        assert [page_status(daemon, token) for token in ("old", "new", "shop")] == [401, 200, 200]
        tokens.write_text("nonsense")
        await reload(daemon, "nothing has changed")
        assert [page_status(daemon, token) for token in ("old", "new", "shop")] == [401, 200, 200]


async def test_whoever_starts_later_goes_by_the_files_as_they_were_taken_up(data_dir: Path) -> None:
    """Neither what was refused, nor what nobody asked to take up, nor a file that is gone is felt before a restart."""
    tokens = data_dir / "tokens"
    tokens_file(tokens, ("prometheus", "read", "old"))
    with Daemon(data_dir, shards__workers=1, rpc__tokens_file=str(tokens)) as daemon:

        async def worker_pid() -> int:
            rpc = await Rpc.connect(daemon.rpc_port)
            await rpc.ask("hello", {"token": "old"})
            return int((await rpc.ask("shards_info"))[0]["worker_pid"])

        async def until_served_again() -> None:
            pid = await worker_pid()
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(120):
                while True:
                    with contextlib.suppress(ConnectionLost, OSError):
                        if await worker_pid() != pid:
                            return
                    await asyncio.sleep(0.05)

        tokens.write_text("nonsense")
        await reload(daemon, "nothing has changed")
        await until_served_again()
        tokens.unlink()
        await reload(daemon, "rpc.tokens_file has changed and needs a restart", rpc__tokens_file="")
        await until_served_again()
        assert [page_status(daemon, token) for token in ("old", "new")] == [200, 401]


async def test_certificates_are_read_again(data_dir: Path) -> None:
    cert, key = data_dir / "server.pem", data_dir / "server.key"
    authorities = [trustme.CA(), trustme.CA()]
    contexts = [ssl.create_default_context(), ssl.create_default_context()]  # whom the clients of each believe
    for authority, context in zip(authorities, contexts, strict=True):
        authority.configure_trust(context)

    def install(authority: trustme.CA) -> None:
        issued = authority.issue_cert("127.0.0.1")
        pem_file(cert, *issued.cert_chain_pems)
        pem_file(key, issued.private_key_pem)

    def beliefs(daemon: Daemon) -> list[bool]:
        """For each authority, whether its clients believe the daemon."""
        believed = []
        for context in contexts:
            try:
                with socket.create_connection(("127.0.0.1", daemon.rpc_port), timeout=60) as plain:
                    context.wrap_socket(plain, server_hostname="127.0.0.1").close()
                believed.append(True)
            except ssl.SSLCertVerificationError:
                believed.append(False)
        return believed

    install(authorities[0])
    tokens_file(data_dir / "tokens", ("shop", "top_up", "t"))
    settings = {"rpc__tls_cert": str(cert), "rpc__tls_key": str(key), "rpc__tokens_file": str(data_dir / "tokens")}
    with Daemon(data_dir, **settings) as daemon:
        assert await asyncio.to_thread(beliefs, daemon) == [True, False]
        install(authorities[1])
        await reload(daemon, "files that are named were read again")
        agreed = 0  # as above
        for _ in range(400):
            agreed = agreed + 1 if await asyncio.to_thread(beliefs, daemon) == [False, True] else 0
            if agreed == 20:
                break
            await asyncio.sleep(0.02)
        assert agreed == 20


def is_let_in(daemon: Daemon, context: ssl.SSLContext) -> bool:
    """Whether a client gets an answer by the certificate that it shows."""
    try:
        with (
            socket.create_connection(("127.0.0.1", daemon.rpc_port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wire,
        ):
            wire.sendall(b"\x94\x00\x01\xa4ping\x90")
            return b"pong" in wire.recv(100)
    except (ssl.SSLError, ConnectionError):
        return False


async def test_the_authority_of_clients_is_read_again_and_the_former_one_is_worth_nothing(data_dir: Path) -> None:
    server_authority, authorities = trustme.CA(), [trustme.CA(), trustme.CA()]
    issued, ca = server_authority.issue_cert("127.0.0.1"), data_dir / "clients.pem"
    clients = []
    for authority in authorities:
        context = ssl.create_default_context()
        server_authority.configure_trust(context)
        authority.issue_cert(common_name="shop").configure_cert(context)
        clients.append(context)
    ca.write_bytes(authorities[0].cert_pem.bytes())
    settings = {
        "rpc__tls_cert": pem_file(data_dir / "door.pem", *issued.cert_chain_pems),
        "rpc__tls_key": pem_file(data_dir / "door.key", issued.private_key_pem),
        "rpc__tls_client_ca": str(ca),
    }
    with Daemon(data_dir, **settings) as daemon:
        let_in = [await asyncio.to_thread(is_let_in, daemon, certificate) for certificate in clients]
        assert let_in == [True, False]
        ca.write_bytes(authorities[1].cert_pem.bytes())
        await reload(daemon, "files that are named were read again")
        agreed = 0  # as above
        for _ in range(400):
            let_in = [await asyncio.to_thread(is_let_in, daemon, certificate) for certificate in clients]
            agreed = agreed + 1 if let_in == [False, True] else 0
            if agreed == 20:
                break
            await asyncio.sleep(0.02)
        assert agreed == 20


async def first_words(daemon: Daemon) -> bytes:
    """What the daemon says to whoever connects and asks for a pong."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.rpc_port)
    writer.write(b"\x94\x00\x01\xa4ping\x90")
    data = await reader.read(1000)
    writer.close()
    return data


async def until_let_in(daemon: Daemon) -> None:
    """Returns when whoever connects is answered."""
    for _ in range(400):
        data = await first_words(daemon)
        if b"pong" in data:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(data)


async def test_the_limit_of_connections_changes_while_it_serves(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, rpc__connections_max=3) as daemon:
        connections = [await Rpc.connect(daemon.rpc_port) for _ in range(3)]
        for rpc in connections:
            assert await rpc.ask("ping") == "pong"
        assert b"TOO_MANY_CONNECTIONS" in await first_words(daemon)
        await reload(daemon, "reloaded rpc.connections_max: 9", rpc__connections_max=9)
        await until_let_in(daemon)
        for rpc in connections:
            assert await rpc.ask("ping") == "pong", "those that were there stay"


async def test_the_limits_of_one_client_change_while_it_serves(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, rpc__requests_per_s_max=0, rpc__connections_per_origin_max=0) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for _ in range(200):
            assert (await rpc.ask("top_up", "u", 5))["entry_id"]
        limits = {"rpc__requests_per_s_max": 1, "rpc__connections_per_origin_max": 1}
        await reload(daemon, "reloaded rpc.requests_per_s_max: 1, was 0", **limits)
        refused = None
        for _ in range(400):
            refused, _ = await rpc.call("top_up", "u", 5)
            if refused is not None:
                break
            await asyncio.sleep(0.01)
        assert refused == "BUSY: this connection asks more than 1 times a second"
        assert await rpc.ask("ping") == "pong"
        assert b"TOO_MANY_CONNECTIONS" in await first_words(daemon)
        assert "connections turned away: 1, the last one from 127.0.0.1: too many from there" in daemon.log.read_text()
        await reload(daemon, "reloaded rpc.requests_per_s_max: 0, was 1", **dict.fromkeys(limits, 0))
        await until_let_in(daemon)
        assert (await rpc.ask("get_account", "u"))["balance_nanos"] >= 1000


async def test_a_file_that_is_empty_for_a_moment_sends_no_cutoffs_elsewhere(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1) as daemon:
        rpc, text = await Rpc.connect(daemon.rpc_port), daemon.config.read_text()
        route = await rpc.ask("route")
        for content in ("", "# nothing\n", "[cutoff]\n"):
            daemon.config.write_text(content)
            await hang_up(daemon, "it names no key any more")
        assert "reloaded cutoff.url" not in daemon.log.read_text()
        assert await rpc.ask("route") == route
        daemon.config.write_text(text)
        await hang_up(daemon, "reloaded: no key has changed that may")


async def test_a_reload_that_lets_more_be_logged_is_logged_itself(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, log__level="error") as daemon:
        await reload(daemon, 'reloaded log.level: "info", was "error"', log__level="info")
        await reload(daemon, 'reloaded log.level: "error", was "info"', log__level="error")
        size = daemon.log.stat().st_size
        await reload(daemon, "nothing has changed", log__level="loud")
        assert " INFO " not in daemon.log.read_text()[size:]


async def test_a_configuration_that_cannot_be_read_through_holds_up_nothing_else(data_dir: Path) -> None:
    """A pipe in its place is as silent as a mount whose server is gone. The main process serves the operators' page,
    feeds the watchdog and stops in order meanwhile.
    """
    daemon = Daemon(data_dir, shards__workers=1)
    text = daemon.config.read_text()
    with daemon:
        daemon.config.unlink()
        os.mkfifo(daemon.config)
        await hang_up(daemon, "the configuration is not reloaded yet: its files have not been read for 5 s")
        daemon.wait_ready()
        await asyncio.to_thread(daemon.config.write_text, text.replace("workers = 1", "workers = 2"))
        daemon_says = "reloaded shards.workers: 2"
        await until(lambda: daemon_says in daemon.log.read_text())
        await hang_up(daemon, "the configuration is not reloaded yet")
        assert daemon.stop() == 0
