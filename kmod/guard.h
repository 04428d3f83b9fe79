/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Layouts shared by the kernel guard and slimd (broker/guard/layouts.py, which a test compares
 * with the maps' sizes). Addresses are always 16 bytes: IPv4 is ::ffff:a.b.c.d. Addresses and ports
 * are in network byte order, everything else in the machine's. No implicit padding anywhere.
 *
 * Whoever changes a layout counts SLIM_GUARD_LAYOUT up: it names the directory in bpffs.
 */
#ifndef SLIM_GUARD_H
#define SLIM_GUARD_H

#define SLIM_GUARD_LAYOUT 1

struct guard_address {
	__be32 word[4];
};

/* guard_socket.flags */
#define GUARD_OPEN 1	 /* still slimd's alone: everything passes */
#define GUARD_LISTENER 2 /* a brokered listener, not a stray one */
#define GUARD_ADMIT 4	 /* its SYN carries the option */
#define GUARD_TOS_FIXED 8 /* policy set TOS: the program's wish is dropped */
#define GUARD_BORN_BY_ACCEPT 16 /* an accepted connection with a label */
/*
 * A listener that slimd accepts from: who connects is judged by the record that comes first, not
 * here. Its `flow` is the host port at which it listens: disconnected, and listening again at
 * another port, it is a stray one.
 */
#define GUARD_PREAMBLE 32

/*
 * One per guarded socket, in sk_storage; accepted sockets start with a copy of their listener's.
 * local and remote are overlay endpoints: what the name calls show. local_port 0: the host socket's.
 */
struct guard_socket {
	__u32 workload;
	__u32 flags;
	__u32 flow;
	__u32 peer;
	struct guard_address local;
	struct guard_address remote;
	__be16 local_port;
	__be16 remote_port;
	__u32 max_priority;
	__u64 max_pacing; /* bytes per second; 0: no limit */
};

struct guard_route_key {
	__u32 workload;
	__be16 port;
	__u16 zero;
	struct guard_address destination;
};

struct guard_route {
	struct guard_address host;
	struct guard_address source; /* the overlay address that getsockname shows */
	__u32 flow;
	__u32 peer;
	__be16 host_port;
	__u16 admit; /* 1: by the SYN option */
	__u32 zero;
	__u64 expires; /* CLOCK_MONOTONIC, ns */
};

struct guard_key_name {
	__u32 peer;
	__u32 id; /* 0 to 255 */
};

struct guard_key {
	__u64 word[2];
	__u64 expires;
};

struct guard_sealing_key {
	struct guard_key key;
	__u64 id;
};

struct guard_inbound {
	struct guard_address source; /* the overlay address of the connecting workload */
	struct guard_address local;  /* the overlay address that it connects to */
	__u32 peer;
	__u32 workload;
	__be16 local_port;
	__be16 host_port;
	__u32 zero;
	__u64 expires;
};

/* The full host 4-tuple: one host may use a source port twice towards different ports. */
struct guard_tuple {
	struct guard_address source;
	struct guard_address destination;
	__be16 source_port;
	__be16 destination_port;
};

struct guard_pending {
	struct guard_address source;
	struct guard_address local;
	__u32 flow;
	__u32 sequence; /* the SYN's */
	__be16 source_port;
	__be16 local_port;
	__u32 workload;
};

/* The TCP option of a SYN: what MSS, SACK, timestamps and window scale leave of 40 bytes. */
#define GUARD_OPTION_KIND 253 /* RFC 4727: for experiments */
#define GUARD_OPTION_MAGIC 0x534c

struct guard_option {
	__u8 kind;
	__u8 length;
	__be16 magic;
	__be32 flow;
	__be16 source_port;
	__u8 key_id;
	__u8 flags;
	__u8 mac[8];
} __attribute__((packed));

/* What the MAC of the option covers. */
struct guard_sealed {
	struct guard_address source;
	struct guard_address destination;
	__be32 sequence;
	__be16 source_port;
	__be16 destination_port;
	__be32 flow;
	__be16 overlay_port;
	__u8 key_id;
	__u8 flags;
};

enum guard_counter {
	GUARD_SYN_SEALED,
	GUARD_SYN_UNSEALED, /* no room or no key: the peer will drop it */
	GUARD_ADMITTED,
	GUARD_DROPPED_NO_OPTION,
	GUARD_DROPPED_FLOW,
	GUARD_DROPPED_KEY,
	GUARD_DROPPED_MAC,
	GUARD_DROPPED_ACK,
	GUARD_DROPPED_STRAY,
	GUARD_DROPPED_MALFORMED,
	GUARD_LABELLED,
	GUARD_UNLABELLED,
	GUARD_REFUSED_CONNECT,
	GUARD_REFUSED_BIND,
	GUARD_REFUSED_OPTION,
	GUARD_COUNTERS,
};

#endif
