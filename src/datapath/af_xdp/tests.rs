//! A port over the fake kernel: every frame comes back, whatever the kernel writes.

use super::*;
use crate::datapath::ring::testing::{FakeKernel, HEADROOM_BYTES};
use proptest::prelude::*;

fn small() -> PortConfig {
    let rings = RingSizes { fill: 64, receive: 64, transmit: 64, completion: 64 };
    PortConfig { frames: 256, rings, ..PortConfig::new(1, 0) }
}

fn fake() -> (Port<FakeKernel>, FakeKernel) {
    FakeKernel::port(&small(), u32::MAX - 100).unwrap()
}

fn receive(port: &mut Port<FakeKernel>) -> Vec<Frame> {
    let mut frames = Vec::with_capacity(BATCH);
    port.receive(&mut frames);
    frames
}

/// Delivers `count` packets and answers each in place; how many were queued.
fn answer(port: &mut Port<FakeKernel>, kernel: &FakeKernel, count: usize) -> usize {
    for _ in 0..count {
        assert!(kernel.deliver(&[], b"request"));
    }
    let frames = receive(port);
    assert_eq!(frames.len(), count);
    frames.into_iter().map(|frame| port.send(frame, 7, StampRequest::None)).filter(|&queued| queued).count()
}

#[track_caller]
fn assert_balanced(port: &Port<FakeKernel>) {
    let balance = port.conservation();
    assert!(balance.is_balanced(), "{balance:?}");
    assert_eq!(balance, port.audit());
}

#[test]
fn answers_in_place_and_returns_the_stamp_with_its_frame() {
    let (mut port, kernel) = fake();
    assert_eq!(port.conservation(), Balance { total: 256, free: 192, fill: 64, in_hand: 0, transmit: 0 });
    assert!(kernel.deliver(&[7; RX_METADATA_BYTES], b"request one"));
    assert!(kernel.deliver(&[], b"request two"));
    let mut frames = receive(&mut port);
    let (second, first) = (frames.pop().unwrap(), frames.pop().unwrap());
    assert_eq!(port.metadata(&first), Some(&[7; RX_METADATA_BYTES]));
    assert_eq!(port.metadata(&second), Some(&[0; RX_METADATA_BYTES]), "no metadata reads as zeros");
    assert_eq!(port.packet(&second), b"request two");
    port.packet_mut(&first).copy_from_slice(b"reply no. 1");
    port.buffer_mut(&second)[..20].copy_from_slice(b"a longer reply no. 2");
    let first_number = first.number();
    assert!(port.send(first, 11, StampRequest::Transmit) && port.send(second, 20, StampRequest::None));
    assert_eq!(port.flush(), Link::Up);
    assert_eq!(kernel.take_transmitted(), [b"reply no. 1".to_vec(), b"a longer reply no. 2".to_vec()]);
    let mut completed = Vec::new();
    assert_eq!(port.complete(|frame, stamp| completed.push((frame, stamp))), 2);
    let stamp = TransmitStamp::Tai(Timestamp::from_nanoseconds(kernel.clock().cast_signed()));
    assert_eq!(completed[0], (first_number, Some(stamp)));
    assert_eq!(completed[1].1, None);
    assert_eq!(port.conservation(), Balance { total: 256, free: 194, fill: 62, in_hand: 0, transmit: 0 });
    assert_eq!(port.refill(), Link::Up);
    assert_eq!(port.conservation().fill, 64);
    assert_balanced(&port);
}

#[test]
fn metadata_of_an_earlier_packet_is_never_seen_again() {
    let (mut port, kernel) = fake();
    // Every frame that circulates carries metadata once, and a transmit stamp over it.
    for _ in 0..256 {
        assert!(kernel.deliver(&[0xff; RX_METADATA_BYTES], b"stamped"));
        for frame in receive(&mut port) {
            assert!(port.send(frame, 7, StampRequest::Transmit));
        }
        assert_eq!(port.flush(), Link::Up);
        port.complete(|_, stamp| assert!(stamp.is_some()));
        assert_eq!(port.refill(), Link::Up);
    }
    for round in 0..256 {
        assert!(kernel.deliver(&[], b"plain"));
        for frame in receive(&mut port) {
            assert_eq!(port.metadata(&frame), Some(&[0; RX_METADATA_BYTES]), "round {round}");
            port.recycle(frame);
        }
        assert_eq!(port.refill(), Link::Up);
    }
}

#[test]
fn flush_goes_on_until_the_ring_is_empty() {
    let (mut port, kernel) = fake();
    assert_eq!(answer(&mut port, &kernel, 64), 64);
    assert_eq!(port.flush(), Link::Up);
    assert_eq!((kernel.take_transmitted().len(), port.counters().wakeups), (64, 2));
}

