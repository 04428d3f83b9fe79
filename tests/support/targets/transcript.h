/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program says of its calls, line by line: `what: 0`, `what: -1 EINTR`.
 *
 * Fds, pids and ephemeral ports differ from run to run and are never shown: a return value above 0
 * is written as `ok` unless it is asked for by show_number.
 */
#ifndef TRANSCRIPT_H
#define TRANSCRIPT_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

static inline const char *errno_name(int code)
{
#define NAMED(name) \
	case name:  \
		return #name
	switch (code) {
		NAMED(EACCES);
		NAMED(EADDRINUSE);
		NAMED(EADDRNOTAVAIL);
		NAMED(EAFNOSUPPORT);
		NAMED(EAGAIN);
		NAMED(EALREADY);
		NAMED(EBADF);
		NAMED(ECHILD);
		NAMED(ECONNABORTED);
		NAMED(ECONNREFUSED);
		NAMED(ECONNRESET);
		NAMED(EEXIST);
		NAMED(EFAULT);
		NAMED(EHOSTUNREACH);
		NAMED(EINPROGRESS);
		NAMED(EINTR);
		NAMED(EINVAL);
		NAMED(EISCONN);
		NAMED(EMFILE);
		NAMED(ENETUNREACH);
		NAMED(ENOENT);
		NAMED(ENOPROTOOPT);
		NAMED(ENOSYS);
		NAMED(ENOTCONN);
		NAMED(ENOTSOCK);
		NAMED(EOPNOTSUPP);
		NAMED(EPERM);
		NAMED(EPIPE);
		NAMED(ETIMEDOUT);
	}
#undef NAMED
	return "another error";
}

static inline void say(const char *line)
{
	printf("%s\n", line);
	fflush(stdout);
}

static inline void show_number(const char *what, long value)
{
	printf("%s: %ld\n", what, value);
	fflush(stdout);
}

/* Gives back what it is told, with errno as it was. */
static inline long show(const char *what, long result)
{
	int code = errno;

	if (result < 0)
		printf("%s: -1 %s\n", what, errno_name(code));
	else
		printf("%s: %s\n", what, result ? "ok" : "0");
	fflush(stdout);
	errno = code;
	return result;
}

/* What could not be set up is no result. */
static inline long must(const char *what, long result)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

struct where {
	struct sockaddr_storage address;
	socklen_t length;
};

static inline struct where parse_where(const char *address, int port)
{
	struct where where = { .length = sizeof(struct sockaddr_in) };
	struct sockaddr_in *in4 = (void *)&where.address;
	struct sockaddr_in6 *in6 = (void *)&where.address;

	if (inet_pton(AF_INET, address, &in4->sin_addr) == 1) {
		in4->sin_family = AF_INET;
		in4->sin_port = htons(port);
	} else if (inet_pton(AF_INET6, address, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		where.length = sizeof(*in6);
	} else {
		fprintf(stderr, "no address: %s\n", address);
		exit(2);
	}
	return where;
}

static inline int open_stream(const struct where *where)
{
	return must("socket", socket(where->address.ss_family, SOCK_STREAM, 0));
}

static inline int connect_to(int fd, const struct where *where)
{
	return connect(fd, (const struct sockaddr *)&where->address, where->length);
}

static inline int listen_at(const struct where *where)
{
	int fd = open_stream(where), one = 1;

	must("SO_REUSEADDR", setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
	must("bind", bind(fd, (const struct sockaddr *)&where->address, where->length));
	must("listen", listen(fd, 16));
	return fd;
}

/* Address and, if it is one of the two that are known, port: as peers.endpoint of the probes. */
static inline void name_text(int fd, int (*call)(int, struct sockaddr *, socklen_t *), char *text,
			     size_t size, int with_port)
{
	struct sockaddr_storage name;
	struct sockaddr_in *in4 = (void *)&name;
	struct sockaddr_in6 *in6 = (void *)&name;
	socklen_t length = sizeof(name);
	char address[INET6_ADDRSTRLEN];

	if (call(fd, (struct sockaddr *)&name, &length) < 0) {
		snprintf(text, size, "-1 %s", errno_name(errno));
	} else if (name.ss_family == AF_INET) {
		inet_ntop(AF_INET, &in4->sin_addr, address, sizeof(address));
		snprintf(text, size, with_port ? "%s:%d" : "%s", address, ntohs(in4->sin_port));
	} else {
		inet_ntop(AF_INET6, &in6->sin6_addr, address, sizeof(address));
		snprintf(text, size, with_port ? "[%s]:%d" : "[%s]", address,
			 ntohs(in6->sin6_port));
	}
}

/* Reads the line of a greeting server, or what else there is to the end of a line. */
static inline int read_line(int fd, char *line, size_t size)
{
	size_t length = 0;
	ssize_t got;

	while (length + 1 < size) {
		got = recv(fd, line + length, 1, 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return -1;
		if (line[length] == '\n')
			break;
		length++;
	}
	line[length] = 0;
	return 0;
}

/*
 * The greeting of a greeting server must name us as we name ourselves; then an echo. Says whose
 * socket it was, too.
 */
static inline void show_greeting(const char *what, int fd)
{
	char line[512], own[80], peer[80], wanted[200];
	unsigned long long cookie = 0, fresh = 0;
	socklen_t length = sizeof(cookie);
	int other;

	if (read_line(fd, line, sizeof(line)) < 0) {
		show(what, -1);
		return;
	}
	name_text(fd, getsockname, own, sizeof(own), 1);
	snprintf(wanted, sizeof(wanted), "\"peer\": \"%s\"", own);
	printf("%s: %s\n", what, strstr(line, wanted) ? "greeted by name" : line);
	name_text(fd, getpeername, peer, sizeof(peer), 0);
	printf("%s: peer %s\n", what, peer);
	other = must("socket", socket(AF_INET, SOCK_STREAM, 0));
	getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length);
	getsockopt(other, SOL_SOCKET, SO_NETNS_COOKIE, &fresh, &length);
	close(other);
	printf("path: %s\n", cookie == fresh ? "own" : "host");
	must("send", send(fd, "echo\n", 5, MSG_NOSIGNAL));
	if (read_line(fd, line, sizeof(line)) < 0)
		show(what, -1);
	else
		printf("%s: %s\n", what, line);
	fflush(stdout);
}

#endif
