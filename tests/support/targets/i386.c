/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client and a greeting server (probes/peers.py) that make i386's system calls, and no others,
 * for IPv4: i386 CASE ADDRESS PORT, where CASE is connect, serve or numbers, or socketcall-connect
 * or socketcall-serve, as C libraries did before Linux 4.3.
 *
 * Without a C library, so that a compiler for x86_64 suffices: as a program of 32 bits, and as one
 * of 64 bits that calls by int 0x80. Whatever the kernel is shown of the latter's memory must lie
 * below 4 GiB: it is static.
 */
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

/* asm/unistd_32.h */
enum { EXIT = 1, READ = 3, WRITE = 4, SOCKETCALL = 102 };
/* linux/net.h: what socketcall is told. */
enum {
	SOCKET = 1,
	BIND,
	CONNECT,
	LISTEN,
	ACCEPT,
	GETSOCKNAME,
	GETPEERNAME,
	SETSOCKOPT = 14,
	GETSOCKOPT,
	ACCEPT4 = 18,
};
enum { AF_INET = 2, SOCK_STREAM = 1, SOL_SOCKET = 1, SO_REUSEADDR = 2, SO_NETNS_COOKIE = 71 };

static const u16 direct_numbers[] = {
	[SOCKET] = 359,	     [BIND] = 361,	  [CONNECT] = 362,     [LISTEN] = 363,
	[ACCEPT4] = 364,     [GETSOCKOPT] = 365,  [SETSOCKOPT] = 366,  [GETSOCKNAME] = 367,
	[GETPEERNAME] = 368,
};

struct name {
	u16 family;
	u16 port;
	unsigned char address[4];
	char rest[8];
};

static int by_socketcall;
static u32 words[6];
static struct name where, first, second;
static u32 length, one = 1;
static u64 cookie, fresh_cookie;
static char line[1024];
static u32 written;

static int call(u32 number, u32 a, u32 b, u32 c, u32 d, u32 e)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory"
#ifdef __x86_64__
			   ,
			   "r8", "r9", "r10", "r11"
#endif
	);
	return result;
}

static u32 at(const void *pointer)
{
	return (u32)(unsigned long)pointer;
}

static int socket_call(u32 which, u32 a, u32 b, u32 c, u32 d, u32 e)
{
	if (!by_socketcall)
		return call(direct_numbers[which], a, b, c, d, e);
	words[0] = a;
	words[1] = b;
	words[2] = c;
	words[3] = d;
	words[4] = e;
	return call(SOCKETCALL, which, at(words), 0, 0, 0);
}

/* --- text ------------------------------------------------------------------------------------ */

static void add(const char *text)
{
	while (*text && written < sizeof(line))
		line[written++] = *text++;
}

static void add_number(u32 number)
{
	char digits[11];
	int left = 10;

	digits[left] = 0;
	do
		digits[--left] = '0' + number % 10;
	while (number /= 10);
	add(digits + left);
}

/* As endpoint() of the probes writes it. */
static void add_name(const char *key, const struct name *name)
{
	add(key);
	for (int i = 0; i < 4; i++) {
		add(i ? "." : "\"");
		add_number(name->address[i]);
	}
	add(":");
	add_number((u16)(name->port << 8 | name->port >> 8));
	add("\"");
}

static void flush(u32 fd)
{
	add("\n");
	call(WRITE, fd, at(line), written, 0, 0);
	written = 0;
}

static void leave(int status)
{
	call(EXIT, status, 0, 0, 0, 0);
	__builtin_trap();
}

static int must(const char *what, int result)
{
	if (result < 0) {
		add(what);
		add(": error ");
		add_number(-result);
		flush(2);
		leave(1);
	}
	return result;
}

static u32 parse_number(const char **text)
{
	u32 number = 0;

	for (; **text >= '0' && **text <= '9'; (*text)++)
		number = number * 10 + (**text - '0');
	return number;
}

static void parse_where(const char *address, const char *port)
{
	u32 number = parse_number(&port);

	where.family = AF_INET;
	where.port = (u16)(number << 8 | number >> 8);
	for (int i = 0; i < 4; i++, address++)
		where.address[i] = parse_number(&address);
}

static int is_equal(const char *text, const char *other)
{
	while (*text && *text == *other)
		text++, other++;
	return *text == *other;
}

