// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
/*
 * The load generator inside the kernel: `ask` sends requests when they are due, `hear` judges and counts the replies.
 *
 * Owns: pacing, the varying fields of a request, the rules for replies (the second time: src/load/judge.rs is the
 * reference, and a test compares the two), latencies. Does not own: the template, the plan, or what is made of the counts.
 *
 * The one idea: nothing arrives that starts `ask`. BPF_PROG_RUN calls it with one preset frame after the other, "live": what it
 * redirects really leaves. It cannot wait, so it drops the frame when nothing is due, and the kernel hands it to the
 * program again. So it does with frames that came back from the wire, as whoever had them last left them: over veth that
 * is the server, which may have turned the request into its reply right there.
 */
#include "load.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FIRST_PORT 1024
#define IP_MORE_FRAGMENTS_OR_OFFSET 0x3fff
#define IPV4_WITHOUT_OPTIONS 0x45
#define NTP_MODE_CLIENT 3
#define NTP_MODE_SERVER 4
#define NTP_VERSION 4
#define LEAP_UNSYNCHRONISED 3
#define STRATUM_MAX 15
#define NTP_DATAGRAM (sizeof(struct udphdr) + sizeof(struct ntp_header))
#define IPV4_REQUEST (sizeof(struct ethhdr) + sizeof(struct iphdr) + NTP_DATAGRAM)
#define IPV6_REQUEST (sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + NTP_DATAGRAM)
/* No reply to 48 octets is longer than what Ethernet carries in one piece. A longer one is left to the kernel. */
#define DATAGRAM_MAX 1480

/* Set by the loader. Whoever casts must keep "volatile": clang takes the zeros here for the values otherwise. */
const volatile struct load_settings SETTINGS = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct load_progress);
} progress_of_sender SEC(".maps");

/* Request number modulo size -> see INTENDED_BITS. The loader sets the size, and reads it where it lies. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} outstanding SEC(".maps");

struct buckets {
	__u64 counts[BUCKETS_PER_VALUE];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HISTOGRAMS * VALUES_PER_HISTOGRAM);
	__type(key, __u32);
	__type(value, struct buckets);
} latencies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct load_counts);
} counts SEC(".maps");

/* Kiss code, as on the wire -> packets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KISS_CODES_MAX);
	__type(key, __u32);
	__type(value, __u64);
} kisses SEC(".maps");

struct ntp_header {
	__u8 leap_version_mode;
	__u8 stratum;
	__u8 poll;
	__u8 precision;
	__u32 root_delay;
	__u32 root_dispersion;
	__u32 reference_id;
	__be64 reference_timestamp;
	__be64 origin_timestamp;
	__be64 receive_timestamp;
	__be64 transmit_timestamp;
} __attribute__((packed));

/* ---- what both programs do ---- */

static __always_inline void record(__u32 histogram, __u64 nanoseconds)
{
	__u32 shift = 0, bucket, key;
	struct buckets *buckets;
	__u64 above;

	if (nanoseconds > LATENCY_MAX)
		nanoseconds = LATENCY_MAX;
	/* How many bits there are above the first BUCKET_BITS: at most 25, since LATENCY_MAX is below 2^36. */
	above = nanoseconds >> BUCKET_BITS;
	for (__u32 step = 16; step; step /= 2) {
		if (above >> step) {
			above >>= step;
			shift += step;
		}
	}
	shift += above != 0;
	bucket = (shift << (BUCKET_BITS - 1)) + (__u32)(nanoseconds >> shift);
	key = histogram * VALUES_PER_HISTOGRAM + bucket / BUCKETS_PER_VALUE;
	buckets = bpf_map_lookup_elem(&latencies, &key);
	if (buckets)
		buckets->counts[bucket % BUCKETS_PER_VALUE]++;
}

/* A simulated client: `Clients::get` in C. */
struct client {
	__u64 upper;
	__u64 lower;
	__u16 port;
};

