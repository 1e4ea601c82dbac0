"""Settings that a worker sends to its notifier, which opens its file with them."""

from __future__ import annotations

from typing import NamedTuple


class NoticeSettings(NamedTuple):
    """How the notices of a shard are told. Times in seconds."""

    url: str  # as `billing.addresses.check_url` takes it; "": nobody is told
    secrets: tuple[bytes, ...] = ()  # each signs every notice
    timeout_s: float = 10.0  # from a notice's writing to its status
    connect_timeout_s: float = 3.0
    accept_loss: bool = False  # a file that is ahead of the journal is cut back instead of refused
    is_apart: bool = False  # files of other shards may be other hosts': each shard tells what its own journal holds
