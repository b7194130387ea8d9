/* Lets one system call of a process fail: the FAULT_AT-th that changes something below the folder FAULT_UNDER, with the
 * error number FAULT_ERRNO, and with FAULT_LASTS all that come after it; or lets the clock go back by a day from then on,
 * where that number is 0. It then makes the file FAULT_TOLD. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_int calls, clock_is_back;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int fails(const char *path) {
    const char *under = getenv("FAULT_UNDER"), *at = getenv("FAULT_AT"), *told = getenv("FAULT_TOLD");
    if (!under || !at || !told || !path || strncmp(path, under, strlen(under)) != 0) return 0;
    int call = atomic_fetch_add(&calls, 1) + 1;
    if (getenv("FAULT_LASTS") ? call < atoi(at) : call != atoi(at)) return 0;
    int file = NEXT(open)(told, O_WRONLY | O_CREAT, 0600);
    if (file >= 0) close(file);
    int error = atoi(getenv("FAULT_ERRNO"));
    if (error == 0) {
        atomic_store(&clock_is_back, 1);
        return 0;
    }
    errno = error;
    return 1;
}

/* With a name, that in the folder that the descriptor is of. */
static int descriptor_fails(int file, const char *name) {
    char link[64], path[PATH_MAX + NAME_MAX + 2];
    if (name && (*name == '/' || file == AT_FDCWD)) return fails(name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length < 0) return 0;
    snprintf(path + length, NAME_MAX + 2, "%s%s", name ? "/" : "", name ? name : "");
    return fails(path);
}

ssize_t write(int file, const void *bytes, size_t count) {
    return descriptor_fails(file, NULL) ? -1 : NEXT(write)(file, bytes, count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    return descriptor_fails(file, NULL) ? -1 : NEXT(writev)(file, parts, count);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    return descriptor_fails(file, NULL) ? -1 : NEXT(pwrite64)(file, bytes, count, offset);
}

int ftruncate64(int file, off64_t length) {
    return descriptor_fails(file, NULL) ? -1 : NEXT(ftruncate64)(file, length);
}

int fsync(int file) {
    return descriptor_fails(file, NULL) ? -1 : NEXT(fsync)(file);
}

int unlinkat(int folder, const char *name, int flags) {
    return descriptor_fails(folder, name) ? -1 : NEXT(unlinkat)(folder, name, flags);
}

int mkdir(const char *path, mode_t mode) {
    return fails(path) ? -1 : NEXT(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    return fails(from) ? -1 : NEXT(rename)(from, to);
}

int unlink(const char *path) {
    return fails(path) ? -1 : NEXT(unlink)(path);
}

int rmdir(const char *path) {
    return fails(path) ? -1 : NEXT(rmdir)(path);
}

#define OPENS(name)                                                                  \
    int name(const char *path, int flags, ...) {                                     \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t mode = va_arg(rest, mode_t);                                          \
        va_end(rest);                                                                \
        if ((flags & (O_WRONLY | O_RDWR)) && fails(path)) return -1;                 \
        return NEXT(name)(path, flags, mode);                                        \
    }
OPENS(open)
OPENS(open64)

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = NEXT(clock_gettime)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && atomic_load(&clock_is_back)) now->tv_sec -= 24 * 60 * 60;
    return result;
}
