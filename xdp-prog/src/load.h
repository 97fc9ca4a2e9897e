/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * What the load generator's programs and the Rust side both know. Rust's twins are in load.rs; sizes are asserted here and
 * there, and a Rust test compares the numbers and the list of judgements with this text.
 */
#pragma once

#include <linux/types.h>

/*
 * Histograms are log-linear, as HdrHistogram's with three significant digits: exact below 2^11, then 2^10 buckets for each
 * power of two, up to LATENCY_MAX nanoseconds. A per-CPU value may take 32 KiB, so a histogram lies in several.
 */
#define BUCKET_BITS 11
#define LATENCY_MAX 60000000000
#define BUCKETS_PER_VALUE 4096
#define VALUES_PER_HISTOGRAM 7

#define HISTOGRAM_ROUND_TRIP 0
#define HISTOGRAM_TURNAROUND 1
#define HISTOGRAM_SEND_DELAY 2
#define HISTOGRAMS 3

/*
 * An entry of the table of outstanding requests: in the upper bits which of the requests that share the slot, in the lower
 * ones its intended time in nanoseconds after the start, plus 1; those are 0 once it has its reply. 48 bits are 78 hours.
 */
#define INTENDED_BITS 48

/* Kiss codes that are told apart. RFC 5905 section 7.4 knows 14. */
#define KISS_CODES_MAX 64

/* What does not change during a step. Host order, except where it says wire. */
struct load_settings {
	__u64 first_upper;       /* the first client's IPv6 address, upper half */
	__u64 first_lower;       /* lower half, or the IPv4 address */
	__u64 clients;           /* how many */
	__u64 addresses;         /* how many different addresses they have */
	__u64 interval;          /* whole nanoseconds between requests */
	__u64 interval_fraction; /* 2^-64 ns more */
	__u64 requests_max;      /* none are sent beyond so many */
	__u64 sent_within;       /* nor later than so many nanoseconds after the start */
	__u64 timeout;           /* nanoseconds after which a reply is late */
	__u8 target[16];         /* wire; IPv4 in the first four */
	__u32 nonce;             /* upper half of the transmit timestamps */
	__u32 ifindex;           /* where requests leave */
	__u32 slot_bits;         /* the table of outstanding requests has 2^slot_bits entries */
	__u16 port;              /* the target's */
	__u16 ip_sum;            /* what the template's IPv4 header sums up to */
	__u16 udp_sum;           /* and its datagram with the pseudo header */
	__u8 is_v6;
	__u8 differ_in_upper;    /* IPv6 clients differ in the upper half of their addresses */
	__u8 saturate;           /* every request is due at once */
	__u8 is_echo;            /* the reply is the request itself */
	__u8 padding[2];
};
_Static_assert(sizeof(struct load_settings) == 112, "twin: Settings");

/* How far the sender is. It is the only one that writes this. */
struct load_progress {
	__u64 start;        /* CLOCK_MONOTONIC of the first request, nanoseconds; 0 before it */
	__u64 due;          /* the next request's intended time */
	__u64 due_fraction; /* 2^-64 ns more */
	__u64 sent;         /* requests so far, and so the next one's number */
	__u64 last;         /* when the last one was sent */
};
_Static_assert(sizeof(struct load_progress) == 40, "twin: Progress");

/* What a frame is: the index of its counter. In Rust: `Flaw`, then `Counter`, same order. */
enum judged {
	JUDGED_CHECKSUM,
	JUDGED_LENGTH,
	JUDGED_MODE,
	JUDGED_ORIGIN,
	JUDGED_DESTINATION,
	JUDGED_STRATUM,
	JUDGED_ORDER,
	JUDGED_ANSWERED,
	JUDGED_LATE,
	JUDGED_DUPLICATE,
	JUDGED_KISS,
	JUDGED_NOT_OURS,
	/* These come on top. */
	COUNTED_UNFINISHED,      /* answered or late, its checksum unfinished */
	COUNTED_KISS_UNNAMED,    /* a kiss with one code more than KISS_CODES_MAX */
	COUNTERS
};

struct load_counts {
	__u64 counts[COUNTERS];
};
_Static_assert(sizeof(struct load_counts) == 14 * 8, "twin: Counter");
