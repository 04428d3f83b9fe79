// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel guard: programs on the cgroup in which slimd makes host sockets.
 *
 * A socket keeps the cgroup of its birth, whoever holds its fd and however calls reach it (an fd
 * passed on, io_uring, another architecture's system calls), so these programs see exactly the
 * sockets that slimd puts into containers. They confine (connect, bind, setsockopt), translate
 * (getsockname, getpeername, accept) and admit (the option of the SYN). Whatever is not known is
 * refused: a socket without a record can do nothing.
 *
 * A record with GUARD_OPEN is slimd's alone: no container holds the socket yet. slimd seals it
 * before it hands it out; nothing opens it again.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "guard.h"

#define AF_INET 2
#define AF_INET6 10
#define TCP_FLAG_SYN_BYTE 0x02
#define TCP_FLAG_ACK_BYTE 0x10
#define TCP_FLAG_RST_BYTE 0x04

#define REFUSE 0
#define PASS 1

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct guard_socket);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct guard_route_key);
	__type(value, struct guard_route);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, struct guard_inbound);
} inbound SEC(".maps");

/* Keys of the SYNs that peers send here; several are valid at a time while they are renewed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct guard_key_name);
	__type(value, struct guard_key);
} opening_keys SEC(".maps");

/* By peer: the one key that seals SYNs to it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct guard_sealing_key);
} sealing_keys SEC(".maps");

/*
 * Admitted SYNs whose handshake is not done. Only valid options make entries. Evicted under
 * pressure: the handshake does not complete, the ACK is dropped.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct guard_tuple);
	__type(value, struct guard_pending);
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUARD_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &which);

	if (counter)
		*counter += 1;
}

static __always_inline void map_ipv4(struct guard_address *address, __be32 ip)
{
	address->word[0] = 0;
	address->word[1] = 0;
	address->word[2] = bpf_htonl(0xffff);
	address->word[3] = ip;
}

static __always_inline int is_ipv4(const struct guard_address *address)
{
	return !address->word[0] && !address->word[1] && address->word[2] == bpf_htonl(0xffff);
}

static __always_inline int is_over(__u64 expires)
{
	return bpf_ktime_get_ns() >= expires;
}

/* --- SipHash-2-4 (Aumasson, Bernstein) of exactly the 48 bytes of struct guard_sealed --------- */

#define ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIP_ROUND                                                                                  \
	do {                                                                                       \
		v0 += v1; v1 = ROTATE(v1, 13); v1 ^= v0; v0 = ROTATE(v0, 32);                      \
		v2 += v3; v3 = ROTATE(v3, 16); v3 ^= v2;                                           \
		v0 += v3; v3 = ROTATE(v3, 21); v3 ^= v0;                                           \
		v2 += v1; v1 = ROTATE(v1, 17); v1 ^= v2; v2 = ROTATE(v2, 32);                      \
	} while (0)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LITTLE_ENDIAN_64(x) (x)
#else
#define LITTLE_ENDIAN_64(x) __builtin_bswap64(x)
#endif

_Static_assert(sizeof(struct guard_sealed) == 48, "the MAC covers 48 bytes");
_Static_assert(sizeof(struct guard_option) == 20, "the option is 20 bytes");

