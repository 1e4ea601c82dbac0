"""Time: the only module of the daemon that reads a clock.

Theory. There are three clocks. *Wall time* says which day it is, but operators, NTP and broken batteries step it. The
*boot clock* (CLOCK_BOOTTIME) only goes forward, at the pace of wall time and through a suspend, but starts at zero in
each boot. *Billing time*, which everything else here means by "now", is a function of the boot clock alone:

    billing(boot)  =  billing_ns + elapsed + corrected(elapsed)          elapsed = boot - boot_ns >= 0
    corrected      =  +- min(|correction_ns|, elapsed * slew_ppm // 10**6), with the sign of correction_ns

One such line with one bend in it is an `Anchor`. Nobody has to end it: once the correction is worked off, it runs at
the pace of the boot clock. The supervisor compares billing time with wall time about once a second (`Steering`) and,
when they have diverged, makes the next anchor. That one begins on the line of the one before it, at a *stated boot
instant a little ahead*. Every process of the daemon is told in time, and so bends at the same nanosecond.

Invariants: billing time never goes back, never jumps, and departs from the pace of the boot clock by at most
`slew_ppm`. A step of the wall clock is reported, and changes no balance by more than the slew. The conversion from a
billing instant to the boot instant of an alarm rounds up, so that nothing that waits for an instant is woken before it.

This module never decides what happens at an instant. Its pure half (`Anchor` to `stepped_while_away`) reads no clock;
instants are passed in.

A recorded anchor is 48 bytes, little endian:

    "BCA1" | slew_ppm u32 | boot_id 16 bytes | boot_ns i64 | billing_ns i64 | correction_ns i64

For example Anchor(boot_ns=1, billing_ns=2, correction_ns=-1, slew_ppm=500) of the boot 00010203...0f:

    42434131 f4010000 000102030405060708090a0b0c0d0e0f 0100000000000000 0200000000000000 ffffffffffffffff
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

SLEW_PPM_MAX = 500
SLEW_LEAD_NS = 1_000_000_000  # from making an anchor to its effect: time to record it and to tell every worker
SLEW_LEAD_NS_MAX = 10_000_000_000
DEAD_BAND_NS = 1_000_000  # billing time this near to wall time is not corrected
STEP_NS_MIN = 10_000_000  # wall time that moves this much against the boot clock between two readings was stepped
TOLD_AHEAD_NS = 1_000_000_000  # so far beyond the last batch of a journal, effects of time may have been told of
BEHIND_NS_MAX = 5_000_000_000  # wall time that is further behind the journal after a reboot raises an alarm
INSTANT_NS_MAX = 2**63 - 1

_MILLION = 10**6
_RECORD = struct.Struct("<4sI16sqqq")
_MAGIC = b"BCA1"
RECORD_BYTES = _RECORD.size


class AnchorDamaged(ValueError):
    """Recorded bytes are no anchor."""


class Anchor(NamedTuple):
    """One line of the map from boot to billing time: four plain integers, passed between processes as they are."""

    boot_ns: int  # the boot instant at which it takes effect
    billing_ns: int  # billing time at that instant
    correction_ns: int  # signed; to be worked off from that instant on
    slew_ppm: int  # how fast: 0..500 nanoseconds of correction in a millisecond of elapsed time

    def at(self, boot_ns: int) -> int:
        """Returns the billing instant at a boot instant >= self.boot_ns (before that: the line prolonged
        without slew).
        """
        elapsed_ns = boot_ns - self.boot_ns
        return self.billing_ns + elapsed_ns + self.corrected_ns(elapsed_ns)

    def corrected_ns(self, elapsed_ns: int) -> int:
        """Returns how much of the correction, signed, is worked off `elapsed_ns` after the anchor took effect."""
        if elapsed_ns <= 0 or not self.correction_ns:
            return 0
        reach_ns = elapsed_ns * self.slew_ppm // _MILLION
        if self.correction_ns > 0:
            return min(reach_ns, self.correction_ns)
        return max(-reach_ns, self.correction_ns)

    def boot_of(self, billing_ns: int) -> int:
        """Returns the first boot instant >= self.boot_ns with billing time >= `billing_ns`: the exact inverse, rounded
        up.
        """
        wanted_ns = billing_ns - self.billing_ns
        if wanted_ns <= 0:
            return self.boot_ns
        correction_ns, ppm = self.correction_ns, self.slew_ppm
        if not correction_ns or not ppm:
            return self.boot_ns + wanted_ns
        end_ns = -(-abs(correction_ns) * _MILLION // ppm)  # elapsed when the correction is complete
        if correction_ns > 0:  # elapsed + floor(elapsed*ppm/M) >= wanted
            elapsed_ns = -(-wanted_ns * _MILLION // (_MILLION + ppm))
        else:  # elapsed - floor(elapsed*ppm/M) = ceil(elapsed*(M-ppm)/M) >= wanted
            elapsed_ns = (wanted_ns - 1) * _MILLION // (_MILLION - ppm) + 1
        if elapsed_ns > end_ns:
            elapsed_ns = wanted_ns - correction_ns
        return self.boot_ns + elapsed_ns

    def check(self) -> Anchor:
        """Returns the anchor itself where every field is in range. Raises AssertionError."""
        assert 0 <= self.slew_ppm <= SLEW_PPM_MAX, f"an anchor slews by {self.slew_ppm} ppm"
        assert 0 <= self.boot_ns <= INSTANT_NS_MAX, f"out of range: {self}"
        assert 0 <= self.billing_ns <= INSTANT_NS_MAX, f"out of range: {self}"
        assert abs(self.correction_ns) <= INSTANT_NS_MAX, f"out of range: {self}"
        return self


def encode_anchor(anchor: Anchor, boot_id: bytes) -> bytes:
    """Returns the 48 bytes to record, which must be durable before the anchor takes effect. `boot_id`: 16 bytes."""
    assert len(boot_id) == 16, "a boot_id has 16 bytes"
    boot_ns, billing_ns, correction_ns, slew_ppm = anchor.check()
    return _RECORD.pack(_MAGIC, slew_ppm, boot_id, boot_ns, billing_ns, correction_ns)


def decode_anchor(record: bytes) -> tuple[Anchor, bytes]:
    """Returns (anchor, boot_id) from recorded bytes. Raises AnchorDamaged."""
    if len(record) != _RECORD.size or record[:4] != _MAGIC:
        raise AnchorDamaged(f"no anchor: {len(record)} bytes beginning with {record[:4]!r}")
    _, slew_ppm, boot_id, boot_ns, billing_ns, correction_ns = _RECORD.unpack(record)
    try:
        return Anchor(boot_ns, billing_ns, correction_ns, slew_ppm).check(), boot_id
    except AssertionError as error:
        raise AnchorDamaged(str(error)) from None


class BillingClock:
    """The map from boot to billing time as one process follows it: the anchor in effect and, at most, one to come.

    Instants that `at` returns never decrease, even where an anchor arrives after it should have taken effect. They are
    never less than `last_ns`, which begins as the last instant in the process's journal.
    """

    __slots__ = ("_coming", "_current", "_last_ns", "_switch_ns")

    def __init__(self, anchor: Anchor, last_ns: int = 0) -> None:
        self._current = anchor.check()
        self._coming: Anchor | None = None
        self._switch_ns = INSTANT_NS_MAX
        self._last_ns = last_ns

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """The anchor in effect and the one to come, if any, in this order. A process that starts now
        follows these.
        """
        return (self._current,) if self._coming is None else (self._current, self._coming)

    @property
    def last_ns(self) -> int:
        """The latest billing instant that `at` has returned; before that, the one that the clock began with."""
        return self._last_ns

    def at(self, boot_ns: int) -> int:
        """Returns the billing instant at `boot_ns`, never less than one returned before."""
        if boot_ns >= self._switch_ns:
            self._switch()
        anchor = self._current
        if anchor.correction_ns:
            now_ns = anchor.at(boot_ns)
        else:  # the same without a call: this is read several times a command
            now_ns = anchor.billing_ns + boot_ns - anchor.boot_ns
        if now_ns < self._last_ns:
            return self._last_ns
        self._last_ns = now_ns
        return now_ns

    def ahead(self, boot_ns: int) -> int:
        """Returns the billing instant at a coming boot instant, as far as anchors are known now. Changes nothing."""
        if self._coming is not None and boot_ns >= self._switch_ns:
            return self._coming.at(boot_ns)
        return self._current.at(boot_ns)

    def boot_of(self, billing_ns: int) -> int:
        """Returns the first boot instant at which billing time is at least `billing_ns`, as far as anchors are known
        now.

        To be called again after `follow`: an anchor that slows billing time down makes that boot instant later.
        """
        if self._coming is not None and billing_ns > self._coming.billing_ns:
            return self._coming.boot_of(billing_ns)
        return self._current.boot_of(billing_ns)

    def follow(self, anchor: Anchor) -> None:
        """Takes the next anchor, which has to begin on the line followed so far; ignores one that is not newer."""
        newest = self._coming or self._current
        if anchor == newest or anchor.boot_ns < newest.boot_ns:
            return
        anchor.check()
        if self._coming is not None:
            self._switch()
        assert anchor.billing_ns == self._current.at(anchor.boot_ns), f"{anchor} is not on the line of {self._current}"
        self._coming, self._switch_ns = anchor, anchor.boot_ns

    def _switch(self) -> None:
        assert self._coming is not None
        self._current, self._coming, self._switch_ns = self._coming, None, INSTANT_NS_MAX


class Steered(NamedTuple):
    """The result of comparing billing time with the wall clock once."""

    anchor: Anchor | None  # to be recorded, then followed by every process; None: nothing to correct
    offset_ns: int  # wall time minus billing time
    step_ns: int  # by how much the wall clock was stepped since the last comparison; 0: it was not


class Steering:
    """Keeps billing time near wall time, in the one process that decides (the supervisor)."""

    def __init__(self, clock: BillingClock, slew_ppm_max: int = SLEW_PPM_MAX, lead_ns: int = SLEW_LEAD_NS) -> None:
        assert 0 < slew_ppm_max <= SLEW_PPM_MAX
        assert 0 < lead_ns <= SLEW_LEAD_NS_MAX
        self.clock = clock
        self.slew_ppm_max = slew_ppm_max
        self.lead_ns = lead_ns
        self._wall_minus_boot_ns: int | None = None

    def begin(self, boot_ns: int, wall_ns: int) -> None:
        """Takes both clocks at the beginning, so that a step before the first `steer` is reported, too."""
        self._wall_minus_boot_ns = wall_ns - boot_ns

    def steer(self, boot_ns: int, wall_ns: int) -> Steered:
        """Compares both clocks, read together. Where it returns an anchor, `self.clock` follows it already."""
        wall_minus_boot_ns = wall_ns - boot_ns
        step_ns = 0 if self._wall_minus_boot_ns is None else wall_minus_boot_ns - self._wall_minus_boot_ns
        self._wall_minus_boot_ns = wall_minus_boot_ns
        if abs(step_ns) < STEP_NS_MIN:
            step_ns = 0

        offset_ns = wall_ns - self.clock.at(boot_ns)
        anchors = self.clock.anchors
        if len(anchors) == 2:  # the last correction has not even begun
            return Steered(None, offset_ns, step_ns)
        current = anchors[0]
        left_ns = current.correction_ns - current.corrected_ns(boot_ns - current.boot_ns)
        if abs(offset_ns - left_ns) <= DEAD_BAND_NS:
            return Steered(None, offset_ns, step_ns)
        effect_ns = boot_ns + self.lead_ns
        billing_ns = current.at(effect_ns)
        anchor = Anchor(effect_ns, billing_ns, wall_minus_boot_ns + effect_ns - billing_ns, self.slew_ppm_max)
        self.clock.follow(anchor)
        return Steered(anchor, offset_ns, step_ns)


class Restart(NamedTuple):
    """Where billing time begins in this life of the daemon."""

    anchor: Anchor
    same_boot: bool  # the machine has not rebooted, and the recorded map goes on
    behind_ns: int  # how far wall time lies behind the last journalled instant, in a new boot; 0: it does not
    alarm: bool  # wall time lies so far behind that an operator should look


def restart(
    recorded: tuple[Anchor, bytes] | None,
    last_ns: int,
    boot_id: bytes,
    boot_ns: int,
    wall_ns: int,
) -> Restart:
    """Returns the first anchor of a life of the daemon.

    `recorded`: the newest recorded anchor of the last life, with its boot_id. `last_ns`: the last instant of any
    journal; 0: none. Within one boot the recorded map goes on, and wall time has no influence. In another boot billing
    time begins at wall time, but never before `last_ns`.
    """
    assert 0 <= last_ns <= INSTANT_NS_MAX
    if recorded is not None:
        anchor, recorded_boot_id = recorded
        # The anchor may not have taken effect yet; one further ahead than any lead comes from another clock.
        if recorded_boot_id == boot_id and anchor.boot_ns - boot_ns <= SLEW_LEAD_NS_MAX:
            if boot_ns < anchor.boot_ns or anchor.at(boot_ns) < last_ns:
                anchor = Anchor(boot_ns, max(anchor.at(boot_ns), last_ns), 0, 0)
            return Restart(anchor, True, 0, False)
    behind_ns = max(0, last_ns - wall_ns)
    return Restart(Anchor(boot_ns, max(wall_ns, last_ns), 0, 0), False, behind_ns, behind_ns > BEHIND_NS_MAX)


def stepped_while_away(recorded: tuple[Anchor, bytes] | None, boot_id: bytes, boot_ns: int, wall_ns: int) -> int:
    """Returns by how much the wall clock was stepped since the newest recorded anchor; 0: it was not, or that is not
    known, because the machine has rebooted.

    The anchor says how far wall time was from the boot clock when it was made. Both are slewed alike, so only a step
    changes their distance.
    """
    if recorded is None or recorded[1] != boot_id:
        return 0
    anchor = recorded[0]
    step_ns = (wall_ns - boot_ns) - (anchor.billing_ns + anchor.correction_ns - anchor.boot_ns)
    return step_ns if abs(step_ns) >= STEP_NS_MIN else 0


# --- The reading half ---

_BOOTTIME = time.CLOCK_BOOTTIME


class WallError(NamedTuple):
    """How far the wall clock may be from the true time."""

    is_disciplined: bool  # a time service keeps the clock; otherwise `max_ns` says nothing
    max_ns: int


EXACT = WallError(True, 0)


class Clocks(NamedTuple):
    """The two clocks of a machine. They are passed in, so that a simulation can pass its own."""

    boot_ns: Callable[[], int]  # nanoseconds of this boot, suspends included; durations are measured with it, too
    wall_ns: Callable[[], int]  # nanoseconds since the Unix epoch: for steering and for showing, never for billing
    wall_error: Callable[[], WallError] = lambda: EXACT

    def paired(self) -> tuple[int, int]:
        """Returns (boot_ns, wall_ns) read as one: of five tries, the one that took the shortest time."""
        best_ns, pair = INSTANT_NS_MAX, (0, 0)
        for _ in range(5):
            before_ns = self.boot_ns()
            wall_ns = self.wall_ns()
            after_ns = self.boot_ns()
            if after_ns - before_ns < best_ns:
                best_ns, pair = after_ns - before_ns, ((before_ns + after_ns) // 2, wall_ns)
        return pair


class _Timex(ctypes.Structure):
    """The beginning of `struct timex`, see adjtimex(2); the kernel fills in more than is read here."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


