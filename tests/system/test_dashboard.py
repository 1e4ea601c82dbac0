"""The dashboard in a real browser, with a real daemon behind it: it lives, it escapes, it fits, and needs no script."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.admin.chromium import PATH, Chromium
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

pytestmark = [
    pytest.mark.skipif(PATH is None, reason="the browser is Debian's package chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]

EVIL = "<img src=x onerror=document.title='bad'>"
SHOTS = os.environ.get("BILLING_SCREENSHOTS", "")  # a folder to keep what the browser saw in


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chromium]:
    async with Chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def browser(opened: Chromium) -> Chromium:
    """The one that all tests share, on an empty page, with nothing complained about yet."""
    await opened.open("about:blank")
    opened.errors.clear()
    return opened


@pytest.fixture(scope="module")
def daemon(module_dir: Path) -> Iterator[Daemon]:
    """For the last three tests, in their order: one worker, and nothing is in it at first."""
    with Daemon(module_dir, shards__workers=1) as started:
        yield started


async def keep(browser: Chromium, name: str) -> None:
    if SHOTS:
        await browser.screenshot(Path(SHOTS) / f"{name}.png")


async def test_it_lives_with_the_daemon(data_dir: Path, browser: Chromium) -> None:
    with Daemon(data_dir) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        bucket = (await rpc.ask("top_up", "alice", "100"))["bucket_id"]
        await rpc.ask("set_rate", "alice", "0.5")
        await browser.open(f"http://127.0.0.1:{daemon.admin_port}/", 1280, 900)
        await browser.until("document.getElementById('live').textContent === 'live'")
        assert await browser.evaluate("document.querySelectorAll('.buckets i').length") == 3000
        assert await browser.evaluate("document.getElementById('cells').open") is False, "nothing moves"

        # a balance that is asked for is counted down, between two answers of the server as well
        await browser.evaluate("document.getElementById('user').value = 'alice'")
        await browser.evaluate("document.querySelector('#ask button').click()")
        first = float(await browser.until("document.getElementById('ticking')?.textContent"))
        texts: set[str] = set()
        async with asyncio.timeout(60):
            while len(texts) <= 5:
                texts.add(await browser.evaluate("document.getElementById('ticking').textContent"))
                await asyncio.sleep(0.05)
            while True:  # the two are read one after the other, and a page may be late for a moment
                left_ns = (await rpc.ask("get_account", "alice"))["available_nanos"]
                ticking = float(await browser.evaluate("document.getElementById('ticking').textContent"))
                if ticking == pytest.approx(left_ns / 1e9, abs=0.5):
                    break
        assert ticking < first
        are_equal = "document.getElementById('balance').textContent === document.getElementById('ticking').textContent"
        assert await browser.evaluate(are_equal), "the balance is counted down with what is available"

        # a move is seen happening: the cell takes the colour of its new owner and lights up
        owner = await browser.evaluate(f"document.querySelectorAll('.buckets i')[{bucket - 1}].className")
        target = 1 if owner == "s2" else 2
        await rpc.ask("move_bucket", bucket, target)
        await browser.until(f"document.querySelectorAll('.buckets i')[{bucket - 1}].className === 's{target} moved'")
        await browser.until(f"document.getElementById('moves').textContent.includes('bucket {bucket}')")
        assert await browser.evaluate("document.getElementById('cells').open") is True

        # what is owed appears with its error, as text
        await rpc.ask("top_up", EVIL, "0.000001")
        await rpc.ask("set_rate", EVIL, "1")
        await browser.until("document.querySelector('#owed td.user') !== null")
        assert await browser.evaluate("document.querySelector('#owed td.user').textContent") == EVIL
        await browser.until("document.querySelector('#owed .error').textContent.includes('refused')")
        title = await browser.evaluate("document.title")
        assert title.endswith(f"billing on {socket.gethostname()}"), "what a user is called is no script"
        await keep(browser, "lives")

        # and when the daemon is gone, it says so
        daemon.kill()
        await browser.until("document.getElementById('live').textContent.startsWith('no news for')")
    assert [error for error in browser.errors if "ERR_" not in error] == []


NO_CLIPBOARD = """
    Object.defineProperty(navigator, "clipboard", {value: undefined});
    document.execCommand = (what) => { window.copied = document.activeElement.value; return what === "copy"; };
    true
