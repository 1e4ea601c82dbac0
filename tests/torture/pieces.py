"""What `make torture` runs: campaigns, each cut into pieces that are programs of their own.

A piece takes a core for some minutes, prints what it counted as JSON on its last line, and ends with 0 where everything
held, 1 where something did not, 2 where it cannot be done on this machine (which fails the run as well: say so, and
leave the campaign out by name).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.shards.journal.specimen import STATES

FAULTS = (
    ("shard", "EIO", False), ("shard", "EIO", True), ("shard", "ENOSPC", False), ("shard", "ENOSPC", True),
    ("shard", "EROFS", True), ("shard", "EINTR", False), ("shard", "short", False), ("shard", "short", True),
    ("map", "EIO", False), ("map", "ENOSPC", True),
)  # fmt: skip
FLIP_PARTS = 4
PAIR_PARTS = 6
SEEDS_A_PIECE = 500
FOLLOWED_SEEDS = 2000  # of the simulation with history and notices as processes
HOSTS_SEEDS = 2000  # of the simulation with several hosts
LIVES_A_PIECE = 250  # of followers
COMMANDS, COMMANDS_A_PIECE, PROGRAM = 2_000_000, 500_000, 400  # of the ledger and its model; so many commands a program
FUZZ_S = {
    "journal": 1800, "snapshot": 1800, "frames": 1800, "requests": 1800, "config": 1800,
    "json": 600, "iproto": 600,
    "wires": 300,  # our own processes speak there, and nobody else
}  # fmt: skip
CYCLES_A_PIECE = {
    "kill": 30,
    "power": 25,
    "full": 5,
    "moves": 50,
    "hosts": 50,
    "at once": 50,
    "servers": 100,
    "writeback": 40,
}
CAMPAIGNS = {
    "programs": "random programs on the ledger and on its model",
    "simulation": "seeds in simulation, all invariants",
    "beside": "seeds in simulation with history and notices as processes on failing files",
    "clusters": "seeds of several hosts in simulation, over a log that loses, doubles and forgets",
    "followers": "lives of history and notices on failing disks, none with a silent loss",
    "mutants": "own mutants, each within 200 seeds",
    "gates": "faults in the gates between hosts, each caught by its test",
    "kill": "kill −9 under load",
    "power": "loss of power under load, ext4 and XFS",
    "control": "the same without syncs, which must lose",
    "cuts": "a 64 KiB log cut off, or zero, from every byte on",
    "flips": "every single bit of journal, snapshots and manifest",
    "faults": "an error at every I/O call, for real",
    "full": "disk full and freed under load",
    "writeback": "failed write-backs under history and notices",
    "pairs": "rows of settings in which every pair of two factors' levels meets",
    "moves": "kill −9 of source, target or supervisor of a move",
    "hosts": "three hosts over one log: killed, stopped, cut off, wiped; servers killed and frozen",
    "at once": "three hosts that serve at once: the same, and cut off from each other",
    "servers": "servers of the log killed, stopped, cut off, wiped, full, and their leaders changed",
    "both ways": "a backup of each kind of log restored into the other, 100,000 accounts",
    "fuzz": "broken input for every decoder",
}


class Piece(NamedTuple):
    """A program to run; `cores` of the machine's it takes: half of one where it mostly waits for hosts and servers."""

    campaign: str
    name: str
    arguments: list[str]  # behind `python -m`
    cores: float = 1


