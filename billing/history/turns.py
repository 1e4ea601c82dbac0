"""Whose turn it is: answers that take several steps, each step a page of rows, one step in a turn of the loop.

So batches are taken, and what the worker asks is heard, between any two steps, however many questions wait. Accounts
take turns, and of one account the questions wait in order: thousands of questions about one account delay those about
another by one step. An answer that has taken `SHORT_STEPS` is a long one. A long one goes on only while no short one
waits, and the long ones are made one after the other: where all took turns, so many would all come too late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

SHORT_STEPS: Final = 4
Step = Callable[[], bool]  # takes the next step of an answer; returns whether there is another one


class Turns:
    """The answers of one process that are not made yet."""

    def __init__(self, next_turn: Callable[[Callable[[], None]], None]) -> None:
        """`next_turn` calls what it is given in the next turn of the loop."""
        self._next_turn = next_turn
        self._short: dict[bytes, deque[tuple[Step, int]]] = {}  # by account, in the order of their turns: steps taken
        self._long: deque[Step] = deque()
        self._is_running = False

    def begin(self, user_id: bytes, step: Step) -> None:
        """Has an answer about this account made, from the next turn of the loop on."""
        self._short.setdefault(user_id, deque()).append((step, 0))
        self._run_later()

    def _run_later(self) -> None:
        if not self._is_running and (self._short or self._long):
            self._is_running = True
            self._next_turn(self._run)

    def _run(self) -> None:
        self._is_running = False
        if self._short:
            self._run_short()
        elif not self._long[0]():
            self._long.popleft()
        self._run_later()

    def _run_short(self) -> None:
        user_id = next(iter(self._short))
        waiting = self._short.pop(user_id)
        step, taken = waiting.popleft()
        if step():
            if taken + 1 < SHORT_STEPS:
                waiting.appendleft((step, taken + 1))
            else:
                self._long.append(step)
        if waiting:
            self._short[user_id] = waiting  # behind the others
