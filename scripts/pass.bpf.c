/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * For scripts/bench, on the server's side of the veth pair. Frames that the kernel engine sends are accepted there under an
 * XDP program or with GRO: socket servers get both, and the program, which lets everything through, costs them something.
 * The other one drops everything and shows what the generator can do when nobody answers.
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