def all_pieces(share: float) -> Iterator[Piece]:
    """The pieces of all campaigns, fuzzing last, which takes longest. `share`: of the full size, 1 is the whole; every
    campaign keeps at least one piece, and mutants, kinds of faults and states of a damaged log are always all.
    """

    def count(full: int) -> int:
        return max(1, round(full * share))

    yield Piece("mutants", "mutants", ["tests.simulation.mutants", "--seeds", "200", "--jobs", "2"], cores=2)
    yield Piece("gates", "gates", ["tests.torture.gates"])
    for target, error_name, sticky in FAULTS:
        options = ["--target", target, "--what", error_name, *(["--sticky"] if sticky else [])]
        limit = [] if share >= 1 else ["--runs", str(count(100))]
        name = f"{error_name} in {target}, {'from there on' if sticky else 'once'}"
        yield Piece("faults", name, ["tests.torture.faults", *options, *limit])
    for state in STATES:
        parts = FLIP_PARTS if share >= 1 else round(FLIP_PARTS / share)
        for part in range(1, FLIP_PARTS + 1):
            options = ["--state", state, "--part", f"{part}/{parts}"]
            yield Piece("flips", f"{state}, part {part}", ["tests.torture.damage", "flips", *options])
        options = ["--state", state, "--part", f"1/{parts // FLIP_PARTS}"]
        yield Piece("cuts", state, ["tests.torture.damage", "cuts", *options])
    parts = PAIR_PARTS if share >= 1 else round(PAIR_PARTS / share)
    for part in range(1, PAIR_PARTS + 1):
        yield Piece("pairs", f"rows, part {part}", ["tests.torture.pairs", "--part", f"{part}/{parts}"])
    yield from _cycles("moves", "moves", ["tests.torture.moves", "kills"], count(200))
    yield from _cycles("kill", "kill", ["tests.torture.kill"], count(300))
    for kind in ("ext4", "xfs"):
        yield from _cycles("power", kind, ["tests.torture.power", "--kind", kind], count(200))
        control = ["--kind", kind, "--sync", "never"]
        yield Piece("control", kind, ["tests.torture.power", *control])
    yield from _cycles("full", "full", ["tests.torture.full"], count(20))
    yield from _cycles("hosts", "hosts", ["tests.torture.hosts"], count(400), cores=0.5)
    yield from _cycles("at once", "at once", ["tests.torture.hosts", "--at-once"], count(400), cores=0.5)
    yield from _cycles("servers", "servers", ["tests.torture.servers"], count(1000), cores=0.5)
    yield Piece("both ways", "both ways", ["tests.torture.both_ways", "--accounts", str(count(100_000))], cores=2)
    yield from _cycles("writeback", "writeback", ["tests.torture.writeback"], count(80))
    commands = count(COMMANDS)
    for number, first in enumerate(range(0, commands, COMMANDS_A_PIECE), 1):
        seed = 1_000_000 + first // PROGRAM  # far from those of the tests
        options = ["--commands", str(min(COMMANDS_A_PIECE, commands - first)), "--seed", str(seed)]
        yield Piece("programs", f"programs, part {number}", ["tests.ledger.programs", *options])
    seeds = count(10_000)
    for first in range(0, seeds, SEEDS_A_PIECE):
        last = min(first + SEEDS_A_PIECE, seeds)
        options = ["--seeds", f"{first}..{last}", "--jobs", "1"]
        yield Piece("simulation", f"seeds {first} to {last - 1}", ["tests.simulation", *options])
    seeds = count(FOLLOWED_SEEDS)
    for first in range(0, seeds, SEEDS_A_PIECE):
        last = min(first + SEEDS_A_PIECE, seeds)
        options = ["--follows", "--seeds", f"{first}..{last}", "--jobs", "1"]
        yield Piece("beside", f"followed seeds {first} to {last - 1}", ["tests.simulation", *options])
    seeds = count(HOSTS_SEEDS)
    for first in range(0, seeds, SEEDS_A_PIECE):
        last = min(first + SEEDS_A_PIECE, seeds)
        options = ["--hosts", "--seeds", f"{first}..{last}", "--jobs", "1"]
        yield Piece("clusters", f"seeds of hosts {first} to {last - 1}", ["tests.simulation", *options])
    lives = count(1000)
    for first in range(0, lives, LIVES_A_PIECE):
        last = min(first + LIVES_A_PIECE, lives)
        options = ["--seeds", f"{first}..{last}"]
        yield Piece("followers", f"lives {first} to {last - 1}", ["tests.follower.campaign", *options])
    for target, seconds in FUZZ_S.items():
        yield Piece("fuzz", target, ["tests.fuzz", target, "--seconds", str(count(seconds)), "--seed", "2"])


def part_of(pieces: Iterable[Piece], number: int, parts: int) -> list[Piece]:
    """Every so many'th of the pieces, from the one of this number (from 1) on: parts 1 to `parts` are the whole."""
    return list(pieces)[number - 1 :: parts]


def _cycles(campaign: str, name: str, program: list[str], cycles: int, cores: float = 1) -> Iterator[Piece]:
    """Cycles, in pieces with a seed each."""
    cycles_each = CYCLES_A_PIECE[campaign]
    for number, first in enumerate(range(0, cycles, cycles_each), 1):
        now = min(cycles_each, cycles - first)
        options = ["--cycles", str(now), "--seed", str(number)]
        yield Piece(campaign, f"{name}, seed {number}", [*program, *options], cores)
