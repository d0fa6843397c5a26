"""CLOCK_REALTIME is set, forth and back: only the monotonic clock may matter.

No namespace has a CLOCK_REALTIME of its own, and that of the machine is not ours to set. So the C
library's functions that read it are replaced (LD_PRELOAD) by some that add what a file says. A wait
until a time of that clock, which the kernel compares with the true one, would last too long or not
at all.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from tests.soak.faults.harsh import soak_within
from tests.soak.rounds import Round

_FILE = "DEEPSCHED_SOAK_CLOCK"

_SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *seconds;

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("DEEPSCHED_SOAK_CLOCK"), O_RDONLY | O_CLOEXEC);
    seconds = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && seconds && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *seconds;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec time;
    int failed = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"""


def clock(round: Round) -> None:
    """Nothing ends early or late, and nothing waits for the old time to come back."""
    compiler = shutil.which("cc")
    if compiler is None:
        round.ledger.skip("clock", "there is no C compiler")
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library, offset = (Path(folder, name) for name in ("c.c", "c.so", "offset"))
        source.write_text(_SOURCE)
        offset.write_bytes(bytes(8))
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), _FILE: str(offset)}
        start = partial(subprocess.Popen, env=environment, text=True)
        soak_within(round, "clock", start, "reopening,moves,steps,damage")


def steps(round: Round) -> None:
    """Within such a child: sets its clock."""
    with open(os.environ[_FILE], "r+b") as file, mmap.mmap(file.fileno(), 8) as offset:
        for _ in range(10):
            round.pause(0.3)
            offset[:] = struct.pack("l", round.rng.choice([-86400, -3600, -1, 0, 1, 3600, 10**8]))
            round.ledger.count("times the clock was set")
