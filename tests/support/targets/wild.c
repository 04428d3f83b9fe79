/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket calls with pointers and lengths that no program should pass. Prints what each gave, so
 * that two runs can be compared: nothing of it depends on fd numbers or ports.
 *
 *	wild ADDRESS		the IPv4 address of its own to listen at
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct sockaddr_in server;
static int listener;
static char *page, *read_only, *edge;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void show(const char *call, const char *what, long argument, long result)
{
	printf("%s %s %ld: %s\n", call, what, argument,
	       result < 0 ? strerrorname_np(errno) : "ok");
}

/* All arguments as the kernel gets them, without libc's types. */
static long raw(long number, long fd, uintptr_t address, uintptr_t length, long flags)
{
	return syscall(number, fd, address, length, flags, 0L, 0L);
}

static int fresh(int type)
{
	int fd = socket(AF_INET, type, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

static int connected(void)
{
	int fd = fresh(SOCK_STREAM);

	if (connect(fd, (struct sockaddr *)&server, sizeof(server)))
		die("connect");
	return fd;
}

/* One connection in the queue, and no other. */
static int knock(void)
{
	int fd = connected();
	struct pollfd look = { .fd = listener, .events = POLLIN };

	if (poll(&look, 1, 10000) != 1)
		die("poll");
	return fd;
}

static void drain(void)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, 0)) >= 0)
		close(fd);
}

struct place {
	const char *name;
	uintptr_t address;
};

static struct place places[10];

static void make_places(void)
{
	size_t size = sysconf(_SC_PAGESIZE);
	struct sockaddr_in closed = server;

	page = mmap(NULL, 3 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	read_only = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || read_only == MAP_FAILED)
		die("mmap");
	munmap(page + size, size);
	mprotect(page + 2 * size, size, PROT_NONE);
	/* Also a length, and then a positive one. */
	closed.sin_port = htons(0x1000);
	memcpy(read_only, &closed, sizeof(closed));
	mprotect(read_only, size, PROT_READ);
	edge = page + size;
	places[0] = (struct place){ "null", 0 };
	places[1] = (struct place){ "one", 1 };
	places[2] = (struct place){ "unmapped", (uintptr_t)edge };
	places[3] = (struct place){ "forbidden", (uintptr_t)page + 2 * size };
	places[4] = (struct place){ "edge", (uintptr_t)edge - 3 };
	places[5] = (struct place){ "read-only", (uintptr_t)read_only };
	places[6] = (struct place){ "kernel", 0xffff888000000000 };
	places[7] = (struct place){ "last", UINTPTR_MAX };
	places[8] = (struct place){ "non-canonical", 0x8000000000000000 };
	places[9] = (struct place){ "good", (uintptr_t)page };
}

static void wild_addresses(const char *name, long number)
{
	const long lengths[] = { 0, 1, 2, 3, 8, 15, 16, 17, 28, 127, 128, 129, 4096, 1 << 30,
				 INT32_MAX, -1, -16, INT32_MIN, 1L << 32, (1L << 32) + 16,
				 INT64_MIN };
	const int none = 1 << 28, types[] = { SOCK_STREAM, SOCK_DGRAM };
	int ends[2];

	if (pipe(ends))
		die("pipe");

	for (size_t p = 0; p < COUNT(places); p++) {
		for (size_t n = 0; n < COUNT(lengths); n++) {
			for (size_t t = 0; t < COUNT(types); t++) {
				int fd = fresh(types[t]);
				struct sockaddr_in address = server;

				if (number == SYS_bind)
					address.sin_port = 0;
				memset(page, 0, 256);
				memcpy(page, &address, sizeof(address));
				show(name, places[p].name, lengths[n],
				     raw(number, fd, places[p].address, lengths[n], 0));
				close(fd);
			}
			drain();
			show("nothing", places[p].name, lengths[n],
			     raw(number, none, places[p].address, lengths[n], 0));
			show("a pipe", places[p].name, lengths[n],
			     raw(number, ends[0], places[p].address, lengths[n], 0));
		}
	}
	/* On a socket that is connected already, and on one that listens. */
	for (size_t p = 0; p < COUNT(places); p++) {
		int fd = connected();

		show("connected", places[p].name, number, raw(number, fd, places[p].address, 16, 0));
		close(fd);
		drain();
		show("listening", places[p].name, number,
		     raw(number, listener, places[p].address, 16, 0));
	}
}