static __always_inline __u64 siphash(const struct guard_key *key, const struct guard_sealed *sealed)
{
	__u64 v0 = 0x736f6d6570736575ULL ^ key->word[0];
	__u64 v1 = 0x646f72616e646f6dULL ^ key->word[1];
	__u64 v2 = 0x6c7967656e657261ULL ^ key->word[0];
	__u64 v3 = 0x7465646279746573ULL ^ key->word[1];
	const __u64 last = 48ULL << 56;
	__u64 words[6];

	__builtin_memcpy(words, sealed, sizeof(words));
#pragma unroll
	for (int i = 0; i < 6; i++) {
		__u64 word = LITTLE_ENDIAN_64(words[i]);

		v3 ^= word;
		SIP_ROUND;
		SIP_ROUND;
		v0 ^= word;
	}
	v3 ^= last;
	SIP_ROUND;
	SIP_ROUND;
	v0 ^= last;
	v2 ^= 0xff;
	SIP_ROUND;
	SIP_ROUND;
	SIP_ROUND;
	SIP_ROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/* --- connect ---------------------------------------------------------------------------------- */

static __always_inline struct guard_socket *record_of(struct bpf_sock *sk)
{
	if (!sk)
		return 0;
	return bpf_sk_storage_get(&sockets, sk, 0, 0);
}

static __always_inline struct guard_route *find_route(struct guard_socket *record,
						      const struct guard_address *destination,
						      __be16 port)
{
	struct guard_route_key key = {
		.workload = record->workload,
		.port = port,
		.destination = *destination,
	};
	struct guard_route *route = bpf_map_lookup_elem(&routes, &key);

	if (!route || is_over(route->expires))
		return 0;
	return route;
}

static __always_inline void label_outbound(struct guard_socket *record, struct guard_route *route,
					   const struct guard_address *destination, __be16 port)
{
	record->flow = route->flow;
	record->peer = route->peer;
	record->local = route->source;
	record->remote = *destination;
	record->remote_port = port;
	if (route->admit)
		record->flags |= GUARD_ADMIT;
	else
		record->flags &= ~GUARD_ADMIT;
}

static __always_inline int refuse_connect(void)
{
	count(GUARD_REFUSED_CONNECT);
	return REFUSE;
}

/* Every connect(2), MSG_FASTOPEN and io_uring's, also after AF_UNSPEC; under the socket's lock. */
SEC("cgroup/connect4")
int slim_connect4(struct bpf_sock_addr *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);
	struct guard_address destination;
	struct guard_route *route;
	__be16 port = (__be16)ctx->user_port;

	if (!record)
		return refuse_connect();
	if (record->flags & GUARD_OPEN)
		return PASS;
	map_ipv4(&destination, ctx->user_ip4);
	route = find_route(record, &destination, port);
	if (!route || !is_ipv4(&route->host))
		return refuse_connect();
	label_outbound(record, route, &destination, port);
	ctx->user_ip4 = route->host.word[3];
	ctx->user_port = route->host_port;
	return PASS;
}

SEC("cgroup/connect6")
int slim_connect6(struct bpf_sock_addr *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);
	struct guard_address destination;
	struct guard_route *route;
	__be16 port = (__be16)ctx->user_port;

	if (!record)
		return refuse_connect();
	if (record->flags & GUARD_OPEN)
		return PASS;
	destination.word[0] = ctx->user_ip6[0];
	destination.word[1] = ctx->user_ip6[1];
	destination.word[2] = ctx->user_ip6[2];
	destination.word[3] = ctx->user_ip6[3];
	route = find_route(record, &destination, port);
	if (!route)
		return refuse_connect();
	label_outbound(record, route, &destination, port);
	ctx->user_ip6[0] = route->host.word[0];
	ctx->user_ip6[1] = route->host.word[1];
	ctx->user_ip6[2] = route->host.word[2];
	ctx->user_ip6[3] = route->host.word[3];
	ctx->user_port = route->host_port;
	return PASS;
}

/* --- bind ------------------------------------------------------------------------------------- */

/* slimd binds what it still has for itself; a container never binds a host socket. */
static __always_inline int may_bind(struct bpf_sock *sk)
{
	struct guard_socket *record = record_of(sk);

	if (record && record->flags & GUARD_OPEN)
		return PASS;
	count(GUARD_REFUSED_BIND);
	return REFUSE;
}

SEC("cgroup/bind4")
int slim_bind4(struct bpf_sock_addr *ctx)
{
	return may_bind(ctx->sk);
}

SEC("cgroup/bind6")
int slim_bind6(struct bpf_sock_addr *ctx)
{
	return may_bind(ctx->sk);
}

/* --- names ------------------------------------------------------------------------------------ */

static __always_inline void show4(struct bpf_sock_addr *ctx, const struct guard_address *address,
				  __be16 port)
{
	ctx->user_ip4 = is_ipv4(address) ? address->word[3] : 0;
	ctx->user_port = port;
}

static __always_inline void show6(struct bpf_sock_addr *ctx, const struct guard_address *address,
				  __be16 port)
{
	ctx->user_ip6[0] = address->word[0];
	ctx->user_ip6[1] = address->word[1];
	ctx->user_ip6[2] = address->word[2];
	ctx->user_ip6[3] = address->word[3];
	ctx->user_port = port;
}

