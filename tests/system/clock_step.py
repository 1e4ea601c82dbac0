"""A wall clock that a test may step, of the processes that it starts and of nobody else.

A library, made by the C compiler that is there and loaded before the others, adds as many milliseconds as a file says
to CLOCK_REALTIME; the boot clock stays as it is. A second file says by how many microseconds the kernel holds that
clock to be wrong at most. Where the machine may be suspended, a third says for how long it has been, which is added to
CLOCK_BOOTTIME; the kernel's timers know nothing of it. `ClockStep.environment` is what a process needs to have it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static long number_in(const char *variable) {
    char text[24];
    int file = open(getenv(variable), O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    return atol(text);
}

static void add_ms(struct timespec *now, long ms) {
    now->tv_sec += ms / 1000;
    now->tv_nsec += ms % 1000 * 1000000;
    if (now->tv_nsec < 0 || now->tv_nsec >= 1000000000) {
        long over = now->tv_nsec < 0 ? -1 : 1;
        now->tv_sec += over;
        now->tv_nsec -= over * 1000000000;
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME)
        add_ms(now, number_in("CLOCK_STEP_FILE"));
    if (!failed && clock == CLOCK_BOOTTIME && getenv("CLOCK_SUSPENDED_FILE"))
        add_ms(now, number_in("CLOCK_SUSPENDED_FILE"));
    return failed;
}

int adjtimex(struct timex *told) {
    memset(told, 0, sizeof *told);
    told->status = STA_PLL;
    told->maxerror = number_in("CLOCK_ERROR_FILE");
    return TIME_OK;
}
"""


class ClockStep:
    """See the module. Skips the test where there is no compiler."""

    def __init__(self, home: Path, suspends: bool = False) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler to make a clock with")
        source, library = home / "clock_step.c", home / "clock_step.so"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        self._step_ms, self._error_us = home / "clock_step_ms", home / "clock_error_us"
        self.to(0)
        self.may_be_wrong_by(0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "CLOCK_STEP_FILE": str(self._step_ms),
            "CLOCK_ERROR_FILE": str(self._error_us),
        }
        self._suspended_ms = home / "clock_suspended_ms"
        if suspends:
            self.suspended(0)
            self.environment["CLOCK_SUSPENDED_FILE"] = str(self._suspended_ms)

    def to(self, seconds: float) -> None:
        """From now on the wall clock is so far ahead of the true one, to the millisecond."""
        _write(self._step_ms, round(seconds * 1000))

    def suspended(self, seconds: float) -> None:
        """From now on the machine has been suspended for so long in all, to the millisecond."""
        _write(self._suspended_ms, round(seconds * 1000))

    def may_be_wrong_by(self, microseconds: int) -> None:
        """What the kernel says from now on."""
        _write(self._error_us, microseconds)


def _write(file: Path, number: int) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(str(number))
    fresh.rename(file)