static __always_inline struct client client_of(__u32 sequence)
{
	struct client client = { SETTINGS.first_upper, SETTINGS.first_lower, FIRST_PORT };
	__u64 index = sequence, step;

	/* Divisions are dear, and with many clients there is nothing to divide. */
	if (index >= SETTINGS.clients)
		index %= SETTINGS.clients;
	step = index;
	if (step >= SETTINGS.addresses) {
		client.port += index / SETTINGS.addresses;
		step = index % SETTINGS.addresses;
	}
	if (SETTINGS.differ_in_upper)
		client.upper += step;
	else
		client.lower += step;
	return client;
}

/* One's complement sums work in either byte order, so ours are of words as loaded. */
static __always_inline __u64 sum_of_word(__u64 word)
{
	return (word & 0xffffffff) + (word >> 32);
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u32 slot_of(__u32 sequence)
{
	return sequence & ((1U << SETTINGS.slot_bits) - 1);
}

/* The upper bits of an entry. */
static __always_inline __u64 generation_of(__u32 sequence)
{
	return (__u64)(sequence >> SETTINGS.slot_bits) << INTENDED_BITS;
}

/* ---- ask ---- */

static __always_inline void finish_udp(struct udphdr *udp, struct ntp_header *ntp, __u64 addresses, __u16 port,
				       __u32 sequence)
{
	__be64 transmit = bpf_cpu_to_be64((__u64)SETTINGS.nonce << 32 | sequence);
	__u64 sum = addresses + bpf_htons(SETTINGS.udp_sum) + bpf_htons(port) + sum_of_word(transmit);
	__u16 checksum = ~fold(sum);

	udp->source = bpf_htons(port);
	udp->check = checksum ? checksum : 0xffff;
	ntp->transmit_timestamp = transmit;
}

/* Write the template's first `length` octets, an even constant. */
static __always_inline void copy_template(void *frame, __u32 length)
{
	const volatile __u16 *rest = (const volatile __u16 *)SETTINGS.template;
	__u32 at = 0;

#pragma clang loop unroll(full)
	for (; at + sizeof(__u64) <= length; at += sizeof(__u64))
		*(__u64 *)(frame + at) = SETTINGS.template[at / sizeof(__u64)];
#pragma clang loop unroll(full)
	for (; at < length; at += sizeof(__u16))
		*(__u16 *)(frame + at) = rest[at / sizeof(__u16)];
}

/* Make the frame request number `sequence`, whatever it was before. 0 = done. */
static __always_inline int fill(struct xdp_md *ctx, __u32 sequence)
{
	void *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	void *ip = frame + sizeof(struct ethhdr);
	struct client client = client_of(sequence);
	struct udphdr *udp;
	struct ntp_header *ntp;
	__u64 sum;

	if (SETTINGS.is_v6) {
		struct ipv6hdr *v6 = ip;
		__be64 upper = bpf_cpu_to_be64(client.upper), lower = bpf_cpu_to_be64(client.lower);

		udp = (void *)(v6 + 1);
		ntp = (void *)(udp + 1);
		if ((void *)(ntp + 1) > end)
			return -1;
		copy_template(frame, IPV6_REQUEST);
		__builtin_memcpy(&v6->saddr, &upper, sizeof(upper));
		__builtin_memcpy((void *)&v6->saddr + sizeof(upper), &lower, sizeof(lower));
		sum = sum_of_word(upper) + sum_of_word(lower);
	} else {
		struct iphdr *v4 = ip;

		udp = (void *)(v4 + 1);
		ntp = (void *)(udp + 1);
		if ((void *)(ntp + 1) > end)
			return -1;
		copy_template(frame, IPV4_REQUEST);
		v4->saddr = bpf_htonl(client.lower);
		sum = v4->saddr;
		v4->check = ~fold(sum + bpf_htons(SETTINGS.ip_sum));
	}
	finish_udp(udp, ntp, sum, client.port, sequence);
	return 0;
}

/* The next request's time: the interval has 64 bits below the nanosecond, so the sum of 2^32 of them is still exact. */
static __always_inline void advance(struct load_progress *progress)
{
	__u64 fraction = progress->due_fraction + SETTINGS.interval_fraction;

	progress->due += SETTINGS.interval + (fraction < progress->due_fraction);
	progress->due_fraction = fraction;
}

static __always_inline int ask_next(struct xdp_md *ctx)
{
	__u32 zero = 0, sequence, slot;
	struct load_progress *progress = bpf_map_lookup_elem(&progress_of_sender, &zero);
	__u64 now = bpf_ktime_get_ns();
	__u64 *entry;

	if (!progress)
		return XDP_DROP;
	if (!progress->start)
		progress->start = progress->due = now;
	if (SETTINGS.saturate)
		progress->due = now;
	if (now < progress->due)
		return XDP_DROP;
	if (progress->sent >= SETTINGS.requests_max || now - progress->start > SETTINGS.sent_within)
		return XDP_DROP;

	sequence = progress->sent;
	slot = slot_of(sequence);
	entry = bpf_map_lookup_elem(&outstanding, &slot);
	if (!entry || fill(ctx, sequence))
		return XDP_DROP;
	*entry = generation_of(sequence) | (progress->due - progress->start + 1);
	record(HISTOGRAM_SEND_DELAY, now - progress->due);
	progress->last = now;
	progress->sent++;
	advance(progress);
	return bpf_redirect(SETTINGS.ifindex, 0);
}

/* ---- hear ---- */

/* A datagram from the target's port, and what is known of it so far. */
struct reply {
	struct udphdr *udp;
	void *end;           /* of the frame */
	__u64 addresses;     /* their sum */
	__u64 upper;         /* the destination, as `struct client` has it */
	__u64 lower;
	__u16 length;        /* of the datagram */
	__u32 sequence;      /* of the request that it answers */
	__u64 turnaround;    /* T3 - T2, nanoseconds */
	__u32 kiss;          /* the kiss code, as on the wire */
	int is_unfinished;   /* the checksum is that of the pseudo header */
};

/* The sum of the datagram. */
static __always_inline __u64 sum_of_datagram(const struct reply *reply)
{
	void *udp = reply->udp, *end = reply->end, *rest;
	__u32 length = reply->length;
	__u64 sum = 0;

	if (length == NTP_DATAGRAM) {
		__u32 *words = udp;

		if (udp + NTP_DATAGRAM > end)
			return 0;
#pragma clang loop unroll(full)
		for (__u32 i = 0; i < NTP_DATAGRAM / sizeof(*words); i++)
			sum += words[i];
		return sum;
	}
	if (length > DATAGRAM_MAX)
		return 0;
	rest = udp + (length & ~3U);
	if (length & 2) {
		if (rest + sizeof(__u16) > end)
			return 0;
		sum += *(__u16 *)rest;
		rest += sizeof(__u16);
	}
	if (length & 1) {
		if (rest + 1 > end)
			return 0;
		sum += bpf_htons((__u16)(*(__u8 *)rest << 8));
	}
#pragma clang loop unroll(disable)
	for (__u32 at = 0; at < DATAGRAM_MAX; at += sizeof(__u32)) {
		__u32 *word = udp + at;

		if (at + sizeof(*word) > length || (void *)(word + 1) > end)
			break;
		sum += *word;
	}
	return sum;
}

/* Is the UDP checksum right, or unfinished, or (0) wrong? None at all is right over IPv4. */
static __always_inline int verify(struct reply *reply)
{
	__u64 pseudo = reply->addresses + bpf_htons(IPPROTO_UDP) + bpf_htons(reply->length);

	if (!reply->udp->check)
		return !SETTINGS.is_v6;
	if (fold(pseudo + sum_of_datagram(reply)) == 0xffff)
		return 1;
	reply->is_unfinished = reply->udp->check == fold(pseudo);
	return reply->is_unfinished;
}

/* Four upper case letters? */
static __always_inline int is_kiss_code(__u32 code)
{
	for (int i = 0; i < 4; i++, code >>= 8) {
		__u8 character = code;

		if (character < 'A' || character > 'Z')
			return 0;
	}
	return 1;
}

static __always_inline enum judged judge_ntp(struct reply *reply)
{
	struct ntp_header *ntp = (void *)(reply->udp + 1);
	__u8 mode = SETTINGS.is_echo ? NTP_MODE_CLIENT : NTP_MODE_SERVER;
	struct client client;
	__u64 carried, received, sent, turnaround;

	if (reply->length < NTP_DATAGRAM || (void *)(ntp + 1) > reply->end)
		return JUDGED_LENGTH;
	if ((ntp->leap_version_mode & 0x3f) != (NTP_VERSION << 3 | mode))
		return JUDGED_MODE;
	carried = bpf_be64_to_cpu(SETTINGS.is_echo ? ntp->transmit_timestamp : ntp->origin_timestamp);
	if (carried >> 32 != SETTINGS.nonce)
		return JUDGED_ORIGIN;
	reply->sequence = carried;
	client = client_of(reply->sequence);
	if (client.upper != reply->upper || client.lower != reply->lower || reply->udp->dest != bpf_htons(client.port))
		return JUDGED_DESTINATION;
	if (SETTINGS.is_echo)
		return JUDGED_ANSWERED;

	reply->kiss = ntp->reference_id;
	if (!ntp->stratum && is_kiss_code(reply->kiss))
		return JUDGED_KISS;
	if (ntp->leap_version_mode >> 6 == LEAP_UNSYNCHRONISED || !ntp->stratum || ntp->stratum > STRATUM_MAX)
		return JUDGED_STRATUM;
	received = bpf_be64_to_cpu(ntp->receive_timestamp);
	sent = bpf_be64_to_cpu(ntp->transmit_timestamp);
	turnaround = sent - received;
	if (!received || !sent || turnaround >> 63)
		return JUDGED_ORDER;
	/* Seconds and their fractions apart, so that neither product overflows. */
	reply->turnaround = (turnaround >> 32) * 1000000000 + (((turnaround & 0xffffffff) * 1000000000) >> 32);
	return JUDGED_ANSWERED;
}

static __always_inline enum judged judge_v4(struct reply *reply, void *ip, __u32 available)
{
	struct iphdr *v4 = ip;
	__u32 *words = ip, length;
	__u64 sum = 0;

	if ((void *)(v4 + 1) > reply->end || *(__u8 *)ip != IPV4_WITHOUT_OPTIONS ||
	    v4->frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET) || v4->protocol != IPPROTO_UDP)
		return JUDGED_NOT_OURS;
	length = bpf_ntohs(v4->tot_len);
	if (length > available)
		return JUDGED_NOT_OURS;
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < sizeof(*v4) / sizeof(*words); i++)
		sum += words[i];
	if (fold(sum) != 0xffff)
		return JUDGED_CHECKSUM;
	reply->udp = (void *)(v4 + 1);
	if ((void *)(reply->udp + 1) > reply->end)
		return JUDGED_NOT_OURS;
	reply->length = bpf_ntohs(reply->udp->len);
	if (reply->length < sizeof(struct udphdr) || sizeof(*v4) + reply->length > length)
		return JUDGED_NOT_OURS;
	if (v4->saddr != *(const volatile __u32 *)SETTINGS.target || reply->udp->source != bpf_htons(SETTINGS.port) ||
	    reply->length > DATAGRAM_MAX)
		return JUDGED_NOT_OURS;
	reply->addresses = (__u64)v4->saddr + v4->daddr;
	reply->lower = bpf_ntohl(v4->daddr);
	return verify(reply) ? judge_ntp(reply) : JUDGED_CHECKSUM;
}

