/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals while connect and accept wait: signals CASE ADDRESS PORT. A handler writes `signal`; the
 * test lets the call end after that, if it is to go on.
 */
#define _GNU_SOURCE
#include "transcript.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>

static volatile sig_atomic_t signals;
static sigjmp_buf out;
static struct where elsewhere;

static void on_signal(int number)
{
	(void)number;
	/* The test wants to hear of one. */
	if (!signals++)
		must("write", write(1, "signal\n", 7));
}

static void on_signal_jump(int number)
{
	(void)number;
	siglongjmp(out, 1);
}

static void on_signal_connect(int number)
{
	int fd = open_stream(&elsewhere);

	(void)number;
	show("connect in the handler", connect_to(fd, &elsewhere));
	show_greeting("handler", fd);
	close(fd);
	must("write", write(1, "signal\n", 7));
}

static void handle(int number, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

	sigaction(number, &action, NULL);
}

static void set_timer(int milliseconds, int every)
{
	struct itimerval timer = { .it_value = { .tv_usec = milliseconds * 1000 } };

	if (every)
		timer.it_interval = timer.it_value;
	must("setitimer", setitimer(ITIMER_REAL, &timer, NULL));
}

static void set_timeout(int fd, int option, int milliseconds)
{
	struct timeval timeout = { .tv_usec = milliseconds * 1000 };

	must("timeout", setsockopt(fd, SOL_SOCKET, option, &timeout, sizeof(timeout)));
}

static void set_nonblocking(int fd, int on)
{
	int flags = fcntl(fd, F_GETFL);

	must("fcntl", fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

/* What the socket of a connect that did not end says of itself. */
static void show_pending(int fd, const struct where *where)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN | POLLOUT };
	int code = -1;
	socklen_t length = sizeof(code);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length);
	show_number("SO_ERROR", code);
	show_number("ready", poll(&ready, 1, 0));
	set_nonblocking(fd, 1);
	show("connect without waiting", connect_to(fd, where));
	set_nonblocking(fd, 0);
}

static void show_end(int fd, const struct where *where)
{
	show("connect once more", connect_to(fd, where));
	show_greeting("greeting", fd);
	show("connect when connected", connect_to(fd, where));
}

/* --- connect: the peer answers nothing until the test hears of the signal -------------------- */

static void connect_alarm(const struct where *where, int flags)
{
	int fd = open_stream(where);

	handle(SIGALRM, on_signal, flags);
	alarm(1);
	show("connect", connect_to(fd, where));
	show_number("signals", signals);
	if (flags & SA_RESTART) {
		show_greeting("greeting", fd);
	} else {
		show_pending(fd, where);
		say("pending");
		show_end(fd, where);
	}
}

/* A timer that never stops: the call is taken up again and again. */
static void connect_timer(const struct where *where)
{
	int fd = open_stream(where);

	handle(SIGALRM, on_signal, SA_RESTART);
	set_timer(30, 1);
	show("connect", connect_to(fd, where));
	set_timer(0, 0);
	show_number("several signals", signals > 3);
	show_greeting("greeting", fd);
}

static void connect_timeout(const struct where *where)
{
	int fd = open_stream(where);

	set_timeout(fd, SO_SNDTIMEO, 200);
	show("connect", connect_to(fd, where));
	show("connect again", connect_to(fd, where));
	show_pending(fd, where);
	say("pending");
	set_timeout(fd, SO_SNDTIMEO, 0);
	show_end(fd, where);
}

/* With a timeout set no call is restarted (signal(7)). */
static void connect_timeout_signal(const struct where *where)
{
	int fd = open_stream(where);

	handle(SIGALRM, on_signal, SA_RESTART);
	set_timeout(fd, SO_SNDTIMEO, 900);
	set_timer(100, 0);
	show("connect", connect_to(fd, where));
	show_number("signals", signals);
	show_pending(fd, where);
	say("pending");
	set_timeout(fd, SO_SNDTIMEO, 0);
	show_end(fd, where);
}

/* The oldest way to give a connect a limit. */
static void connect_jump(const struct where *where)
{
	int fd = open_stream(where);

	handle(SIGALRM, on_signal_jump, 0);
	if (!sigsetjmp(out, 1)) {
		set_timer(100, 0);
		show("connect", connect_to(fd, where));
		return;
	}
	say("jumped");
	say("pending");
	show_end(fd, where);
}

static void connect_handler(const struct where *where)
{
	int fd = open_stream(where);

	handle(SIGALRM, on_signal_connect, SA_RESTART);
	set_timer(100, 0);
	show("connect", connect_to(fd, where));
	show_greeting("greeting", fd);
}

