/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How connections end, and options that were set before they began: endings CASE ADDRESS PORT.
 *
 * A server case says `waiting` and takes one client, which plays the case `client-...`.
 */
#define _GNU_SOURCE
#include "transcript.h"

#include <poll.h>
#include <signal.h>

static void show_read(const char *what, int fd)
{
	char data[64];

	show(what, recv(fd, data, sizeof(data), 0));
}

static void show_write(const char *what, int fd)
{
	show(what, send(fd, "x", 1, MSG_NOSIGNAL));
}

static void wait_end(int fd)
{
	struct pollfd ready = { .fd = fd, .events = POLLRDHUP };

	must("poll", poll(&ready, 1, 10000));
}

static int take(const struct where *where)
{
	int listener = listen_at(where), fd;

	say("waiting");
	fd = must("accept", accept(listener, NULL, NULL));
	close(listener);
	return fd;
}

static int go(const struct where *where)
{
	int fd = open_stream(where);

	must("connect", connect_to(fd, where));
	return fd;
}

static void reset(int fd)
{
	struct linger now = { .l_onoff = 1 };

	must("SO_LINGER", setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)));
	close(fd);
}

static void show_names(int fd)
{
	char own[80], peer[80];

	name_text(fd, getsockname, own, sizeof(own), 0);
	name_text(fd, getpeername, peer, sizeof(peer), 0);
	printf("own %s, peer %s\n", own, peer);
	fflush(stdout);
}

/* --- half-close ------------------------------------------------------------------------------- */

static void half_close(const struct where *where)
{
	int fd = take(where);

	show_read("request", fd);
	show_read("its end", fd);
	show_write("answer", fd);
	show("shutdown", shutdown(fd, SHUT_WR));
	show_write("after that", fd);
	show_names(fd);
	close(fd);
}

static void client_half_close(const struct where *where)
{
	int fd = go(where);

	show_write("request", fd);
	show("shutdown", shutdown(fd, SHUT_WR));
	show_write("after that", fd);
	show_read("answer", fd);
	show_read("its end", fd);
	show("shutdown of both", shutdown(fd, SHUT_RDWR));
	show("shutdown again", shutdown(fd, SHUT_RDWR));
	show_names(fd);
	close(fd);
}

/* --- reset ------------------------------------------------------------------------------------ */

/* The client waits for a byte: a connection may be reset before it is accepted. */
static int take_and_greet(const struct where *where)
{
	int fd = take(where);

	must("send", send(fd, "x", 1, MSG_NOSIGNAL));
	return fd;
}

static void is_reset(const struct where *where)
{
	int fd = take_and_greet(where), code = -1;
	socklen_t length = sizeof(code);

	wait_end(fd);
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length);
	printf("SO_ERROR: %s\n", errno_name(code));
	show_read("read", fd);
	show_write("write", fd);
	show_names(fd);
	close(fd);
}

static void client_reset(const struct where *where)
{
	int fd = go(where);

	show_read("a byte", fd);
	reset(fd);
}

/* Reset before it is accepted; another comes after it. */
static void early(const struct where *where)
{
	int listener = listen_at(where), fd;

	say("waiting");
	usleep(500000);
	fd = must("accept", accept(listener, NULL, NULL));
	show_read("read", fd);
	close(fd);
}

static void client_early(const struct where *where)
{
	int fd;

	reset(go(where));
	fd = go(where);
	show_write("write", fd);
	show_read("end", fd);
}

/* Closed with data unread: the kernel resets. */
static void unread(const struct where *where)
{
	int fd = take(where);

	show_write("sent", fd);
	wait_end(fd);
	show_read("read", fd);
	close(fd);
}

static void client_unread(const struct where *where)
{
	int fd = go(where);
	struct pollfd ready = { .fd = fd, .events = POLLIN };

	must("poll", poll(&ready, 1, 10000));
	show("close", close(fd));
}

/* SIGPIPE without MSG_NOSIGNAL. */
static volatile sig_atomic_t pipes;

static void on_pipe(int number)
{
	(void)number;
	pipes++;
}