/* accept, getsockname, getpeername: an address to write, and its length. */
static void wild_names(const char *name, long number)
{
	const int rooms[] = { 0, 1, 2, 15, 16, 17, 128, 4096, INT32_MAX, -1, INT32_MIN };
	const int none = 1 << 28;

	for (size_t p = 0; p < COUNT(places); p++) {
		for (size_t l = 0; l < COUNT(places) + COUNT(rooms); l++) {
			int has_room = l >= COUNT(places);
			int *length = (int *)(page + 512);
			uintptr_t where = has_room ? (uintptr_t)length : places[l].address;
			int client = knock(), fd = number == SYS_accept4 ? listener : client;
			long result;

			memset(page, 0x55, 256);
			if (!has_room && places[l].address == (uintptr_t)page)
				where = (uintptr_t)length;
			*length = has_room ? rooms[l - COUNT(places)] : 16;
			result = raw(number, fd, places[p].address, where, 0);
			show(name, places[p].name, l, result);
			if (number == SYS_accept4 && result >= 0)
				close(result);
			/* Not the port, which is any; after an error, kernels differ. */
			if (result >= 0)
				printf("  %d %02x%02x%02x%02x %02x\n", *length, page[0] & 255,
				       page[1] & 255, page[4] & 255, page[15] & 255, page[16] & 255);
			show("again", places[p].name, l, raw(number, none, places[p].address, where, 0));
			close(client);
			drain();
		}
	}
}

static void wild_numbers(void)
{
	const long numbers[] = { -1, 0, 1, 4, 1 << 20, INT32_MAX, INT32_MIN, 1L << 32,
				 (1L << 32) | 1, INT64_MAX };

	for (size_t n = 0; n < COUNT(numbers); n++) {
		int client = knock();
		int fd = fresh(SOCK_STREAM);
		long result = raw(SYS_accept4, listener, 0, 0, numbers[n]);

		show("accept4", "flags", numbers[n], result);
		if (result >= 0)
			close(result);
		show("listen", "backlog", numbers[n], raw(SYS_listen, fd, numbers[n], 0, 0));
		show("listen", "fd", numbers[n], raw(SYS_listen, 1000000 + numbers[n], 5, 0, 0));
		close(fd);
		result = raw(SYS_epoll_create1, numbers[n], 0, 0, 0);
		show("epoll_create1", "flags", numbers[n], result);
		if (result >= 0)
			close(result);
#ifdef SYS_epoll_create
		result = raw(SYS_epoll_create, numbers[n], 0, 0, 0);
		show("epoll_create", "size", numbers[n], result);
		if (result >= 0)
			close(result);
#endif
		close(client);
		drain();
	}
}

int main(int argc, char **argv)
{
	socklen_t length = sizeof(server);

	server.sin_family = AF_INET;
	if (argc != 2 || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
		return 2;
	alarm(50);
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	listener = fresh(SOCK_STREAM | SOCK_NONBLOCK);
	if (bind(listener, (struct sockaddr *)&server, sizeof(server)) || listen(listener, 50) ||
	    getsockname(listener, (struct sockaddr *)&server, &length))
		die("listen");
	make_places();
	wild_addresses("connect", SYS_connect);
	wild_addresses("bind", SYS_bind);
	wild_names("accept4", SYS_accept4);
	wild_names("getsockname", SYS_getsockname);
	wild_names("getpeername", SYS_getpeername);
	wild_numbers();
	puts("done");
	return 0;
}
