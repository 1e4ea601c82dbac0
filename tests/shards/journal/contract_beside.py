"""The part of a journal's contract that says what may run beside what, as tests through the seam alone.

A backend's test module derives its class from `BesideContract`, too; see `tests.shards.journal.contract`.
"""

from __future__ import annotations

import threading

from tests.shards.journal.contract import OWNER, Backend, payload_of

BATCHES = 400
SIZE = 300


class BesideContract:
    """See the module. Each test is one sentence of `shards.journal`."""

    def test_replay_goes_up_to_the_head_at_its_call(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        for number in range(1, 100):
            journal.append(payload_of(number, SIZE))
        replay = journal.replay(50)
        empty = journal.replay(100)
        for number in range(100, 300):  # some of them in what the backend begins anew
            journal.append(payload_of(number, SIZE))
        assert list(replay) == [(number, payload_of(number, SIZE)) for number in range(50, 100)]
        assert list(empty) == []
        assert next(journal.replay(100)) == (100, payload_of(100, SIZE))

    def test_replay_runs_beside_appending(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        read: list[tuple[int, bytes]] = []
        faults: list[Exception] = []
        ended = threading.Event()

        def follow() -> None:
            try:
                last = False
                while not last:
                    last = ended.is_set()
                    read.extend(journal.replay(len(read) + 1))
            except Exception as error:
                faults.append(error)

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            for number in range(1, BATCHES + 1):
                assert journal.append(payload_of(number, SIZE)) == number
                if number % 50 == 0:
                    journal.idle_barrier()
        finally:
            ended.set()
            follower.join()
        assert faults == []
        assert read == [(number, payload_of(number, SIZE)) for number in range(1, BATCHES + 1)]

    def test_first_is_where_replay_can_begin(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        assert journal.first == 1
        for number in range(1, 400):
            journal.append(payload_of(number, SIZE))
            if number % 40 == 0:
                journal.save_snapshot(number, [b"as of %d" % number])
                journal.trim(number)
        assert 1 < journal.first <= 360
        assert next(journal.replay(journal.first)) == (journal.first, payload_of(journal.first, SIZE))
        first = journal.first
        backend.kill()
        journal = backend.journal()
        journal.open(7, OWNER)
        assert journal.first == first
