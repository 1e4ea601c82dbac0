"""A wall clock that a test may step, of the processes that it starts and of nobody else.

A library, made by the C compiler that is there and loaded before the others, adds to CLOCK_REALTIME as many seconds as
a file says; the boot clock stays as it is. `ClockStep.environment` is what a process needs to have it.
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
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long step_s(void) {
    char text[24];
    int file = open(getenv("CLOCK_STEP_FILE"), O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME)
        now->tv_sec += step_s();
    return failed;
}
"""


class ClockStep:
    """See the module. Skips the test where there is no compiler."""

    def __init__(self, home: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler to make a clock with")
        source, library = home / "clock_step.c", home / "clock_step.so"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        self._file = home / "clock_step_s"
        self.to(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_STEP_FILE": str(self._file)}

    def to(self, seconds: int) -> None:
        """From now on the wall clock is so far ahead of the true one."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.rename(self._file)
