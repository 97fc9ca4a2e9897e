use super::*;
use crate::datapath::interface::{DeviceFacts, Interface, StampFacts, VlanChild};
use crate::sys::ethtool::{Channels, Driver, Feature};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A NIC that can do everything, with both kinds of stripping on and switchable.
fn igc() -> InterfaceFacts {
    let on = Feature { active: true, changeable: true };
    InterfaceFacts {
        interface: Interface {
            ifindex: 2,
            name: "eth0".into(),
            enabled: true,
            up: true,
            mtu: 1500,
            mac: Some([2; 6]),
            kind: None,
            rx_queues: Some(8),
            tx_queues: Some(8),
            vlan: None,
            master: None,
            arrival: 1,
        },
        addresses: Vec::new(),
        vlan_children: Vec::new(),
        driver: Ok(Driver { name: "igc".into(), version: "6.18".into(), bus: "0000:01:00.0".into() }),
        channels: Ok(Channels { rx: 0, tx: 0, combined: 4 }),
        stripping: Ok(vec![("rx-vlan-hw-parse", on)]),
        device: Ok(DeviceFacts {
            xdp: words("basic redirect ndo-xmit xsk-zerocopy"),
            rx_metadata: Some(words("timestamp hash")),
            tx_metadata: Some(words("tx-timestamp")),
            zero_copy_segments_max: Some(1),
        }),
        stamps: Ok(StampFacts { phc_index: Some(0), ..StampFacts::default() }),
    }
}

fn with_child(mut facts: InterfaceFacts) -> InterfaceFacts {
    facts.vlan_children = vec![VlanChild { name: "eth0.7".into(), tags: [7, 0], addresses: Vec::new() }];
    facts
}

/// One letter a rung: Yes, No, Unknown.
fn ladder(facts: &InterfaceFacts) -> String {
    let letter = |step: Step| match step.likely {
        Likely::Yes => 'Y',
        Likely::No(_) => 'N',
        Likely::Unknown(_) => 'U',
    };
    ladder_forecast(facts, &VlanPlan::decide(facts, &[])).into_iter().map(letter).collect()
}

fn without(facts: &InterfaceFacts, word: &str) -> InterfaceFacts {
    let mut facts = facts.clone();
    if let Ok(device) = &mut facts.device {
        device.xdp.retain(|one| one != word);
        if let Some(words) = &mut device.rx_metadata {
            words.retain(|one| one != word);
        }
    }
    facts
}

#[test]
fn each_missing_ability_costs_the_rungs_that_need_it() {
    assert_eq!(ladder(&igc()), "YYYYY");
    assert_eq!(ladder(&without(&igc(), "timestamp")), "NYYYY");
    assert_eq!(ladder(&without(&igc(), "xsk-zerocopy")), "NNYYY");
    assert_eq!(ladder(&without(&igc(), "redirect")), "NNNYY");
    assert_eq!(ladder(&without(&igc(), "basic")), "NNNYY");
}

#[test]
fn an_old_kernel_leaves_it_to_trying() {
    let facts = InterfaceFacts { device: Err("kernel older than 6.3".into()), ..igc() };
    assert_eq!(ladder(&facts), "UUUYY");
    let mut facts = igc();
    if let Ok(device) = &mut facts.device {
        device.rx_metadata = None;
    }
    assert_eq!(ladder(&facts), "UYYYY");
}

#[test]
fn large_packets_need_a_driver_that_splits_them() {
    let mut facts = igc();
    facts.interface.mtu = 9000;
    assert_eq!(ladder(&facts), "NNNYY");
    if let Ok(device) = &mut facts.device {
        device.xdp.push("rx-sg".into());
    }
    assert_eq!(ladder(&facts), "UUYYY");
}

#[test]
fn no_xdp_without_ethernet() {
    let mut facts = igc();
    facts.interface.mac = None;
    assert_eq!(ladder(&facts), "NNNNY");
}

#[test]
fn stripping_is_switched_off_where_it_can_be() {
    let features = vec!["rx-vlan-hw-parse"];
    assert_eq!(
        VlanPlan::decide(&igc(), &[]),
        VlanPlan::TurnOff { features: features.clone(), required: false }
    );
    let required = VlanPlan::TurnOff { features, required: true };
    assert_eq!(VlanPlan::decide(&igc(), &[[7, 0]]), required);
    assert_eq!(VlanPlan::decide(&igc(), &[]).with_vlans(), required, "they may be in another namespace");
    assert_eq!(VlanPlan::decide(&with_child(igc()), &[]), required);
}

#[test]
fn stripping_for_good_forbids_redirection_where_there_are_vlans() {
    let fixed = vec![("rx-vlan-hw-parse", Feature { active: true, changeable: false })];
    for stripping in [Ok(fixed), Err("the driver does not say".to_owned())] {
        let facts = InterfaceFacts { stripping, ..igc() };
        assert!(matches!(VlanPlan::decide(&facts, &[]), VlanPlan::Accept { .. }));
        assert_eq!(ladder(&facts), "YYYYY");
        assert!(matches!(VlanPlan::decide(&facts, &[]).with_vlans(), VlanPlan::Refuse { .. }));
        assert!(matches!(VlanPlan::decide(&facts, &[[7, 0]]), VlanPlan::Refuse { .. }));
        let facts = with_child(facts);
        assert!(matches!(VlanPlan::decide(&facts, &[]), VlanPlan::Refuse { .. }));
        assert_eq!(ladder(&facts), "NNNNY");
    }
}

#[test]
fn service_tags_count_too() {
    let on = Feature { active: true, changeable: true };
    let off = Feature { active: false, changeable: true };
    let stripping = |customer, service| {
        let both = vec![("rx-vlan-hw-parse", customer), ("rx-vlan-stag-hw-parse", service)];
        VlanPlan::decide(&InterfaceFacts { stripping: Ok(both), ..igc() }, &[])
    };
    assert_eq!(stripping(off, off), VlanPlan::InBand);
    let service_only = vec!["rx-vlan-stag-hw-parse"];
    assert_eq!(stripping(off, on), VlanPlan::TurnOff { features: service_only, required: false });
}

#[test]
fn reads_well_and_serializes() {
    let report = InterfaceReport::from_facts(with_child(igc()), &[]);
    let text = report.to_string();
    for line in [
        "interface        eth0 (index 2), up, MTU 1500",
        "receive queues   4",
        "VLAN interface   eth0.7 on tag 7: none",
        "VLAN tags        stripped by rx-vlan-hw-parse, will be switched off",
        "NIC clock        /dev/ptp0",
        "device-bound + zero-copy   yes",
    ] {
        assert!(text.lines().any(|one| one == line), "{line:?} is not in\n{text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["interface"]["name"], "eth0");
    assert_eq!(json["interface"]["mac"], "02:02:02:02:02:02");
    assert_eq!(json["vlan-plan"]["plan"], "turn-off");
    assert_eq!(json["ladder"][0]["likely"], "yes");
    let unknown = InterfaceFacts { channels: Err("the driver does not say".into()), ..igc() };
    let json = serde_json::to_value(unknown).unwrap();
    assert_eq!(json["channels"]["unknown"], "the driver does not say");
}
