/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many threads in socket calls at once; each line of output is a JSON value.
 *
 *	crowd accept ADDRESS PORT THREADS
 *		all wait in accept on one listener; after a line of input each gets a connection
 *	crowd connect ADDRESS PORT THREADS
 *		all connect at the same time, again and again until a line of input comes
 *	crowd signal ADDRESS PORT THREADS
 *		as accept, while a signal of the process comes every millisecond for two seconds
 *		(half of that with SA_RESTART); whoever is interrupted calls again
 *
 * At the end an object: how often which errno was seen, 0 for success.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define ERRNOS 1024	/* more than the kernel has: 512 and above must not be seen */
#define STACK_BYTES (64 << 10)

static struct sockaddr_in server;
static int listener = -1;
static atomic_int seen[ERRNOS], inside;
static atomic_bool is_over;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int count(int result)
{
	int code = result < 0 ? errno : 0;

	seen[code < ERRNOS ? code : ERRNOS - 1]++;
	return result;
}

static void *take(void *unused)
{
	int fd;

	inside++;
	do
		fd = count(accept(listener, NULL, NULL));
	while (fd < 0 && errno == EINTR);
	if (fd >= 0)
		close(fd);
	inside--;
	return unused;
}

static void *visit(void *unused)
{
	inside++;
	while (!is_over) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		count(connect(fd, (struct sockaddr *)&server, sizeof(server)));
		close(fd);
	}
	inside--;
	return unused;
}

static void on_alarm(int number)
{
	(void)number;
}

/* SIGALRM is of the process: one of the threads that wait gets it, since main() blocks it. */
static void ring(int flags)
{
	struct itimerval every = { { 0, 1000 }, { 0, 1000 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = flags };

	if (sigaction(SIGALRM, &action, NULL) || setitimer(ITIMER_REAL, &every, NULL))
		die("setitimer");
	for (int n = 0; n < 1000; n++)
		poll(NULL, 0, 1);
	setitimer(ITIMER_REAL, &never, NULL);
}

static void listen_here(void)
{
	int yes = 1;

	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (bind(listener, (struct sockaddr *)&server, sizeof(server)) || listen(listener, 4096))
		die("listen");
}

static void connect_to_all(int threads)
{
	for (int n = 0; n < threads; n++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (connect(fd, (struct sockaddr *)&server, sizeof(server)))
			die("connect");
		close(fd);
	}
}

int main(int argc, char **argv)
{
	int threads = argc == 5 ? atoi(argv[4]) : 0, is_visiting;
	pthread_attr_t small;
	sigset_t alarms;
	pthread_t *ids;
	char line[16];

	server.sin_family = AF_INET;
	if (threads < 1 || inet_pton(AF_INET, argv[2], &server.sin_addr) != 1)
		return 2;
	server.sin_port = htons(atoi(argv[3]));
	is_visiting = !strcmp(argv[1], "connect");
	if (!is_visiting)
		listen_here();
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK_BYTES);
	ids = calloc(threads, sizeof(*ids));
	for (int n = 0; n < threads; n++) {
		if (pthread_create(&ids[n], &small, is_visiting ? visit : take, NULL))
			die("pthread_create");
	}
	while (inside < threads)
		poll(NULL, 0, 1);
	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarms, NULL);
	printf("%d\n", threads);
	fflush(stdout);
	if (!strcmp(argv[1], "signal")) {
		ring(SA_RESTART);
		ring(0);
	} else if (!fgets(line, sizeof(line), stdin)) {
		return 1;
	}
	is_over = 1;
	if (!is_visiting)
		connect_to_all(threads);
	for (int n = 0; n < threads; n++)
		pthread_join(ids[n], NULL);
	printf("{");
	for (int code = 0, first = 1; code < ERRNOS; code++) {
		if (seen[code]) {
			printf("%s\"%d\": %d", first ? "" : ", ", code, (int)seen[code]);
			first = 0;
		}
	}
	puts("}");
	return 0;
}
