"""The permissions that the daemon's user needs on the log's servers, and which of them are missing. Pure.

A user's permissions, as the servers tell them, are patterns that are allowed (none: everything) and patterns that are
denied, for publishing and for subscribing. A pattern is a subject in which `*` stands for one token, and `>` at the end
for one or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

INBOX = "_INBOX.any.1"  # a subject like those that answers are sent to
SHOWN = 4  # how many missing subjects a fault names

_OF_EACH = (
    *("$JS.API.STREAM.INFO.{}", "$JS.API.STREAM.MSG.GET.{}", "$JS.API.STREAM.PURGE.{}", "$JS.API.DIRECT.GET.{}"),
)
_OF_KIND = {"J": ("J.{}",), "S": ("S.{}", "S.{}.whole")}
_OF_MAP = ("M.decision", "M.state")


def needed(streams: Iterable[str]) -> list[str]:
    """Returns the subjects that the daemon publishes to, for streams such as `M`, `J_1` and `S_1`."""
    subjects = ["$JS.API.INFO"]
    for stream in streams:
        kind, _, number = stream.partition("_")
        subjects += [subject.format(number) for subject in _OF_KIND[kind]] if number else _OF_MAP
        subjects += [subject.format(stream) for subject in _OF_EACH]
    return subjects


def faults_of(permissions: Mapping[str, Any], streams: Iterable[str]) -> list[str]:
    """Returns a text for each kind of permission that is needed and missing."""
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
    """Returns whether the pattern matches the subject."""
    tokens = subject.split(".")
    for at, token in enumerate(pattern.split(".")):
        if token == ">":
            return len(tokens) > at
        if at >= len(tokens) or token not in ("*", tokens[at]):
            return False
    return len(tokens) == len(pattern.split("."))
