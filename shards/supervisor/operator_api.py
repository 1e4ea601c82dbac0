"""What an operator asks about shards, buckets and moves, answered in the supervisor as plain data.

    ("shards_info",)                 a row per shard: process, load, buckets by state, what is wrong with it (`alerts`);
                                     of shards elsewhere their hosts are asked
    ("shards_here",)                 for another host: this one's name, rows, and which shards it has no link to
    ("buckets_info",)                a row per bucket; their hosts say how many accounts those elsewhere have
    ("accounts_here",)               for another host: how many accounts each bucket has that this one serves
    ("held_here",) ("moving_here",)  for another host that checks owners
    ("explain_move", bucket, shard)  what a move of the bucket waits for, and who could do something about it;
                                     shard 0: wherever the rebalancer wants it
    ("move_bucket", bucket, shard)   ("pin_bucket", bucket)   ("unpin_bucket", bucket)
    ("rebalance", plan only)         begun, or only shown
    ("check_owners",)                whether each bucket has exactly one owner, and its content adds up: `ownership`

An order that has not ended after `ORDER_S` is answered with what is wrong with the map's log, if anything is. It is
still carried out, once the log allows that.

States are named as vshard names them. A refusal is `{"refused": name, "message": text}`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Any, NamedTuple, TypeVar

from shards.buckets import ACTIVE, PINNED, RECEIVING, SENDING
from shards.counting import counted
from shards.journal import JournalError
from shards.machine import Command
from shards.moves.mover import MOVE_HERE, Mover, refusal
from shards.supervisor.ownership import HELD_HERE, MOVING_HERE, SILENT, OwnershipCheck
from shards.supervisor.registry import Registry
from shards.supervisor.worker_figures import WorkerFigures

SHARD_FIGURES = ("accounts", "armed", "pending_cutoffs", "journal_bytes", "passed_on", "garbage")  # in shards_info
STEPS_SHOWN_MAX = 1000
ORDERS = ("move_bucket", MOVE_HERE, "pin_bucket", "unpin_bucket", "rebalance")
ORDER_S = 7.0  # clients time out after 10 s: they get the reason before that
ORDER_LOOK_S = 0.5
FAR_TIMEOUT_S = 2.0  # for what another host says of its shards
T = TypeVar("T")


class Here(NamedTuple):
    """What one host reports about its own shards."""

    node: str
    rows: list[dict[str, Any]]
    links_down: dict[int, str]  # the shards elsewhere that some worker of it cannot reach, and why


class OperatorApi:
    """Answers operators' questions and carries out their requests."""

    def __init__(
        self,
        registry: Registry,
        workers: dict[int, Any],
        mover: Mover,
        worker_figures: WorkerFigures,
        elsewhere: Callable[[], dict[int, str]] = dict,
    ) -> None:
        """`elsewhere`: the shards that other hosts serve, with the names of these; "" where none is known."""
        self.extra_operations: dict[str, Callable[[Command], Awaitable[dict[str, Any]]]] = {}  # by name
        self.history_lacks: Callable[[], Mapping[int, str]] = dict  # of shards, what this host's history of them lacks
        self._elsewhere = elsewhere
        self._registry = registry
        self._workers = workers
        self._mover = mover
        self._worker_figures = worker_figures
        of_buckets = registry, workers, mover, worker_figures
        self._ownership = OwnershipCheck(*of_buckets, elsewhere, self._ask_hosts)

    async def operate(self, operation: Command) -> object:
        """Carries out an operator's request."""
        mover, bucket_map = self._mover, self._registry.map
        match operation:
            case ("alive",):  # a worker's look, see `shards.worker.asks`
                return {}
            case ("shards_info",):
                return await self._shards_info()
            case ("shards_here",):
                return (await self._here())._asdict()
            case ("buckets_info",):
                return await self._buckets_info()
            case ("accounts_here",):
                return {"accounts": list((await self._accounts_here())[0].items())}
            case ("move_bucket", int(bucket_id), int(shard_id)):
                return await mover.move(bucket_id, shard_id)
            case (name, int(bucket_id), int(shard_id), int(planned)) if name == MOVE_HERE:
                return await mover.move(bucket_id, shard_id, pass_on=False, planned=bool(planned))
            case ("explain_move", int(bucket_id), int(shard_id)):
                return self._explain_move(bucket_id, shard_id)
            case ("pin_bucket" | "unpin_bucket" as name, int(bucket_id)):
                if not 1 <= bucket_id <= bucket_map.bucket_count:
                    return refusal("UNKNOWN_BUCKET", f"bucket {bucket_id} is not one of 1..{bucket_map.bucket_count}")
                async with self._registry.deciding:
                    await self._registry.record([name.removesuffix("_bucket"), bucket_id])
                return {"bucket_id": bucket_id, "pinned": bucket_id in bucket_map.pinned}
            case ("rebalance", int(plan_only)):
                steps = mover.plan()
                if not plan_only:
                    try:
                        await mover.rebalance()
                    except JournalError as error:
                        return refusal("UNAVAILABLE", f"the map cannot be written: {error}")
                    return {"moves": len(steps)}
                return {
                    "moves": len(steps),
                    "steps": [
                        {"bucket_id": step.bucket_id, "shard_id": step.source, "to_shard_id": step.target}
                        for step in steps[:STEPS_SHOWN_MAX]
                    ],
                }
            case ("check_owners",):
                return await self._ownership.check()
            case (name,) if name == HELD_HERE:
                return await self._ownership.held_here()
            case (name,) if name == MOVING_HERE:
                return self._ownership.moving_here()
            case (name, *_) if name in self.extra_operations:
                return await self.extra_operations[name](operation)
            case _:
                return refusal("UNKNOWN_METHOD", f"{operation[0]} is not served by this version")

    async def in_time(self, operation: Command, order: asyncio.Future[object]) -> object:
        """Returns the reply to an operation that is being carried out; or why an order cannot be carried out yet,
        before its caller stops waiting.
        """
        if operation[0] in ORDERS:
            is_done, _ = await asyncio.wait((order,), timeout=ORDER_S)
            while not is_done:
                if trouble := self._registry.log_trouble():
                    text = f"the map of the buckets cannot be written: {trouble}; what comes of the order is not known"
                    return refusal("UNAVAILABLE", text) | {"applied": "unknown"}
                is_done, _ = await asyncio.wait((order,), timeout=ORDER_LOOK_S)
        return await order

    async def _from_all(self, ask: Callable[[Any], Awaitable[T]]) -> list[tuple[Any, T]]:
        workers = [self._workers[shard_id] for shard_id in sorted(self._workers)]
        answers = await asyncio.gather(*(ask(worker) for worker in workers))
        return list(zip(workers, answers, strict=True))

    # -- shards and buckets -----------------------------------------------------------------------------------------

    async def _shards_info(self) -> list[dict[str, Any]]:
        elsewhere, here = self._elsewhere(), await self._here()
        other_hosts = [
            Here(**reply) for reply in await self._answers_elsewhere(("shards_here",), elsewhere, here.links_down)
        ]
        rows_elsewhere = {int(row["shard_id"]): row for other in other_hosts for row in other.rows}
        rows = list(here.rows)
        for shard_id, node in elsewhere.items():
            down = {"this host": here.links_down} | {other.node: other.links_down for other in other_hosts}
            unlinked = {host: of_host[shard_id] for host, of_host in down.items() if shard_id in of_host}
            rows.append(self._far_row(shard_id, node, unlinked, rows_elsewhere.get(shard_id)))
        for row in here.rows:
            shard_id = row["shard_id"]
            unlinked = {other.node: other.links_down[shard_id] for other in other_hosts if shard_id in other.links_down}
            row["links_down"], row["alerts"] = _links(unlinked), [*row["alerts"], *_unreachable(unlinked)]
        for row in rows:
            row["history_lacks"] = self.history_lacks().get(int(row["shard_id"]), "")
        return sorted(rows, key=lambda row: int(row["shard_id"]))

    async def _here(self) -> Here:
        """What this host reports about its own shards."""
        bucket_map, moves = self._registry.map, self._mover.running.values()
        answers = await self._from_all(self._worker_figures.of)
        down: dict[int, str] = {}
        for _, figures in answers:
            down |= figures.get("links_down", {})
        rows = [
            {
                "shard_id": worker.shard_id,
                "worker_pid": worker.pid or None,
                "state": worker.state if figures or worker.state != "serving" else SILENT,
                "reason": worker.reason or figures.get("trouble", ""),  # of what it serves beside
                "weight": bucket_map.weights.get(worker.shard_id, 0),
                "buckets": len(bucket_map.buckets_of(worker.shard_id)),
                PINNED: sum(bucket_map.owner[bucket_id] == worker.shard_id for bucket_id in bucket_map.pinned),
                SENDING: sum(running.move is not None and running.source == worker.shard_id for running in moves),
                RECEIVING: sum(running.move is not None and running.target == worker.shard_id for running in moves),
                **{key: figures.get(key) for key in SHARD_FIGURES},
                "starts": worker.starts,
                "links_down": [],
                "alerts": self._alerts(worker, figures),
            }
            for worker, figures in answers
        ]
        placement = self._registry.placement
        return Here("" if placement is None else placement.node, rows, down)

    async def _answers_elsewhere(
        self, question: Command, elsewhere: dict[int, str], down: Container[int], timeout_s: float = FAR_TIMEOUT_S
    ) -> list[dict[str, Any]]:
        """The answers of the hosts that serve the other shards, of those that answer. `down`: shards that this host
        cannot reach.
        """
        far = self._mover.far
        by_node = {node: shard for shard, node in elsewhere.items() if node and shard not in down}
        if far is None:
            return []

        async def of(shard: int) -> dict[str, Any] | None:
            try:
                reply = await asyncio.wait_for(far.ask_only(shard, question), timeout_s)
            except TimeoutError:
                return None
            return None if "refused" in reply else reply

        return [answer for answer in await asyncio.gather(*map(of, by_node.values())) if answer is not None]

    async def _ask_hosts(self, question: Command, timeout_s: float) -> list[dict[str, Any]]:
        """The answers of all hosts that this one can reach, of those that answer."""
        elsewhere = self._elsewhere()
        if not elsewhere:
            return []
        _, down = await self._accounts_here()
        return await self._answers_elsewhere(question, elsewhere, down, timeout_s)

    def _far_row(self, shard_id: int, node: str, unlinked: dict[str, str], host_row: Any | None) -> dict[str, Any]:
        """A shard that another host serves: the map's facts, and the row of its host if that host has answered.
        `unlinked`: the hosts that have a worker without a link to it, and why.
        """
        bucket_map = self._registry.map
        why = unlinked.get("this host", "") if node else ""
        reason = f"served by {node}" if node else "served by no host"
        row: dict[str, Any] = {SENDING: 0, RECEIVING: 0, "starts": 0, "alerts": []}
        row |= dict.fromkeys(SHARD_FIGURES)
        if host_row is not None:
            row |= {key: host_row[key] for key in row}
            reason += "" if host_row["state"] == "serving" else f": {host_row['state']}"
        alerts = [*row["alerts"], *self._moves_that_failed(shard_id)] if host_row is None else list(row["alerts"])
        alerts += _unreachable(unlinked) if node else [f"UNREACHABLE_SHARD: no host serves shard {shard_id}"]
        return row | {
            "shard_id": shard_id,
            "worker_pid": None,  # it would mean another process here
            "state": "elsewhere",
            "reason": f"{reason}; no link from this host: {why}" if why else reason,
            "weight": bucket_map.weights.get(shard_id, 0),
            "buckets": len(bucket_map.buckets_of(shard_id)),
            PINNED: sum(bucket_map.owner[bucket_id] == shard_id for bucket_id in bucket_map.pinned),
            "links_down": _links(unlinked),
            "alerts": alerts,
        }

    def _alerts(self, worker: Any, figures: dict[str, Any]) -> list[str]:
        """What an operator should act on, as `NAME: text`: vshard's alerts where they have a meaning here, and
        our own.
        """
        bucket_map = self._registry.map
        owned = len(bucket_map.buckets_of(worker.shard_id))
        alerts = []
        if worker.state == "held":
            alerts.append(f"SHARD_HELD: nobody serves {counted(owned, 'bucket')}: {worker.reason}")
        elif worker.state != "serving":
            why = worker.reason or worker.state
            alerts.append(f"UNREACHABLE_SHARD: nobody serves {counted(owned, 'bucket')}: {why}")
        elif not figures:
            alerts.append("SILENT_SHARD: its worker does not answer")
        if figures.get("no_room"):
            what = "NO_GRANT: changes and reads are" if figures.get("lapsed") else "DISK_FULL: changes are"
            alerts.append(f"{what} refused: {figures['no_room']}")
        weight = bucket_map.weights.get(worker.shard_id, 0)
        if not weight and owned:
            alerts.append(f"DRAINING: waits for {counted(owned, 'bucket')} to leave")
        return [*alerts, *self._moves_that_failed(worker.shard_id)]

    def _moves_that_failed(self, shard_id: int) -> list[str]:
        """The alert for the last move of one of the shard's buckets that failed."""
        stuck = [bucket_id for bucket_id in self._errors() if self._registry.map.owner[bucket_id] == shard_id]
        return [f"MOVE_FAILED: bucket {stuck[-1]}: {self._errors()[stuck[-1]]}"] if stuck else []

    def _errors(self) -> dict[int, str]:
        """Why the last move of each bucket failed: moves of this host, and those that the map has as given up."""
        given_up = {
            bucket_id: wanted.given_up for bucket_id, wanted in self._registry.wanted.of.items() if wanted.given_up
        }
        return given_up | self._mover.errors

    async def _accounts_here(self) -> tuple[dict[int, int], set[int]]:
        """How many accounts the buckets have that this host serves; and which shards elsewhere it cannot reach."""
        accounts, down = dict[int, int](), set[int]()
        for worker, figures in await self._from_all(self._worker_figures.of):
            if figures:
                counts, owned = dict(figures.get("bucket_accounts", ())), self._registry.map.buckets_of(worker.shard_id)
                accounts |= {bucket_id: counts.get(bucket_id, 0) for bucket_id in owned}  # others have none
                down |= figures.get("links_down", {}).keys()
        return accounts, down

    async def _buckets_info(self) -> list[dict[str, Any]]:
        bucket_map, elsewhere = self._registry.map, self._elsewhere()
        here, down = await self._accounts_here()
        accounts: dict[int, int | None] = {
            bucket_id: None for shard_id in elsewhere for bucket_id in bucket_map.buckets_of(shard_id)
        }
        for reply in await self._answers_elsewhere(("accounts_here",), elsewhere, down):
            accounts |= {bucket_id: count for bucket_id, count in reply["accounts"] if bucket_id in accounts}
        accounts |= here
        return [
            {
                "bucket_id": bucket_id,
                "shard_id": bucket_map.owner[bucket_id],
                "state": self._state_of(bucket_id),
                "generation": bucket_map.generation[bucket_id],
                "accounts": accounts.get(bucket_id, 0),
            }
            for bucket_id in range(1, bucket_map.bucket_count + 1)
        ]

    def _state_of(self, bucket_id: int) -> str:
        """The state of a bucket on its owner, by vshard's names."""
        running = self._mover.running.get(bucket_id)
        if running is not None and running.move is not None:
            return RECEIVING if self._registry.map.owner[bucket_id] == running.target else SENDING
        if bucket_id in self._registry.wanted.pending():  # another host drives it
            return SENDING
        return PINNED if bucket_id in self._registry.map.pinned else ACTIVE

    # -- moves ------------------------------------------------------------------------------------------------------

    def _explain_move(self, bucket_id: int, shard_id: int) -> dict[str, Any]:
        mover, bucket_map = self._mover, self._registry.map
        if not 1 <= bucket_id <= bucket_map.bucket_count:
            return refusal("UNKNOWN_BUCKET", f"bucket {bucket_id} is not one of 1..{bucket_map.bucket_count}")
        planned = {step.bucket_id: (index, step) for index, step in enumerate(mover.plan())}
        running = mover.running.get(bucket_id)
        target = running.target if running is not None else shard_id
        if not target and bucket_id in planned:
            target = planned[bucket_id][1].target
        condition, whose = self._first_unmet(bucket_id, target, shard_id, planned)
        owner = bucket_map.owner_of(bucket_id)
        return {
            "bucket_id": bucket_id,
            "shard_id": owner.shard_id,
            "generation": owner.generation,
            "state": self._state_of(bucket_id),
            "to_shard_id": target or None,
            "waits_for": condition,
            "whose": whose,
            "last_error": self._errors().get(bucket_id),
        }

    def _first_unmet(self, bucket_id: int, target: int, ordered: int, planned: dict[int, Any]) -> tuple[str, str]:
        """The first condition of a move that is not met, and who is to meet it."""
        mover = self._mover
        running = mover.running.get(bucket_id)
        if running is not None and running.move is not None:
            move = running.move
            by_state = {"preparing": f"shard {move.source}", "storing": f"shard {move.target}"}
            by_state |= {"committing": "the supervisor", "committed": f"shard {move.target}"}
            return move.reason or move.state, by_state.get(move.state, "nobody")
        if running is not None and mover.is_held:
            return "the end of a backup, during which no bucket moves", "whoever makes the backup"
        if running is not None:
            moving = ", ".join(str(other.bucket_id) for other in mover.running.values() if other.move is not None)
            return (
                f"its turn: of buckets, {moving or 'none'} moves now; at most {mover.settings.caps.total} do",
                "the mover",
            )
        if not target and bucket_id in self._registry.map.pinned:
            return "it is pinned: the rebalancer never moves it; unpin_bucket frees it", "the operator"
        if not target:
            return "nothing wants it elsewhere: the load is even, or the rebalancer leaves it alone", "the operator"
        obstacle = mover.obstacle(bucket_id, target)
        if obstacle is not None:
            return obstacle.text, "the shard that is down" if obstacle.shard_down else "the operator"
        if ordered:
            return "an order: move_bucket", "the operator"
        index, _ = planned[bucket_id]
        if mover.rebalancing or self._registry.uneven:
            return f"its turn: {counted(index, 'bucket')} of the plan before it", "the rebalancer"
        return "an order: rebalance", "the operator"


def _links(unlinked: dict[str, str]) -> list[str]:
    """The hosts without a link to a shard, and why, for people."""
    return [f"{host}: {why}" for host, why in unlinked.items()]


def _unreachable(unlinked: dict[str, str]) -> list[str]:
    return [f"UNREACHABLE_SHARD: no link from {host}: {why}" for host, why in unlinked.items()]
