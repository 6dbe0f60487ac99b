/* Client and server of the transaction benchmark: connect + accept + 1 byte each way + close.
 *
 *   transact server ADDRESS PORT blocking|polling|echo
 *   transact client HOST PORT WARM_UP COUNT
 *   transact exchange HOST PORT WARM_UP COUNT
 *
 * The client prints one line for each of COUNT transactions: nanoseconds in socket()+connect(), in the exchange of the
 * two bytes, and in close(). The server answers byte + 1, so that the client can tell that it was really heard.
 * `exchange` does it all on one connection, to an `echo` server, and prints the nanoseconds of each exchange.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "transact: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int listener(const char *address, const char *port, int flags)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0), one = 1;

	if (fd < 0)
		die("socket");
	if (inet_pton(AF_INET, address, &name.sin_addr) != 1)
		die(address);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&name, sizeof name) < 0)
		die("bind");
	if (listen(fd, 128) < 0)
		die("listen");
	return fd;
}

static void serve_blocking(int fd)
{
	for (;;) {
		unsigned char byte;
		int end = accept(fd, NULL, NULL);

		if (end < 0)
			die("accept");
		if (read(end, &byte, 1) == 1) {
			byte++;
			if (write(end, &byte, 1) != 1)
				die("write");
		}
		close(end);
	}
}

/* One connection after the other, each until its client closes it. */
static void serve_echo(int fd)
{
	for (;;) {
		unsigned char byte;
		int end = accept(fd, NULL, NULL);

		if (end < 0)
			die("accept");
		while (read(end, &byte, 1) == 1) {
			byte++;
			if (write(end, &byte, 1) != 1)
				die("write");
		}
		close(end);
	}
}

/* Answers what has arrived and closes; 0 when nothing has arrived yet. */
static int answer(int end)
{
	unsigned char byte;
	ssize_t got = read(end, &byte, 1);

	if (got < 0 && errno == EAGAIN)
		return 0;
	if (got == 1) {
		byte++;
		if (write(end, &byte, 1) != 1)
			die("write");
	}
	close(end);
	return 1;
}

static void serve_polling(int fd)
{
	int poller = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd }, ready[16];

	if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
		die("epoll");
	for (;;) {
		int count = epoll_wait(poller, ready, 16, -1);

		for (int i = 0; i < count; i++) {
			int end = ready[i].data.fd;

			if (end != fd) {
				answer(end);
				continue;
			}
			end = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
			if (end < 0) {
				if (errno != EAGAIN)
					die("accept4");
				continue;
			}
			event.data.fd = end;
			if (!answer(end) && epoll_ctl(poller, EPOLL_CTL_ADD, end, &event) < 0)
				die("epoll_ctl");
		}
	}
}

static struct addrinfo *resolve(const char *host, const char *port)
{
	struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
	int failed = getaddrinfo(host, port, &hints, &found);

	if (failed) {
		fprintf(stderr, "transact: %s: %s\n", host, gai_strerror(failed));
		exit(1);
	}
	return found;
}

static int connected_to(const struct addrinfo *where)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	if (connect(fd, where->ai_addr, where->ai_addrlen) < 0)
		die("connect");
	return fd;
}

/* Sends a byte and awaits the next one. */
static void exchange_byte(int fd, unsigned char byte)
{
	unsigned char back = 0;

	if (write(fd, &byte, 1) != 1)
		die("write");
	if (read(fd, &back, 1) != 1)
		die("read");
	if (back != byte + 1) {
		fprintf(stderr, "transact: a wrong byte came back\n");
		exit(1);
	}
}

static void exchange(const char *host, const char *port, int warm_up, int count)
{
	int64_t *taken = calloc(count, sizeof *taken);
	int fd = connected_to(resolve(host, port)), one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	for (int i = -warm_up; i < count; i++) {
		int64_t begin = now();

		exchange_byte(fd, 'a' + (i & 7));
		if (i >= 0)
			taken[i] = now() - begin;
	}
	for (int i = 0; i < count; i++)
		printf("%lld\n", (long long)taken[i]);
}

static void client(const char *host, const char *port, int warm_up, int count)
{
	int64_t (*taken)[3] = calloc(count, sizeof *taken);
	struct addrinfo *found = resolve(host, port);

	for (int i = -warm_up; i < count; i++) {
		int64_t begin = now(), connected, answered, closed;
		int fd = connected_to(found);

		connected = now();
		exchange_byte(fd, 'a' + (i & 7));
		answered = now();
		close(fd);
		closed = now();
		if (i >= 0) {
			taken[i][0] = connected - begin;
			taken[i][1] = answered - connected;
			taken[i][2] = closed - answered;
		}
	}
	for (int i = 0; i < count; i++)
		printf("%lld %lld %lld\n", (long long)taken[i][0], (long long)taken[i][1], (long long)taken[i][2]);
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "server") && !strcmp(argv[4], "blocking"))
		serve_blocking(listener(argv[2], argv[3], 0));
	else if (argc == 5 && !strcmp(argv[1], "server") && !strcmp(argv[4], "polling"))
		serve_polling(listener(argv[2], argv[3], SOCK_NONBLOCK));
	else if (argc == 5 && !strcmp(argv[1], "server") && !strcmp(argv[4], "echo"))
		serve_echo(listener(argv[2], argv[3], 0));
	else if (argc == 6 && !strcmp(argv[1], "exchange"))
		exchange(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]));
	else if (argc == 6 && !strcmp(argv[1], "client"))
		client(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]));
	else {
		fprintf(stderr, "usage: transact server ADDRESS PORT blocking|polling|echo |"
				" client|exchange HOST PORT WARM_UP COUNT\n");
		return 2;
	}
	return 0;
}
