"""The tables of a history file, and whether they agree on where it ends: the part of `store` that a worker needs.

`store` describes the tables, `openings` describes its own.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from billing.follower.store import Kind

_OPENINGS: Final = """CREATE TABLE openings (
    number INTEGER PRIMARY KEY, entry_id INTEGER NOT NULL, seq INTEGER NOT NULL, lines BLOB NOT NULL,
    checksum INTEGER NOT NULL)"""
KIND: Final = Kind(
    "history",
    application_id=0x42484953,  # "BHIS"
    version=5,
    older=(1, 2, 3, 4),
    schema=(
        "CREATE TABLE about (shard INTEGER NOT NULL, position INTEGER NOT NULL, begins INTEGER NOT NULL)",
        "CREATE TABLE users (number INTEGER PRIMARY KEY, user_id BLOB NOT NULL UNIQUE)",
        "CREATE TABLE heads (chunk INTEGER PRIMARY KEY, newest BLOB NOT NULL)",
        """CREATE TABLE pages (
            first INTEGER PRIMARY KEY, count INTEGER NOT NULL, checksum INTEGER NOT NULL,
            packed BLOB NOT NULL)""",
        """CREATE TABLE marks (
            number INTEGER NOT NULL, entry_id INTEGER NOT NULL, seq INTEGER NOT NULL,
            PRIMARY KEY (number, entry_id)) WITHOUT ROWID""",
        """CREATE TABLE departures (
            bucket_id INTEGER NOT NULL, generation INTEGER NOT NULL, position INTEGER NOT NULL,
            PRIMARY KEY (bucket_id, generation)) WITHOUT ROWID""",
        "CREATE TABLE groups (slot INTEGER PRIMARY KEY, position INTEGER NOT NULL, seq INTEGER NOT NULL)",
        "CREATE TABLE losses (position INTEGER NOT NULL, text TEXT NOT NULL)",
        "CREATE TABLE identities (identity BLOB NOT NULL UNIQUE, seq_max INTEGER)",
        "CREATE TABLE cuts (seq INTEGER NOT NULL, at_ns INTEGER NOT NULL)",
        _OPENINGS,
    ),
)
NEWEST_GROUP: Final = "SELECT position, seq FROM groups ORDER BY position DESC LIMIT 1"
SEQ: Final = "SELECT coalesce(max(first + count - 1), 0) FROM (SELECT * FROM pages ORDER BY first DESC LIMIT 1)"


def ends_agree(db: sqlite3.Connection) -> bool:
    """Whether `about`, the newest group and the last row agree on where the file ends."""
    begins, position = db.execute("SELECT begins, position FROM about").fetchone()
    group, seq = db.execute(NEWEST_GROUP).fetchone() or (begins - 1, 0)
    losses = {lost for (lost,) in db.execute("SELECT position FROM losses")}
    (last,) = db.execute(SEQ).fetchone()
    if not all(type(value) is int for value in (begins, position, group, seq, last)):
        return False
    is_known = position == group or (position > group and (position in losses or position == begins - 1))
    return is_known and (last == seq or (last < seq and bool(losses)))
