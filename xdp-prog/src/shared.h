/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * What the XDP program and the Rust side both know. Rust's twins are in lib.rs; sizes and offsets are asserted here and
 * there, and a Rust test compares the numbers and the list of verdicts with this text.
 */
#pragma once

#include <linux/types.h>

/*
 * Map sizes.
 *
 * LOCAL_ADDRESSES_MAX: one entry per address and VLAN of one NIC; a full 12-bit VLAN space with one address each.
 * DENIED_PREFIXES_MAX: per address family. Public block lists hold tens of thousands of prefixes; entries are allocated
 * as they come (LPM tries cannot be preallocated), so the limit costs nothing until it is used.
 * QUEUES_DEFAULT: only what the object says; the loader sets the interface's own number of queues.
 */
#define LOCAL_ADDRESSES_MAX 4096
#define DENIED_PREFIXES_MAX 65536
#define QUEUES_DEFAULT 64

/*
 * The longest frame we redirect, in bytes: an Ethernet header, two VLAN tags and 1500 bytes of IP. The kernel drops a
 * frame that does not fit its umem chunk (2048 bytes, of which 256 are headroom), so longer ones take the socket path.
 */
#define FRAME_LENGTH_MAX 1522

/* The value of the deny maps: 0 lets the nested prefix through again. */
#define ACTION_SERVE 0
#define ACTION_DROP 1

/* A local address and the VLAN tags it is reached through. IDs in host order, 0 = no tag; addresses as on the wire. */
struct local_v4 {
	__u16 outer_vlan;
	__u16 inner_vlan;
	__u8 address[4];
};
_Static_assert(sizeof(struct local_v4) == 8, "twin: LocalV4");
_Static_assert(__builtin_offsetof(struct local_v4, address) == 4, "twin: LocalV4");

struct local_v6 {
	__u16 outer_vlan;
	__u16 inner_vlan;
	__u8 address[16];
};
_Static_assert(sizeof(struct local_v6) == 20, "twin: LocalV6");
_Static_assert(__builtin_offsetof(struct local_v6, address) == 4, "twin: LocalV6");

/* The value of both maps of local addresses: the MAC at which the address is reached, as on the wire. */
struct local_mac {
	__u8 mac[6];
	__u8 padding[2];
};
_Static_assert(sizeof(struct local_mac) == 8, "twin: LocalMac");
_Static_assert(__builtin_offsetof(struct local_mac, mac) == 0, "twin: LocalMac");

/* Keys of the deny tries; the layout is the kernel's (struct bpf_lpm_trie_key). */
struct prefix_v4 {
	__u32 length;
	__u8 address[4];
};
_Static_assert(sizeof(struct prefix_v4) == 8, "kernel: bpf_lpm_trie_key");

struct prefix_v6 {
	__u32 length;
	__u8 address[16];
};
_Static_assert(sizeof(struct prefix_v6) == 20, "kernel: bpf_lpm_trie_key");

/*
 * What spares requests their look-ups. It says "yes" or nothing: where it does not match, the maps decide, and they hold
 * whatever is in here too.
 *
 * The kernel writes it byte by byte while the program reads it. The flags are one byte that changes. An address is written
 * only while its flag is off and no run is under way that has seen it on, and the flag goes on only when no run is under
 * way that has seen it half written (see shortcuts.rs): whoever sees the flag on sees an address that was there as a whole.
 */
struct shortcut_v4 {
	__u32 on; /* 0: the address is not to be looked at */
	struct local_v4 local;
	struct local_mac reached_at;
};
_Static_assert(sizeof(struct shortcut_v4) == 20, "twin: ShortcutV4");

struct shortcut_v6 {
	__u32 on;
	struct local_v6 local;
	struct local_mac reached_at;
};
_Static_assert(sizeof(struct shortcut_v6) == 32, "twin: ShortcutV6");

struct shortcuts {
	/* Is any prefix dropped? On after its first prefix came into the trie, off before the last one leaves it. */
	__u32 any_denied_v4;
	__u32 any_denied_v6;
	/* One of our addresses of each family: the lowest by tags and number when it was chosen, kept while it is ours. */
	struct shortcut_v4 first_v4;
	struct shortcut_v6 first_v6;
};
_Static_assert(sizeof(struct shortcuts) == 60, "twin: Shortcuts");
_Static_assert(__builtin_offsetof(struct shortcuts, first_v4) == 8, "twin: Shortcuts");
_Static_assert(__builtin_offsetof(struct shortcuts, first_v6) == 28, "twin: Shortcuts");

/* The receive stamp, right before the packet. The AF_XDP descriptor does not say that metadata is there: the magic does. */
#define RX_STAMP_MAGIC 0x74626c31 /* "tbl1" */
#define RX_STAMP_TAI 1
#define RX_STAMP_NIC 2

struct rx_stamp {
	__u32 magic;
	__u32 kind;            /* bits RX_STAMP_*: which of the stamps below are valid */
	__u64 tai_nanoseconds; /* CLOCK_TAI when the program ran */
	__u64 nic_nanoseconds; /* the NIC's own clock, of whatever epoch, when the frame arrived */
};
_Static_assert(sizeof(struct rx_stamp) == 24, "twin: RxStamp; the driver wants a multiple of 4, up to 32");
_Static_assert(__builtin_offsetof(struct rx_stamp, kind) == 4, "twin: RxStamp");
_Static_assert(__builtin_offsetof(struct rx_stamp, tai_nanoseconds) == 8, "twin: RxStamp");
_Static_assert(__builtin_offsetof(struct rx_stamp, nic_nanoseconds) == 16, "twin: RxStamp");

/* What became of a packet: the index of its counter. In Rust: `Verdict`, same names, same order. */
enum verdict {
	VERDICT_REDIRECTED,
	VERDICT_REDIRECTED_WITHOUT_METADATA,
	VERDICT_DROPPED_DENIED,
	VERDICT_PASSED_MULTICAST_MAC,
	VERDICT_PASSED_TAGS_TOO_DEEP,
	VERDICT_PASSED_NOT_IP,
	VERDICT_PASSED_NOT_UDP,
	VERDICT_PASSED_FRAGMENT,
	VERDICT_PASSED_OPTIONS,
	VERDICT_PASSED_OTHER_PORT,
	VERDICT_PASSED_TOO_SHORT,
	VERDICT_PASSED_TOO_LONG,
	VERDICT_PASSED_INCONSISTENT,
	VERDICT_PASSED_OTHER_MODE,
	VERDICT_PASSED_OTHER_VERSION,
	VERDICT_PASSED_NOT_OUR_ADDRESS,
	VERDICT_PASSED_OTHER_MAC,
	VERDICT_PASSED_NO_SOCKET,
	VERDICTS
};
