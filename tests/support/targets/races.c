/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that connect, bind, listen, accept and ask for names while others change the address
 * under the calls and put other files behind the fds.
 *
 *	races ADDRESS PORT SECONDS	an IPv4 server to connect to
 *
 * Prints one line as JSON: how often which errno came of a connect, 0 for success.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ERRNOS 1024	/* more than the kernel has: 512 and above must not be seen */
#define CALLERS 12
#define SHARED 900	/* fd numbers that everybody exchanges and closes */

static struct sockaddr_in server;
static union {
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	unsigned char bytes[128];
} target;
static socklen_t length = sizeof(target.in);
static atomic_int seen[ERRNOS];
static atomic_bool is_over;

static void count(int result)
{
	int code = result < 0 ? errno : 0;

	seen[code < ERRNOS ? code : ERRNOS - 1]++;
}

static void *write_addresses(void *unused)
{
	unsigned turn = 0;

	while (!is_over) {
		switch (turn++ % 8) {
		case 0: case 1: case 2:
			target.in = server;
			break;
		case 3:
			target.in.sin_family = AF_UNSPEC;
			break;
		case 4:
			target.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
			break;
		case 5:
			target.in6.sin6_family = AF_INET6;
			break;
		case 6:
			memset(target.bytes, turn, sizeof(target.bytes));
			break;
		case 7:
			target.in.sin_port = 0;
			break;
		}
		length = turn % 5 ? sizeof(target.in) : turn % 140;
		usleep(turn % 3 * 20);
	}
	return unused;
}

static void *change_files(void *unused)
{
	unsigned turn = 0;

	while (!is_over) {
		int at = SHARED + turn % 8, fd;

		switch (turn++ % 5) {
		case 0:
			fd = socket(AF_INET, SOCK_STREAM, 0);
			break;
		case 1:
			fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
			break;
		case 2:
			fd = epoll_create1(0);
			break;
		case 3:
			fd = socket(AF_UNIX, SOCK_STREAM, 0);
			break;
		default:
			fd = -1;
			close(at);
		}
		if (fd >= 0) {
			dup2(fd, at);
			close(fd);
		}
		usleep(turn % 7 * 30);
	}
	return unused;
}

static void *call(void *argument)
{
	unsigned turn = (uintptr_t)argument;

	while (!is_over) {
		int at = SHARED + turn % 8, fd = -1;
		struct sockaddr_storage name;
		socklen_t room = sizeof(name);

		switch (turn++ % 9) {
		case 0: case 1: case 2:
			fd = socket(AF_INET, SOCK_STREAM, 0);
			count(connect(fd, (struct sockaddr *)&target, length));
			break;
		case 3:
			count(connect(at, (struct sockaddr *)&server, sizeof(server)));
			break;
		case 4:
			bind(at, (struct sockaddr *)&target, length);
			break;
		case 5:
			listen(at, 5);
			break;
		case 6:
			getsockname(at, (struct sockaddr *)&target, &length);
			break;
		case 7:
			getpeername(at, (struct sockaddr *)&name, &room);
			break;
		case 8:
			/* Not a blocking one: nobody connects. */
			fcntl(at, F_SETFL, O_NONBLOCK);
			fd = accept4(at, (struct sockaddr *)&target, &length, 0);
			break;
		}
		if (fd >= 0)
			close(fd);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[CALLERS + 2];
	int seconds = argc == 4 ? atoi(argv[3]) : 0;

	server.sin_family = AF_INET;
	if (!seconds || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
		return 2;
	server.sin_port = htons(atoi(argv[2]));
	alarm(50);
	for (uintptr_t n = 0; n < CALLERS + 2; n++) {
		void *(*run)(void *) = n < CALLERS ? call : n == CALLERS ? write_addresses :
								     change_files;

		if (pthread_create(&threads[n], NULL, run, (void *)n))
			return 1;
	}
	sleep(seconds);
	is_over = 1;
	/* A connect on a shared fd may wait for an address that nobody answers at. */
	printf("{");
	for (int code = 0, first = 1; code < ERRNOS; code++) {
		if (seen[code]) {
			printf("%s\"%d\": %d", first ? "" : ", ", code, (int)seen[code]);
			first = 0;
		}
	}
	puts("}");
	fflush(stdout);
	_exit(0);
}