#[test]
fn a_full_transmit_ring_recycles_and_counts() {
    let (mut port, kernel) = fake();
    kernel.set_failure(Some(libc::EAGAIN));
    assert_eq!(answer(&mut port, &kernel, 40), 40);
    assert_eq!(port.flush(), Link::Up);
    assert_eq!(port.counters().wakeups, u64::from(TX_STALLS_MAX), "no progress: later");
    assert_eq!(port.refill(), Link::Up);
    assert_eq!(answer(&mut port, &kernel, 40), 24);
    assert_eq!(port.counters().tx_full, 16);
    assert_balanced(&port);
    kernel.set_failure(None);
    assert_eq!(port.flush(), Link::Up);
    assert_eq!(port.complete(|_, _| ()), 64);
    assert_eq!((port.conservation().transmit, port.conservation().in_hand), (0, 0));
}

#[test]
fn a_link_that_is_down_keeps_packets_without_spinning() {
    let (mut port, kernel) = fake();
    answer(&mut port, &kernel, 10);
    kernel.set_failure(Some(libc::ENETDOWN));
    assert_eq!((port.flush(), port.flush(), port.link()), (Link::Down, Link::Down, Link::Down));
    let counters = *port.counters();
    assert_eq!((counters.wakeups, counters.link_down), (2, 2), "one wake-up a call");
    assert_eq!(port.conservation().transmit, 10);
    kernel.set_failure(None);
    assert_eq!((port.flush(), kernel.take_transmitted().len()), (Link::Up, 10));
    kernel.set_failure(Some(libc::ENXIO));
    answer(&mut port, &kernel, 1);
    assert_eq!((port.flush(), port.link()), (Link::Gone, Link::Gone));
    assert_balanced(&port);
}

#[test]
fn endless_drops_and_unknown_errors_are_bounded() {
    let (mut port, kernel) = fake();
    answer(&mut port, &kernel, 3);
    kernel.set_failure(Some(libc::EBUSY));
    assert_eq!(port.flush(), Link::Up);
    assert_eq!(port.counters().tx_dropped, u64::from(TX_WAKEUPS_MAX));
    kernel.set_failure(Some(libc::EPERM));
    assert_eq!(port.flush(), Link::Up);
    assert_eq!(port.counters().wakeup_errors, u64::from(TX_STALLS_MAX));
}

#[test]
fn completions_that_wait_for_room_come_later() {
    let (mut port, kernel) = fake();
    kernel.set_holding(true);
    answer(&mut port, &kernel, 64);
    assert_eq!(port.flush(), Link::Up);
    assert_eq!(port.complete(|_, _| ()), 0);
    assert_eq!(port.refill(), Link::Up);
    answer(&mut port, &kernel, 10);
    assert_eq!(port.flush(), Link::Up);
    assert_eq!(kernel.take_transmitted().len(), 64, "no room in the completion ring for more");
    kernel.set_holding(false);
    assert_eq!(port.complete(|_, _| ()), 64);
    assert_eq!(port.flush(), Link::Up);
    assert_eq!((port.complete(|_, _| ()), port.conservation().transmit), (10, 0));
}

#[test]
fn foreign_addresses_are_counted_and_never_used() {
    let (mut port, kernel) = fake();
    let frame_bytes = 2048;
    let beyond = [256 * frame_bytes, u64::MAX, u64::MAX - 2047, 1 << 40];
    let never_lent = 200 * frame_bytes + 256;
    for address in beyond.into_iter().chain([never_lent]) {
        assert!(kernel.deliver_descriptor(Descriptor {
            address: FrameAddress(address),
            length: 60,
            options: 0
        }));
        assert!(kernel.complete_address(FrameAddress(address)));
    }
    assert!(receive(&mut port).is_empty());
    assert_eq!((port.complete(|_, _| panic!("not a frame")), port.counters().foreign), (0, 10));

    // One frame received twice, and completed twice.
    let address = FrameAddress(kernel.take_fill().unwrap().0 + 256);
    for _ in 0..2 {
        assert!(kernel.deliver_descriptor(Descriptor { address, length: 60, options: 0 }));
    }
    let mut frames = receive(&mut port);
    assert_eq!((frames.len(), port.counters().foreign), (1, 11));
    assert!(port.send(frames.pop().unwrap(), 60, StampRequest::Transmit));
    assert_eq!(port.flush(), Link::Up);
    assert!(kernel.complete_address(address));
    assert_eq!((port.complete(|_, _| ()), port.counters().foreign), (1, 12));
    assert_balanced(&port);
}

