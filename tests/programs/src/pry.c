/* Ways past the trap handler that need machine code or two threads. One line of JSON on standard output, then it
 * waits for the end of standard input, so that whoever started it can look at its sockets.
 *
 *   pry tables HOST PORT                        connect by the system call tables of i386 and x32
 *   pry address TRIES HOST PORT HOST PORT       connect() while another thread rewrites the address: one or the other
 *   pry native TRIES HOST PORT [hasty]          connect() while another thread exchanges a Unix socket for a TCP one;
 *                                               hasty: do not go on until that is seen to have worked
 *   pry outside TRIES HOST PORT HOST PORT [COVER]
 *                                               the same with a socket connected to the first address: set it free
 *                                               by AF_UNSPEC, then connect it to the second, listen, bind, ask it.
 *                                               COVER: unix (as a rule) or udp, what the handler is to see; end: as
 *                                               unix, for a first address that is under the same switch
 *   pry acceptor TRIES HOST PORT                fill the port 1 of its own loopback with connections made as by
 *                                               `native`, and connect to the address in between
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <net/if.h>

#define SLOT 100
#define SIOCGSKNS 0x894C

static struct sockaddr_in address_of(const char *host, const char *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
		fprintf(stderr, "%s is no address\n", host);
		exit(2);
	}
	return address;
}

/* How often a call ended how. */
struct tally {
	int done, by_errno[256];
};

static void count(struct tally *tally, long result)
{
	if (result >= 0)
		tally->done++;
	else
		tally->by_errno[errno & 255]++;
}

static void show(const char *name, const struct tally *tally)
{
	printf("\"%s\": {\"done\": %d", name, tally->done);
	for (int i = 0; i < 256; i++)
		if (tally->by_errno[i])
			printf(", \"%s\": %d", strerrorname_np(i), tally->by_errno[i]);
	printf("}");
}

static void wait_for_end_of_input(void)
{
	char byte;
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
}

/* The system call tables of i386 and x32. ---------------------------------------------------------------- */

