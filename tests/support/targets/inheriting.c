/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One socket, several owners: copies of descriptors, processes, threads with descriptors of their
 * own, programs that exec: inheriting CASE ADDRESS PORT [FD].
 */
#define _GNU_SOURCE
#include "transcript.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

static char **self;

static void show_flags(const char *what, int fd)
{
	int flags = fcntl(fd, F_GETFD);

	if (flags < 0)
		show(what, -1);
	else
		printf("%s: %s\n", what, flags & FD_CLOEXEC ? "closed on exec" : "kept on exec");
	fflush(stdout);
}

static void reap(pid_t child)
{
	int status = -1;

	must("waitpid", waitpid(child, &status, 0));
	show_number("child", status);
}

/* The copies are connected with the first, whichever of them was used. */
static void duplicates(const struct where *where)
{
	int fd = open_stream(where), second = must("dup", dup(fd));
	int third = must("F_DUPFD_CLOEXEC", fcntl(fd, F_DUPFD_CLOEXEC, 100));

	show("connect", connect_to(second, where));
	show_flags("first", fd);
	show_flags("second", second);
	show_flags("third", third);
	close(fd);
	close(second);
	show_greeting("third", third);
}

/* connect in the child, use in the parent. */
static void fork_connect(const struct where *where)
{
	int fd = open_stream(where);
	pid_t child = must("fork", fork());

	if (!child) {
		show("connect in the child", connect_to(fd, where));
		_exit(0);
	}
	reap(child);
	show("connect in the parent", connect_to(fd, where));
	show_greeting("parent", fd);
}

/* Connected before, used by both after. */
static void fork_after(const struct where *where)
{
	int fd = open_stream(where);
	pid_t child;

	show("connect", connect_to(fd, where));
	child = must("fork", fork());
	if (!child) {
		show_greeting("child", fd);
		_exit(0);
	}
	reap(child);
	must("send", send(fd, "more\n", 5, MSG_NOSIGNAL));
	show("parent", connect_to(fd, where));
}

/* The parent stands still in vfork while its child, in the same memory, makes held calls. */
static void vfork_connect(const struct where *where)
{
	int fd = open_stream(where);
	pid_t child = must("vfork", vfork());

	if (!child)
		_exit(connect_to(fd, where) ? 1 : 0);
	reap(child);
	show("connect in the parent", connect_to(fd, where));
	show_greeting("parent", fd);
}

static void exec_with(const char *name, int fd, const char *address, const char *port)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", fd);
	execl(self[0], self[0], name, address, port, number, (char *)NULL);
	perror("execl");
	exit(1);
}

/* An unconnected socket for the next program, which connects it. */
static void exec_connect(const struct where *where, char **argv)
{
	int fd = open_stream(where);

	exec_with("connect-inherited", fd, argv[2], argv[3]);
}

static void exec_connected(const struct where *where, char **argv)
{
	int fd = open_stream(where);

	show("connect", connect_to(fd, where));
	exec_with("use-inherited", fd, argv[2], argv[3]);
}

static void exec_closes(const struct where *where, char **argv)
{
	int fd = must("socket", socket(where->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));

	show("connect", connect_to(fd, where));
	exec_with("is-closed", fd, argv[2], argv[3]);
}

static void send_fd(int channel, int fd)
{
	char byte = 'x', control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	must("sendmsg", sendmsg(channel, &message, 0));
}

static int receive_fd(int channel)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	int fd;

	must("recvmsg", recvmsg(channel, &message, 0));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

/* Through a unix socket to a process that was there before it; who gets it connects it, or again. */
static void pass(const struct where *where, int is_connected)
{
	int channel[2], fd;
	pid_t child;

	must("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
	child = must("fork", fork());
	if (!child) {
		fd = receive_fd(channel[1]);
		show("connect in the child", connect_to(fd, where));
		show_greeting("child", fd);
		_exit(0);
	}
	fd = open_stream(where);
	if (is_connected)
		show("connect", connect_to(fd, where));
	send_fd(channel[0], fd);
	close(fd);
	reap(child);
}

struct work {
	const struct where *where;
	int fd;
};

/* A thread with descriptors of its own: the same number is another file there. */
static void *private_table(void *argument)
{
	struct work *work = argument;
	int fd;

	must("unshare", unshare(CLONE_FILES));
	close(work->fd);
	fd = open_stream(work->where);
	show("the same number", fd == work->fd ? 0 : -1);
	show("connect in the thread", connect_to(fd, work->where));
	show_greeting("thread", fd);
	close(fd);
	return NULL;
}

static void private_tables(const struct where *where)
{
	struct work work = { .where = where, .fd = open_stream(where) };
	pthread_t thread;

	pthread_create(&thread, NULL, private_table, &work);
	pthread_join(thread, NULL);
	show("connect in main", connect_to(work.fd, where));
	show_greeting("main", work.fd);
}

/* --- listeners: one client comes when the test reads `waiting` -------------------------------- */

static void serve_one(int listener)
{
	char data[512];
	ssize_t got;
	int fd;

	say("waiting");
	fd = show("accept", accept(listener, NULL, NULL));
	must("send", send(fd, "{}\n", 3, MSG_NOSIGNAL));
	while ((got = recv(fd, data, sizeof(data), 0)) > 0)
		send(fd, data, got, MSG_NOSIGNAL);
	close(fd);
}

static void duplicate_listener(const struct where *where)
{
	int listener = listen_at(where), copy = must("dup", dup(listener));

	close(listener);
	serve_one(copy);
}

static void exec_listener(const struct where *where, char **argv)
{
	exec_with("serve-inherited", listen_at(where), argv[2], argv[3]);
}

int main(int argc, char **argv)
{
	struct where where;
	const char *name;
	int fd;

	if (argc < 4)
		return 2;
	self = argv;
	name = argv[1];
	where = parse_where(argv[2], atoi(argv[3]));
	fd = argc > 4 ? atoi(argv[4]) : -1;
	alarm(20);
	if (!strcmp(name, "duplicates"))
		duplicates(&where);
	else if (!strcmp(name, "fork-connect"))
		fork_connect(&where);
	else if (!strcmp(name, "fork-after"))
		fork_after(&where);
	else if (!strcmp(name, "vfork"))
		vfork_connect(&where);
	else if (!strcmp(name, "exec-connect"))
		exec_connect(&where, argv);
	else if (!strcmp(name, "exec-connected"))
		exec_connected(&where, argv);
	else if (!strcmp(name, "exec-closes"))
		exec_closes(&where, argv);
	else if (!strcmp(name, "duplicate-listener"))
		duplicate_listener(&where);
	else if (!strcmp(name, "exec-listener"))
		exec_listener(&where, argv);
	else if (!strcmp(name, "serve-inherited"))
		serve_one(fd);
	else if (!strcmp(name, "connect-inherited")) {
		show("connect", connect_to(fd, &where));
		show_greeting("greeting", fd);
	} else if (!strcmp(name, "use-inherited"))
		show_greeting("greeting", fd);
	else if (!strcmp(name, "is-closed"))
		show_flags("inherited", fd);
	else if (!strcmp(name, "pass-connected"))
		pass(&where, 1);
	else if (!strcmp(name, "pass-unconnected"))
		pass(&where, 0);
	else if (!strcmp(name, "private-tables"))
		private_tables(&where);
	else
		return 2;
	return 0;
}
