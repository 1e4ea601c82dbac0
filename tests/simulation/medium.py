"""The disk of one simulated machine: what was synced and what was not, kept apart; see `tests.simulation.disk`."""

from __future__ import annotations

import errno
import os
import random
from functools import lru_cache

SECTOR_BYTES = 512

split = lru_cache(1024)(os.path.split)  # the same few paths, at each of a million calls


class Node:
    """A file: what reads see, what is on the medium, and what is on its way there."""

    __slots__ = ("content", "pending", "stable")

    def __init__(self, content: bytes | bytearray = b"") -> None:
        self.content = bytearray(content)
        self.stable = bytearray(content)
        self.pending: list[tuple[int, bytes] | int] = []  # (offset, data) written, or a new length

    def synced(self) -> None:
        for change in self.pending:
            apply(self.stable, change)
        self.pending.clear()

    def lose_power(self, rng: random.Random) -> None:
        for change in self.pending:
            choice = rng.randrange(4)
            if choice == 0:
                continue
            if isinstance(change, int) or choice == 1:
                apply(self.stable, change)
            else:
                for piece in _sectors(*change):
                    if rng.random() < 0.5:
                        apply(self.stable, piece)
        self.pending.clear()
        self.content = bytearray(self.stable)


Image = list[tuple[str, Node, bytes, bytes]]
Change = tuple[Node, str, str]  # a file, the name it loses and the name it gets; "" is none


class Directory:
    """Names: as they look, as they are on the medium, and the changes in between."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}
        self.stable: dict[str, Node] = {}
        self.pending: list[Change] = []

    def change(self, change: Change) -> None:
        renamed(self.names, change)
        self.pending.append(change)

    def synced(self) -> None:
        for change in self.pending:
            renamed(self.stable, change)
        self.pending.clear()

    def image(self) -> Image:
        """What an operator's copy of it holds."""
        return [(name, node, bytes(node.content), bytes(node.stable)) for name, node in self.names.items()]

    def put_back(self, image: Image) -> None:
        """The same files with the same bytes as then, durably."""
        self.names = {name: node for name, node, _, _ in image}
        self.stable = dict(self.names)
        self.pending.clear()
        for _, node, content, stable in image:
            node.content, node.stable = bytearray(content), bytearray(stable)
            node.pending = [(0, content)]

    def lose_power(self, rng: random.Random) -> None:
        for change in self.pending:
            if rng.random() < 0.5:
                renamed(self.stable, change)
        self.pending.clear()
        self.names = dict(self.stable)
        for node in {id(node): node for node in self.names.values()}.values():
            node.lose_power(rng)


class Medium:
    """The disk of one machine. `capacity_bytes`: what all files together may hold; None: without end."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.directories: dict[str, Directory] = {"/": Directory()}
        self.modes: dict[str, int] = {"/": 0o700}
        self.capacity_bytes = capacity_bytes
        self.locks: dict[str, object] = {}
        self.boots = 1
        self.refusals = 0  # for want of room

    def lose_power(self, rng: random.Random) -> None:
        """Everything that runs ends; what was not synced is at the mercy of `rng`. Directories themselves stay."""
        for path in sorted(self.directories):
            self.directories[path].lose_power(rng)
        self.locks.clear()
        self.boots += 1

    def node(self, path: str) -> Node:
        """The file of this name."""
        directory_path, name = split(path)
        directory = self.directories.get(directory_path)
        if directory is None or name not in directory.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return directory.names[name]

    def flip(self, path: str, bit: int) -> None:
        """Turn one bit over, on the medium and in the cache."""
        node = self.node(path)
        for data in (node.content, node.stable):
            data[bit >> 3] ^= 1 << (bit & 7)

    def replace(self, path: str, content: bytes) -> None:
        """Put other bytes into this file, made if absent, on the medium and in the cache."""
        directory_path, name = split(path)
        node = Node(content)
        self.directories[directory_path].names[name] = node
        self.directories[directory_path].stable[name] = node

    def remove(self, path: str) -> None:
        """The file is gone, on the medium too."""
        directory_path, name = split(path)
        del self.directories[directory_path].names[name]
        self.directories[directory_path].stable.pop(name, None)

    def copy(self) -> Medium:
        """Another medium with the same files, as if all of this one were synced."""
        other = Medium(self.capacity_bytes)
        other.boots, other.modes = self.boots, dict(self.modes)
        for path, directory in self.directories.items():
            other.directories[path] = Directory()
            for name, node in directory.names.items():
                other.replace(os.path.join(path, name), bytes(node.content))
        return other

    def used_bytes(self) -> int:
        return sum(len(node.content) for directory in self.directories.values() for node in directory.names.values())


def renamed(names: dict[str, Node], change: Change) -> None:
    node, old, new = change
    if old and names.get(old) is node:
        del names[old]
    if new:
        names[new] = node


def apply(data: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        if change < len(data):
            del data[change:]
        else:
            data.extend(bytes(change - len(data)))
        return
    offset, written = change
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(written)] = written


def _sectors(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """The parts of a write that lie in one sector each."""
    pieces, index = [], 0
    while index < len(data):
        length = SECTOR_BYTES - (offset + index) % SECTOR_BYTES
        pieces.append((offset + index, data[index : index + length]))
        index += length
    return pieces