static const struct guard_address nowhere;

/* Also what accept(2) returns. No label: 0.0.0.0:0, never a host address. */
SEC("cgroup/getpeername4")
int slim_getpeername4(struct bpf_sock_addr *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);

	if (record && record->flags & GUARD_OPEN)
		return PASS;
	if (record)
		show4(ctx, &record->remote, record->remote_port);
	else
		show4(ctx, &nowhere, 0);
	return PASS;
}

SEC("cgroup/getpeername6")
int slim_getpeername6(struct bpf_sock_addr *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);

	if (record && record->flags & GUARD_OPEN)
		return PASS;
	if (record)
		show6(ctx, &record->remote, record->remote_port);
	else
		show6(ctx, &nowhere, 0);
	return PASS;
}

/* A label without a port: the overlay source port is the host socket's own. */
SEC("cgroup/getsockname4")
int slim_getsockname4(struct bpf_sock_addr *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);

	if (record && record->flags & GUARD_OPEN)
		return PASS;
	if (record)
		show4(ctx, &record->local,
		      record->local_port ? record->local_port : (__be16)ctx->user_port);
	else
		show4(ctx, &nowhere, 0);
	return PASS;
}

SEC("cgroup/getsockname6")
int slim_getsockname6(struct bpf_sock_addr *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);

	if (record && record->flags & GUARD_OPEN)
		return PASS;
	if (record)
		show6(ctx, &record->local,
		      record->local_port ? record->local_port : (__be16)ctx->user_port);
	else
		show6(ctx, &nowhere, 0);
	return PASS;
}

/* --- socket options --------------------------------------------------------------------------- */

/* From asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h, linux/socket.h. */
#define SOL_SOCKET 1
#define SOL_IP 0
#define SOL_TCP 6
#define SOL_IPV6 41
#define SOL_TLS 282
#define SO_PRIORITY 12
#define SO_MAX_PACING_RATE 47
#define IP_TOS 1
#define IPV6_TCLASS 67
#ifndef TCP_ULP
#define TCP_ULP 31
#endif

#define BIT(n) (1ULL << (n))

/*
 * Lists of what is harmless, as bits of the option's number; anything else is refused. Not in
 * them are, among others, SO_MARK, SO_BINDTODEVICE, SO_ATTACH_* (a filter sees the host's headers),
 * IP_TRANSPARENT, IP_OPTIONS, IP_PKTINFO, IP_RECVERR (shows routers), IPV6_ADDRFORM, TCP_REPAIR,
 * TCP_SAVE_SYN, TCP_MD5SIG and TCP_AO_* (no room for the option of the SYN).
 */

/* REUSEADDR BROADCAST SNDBUF RCVBUF KEEPALIVE OOBINLINE PRIORITY LINGER REUSEPORT RCVLOWAT
 * RCVTIMEO SNDTIMEO TIMESTAMP TIMESTAMPING PEEK_OFF BUSY_POLL MAX_PACING_RATE INCOMING_CPU
 * CNX_ADVICE ZEROCOPY TIMESTAMP_NEW */
#define SOCKET_SET                                                                                 \
	(BIT(2) | BIT(6) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | BIT(12) | BIT(13) | BIT(15) |      \
	 BIT(18) | BIT(20) | BIT(21) | BIT(29) | BIT(37) | BIT(42) | BIT(46) | BIT(47) | BIT(49) | \
	 BIT(53) | BIT(60) | BIT(63))
/* TIMESTAMPING_NEW RCVTIMEO_NEW SNDTIMEO_NEW PREFER_BUSY_POLL BUSY_POLL_BUDGET TXREHASH */
#define SOCKET_SET_FROM_64 (BIT(65 - 64) | BIT(66 - 64) | BIT(67 - 64) | BIT(69 - 64) | \
			    BIT(70 - 64) | BIT(74 - 64))
/* Readable beside them: TYPE ERROR PEERCRED ACCEPTCONN PROTOCOL DOMAIN MEMINFO INCOMING_NAPI_ID
 * COOKIE; NETNS_COOKIE */
