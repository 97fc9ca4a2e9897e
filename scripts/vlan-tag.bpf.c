// Lets an ordinary client speak tagged Ethernet in a kernel that has no 802.1q device: scripts/lab attaches this to the
// client's end of the veth pair, where it puts the tag on whatever leaves and takes it off whatever arrives.
// OUTER is the VLAN id on the wire; INNER, if defined, is a second tag inside it (QinQ).

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

SEC("push")
int push_tag(struct __sk_buff *skb)
{
#ifdef INNER
    if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), INNER))
        return TC_ACT_SHOT;
    if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), OUTER))
        return TC_ACT_SHOT;
#else
    if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), OUTER))
        return TC_ACT_SHOT;
#endif
    return TC_ACT_OK;
}

// Drops what carries another tag, or none: a reply on the wrong VLAN must not look like a reply.
SEC("pop")
int pop_tag(struct __sk_buff *skb)
{
    if (!skb->vlan_present || (skb->vlan_tci & 0x0fff) != OUTER)
        return TC_ACT_SHOT;
    if (bpf_skb_vlan_pop(skb))
        return TC_ACT_SHOT;
#ifdef INNER
    if (!skb->vlan_present || (skb->vlan_tci & 0x0fff) != INNER)
        return TC_ACT_SHOT;
    if (bpf_skb_vlan_pop(skb))
        return TC_ACT_SHOT;
#endif
    return skb->vlan_present ? TC_ACT_SHOT : TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