"""


async def test_an_outage_of_the_endpoint_is_the_first_thing_that_is_seen(data_dir: Path, browser: Chromium) -> None:
    with Daemon(data_dir, shards__workers=1) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(30):
            await rpc.ask("top_up", f"late-{number}", "0.000001")
            await rpc.ask("set_rate", f"late-{number}", "1")
        await rpc.ask("set_rate", "late-0", "0")
        await rpc.ask("set_rate", "late-0", "1")  # one more cutoff of a user who is owed one already
        await browser.open(f"http://127.0.0.1:{daemon.admin_port}/", 1280, 900)
        await browser.until("document.querySelector('#state .pill.bad')?.textContent === '31 owed'", 60)
        await browser.until("document.title.startsWith('● 31 owed')", 60)
        await browser.until("document.getElementById('tiles').innerText.includes('the first that waits')", 60)
        expression = "document.querySelector('header #troubles li.bad').innerText"
        trouble_text = await browser.until(f"{expression}.includes('30 users wait') && {expression}", 60)
        assert trouble_text.split("\n")[1].startswith("http://127.0.0.1:9 has taken no calls since")
        assert "refused" in trouble_text
        reason = (await rpc.ask("explain", "late-0"))["why"]
        assert reason.startswith(("http://127.0.0.1:9 has taken no calls for ", "A call is under way, for "))
        assert await browser.evaluate("document.querySelector('#troubles .copy').dataset.copy") == "billing cutoffs"
        await browser.evaluate(NO_CLIPBOARD)
        await browser.evaluate("document.querySelector('#troubles .copy').click()")
        await browser.until("window.copied === 'billing cutoffs'", 60)
        link = await browser.evaluate("document.querySelector('#troubles a').getAttribute('href')")
        assert link == "/runbook#BillingEndpointShut"
        text = "document.querySelectorAll('.tile')[3].innerText.split(/\\s+/).join(' ')"
        await browser.until(f"{text}.includes('30 exhausted accounts whose rate nobody has set to 0')", 60)
        await browser.until("document.getElementById('recent').innerText.includes('refused')", 60)
        await browser.open(f"http://127.0.0.1:{daemon.admin_port}{link}")
        assert await browser.evaluate("document.getElementById('BillingEndpointShut') !== null")
    assert browser.errors == []


async def test_a_worker_that_died_has_left_a_trace(daemon: Daemon, browser: Chromium) -> None:
    await browser.open(f"http://127.0.0.1:{daemon.admin_port}/", 1280, 900)
    await browser.until("document.querySelector('#state .pill.good') !== null", 60)
    assert "No warning was logged since the start" in await browser.evaluate(
        "document.getElementById('recent').innerText"
    )
    os.kill(daemon.worker_pids()[0], signal.SIGSTOP)
    await browser.until("document.querySelector('#shards .pill.bad')?.textContent === 'silent'", 60)
    assert await browser.evaluate("document.title.startsWith('● Silent')")
    owed = await browser.evaluate("document.getElementById('owed').innerText")
    assert owed == "The list cannot be had now: no answer in time."
    tiles = " ".join((await browser.evaluate("document.querySelector('.tiles').innerText")).split())
    assert "nothing is owed" not in tiles, "nobody knows that now"
    assert "Cutoffs owed – no shard answers" in tiles
    assert "Commands a second – no shard answers" in tiles
    daemon.kill(daemon.worker_pids()[0])
    await browser.until("document.getElementById('recent').innerText.includes('ended with -9')", 60)
    await browser.until("document.querySelector('#state .pill.good') !== null", 60)
    starts = "document.querySelectorAll('#shards tbody td')[3].textContent"
    await browser.until(f"{starts} === '2'", 60)
    identity = await browser.evaluate("document.getElementById('identity').innerText")
    for fact in ("since", "version", "memory", "disk"):
        assert fact in identity


async def test_it_needs_no_script_for_the_figures(daemon: Daemon, browser: Chromium) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    await rpc.ask("top_up", "alice", "12.5")
    url = f"http://127.0.0.1:{daemon.admin_port}/?user=alice"
    async with asyncio.timeout(60):
        counted = ""
        while counted != "1":  # the figures are of a second ago
            await browser.open(url, script=False)
            counted = await browser.evaluate("document.querySelectorAll('.tile .figure')[5].textContent")
    text = await browser.evaluate("document.body.innerText")
    assert "12.5" in text
    assert "every bucket is served" in text
    await browser.open(f"http://127.0.0.1:{daemon.admin_port}/runbook", script=False)
    assert "BillingCutoffsOwed" in await browser.evaluate("document.body.innerText")
    await keep(browser, "runbook")


async def test_it_fits_and_can_be_read(daemon: Daemon, browser: Chromium) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    for number in range(30):
        await rpc.ask("top_up", f"a user with quite a long name, number {number} of some", "0.001")
        await rpc.ask("set_rate", f"a user with quite a long name, number {number} of some", str(1 + number % 3))
    for name, width, height, dark in (("desk", 1280, 900, False), ("phone", 375, 812, True)):
        await browser.open(f"http://127.0.0.1:{daemon.admin_port}/?user={'x' * 100}", width, height, dark)
        await browser.until("document.querySelector('#owed td.user') !== null")
        assert await browser.evaluate("document.documentElement.scrollWidth") <= width, name
        low_contrasts = await browser.evaluate(CONTRASTS)
        assert low_contrasts == [], f"{name}: text that can hardly be read"
        overflows = await browser.evaluate(OVERFLOWS)
        assert overflows == [], f"{name}: what does not fit into its card"
        await keep(browser, name)
    assert browser.errors == []


# Texts whose contrast with what is behind them is below 4.5 (WCAG 2.1 AA).
CONTRASTS = """(() => {
  const parse = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = (rgb) => { const [r, g, b] = rgb.slice(0, 3).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const a = light(parse(e.tagName === "text" ? style.fill : style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(e.tagName + " " + e.textContent.slice(0, 30) + " " + ratio.toFixed(2));
  }
  return found;
})()"""

# Elements that stick out of the card they are in, unless the card scrolls there.
OVERFLOWS = """[...document.querySelectorAll(".card, .tile")].flatMap((card) => {
  const edge = card.getBoundingClientRect();
  return [...card.querySelectorAll("*")].filter((e) => !e.closest(".scroll") && !e.closest("svg")
    && e.getBoundingClientRect().right > edge.right + 1).map((e) => e.tagName + " " + e.textContent.slice(0, 40));
})"""