#define SOCKET_GET                                                                                 \
	(SOCKET_SET | BIT(3) | BIT(4) | BIT(17) | BIT(30) | BIT(38) | BIT(39) | BIT(55) | BIT(56) | \
	 BIT(57))
#define SOCKET_GET_FROM_64 (SOCKET_SET_FROM_64 | BIT(71 - 64))
/* TOS TTL MTU_DISCOVER RECVTTL RECVTOS MINTTL BIND_ADDRESS_NO_PORT; readable: MTU */
#define IP_SET (BIT(1) | BIT(2) | BIT(10) | BIT(12) | BIT(13) | BIT(21) | BIT(24))
#define IP_GET (IP_SET | BIT(14))
/* UNICAST_HOPS MTU_DISCOVER V6ONLY RECVHOPLIMIT; RECVTCLASS TCLASS AUTOFLOWLABEL MINHOPCOUNT;
 * readable: MTU */
#define IPV6_SET (BIT(16) | BIT(23) | BIT(26) | BIT(51))
#define IPV6_SET_FROM_64 (BIT(66 - 64) | BIT(67 - 64) | BIT(70 - 64) | BIT(73 - 64))
#define IPV6_GET (IPV6_SET | BIT(24))
/* NODELAY MAXSEG CORK KEEPIDLE KEEPINTVL KEEPCNT SYNCNT LINGER2 DEFER_ACCEPT WINDOW_CLAMP QUICKACK
 * CONGESTION THIN_LINEAR_TIMEOUTS THIN_DUPACK USER_TIMEOUT NOTSENT_LOWAT ZEROCOPY_RECEIVE INQ
 * TX_DELAY RTO_MAX_MS */
#define TCP_SET                                                                                    \
	(BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | \
	 BIT(12) | BIT(13) | BIT(16) | BIT(17) | BIT(18) | BIT(25) | BIT(35) | BIT(36) | BIT(37) | \
	 BIT(44))
/* Readable beside them: INFO FASTOPEN CC_INFO FASTOPEN_CONNECT ULP IS_MPTCP */
#define TCP_GET (TCP_SET | BIT(11) | BIT(23) | BIT(26) | BIT(30) | BIT(31) | BIT(43))
/*
 * Fast open wants room in the SYN that the guard's option takes. Programs use it as a hint, so it
 * is accepted and ignored: FASTOPEN FASTOPEN_CONNECT FASTOPEN_KEY FASTOPEN_NO_COOKIE. (slimd sets
 * NO_COOKIE itself: MSG_FASTOPEN then puts data into the SYN and needs no room among the options.)
 */
#define TCP_IGNORED (BIT(23) | BIT(30) | BIT(33) | BIT(34))

static __always_inline int is_in(__u64 low, __u64 high, __u32 number)
{
	if (number < 64)
		return !!(low & (1ULL << number));
	if (number < 128)
		return !!(high & (1ULL << (number - 64)));
	return 0;
}

static __always_inline int may_set(__s32 level, __u32 name)
{
	switch (level) {
	case SOL_SOCKET:
		return is_in(SOCKET_SET, SOCKET_SET_FROM_64, name);
	case SOL_IP:
		return is_in(IP_SET, 0, name);
	case SOL_IPV6:
		return is_in(IPV6_SET, IPV6_SET_FROM_64, name);
	case SOL_TCP:
		return is_in(TCP_SET, 0, name);
	case SOL_TLS:
		return 1;
	}
	return 0;
}

static __always_inline int may_get(__s32 level, __u32 name)
{
	switch (level) {
	case SOL_SOCKET:
		return is_in(SOCKET_GET, SOCKET_GET_FROM_64, name);
	case SOL_IP:
		return is_in(IP_GET, 0, name);
	case SOL_IPV6:
		return is_in(IPV6_GET, IPV6_SET_FROM_64, name);
	case SOL_TCP:
		return is_in(TCP_GET, 0, name);
	case SOL_TLS:
		return 1;
	}
	return 0;
}

static __always_inline void clamp_priority(struct bpf_sockopt *ctx, struct guard_socket *record)
{
	__u32 *value = ctx->optval;

	if ((void *)(value + 1) <= ctx->optval_end && *value > record->max_priority)
		*value = record->max_priority;
}

