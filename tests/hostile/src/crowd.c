/* Very many threads in accept() on one listener: `crowd COUNT PORT`.
 *
 * Says "waiting N" when N, all that the system allows, are about to call, then answers each line of its input: "served" with the number of
 * connections accepted and greeted so far, "shut" after it has shut the listener down and all threads have heard of
 * it, with how many got EINVAL. Plain calls, nothing of AppSwitch's. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static int listener;
static atomic_int served, invalid, others;

static void *serve(void *unused)
{
	(void)unused;
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0) {
			atomic_fetch_add(errno == EINVAL ? &invalid : &others, 1);
			return NULL;
		}
		if (write(fd, "hello", 5) == 5)
			atomic_fetch_add(&served, 1);
		close(fd);
	}
}

int main(int argc, char **argv)
{
	int count = argc == 3 ? atoi(argv[1]) : 0;
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(argc == 3 ? atoi(argv[2]) : 0)};
	pthread_t *threads = calloc(count, sizeof *threads);
	pthread_attr_t small;
	char line[16];
	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) {
		perror("listen");
		return 2;
	}
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], &small, serve, NULL))
			count = i;
	printf("waiting %d\n", count);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "shut\n")) {
			shutdown(listener, SHUT_RDWR);
			for (int i = 0; i < count; i++)
				pthread_join(threads[i], NULL);
			printf("shut %d %d\n", invalid, others);
		} else
			printf("served %d\n", served);
	}
	return 0;
}
