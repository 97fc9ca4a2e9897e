//! Why the server does not move its packets through xsk-rs: no transmit stamp can come back through it.
//!
//! Both parts fail on the day that changes. The server should then move to xsk-rs, and this file go.
#![cfg(feature = "load")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]
#![allow(unsafe_code, reason = "xsk-rs has no safe way to send")]

mod common;

use common::asker::{Asker, as_server};
use common::{Lab, PATIENCE, can_have_labs, skip};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use timeball::datapath::af_xdp::{BATCH, Port, PortConfig, StampRequest, TransmitStamp};
use timeball::datapath::interface::InterfaceWatch;
use timeball::datapath::steering::{AttachMode, Steering, SteeringConfig, Variant};
use xsk_rs::config::{LibxdpFlags, SocketConfig, UmemConfig};
use xsk_rs::{FrameDesc, Socket, Umem};

/// `XDP_TX_METADATA` of linux/if_xdp.h: there is metadata before this packet.
const TX_METADATA: u32 = 2;

#[test]
fn xsk_rs_can_register_neither_flags_nor_room_for_transmit_metadata() {
    // Its configuration is all that reaches XDP_UMEM_REG. These fields are all it has.
    let shown = format!("{:?}", UmemConfig::default());
    let fields: Vec<&str> = shown.split([' ', ',']).filter_map(|word| word.strip_suffix(':')).collect();
    assert_eq!(fields, ["frame_size", "fill_queue_size", "comp_queue_size", "frame_headroom"], "{shown}");
}

#[test]
fn the_kernel_refuses_to_stamp_what_xsk_rs_sends_and_stamps_what_our_port_sends() {
    if !can_have_labs() {
        return;
    }
    let lab = Lab::new(&[]);
    let Some(stamped) = stamped_by_our_port(&lab) else {
        return skip("this kernel has no transmit metadata (Linux 6.8 has)");
    };
    assert!(stamped, "our port's packet has its stamp");
    as_server(&lab, || {
        send_through_xsk_rs(0).unwrap();
        let refused = send_through_xsk_rs(TX_METADATA);
        let refused = refused.expect_err("a packet with metadata is taken: has xsk-rs gained it?");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{refused}");
    });
}

/// Sends one packet through xsk-rs with these descriptor options. What the kernel says to it.
fn send_through_xsk_rs(options: u32) -> io::Result<()> {
    let config = UmemConfig::default();
    let (umem, mut frames) = Umem::new(config, 16.try_into().unwrap(), false).unwrap();
    let socket =
        SocketConfig::builder().libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD).build();
    let start = Instant::now();
    let (mut transmit, _receive, rings) = loop {
        // SAFETY: this umem has no other socket.
        match unsafe { Socket::new(socket, &umem, &"tb0".parse().unwrap(), 0) } {
            Ok(made) => break made,
            // The queue of a socket that was just closed is taken for some milliseconds more.
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let _rings = rings.unwrap();
    let mut frame: FrameDesc = frames.pop().unwrap();
    // The metadata itself would lie in the bytes before these, out of reach; zeros ask for nothing, and are not read.
    // SAFETY: the frame is ours: it has been given to no ring.
    unsafe { umem.data_mut(&mut frame) }.cursor().write_all(&[0xff; 60]).unwrap();
    frame.set_options(options);
    // SAFETY: the frame is of this umem, in no other ring, and not touched again.
    let produced = unsafe { transmit.produce_one(&frame) };
    assert_eq!(produced, 1);
    transmit.wakeup()
}

/// Receives a request and sends it back through our port, asking for a stamp. Was there one? `None`: the kernel
/// knows none.
fn stamped_by_our_port(lab: &Lab) -> Option<bool> {
    let (mut port, _steering) = as_server(lab, || {
        let watch = InterfaceWatch::open().unwrap();
        let ifindex = watch.view().interface_named("tb0").unwrap().ifindex;
        let variant = Variant::Plain;
        let config = SteeringConfig { port: 123, queues: 1, interface_index: ifindex, variant };
        let mut steering = Steering::load(&config).unwrap();
        steering.attach(AttachMode::Driver).unwrap();
        steering.replace_locals(&watch.view().steering_addresses(ifindex, &[])).unwrap();
        let port = Port::open(&PortConfig::new(ifindex, 0)).unwrap();
        steering.set_socket(0, port.as_fd()).unwrap();
        (port, steering)
    });
    if !port.facts().tx_metadata {
        return None;
    }
    Asker::new(lab, "10.99.1.2", "10.99.1.1").send(1);
    let (mut frames, mut stamp) = (Vec::with_capacity(BATCH), None);
    let start = Instant::now();
    while stamp.is_none() && start.elapsed() < PATIENCE {
        port.receive(&mut frames);
        for frame in frames.drain(..) {
            let length = port.packet(&frame).len();
            assert!(port.send(frame, length, StampRequest::Transmit));
        }
        let _ = port.flush();
        port.complete(|_, written| stamp = written);
    }
    Some(matches!(stamp, Some(TransmitStamp::Tai(_))))
}