/* --- sockets --------------------------------------------------------------------------------- */

static int open_stream(void)
{
	return must("socket", socket_call(SOCKET, AF_INET, SOCK_STREAM, 0, 0, 0));
}

static void ask_name(u32 which, int fd, struct name *name)
{
	length = sizeof(*name);
	must("name", socket_call(which, fd, at(name), at(&length), 0, 0));
}

static void ask_cookie(int fd, u64 *target)
{
	length = sizeof(*target);
	must("SO_NETNS_COOKIE",
	     socket_call(GETSOCKOPT, fd, SOL_SOCKET, SO_NETNS_COOKIE, at(target), at(&length)));
}

/* Reads the server's greeting and shows it, with what this end says of itself. */
static void use(int fd)
{
	do
		if (must("read", call(READ, fd, at(line + written), 1, 0, 0)) == 0)
			must("greeting", -1);
	while (line[written++] != '\n' && written < sizeof(line) / 2);
	call(WRITE, fd, at("echo\n"), 5, 0, 0);
	written -= 2;
	ask_name(GETSOCKNAME, fd, &first);
	ask_name(GETPEERNAME, fd, &second);
	add_name(", \"client_name\": ", &first);
	add_name(", \"client_peer\": ", &second);
	ask_cookie(fd, &cookie);
	ask_cookie(open_stream(), &fresh_cookie);
	add(", \"path\": ");
	add(cookie == fresh_cookie ? "\"own\"}" : "\"host\"}");
	flush(1);
	must("echo", call(READ, fd, at(line), sizeof(line), 0, 0));
}

static void connect_and_use(int fd)
{
	must("connect", socket_call(CONNECT, fd, at(&where), sizeof(where), 0, 0));
	use(fd);
}

/* Greets one client, then echoes to the end. */
static void serve(void)
{
	int listener = open_stream(), fd, got;

	must("SO_REUSEADDR", socket_call(SETSOCKOPT, listener, SOL_SOCKET, SO_REUSEADDR, at(&one),
					 sizeof(one)));
	must("bind", socket_call(BIND, listener, at(&where), sizeof(where), 0, 0));
	must("listen", socket_call(LISTEN, listener, 16, 0, 0, 0));
	add("waiting");
	flush(1);
	length = sizeof(first);
	fd = must("accept", socket_call(by_socketcall ? ACCEPT : ACCEPT4, listener, at(&first),
					at(&length), 0, 0));
	add_name("{\"accepted\": ", &first);
	ask_name(GETPEERNAME, fd, &second);
	add_name(", \"peer\": ", &second);
	ask_name(GETSOCKNAME, fd, &first);
	add_name(", \"name\": ", &first);
	add("}");
	flush(fd);
	while ((got = must("read", call(READ, fd, at(line), sizeof(line), 0, 0))))
		must("write", call(WRITE, fd, at(line), got, 0, 0));
}

/* Numbers that are socket calls of x86_64, and something else here, of no consequence. */
static void show_numbers(void)
{
	static const u16 numbers[] = { 42, 43, 49, 50, 51, 52, 291, 307 };
	int fd = open_stream(), result;

	for (u32 i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		result = call(numbers[i], fd, at(&where), sizeof(where), 0, 0);
		add_number(numbers[i]);
		add(result < 0 ? ": error " : ": ok");
		if (result < 0)
			add_number(-result);
		flush(1);
	}
	connect_and_use(fd);
}

__attribute__((used)) static void run(long *stack)
{
	char **argv = (char **)(stack + 1);

	if (*stack != 4)
		leave(2);
	parse_where(argv[2], argv[3]);
	by_socketcall = argv[1][0] == 's' && argv[1][1] == 'o';
	if (by_socketcall)
		argv[1] += sizeof("socketcall-") - 1;
	if (is_equal(argv[1], "connect"))
		connect_and_use(open_stream());
	else if (is_equal(argv[1], "serve"))
		serve();
	else if (is_equal(argv[1], "numbers"))
		show_numbers();
	else
		leave(2);
	leave(0);
}

#ifdef __x86_64__
__asm__(".text\n.globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");
#else
__asm__(".text\n.globl _start\n_start:\n\tmov %esp, %eax\n\tand $-16, %esp\n\tsub $12, %esp\n"
	"\tpush %eax\n\tcall run\n");
#endif