/* The kernel takes four or eight bytes, by the length (sock_setsockopt). */
static __always_inline void clamp_pacing(struct bpf_sockopt *ctx, struct guard_socket *record)
{
	__u64 limit = record->max_pacing;

	if (!limit)
		return;
	if (ctx->optlen >= 8) {
		__u64 *value = ctx->optval;

		if ((void *)(value + 1) <= ctx->optval_end && *value > limit)
			*value = limit;
	} else {
		__u32 *value = ctx->optval;

		/* All ones means no limit, whatever the length. */
		if ((void *)(value + 1) <= ctx->optval_end && *value > limit)
			*value = (__u32)limit;
	}
}

/* "tls" is the one upper-layer protocol that stays what it is: a TCP connection. */
static __always_inline int is_tls(struct bpf_sockopt *ctx)
{
	char *name = ctx->optval;

	if (ctx->optlen < 3 || ctx->optlen > 4 || (void *)(name + 3) > ctx->optval_end)
		return 0;
	return name[0] == 't' && name[1] == 'l' && name[2] == 's';
}

SEC("cgroup/setsockopt")
int slim_setsockopt(struct bpf_sockopt *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);
	__s32 level = ctx->level;
	__u32 name = ctx->optname;

	if (record && record->flags & GUARD_OPEN)
		return PASS;
	if (!record)
		goto refuse;
	if (level == SOL_TCP && is_in(TCP_IGNORED, 0, name)) {
		/* -1: the kernel's own handler does not run, the call succeeds. */
		ctx->optlen = -1;
		return PASS;
	}
	if (level == SOL_TCP && name == TCP_ULP) {
		if (is_tls(ctx))
			return PASS;
		goto refuse;
	}
	if (!may_set(level, name))
		goto refuse;
	if (level == SOL_SOCKET && name == SO_PRIORITY)
		clamp_priority(ctx, record);
	if (level == SOL_SOCKET && name == SO_MAX_PACING_RATE)
		clamp_pacing(ctx, record);
	if (record->flags & GUARD_TOS_FIXED &&
	    ((level == SOL_IP && name == IP_TOS) || (level == SOL_IPV6 && name == IPV6_TCLASS)))
		ctx->optlen = -1;
	return PASS;
refuse:
	count(GUARD_REFUSED_OPTION);
	return REFUSE;
}

#define MAX_HIDDEN 128

/*
 * The kernel's own handler has run and has written to the program's memory: an error now would
 * leave there what it wrote. So what the program must not see is overwritten with zeros, and the
 * call succeeds. What is longer than any such answer is refused.
 */
SEC("cgroup/getsockopt")
int slim_getsockopt(struct bpf_sockopt *ctx)
{
	struct guard_socket *record = record_of(ctx->sk);
	__u8 *value = ctx->optval;
	__u8 *end = ctx->optval_end;

	if (record && record->flags & GUARD_OPEN)
		return PASS;
	if (record && may_get(ctx->level, ctx->optname))
		return PASS;
	count(GUARD_REFUSED_OPTION);
	/* Refused already, or an option that this kernel does not have: nothing was written. */
	if (ctx->retval)
		return PASS;
	if (ctx->optlen > MAX_HIDDEN)
		return REFUSE;
	for (int i = 0; i < MAX_HIDDEN; i++) {
		if (value + i + 1 > end)
			break;
		value[i] = 0;
	}
	return PASS;
}

/* --- the option of the SYN: sending ----------------------------------------------------------- */

/* A read of the context at a constant offset, whatever clang would like to share between branches. */
#define CONTEXT(field) (*(volatile const __u32 *)&ctx->field)

static __always_inline void tuple_of(struct bpf_sock_ops *ctx, struct guard_address *local,
				     struct guard_address *remote)
{
	if (ctx->family == AF_INET) {
		__be32 ip = CONTEXT(local_ip4);

		map_ipv4(local, ip);
		barrier();
		ip = CONTEXT(remote_ip4);
		map_ipv4(remote, ip);
		barrier();
	} else {
		local->word[0] = CONTEXT(local_ip6[0]);
		local->word[1] = CONTEXT(local_ip6[1]);
		local->word[2] = CONTEXT(local_ip6[2]);
		local->word[3] = CONTEXT(local_ip6[3]);
		remote->word[0] = CONTEXT(remote_ip6[0]);
		remote->word[1] = CONTEXT(remote_ip6[1]);
		remote->word[2] = CONTEXT(remote_ip6[2]);
		remote->word[3] = CONTEXT(remote_ip6[3]);
	}
}

