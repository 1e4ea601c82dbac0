"""Billing time of this host: where it begins, and how it follows wall time.

It begins behind the last instant of every journal that this host serves, is anchored to the boot clock, and the anchor
is durable before anybody reads it. About once a second it is compared with wall time and bent towards it
(`shards.system.clock`). Where several hosts share the log, a clock that is too wrong ends the service: another host,
whose clock is better, serves (`shards.supervisor.clock_guard`).
"""

from __future__ import annotations

import logging

from shards.supervisor.clock_watch import ClockUnfit
from shards.supervisor.registry import Registry
from shards.system.clock import Anchor, BillingClock, Steering, encode_anchor, restart, stepped_while_away
from shards.system.host import Host

log = logging.getLogger("shards.supervisor.supervisor")


class BillingTime:
    """The billing time of one daemon."""

    def __init__(self, host: Host, slew_ppm_max: int, error_ns_max: int) -> None:
        """`slew_ppm_max`: how fast billing time may be slewed, in millionths. `error_ns_max`: how wrong the clock of a
        host that shares its log may be; 0: any.
        """
        self.clock: BillingClock | None = None  # None: it has not begun
        self.offset_ns = 0  # wall time minus billing time, at the last look
        self.steps = 0  # of the wall clock, since it began
        self._host = host
        self._boot_ns = host.clocks.boot_ns
        self._slew_ppm_max = slew_ppm_max
        self._error_ns_max = error_ns_max
        self._steering: Steering | None = None

    def now_ns(self) -> int:
        """Billing time; 0 before it has begun."""
        return 0 if self.clock is None else self.clock.at(self._boot_ns())

    def ahead_ns(self, instant_ns: int) -> int:
        """How far a shard's last instant lies ahead of billing time, where that is more than two good clocks can differ
        by; else 0.
        """
        ahead_ns = instant_ns - self.now_ns()
        return ahead_ns if self._error_ns_max and ahead_ns > self._error_ns_max else 0

    async def begin(self, registry: Registry, last_ns: int) -> None:
        """Anchors billing time, no earlier than `last_ns`. Raises ClockUnfit, and the log's errors."""
        boot_ns, wall_ns = self._host.clocks.paired()
        boot_id = self._host.disk.boot_id()
        begun = restart(registry.newest_anchor, last_ns, boot_id, boot_ns, wall_ns)
        if begun.alarm:
            log.error(
                "wall time is %.1f s behind the last journalled instant: billing goes on from that instant; "
                "check the clock of this host",
                begun.behind_ns / 1e9,
            )
        stepped_ns = stepped_while_away(registry.newest_anchor, boot_id, boot_ns, wall_ns)
        if stepped_ns:
            log.warning(
                "the wall clock was stepped by %.3f s while the daemon was down; billing time went by the boot clock",
                stepped_ns / 1e9,
            )
        _look(registry, boot_ns, wall_ns, begun.anchor.at(boot_ns))
        await registry.record(registry.anchor_record(encode_anchor(begun.anchor, boot_id)))
        self.clock = BillingClock(begun.anchor)
        self._steering = Steering(self.clock, self._slew_ppm_max)
        self._steering.begin(boot_ns, wall_ns)

    async def steer(self, registry: Registry) -> Anchor | None:
        """Compares billing time with wall time; to be called about once a second. Returns the new anchor, which is
        durable, where billing time is slewed. Raises ClockUnfit, and the log's errors.
        """
        assert self._steering is not None, "it has not begun"
        boot_ns, wall_ns = self._host.clocks.paired()
        steered = self._steering.steer(boot_ns, wall_ns)
        self.offset_ns = steered.offset_ns
        _look(registry, boot_ns, wall_ns, wall_ns - steered.offset_ns)
        if steered.step_ns:
            self.steps += 1
            log.warning(
                "the wall clock was stepped by %.3f s; billing time is bent towards it by at most %d ppm",
                steered.step_ns / 1e9,
                self._slew_ppm_max,
            )
        if steered.anchor is not None:
            await registry.record(registry.anchor_record(encode_anchor(steered.anchor, self._host.disk.boot_id())))
        return steered.anchor


def _look(registry: Registry, boot_ns: int, wall_ns: int, billing_ns: int) -> None:
    """Raises ClockUnfit where the clock is unfit, so that this host gives its shards up."""
    if fault := registry.clock_watch.look(boot_ns, wall_ns, billing_ns):
        raise ClockUnfit(fault)
