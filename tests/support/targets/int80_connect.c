/* Connects an inherited socket to a port of loopback by i386's system call, past native filters. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	struct {
		struct sockaddr_in address;
		unsigned arguments[3];
	} *low;
	int code;

	if (argc != 3)
		return 2;
	/* i386 has 32-bit pointers. */
	low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (low == MAP_FAILED)
		return 3;
	low->address.sin_family = AF_INET;
	low->address.sin_port = htons(atoi(argv[2]));
	low->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	/* 362: connect of i386. */
	__asm__ volatile("int $0x80"
			 : "=a"(code)
			 : "a"(362), "b"(atoi(argv[1])), "c"((unsigned)(unsigned long)&low->address),
			   "d"((unsigned)sizeof(low->address))
			 : "memory", "r8", "r9", "r10", "r11");
	if (code)
		printf("%d\n", -code);
	else
		puts("connected");
	return 0;
}
