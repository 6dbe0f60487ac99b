/* The wall clock, an hour ahead (LD_PRELOAD). Other clocks are as they are. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define AHEAD 3600

int clock_gettime(clockid_t which, struct timespec *found)
{
	long failed = syscall(SYS_clock_gettime, which, found);

	if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
		found->tv_sec += AHEAD;
	return (int)failed;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone)
{
	struct timespec now;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &now);
	found->tv_sec = now.tv_sec;
	found->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *found)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (found)
		*found = now.tv_sec;
	return now.tv_sec;
}
