/* A wall clock that can be set: preloaded into a process, it adds the seconds in CLOCK_OFFSET_FILE (one native long) to
 * whatever the system says. The monotonic clock is left alone, as a real step leaves it. libfaketime 0.9.10 would do the
 * same, but makes time.sleep() of Python 3.11 fail with EINVAL. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long *offset;

__attribute__((constructor)) static void map_offset(void)
{
    const char *path = getenv("CLOCK_OFFSET_FILE");
    void *page = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, path ? open(path, O_RDONLY | O_CLOEXEC) : -1, 0);
    if (page != MAP_FAILED)
        offset = page;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, id, now);
    if (!failed && offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result)
        *result = exact.tv_sec;
    return exact.tv_sec;
}
