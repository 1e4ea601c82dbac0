"""The names of methods and commands. On the command line and at the console, a person may write the method's name or
the command's words for it, with - or _ between words. Pure.

    method               command                 other words for it
    get_account          account
    pending_cutoffs      cutoffs                 cutoffs list
    move_bucket 5 2      buckets move 5 2
    expirationd_stats    expirationd stats       timers

Options also have the same names: an option of a method is `--ttl 5m` on the command line and `ttl=5m`, `ttl_ns=5m` or
`--ttl 5m` at the console. The unit at the end of an option's name may be left out, because the typed value has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

# Method -> the words of its command, if they differ from the method's name.
COMMAND_OF: Final[dict[str, tuple[str, ...]]] = {
    "get_account": ("account",),
    "set_credit_limit": ("credit-limit",),
    "set_thresholds": ("thresholds",),
    "set_class": ("class",),
    "close_account": ("close",),
    "server_info": ("info",),
    "bucket_id": ("buckets", "of"),
    "buckets_info": ("buckets", "list"),
    "route": ("buckets", "route"),
    "move_bucket": ("buckets", "move"),
    "pin_bucket": ("buckets", "pin"),
    "unpin_bucket": ("buckets", "unpin"),
    "shards_info": ("shards",),
    "entries": ("export", "entries"),
    "pending_cutoffs": ("cutoffs", "list"),
    "retry_cutoff": ("cutoffs", "retry"),
    "release_cutoffs": ("cutoffs", "release"),
    "expirationd_stats": ("expirationd", "stats"),
}

# Another word for a command -> the command's words.
ALSO: Final[dict[str, tuple[str, ...]]] = {
    "timers": ("expirationd", "stats"),
    "topup": ("top-up",),
    "limit": ("credit-limit",),
}

_UNITS: Final = ("_ns", "_id")

# The words of each command, and the other words for it -> its method. A group's name alone means its command `list`.
_BY_WORDS: Final[dict[tuple[str, ...], str]] = {
    **{words[:-1]: name for name, words in COMMAND_OF.items() if words[-1] == "list"},
    **{words: name for name, words in COMMAND_OF.items()},
    **{
        (also,): name
        for also, words in ALSO.items()
        for name, other_words in COMMAND_OF.items()
        if other_words == words
    },
    ("topup",): "top_up",
    ("buckets", "rebalance"): "rebalance",
}


def words_of(name: str) -> tuple[str, ...]:
    """The words of the command for a method's name or another word; otherwise the name itself, with - for _."""
    wanted = name.replace("-", "_")
    return COMMAND_OF.get(wanted) or ALSO.get(name) or (wanted.replace("_", "-"),)


def procedure_of(words: Sequence[str], names: Iterable[str]) -> tuple[str, int]:
    """The method among `names` that the first words name, and the number of these words. If they name none: the first
    word with _ for -, and 1.
    """
    procedures = set(names)
    name = words[0].replace("-", "_")
    if name in procedures:
        return name, 1
    for length in (2, 1):
        procedure = _BY_WORDS.get(tuple(word.replace("_", "-") for word in words[:length]))
        if procedure in procedures and len(words) >= length:
            return str(procedure), length
    return name, 1


def option_of(word: str, names: Iterable[str]) -> str | None:
    """The option among `names` that a word names, with or without the unit; None if it names none."""
    wanted = word.lstrip("-").replace("-", "_")
    options = list(names)
    if wanted in options:
        return wanted
    return next((name for name in options if any(name == wanted + unit for unit in _UNITS)), None)