#[test]
fn an_odd_address_that_completes_one_too_low_is_still_found() {
    let (mut port, kernel) = fake();
    kernel.set_holding(true);
    let base = kernel.take_fill().unwrap().0;
    assert!(kernel.deliver_descriptor(Descriptor {
        address: FrameAddress(base + 301),
        length: 60,
        options: 0
    }));
    let frame = receive(&mut port).pop().unwrap();
    let number = frame.number();
    assert!(port.send(frame, 60, StampRequest::None));
    assert_eq!(port.flush(), Link::Up);
    assert!(kernel.complete_address(FrameAddress(base + 300)));
    assert_eq!(port.complete(|frame, _| assert_eq!(frame, number)), 1);
}

#[test]
fn fragments_and_overlong_packets_are_recycled() {
    let (mut port, kernel) = fake();
    let post = |offset: u64, length, options| {
        let base = kernel.take_fill().unwrap().0;
        let address = FrameAddress(base + offset);
        assert!(kernel.deliver_descriptor(Descriptor { address, length, options }));
    };
    post(256, 1500, libc::XDP_PKT_CONTD);
    post(256, 1500, libc::XDP_PKT_CONTD);
    post(256, 100, 0);
    post(256, 1793, 0);
    post(2047, u32::MAX, 0);
    post(256, 1792, 0);
    let mut frames = receive(&mut port);
    assert_eq!((port.counters().rx_fragments, port.counters().rx_invalid), (3, 2));
    assert_eq!(frames.iter().map(Frame::len).collect::<Vec<_>>(), [1792], "the one that just fits");
    port.recycle(frames.pop().unwrap());
    assert_eq!(port.conservation().in_hand, 0);
    assert_balanced(&port);
}

#[test]
fn what_the_kernel_would_drop_silently_is_refused_before() {
    let (mut port, kernel) = fake();
    for (offset, length) in [(256, 0), (256, 1793), (256, usize::MAX), (15, 60)] {
        let address = FrameAddress(kernel.take_fill().unwrap().0 + offset);
        assert!(kernel.deliver_descriptor(Descriptor { address, length: 60, options: 0 }));
        let frame = receive(&mut port).pop().unwrap();
        assert!(!port.send(frame, length, StampRequest::Transmit), "{offset} {length}");
    }
    assert_eq!((port.counters().tx_invalid, port.conservation().in_hand), (4, 0));
    let address = FrameAddress(kernel.take_fill().unwrap().0 + 16);
    assert!(kernel.deliver_descriptor(Descriptor { address, length: 60, options: 0 }));
    let frame = receive(&mut port).pop().unwrap();
    assert_eq!(port.metadata(&frame), None, "there are only 16 bytes before it");
    assert!(port.send(frame, 2032, StampRequest::Transmit));
    assert_eq!((port.flush(), kernel.invalid()), (Link::Up, 0));
    port.complete(|_, stamp| assert!(stamp.is_some()));
    assert_balanced(&port);
}

#[test]
fn a_dropped_handle_shows_and_a_strangers_is_refused() {
    let (mut port, kernel) = fake();
    assert!(kernel.deliver(&[], b"lost"));
    drop(receive(&mut port));
    assert_eq!(port.conservation().in_hand, 1);
    let (mut other, other_kernel) = fake();
    assert!(other_kernel.deliver(&[], b"mine") && other_kernel.deliver(&[], b"mine"));
    let mut strangers = receive(&mut other);
    let (second, first) = (strangers.pop().unwrap(), strangers.pop().unwrap());
    // The second frame is with the kernel here.
    assert!(port.packet(&second).is_empty() && port.packet_mut(&second).is_empty());
    assert!(!port.send(second, 4, StampRequest::None));
    assert_eq!(port.counters().foreign, 1);
    other.recycle(first);
    assert_balanced(&port);
}

#[test]
fn without_metadata_no_stamp_is_asked_for() {
    let config = PortConfig { tx_metadata: false, ..small() };
    let (mut port, kernel) = FakeKernel::port(&config, 0).unwrap();
    assert!(kernel.deliver(&[], b"request"));
    let frame = receive(&mut port).pop().unwrap();
    assert!(port.send(frame, 7, StampRequest::Transmit));
    assert_eq!(port.flush(), Link::Up);
    port.complete(|_, stamp| assert_eq!(stamp, None));
    assert_eq!(kernel.invalid(), 0);
}

