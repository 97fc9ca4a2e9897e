/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * For scripts/bench, on the server's side of the veth pair: drops everything, and shows what the generator can do when nobody
 * answers.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int drop(struct xdp_md *context)
{
	(void)context;
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
