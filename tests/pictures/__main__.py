"""`make pictures`: the README's pictures, taken of the real thing.

    python -m tests.pictures                    docs/pictures/*.{svg,png}
    python -m tests.pictures --every DIRECTORY  every scene at every size, to be looked at

The demo's screen is what the demo itself draws when its scene is over, as SVG; the dashboard is what Chromium shows of
a real daemon that was brought into a state: at work, with an endpoint that does not answer, with a dead worker, empty,
or with many accounts. Nothing in a picture is made up. Ports are free ones, data live in a temporary directory.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from billing.trial.receiver import Receiver
from tests.admin.chromium import PATH, Chromium
from tests.pictures.demo import draw_demo
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
BYTES_MAX = 200_000
PAGE_S = 60.0


class Scene(NamedTuple):
    """A state that a daemon is brought into. `prepare` gets it running; `user` is the account shown."""

    name: str
    prepare: Callable[[Daemon, Rpc, Receiver], Awaitable[None]]
    shows: str  # an expression of the page that is true once the state can be seen
    user: str = ""
    receiver_answers: bool = True


async def at_work(daemon: Daemon, rpc: Rpc, receiver: Receiver) -> None:
    """Two hundred users spend; some run out within seconds and are reported off, others in the coming hour."""
    for number in range(200):
        user = f"cust-{number:04}"
        await rpc.ask("top_up", user, str(5 + number * 7) if number >= 40 else f"0.{number:02}1")
        await rpc.ask("set_rate", user, "0.36" if number >= 40 else "0.05", {"resource": f"vm-{number}"})
    await rpc.ask("top_up", "alice", "1250.75")
    await rpc.ask("set_rate", "alice", "7.2", {"per": "hour", "resource": "vm-web-1"})
    async with asyncio.timeout(PAGE_S):
        while len(receiver.calls) < 40:
            for number in range(40):
                await rpc.ask("get_account", f"cust-{number:04}")
            await asyncio.sleep(0.2)
    for number in range(40):
        await rpc.ask("set_rate", f"cust-{number:04}", 0, {"resource": f"vm-{number}"})


async def outage(daemon: Daemon, rpc: Rpc, receiver: Receiver) -> None:
    """A thousand users run out while nobody answers at the cutoff URL."""
    for number in range(1000):
        await rpc.ask("top_up", f"late-{number:04}", "0.5")
        await rpc.ask("set_rate", f"late-{number:04}", "0.25")
    async with asyncio.timeout(PAGE_S):
        while sum(row["pending_cutoffs"] for row in await rpc.ask("shards_info")) < 1000:
            await asyncio.sleep(0.2)
    await asyncio.sleep(6)


async def dead_worker(daemon: Daemon, rpc: Rpc, receiver: Receiver) -> None:
    """The worker of one shard ends again and again."""
    await rpc.ask("top_up", "alice", "12.5")
    keys = daemon.worker_pids()
    for _ in range(6):
        for pid in daemon.worker_pids()[:1] or keys[:1]:
            daemon.kill(pid)
        await asyncio.sleep(0.7)


async def empty(daemon: Daemon, rpc: Rpc, receiver: Receiver) -> None:
    """Nothing has ever been asked."""


async def many(daemon: Daemon, rpc: Rpc, receiver: Receiver) -> None:
    """A hundred thousand accounts, a great overrun, buckets that move."""
    for first in range(0, 100_000, 2000):
        await asyncio.gather(*(rpc.ask("top_up", f"c-{number}", "1000000") for number in range(first, first + 2000)))
    await rpc.ask("top_up", "whale", "0.000001")
    await rpc.ask("set_rate", "whale", "150000")
    for row in (await rpc.ask("buckets_info"))[:30]:
        await rpc.ask("move_bucket", row["bucket_id"], 3 - row["shard_id"])
    await asyncio.sleep(3)


SCENES = (
    Scene("at-work", at_work, "document.getElementById('tiles').innerText.includes('201')", "alice"),
    Scene("outage", outage, "document.title.includes('owed')", "late-0500", receiver_answers=False),
    Scene("dead-worker", dead_worker, "document.getElementById('recent').innerText.includes('ended with')"),
    Scene("empty", empty, "document.querySelector('.pill.good') !== null"),
    Scene("many", many, "document.getElementById('tiles').innerText.includes('100,001')", "whale"),
)
SIZES = {  # width, height, dark
    "desk": (1280, 900, False),
    "dark": (1280, 900, True),
    "phone": (390, 844, False),
    "phone-dark": (390, 844, True),
}
README = {("at-work", "desk"): "dashboard", ("outage", "dark"): "dashboard-outage"}


async def ask_on(rpc: Rpc, user: str) -> None:
    """Some hundred commands a second, as services ask them, until cancelled."""
    while user:
        await asyncio.gather(*(rpc.ask("get_account", user) for _ in range(20)))
        await asyncio.sleep(0.05)


async def take(scene: Scene, sizes: dict[str, Path], full_page: bool) -> None:
    """The scene at each of these sizes, into these files; the whole page, or what fits the window."""
    with tempfile.TemporaryDirectory(prefix="billing-pictures-") as directory:
        receiver = Receiver()
        await receiver.start()
        url = receiver.url + "/cutoff"
        if not scene.receiver_answers:
            await receiver.close()
        with Daemon(Path(directory), cutoff__url=url, **{"cutoff.concurrency": 16}) as daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await scene.prepare(daemon, rpc, receiver)
            traffic = asyncio.create_task(ask_on(rpc, scene.user))
            async with Chromium(Path(directory)) as browser:
                for size, file in sizes.items():
                    width, height, dark = SIZES[size]
                    query = f"?user={scene.user}" if scene.user else ""
                    await browser.open(f"http://127.0.0.1:{daemon.admin_port}/{query}", width, height, dark)
                    await browser.until(scene.shows, PAGE_S)
                    await browser.until("document.getElementById('live').textContent === 'live'", PAGE_S)
                    await browser.screenshot(file, full_page)
            traffic.cancel()
        if scene.receiver_answers:
            await receiver.close()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__, allow_abbrev=False)
    parser.add_argument("--every", type=Path, metavar="DIRECTORY", help="every scene at every size, into DIRECTORY")
    parser.add_argument("--scene", help="this scene only")
    options = parser.parse_args()
    if PATH is None:
        raise SystemExit("the browser is Debian's package chromium, which is not installed")
    folder: Path = options.every or PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        if options.scene not in (None, scene.name):
            continue
        if options.every:
            await take(scene, {size: folder / f"{scene.name}-{size}.png" for size in SIZES}, True)
        elif wanted := {size: folder / f"{name}.png" for (of, size), name in README.items() if of == scene.name}:
            await take(scene, wanted, False)
    if options.scene in (None, "demo"):
        await draw_demo(folder / "demo.svg")
    for file in sorted(folder.iterdir()):
        print(f"{file}: {file.stat().st_size:,} bytes")
        assert options.every or file.stat().st_size <= BYTES_MAX, f"{file} is too large for a README"


if __name__ == "__main__":
    asyncio.run(main())