#ifdef __x86_64__
static long by_int80(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static long tables_attempt(int which, struct sockaddr_in *address, uint32_t *words)
{
	enum { I386_SOCKETCALL = 102, I386_SOCKET = 359, I386_CONNECT = 362, X32 = 0x40000000 };
	long fd, result;
	switch (which) {
	case 0: /* socketcall(SYS_SOCKET), then SYS_CONNECT */
		words[0] = AF_INET, words[1] = SOCK_STREAM, words[2] = 0;
		fd = by_int80(I386_SOCKETCALL, 1, (long)words, 0);
		if (fd < 0)
			return fd;
		words[0] = fd, words[1] = (uint32_t)(long)address, words[2] = sizeof *address;
		return by_int80(I386_SOCKETCALL, 3, (long)words, 0);
	case 1: /* the direct calls */
		fd = by_int80(I386_SOCKET, AF_INET, SOCK_STREAM, 0);
		return fd < 0 ? fd : by_int80(I386_CONNECT, fd, (long)address, sizeof *address);
	case 2: /* a socket made in the plain way */
		fd = socket(AF_INET, SOCK_STREAM, 0);
		return by_int80(I386_CONNECT, fd, (long)address, sizeof *address);
	default:
		fd = which == 3 ? syscall(X32 | SYS_socket, AF_INET, SOCK_STREAM, 0) : socket(AF_INET, SOCK_STREAM, 0);
		if (fd < 0)
			return -errno;
		result = syscall(X32 | SYS_connect, fd, address, sizeof *address);
		return result < 0 ? -errno : result;
	}
}

static void tables(struct sockaddr_in address)
{
	static const char *names[] = {"socketcall", "i386", "i386 connect", "x32", "x32 connect"};
	/* where 32 bits reach */
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_in *copy = memcpy(low, &address, sizeof address);
	for (int which = 0; which < 5; which++) {
		/* in a child each, for a kernel without the table may kill it */
		fflush(stdout);
		pid_t child = fork();
		int status;
		if (child == 0)
			_exit(-tables_attempt(which, copy, (uint32_t *)(low + 64)) & 255);
		waitpid(child, &status, 0);
		printf("%s\"%s\": \"%s\"", which ? ", " : "", names[which],
		       WIFSIGNALED(status)      ? sigabbrev_np(WTERMSIG(status))
		       : WEXITSTATUS(status) == 0 ? "done"
						  : strerrorname_np(WEXITSTATUS(status)));
	}
}
#else
static void tables(struct sockaddr_in address)
{
	(void)address;
	printf("\"none\": \"\"");
}
#endif

/* An address that changes. -------------------------------------------------------------------------------- */

static struct sockaddr_in either[2];
static union {
	struct sockaddr_in address;
	_Atomic uint64_t whole; /* family, port and host at once: never a mixture of both */
} shared;
static atomic_int stop;

static void *rewrite(void *unused)
{
	uint64_t values[2];
	(void)unused;
	for (int i = 0; i < 2; i++)
		memcpy(&values[i], &either[i], sizeof values[i]);
	for (unsigned i = 0; !stop; i++) {
		atomic_store(&shared.whole, values[i & 1]);
		for (volatile unsigned n = i % 1024; n; n--)
			;
	}
	return NULL;
}

/* A race is run as often as asked for, and on until it is won: on a busy machine for a minute. On one core it is won
 * between two time slices natively, and hardly ever with a handler in the way. */
#define PATIENCE 60
#define PATIENCE_ON_ONE_CORE 5
static struct timespec begun;
static int hasty;

static int again(int i, int tries, int won)
{
	struct timespec now;
	cpu_set_t cores;
	if (i < tries || hasty)
		return i < tries;
	clock_gettime(CLOCK_MONOTONIC, &now);
	sched_getaffinity(0, sizeof cores, &cores);
	return !won && now.tv_sec - begun.tv_sec < (CPU_COUNT(&cores) > 1 ? PATIENCE : PATIENCE_ON_ONE_CORE);
}

static void with_changing_address(int tries)
{
	struct tally tally = {0};
	int reached[2] = {0, 0};
	pthread_t thread;
	pthread_create(&thread, NULL, rewrite, NULL);
	for (int i = 0, both = 0; again(i, tries, both); i++) {
		struct sockaddr_in peer;
		socklen_t length = sizeof peer;
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		long result = connect(fd, (struct sockaddr *)&shared.address, sizeof shared.address);
		count(&tally, result);
		if (result == 0 && getpeername(fd, (struct sockaddr *)&peer, &length) == 0)
			for (int n = 0; n < 2; n++)
				reached[n] += !memcmp(&peer.sin_addr, &either[n].sin_addr, 4) && peer.sin_port == either[n].sin_port;
		close(fd);
		/* seen both ways: natively both are reached, else one is and the other refused */
		both = reached[0] && (reached[1] || tally.done <= i);
	}
	stop = 1;
	pthread_join(thread, NULL);
	show("connect", &tally);
	printf(", \"reached\": [%d, %d]", reached[0], reached[1]);
}

/* A descriptor that changes. ------------------------------------------------------------------------------ */

static int seen, used; /* what the handler is to see, what the kernel is to take */

static void *exchange(void *unused)
{
	(void)unused;
	for (unsigned i = 0; !stop; i++) {
		dup2(i & 1 ? used : seen, SLOT);
		for (volatile unsigned n = i % 2048; n; n--)
			;
	}
	return NULL;
}

static pthread_t exchanging;

static void begin_exchange(void)
{
	stop = 0;
	dup2(seen, SLOT);
	pthread_create(&exchanging, NULL, exchange, NULL);
}

static void end_exchange(void)
{
	stop = 1;
	pthread_join(exchanging, NULL);
	close(SLOT);
}

static int cover(const char *kind)
{
	return kind && !strcmp(kind, "udp") ? socket(AF_INET, SOCK_DGRAM, 0) : socket(AF_UNIX, SOCK_STREAM, 0);
}

static int state_of(int fd)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof info;
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) ? -1 : info.tcpi_state;
}

static struct tally connecting(int tries, struct sockaddr_in to)
{
	struct tally tally = {0};
	begin_exchange();
	/* not won by what succeeds with the cover, as a connect of UDP does */
	for (int i = 0; i < tries || again(i, tries, tally.by_errno[EACCES] || state_of(used) == TCP_ESTABLISHED); i++)
		count(&tally, connect(SLOT, (struct sockaddr *)&to, sizeof to));
	end_exchange();
	return tally;
}

static void native(int tries, struct sockaddr_in to)
{
	seen = cover("unix"), used = socket(AF_INET, SOCK_STREAM, 0);
	struct tally tally = connecting(tries, to);
	show("connect", &tally);
	printf(", \"state\": %d", state_of(used));
}

