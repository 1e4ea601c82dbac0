"""The instant before which nothing is stamped, across lives of one boot and of several.

Effects of time may have been told of up to `TOLD_AHEAD_NS` behind the last batch, and a loss of power takes their own
batch. So where the machine was started anew, time goes on behind that, whatever the clock says by then.
"""

from __future__ import annotations

import pytest

from shards.system.clock import TOLD_AHEAD_NS
from tests.shards.journal.journal_machine import SHARD, START_NS, JournalMachine


def last_time_ns(machine: JournalMachine, sync: str = "always") -> int:
    """As the next life finds it, which is killed at once."""
    journal = machine.journal(sync=sync)
    journal.open(SHARD, "test")
    machine.kill()
    return journal.last_time_ns


@pytest.fixture
def machine() -> JournalMachine:
    """One batch in a journal, whose process was killed."""
    machine = JournalMachine()
    machine.opened().append(b"x")
    machine.kill()
    return machine


def test_within_one_boot_it_is_that_of_the_last_batch(machine: JournalMachine) -> None:
    stamped_ns = last_time_ns(machine)
    assert START_NS < stamped_ns <= machine.now_ns
    assert last_time_ns(machine) == stamped_ns


@pytest.mark.parametrize("sync", ["always", "never"])
def test_in_another_boot_it_lies_behind_what_may_have_been_told(sync: str) -> None:
    machine = JournalMachine()
    journal = machine.opened(sync="always")
    journal.append(b"x")
    stamped_ns = journal.last_time_ns
    machine.lose_power()
    assert last_time_ns(machine, sync) == stamped_ns + TOLD_AHEAD_NS


def test_lives_of_that_boot_which_append_nothing_do_not_forget_it(machine: JournalMachine) -> None:
    stamped_ns = last_time_ns(machine)
    machine.lose_power()
    assert [last_time_ns(machine) for _ in range(3)] == [stamped_ns + TOLD_AHEAD_NS] * 3
    machine.lose_power()
    assert last_time_ns(machine) == stamped_ns + 2 * TOLD_AHEAD_NS, "the life before may have told so far, too"


def test_batches_that_are_written_again_do_not_hide_it() -> None:
    """A batch that nothing proves durable is written into the segment of the new life, with the stamp it had."""
    machine = JournalMachine()
    journal = machine.opened()
    journal.append(b"x")
    journal.append(b"y")
    stamped_ns = journal.last_time_ns
    machine.lose_power()
    assert last_time_ns(machine) == stamped_ns + TOLD_AHEAD_NS
    assert machine.batches(machine.segments()[-1]).batches[0].time_ns <= stamped_ns
    assert last_time_ns(machine) == stamped_ns + TOLD_AHEAD_NS


def test_a_batch_of_that_boot_is_not_stamped_before_it(machine: JournalMachine) -> None:
    stamped_ns = last_time_ns(machine)
    machine.lose_power()
    machine.now_ns = START_NS - 3_600 * 10**9
    journal = machine.opened()
    journal.append(b"y")
    assert journal.last_time_ns == stamped_ns + TOLD_AHEAD_NS
    machine.kill()
    assert last_time_ns(machine) == stamped_ns + TOLD_AHEAD_NS


def test_an_empty_journal_has_none() -> None:
    machine = JournalMachine()
    machine.opened()
    machine.lose_power()
    assert last_time_ns(machine) == 0
