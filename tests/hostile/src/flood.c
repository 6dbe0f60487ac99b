/* Calls without end from very many threads: `flood THREADS`. Says "flooding" when all have begun. Each asks a
 * TCP socket of the program's own for its name. */

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int fd;
static volatile int over;
static pthread_barrier_t begun;

static void *ask(void *unused)
{
	struct sockaddr_in name;
	socklen_t length;
	(void)unused;
	pthread_barrier_wait(&begun);
	while (!over) {
		length = sizeof name;
		getsockname(fd, (struct sockaddr *)&name, &length);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int count = argc == 2 ? atoi(argv[1]) : 0;
	pthread_t thread;
	fd = socket(AF_INET, SOCK_STREAM, 0);
	pthread_barrier_init(&begun, NULL, count + 1);
	for (int i = 0; i < count; i++)
		if (pthread_create(&thread, NULL, ask, NULL))
			return 2;
	pthread_barrier_wait(&begun);
	printf("flooding\n");
	fflush(stdout);
	pause();
	return 0;
}
