"""Settings that a worker sends to its notifier, which opens its file with them."""

from __future__ import annotations

from typing import NamedTuple


class NoticeSettings(NamedTuple):
    """How the notices of a shard are sent. Times in seconds."""

    url: str  # see `billing.addresses.check_url`; "": no notices are sent
    secrets: tuple[bytes, ...] = ()  # each signs every notice
    timeout_s: float = 10.0  # from writing a request to the status of its answer
    connect_timeout_s: float = 3.0
    accept_loss: bool = False  # a file that is ahead of the journal is cut back instead of refused
    is_apart: bool = False  # several hosts serve: each shard sends the notices of its own journal
    served: tuple[int, ...] = ()  # all shards, if this process converts older files of others, which are gone
