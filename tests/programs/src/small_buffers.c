/* SO_SNDBUF gives no more than net.core.wmem_max of most kernels before 6.17 allows (LD_PRELOAD). */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static const int most = 212992;

int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
	if (level == SOL_SOCKET && name == SO_SNDBUF && size == sizeof most && *(const int *)value > most)
		value = &most;
	return (int)syscall(SYS_setsockopt, fd, level, name, value, size);
}
