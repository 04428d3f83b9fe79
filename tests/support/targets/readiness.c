/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What epoll, poll and select say of sockets whose file slimd exchanges under them:
 * readiness CASE ADDRESS PORT.
 */
#define _GNU_SOURCE
#include "transcript.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum { NEVER_MS = 200, SOON_MS = 10000 };

static void show_events(const char *what, unsigned int events)
{
	printf("%s:%s%s%s%s%s%s\n", what, events & EPOLLIN ? " in" : "", events & EPOLLOUT ? " out" : "",
	       events & EPOLLERR ? " err" : "", events & EPOLLHUP ? " hup" : "",
	       events & EPOLLRDHUP ? " rdhup" : "", events ? "" : " nothing");
	fflush(stdout);
}

/* What one wait gives, by the number that the socket was registered with. */
static void show_wait(const char *what, int set, int limit_ms)
{
	struct epoll_event found[8];
	int count = epoll_wait(set, found, 8, limit_ms);
	unsigned int by_number[8] = { 0 };
	char text[80];
	int i;

	show_number(what, count);
	for (i = 0; i < count; i++)
		by_number[found[i].data.u32 & 7] |= found[i].events;
	for (i = 0; i < 8; i++) {
		if (by_number[i]) {
			snprintf(text, sizeof(text), "%s %d", what, i);
			show_events(text, by_number[i]);
		}
	}
}

static int new_set(void)
{
	return must("epoll_create1", epoll_create1(EPOLL_CLOEXEC));
}

static int control(int set, int operation, int fd, unsigned int events, unsigned int number)
{
	struct epoll_event event = { .events = events, .data.u32 = number };

	return epoll_ctl(set, operation, fd, &event);
}

static void add(int set, int fd, unsigned int events, unsigned int number)
{
	must("epoll_ctl", control(set, EPOLL_CTL_ADD, fd, events, number));
}

static int nonblocking(const struct where *where)
{
	int fd = open_stream(where);

	must("fcntl", fcntl(fd, F_SETFL, O_NONBLOCK));
	return fd;
}

static void wait_readable(int fd)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };

	must("poll", poll(&ready, 1, SOON_MS));
}

static void make_blocking(int fd)
{
	must("fcntl", fcntl(fd, F_SETFL, 0));
}

static void finish(int fd)
{
	make_blocking(fd);
	show_greeting("greeting", fd);
}

/* Registered before connect; then the events until the greeting is read. */
static void registered(const struct where *where, unsigned int flags)
{
	int set = new_set(), fd = nonblocking(where);

	add(set, fd, EPOLLOUT | EPOLLRDHUP | flags, 1);
	show_wait("before", set, NEVER_MS);
	if (flags & EPOLLONESHOT)
		must("again", control(set, EPOLL_CTL_MOD, fd, EPOLLOUT | flags, 1));
	show("connect", connect_to(fd, where));
	show_wait("connected", set, SOON_MS);
	show_wait("once more", set, NEVER_MS);
	show("registered twice", control(set, EPOLL_CTL_ADD, fd, EPOLLIN, 2));
	show("changed", control(set, EPOLL_CTL_MOD, fd, EPOLLIN | flags, 3));
	show_wait("greeting", set, SOON_MS);
	finish(fd);
	show("removed", control(set, EPOLL_CTL_DEL, fd, 0, 0));
	show("removed again", control(set, EPOLL_CTL_DEL, fd, 0, 0));
	close(fd);
	show_wait("closed", set, NEVER_MS);
}

/* One socket in two sets, with other events and numbers in each. */
static void several(const struct where *where)
{
	int first = new_set(), second = new_set(), fd = nonblocking(where);

	add(first, fd, EPOLLOUT, 1);
	add(second, fd, EPOLLIN | EPOLLET, 2);
	/* After a wait of the kernel's own: the socket has told both that it is not connected. */
	show_wait("first before", first, NEVER_MS);
	show_wait("second before", second, NEVER_MS);
	show("connect", connect_to(fd, where));
	show_wait("first", first, SOON_MS);
	show_wait("second", second, SOON_MS);
	show("removed", control(first, EPOLL_CTL_DEL, fd, 0, 0));
	show_wait("first removed", first, NEVER_MS);
	finish(fd);
	show_wait("second read", second, NEVER_MS);
}

/* Registered by a copy of the descriptor, connected by the other, which is closed then. */
static void duplicate(const struct where *where)
{
	int set = new_set(), fd = nonblocking(where), copy = must("dup", dup(fd));

	add(set, copy, EPOLLOUT, 1);
	add(set, fd, EPOLLIN, 2);
	show_wait("before", set, NEVER_MS);
	show("connect", connect_to(fd, where));
	wait_readable(copy);
	show_wait("connected", set, SOON_MS);
	close(fd);
	show("connect of the copy", connect_to(copy, where));
	finish(copy);
}

/* A set in a set. */
static void nested(const struct where *where)
{
	int outer = new_set(), inner = new_set(), fd = nonblocking(where);

	add(inner, fd, EPOLLIN, 1);
	add(outer, inner, EPOLLIN, 2);
	show("connect", connect_to(fd, where));
	show_wait("outer", outer, SOON_MS);
	show_wait("inner", inner, SOON_MS);
	finish(fd);
}

