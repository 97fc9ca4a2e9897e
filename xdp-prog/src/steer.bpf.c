// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
/*
 * Steers NTP requests into AF_XDP sockets, stamped with the time they arrived.
 *
 * Owns: which frame is a request that user space answers, and the receive stamp. Does not own: any answer, rate limits,
 * or access rules beyond the list of silently denied prefixes.
 *
 * The one idea: redirect by meaning, not by port. A frame leaves the kernel's path only if it is, without any doubt, a
 * mode 3 request to one of our addresses at our MAC; anything else is XDP_PASS, and then the kernel and the daemon's
 * sockets see exactly what they would see without this program.
 */
#include "shared.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NTP_HEADER_LENGTH 48
#define NTP_MODE_CLIENT 3
#define NTP_VERSION_MIN 1
#define NTP_VERSION_MAX 4
#define VLAN_ID_MASK 0x0fff
#define IP_MORE_FRAGMENTS_OR_OFFSET 0x3fff

/* UDP port of the requests, host order. Set by the loader, as is NIC_STAMPS: 1 only in a device-bound build. */
const volatile __u16 PORT = 123;
const volatile __u32 NIC_STAMPS = 0;

/*
 * bpf_xdp_metadata_rx_timestamp(), which only device-bound programs may call. aya cannot parse `extern ... __ksym`, so
 * this compiles to a helper call with a number no helper has, and the loader puts the kernel function in its place.
 * Without NIC_STAMPS the verifier removes the call unseen.
 */
static int (*const rx_timestamp)(const struct xdp_md *, __u64 *) = (void *)0x6e740001;

/* See shared.h. A global, so that reading it takes no look-up; volatile, since the loader changes it at any time. */
volatile struct shortcuts shortcuts;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_DEFAULT);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LOCAL_ADDRESSES_MAX);
	__type(key, struct local_v4);
	__type(value, struct local_mac);
} locals_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LOCAL_ADDRESSES_MAX);
	__type(key, struct local_v6);
	__type(value, struct local_mac);
} locals_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, DENIED_PREFIXES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_v4);
	__type(value, __u32);
} denied_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, DENIED_PREFIXES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_v6);
	__type(value, __u32);
} denied_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

struct vlan_header {
	__be16 tci;
	__be16 protocol;
};

/* The first buffer of the frame, consumed from the front. All headers are in it, or the frame is not for us. */
struct cursor {
	void *position;
	void *end;
	__u32 consumed; /* bytes of the frame before `position` */
};

/* Has the frame `length` more bytes? Asked before each take(), which therefore needs no null pointer for "no": the
 * verifier lets only CAP_PERFMON compare a packet pointer with null, and the service should not need that. */
static __always_inline int fits(struct cursor frame, __u32 length)
{
	return frame.position + length <= frame.end;
}

/* The next `length` bytes. */
static __always_inline void *take(struct cursor *frame, __u32 length)
{
	void *start = frame->position;

	frame->position += length;
	frame->consumed += length;
	return start;
}

static __always_inline void count(__u32 verdict)
{
	__u64 *counter = bpf_map_lookup_elem(&verdicts, &verdict);

	if (counter)
		*counter += 1;
}

/* Is that MAC the frame's destination? Promiscuous interfaces and flooding switches show us frames to other boxes, which
 * may have our address too (VRRP, anycast). Two bytes at a time, as they are aligned; clang leaves memcmp() of a packet to
 * a function we do not have. */
static __always_inline int is_to(const struct ethhdr *ethernet, const volatile struct local_mac *reached_at)
{
	const __u16 *destination = (const void *)ethernet->h_dest;
	const volatile __u16 *ours = (const volatile void *)reached_at->mac;

	return ((destination[0] ^ ours[0]) | (destination[1] ^ ours[1]) | (destination[2] ^ ours[2])) == 0;
}