static void outside(int tries, struct sockaddr_in allowed, struct sockaddr_in to, const char *kind)
{
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct sockaddr_in any = {.sin_family = AF_INET};
	struct tally freed = {0}, listened = {0}, bound = {0}, told = {0}, set = {0}, plain = {0};
	int names = 0, freed_at = 0;
	hasty = kind && !strcmp(kind, "end");
	seen = cover(kind), used = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(used, (struct sockaddr *)&allowed, sizeof allowed)) {
		perror("connect");
		exit(2);
	}

	/* Its questions first, while it is connected. */
	begin_exchange();
	for (int i = 0; i < tries / 4; i++) {
		struct ifreq request = {.ifr_ifindex = 2};
		names += ioctl(SLOT, SIOCGIFNAME, &request) == 0 && strcmp(request.ifr_name, "lo") && strcmp(request.ifr_name, "as0");
		count(&told, ioctl(SLOT, SIOCGSKNS));
	}
	end_exchange();
	show("SIOCGSKNS", &told);
	printf(", \"host names\": %d, ", names);

	begin_exchange();
	for (int i = 0; state_of(used) != TCP_CLOSE && again(i, tries, 0); i++) {
		count(&freed, connect(SLOT, &none, sizeof none));
		freed_at = i + 1;
	}
	end_exchange();
	show("AF_UNSPEC", &freed);
	printf(", \"freed at\": %d, \"state\": %d, ", freed_at, state_of(used));

	begin_exchange();
	for (int i = 0; i < tries / 4; i++)
		count(&set, setsockopt(SLOT, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
	end_exchange();
	show("SO_BINDTODEVICE", &set);
	printf(", ");

	struct tally tally = connecting(tries, to);
	show("connect", &tally);
	printf(", \"state then\": %d, ", state_of(used));
	begin_exchange();
	for (int i = 0; i < tries; i++)
		count(&listened, listen(SLOT, 5));
	end_exchange();
	show("listen", &listened);
	printf(", ");
	begin_exchange();
	for (int i = 0; i < tries / 4; i++)
		count(&bound, bind(SLOT, (struct sockaddr *)&any, sizeof any));
	end_exchange();
	show("bind", &bound);
	printf(", ");
	count(&plain, listen(used, 5));
	count(&plain, bind(used, (struct sockaddr *)&any, sizeof any));
	count(&plain, connect(used, (struct sockaddr *)&to, sizeof to));
	show("plain", &plain);
	printf(", \"state at last\": %d", state_of(used));
}

static void acceptor(int tries, struct sockaddr_in service)
{
	struct sockaddr_in one = {.sin_family = AF_INET, .sin_port = htons(1), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct tally tally = {0}, served = {0};
	int strangers = 0, ended = 0;
	char byte;
	seen = cover("unix"), used = socket(AF_INET, SOCK_STREAM, 0);
	begin_exchange();
	for (int i = 0; again(i, tries, tally.done || tally.by_errno[EACCES]); i++) {
		count(&tally, connect(SLOT, (struct sockaddr *)&one, sizeof one));
		if (state_of(used) == TCP_ESTABLISHED && strangers < 100) {
			strangers++;
			used = socket(AF_INET, SOCK_STREAM, 0); /* the other one stays open */
		}
		if (i < tries && i % (tries / 20) == 0) {
			int fd = socket(AF_INET, SOCK_STREAM, 0);
			long result = connect(fd, (struct sockaddr *)&service, sizeof service);
			count(&served, result);
			if (result == 0)
				ended += read(fd, &byte, 1) == 0;
			close(fd);
		}
	}
	end_exchange();
	show("connect", &tally);
	printf(", \"strangers\": %d, ", strangers);
	show("service", &served);
	printf(", \"ended\": %d", ended);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	clock_gettime(CLOCK_MONOTONIC, &begun);
	printf("{");
	if (argc == 4 && !strcmp(what, "tables"))
		tables(address_of(argv[2], argv[3]));
	else if (argc == 7 && !strcmp(what, "address")) {
		either[0] = address_of(argv[3], argv[4]), either[1] = address_of(argv[5], argv[6]);
		shared.address = either[0];
		with_changing_address(atoi(argv[2]));
	} else if ((argc == 5 || argc == 6) && !strcmp(what, "native")) {
		hasty = argc == 6;
		native(atoi(argv[2]), address_of(argv[3], argv[4]));
	} else if (argc == 5 && !strcmp(what, "acceptor"))
		acceptor(atoi(argv[2]), address_of(argv[3], argv[4]));
	else if ((argc == 7 || argc == 8) && !strcmp(what, "outside"))
		outside(atoi(argv[2]), address_of(argv[3], argv[4]), address_of(argv[5], argv[6]), argv[7]);
	else
		return 2;
	printf("}\n");
	wait_for_end_of_input();
	return 0;
}