static void broken(const struct where *where)
{
	int fd = take_and_greet(where);

	signal(SIGPIPE, on_pipe);
	wait_end(fd);
	show_read("read", fd);
	show("write", write(fd, "x", 1));
	show_number("signals", pipes);
	close(fd);
}

/* --- linger ----------------------------------------------------------------------------------- */

static void drain(const struct where *where)
{
	int fd = take(where);
	char data[65536];
	ssize_t got;
	long total = 0;

	while ((got = recv(fd, data, sizeof(data), 0)) > 0)
		total += got;
	show("end", got);
	show_number("bytes", total);
	close(fd);
}

static void client_linger(const struct where *where)
{
	static char data[1 << 20];
	struct linger wait = { .l_onoff = 1, .l_linger = 10 };
	int fd = go(where);

	must("SO_LINGER", setsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, sizeof(wait)));
	show_number("sent", send(fd, data, sizeof(data), MSG_NOSIGNAL));
	show("close", close(fd));
}

/* --- options ---------------------------------------------------------------------------------- */

#ifndef SO_MAX_PACING_RATE
#define SO_MAX_PACING_RATE 47
#endif

static const struct {
	const char *name;
	int level, option, value;
} OPTIONS[] = {
	{ "SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1 },
	{ "SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1 },
	{ "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3 },
	{ "SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, 50000 },
	{ "SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, 60000 },
	{ "SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 7 },
	{ "SO_MAX_PACING_RATE", SOL_SOCKET, SO_MAX_PACING_RATE, 100000000 },
	{ "IP_TTL", IPPROTO_IP, IP_TTL, 33 },
	{ "IP_TOS", IPPROTO_IP, IP_TOS, 0x10 },
	{ "TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1 },
	{ "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 77 },
	{ "TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 11 },
	{ "TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 5 },
	{ "TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 4 },
	{ "TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, 20 },
	{ "TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 9000 },
	{ "TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4096 },
};

enum { OPTION_COUNT = sizeof(OPTIONS) / sizeof(OPTIONS[0]) };

static void set_options(int fd)
{
	int i;

	for (i = 0; i < OPTION_COUNT; i++)
		must(OPTIONS[i].name, setsockopt(fd, OPTIONS[i].level, OPTIONS[i].option,
						 &OPTIONS[i].value, sizeof(OPTIONS[i].value)));
}

static void show_options(int fd)
{
	int i, value;
	socklen_t length;

	for (i = 0; i < OPTION_COUNT; i++) {
		value = -1;
		length = sizeof(value);
		getsockopt(fd, OPTIONS[i].level, OPTIONS[i].option, &value, &length);
		show_number(OPTIONS[i].name, value);
	}
}

/* As the listener had them before listen, each accepted socket has them. */
static void options(const struct where *where)
{
	int fd = open_stream(where), one = 1, client;

	set_options(fd);
	must("SO_REUSEADDR", setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
	must("bind", bind(fd, (const struct sockaddr *)&where->address, where->length));
	must("listen", listen(fd, 16));
	say("waiting");
	client = must("accept", accept(fd, NULL, NULL));
	show_options(client);
	say("listener");
	show_options(fd);
	close(client);
}

static void client_options(const struct where *where)
{
	int fd = open_stream(where);

	set_options(fd);
	must("connect", connect_to(fd, where));
	show_options(fd);
	show_read("end", fd);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*play)(const struct where *);
	} CASES[] = {
		{ "half-close", half_close },	{ "client-half-close", client_half_close },
		{ "reset", is_reset },		{ "client-reset", client_reset },
		{ "early", early },		{ "client-early", client_early },
		{ "unread", unread },		{ "client-unread", client_unread },
		{ "broken", broken },		{ "client-broken", client_reset },
		{ "linger", drain },		{ "client-linger", client_linger },
		{ "options", options },		{ "client-options", client_options },
	};
	struct where where;
	size_t i;

	if (argc != 4)
		return 2;
	alarm(25);
	where = parse_where(argv[2], atoi(argv[3]));
	for (i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
		if (!strcmp(argv[1], CASES[i].name)) {
			CASES[i].play(&where);
			return 0;
		}
	}
	return 2;
}
