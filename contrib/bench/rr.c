// SPDX-License-Identifier: Apache-2.0
/*
 * rr: the benchmark's own load, so small that what it measures is the network.
 *
 *   rr serve  ADDRESS PORT
 *   rr stream ADDRESS PORT SECONDS    bulk: one connection, one direction
 *   rr echo   ADDRESS PORT SECONDS    1-byte request, 1-byte response, over one connection
 *   rr crr    ADDRESS PORT SECONDS    connect, 1 byte each way, close, over and over
 *
 * Prints "name value" lines. The first byte of a connection says what it is: 'S' is a stream, whose
 * bytes the server counts and whose end it answers with the count; anything else is echoed. Linked
 * statically: it also shows that Slim needs no dynamic linker.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (128 * 1024)
#define MAX_SAMPLES (4 * 1024 * 1024)
#define NS 1000000000ULL

struct address {
	struct sockaddr_storage storage;
	socklen_t length;
};

/* Durations of one step of every operation, in nanoseconds. */
struct samples {
	const char *name;
	uint32_t *ns;
};

static char buffer[CHUNK];

static void die(const char *what)
{
	fprintf(stderr, "rr: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * NS + time.tv_nsec;
}

static struct address parse_address(const char *text, const char *port)
{
	struct address address = { 0 };
	struct sockaddr_in *v4 = (struct sockaddr_in *)&address.storage;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address.storage;

	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(atoi(port));
		address.length = sizeof(*v4);
	} else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(atoi(port));
		address.length = sizeof(*v6);
	} else {
		errno = EINVAL;
		die(text);
	}
	return address;
}

static int make_socket(const struct address *address)
{
	int fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

static void connect_to(int fd, const struct address *address)
{
	if (connect(fd, (const struct sockaddr *)&address->storage, address->length))
		die("connect");
}

static void set_option(int fd, int level, int name, const void *value, socklen_t length)
{
	if (setsockopt(fd, level, name, value, length))
		die("setsockopt");
}

static void send_without_delay(int fd)
{
	int on = 1;

	set_option(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* One byte there and one back. */
static void exchange(int fd)
{
	char byte = 'e';

	if (write(fd, &byte, 1) != 1)
		die("write");
	if (read(fd, &byte, 1) != 1)
		die("read");
}

static void count_stream(int fd, uint64_t count)
{
	ssize_t got;

	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		count += got;
	if (got == 0 && write(fd, &count, sizeof(count)) != sizeof(count))
		perror("rr: write");
}

static void serve_connection(int fd)
{
	ssize_t got = read(fd, buffer, sizeof(buffer));

	if (got > 0 && buffer[0] == 'S') {
		count_stream(fd, got);
		return;
	}
	while (got > 0 && write(fd, buffer, got) == got)
		got = read(fd, buffer, sizeof(buffer));
}

static void serve(const struct address *address)
{
	int listener = make_socket(address);
	int on = 1;

	set_option(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (const struct sockaddr *)&address->storage, address->length))
		die("bind");
	if (listen(listener, 128))
		die("listen");
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			die("accept");
		}
		send_without_delay(fd);
		serve_connection(fd);
		close(fd);
	}
}

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

static struct samples make_samples(const char *name)
{
	struct samples samples = { name, malloc(MAX_SAMPLES * sizeof(uint32_t)) };

	if (!samples.ns)
		die("malloc");
	return samples;
}

static void print_percentiles(struct samples *samples, size_t count)
{
	qsort(samples->ns, count, sizeof(uint32_t), compare);
	printf("%sp50_us %.3f\n", samples->name, samples->ns[count / 2] / 1e3);
	printf("%sp99_us %.3f\n", samples->name, samples->ns[count * 99 / 100] / 1e3);
}

static void print_rate(size_t count, uint64_t elapsed)
{
	printf("rate %.3f\n", count * (double)NS / elapsed);
}

static void run_stream(const struct address *address, uint64_t duration)
{
	int fd = make_socket(address);
	uint64_t start, count;
	ssize_t sent;

	connect_to(fd, address);
	memset(buffer, 'S', sizeof(buffer));
	start = now();
	do {
		sent = write(fd, buffer, sizeof(buffer));
		if (sent < 0)
			die("write");
	} while (now() - start < duration);
	if (shutdown(fd, SHUT_WR))
		die("shutdown");
	/* The server's count comes when it has read everything: nothing in a buffer counts. */
	if (recv(fd, &count, sizeof(count), MSG_WAITALL) != sizeof(count))
		die("recv");
	printf("rate %.6f\n", count * 8.0 / (now() - start));
	close(fd);
}

static void run_echo(const struct address *address, uint64_t duration)
{
	struct samples samples = make_samples("");
	int fd = make_socket(address);
	uint64_t start, before, after;
	size_t count = 0;

	connect_to(fd, address);
	send_without_delay(fd);
	start = after = now();
	while (after - start < duration && count < MAX_SAMPLES) {
		before = after;
		exchange(fd);
		after = now();
		samples.ns[count++] = after - before;
	}
	print_rate(count, after - start);
	print_percentiles(&samples, count);
	close(fd);
}

/* Closes with a reset: otherwise ports in TIME_WAIT run out within seconds. */
static void run_crr(const struct address *address, uint64_t duration)
{
	enum { MAKE, CONNECT, EXCHANGE, CLOSE, WHOLE, STEPS };
	struct samples samples[STEPS] = {
		make_samples("socket_"), make_samples("connect_"), make_samples("exchange_"),
		make_samples("close_"), make_samples(""),
	};
	const struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	uint64_t start, moments[STEPS];
	size_t count = 0;

	start = moments[MAKE] = now();
	while (moments[MAKE] - start < duration && count < MAX_SAMPLES) {
		int fd = make_socket(address);

		moments[CONNECT] = now();
		connect_to(fd, address);
		moments[EXCHANGE] = now();
		exchange(fd);
		moments[CLOSE] = now();
		set_option(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fd);
		moments[WHOLE] = now();
		for (int step = MAKE; step < WHOLE; step++)
			samples[step].ns[count] = moments[step + 1] - moments[step];
		samples[WHOLE].ns[count++] = moments[WHOLE] - moments[MAKE];
		moments[MAKE] = moments[WHOLE];
	}
	print_rate(count, moments[MAKE] - start);
	for (int step = MAKE; step < STEPS; step++)
		print_percentiles(&samples[step], count);
}

int main(int argc, char **argv)
{
	struct address address;
	uint64_t duration;

	if (argc < 4 || (strcmp(argv[1], "serve") && argc != 5)) {
		fprintf(stderr, "usage: rr serve ADDRESS PORT\n"
				"       rr stream|echo|crr ADDRESS PORT SECONDS\n");
		return 2;
	}
	address = parse_address(argv[2], argv[3]);
	duration = argc == 5 ? strtod(argv[4], NULL) * NS : 0;
	if (!strcmp(argv[1], "serve"))
		serve(&address);
	else if (!strcmp(argv[1], "stream"))
		run_stream(&address, duration);
	else if (!strcmp(argv[1], "echo"))
		run_echo(&address, duration);
	else if (!strcmp(argv[1], "crr"))
		run_crr(&address, duration);
	else
		return 2;
	return 0;
}