_TFD_TIMER_ABSTIME = 1
_libc = ctypes.CDLL(None, use_errno=True)
_timerfd_create = _libc.timerfd_create
_timerfd_create.argtypes = (ctypes.c_int, ctypes.c_int)
_timerfd_settime = _libc.timerfd_settime
_timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_adjtimex = _libc.adjtimex
_adjtimex.argtypes = (ctypes.POINTER(_Timex),)
_STA_UNSYNC = 0x40


def machine_wall_error() -> WallError:
    """Returns the error bound that the kernel has from whoever keeps its clock, such as chronyd. It grows by 500 ppm
    until it is set again. A kernel that does not answer (a sandbox forbids the call) counts as one whose clock nobody
    keeps.
    """
    timex = _Timex()  # modes 0: changes nothing
    if _adjtimex(ctypes.byref(timex)) < 0 or timex.status & _STA_UNSYNC:
        return WallError(False, 0)
    return WallError(True, timex.maxerror * 1000)


# The clocks of this machine.
MACHINE_CLOCKS = Clocks(partial(time.clock_gettime_ns, _BOOTTIME), time.time_ns, machine_wall_error)


class Alarm:
    """A file descriptor that becomes readable at a boot instant, for `loop.add_reader`: event loops count only
    milliseconds. It is a timerfd on CLOCK_BOOTTIME, set to absolute instants, and never early, also not after a
    suspend. Whoever makes it must close it.
    """

    def __init__(self) -> None:
        self._fd: int = _timerfd_create(_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create: " + os.strerror(ctypes.get_errno()))
        self._spec = array("l", [0, 0, 0, 0])  # a `struct itimerspec`: no interval, then the instant in s and ns
        self._address = self._spec.buffer_info()[0]
        self.armed_ns = -1  # the boot instant that it is set for; -1: not set

    def fileno(self) -> int:
        return self._fd

    def arm(self, boot_ns: int) -> None:
        """Sets the alarm for a boot instant, which replaces the one before. It fires at once where the instant has
        passed.
        """
        if boot_ns != self.armed_ns:
            self._set(max(boot_ns, 1))  # 0 would disarm
            self.armed_ns = boot_ns

    def disarm(self) -> None:
        if self.armed_ns != -1:
            self._set(0)
            self.armed_ns = -1

    def acknowledge(self) -> bool:
        """Makes the descriptor unreadable again and returns whether it had fired; in that case the alarm is no longer
        set.
        """
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return False
        self.armed_ns = -1
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _set(self, boot_ns: int) -> None:
        assert self._fd >= 0, "the alarm is closed"
        self._spec[2], self._spec[3] = divmod(boot_ns, 1_000_000_000)
        if _timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._address, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime: " + os.strerror(ctypes.get_errno()))
