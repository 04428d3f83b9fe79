/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program of x86_64 that makes some of its calls otherwise, for IPv4: mixed CASE ADDRESS PORT.
 */
#define _GNU_SOURCE
#include "transcript.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#define X32_BIT 0x40000000

/* asm/unistd_32.h, linux/net.h */
enum { I386_SOCKETCALL = 102, I386_ACCEPT4 = 364, I386_GETSOCKNAME = 367, I386_GETPEERNAME = 368 };
enum { GETSOCKNAME = 6, GETPEERNAME = 7, ACCEPT = 5 };

/* i386 has pointers of 32 bits. */
static struct low {
	struct sockaddr_in name;
	socklen_t length;
	unsigned words[3];
} *low;

static unsigned pointer_to(const void *pointer)
{
	return (unsigned)(unsigned long)pointer;
}

static int i386_call(int number, unsigned a, unsigned b, unsigned c)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(0)
			 : "memory", "r8", "r9", "r10", "r11");
	if (result < 0) {
		errno = -result;
		return -1;
	}
	return result;
}

/* Fills in low->name: by a call of its own, or by socketcall. */
static int ask(int number, int fd)
{
	low->length = sizeof(low->name);
	return i386_call(number, fd, pointer_to(&low->name), pointer_to(&low->length));
}

static int ask_socketcall(int which, int fd)
{
	low->length = sizeof(low->name);
	low->words[0] = fd;
	low->words[1] = pointer_to(&low->name);
	low->words[2] = pointer_to(&low->length);
	return i386_call(I386_SOCKETCALL, which, pointer_to(low->words), 0);
}

static void show_low_name(const char *what)
{
	char address[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &low->name.sin_addr, address, sizeof(address));
	printf("%s: %s\n", what, address);
	fflush(stdout);
}

/* A connection's names, asked for by i386's calls. */
static void names(const struct where *where)
{
	int fd = open_stream(where);

	show("connect", connect_to(fd, where));
	show_greeting("connection", fd);
	must("getsockname", ask(I386_GETSOCKNAME, fd));
	show_low_name("name");
	must("getpeername", ask(I386_GETPEERNAME, fd));
	show_low_name("peer");
	must("getsockname", ask_socketcall(GETSOCKNAME, fd));
	show_low_name("name");
	must("getpeername", ask_socketcall(GETPEERNAME, fd));
	show_low_name("peer");
}

/* A listener of x86_64's calls; i386's accept. */
static void accepts(const struct where *where, int by_socketcall)
{
	int listener = listen_at(where), fd;
	char text[100];
	ssize_t got;

	say("waiting");
	fd = by_socketcall ? ask_socketcall(ACCEPT, listener) : ask(I386_ACCEPT4, listener);
	if (show("accept", fd) < 0)
		return;
	show_low_name("from");
	must("send", send(fd, "hello\n", 6, MSG_NOSIGNAL));
	got = must("recv", recv(fd, text, sizeof(text), MSG_WAITALL));
	show_number("read", got);
	must("send", send(fd, text, got, MSG_NOSIGNAL));
	name_text(fd, getpeername, text, sizeof(text), 0);
	printf("peer: %s\n", text);
}

/* The socket calls of x32 on a socket that is then connected by x86_64's. */
static void x32(const struct where *where)
{
	int fd = open_stream(where);
	long address = (long)&where->address;
	struct {
		const char *name;
		long number;
	} calls[] = {
		{ "socket", SYS_socket },	    { "connect", SYS_connect },
		{ "bind", SYS_bind },		    { "listen", SYS_listen },
		{ "accept", SYS_accept },	    { "accept4", SYS_accept4 },
		{ "getsockname", SYS_getsockname }, { "getpeername", SYS_getpeername },
		{ "sendto", SYS_sendto },	    { "epoll_create1", SYS_epoll_create1 },
	};

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		show(calls[i].name,
		     syscall(calls[i].number | X32_BIT, (long)fd, address, (long)where->length));
	show("connect of x86_64", connect_to(fd, where));
	show_greeting("connection", fd);
}

int main(int argc, char **argv)
{
	struct where where;

	if (argc != 4)
		return 2;
	where = parse_where(argv[2], atoi(argv[3]));
	low = mmap(NULL, sizeof(*low), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (low == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	if (!strcmp(argv[1], "names"))
		names(&where);
	else if (!strcmp(argv[1], "accepts"))
		accepts(&where, 0);
	else if (!strcmp(argv[1], "socketcall-accepts"))
		accepts(&where, 1);
	else if (!strcmp(argv[1], "x32"))
		x32(&where);
	else
		return 2;
	return 0;
}
