"""The handlers of queries that the state machine does not answer itself: a table by the name of the query.

accounts, pending_cutoffs    this shard's part of a page, made in slices between other work
forecast, expirationd_stats  this shard's part, from `periodic_checks`
explain                      the state of an account in detail, with the reason why its call waits
audit                        a page of the operators' record of this host
history, entries, …          see `history_questions`
"""

from __future__ import annotations

from billing.audit.reading import UnknownCursor
from billing.audit.recorder import Recorder, TooManyReads
from billing.audit.trail import Record
from billing.ledger.errors import Refused
from billing.worker.explain import explain
from billing.worker.history_questions import Done, Handler, HistoryQuestions, go_on
from billing.worker.machine import BillingMachine
from billing.worker.outgoing_calls import OutgoingCalls
from billing.worker.pages import Selection, account_page, cutoff_page
from shards.machine import Command
from shards.worker.hosting import ServedShard


class Questions:
    """The handlers of the worker of one shard."""

    def __init__(
        self,
        machine: BillingMachine,
        worker: ServedShard,
        calls: OutgoingCalls,
        audit: Recorder,
        history: HistoryQuestions,
    ) -> None:
        self._machine = machine
        self._worker = worker
        self._calls = calls
        self._record = audit
        self._handlers: dict[str, Handler] = {
            "accounts": self._accounts,
            "pending_cutoffs": self._pending_cutoffs,
            "forecast": self._checks,
            "expirationd_stats": self._checks,
            "explain": self._explain,
            "audit": self._audit,
            **history.handlers,
        }

    def answer(self, bucket_id: int, query: Command, done: Done) -> None:
        """Answers `query`, the name of a handler and its arguments: `done(reply)` is called once."""
        self._handlers[query[0]](bucket_id, query, done)

    def _accounts(self, bucket_id: int, query: Command, done: Done) -> None:
        _, after, limit, *selection = query
        now_ns = self._worker.fresh_now_ns()
        go_on(account_page(self._machine.ledger, now_ns, after, limit, Selection(*selection)), done)

    def _pending_cutoffs(self, bucket_id: int, query: Command, done: Done) -> None:
        _, after, limit = query
        go_on(cutoff_page(self._machine.ledger.books, after, limit, self._calls.is_held), done)

    def _checks(self, bucket_id: int, query: Command, done: Done) -> None:
        go_on(self._calls.checks.answer(self._worker.shard_id, query), done)

    def _explain(self, bucket_id: int, query: Command, done: Done) -> None:
        user_id = query[1]
        delivery = self._calls.delivery_for(bucket_id, user_id)
        done(explain(self._machine, bucket_id, user_id, self._worker, delivery))

    def _audit(self, bucket_id: int, query: Command, done: Done) -> None:
        _, after, limit, actor, act = query

        def on_page(page: list[Record] | Exception) -> None:
            if isinstance(page, UnknownCursor):
                done(Refused("UNKNOWN_CURSOR", str(page)))
            elif isinstance(page, TooManyReads):
                done(Refused("BUSY", str(page)))
            elif isinstance(page, Exception):
                done(Refused("UNAVAILABLE", f"the record cannot be read: {page}"))
            else:
                done(page)

        self._record.read(after.decode(), limit, actor.decode(), act.decode(), on_page)