/* Also for every retransmission of the SYN, which has the same sequence number. */
static __always_inline void seal_syn(struct bpf_sock_ops *ctx, struct guard_socket *record)
{
	struct tcphdr *tcp = ctx->skb_data;
	struct guard_option option = {};
	struct guard_sealed sealed = {};
	struct guard_sealing_key *key;
	__u32 peer = record->peer;
	__u64 mac;

	if ((void *)(tcp + 1) > ctx->skb_data_end)
		goto unsealed;
	key = bpf_map_lookup_elem(&sealing_keys, &peer);
	if (!key || is_over(key->key.expires))
		goto unsealed;
	option.kind = GUARD_OPTION_KIND;
	option.length = sizeof(option);
	option.magic = bpf_htons(GUARD_OPTION_MAGIC);
	option.flow = bpf_htonl(record->flow);
	option.source_port = record->local_port ? record->local_port : tcp->source;
	option.key_id = (__u8)key->id;

	tuple_of(ctx, &sealed.source, &sealed.destination);
	sealed.sequence = tcp->seq;
	sealed.source_port = tcp->source;
	sealed.destination_port = tcp->dest;
	sealed.flow = option.flow;
	sealed.overlay_port = option.source_port;
	sealed.key_id = option.key_id;
	mac = LITTLE_ENDIAN_64(siphash(&key->key, &sealed));
	__builtin_memcpy(option.mac, &mac, sizeof(option.mac));
	if (bpf_store_hdr_opt(ctx, &option, sizeof(option), 0))
		goto unsealed;
	count(GUARD_SYN_SEALED);
	return;
unsealed:
	count(GUARD_SYN_UNSEALED);
}

/* --- the label: from the SYN to the accepted socket ------------------------------------------- */

static __always_inline void label_inbound(struct bpf_sock_ops *ctx, struct guard_socket *record)
{
	struct guard_tuple tuple = {};
	struct guard_pending *label;

	tuple_of(ctx, &tuple.destination, &tuple.source);
	/* remote_port is in network order in the upper half of the word, local_port in host order. */
	tuple.source_port = (__be16)bpf_htons((__u16)bpf_ntohl(ctx->remote_port));
	tuple.destination_port = bpf_htons((__u16)ctx->local_port);
	/* The copy of the listener's record has its flags. */
	if (record->flags & GUARD_PREAMBLE) {
		/* slimd reads the record, gives the names and seals it before it hands it out. */
		record->flags &= ~(GUARD_LISTENER | GUARD_PREAMBLE | GUARD_OPEN);
		record->flow = 0;
		return;
	}
	record->flags &= ~(GUARD_LISTENER | GUARD_ADMIT | GUARD_OPEN);
	label = bpf_map_lookup_elem(&pending, &tuple);
	if (!label || label->workload != record->workload) {
		count(GUARD_UNLABELLED);
		return;
	}
	record->flow = label->flow;
	record->local = label->local;
	record->local_port = label->local_port;
	record->remote = label->source;
	record->remote_port = label->source_port;
	record->flags |= GUARD_BORN_BY_ACCEPT;
	bpf_map_delete_elem(&pending, &tuple);
	count(GUARD_LABELLED);
}

SEC("sockops")
int slim_sockops(struct bpf_sock_ops *ctx)
{
	struct guard_socket *record;
	struct bpf_sock *sk;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		break;
	default:
		return PASS;
	}
	sk = ctx->sk;
	if (!sk)
		return PASS;
	record = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!record)
		return PASS;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (record->flags & GUARD_ADMIT)
			bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
							       BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		if (ctx->skb_tcp_flags & TCP_FLAG_SYN_BYTE)
			bpf_reserve_hdr_opt(ctx, sizeof(struct guard_option), 0);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		if (ctx->skb_tcp_flags & TCP_FLAG_SYN_BYTE)
			seal_syn(ctx, record);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		/* The SYN is out: later segments cost nothing. */
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags &
						       ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		label_inbound(ctx, record);
		break;
	}
	return PASS;
}