/* Is the frame to the address that most are to, at its MAC? If not, the map knows. From the packet and not from the map's
 * key: that is stored in halves, and the processor has to wait before it can read back more than it stored at once. */
static __always_inline int is_to_first_v4(const struct ethhdr *ethernet, const struct iphdr *ip, __u16 outer_vlan,
					  __u16 inner_vlan)
{
	const volatile struct shortcut_v4 *first = &shortcuts.first_v4;
	__u32 address = *(const volatile __u32 *)first->local.address;

	return first->on && first->local.outer_vlan == outer_vlan && first->local.inner_vlan == inner_vlan &&
	       address == ip->daddr && is_to(ethernet, &first->reached_at);
}

static __always_inline int is_to_first_v6(const struct ethhdr *ethernet, const struct ipv6hdr *ip, __u16 outer_vlan,
					  __u16 inner_vlan)
{
	const volatile struct shortcut_v6 *first = &shortcuts.first_v6;
	const volatile __u32 *address = (const volatile __u32 *)first->local.address;
	__u32 difference = 0;

	for (int i = 0; i < 4; i++)
		difference |= address[i] ^ ip->daddr.s6_addr32[i];
	return first->on && first->local.outer_vlan == outer_vlan && first->local.inner_vlan == inner_vlan &&
	       difference == 0 && is_to(ethernet, &first->reached_at);
}

/*
 * Is the rest of the frame a request in one UDP datagram that fills `length` bytes of IP payload, as the IP header says?
 * VERDICT_REDIRECTED = yes, as far as this function sees.
 */
static __always_inline enum verdict judge_datagram(struct xdp_md *ctx, struct cursor frame, __u32 length)
{
	__u64 ip_end = (__u64)frame.consumed + length, frame_end;
	struct udphdr *udp;
	__u8 *ntp;

	if (!fits(frame, sizeof(*udp)))
		return VERDICT_PASSED_INCONSISTENT;
	udp = take(&frame, sizeof(*udp));
	if (udp->dest != bpf_htons(PORT))
		return VERDICT_PASSED_OTHER_PORT;
	/* In numbers, all buffers counted: adding a variable to a packet pointer would need CAP_PERFMON. */
	frame_end = bpf_xdp_get_buff_len(ctx);
	/* Equal, not at most: what UDP leaves of the IP payload is somebody's option area (RFC 9868), not ours to judge. */
	if (bpf_ntohs(udp->len) != length || ip_end > frame_end)
		return VERDICT_PASSED_INCONSISTENT;
	if (length < sizeof(*udp) + NTP_HEADER_LENGTH)
		return VERDICT_PASSED_TOO_SHORT;
	if (frame_end > FRAME_LENGTH_MAX)
		return VERDICT_PASSED_TOO_LONG;
	if (!fits(frame, NTP_HEADER_LENGTH))
		return VERDICT_PASSED_INCONSISTENT;
	ntp = take(&frame, NTP_HEADER_LENGTH);

	/* Leap indicator, version and mode in 2, 3 and 3 bits: RFC 5905 section 7.3. */
	if ((ntp[0] & 7) != NTP_MODE_CLIENT)
		return VERDICT_PASSED_OTHER_MODE;
	__u8 version = ntp[0] >> 3 & 7;
	if (version < NTP_VERSION_MIN || version > NTP_VERSION_MAX)
		return VERDICT_PASSED_OTHER_VERSION;
	return VERDICT_REDIRECTED;
}