static __always_inline enum judged judge_v6(struct reply *reply, void *ip, __u32 available)
{
	struct ipv6hdr *v6 = ip;
	const volatile __u64 *target = (const volatile __u64 *)SETTINGS.target;
	__u64 source[2], destination[2];
	__u32 length;

	if ((void *)(v6 + 1) > reply->end || v6->version != 6 || v6->nexthdr != IPPROTO_UDP)
		return JUDGED_NOT_OURS;
	length = bpf_ntohs(v6->payload_len);
	if (sizeof(*v6) + length > available)
		return JUDGED_NOT_OURS;
	reply->udp = (void *)(v6 + 1);
	if ((void *)(reply->udp + 1) > reply->end)
		return JUDGED_NOT_OURS;
	reply->length = bpf_ntohs(reply->udp->len);
	if (reply->length < sizeof(struct udphdr) || reply->length > length || !reply->udp->check)
		return JUDGED_NOT_OURS;
	__builtin_memcpy(source, &v6->saddr, sizeof(source));
	__builtin_memcpy(destination, &v6->daddr, sizeof(destination));
	if (source[0] != target[0] || source[1] != target[1] || reply->udp->source != bpf_htons(SETTINGS.port) ||
	    reply->length > DATAGRAM_MAX)
		return JUDGED_NOT_OURS;
	reply->addresses = sum_of_word(source[0]) + sum_of_word(source[1]) + sum_of_word(destination[0]) +
			   sum_of_word(destination[1]);
	reply->upper = bpf_be64_to_cpu(destination[0]);
	reply->lower = bpf_be64_to_cpu(destination[1]);
	return verify(reply) ? judge_ntp(reply) : JUDGED_CHECKSUM;
}

