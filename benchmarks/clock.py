"""A wall clock that is set while programs run, for them alone: other people's processes keep theirs.

A library that is loaded before all others (`LD_PRELOAD`) adds to what the system says of the time of day the seconds
that a file holds, which every process maps: all see a new value at once. It leaves monotonic clocks and sleeping alone,
as setting a clock does; waits until a time of day end by the clock that was set. Debian's libfaketime (0.9.10) does not
do: by it `time.sleep` of Python 3.11 fails, and files seem to move with the clock. Linux with a C compiler only.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long *ahead;
static long nothing;
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("BDRAY_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    ahead = mapped == MAP_FAILED ? &nothing : mapped;
    if (file >= 0) close(file);
}

static long offset(void) { return ahead ? *ahead : 0; }

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

/* A moment of the day has ten digits by now, one since the system's start has not. */
static struct timespec true_time(const struct timespec *until) {
    struct timespec moment = *until;
    if (moment.tv_sec > 1000000000) moment.tv_sec -= offset();
    return moment;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec moment = true_time(until);
    return real(condition, mutex, &moment);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
    static int (*real)(sem_t *, const struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec moment = true_time(until);
    return real(semaphore, &moment);
}

long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    if (!real_syscall) real_syscall = dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_futex && (b & FUTEX_CLOCK_REALTIME) && d) {
        struct timespec moment = true_time((const struct timespec *)d);
        return real_syscall(number, a, b, c, (long)&moment, e, f);
    }
    return real_syscall(number, a, b, c, d, e, f);
}
"""


class Clock:
    """One that starts at the true time.

    Args:
        folder: where the library and the file that holds the seconds are made.
    """

    def __init__(self, folder: Path) -> None:
        self._file, source, library = folder / "clock", folder / "clock.c", folder / "clock.so"
        self.set(0)
        source.write_text(_SOURCE)
        compiler = shutil.which("cc") or "gcc"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "BDRAY_TEST_CLOCK": str(self._file)}
        """Of the programs that shall read it."""

    def set(self, seconds: int) -> None:
        """Be so much ahead of the true time from now on; negative: behind it."""
        data = struct.pack("l", seconds)
        if not self._file.exists():
            self._file.write_bytes(data)
            return
        with self._file.open("r+b") as file:
            file.write(data)
