"""The arrivals of cutoffs at a running receiver, read from its `/received` pages.

A receiver may serve several runs and several purposes. An `ArrivalReader` reads only the calls of one cutoff URL, and
returns each GET once; a repeated GET is a GET of its own. The user id is read from its place in the URL. A receiver
keeps a limited number of calls: if it has forgotten calls that the reader has not read, the reader raises an error. A
receiver that has answered before may refuse connections for a while, as its fault demands; the reader tries again.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohttp

from shards.counting import counted

PAGE_CALLS: Final = 5000
USER_ID: Final = "{user_id}"
REFUSED_S_MAX: Final = 30.0  # how long a receiver that answered before may refuse (`--receiver-faults refuse`, flap)
REFUSED_PAUSE_S: Final = 0.1


class Arrival(NamedTuple):
    """A GET as the receiver saw it: `arrived_ns` is the instant at which its bytes were read."""

    user_id: str
    event_id: str
    seq: int
    exhausted_at_ns: int
    arrived_ns: int


class ReceiverError(Exception):
    """The program at that address is no receiver, or has forgotten calls that were not read yet."""


class ArrivalReader:
    """Reads one receiver. `address` is host:port, `cutoff_url` as configured."""

    def __init__(self, session: aiohttp.ClientSession, address: str, cutoff_url: str) -> None:
        self._session = session
        self._url = f"http://{address}/received"
        self._pattern = target_pattern(cutoff_url)
        self._next = 0
        self._first = 0
        self._has_answered = False

    async def skip(self) -> None:
        """Skips the calls that have come until now."""
        while await self._page():
            pass

    async def fresh(self) -> list[Arrival]:
        """The arrivals since `fresh` or `skip` was last called, oldest first. Raises ReceiverError,
        aiohttp.ClientError, TimeoutError.
        """
        arrivals: list[Arrival] = []
        while calls := await self._page():
            if calls[0]["number"] != self._first:
                raise ReceiverError(f"{self._url} has forgotten {counted(calls[0]['number'] - self._first, 'call')}")
            arrivals += [arrival for call in calls if (arrival := arrival_of(call, self._pattern)) is not None]
        return arrivals

    async def _page(self) -> list[dict[str, Any]]:
        self._first = self._next
        wanted = {"after": str(self._next), "limit": str(PAGE_CALLS)}
        page = await self._fetch(wanted)
        if not isinstance(page, dict) or not isinstance(page.get("calls"), list):
            raise ReceiverError(f"{self._url} is no `billing receiver`")
        self._next = page["next"]
        calls: list[dict[str, Any]] = page["calls"]
        return calls

    async def _fetch(self, wanted: dict[str, str]) -> Any:
        """The page as parsed JSON; None if the status is not 200. Raises aiohttp.ClientError, TimeoutError."""
        async with asyncio.timeout(REFUSED_S_MAX):
            while True:
                try:
                    async with self._session.get(self._url, params=wanted) as answer:
                        self._has_answered = True
                        return await answer.json(content_type=None) if answer.status == 200 else None
                except aiohttp.ClientConnectionError:
                    if not self._has_answered:
                        raise
                await asyncio.sleep(REFUSED_PAUSE_S)


def target_pattern(cutoff_url: str) -> re.Pattern[str]:
    """A pattern of the request targets (path and query) of this URL's calls. Its group is the user id,
    percent-encoded.
    """
    parts = urlsplit(cutoff_url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if USER_ID not in target:
        target += f"{'&' if parts.query else '?'}user_id={USER_ID}"
    first, *rest = map(re.escape, target.split(USER_ID))
    return re.compile(first + "([^/?&]*)" + "[^/?&]*".join(rest) + "[?&]event_id=.*")


def arrival_of(call: dict[str, Any], pattern: re.Pattern[str]) -> Arrival | None:
    """The arrival that a call of the `/received` page describes; None if the call is no cutoff of the pattern's URL."""
    match = pattern.fullmatch(call["target"])
    if match is None or call["method"] != "GET" or call["exhausted_at_ns"] < 0:
        return None
    return Arrival(unquote(match[1]), call["event_id"], call["seq"], call["exhausted_at_ns"], call["arrived_ns"])
