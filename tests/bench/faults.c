/* What the system can do to a program that writes: preloaded, this counts every call that changes files below a folder,
 * and at the n-th one kills the process, tears the write, or fails it. See memory_faults.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, KILL, TEAR, FULL, BROKEN, SHORT };  /* as KINDS in memory_faults.py */

static char folder[PATH_MAX];
static int kind, at, count;

/* Count calls below a folder from now on, and let the at-th (from 1) meet a fault; 0: none. */
void faults_arm(const char *below, int what, int when) {
    strncpy(folder, below, sizeof folder - 1);
    kind = what, at = when, count = 0;
}

int faults_count(void) { return count; }

static int below(const char *path) { return folder[0] && path && !strncmp(path, folder, strlen(folder)); }

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    pause();
}

/* What happens to a call that is counted: 0: it goes on; -1: it fails with errno; 1: a write of half of its bytes. A full
 * disk stays full until faults_arm is called again; the other faults happen once. */
static int fault(int grows, int writes) {
    count++;
    if (!at || count < at || (count > at && kind != FULL)) return 0;
    switch (kind) {
    case KILL: die();
    case TEAR: if (writes) return 1; die();
    case FULL: if (!grows) return 0; errno = ENOSPC; return -1;
    case BROKEN: errno = EIO; return -1;
    case SHORT: return writes;
    }
    return 0;
}

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

#define WRITES(result, name, test, bytes, whole, half)                     \
    if (test) {                                                            \
        int met = fault(1, (bytes) > 1);                                   \
        if (met < 0) return result;                                        \
        if (met > 0) {                                                     \
            __typeof__(REAL(name) half) done = REAL(name) half;            \
            if (kind == TEAR) die();                                       \
            return done;                                                   \
        }                                                                  \
    }                                                                      \
    return REAL(name) whole;

#define CHANGES(name, test, grows, whole)                                  \
    if ((test) && fault(grows, 0) < 0) return -1;                          \
    return REAL(name) whole;

ssize_t write(int fd, const void *data, size_t n) {
    WRITES(-1, write, below_fd(fd), n, (fd, data, n), (fd, data, n / 2))
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t to) {
    WRITES(-1, pwrite, below_fd(fd), n, (fd, data, n, to), (fd, data, n / 2, to))
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t to) {
    WRITES(-1, pwrite64, below_fd(fd), n, (fd, data, n, to), (fd, data, n / 2, to))
}
int fsync(int fd) { CHANGES(fsync, below_fd(fd), 0, (fd)) }
int fdatasync(int fd) { CHANGES(fdatasync, below_fd(fd), 0, (fd)) }
int ftruncate(int fd, off_t size) { CHANGES(ftruncate, below_fd(fd), 0, (fd, size)) }
int ftruncate64(int fd, off64_t size) { CHANGES(ftruncate64, below_fd(fd), 0, (fd, size)) }
int rename(const char *from, const char *to) { CHANGES(rename, below(to), 0, (from, to)) }
int unlink(const char *path) { CHANGES(unlink, below(path), 0, (path)) }
int mkdir(const char *path, mode_t mode) { CHANGES(mkdir, below(path), 1, (path, mode)) }

#define OPENS(name)                                                        \
    mode_t mode = 0;                                                       \
    if (flags & O_CREAT) {                                                 \
        va_list rest;                                                      \
        va_start(rest, flags);                                             \
        mode = va_arg(rest, mode_t);                                       \
        va_end(rest);                                                      \
    }                                                                      \
    int made = flags & O_CREAT && below(path) && access(path, F_OK);       \
    CHANGES(name, made, 1, (path, flags, mode))

int open(const char *path, int flags, ...) { OPENS(open) }
int open64(const char *path, int flags, ...) { OPENS(open64) }
