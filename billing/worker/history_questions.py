"""The queries that a worker answers from the history of its shard: rows and periods of an account, and the feed.

    history                 (user_id, limit, before): rows of an account
    statement               (user_id, from_ns, to_ns, by, limit, now_ns): a period of an account
    balance_at              (user_id, at_ns, now_ns): the balance of an account at an instant
    entries                 (cursor, limit): a page of all entries of the daemon, see `billing.worker.feed`
    history_reached,
    feed_part, feed_where   the surveys from which such a page is made: plain data, for workers of any host

An answer contains every entry whose reply was sent before the query came: the worker asks the history only after
handing over everything that was recorded when the query came, which happens as soon as that is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from billing.history.cursor import NoCursor
from billing.history.link import HistoryLink
from billing.ledger.errors import Refused
from billing.worker.feed import PART, REACHED, WHERE, FeedQuestion, SharedFeedQuestion, place_in
from billing.worker.machine import PERIODS, BillingMachine
from shards.machine import Command
from shards.worker.hosting import ServedShard

Done = Callable[[object], None]
Handler = Callable[[int, Command, Done], None]  # bucket id, question, what gets the reply


def go_on(slices: Generator[None, None, object], done: Done) -> None:
    """Runs a generator in slices, with other work between them, and calls `done` with its result."""
    try:
        next(slices)
    except StopIteration as end:
        done(end.value)
    else:
        asyncio.get_running_loop().call_soon(go_on, slices, done)


class HistoryQuestions:
    """The handlers of history queries to one shard."""

    def __init__(self, machine: BillingMachine, worker: ServedShard, history: HistoryLink, shares_log: bool) -> None:
        """`shares_log`: hosts share the log, and other hosts have the files of other shards."""
        self._machine = machine
        self._worker = worker
        self._history = history
        self._shares_log = shares_log
        self.handlers: dict[str, Handler] = {
            "history": self._account,
            **dict.fromkeys(PERIODS, self._account),
            "entries": self._entries,
            REACHED: self._reached,
            PART: self._part,
            WHERE: self._where,
        }

    def _when_handed_over(self, ask: Callable[..., None], *arguments: Any) -> None:
        """Calls `ask` once the history has been handed everything that is recorded now, right after that is durable."""
        loop = asyncio.get_running_loop()

        def durable() -> None:
            loop.call_soon(ask, *arguments)

        self._worker.when_durable(durable)

    # -- an account -------------------------------------------------------------------------------------------------

    def _account(self, bucket_id: int, query: Command, done: Done) -> None:
        self._when_handed_over(self._ask, bucket_id, query, self._newest(bucket_id, query), done)

    def _newest(self, bucket_id: int, query: Command) -> tuple[Any, ...]:
        """The state of an account in the ledger now, as far as the history needs it for this query."""
        if query[0] not in PERIODS:
            return self._machine.newest_entry(bucket_id, query[1])
        standing = self._machine.standing(bucket_id, query[1])
        if query[0] == "statement" and query[4]:  # by resource
            return *standing, self._machine.lines(bucket_id, query[1])
        return standing

    def _ask(self, bucket_id: int, query: Command, newest: tuple[Any, ...], done: Done) -> None:
        """Asks the history. `newest`: the account's newest entry when the query came, durable by now; the answer
        includes it, or is a refusal.
        """
        name, user_id, arguments = query[0], query[1], query[2:]
        generation = self._worker.shard.held.get(bucket_id)
        if generation is None:
            done(Refused("UNAVAILABLE", "the history is not there yet"))
        elif name == "history":
            limit, before = arguments
            self._history.history(bucket_id, generation, user_id, limit, before, newest, done)
        else:
            self._history.period(bucket_id, generation, user_id, (name, *arguments), newest, done)

    # -- the feed ---------------------------------------------------------------------------------------------------

    def _entries(self, bucket_id: int, query: Command, done: Done) -> None:
        self._when_handed_over(self._ask_entries, query, done)

    def _ask_entries(self, query: Command, done: Done) -> None:
        operate, (cursor, limit) = self._worker.operate, query[1:]
        if self._shares_log:
            shards = len(self._worker.map.weights)
            SharedFeedQuestion(operate, cursor.decode(), limit, shards, go_on, done).ask()
        else:
            FeedQuestion(self._history, operate, cursor.decode(), limit, done).ask()

    def _reached(self, bucket_id: int, query: Command, done: Done) -> None:
        def send(reply: object) -> None:  # to another worker goes plain data
            done(reply.message if isinstance(reply, Refused) else reply)

        self._when_handed_over(self._history.reached, send)

    def _part(self, bucket_id: int, query: Command, done: Done) -> None:
        """This shard's part of a page of the feed."""
        _, cursor, limit = query
        send = _plainly(done)
        try:
            place = place_in(cursor, self._worker.shard_id)
        except NoCursor as error:
            send(f"{error}; the empty text is the beginning")
        else:
            self._when_handed_over(self._history.part, place, limit, send)

    def _where(self, bucket_id: int, query: Command, done: Done) -> None:
        """The places of entries in the history of this shard."""
        self._when_handed_over(self._history.locate, query[1], _plainly(done))


def _plainly(done: Done) -> Done:
    """Passes a reply on to `done` as plain data, for a worker of any host; a reply that is a text becomes the refusal
    of an unknown cursor.
    """

    def send(reply: object) -> None:
        if isinstance(reply, str):
            reply = Refused("UNKNOWN_CURSOR", reply)
        done({"refused": reply.name, "message": reply.message} if isinstance(reply, Refused) else reply)

    return send
