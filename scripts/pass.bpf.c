/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * For scripts/bench, on the server's side of the veth pair. A frame that the kernel engine sends is accepted there only
 * while an XDP program is attached, so socket servers get one that lets everything through; and one that drops everything
 * shows what the generator can do when nobody answers.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp/pass")
int pass(struct xdp_md *context)
{
	(void)context;
	return XDP_PASS;
}

SEC("xdp/drop")
int drop(struct xdp_md *context)
{
	(void)context;
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
