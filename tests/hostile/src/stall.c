/* A program that makes whoever looks after its calls wait: its memory, sockets and epolls answer when it likes.
 *
 * `stall HOW ADDRESS PORT` makes one such call to a service and says "stalled" just before, and the errno of the
 * call when it is over. Memory is held back by userfaultfd(2), which nobody serves. Of HOW:
 *   read    the address of a connect() is there
 *   write   getsockname() is to write there
 *   lock    a send() from there holds the socket's lock, and another connect() needs that
 *   epoll   an epoll_wait() that delivers there holds the epoll's lock, and a connect() of what is in it needs that
 *   native  the same lock keeps a setsockopt() waiting that is the kernel's own, while another thread accepts
 * Each begins anew for every line of its input. Plain calls, nothing of AppSwitch's. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct sockaddr_in service;

static void need(int right, const char *what)
{
	if (!right) {
		perror(what);
		exit(2);
	}
}

/* Memory that is there for nobody. */
static void *missing(void)
{
	long page = sysconf(_SC_PAGESIZE);
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	need(fd >= 0, "userfaultfd");
	struct uffdio_api api = {.api = UFFD_API};
	need(ioctl(fd, UFFDIO_API, &api) == 0, "UFFDIO_API");
	void *memory = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED, "mmap");
	struct uffdio_register range = {
	    .range = {.start = (unsigned long)memory, .len = page}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	need(ioctl(fd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
	return memory;
}

struct job {
	long number, arguments[6];
	atomic_int tid;
	pthread_t thread;
};

static void *held(void *given)
{
	struct job *job = given;
	long *with = job->arguments;
	job->tid = gettid();
	syscall(job->number, with[0], with[1], with[2], with[3], with[4], with[5]);
	return NULL;
}

/* Start a thread that will be held in a system call, and wait until it sleeps there (proc_pid_syscall(5)). */
static void hold(long number, int fd, long second, long third, long fourth)
{
	char path[64], text[64] = "";
	struct job *job = malloc(sizeof *job);
	*job = (struct job){.number = number, .arguments = {fd, second, third, fourth}};
	pthread_create(&job->thread, NULL, held, job);
	while (!job->tid)
		usleep(1000);
	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", job->tid);
	while (atol(text) != number) {
		FILE *file = fopen(path, "r");
		need(file != NULL && fgets(text, sizeof text, file) != NULL, path);
		fclose(file);
		usleep(1000);
	}
}

static void hold_lock_of_socket(int fd)
{
	hold(SYS_sendto, fd, (long)missing(), 4096, 0);
}

static int stalled_call(const char *how)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t length = sizeof service;
	if (!strcmp(how, "read")) {
		void *memory = missing();
		printf("stalled\n");
		return connect(fd, memory, sizeof service);
	}
	if (!strcmp(how, "write")) {
		need(connect(fd, (struct sockaddr *)&service, sizeof service) == 0, "connect");
		void *memory = missing();
		printf("stalled\n");
		return getsockname(fd, memory, &length);
	}
	if (!strcmp(how, "lock")) {
		need(connect(fd, (struct sockaddr *)&service, sizeof service) == 0, "connect");
		hold_lock_of_socket(fd);
		printf("stalled\n");
		return connect(fd, (struct sockaddr *)&service, sizeof service);
	}
	if (!strcmp(how, "epoll")) {
		int epoll = epoll_create1(0);
		struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLHUP};
		need(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
		hold(SYS_epoll_pwait, epoll, (long)missing(), 4, -1);
		printf("stalled\n");
		return connect(fd, (struct sockaddr *)&service, sizeof service);
	}
	if (!strcmp(how, "native")) {
		int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
		need(listen(listener, 1) == 0, "listen");
		hold(SYS_accept, listener, 0, 0, 0);
		need(connect(fd, (struct sockaddr *)&service, sizeof service) == 0, "connect");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		hold_lock_of_socket(fd);
		printf("stalled\n");
		return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	}
	exit(2);
}

int main(int argc, char **argv)
{
	char line[16];
	if (argc != 4)
		return 2;
	service = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
	need(inet_pton(AF_INET, argv[2], &service.sin_addr) == 1, "address");
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		int result = stalled_call(argv[1]);
		printf("%s\n", result ? strerrorname_np(errno) : "done");
	}
	return 0;
}
