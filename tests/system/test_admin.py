"""HTTP for operators, from outside: figures that are those of what was done, and who may read them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from billing.admin.server import VIEWERS_MAX
from tests.system.daemon import Daemon
from tests.system.private_files import pem_file, tokens_file
from tests.system.rpc import Rpc

PROMTOOL = shutil.which("promtool")


async def scraped(session: aiohttp.ClientSession) -> dict[tuple[str, str], float]:
    """(sample, its labels but the shard) -> value, summed over shards."""
    async with session.get("/metrics") as answer:
        assert answer.status == 200
        samples: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(await answer.text()):
            for sample in family.samples:
                labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "shard")
                samples[sample.name, labels] = samples.get((sample.name, labels), 0) + sample.value
        return samples


async def scraped_when(
    session: aiohttp.ClientSession, name: str, labels: str, least: float
) -> dict[tuple[str, str], float]:
    async with asyncio.timeout(60):
        while (samples := await scraped(session)).get((name, labels), 0) < least:
            await asyncio.sleep(0.1)
    return samples


def at(daemon: Daemon) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(f"http://127.0.0.1:{daemon.admin_port}")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """For tests that need none of their own."""
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1) as started:
        yield started


async def test_metrics_count_what_was_done(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(20):
            await rpc.ask("top_up", f"u{number}", "0.5")
        await rpc.call("debit", "u1", "100")
        await rpc.call("get_account", "nobody")
        await rpc.ask("set_rate", "u2", "1000")
        async with at(daemon) as session:
            samples = await scraped_when(session, "billing_cutoff_calls_failed_total", "kind=cutoff", 1)
            await scraped_when(session, "billing_follower_up", "follower=history", 2)
            samples = await scraped_when(session, "billing_overrun_grown_coins_total", "", 0.001)
        assert samples["billing_requests_total", "method=top_up"] == 20
        assert samples["billing_requests_total", "method=set_rate"] == 1
        assert samples["billing_errors_total", "error=INSUFFICIENT_FUNDS"] == 1
        assert samples["billing_errors_total", "error=UNKNOWN_ACCOUNT"] == 1
        assert samples["billing_accounts", ""] == 20
        assert samples["billing_buckets", ""] == 3000
        assert samples["billing_ready", ""] == 1
        assert samples["billing_shard_up", ""] == 2
        assert samples["billing_cutoffs_owed", ""] == 1
        assert samples["billing_overrun_accounts", ""] == 1
        assert samples["billing_overrun_coins", ""] >= samples["billing_overrun_grown_coins_total", ""]
        assert ("billing_cutoff_calls_failed_total", "kind=restore") not in samples  # there is no cutoff.restore_url
        assert samples["billing_cutoff_calls_delivered_total", "kind=cutoff"] == 0
        assert samples["billing_overrun_coins_per_second", ""] == pytest.approx(1000)
        assert samples["billing_cutoff_oldest_owed_seconds", ""] > 0
        assert samples["billing_sync_seconds_count", ""] >= 22 / 20
        assert samples["billing_batch_entries_sum", ""] >= 22
        assert samples["billing_cutoff_done_lateness_seconds_count", ""] == 0
        assert samples["billing_request_duration_seconds_count", "door=msgpack_rpc,method=top_up"] == 20
        assert samples["billing_request_duration_seconds_count", "door=msgpack_rpc,method=debit"] == 1
        assert samples["billing_request_duration_seconds_sum", "door=msgpack_rpc,method=top_up"] > 0
        assert samples["billing_follower_up", "follower=history"] == 2
        assert samples["process_resident_memory_bytes", ""] > 2**20
        assert samples["billing_process_cpu_seconds_total", "process=shard-1"] > 0
        assert 0 < samples["billing_disk_free_bytes", ""] <= samples["billing_disk_size_bytes", ""]


async def test_a_list_of_processes_says_which_shards_each_is(daemon: Daemon) -> None:
    def shard_of(process: psutil.Process) -> str:
        return next(word for word in process.cmdline() if word.startswith("shard="))

    async with at(daemon) as session:  # a worker serves before its followers run
        await scraped_when(session, "billing_follower_up", "follower=history", 1)
    workers = [psutil.Process(pid) for pid in daemon.worker_pids()]
    assert sorted(map(shard_of, workers)) == ["shard=1"]
    for worker in workers:
        followers = worker.children()
        assert followers
        assert {shard_of(follower) for follower in followers} == {shard_of(worker)}


async def test_a_process_that_does_not_run_has_a_series_that_says_so(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1) as daemon:
        async with at(daemon) as session:
            await scraped_when(session, "billing_follower_up", "follower=history", 1)
            async with asyncio.timeout(60):
                while (await scraped(session))["billing_follower_up", "follower=history"] != 0:
                    for follower in psutil.Process(daemon.worker_pids()[0]).children():
                        daemon.kill(follower.pid)
                    await asyncio.sleep(0.1)
            samples = await scraped(session)
            assert ("billing_follower_starts_total", "follower=history") in samples


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is in Debian's package prometheus")
async def test_promtool_has_nothing_to_say_about_the_metrics(daemon: Daemon) -> None:
    assert PROMTOOL is not None
    rpc = await Rpc.connect(daemon.rpc_port)
    await rpc.ask("top_up", "u", 5)
    async with at(daemon) as session, session.get("/metrics") as answer:
        text = await answer.read()
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_readyz_says_why_not_while_the_others_serve(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon, (data_dir / "out").open("wb"):
        async with at(daemon) as session:
            async with asyncio.timeout(60):
                status, text = 200, ""
                while status == 200:  # it is up again in a second, which a busy machine may let pass
                    for pid in daemon.worker_pids()[:1]:
                        daemon.kill(pid)
                    for _ in range(50):
                        async with session.get("/readyz") as answer:
                            status, text = answer.status, await answer.text()
                        if status == 503:
                            break
            assert text.startswith("shard ")
            async with session.get("/livez") as answer:
                assert answer.status == 200
            daemon.wait_ready()


async def test_the_page_needs_no_script_and_escapes_what_users_are_called(daemon: Daemon) -> None:
    evil = "<img src=x onerror=alert(1)>"
    rpc = await Rpc.connect(daemon.rpc_port)
    async with at(daemon) as session, session.get("/") as answer:
        assert 'class="pill good">Serving</span> every bucket is served, nothing is wrong' in await answer.text()
    await rpc.ask("top_up", evil, "0.001")
    await rpc.ask("set_rate", evil, 1000)
    await rpc.ask("debit", evil, 1_000_000, {"mode": "partial"})
    async with at(daemon) as session:
        async with asyncio.timeout(60):
            while True:
                async with session.get("/", params={"user": evil}) as answer:
                    text = await answer.text()
                    policy = answer.headers["Content-Security-Policy"]
                if "Ran out" in text and "--overrunning" in text:
                    break
                await asyncio.sleep(0.1)
        assert evil not in text
        named = text.count("&lt;img src=x onerror=alert(1)&gt;")
        assert named >= 3, "the account, the cutoff that is owed, and whose overrun grows fastest"
        assert "1 exhausted account whose rate nobody has set to 0" in text
        assert text.count("<i class=") == 3000
        assert "default-src 'none'" in policy
        assert " style=" not in text, "the policy would refuse it"
        async with session.get("/account", params={"user": "no such user"}) as answer:
            assert "There is no account no such user." in await answer.text()
        async with session.get("/account", params={"user": "x" * 129}) as answer:
            assert "1 to 128 bytes" in await answer.text()


async def test_it_only_reads_and_only_for_this_host(daemon: Daemon) -> None:
    async with at(daemon) as session:
        for path in ("/", "/metrics", "/account", "/events"):
            for method in ("POST", "PUT", "DELETE"):
                async with session.request(method, path) as answer:
                    assert answer.status == 405
            async with session.get(path, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 421
        async with session.get("/readyz", headers={"Host": "probe"}) as answer:
            assert answer.status == 200
        async with session.get("/page.html") as answer:
            assert answer.status == 404


async def test_a_page_is_kept_fresh_beside_any_number_that_nobody_looks_at(daemon: Daemon) -> None:
    """A stopped browser reads nothing, and the kernel takes what it is sent for as long as it has room."""
    async with at(daemon) as session:
        unread = [await session.get("/events") for _ in range(VIEWERS_MAX)]
        async with session.get("/events") as answer:
            while await answer.content.readline() != b"event: parts\n":
                assert not answer.content.at_eof()
        await unread[0].read()  # it has ended, and its browser would ask again
        while await unread[-1].content.readline() != b"event: parts\n":
            assert not unread[-1].content.at_eof()
        for other in unread:
            other.close()


async def test_with_tokens_only_who_may_read_reads(data_dir: Path) -> None:
    tokens = data_dir / "tokens"
    tokens_file(tokens, ("grafana", "read", "grafana"), ("till", "charge", "till"))
    with Daemon(data_dir, shards__workers=1, rpc__tokens_file=str(tokens)) as daemon:
        async with at(daemon) as session:
            for path in ("/", "/metrics", "/events", "/account", "/runbook", "/page.js"):
                async with session.get(path) as answer:
                    assert answer.status == 401
                    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
                async with session.get(path, headers={"Authorization": "Bearer wrong"}) as answer:
                    assert answer.status == 401
                async with session.get(path, headers={"Authorization": "Bearer till"}) as answer:
                    assert answer.status == 403
            basic = "Basic " + base64.b64encode(b"any:grafana").decode()
            for authorization in ("Bearer grafana", basic):
                async with session.get("/metrics", headers={"Authorization": authorization}) as answer:
                    assert answer.status == 200
            async with session.get("/readyz") as answer:
                assert answer.status == 200


async def test_beyond_loopback_it_speaks_tls_and_asks_who_is_there(data_dir: Path) -> None:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    daemon = Daemon(
        data_dir,
        shards__workers=1,
        rpc__tls_cert=pem_file(data_dir / "cert.pem", *server.cert_chain_pems),
        rpc__tls_key=pem_file(data_dir / "key.pem", server.private_key_pem),
        rpc__tokens_file=tokens_file(data_dir / "tokens", ("grafana", "read", "grafana")),
    )
    daemon.config.write_text(
        daemon.config.read_text().replace(f"127.0.0.1:{daemon.admin_port}", f"0.0.0.0:{daemon.admin_port}")
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    try:
        with daemon.log.open("ab") as log:
            daemon.process = subprocess.Popen(
                [sys.executable, "-m", "billing", "serve", "--config", str(daemon.config)], stderr=log, stdout=log
            )
        url = f"https://127.0.0.1:{daemon.admin_port}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(f"{url}/readyz") as answer:
                            if answer.status == 200:
                                break
                    await asyncio.sleep(0.05)
            async with session.get(f"{url}/metrics") as answer:
                assert answer.status == 401
            async with session.get(f"{url}/metrics", headers={"Authorization": "Bearer grafana"}) as answer:
                assert answer.status == 200
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://127.0.0.1:{daemon.admin_port}/livez")
        following = trustme.CA()
        server = following.issue_cert("127.0.0.1")
        pem_file(data_dir / "cert.pem", *server.cert_chain_pems)
        pem_file(data_dir / "key.pem", server.private_key_pem)
        daemon.process.send_signal(signal.SIGHUP)
        context = ssl.create_default_context()
        following.configure_trust(context)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            asyncio.timeout(60),
        ):
            while True:  # until the new certificate is shown
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/livez") as answer:
                        assert answer.status == 200
                        break
                await asyncio.sleep(0.05)
    finally:
        daemon.stop()
