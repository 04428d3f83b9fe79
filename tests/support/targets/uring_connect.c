/* Connects an inherited socket to a port of loopback by io_uring, which no seccomp filter sees. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct io_uring_params params = { 0 };
	struct sockaddr_in address = { .sin_family = AF_INET };
	struct io_uring_sqe *entries;
	struct io_uring_cqe *done;
	char *ring;
	int fd;

	if (argc != 3)
		return 2;
	address.sin_port = htons(atoi(argv[2]));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fd = syscall(SYS_io_uring_setup, 4, &params);
	if (fd < 0 || !(params.features & IORING_FEAT_SINGLE_MMAP))
		return 3;
	ring = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(*done) + 4096,
		    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
	entries = mmap(NULL, params.sq_entries * sizeof(*entries), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQES);
	if (ring == MAP_FAILED || entries == MAP_FAILED)
		return 4;
	memset(entries, 0, sizeof(*entries));
	entries->opcode = IORING_OP_CONNECT;
	entries->fd = atoi(argv[1]);
	entries->addr = (unsigned long)&address;
	entries->off = sizeof(address);
	*(unsigned *)(ring + params.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(ring + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return 5;
	done = (struct io_uring_cqe *)(ring + params.cq_off.cqes);
	if (done->res)
		printf("%d\n", -done->res);
	else
		puts("connected");
	return 0;
}
