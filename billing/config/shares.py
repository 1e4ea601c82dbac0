"""Texts of the configuration about shards: `"1=2 3=0"` are weights by shard, `"1 3"` are shards.

Words are separated by blanks. This module does not check which shards exist.
"""

from __future__ import annotations

import re

SHARD_MAX = 64
WEIGHT_MAX = 1000

_WEIGHT = re.compile(r"([1-9][0-9]?)=(0|[1-9][0-9]{0,3})")
_SHARD = re.compile(r"[1-9][0-9]?")


def parse_weights(text: str) -> dict[int, int]:
    """Parses weights: shard id -> weight. Raises ValueError, which says what is expected."""
    weights: dict[int, int] = {}
    for word in text.split():
        match = _WEIGHT.fullmatch(word)
        if match is None or int(match[1]) > SHARD_MAX or int(match[2]) > WEIGHT_MAX or int(match[1]) in weights:
            raise ValueError(
                f'expected words "shard=weight", shard 1 to {SHARD_MAX}, each once, weight 0 to {WEIGHT_MAX}, '
                f"got {word!r}"
            )
        weights[int(match[1])] = int(match[2])
    return weights


def parse_shards(text: str) -> frozenset[int]:
    """Parses shard ids. Raises ValueError, which says what is expected."""
    for word in text.split():
        if _SHARD.fullmatch(word) is None or int(word) > SHARD_MAX:
            raise ValueError(f"expected shard ids 1 to {SHARD_MAX}, got {word!r}")
    return frozenset(int(word) for word in text.split())


def check_weights(text: str) -> str:
    """Returns the text if it is valid weights. Raises ValueError."""
    parse_weights(text)
    return text


def check_shards(text: str) -> str:
    """Returns the text if it is valid shard ids. Raises ValueError."""
    parse_shards(text)
    return text
