/* LD_PRELOAD shim: the reference "relay-free program" of the throughput benchmark.
 *
 * It turns the TCP sockets of an unmodified iperf into AF_UNIX stream sockets with the same send buffer that
 * AppSwitch gives its ends. Only control calls are touched, at listen(), connect() and accept(); read() and write()
 * are libc's own, so the data path is exactly "iperf over a Unix pair".
 *
 * Environment: UNIXPAIR_PATH (path of the socket file), UNIXPAIR_SNDBUF (bytes asked for on both ends).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int level_of(int fd, int name)
{
	int value = -1;
	socklen_t length = sizeof value;
	int (*next)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");

	return next(fd, SOL_SOCKET, name, &value, &length) < 0 ? -1 : value;
}

static int is_inet_stream(int fd)
{
	int domain = level_of(fd, SO_DOMAIN);

	return (domain == AF_INET || domain == AF_INET6) && level_of(fd, SO_TYPE) == SOCK_STREAM;
}

static int is_unix(int fd)
{
	return level_of(fd, SO_DOMAIN) == AF_UNIX;
}

static void widen(int fd)
{
	const char *text = getenv("UNIXPAIR_SNDBUF");
	int bytes = text ? atoi(text) : 4 << 20;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) < 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

static int unix_socket(struct sockaddr_un *name)
{
	const char *path = getenv("UNIXPAIR_PATH");

	if (!path || strlen(path) >= sizeof name->sun_path) {
		errno = EINVAL;
		return -1;
	}
	memset(name, 0, sizeof *name);
	name->sun_family = AF_UNIX;
	strcpy(name->sun_path, path);
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

/* iperf prints the addresses, so it must see inet ones. */
static void pretend(struct sockaddr *address, socklen_t *length)
{
	struct sockaddr_in fake = { .sin_family = AF_INET, .sin_port = htons(5001) };

	if (!address || !length)
		return;
	fake.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	memcpy(address, &fake, *length < sizeof fake ? *length : sizeof fake);
	*length = sizeof fake;
}

int listen(int fd, int backlog)
{
	int (*next)(int, int) = dlsym(RTLD_NEXT, "listen");
	struct sockaddr_un name;
	int own;

	if (!is_inet_stream(fd))
		return next(fd, backlog);
	own = unix_socket(&name);
	if (own < 0)
		return -1;
	unlink(name.sun_path);
	if (bind(own, (struct sockaddr *)&name, sizeof name) < 0 || next(own, backlog) < 0) {
		close(own);
		return -1;
	}
	dup2(own, fd);
	close(own);
	return 0;
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
	int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
	struct sockaddr_un name;
	int own;

	if (!is_inet_stream(fd))
		return next(fd, address, length);
	own = unix_socket(&name);
	if (own < 0)
		return -1;
	if (next(own, (struct sockaddr *)&name, sizeof name) < 0) {
		close(own);
		return -1;
	}
	widen(own);
	dup2(own, fd);
	close(own);
	return 0;
}

int accept(int fd, struct sockaddr *address, socklen_t *length)
{
	int (*next)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "accept");
	int end;

	if (!is_unix(fd))
		return next(fd, address, length);
	end = next(fd, NULL, NULL);
	if (end >= 0) {
		widen(end);
		pretend(address, length);
	}
	return end;
}

int getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
	int (*next)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "getsockname");

	if (!is_unix(fd))
		return next(fd, address, length);
	pretend(address, length);
	return 0;
}

int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
	int (*next)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "getpeername");

	if (!is_unix(fd))
		return next(fd, address, length);
	pretend(address, length);
	return 0;
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
	int (*next)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");

	return level == IPPROTO_TCP && is_unix(fd) ? 0 : next(fd, level, name, value, length);
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
	int (*next)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");

	if (level != IPPROTO_TCP || !is_unix(fd))
		return next(fd, level, name, value, length);
	memset(value, 0, *length);
	return 0;
}