/* --- admission -------------------------------------------------------------------------------- */

#define MAX_EXTENSION_HEADERS 8
#define MAX_TCP_OPTIONS 40

struct segment {
	struct guard_tuple tuple;
	__u32 sequence;
	__u32 options;	   /* offset of the first option */
	__u32 options_end;
	__u8 flags;
};

/* 0, or -1 when there is no whole TCP header to be found. */
static __always_inline int parse(struct __sk_buff *skb, struct segment *segment)
{
	struct tcphdr tcp;
	__u32 offset;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return -1;
		if (ip.version != 4 || ip.ihl < 5 || ip.protocol != IPPROTO_TCP)
			return -1;
		map_ipv4(&segment->tuple.source, ip.saddr);
		map_ipv4(&segment->tuple.destination, ip.daddr);
		offset = ip.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		__u8 next;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		__builtin_memcpy(&segment->tuple.source, &ip.saddr, 16);
		__builtin_memcpy(&segment->tuple.destination, &ip.daddr, 16);
		offset = sizeof(ip);
		next = ip.nexthdr;
		/* Fragments were put together before they came here (nf_defrag or ipv6_frag). */
		for (int i = 0; i < MAX_EXTENSION_HEADERS && next != IPPROTO_TCP; i++) {
			__u8 extension[2];

			if (bpf_skb_load_bytes(skb, offset, extension, sizeof(extension)))
				return -1;
			if (next == IPPROTO_FRAGMENT)
				offset += 8;
			else if (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING ||
				 next == IPPROTO_DSTOPTS)
				offset += (extension[1] + 1) * 8;
			else
				return -1;
			next = extension[0];
		}
		if (next != IPPROTO_TCP)
			return -1;
	} else {
		return -1;
	}
	if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)) || tcp.doff < 5)
		return -1;
	segment->tuple.source_port = tcp.source;
	segment->tuple.destination_port = tcp.dest;
	segment->sequence = bpf_ntohl(tcp.seq);
	segment->options = offset + sizeof(tcp);
	segment->options_end = offset + tcp.doff * 4;
	segment->flags = (tcp.syn ? TCP_FLAG_SYN_BYTE : 0) | (tcp.ack ? TCP_FLAG_ACK_BYTE : 0) |
			 (tcp.rst ? TCP_FLAG_RST_BYTE : 0);
	return 0;
}

/* 0 when found. The first of its kind counts; one that ends beyond the header counts as absent. */
static __always_inline int find_option(struct __sk_buff *skb, const struct segment *segment,
				       struct guard_option *option)
{
	__u32 at = segment->options;

	for (int i = 0; i < MAX_TCP_OPTIONS; i++) {
		__u8 head[2];

		if (at + sizeof(head) > segment->options_end ||
		    bpf_skb_load_bytes(skb, at, head, sizeof(head)))
			return -1;
		if (head[0] == 0)
			return -1;
		if (head[0] == 1) {
			at += 1;
			continue;
		}
		if (head[1] < 2)
			return -1;
		if (head[0] == GUARD_OPTION_KIND && head[1] == sizeof(*option)) {
			if (at + sizeof(*option) > segment->options_end ||
			    bpf_skb_load_bytes(skb, at, option, sizeof(*option)))
				return -1;
			return option->magic == bpf_htons(GUARD_OPTION_MAGIC) ? 0 : -1;
		}
		at += head[1];
	}
	return -1;
}

static __always_inline struct guard_inbound *find_inbound(__u32 flow, __u32 workload, __be16 port)
{
	struct guard_inbound *found = bpf_map_lookup_elem(&inbound, &flow);

	if (!found || found->workload != workload || found->host_port != port ||
	    is_over(found->expires))
		return 0;
	return found;
}

static __always_inline int drop(__u32 why)
{
	count(why);
	return REFUSE;
}

static __always_inline int admit_syn(struct __sk_buff *skb, struct segment *segment,
				     struct guard_socket *listener)
{
	struct guard_option option;
	struct guard_sealed sealed = {};
	struct guard_pending label = {};
	struct guard_key_name name = {};
	struct guard_inbound *flow;
	struct guard_key *key;
	__u64 expected, mac;