static __always_inline enum verdict judge_v4(struct xdp_md *ctx, const struct ethhdr *ethernet, struct cursor frame,
					     __u16 outer_vlan, __u16 inner_vlan)
{
	struct iphdr *ip;
	struct local_mac *reached_at;
	enum verdict verdict;
	__u32 total_length;
	__u32 *action;

	if (!fits(frame, sizeof(*ip)))
		return VERDICT_PASSED_INCONSISTENT;
	ip = take(&frame, sizeof(*ip));
	if (ip->version != 4)
		return VERDICT_PASSED_INCONSISTENT;
	if (ip->protocol != IPPROTO_UDP)
		return VERDICT_PASSED_NOT_UDP;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET))
		return VERDICT_PASSED_FRAGMENT;
	if (ip->ihl != 5)
		return ip->ihl > 5 ? VERDICT_PASSED_OPTIONS : VERDICT_PASSED_INCONSISTENT;
	total_length = bpf_ntohs(ip->tot_len);
	if (total_length < sizeof(*ip))
		return VERDICT_PASSED_INCONSISTENT;
	verdict = judge_datagram(ctx, frame, total_length - sizeof(*ip));
	if (verdict != VERDICT_REDIRECTED)
		return verdict;

	if (!is_to_first_v4(ethernet, ip, outer_vlan, inner_vlan)) {
		struct local_v4 local = { .outer_vlan = outer_vlan, .inner_vlan = inner_vlan };
		__builtin_memcpy(local.address, &ip->daddr, sizeof(local.address));
		reached_at = bpf_map_lookup_elem(&locals_v4, &local);
		if (!reached_at)
			return VERDICT_PASSED_NOT_OUR_ADDRESS;
		if (!is_to(ethernet, reached_at))
			return VERDICT_PASSED_OTHER_MAC;
	}

	if (!shortcuts.any_denied_v4)
		return VERDICT_REDIRECTED;
	struct prefix_v4 client = { .length = 32 };
	__builtin_memcpy(client.address, &ip->saddr, sizeof(client.address));
	action = bpf_map_lookup_elem(&denied_v4, &client);
	return action && *action == ACTION_DROP ? VERDICT_DROPPED_DENIED : VERDICT_REDIRECTED;
}

static __always_inline enum verdict judge_v6(struct xdp_md *ctx, const struct ethhdr *ethernet, struct cursor frame,
					     __u16 outer_vlan, __u16 inner_vlan)
{
	struct ipv6hdr *ip;
	struct local_mac *reached_at;
	enum verdict verdict;
	__u32 *action;

	if (!fits(frame, sizeof(*ip)))
		return VERDICT_PASSED_INCONSISTENT;
	ip = take(&frame, sizeof(*ip));
	if (ip->version != 6)
		return VERDICT_PASSED_INCONSISTENT;
	switch (ip->nexthdr) {
	case IPPROTO_UDP:
		break;
	case IPPROTO_FRAGMENT:
		return VERDICT_PASSED_FRAGMENT;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
	case IPPROTO_AH:
	case IPPROTO_MH:
		return VERDICT_PASSED_OPTIONS;
	default:
		return VERDICT_PASSED_NOT_UDP;
	}
	verdict = judge_datagram(ctx, frame, bpf_ntohs(ip->payload_len));
	if (verdict != VERDICT_REDIRECTED)
		return verdict;

	if (!is_to_first_v6(ethernet, ip, outer_vlan, inner_vlan)) {
		struct local_v6 local = { .outer_vlan = outer_vlan, .inner_vlan = inner_vlan };
		__builtin_memcpy(local.address, &ip->daddr, sizeof(local.address));
		reached_at = bpf_map_lookup_elem(&locals_v6, &local);
		if (!reached_at)
			return VERDICT_PASSED_NOT_OUR_ADDRESS;
		if (!is_to(ethernet, reached_at))
			return VERDICT_PASSED_OTHER_MAC;
	}

	if (!shortcuts.any_denied_v6)
		return VERDICT_REDIRECTED;
	struct prefix_v6 client = { .length = 128 };
	__builtin_memcpy(client.address, &ip->saddr, sizeof(client.address));
	action = bpf_map_lookup_elem(&denied_v6, &client);
	return action && *action == ACTION_DROP ? VERDICT_DROPPED_DENIED : VERDICT_REDIRECTED;
}