static void with_select(const struct where *where)
{
	int fd = nonblocking(where), code = -1;
	struct timeval limit = { .tv_sec = SOON_MS / 1000 };
	socklen_t length = sizeof(code);
	fd_set readable, writable;

	show("connect", connect_to(fd, where));
	FD_ZERO(&writable);
	FD_SET(fd, &writable);
	show_number("select", select(fd + 1, NULL, &writable, NULL, &limit));
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length);
	show_number("SO_ERROR", code);
	FD_ZERO(&readable);
	FD_SET(fd, &readable);
	show_number("select", select(fd + 1, &readable, NULL, NULL, &limit));
	finish(fd);
}

static void with_poll(const struct where *where)
{
	int fd = nonblocking(where);
	struct pollfd ready = { .fd = fd, .events = POLLOUT | POLLIN };

	show_number("poll", poll(&ready, 1, NEVER_MS));
	show_events("before", ready.revents);
	show("connect", connect_to(fd, where));
	ready.events = POLLOUT;
	show_number("poll", poll(&ready, 1, SOON_MS));
	show_events("connected", ready.revents);
	finish(fd);
	show("shutdown", shutdown(fd, SHUT_WR));
	ready.events = POLLIN | POLLRDHUP;
	show_number("poll", poll(&ready, 1, SOON_MS));
	show_events("after the server's end", ready.revents);
}

/* Nobody listens there. */
static void refused(const struct where *where)
{
	int set = new_set(), fd = nonblocking(where), code = -1;
	socklen_t length = sizeof(code);

	add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1);
	show_wait("before", set, NEVER_MS);
	show("connect", connect_to(fd, where));
	show_wait("refused", set, SOON_MS);
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length);
	show("SO_ERROR", code == ECONNREFUSED ? 0 : -1);
	show_wait("once more", set, NEVER_MS);
}

/* --- a server: the listener is registered before listen; clients come when the test reads `waiting`. */

/* As a greeting server would, without an address in the greeting. */
static void serve(int fd)
{
	char data[512];
	ssize_t got;

	make_blocking(fd);
	must("send", send(fd, "{\"peer\": \"\"}\n", 13, MSG_NOSIGNAL));
	while ((got = recv(fd, data, sizeof(data), 0)) > 0)
		send(fd, data, got, MSG_NOSIGNAL);
	close(fd);
}

static void accepting(const struct where *where, unsigned int flags)
{
	int set = new_set(), listener = open_stream(where), one = 1, fd;

	must("SO_REUSEADDR", setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
	must("bind", bind(listener, (const struct sockaddr *)&where->address, where->length));
	must("fcntl", fcntl(listener, F_SETFL, O_NONBLOCK));
	add(set, listener, EPOLLIN | flags, 1);
	must("listen", listen(listener, 16));
	if (flags & EPOLLONESHOT)
		must("again", control(set, EPOLL_CTL_MOD, listener, EPOLLIN | flags, 2));
	/* An unconnected socket tells its end; that edge is not the client's. */
	show("accept", accept(listener, NULL, NULL));
	say("waiting");
	fd = -1;
	while (fd < 0) {
		struct epoll_event found;

		must("epoll_wait", epoll_wait(set, &found, 1, SOON_MS));
		fd = accept(listener, NULL, NULL);
		if (flags & EPOLLONESHOT)
			control(set, EPOLL_CTL_MOD, listener, EPOLLIN | flags, 2);
	}
	show("accept", fd);
	show("accept", accept(listener, NULL, NULL));
	serve(fd);
	show_wait("none is left", set, NEVER_MS);
	say("waiting");
	show_wait("the next", set, SOON_MS);
	fd = show("accept", accept(listener, NULL, NULL));
	serve(fd);
}

int main(int argc, char **argv)
{
	struct where where;
	const char *name;

	if (argc != 4)
		return 2;
	name = argv[1];
	where = parse_where(argv[2], atoi(argv[3]));
	if (!strcmp(name, "level"))
		registered(&where, 0);
	else if (!strcmp(name, "edge"))
		registered(&where, EPOLLET);
	else if (!strcmp(name, "oneshot"))
		registered(&where, EPOLLONESHOT);
	else if (!strcmp(name, "several"))
		several(&where);
	else if (!strcmp(name, "duplicate"))
		duplicate(&where);
	else if (!strcmp(name, "nested"))
		nested(&where);
	else if (!strcmp(name, "select"))
		with_select(&where);
	else if (!strcmp(name, "poll"))
		with_poll(&where);
	else if (!strcmp(name, "refused"))
		refused(&where);
	else if (!strcmp(name, "accept-level"))
		accepting(&where, 0);
	else if (!strcmp(name, "accept-edge"))
		accepting(&where, EPOLLET);
	else if (!strcmp(name, "accept-oneshot"))
		accepting(&where, EPOLLONESHOT);
	else
		return 2;
	return 0;
}