static void *connect_and_wait(void *where)
{
	int fd = open_stream(where);

	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, NULL);
	show("connect", connect_to(fd, where));
	return NULL;
}

static void connect_cancel(const struct where *where)
{
	pthread_t thread;
	void *result;

	pthread_create(&thread, NULL, connect_and_wait, (void *)where);
	usleep(200000);
	show("cancel", pthread_cancel(thread));
	pthread_join(thread, &result);
	show_number("cancelled", result == PTHREAD_CANCELED);
	say("signal");
}

/* --- accept: a client comes when the test hears of the signal -------------------------------- */

static void show_accepted(int listener)
{
	int fd = show("accept", accept(listener, NULL, NULL));
	char data[512];
	ssize_t got;

	if (fd < 0)
		return;
	send(fd, "{\"peer\": \"\"}\n", 13, MSG_NOSIGNAL);
	/* An echo, to the end of the connection. */
	while ((got = recv(fd, data, sizeof(data), 0)) != 0) {
		if (got > 0)
			send(fd, data, got, MSG_NOSIGNAL);
		else if (errno != EINTR)
			break;
	}
	close(fd);
}

static void accept_alarm(const struct where *where, int flags)
{
	int listener = listen_at(where);

	handle(SIGALRM, on_signal, flags);
	alarm(1);
	show_accepted(listener);
	show_number("signals", signals);
	if (!(flags & SA_RESTART)) {
		set_nonblocking(listener, 1);
		show_accepted(listener);
		set_nonblocking(listener, 0);
		say("waiting");
		show_accepted(listener);
	}
}

static void accept_timer(const struct where *where)
{
	int listener = listen_at(where);

	handle(SIGALRM, on_signal, SA_RESTART);
	set_timer(30, 1);
	show_accepted(listener);
	set_timer(0, 0);
	show_number("several signals", signals > 0);
}

static void accept_timeout_signal(const struct where *where)
{
	int listener = listen_at(where);

	handle(SIGALRM, on_signal, SA_RESTART);
	set_timeout(listener, SO_RCVTIMEO, 900);
	set_timer(100, 0);
	show_accepted(listener);
	show_number("signals", signals);
	set_timeout(listener, SO_RCVTIMEO, 100);
	show_accepted(listener);
	set_timeout(listener, SO_RCVTIMEO, 0);
	say("waiting");
	show_accepted(listener);
}

static void *accept_and_wait(void *where)
{
	show_accepted(*(int *)where);
	return NULL;
}

static void accept_cancel(const struct where *where)
{
	int listener = listen_at(where);
	pthread_t thread;
	void *result;

	pthread_create(&thread, NULL, accept_and_wait, &listener);
	usleep(200000);
	show("cancel", pthread_cancel(thread));
	pthread_join(thread, &result);
	show_number("cancelled", result == PTHREAD_CANCELED);
	say("waiting");
	show_accepted(listener);
}

/* The test ends us by a signal. */
static void accept_for_ever(const struct where *where)
{
	int listener = listen_at(where);

	say("waiting");
	show_accepted(listener);
}

int main(int argc, char **argv)
{
	struct where where;
	const char *name;

	if (argc < 4)
		return 2;
	/* Whoever started us may have had one. */
	alarm(0);
	name = argv[1];
	where = parse_where(argv[2], atoi(argv[3]));
	elsewhere = parse_where(argv[2], atoi(argv[argc - 1]));
	if (!strcmp(name, "connect-alarm"))
		connect_alarm(&where, 0);
	else if (!strcmp(name, "connect-alarm-restart"))
		connect_alarm(&where, SA_RESTART);
	else if (!strcmp(name, "connect-timer"))
		connect_timer(&where);
	else if (!strcmp(name, "connect-timeout"))
		connect_timeout(&where);
	else if (!strcmp(name, "connect-timeout-signal"))
		connect_timeout_signal(&where);
	else if (!strcmp(name, "connect-jump"))
		connect_jump(&where);
	else if (!strcmp(name, "connect-handler"))
		connect_handler(&where);
	else if (!strcmp(name, "connect-cancel"))
		connect_cancel(&where);
	else if (!strcmp(name, "accept-alarm"))
		accept_alarm(&where, 0);
	else if (!strcmp(name, "accept-alarm-restart"))
		accept_alarm(&where, SA_RESTART);
	else if (!strcmp(name, "accept-timer"))
		accept_timer(&where);
	else if (!strcmp(name, "accept-timeout-signal"))
		accept_timeout_signal(&where);
	else if (!strcmp(name, "accept-cancel"))
		accept_cancel(&where);
	else if (!strcmp(name, "accept-for-ever"))
		accept_for_ever(&where);
	else
		return 2;
	return 0;
}
