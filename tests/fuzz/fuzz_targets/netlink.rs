//! Any bytes as rtnetlink datagrams: no panic in the decoder, nor in what is worked out from the view.
#![no_main]

use libfuzzer_sys::fuzz_target;
use timeball::datapath::interface::{Changes, View, apply_datagram};

fuzz_target!(|datagrams: Vec<Vec<u8>>| {
    let mut view = View::default();
    for datagram in datagrams {
        let before = view.clone();
        apply_datagram(&mut view, &datagram);
        let _ = Changes::between(&before, &view).is_empty();
    }
    assert!(Changes::between(&view, &view).is_empty());
    for ifindex in view.interfaces().map(|interface| interface.ifindex) {
        assert!(view.interface(ifindex).is_some());
        let _ = (view.local_addresses(ifindex), view.vlan_children(ifindex));
        let _ = view.steering_addresses(ifindex, &[[7, 0]]);
    }
});
