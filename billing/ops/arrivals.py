"""What a running receiver has received: its `/received` pages, read as arrivals of cutoffs.

A receiver may serve several runs and several purposes; an `ArrivalReader` starts where it stands, keeps to the path of
one cutoff URL, and gives each GET out once, repeated ones included. A receiver remembers a limited number of calls:
what was forgotten before it was read is an error, never silently absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import aiohttp

PAGE_CALLS: Final = 1000


class Arrival(NamedTuple):
    """A GET as the receiver saw it: `arrived_ns` is the instant at which its bytes were read."""

    user_id: str
    event_id: str
    seq: int
    exhausted_at_ns: int
    arrived_ns: int


class ReceiverError(Exception):
    """The receiver does not answer as a receiver, or has forgotten what was not read yet."""


class ArrivalReader:
    """Reads one receiver. `address` is host:port, `path` that of the cutoff URL up to its first placeholder."""

    def __init__(self, session: aiohttp.ClientSession, address: str, path: str) -> None:
        self._session = session
        self._url = f"http://{address}/received"
        self._path = path
        self._next = 0

    async def skip(self) -> None:
        """Leaves out what came until now."""
        while await self._page():
            pass

    async def fresh(self) -> list[Arrival]:
        """What came since the last call, oldest first. Raises ReceiverError, and aiohttp.ClientError."""
        found: list[Arrival] = []
        while calls := await self._page():
            if calls[0]["number"] != self._first:
                raise ReceiverError(f"{self._url} has forgotten {calls[0]['number'] - self._first} calls")
            found += [_arrival(call) for call in calls if self._is_cutoff(call)]
        return found

    async def _page(self) -> list[dict[str, Any]]:
        self._first = self._next
        wanted = {"after": str(self._next), "limit": str(PAGE_CALLS)}
        async with self._session.get(self._url, params=wanted) as answer:
            page = await answer.json(content_type=None) if answer.status == 200 else None
        if not isinstance(page, dict) or not isinstance(page.get("calls"), list):
            raise ReceiverError(f"{self._url} is no `billing receiver`")
        self._next = page["next"]
        calls: list[dict[str, Any]] = page["calls"]
        return calls

    def _is_cutoff(self, call: dict[str, Any]) -> bool:
        path: str = call["target"].partition("?")[0]
        return call["method"] == "GET" and call["exhausted_at_ns"] >= 0 and path.startswith(self._path)


def _arrival(call: dict[str, Any]) -> Arrival:
    return Arrival(call["user_id"], call["event_id"], call["seq"], call["exhausted_at_ns"], call["arrived_ns"])