static __always_inline enum judged judge_frame(void *frame, void *end, struct reply *reply)
{
	struct ethhdr *ethernet = frame;
	__u32 available = end - frame - sizeof(*ethernet);

	reply->end = end;
	if ((void *)(ethernet + 1) > end)
		return JUDGED_NOT_OURS;
	if (!SETTINGS.is_v6 && ethernet->h_proto == bpf_htons(ETH_P_IP))
		return judge_v4(reply, ethernet + 1, available);
	if (SETTINGS.is_v6 && ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		return judge_v6(reply, ethernet + 1, available);
	return JUDGED_NOT_OURS;
}

/*
 * Take the request that the reply is for off the table; its latency in nanoseconds. What cannot be taken: `*judged` says
 * why. The exchange lets one of two CPUs win that see two replies to the same request at once.
 */
static __always_inline __u64 take_request(struct reply *reply, __u64 now, enum judged *judged)
{
	__u32 zero = 0, slot = slot_of(reply->sequence);
	struct load_progress *progress = bpf_map_lookup_elem(&progress_of_sender, &zero);
	__u64 *entry = bpf_map_lookup_elem(&outstanding, &slot);
	__u64 generation = generation_of(reply->sequence), found, intended;

	if (!progress || !entry)
		return 0;
	found = *(volatile __u64 *)entry;
	intended = found & ((1ULL << INTENDED_BITS) - 1);
	if (found - intended == generation && intended &&
	    __sync_val_compare_and_swap(entry, found, generation) == found)
		return now - (progress->start + intended - 1);
	if (reply->sequence >= *(volatile __u64 *)&progress->sent)
		*judged = JUDGED_ORIGIN;
	else if (found - intended != generation)
		/* A younger request has its place: the table holds more than the timeout's worth. */
		*judged = JUDGED_LATE;
	else
		*judged = JUDGED_DUPLICATE;
	return 0;
}

/* Returns whether the code has a counter. */
static __always_inline int count_kiss(__u32 code)
{
	__u64 *counter = bpf_map_lookup_elem(&kisses, &code), one = 1;

	if (!counter) {
		if (!bpf_map_update_elem(&kisses, &code, &one, BPF_NOEXIST))
			return 1;
		/* Another CPU was faster, or the table is full. */
		counter = bpf_map_lookup_elem(&kisses, &code);
		if (!counter)
			return 0;
	}
	__sync_fetch_and_add(counter, 1);
	return 1;
}

/* Judge and count a frame. Returns whether it was a reply of ours. */
static __always_inline int hear_one(void *frame, void *end)
{
	__u64 now = bpf_ktime_get_ns(), latency = 0;
	struct reply reply = {};
	enum judged judged = judge_frame(frame, end, &reply);
	struct load_counts *counters;
	__u32 zero = 0;

	if (judged == JUDGED_NOT_OURS)
		return 0;
	counters = bpf_map_lookup_elem(&counts, &zero);
	if (!counters)
		return 0;
	if (judged == JUDGED_KISS) {
		take_request(&reply, now, &judged);
		if (judged == JUDGED_KISS && !count_kiss(reply.kiss))
			counters->counts[COUNTED_KISS_UNNAMED]++;
	} else if (judged == JUDGED_ANSWERED) {
		latency = take_request(&reply, now, &judged);
		if (judged == JUDGED_ANSWERED && latency > SETTINGS.timeout)
			judged = JUDGED_LATE;
		if (judged == JUDGED_ANSWERED)
			record(HISTOGRAM_ROUND_TRIP, latency);
		if (judged == JUDGED_ANSWERED || judged == JUDGED_LATE) {
			counters->counts[COUNTED_UNFINISHED] += reply.is_unfinished;
			if (!SETTINGS.is_echo)
				record(HISTOGRAM_TURNAROUND, reply.turnaround);
		}
	}
	if (judged < COUNTERS)
		counters->counts[judged]++;
	return 1;
}

static __always_inline int hear_xdp(struct xdp_md *ctx)
{
	return hear_one((void *)(long)ctx->data, (void *)(long)ctx->data_end) ? XDP_DROP : XDP_PASS;
}

/*
 * The judge where the kernel has made a packet of the frame already. veth's peers send packets, and to show one to an XDP
 * program the kernel copies it: that costs more than all else about a reply.
 */
SEC("classifier")
int hear_skb(struct __sk_buff *skb)
{
	/* The tag is not in the frame, and tagged frames are not ours. */
	if (skb->vlan_present)
		return TC_ACT_UNSPEC;
	/* All of it, wherever it lies. (0 would mean what is in one piece already.) */
	if (skb->len > skb->data_end - skb->data && bpf_skb_pull_data(skb, skb->len))
		return TC_ACT_UNSPEC;
	return hear_one((void *)(long)skb->data, (void *)(long)skb->data_end) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/*
 * Sender and judge in one XDP program, told apart by where a frame comes from: BPF_PROG_RUN's come from the loopback interface. One, since
 * the kernel patches its dispatcher of XDP programs at the beginning and at the end of each BPF_PROG_RUN, and waits for all
 * CPUs (tens of milliseconds without a request), unless the program is there already, as one that is attached is. Where
 * `hear_skb` judges, this one is attached where nothing ever arrives.
 * "xdp.frags", as in steer.bpf.c: for interfaces with a large MTU.
 */
SEC("xdp.frags")
int load(struct xdp_md *ctx)
{
	return ctx->ingress_ifindex == SETTINGS.ifindex ? hear_xdp(ctx) : ask_next(ctx);
}

/* Each by itself, for tests. */
SEC("xdp")
int ask(struct xdp_md *ctx)
{
	return ask_next(ctx);
}

SEC("xdp")
int hear(struct xdp_md *ctx)
{
	return hear_xdp(ctx);
}

char _license[] SEC("license") = "Dual MIT/GPL";