	if (find_option(skb, segment, &option))
		return drop(GUARD_DROPPED_NO_OPTION);
	flow = find_inbound(bpf_ntohl(option.flow), listener->workload,
			    segment->tuple.destination_port);
	if (!flow)
		return drop(GUARD_DROPPED_FLOW);
	name.peer = flow->peer;
	name.id = option.key_id;
	key = bpf_map_lookup_elem(&opening_keys, &name);
	if (!key || is_over(key->expires))
		return drop(GUARD_DROPPED_KEY);
	sealed.source = segment->tuple.source;
	sealed.destination = segment->tuple.destination;
	sealed.sequence = bpf_htonl(segment->sequence);
	sealed.source_port = segment->tuple.source_port;
	sealed.destination_port = segment->tuple.destination_port;
	sealed.flow = option.flow;
	sealed.overlay_port = option.source_port;
	sealed.key_id = option.key_id;
	sealed.flags = option.flags;
	expected = LITTLE_ENDIAN_64(siphash(key, &sealed));
	__builtin_memcpy(&mac, option.mac, sizeof(mac));
	if (mac != expected)
		return drop(GUARD_DROPPED_MAC);
	label.source = flow->source;
	label.source_port = option.source_port;
	label.local = flow->local;
	label.local_port = flow->local_port;
	label.flow = bpf_ntohl(option.flow);
	label.sequence = segment->sequence;
	label.workload = listener->workload;
	if (bpf_map_update_elem(&pending, &segment->tuple, &label, BPF_ANY))
		return drop(GUARD_DROPPED_FLOW);
	count(GUARD_ADMITTED);
	return PASS;
}

/*
 * What ends the handshake needs an admitted SYN, whose flow still lives: with SYN cookies the kernel
 * itself remembers nothing, and a guessed cookie would do.
 */
static __always_inline int admit_ack(struct segment *segment, struct guard_socket *listener)
{
	struct guard_pending *label = bpf_map_lookup_elem(&pending, &segment->tuple);

	if (!label || label->workload != listener->workload)
		return drop(GUARD_DROPPED_ACK);
	if (segment->sequence - label->sequence - 1 >= 1U << 30)
		return drop(GUARD_DROPPED_ACK);
	if (!find_inbound(label->flow, listener->workload, segment->tuple.destination_port))
		return drop(GUARD_DROPPED_FLOW);
	return PASS;
}

#ifndef BPF_TCP_SYN_SENT
#define BPF_TCP_SYN_SENT 2
#define BPF_TCP_LISTEN 10
#endif

/* Every segment for a guarded socket; only those to listeners, or that open, are looked into. */
SEC("cgroup_skb/ingress")
int slim_ingress(struct __sk_buff *skb)
{
	struct segment segment = {};
	struct guard_socket *record;
	struct bpf_sock *sk = skb->sk;
	__u32 state;

	if (!sk)
		return REFUSE;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return REFUSE;
	state = sk->state;
	if (state != BPF_TCP_LISTEN && state != BPF_TCP_SYN_SENT)
		return PASS;
	record = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!record)
		return drop(GUARD_DROPPED_STRAY);
	if (parse(skb, &segment))
		return drop(GUARD_DROPPED_MALFORMED);
	if (state == BPF_TCP_SYN_SENT) {
		/* A simultaneous open: nobody that slimd knows does that. */
		if ((segment.flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_ACK_BYTE)) == TCP_FLAG_SYN_BYTE)
			return drop(GUARD_DROPPED_STRAY);
		return PASS;
	}
	if (!(record->flags & GUARD_LISTENER))
		return drop(GUARD_DROPPED_STRAY);
	if (record->flags & GUARD_PREAMBLE) {
		if (bpf_ntohs(segment.tuple.destination_port) != record->flow)
			return drop(GUARD_DROPPED_STRAY);
		return PASS;
	}
	if (segment.flags & TCP_FLAG_RST_BYTE)
		return PASS;
	if (segment.flags & TCP_FLAG_SYN_BYTE) {
		if (segment.flags & TCP_FLAG_ACK_BYTE)
			return drop(GUARD_DROPPED_MALFORMED);
		return admit_syn(skb, &segment, record);
	}
	return admit_ack(&segment, record);
}

char _license[] SEC("license") = "GPL";
