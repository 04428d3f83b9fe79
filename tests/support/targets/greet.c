/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client and a server that know of no library but libc, for static linking.
 *
 *	greet server ADDRESS PORT	tells each client its address, for ever
 *	greet client ADDRESS PORT	prints: what it was told, its own name, the peer's
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int name_call(int, struct sockaddr *, socklen_t *);

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void format(const struct sockaddr_storage *name, socklen_t length,
		   char *text, size_t size)
{
	char host[64], port[16];

	if (getnameinfo((const struct sockaddr *)name, length, host,
			sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV))
		die("getnameinfo");
	snprintf(text, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host,
		 port);
}

static void name_of(name_call *call, int fd, char *text, size_t size)
{
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);

	if (call(fd, (struct sockaddr *)&name, &length))
		die("name");
	format(&name, length, text, size);
}

static void serve(int listener)
{
	struct sockaddr_storage name;
	char accepted[96], peer[96];
	socklen_t length;
	int fd;

	if (listen(listener, 16))
		die("listen");
	puts("\"listening\"");
	fflush(stdout);
	for (;;) {
		length = sizeof(name);
		fd = accept(listener, (struct sockaddr *)&name, &length);
		if (fd < 0)
			die("accept");
		format(&name, length, accepted, sizeof(accepted));
		name_of(getpeername, fd, peer, sizeof(peer));
		dprintf(fd, "%s",
			strcmp(accepted, peer) ? "accept differs" : peer);
		close(fd);
	}
}

static void visit(int fd)
{
	char told[128] = "", own[96], peer[96];
	size_t have = 0;
	ssize_t more;

	name_of(getsockname, fd, own, sizeof(own));
	name_of(getpeername, fd, peer, sizeof(peer));
	while ((more = read(fd, told + have, sizeof(told) - 1 - have)) > 0)
		have += (size_t)more;
	if (more < 0)
		die("read");
	printf("%s %s %s\n", told, own, peer);
}

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_NUMERICHOST };
	struct addrinfo *where;
	int fd, one = 1;

	if (argc != 4 || getaddrinfo(argv[2], argv[3], &hints, &where))
		return 2;
	fd = socket(where->ai_family, SOCK_STREAM, 0);
	if (fd < 0)
		die("socket");
	if (!strcmp(argv[1], "server")) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, where->ai_addr, where->ai_addrlen))
			die("bind");
		serve(fd);
	} else {
		if (connect(fd, where->ai_addr, where->ai_addrlen))
			die("connect");
		visit(fd);
	}
	return 0;
}
