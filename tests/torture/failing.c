/* Lets the n-th call on files below one directory fail: to be preloaded into a process (LD_PRELOAD).
 *
 *   FAULT_DIR   part of the path of the directory      FAULT_AT      number of the call, from 1, in each process
 *   FAULT_WHAT  an errno; 0: a write that is short     FAULT_STICKY  1: all calls from there on
 *   FAULT_ONLY  the name of the only call that is counted (open, write, fdatasync ...); all, where it is not set
 *   FAULT_STALL  as long as this file is there, every fdatasync waits
 *   FAULT_LOG   a line is appended for each call that failed: its number, its name, its path
 *
 * Counted are open, read, write, sync, allocate, truncate, rename, unlink and mkdir, and where writes are to be short,
 * only those that can be; a call that fails does nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HANDLES 65536
static char *paths[HANDLES]; /* of open files below the directory */
static int calls;

static int below(const char *path) {
    const char *directory = getenv("FAULT_DIR");
    return directory && path && strstr(path, directory) != NULL;
}

static int number_of(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

/* -1: goes well; else an errno, or 0 for a short write. */
static int fault(const char *call, const char *path, int can_be_short) {
    const char *only = getenv("FAULT_ONLY");
    int what = number_of("FAULT_WHAT");
    if ((only && strcmp(only, call)) || (what == 0 && !can_be_short)) return -1;
    int number = __sync_add_and_fetch(&calls, 1), at = number_of("FAULT_AT");
    if (at <= 0 || number < at || (number > at && !number_of("FAULT_STICKY"))) return -1;
    const char *log = getenv("FAULT_LOG");
    int handle = log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (handle >= 0) {
        char line[512];
        int length = snprintf(line, sizeof line, "%d %s %s\n", number, call, path);
        if (syscall(SYS_write, handle, line, length < 511 ? length : 511) < 0) { /* it is a log */ }
        syscall(SYS_close, handle);
    }
    return what;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opened(int handle, const char *path) {
    if (handle >= 0 && handle < HANDLES) paths[handle] = strdup(path);
    return handle;
}

#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                       \
        va_list more;                                                  \
        va_start(more, flags);                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                  \
        if (!below(path)) return REAL(name)(path, flags, mode);        \
        int what = fault("open", path, 0);                             \
        if (what >= 0) { errno = what; return -1; }                    \
        return opened(REAL(name)(path, flags, mode), path);            \
    }
OPEN(open)
OPEN(open64)

int close(int handle) {
    if (handle >= 0 && handle < HANDLES && paths[handle]) {
        free(paths[handle]);
        paths[handle] = NULL;
    }
    return REAL(close)(handle);
}

static const char *known(int handle) { return handle >= 0 && handle < HANDLES ? paths[handle] : NULL; }

#define PWRITE(name, offset_type)                                                     \
    ssize_t name(int handle, const void *data, size_t length, offset_type offset) {   \
        if (!known(handle)) return REAL(name)(handle, data, length, offset);          \
        int what = fault("write", known(handle), length > 1);                         \
        if (what > 0) { errno = what; return -1; }                                    \
        return REAL(name)(handle, data, what == 0 ? length / 2 : length, offset);     \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define PREAD(name, offset_type)                                                \
    ssize_t name(int handle, void *data, size_t length, offset_type offset) {   \
        int what = known(handle) ? fault("read", known(handle), 0) : -1;        \
        if (what >= 0) { errno = what; return -1; }                             \
        return REAL(name)(handle, data, length, offset);                        \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

#define OF_HANDLE(name, ...)                                                   \
        int what = known(handle) ? fault(#name, known(handle), 0) : -1;        \
        if (what >= 0) { errno = what; return -1; }                            \
        return REAL(name)(handle, ##__VA_ARGS__);
int fsync(int handle) { OF_HANDLE(fsync) }
int fdatasync(int handle) {
    const char *stall = getenv("FAULT_STALL");
    while (stall && known(handle) && REAL(access)(stall, F_OK) == 0) usleep(10000);
    OF_HANDLE(fdatasync)
}
int ftruncate(int handle, off_t length) { OF_HANDLE(ftruncate, length) }
int ftruncate64(int handle, off64_t length) { OF_HANDLE(ftruncate64, length) }

#define ALLOCATE(name, offset_type)                                            \
    int name(int handle, offset_type offset, offset_type length) {             \
        int what = known(handle) ? fault("allocate", known(handle), 0) : -1;   \
        return what >= 0 ? what : REAL(name)(handle, offset, length);          \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

#define OF_PATH(name, path, ...)                                        \
        int what = below(path) ? fault(#name, path, 0) : -1;            \
        if (what >= 0) { errno = what; return -1; }                     \
        return REAL(name)(__VA_ARGS__);
int rename(const char *source, const char *target) { OF_PATH(rename, source, source, target) }
int unlink(const char *path) { OF_PATH(unlink, path, path) }
int mkdir(const char *path, mode_t mode) { OF_PATH(mkdir, path, path, mode) }
