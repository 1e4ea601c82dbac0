"""A count with the thing that is counted, as people read it: `1 user`, `2 users`, `1,000 entries`. Pure."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """The number, thousands apart, with the noun in the form that belongs to it; `plural` where it is not noun + s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
