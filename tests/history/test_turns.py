"""Answers take turns: one step in a turn of the loop, accounts in turns, and what is short before what is long."""

from __future__ import annotations

from collections.abc import Callable

from billing.history.turns import SHORT_STEPS, Turns


class Loop:
    """A loop whose turns are taken by hand, and what was done in them."""

    def __init__(self) -> None:
        self.next: list[Callable[[], None]] = []
        self.done: list[str] = []
        self.turns = Turns(self.next.append)

    def ask(self, user_id: bytes, name: str, steps: int) -> None:
        left = iter(range(steps - 1, -1, -1))

        def step() -> bool:
            self.done.append(name)
            return next(left) > 0

        self.turns.begin(user_id, step)

    def turn(self, count: int = 1) -> list[str]:
        """What was done in the next turns."""
        self.done.clear()
        for _ in range(count):
            (run,) = self.next
            self.next.clear()
            run()
        return list(self.done)


def test_a_turn_of_the_loop_takes_one_step_and_nothing_turns_where_nothing_waits() -> None:
    loop = Loop()
    loop.ask(b"u", "first", 2)
    loop.ask(b"u", "second", 1)
    assert [loop.turn(), loop.turn(), loop.turn()] == [["first"], ["first"], ["second"]]
    assert loop.next == []
    loop.ask(b"u", "third", 1)
    assert (loop.turn(), loop.next) == (["third"], [])


def test_many_questions_about_one_account_delay_one_about_another_by_a_step() -> None:
    loop = Loop()
    for _ in range(1000):
        loop.ask(b"big", "big", 3)
    assert loop.turn(10) == ["big"] * 10
    loop.ask(b"small", "small", 2)
    assert loop.turn(4) == ["big", "small", "big", "small"]


def test_long_answers_are_made_one_after_the_other_behind_all_short_ones() -> None:
    loop = Loop()
    for name in ("a", "b"):
        loop.ask(name.encode(), name, SHORT_STEPS + 10)
    loop.turn(2 * SHORT_STEPS)
    assert loop.turn(5) == ["a"] * 5
    loop.ask(b"small", "small", 2)
    assert loop.turn(3) == ["small", "small", "a"]
    assert loop.turn(14) == ["a"] * 4 + ["b"] * 10
    assert loop.next == []
