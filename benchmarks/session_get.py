"""The CPU of a plain `session.get`, by aiohttp's parts.

The receiver is a process of its own. While the GETs run, a timer of the process's CPU time (SIGPROF) samples the stack
every `--every-us`; a sample counts for the innermost of the parts below on the stack. Samples in none of them belong to
the session's own code or the loop. Work in C counts for its caller. The timer's own cost is the difference to a run
without it.

    python -m benchmarks.session_get [--count 40000] [--connections 64]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections import Counter
from types import FrameType

import aiohttp
import uvloop

from benchmarks.cutoff_get import HEADERS, E, check, receiver

# part -> (end of a file's name, functions of it; empty: all)
PARTS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "URL, parsed and encoded": [("yarl/_url.py", ()), ("yarl/_parse.py", ()), ("yarl/_quoting_py.py", ())],
    "request object": [("aiohttp/client_reqrep.py", ("__init__", "update_host", "update_version", "update_auth"))],
    "request headers": [
        ("aiohttp/client_reqrep.py", ("update_headers", "update_auto_headers", "update_cookies")),
        ("aiohttp/client.py", ("_prepare_headers",)),
        ("aiohttp/cookiejar.py", ()),
    ],
    "request body and its absence": [
        (
            "aiohttp/client_reqrep.py",
            ("update_body_from_data", "_update_body", "update_transfer_encoding", "update_content_encoding"),
        ),
    ],
    "request written": [("aiohttp/client_reqrep.py", ("send", "write_bytes")), ("aiohttp/http_writer.py", ())],
    "connector and pool": [("aiohttp/connector.py", ())],
    "response object and its headers": [("aiohttp/client_reqrep.py", ("start", "read", "release", "__aexit__"))],
    "response parsed, streams": [("aiohttp/client_proto.py", ()), ("aiohttp/streams.py", ())],
    "timeouts": [
        ("aiohttp/helpers.py", ("timer", "start", "__enter__", "__exit__", "close", "calculate_timeout_when")),
    ],
    "tracing": [("aiohttp/tracing.py", ())],
    "middlewares, session": [("aiohttp/client.py", ()), ("aiohttp/client_middlewares.py", ())],
}


def part_of(frame: FrameType | None) -> str:
    """Returns the innermost part on a stack."""
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        for part, places in PARTS.items():
            for end, functions in places:
                if file.endswith(end) and (not functions or function in functions):
                    return part
        if "/aiohttp/" in file and "client_reqrep" in file:
            return "request and response, the rest"
        frame = frame.f_back
    return "loop and sockets"


async def gets(base: str, count: int, connections: int) -> float:
    """Returns the CPU microseconds per GET."""
    numbers = iter(range(count))
    async with aiohttp.ClientSession() as session:

        async def sender(most: int) -> None:
            for number in numbers:
                url = f"{base}/off?user_id=user_{number}&event_id=e&seq=3&exhausted_at_ns={E}"
                async with session.get(url, headers=HEADERS) as answer:
                    await answer.read()
                    check(answer.status)
                most -= 1
                if not most:
                    return

        await asyncio.gather(*(sender(5) for _ in range(connections)))
        began = time.process_time()
        await asyncio.gather(*(sender(count) for _ in range(connections)))
        return (time.process_time() - began) / (count - 5 * connections) * 1e6


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--every-us", type=int, default=500)
    options = parser.parse_args()
    looks: Counter[str] = Counter()

    def look(_: int, frame: FrameType | None) -> None:
        looks[part_of(frame)] += 1

    with receiver() as base:
        alone = uvloop.run(gets(base, options.count, options.connections))
        signal.signal(signal.SIGPROF, look)
        signal.setitimer(signal.ITIMER_PROF, options.every_us / 1e6, options.every_us / 1e6)
        looked = uvloop.run(gets(base, options.count, options.connections))
        signal.setitimer(signal.ITIMER_PROF, 0)
    print(f"{alone:.1f} µs a GET; {looked:.1f} with {looks.total()} looks, of which:")
    for part, count in looks.most_common():
        print(f"{part:34} {count / looks.total():6.1%} {count / looks.total() * alone:6.1f} µs")


if __name__ == "__main__":
    main()
