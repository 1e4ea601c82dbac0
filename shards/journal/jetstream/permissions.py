"""What a user of the log's servers must be allowed, and whether it is. Pure.

A user's permissions, as the servers tell them, are patterns that are allowed (none: everything) and patterns that are
denied, for publishing and for subscribing. A pattern is a subject in which `*` stands for one word, and `>` at the end
for one or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

INBOX = "_INBOX.any.1"  # where answers come to
SHOWN = 4  # of the subjects that are lacking

_OF_EACH = (
    *("$JS.API.STREAM.INFO.{}", "$JS.API.STREAM.MSG.GET.{}", "$JS.API.STREAM.PURGE.{}", "$JS.API.DIRECT.GET.{}"),
)
_OF_KIND = {"J": ("J.{}",), "S": ("S.{}", "S.{}.whole")}
_OF_MAP = ("M.decision", "M.state")


def needed(streams: Iterable[str]) -> list[str]:
    """The subjects that the daemon publishes to, of streams `M`, `J_1`, `S_1` and so on."""
    subjects = ["$JS.API.INFO"]
    for stream in streams:
        kind, _, number = stream.partition("_")
        subjects += [subject.format(number) for subject in _OF_KIND[kind]] if number else _OF_MAP
        subjects += [subject.format(stream) for subject in _OF_EACH]
    return subjects


def faults_of(permissions: Mapping[str, Any], streams: Iterable[str]) -> list[str]:
    """What is not allowed, and must be."""
    faults = []
    lacking = [subject for subject in needed(streams) if not _may(permissions.get("publish"), subject)]
    if lacking:
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        faults.append(f"may not publish to {', '.join(lacking[:SHOWN])}{more}")
    if not _may(permissions.get("subscribe"), INBOX):
        faults.append("may not subscribe to _INBOX.>, where answers come to")
    return faults


def _may(rule: Mapping[str, Any] | None, subject: str) -> bool:
    allowed, denied = (rule or {}).get("allow") or [">"], (rule or {}).get("deny") or []
    return any(covers(pattern, subject) for pattern in allowed) and not any(
        covers(pattern, subject) for pattern in denied
    )


def covers(pattern: str, subject: str) -> bool:
    """Whether the subject is one of those that the pattern stands for."""
    tokens = subject.split(".")
    for at, token in enumerate(pattern.split(".")):
        if token == ">":
            return len(tokens) > at
        if at >= len(tokens) or token not in ("*", tokens[at]):
            return False
    return len(tokens) == len(pattern.split("."))
