/* Peers of the UDP benchmark.
 *
 *   udp echo ADDRESS PORT                            answers each datagram with itself
 *   udp ask HOST PORT WARM_UP COUNT SIZE             nanoseconds of each of COUNT exchanges, a line each
 *   udp sink ADDRESS PORT                            counts; prints "datagrams nanoseconds" once an empty one came
 *   udp flood HOST PORT SECONDS SIZE                 sends as fast as it can, then empty ones; prints how many it sent
 *   udp trap COUNT                                   nanoseconds of each of COUNT getsockname() on a UDP socket
 *
 * `ask` sends again what is not answered within a second, and begins anew.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char buffer[65536];

static void die(const char *what)
{
	fprintf(stderr, "udp: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int bound(const char *address, const char *port)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		die("socket");
	if (inet_pton(AF_INET, address, &name.sin_addr) != 1)
		die(address);
	if (bind(fd, (struct sockaddr *)&name, sizeof name) < 0)
		die("bind");
	return fd;
}

static int connected(const char *host, const char *port)
{
	struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_DGRAM }, *found;
	struct timeval second = { .tv_sec = 1 };
	int failed = getaddrinfo(host, port, &hints, &found), fd;

	if (failed) {
		fprintf(stderr, "udp: %s: %s\n", host, gai_strerror(failed));
		exit(1);
	}
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0)
		die("socket");
	if (connect(fd, found->ai_addr, found->ai_addrlen) < 0)
		die("connect");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
	return fd;
}

static void echo(int fd)
{
	for (;;) {
		struct sockaddr_storage peer;
		socklen_t length = sizeof peer;
		ssize_t got = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&peer, &length);

		if (got < 0)
			die("recvfrom");
		sendto(fd, buffer, got, 0, (struct sockaddr *)&peer, length);
	}
}

static void ask(int fd, int warm_up, int count, int size)
{
	int64_t *taken = calloc(count, sizeof *taken);

	for (int i = -warm_up; i < count; i++) {
		int64_t begin = now();

		memcpy(buffer, &i, sizeof i);
		if (send(fd, buffer, size, 0) != size)
			die("send");
		for (;;) {
			int answer;
			ssize_t got = recv(fd, buffer, sizeof buffer, 0);

			if (got < 0 && errno == EAGAIN) {
				begin = now();
				memcpy(buffer, &i, sizeof i);
				send(fd, buffer, size, 0);
				continue;
			}
			if (got < 0)
				die("recv");
			memcpy(&answer, buffer, sizeof answer);
			if (answer == i)
				break;
		}
		if (i >= 0)
			taken[i] = now() - begin;
	}
	for (int i = 0; i < count; i++)
		printf("%lld\n", (long long)taken[i]);
}

static void sink(int fd)
{
	for (;;) {
		int64_t begin = 0, last = 0;
		long count = 0;

		for (;;) {
			ssize_t got = recv(fd, buffer, sizeof buffer, 0);

			if (got < 0)
				die("recv");
			if (got == 0) {
				if (count)
					break;
				continue;
			}
			last = now();
			if (!begin)
				begin = last;
			count++;
		}
		printf("%ld %lld\n", count, (long long)(last - begin));
		fflush(stdout);
	}
}

static void flood(int fd, double seconds, int size)
{
	int64_t end = now() + (int64_t)(seconds * 1e9);
	long sent = 0;

	while (now() < end)
		for (int i = 0; i < 16; i++)
			sent += send(fd, buffer, size, 0) == size;
	for (int i = 0; i < 10; i++) {
		usleep(20000);
		send(fd, buffer, 0, 0);
	}
	printf("%ld\n", sent);
}

static void trap(int count)
{
	int64_t *taken = calloc(count, sizeof *taken);
	int fd = bound("127.0.0.1", "0");

	for (int i = 0; i < count; i++) {
		struct sockaddr_in name;
		socklen_t length = sizeof name;
		int64_t begin = now();

		if (getsockname(fd, (struct sockaddr *)&name, &length) < 0)
			die("getsockname");
		taken[i] = now() - begin;
	}
	for (int i = 0; i < count; i++)
		printf("%lld\n", (long long)taken[i]);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "echo"))
		echo(bound(argv[2], argv[3]));
	else if (argc == 7 && !strcmp(argv[1], "ask"))
		ask(connected(argv[2], argv[3]), atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
	else if (argc == 4 && !strcmp(argv[1], "sink"))
		sink(bound(argv[2], argv[3]));
	else if (argc == 6 && !strcmp(argv[1], "flood"))
		flood(connected(argv[2], argv[3]), atof(argv[4]), atoi(argv[5]));
	else if (argc == 3 && !strcmp(argv[1], "trap"))
		trap(atoi(argv[2]));
	else
		fprintf(stderr, "udp: see the head of udp.c\n");
	return argc < 2;
}
