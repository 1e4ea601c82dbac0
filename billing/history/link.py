"""A worker's end of its history: a follower's link (`follower.link`) to a projector, and the questions to it.

question                                                  answer
(bucket_id, generation, user_id, before, limit, newest)   rows of an account
(REACHED,)                                                (shard, seq of the newest row), once all is committed
(PERIOD, bucket_id, generation, user_id, asked, standing)  a period or an instant of an account
(ENTRIES, cursor, limit, bounds, all_written)             (rows, waits, bounds) of the feed, or the reason for none
(PART, place, limit)                                      this shard's part of a page (`feed_part.Part`), or why not
(WHERE, [(user_id, entry_id), …])                         (shard, [(user_id, entry_id, place), …]) of those found
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from billing.follower.link import DEFAULT_LIMITS, FollowedShard, FollowerKind, FollowerLink, Limits, command_of
from billing.follower.store import file_of, refuse_ahead
from billing.history.tables import KIND, ends_agree
from billing.ledger.errors import Refused
from shards.system.host import REAL, Host

COMMAND: Final = command_of("billing.history.projector")
GATHER_S: Final = 0.25  # only a question waits for the file, and a question has everything sent and committed first
GATHER_BYTES: Final = 512 << 10  # a twentieth of a second at 50,000 entries a second

REACHED: Final = "reached"
ENTRIES: Final = "entries"
PERIOD: Final = "period"
PART: Final = "part"
WHERE: Final = "where"
STATEMENT: Final = "statement"
BALANCE_AT: Final = "balance_at"

Rows = list[dict[str, object]]


class HistorySettings(NamedTuple):
    """Settings that a worker sends to its projector, which opens its file with them."""

    accept_loss: bool = False  # a file that is ahead of the journal is cut back instead of refused
    keep_days: int = 0  # rows are deleted once a later one of their account is older than this; 0: never
    log: bytes = b""  # `cursor.identity_of_log`, if other hosts have files of the same journal; else empty
    served: tuple[int, ...] = ()  # all shards, if this process converts older files of others, which are gone


DEFAULT_SETTINGS: Final = HistorySettings()


def opened(
    shard: FollowedShard, settings: HistorySettings, *, command: Sequence[str] = COMMAND, host: Host = REAL
) -> HistoryLink:
    """Returns the link of a shard, not started yet. Raises shards.journal.Corrupt where its file is ahead of the
    journal and that is not accepted.
    """
    if not settings.accept_loss:
        refuse_ahead(file_of(shard.directory, shard.shard_id), KIND, shard.journal.head, ends_agree)
    return HistoryLink(shard, settings, command=command, host=host)


class FeedPage(NamedTuple):
    """A page of the feed of all entries; `waits` and `bounds` as in `billing.history.entries.Feed`."""

    rows: Rows
    waits: bool
    bounds: tuple[tuple[int, int], ...]


class HistoryLink(FollowerLink):
    """The link to the history of one shard."""

    def __init__(
        self,
        shard: FollowedShard,
        settings: HistorySettings = DEFAULT_SETTINGS,
        *,
        limits: Limits = DEFAULT_LIMITS,
        command: Sequence[str] = COMMAND,
        host: Host = REAL,
    ) -> None:
        super().__init__(FollowerKind("history", command, GATHER_S, GATHER_BYTES, limits), shard, settings, host)

    def history(
        self,
        bucket_id: int,
        generation: int,
        user_id: bytes,
        limit: int,
        before: int,
        newest: tuple[int, ...],
        done: Callable[[Rows | Refused], None],
    ) -> None:
        """Calls `done` with the rows of an account, newest first, at most `limit`, with an entry_id below `before`; or
        with UNAVAILABLE. The answer covers every batch handed over before. `generation`: the generation under which the
        shard holds the bucket. `newest`: entry_id, balance in nanos and instant of an entry that the answer must reach,
        zeros for none.
        """
        question = (bucket_id, generation, user_id, before, limit, newest)
        self.ask(question, lambda answer: done(answer if isinstance(answer, Refused) else list(answer)))

    def reached(self, done: Callable[[tuple[int, int] | Refused], None]) -> None:
        """Calls `done` with the shard and the number of its newest row, once every batch handed over before is in the
        file; or with UNAVAILABLE.
        """
        self.ask((REACHED,), done)

    def entries(
        self,
        cursor: str,
        limit: int,
        bounds: tuple[tuple[int, int], ...],
        all_written: bool,
        done: Callable[[FeedPage | Refused], None],
    ) -> None:
        """Calls `done` with a page of the feed (`billing.history.entries.page`), UNKNOWN_CURSOR or UNAVAILABLE."""

        def answered(answer: Any) -> None:
            if isinstance(answer, str):
                answer = Refused("UNKNOWN_CURSOR", answer)
            done(answer if isinstance(answer, Refused) else FeedPage(list(answer[0]), *answer[1:]))

        self.ask((ENTRIES, cursor, limit, bounds, all_written), answered)

    def part(self, place: tuple[bytes, int, int] | None, limit: int, done: Callable[[Any], None]) -> None:
        """Calls `done` with this shard's part of a page of the feed (`feed_part.Part`, as plain data), with the text of
        why the place is unknown, or with UNAVAILABLE.
        """
        self.ask((PART, place, limit), done)

    def locate(self, wanted: Sequence[tuple[bytes, int]], done: Callable[[Any], None]) -> None:
        """Calls `done` with the shard and those of the entries (user_id, entry_id) that are in the file, each with the
        place behind it, as plain data; or with UNAVAILABLE.
        """
        self.ask((WHERE, wanted), done)

    def period(
        self,
        bucket_id: int,
        generation: int,
        user_id: bytes,
        question: tuple[Any, ...],
        standing: tuple[Any, ...],
        done: Callable[[object], None],
    ) -> None:
        """Calls `done` with the answer to `question`, or with a refusal. `question`: `(STATEMENT, from_ns, to_ns,
        by_resource, limit, now_ns)` or `(BALANCE_AT, at_ns, now_ns)`. `standing`: the fields of a
        `period_reader.Standing`. The other parameters are those of `history`.
        """

        def answered(answer: Any) -> None:
            if isinstance(answer, str):  # why this question cannot be answered
                answer = Refused("LIMIT_EXCEEDED", answer)
            done(answer)

        self.ask((PERIOD, bucket_id, generation, user_id, question, standing), answered)
