// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
/*
 * Redirects the replies to a load test into its AF_XDP sockets.
 *
 * Owns: which frame is a datagram of the server under test. Does not own: whether it is a right reply; user space
 * judges that.
 *
 * The one idea: the interface may be the one that the user is logged in through. Only what comes from the server's
 * address and port leaves the kernel's path; anything else, and any doubt, is XDP_PASS.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IP_MORE_FRAGMENTS_OR_OFFSET 0x3fff

/* The server: its address as on the wire (IPv4 in the first four bytes), 4 or 6, and its port in host order. Set by the loader. */
const volatile __u8 TARGET[16] = {};
const volatile __u8 TARGET_VERSION = 0;
const volatile __u16 TARGET_PORT = 0;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} load_xsks SEC(".maps");

/* Byte by byte: clang leaves memcmp() of a packet to a function we do not have. */
static __always_inline int is_target(const __u8 *address, int length)
{
	__u8 difference = 0;

	for (int i = 0; i < length; i++)
		difference |= address[i] ^ TARGET[i];
	return difference == 0;
}

/* The UDP header of a datagram from the server's address; null if it is none. */
static __always_inline const struct udphdr *from_target(const struct ethhdr *ethernet, const void *end)
{
	const void *network = ethernet + 1;

	if (ethernet->h_proto == bpf_htons(ETH_P_IP) && TARGET_VERSION == 4) {
		const struct iphdr *ip = network;

		if ((const void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
			return 0;
		if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET))
			return 0;
		return is_target((const __u8 *)&ip->saddr, 4) ? (const void *)(ip + 1) : 0;
	}
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6) && TARGET_VERSION == 6) {
		const struct ipv6hdr *ip = network;

		if ((const void *)(ip + 1) > end || ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
			return 0;
		return is_target((const __u8 *)&ip->saddr, 16) ? (const void *)(ip + 1) : 0;
	}
	return 0;
}

SEC("xdp.frags")
int load_redirect(struct xdp_md *ctx)
{
	const void *end = (void *)(long)ctx->data_end;
	const struct ethhdr *ethernet = (void *)(long)ctx->data;
	const struct udphdr *udp;

	if ((const void *)(ethernet + 1) > end)
		return XDP_PASS;
	udp = from_target(ethernet, end);
	if (!udp || (const void *)(udp + 1) > end || udp->source != bpf_htons(TARGET_PORT))
		return XDP_PASS;
	return bpf_redirect_map(&load_xsks, ctx->rx_queue_index, XDP_PASS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