static __always_inline int is_vlan(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

static __always_inline enum verdict judge_frame(struct xdp_md *ctx)
{
	struct cursor frame = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, 0 };
	struct ethhdr *ethernet;
	struct vlan_header *tag;
	__u16 outer_vlan = 0, inner_vlan = 0;
	__be16 protocol;

	if (!fits(frame, sizeof(*ethernet)))
		return VERDICT_PASSED_INCONSISTENT;
	ethernet = take(&frame, sizeof(*ethernet));
	if (ethernet->h_dest[0] & 1)
		return VERDICT_PASSED_MULTICAST_MAC;
	protocol = ethernet->h_proto;
	if (is_vlan(protocol)) {
		if (!fits(frame, sizeof(*tag)))
			return VERDICT_PASSED_INCONSISTENT;
		tag = take(&frame, sizeof(*tag));
		outer_vlan = bpf_ntohs(tag->tci) & VLAN_ID_MASK;
		protocol = tag->protocol;
	}
	if (is_vlan(protocol)) {
		if (!fits(frame, sizeof(*tag)))
			return VERDICT_PASSED_INCONSISTENT;
		tag = take(&frame, sizeof(*tag));
		inner_vlan = bpf_ntohs(tag->tci) & VLAN_ID_MASK;
		protocol = tag->protocol;
	}
	if (protocol == bpf_htons(ETH_P_IP))
		return judge_v4(ctx, ethernet, frame, outer_vlan, inner_vlan);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return judge_v6(ctx, ethernet, frame, outer_vlan, inner_vlan);
	return is_vlan(protocol) ? VERDICT_PASSED_TAGS_TOO_DEEP : VERDICT_PASSED_NOT_IP;
}

/* Put the receive stamp right before the packet. Pointers into the packet are void after this. 0 = done. */
static __always_inline int stamp(struct xdp_md *ctx)
{
	/* The clocks come first: what is done after reading them cannot delay the stamp. */
	__u64 tai = bpf_ktime_get_tai_ns();
	__u64 nic = 0;
	__u32 kind = RX_STAMP_TAI;
	struct rx_stamp *stamp;

	/* Drivers without a stamp for this packet return an error, or (veth) succeed with 0. */
	if (NIC_STAMPS && rx_timestamp(ctx, &nic) == 0 && nic != 0)
		kind |= RX_STAMP_NIC;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*stamp)))
		return -1;
	stamp = (void *)(long)ctx->data_meta;
	if ((void *)(stamp + 1) > (void *)(long)ctx->data)
		return -1;
	stamp->magic = RX_STAMP_MAGIC;
	stamp->kind = kind;
	stamp->tai_nanoseconds = tai;
	stamp->nic_nanoseconds = kind & RX_STAMP_NIC ? nic : 0;
	return 0;
}

/*
 * "xdp.frags" and not "xdp": drivers refuse the plain kind in native mode as soon as the MTU lets a frame span buffers
 * (about 3500 bytes), and a server on a jumbo-frame network would lose its fast path for packets it does not even want.
 * It costs nothing: the headers must be in the first buffer, and the kernel joins up to FRAME_LENGTH_MAX bytes of several
 * buffers in one frame of the umem.
 */
SEC("xdp.frags")
int steer(struct xdp_md *ctx)
{
	enum verdict verdict = judge_frame(ctx);
	int action;

	if (verdict == VERDICT_DROPPED_DENIED) {
		count(verdict);
		return XDP_DROP;
	}
	if (verdict != VERDICT_REDIRECTED) {
		count(verdict);
		return XDP_PASS;
	}
	if (stamp(ctx))
		verdict = VERDICT_REDIRECTED_WITHOUT_METADATA;
	action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	count(action == XDP_REDIRECT ? verdict : VERDICT_PASSED_NO_SOCKET);
	return action;
}

char _license[] SEC("license") = "Dual MIT/GPL";