#[test]
fn a_senseless_configuration_is_refused() {
    let rings = small().rings;
    for config in [
        PortConfig { frame_bytes: 1024, ..small() },
        PortConfig { frame_bytes: 2049, ..small() },
        PortConfig { frames: 255, ..small() },
        PortConfig { frames: u32::MAX, ..small() },
        PortConfig { rings: RingSizes { fill: 63, ..rings }, ..small() },
        PortConfig { rings: RingSizes { completion: 0, ..rings }, ..small() },
        PortConfig { rings: RingSizes { transmit: 1 << 31, ..rings }, ..small() },
    ] {
        assert!(matches!(FakeKernel::port(&config, 0), Err(PortError::Config(_))), "{config:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Deliver { length: usize },
    Hostile { address: u64, length: u32, options: u32 },
    HostileCompletion { address: u64 },
    Receive,
    Send { length: usize },
    Recycle,
    Flush { failure: Option<i32> },
    Hold { holding: bool },
    Complete,
    Refill,
}

fn step() -> impl Strategy<Value = Step> {
    // Half of the hostile addresses lie in the umem.
    let address = || prop_oneof![0_u64..256 * 2048, any::<u64>()];
    let errno = [None, None, Some(libc::EAGAIN), Some(libc::ENETDOWN), Some(libc::EBUSY)];
    prop_oneof![
        8 => (0_usize..1800).prop_map(|length| Step::Deliver { length }),
        1 => (address(), prop_oneof![0_u32..2048, any::<u32>()], 0_u32..4)
            .prop_map(|(address, length, options)| Step::Hostile { address, length, options }),
        1 => address().prop_map(|address| Step::HostileCompletion { address }),
        4 => Just(Step::Receive),
        6 => (0_usize..1900).prop_map(|length| Step::Send { length }),
        2 => Just(Step::Recycle),
        3 => prop::sample::select(errno.to_vec()).prop_map(|failure| Step::Flush { failure }),
        1 => any::<bool>().prop_map(|holding| Step::Hold { holding }),
        3 => Just(Step::Complete),
        3 => Just(Step::Refill),
    ]
}

proptest! {
    #[test]
    fn frames_are_conserved_whatever_happens(
        steps in prop::collection::vec(step(), 1..300),
        before_wrap in 0_u32..200,
    ) {
        let (mut port, kernel) = FakeKernel::port(&small(), u32::MAX - before_wrap).unwrap();
        let mut frames: Vec<Frame> = Vec::with_capacity(BATCH);
        for step in steps {
            match step {
                Step::Deliver { length } => { let _ = kernel.deliver(&[1; 24], &vec![2; length]); }
                Step::Hostile { address, length, options } => {
                    let address = FrameAddress(address);
                    let _ = kernel.deliver_descriptor(Descriptor { address, length, options });
                }
                Step::HostileCompletion { address } => { let _ = kernel.complete_address(FrameAddress(address)); }
                Step::Receive => { port.receive(&mut frames); }
                Step::Send { length } => if let Some(frame) = frames.pop() {
                    port.send(frame, length, StampRequest::Transmit);
                },
                Step::Recycle => if let Some(frame) = frames.pop() { port.recycle(frame) },
                Step::Flush { failure } => {
                    kernel.set_failure(failure);
                    let _ = port.flush();
                    kernel.set_failure(None);
                }
                Step::Hold { holding } => kernel.set_holding(holding),
                Step::Complete => { port.complete(|_, _| ()); }
                Step::Refill => { let _ = port.refill(); }
            }
            let balance = port.conservation();
            prop_assert!(balance.is_balanced(), "{:?}", balance);
            prop_assert_eq!(balance, port.audit());
            prop_assert_eq!(balance.in_hand as usize, frames.len());
            prop_assert_eq!(kernel.invalid(), 0, "a frame was lost to an invalid descriptor");
        }
        for frame in frames { port.recycle(frame) }
        prop_assert_eq!(port.conservation().in_hand, 0);
    }

    #[test]
    fn wild_indices_never_panic(value in any::<u32>(), start in any::<u32>()) {
        let (mut port, kernel) = FakeKernel::port(&small(), start).unwrap();
        kernel.break_indices(value);
        for _ in 0..3 {
            for frame in receive(&mut port) { port.recycle(frame) }
            port.complete(|_, _| ());
            let _ = port.refill();
        }
        prop_assert!(port.conservation().is_balanced());
        prop_assert_eq!(port.conservation(), port.audit());
    }
}

#[test]
fn the_memory_of_a_queue_is_stated() {
    let config = small();
    assert_eq!(config.umem_bytes(), 256 * 2048);
    let pages = |bytes: usize| bytes.next_multiple_of(crate::sys::memory::page_bytes());
    let rings = 2 * pages(320 + 64 * 8) + 2 * pages(320 + 64 * 16);
    assert_eq!(config.memory_bytes(), 256 * 2048 + rings + 256 * 8);
    assert_eq!(HEADROOM_BYTES, 256);
}
