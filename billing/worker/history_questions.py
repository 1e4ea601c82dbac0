"""What a worker answers out of the history of its shard: an account's rows, what follows from them, and the feed.

    history                 (user_id, limit, before): rows of an account
    statement               (user_id, from_ns, to_ns, by, limit, now_ns): a period of an account
    balance_at              (user_id, at_ns, now_ns): an instant of an account
    entries                 (cursor, limit): a page of all entries of the daemon, see `billing.worker.feed`
    history_reached,
    feed_part, feed_where   the surveys of which such a page is made: plain data, for workers of any host

An answer holds every entry that was answered before its question: the history is asked once it has been handed all that
was recorded at that moment, which it is in the turn of the loop in which that becomes durable.
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
    """Carries out slices, others' turns between them, and calls back with what they return."""
    try:
        next(slices)
    except StopIteration as end:
        done(end.value)
    else:
        asyncio.get_running_loop().call_soon(go_on, slices, done)


class HistoryQuestions:
    """Those to one shard."""

    def __init__(self, machine: BillingMachine, worker: ServedShard, history: HistoryLink, shares_log: bool) -> None:
        """`shares_log`: other hosts have the files of other shards."""
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
        """Asks, once the history has been handed all that is recorded now; it is, right after that is durable."""
        loop = asyncio.get_running_loop()

        def durable() -> None:
            loop.call_soon(ask, *arguments)

        self._worker.when_durable(durable)

    # -- an account -------------------------------------------------------------------------------------------------

    def _account(self, bucket_id: int, query: Command, done: Done) -> None:
        self._when_handed_over(self._ask, bucket_id, query, self._newest(bucket_id, query), done)

    def _newest(self, bucket_id: int, query: Command) -> tuple[Any, ...]:
        """What the ledger knows of an account now, as far as the history needs it for this question."""
        if query[0] not in PERIODS:
            return self._machine.newest_entry(bucket_id, query[1])
        standing = self._machine.standing(bucket_id, query[1])
        if query[0] == "statement" and query[4]:  # by resource
            return *standing, self._machine.lines(bucket_id, query[1])
        return standing

    def _ask(self, bucket_id: int, query: Command, newest: tuple[Any, ...], done: Done) -> None:
        """`newest`: the account's newest entry when it was asked, durable by now: the answer has it, or says so."""
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
        """Where entries are in this shard."""
        self._when_handed_over(self._history.locate, query[1], _plainly(done))


def _plainly(done: Done) -> Done:
    """Passes a reply on as plain data, for a worker of any host; a text says why a cursor is unknown."""

    def send(reply: object) -> None:
        if isinstance(reply, str):
            reply = Refused("UNKNOWN_CURSOR", reply)
        done({"refused": reply.name, "message": reply.message} if isinstance(reply, Refused) else reply)

    return send
