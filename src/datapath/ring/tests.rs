//! The ring protocol against a model, across the wrap of the indices, and against a broken peer.

use super::testing::{OFFSETS, index, ring_memory};
use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

type Pair<T> = (Producer<T>, Consumer<T>);

fn pair<T: Entry>(entries: u32, start: u32) -> Pair<T> {
    let memory = ring_memory(entries, T::WORDS, start);
    let producer = Producer::new(Arc::clone(&memory), OFFSETS, entries).unwrap();
    (producer, Consumer::new(memory, OFFSETS, entries).unwrap())
}

#[test]
fn a_descriptor_lies_as_the_kernel_reads_it() {
    let memory = ring_memory(2, 2, 0);
    let mut producer = Producer::new(Arc::clone(&memory), OFFSETS, 2).unwrap();
    let descriptor = Descriptor { address: FrameAddress(0x1122), length: 90, options: 2 };
    assert!(producer.push(descriptor));
    // SAFETY: the first slot lies at the entries' offset, aligned and inside the mapping.
    let slot = unsafe { memory.start().add(OFFSETS.entries) };
    // SAFETY: 16 initialised bytes there; this thread is the only one.
    let raw = unsafe { slot.cast::<libc::xdp_desc>().read() };
    assert_eq!((raw.addr, raw.len, raw.options), (0x1122, 90, 2));
}

#[test]
fn nothing_is_visible_before_submit_or_free_before_release() {
    let (mut producer, mut consumer) = pair::<FrameAddress>(4, u32::MAX - 1);
    for address in 0..4 {
        assert!(producer.push(FrameAddress(address)));
    }
    assert!(!producer.push(FrameAddress(4)), "the ring is full");
    assert_eq!((consumer.available(), consumer.pop()), (0, None));
    producer.submit();
    assert_eq!((consumer.available(), producer.pending()), (4, 4));
    let popped: Vec<_> = std::iter::from_fn(|| consumer.pop()).map(|address| address.0).collect();
    assert_eq!(popped, [0, 1, 2, 3]);
    assert_eq!(producer.free(), 0, "popped, but not released");
    consumer.release();
    assert_eq!((producer.free(), producer.pending()), (4, 0));
}

#[test]
fn the_wakeup_flag_is_the_kernels() {
    let memory = ring_memory(2, 1, 0);
    let producer = Producer::<FrameAddress>::new(Arc::clone(&memory), OFFSETS, 2).unwrap();
    assert!(!producer.needs_wakeup());
    index(&memory, OFFSETS.flags).store(libc::XDP_RING_NEED_WAKEUP, Ordering::SeqCst);
    assert!(producer.needs_wakeup());
}

#[test]
fn a_ring_outside_its_memory_is_refused() {
    let memory = ring_memory(8, 1, 0);
    let beyond = (memory.len() / 8).next_power_of_two() as u32;
    let refused = |offsets, entries| {
        Producer::<FrameAddress>::new(Arc::clone(&memory), offsets, entries).is_err()
            && Consumer::<FrameAddress>::new(Arc::clone(&memory), offsets, entries).is_err()
    };
    assert!(!refused(OFFSETS, 8));
    assert!(refused(OFFSETS, 0) && refused(OFFSETS, 6), "sizes are powers of two");
    assert!(refused(OFFSETS, beyond));
    assert!(refused(RingOffsets { producer: memory.len() - 2, ..OFFSETS }, 8));
    assert!(refused(RingOffsets { flags: 2, ..OFFSETS }, 8), "misaligned");
    assert!(refused(RingOffsets { entries: usize::MAX - 7, ..OFFSETS }, 8), "no overflow");
}

#[test]
fn two_threads_see_every_entry_in_order() {
    const COUNT: u64 = 200_000;
    let (mut producer, mut consumer) = pair::<Descriptor>(64, u32::MAX - 1000);
    let writer = std::thread::spawn(move || {
        let mut next = 0;
        while next < COUNT {
            let entry =
                Descriptor { address: FrameAddress(next), length: next as u32, options: !next as u32 };
            if producer.push(entry) {
                next += 1;
            }
            if next % 7 == 0 || producer.free() == 0 {
                producer.submit();
                std::thread::yield_now();
            }
        }
        producer.submit();
    });
    let mut expected = 0;
    while expected < COUNT {
        while let Some(entry) = consumer.pop() {
            let Descriptor { address, length, options } = entry;
            assert_eq!((address.0, length, options), (expected, expected as u32, !expected as u32));
            expected += 1;
        }
        consumer.release();
        std::thread::yield_now();
    }
    writer.join().unwrap();
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    Submit,
    Pop,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![4 => Just(Step::Push), 1 => Just(Step::Submit), 4 => Just(Step::Pop), 1 => Just(Step::Release)]
}

proptest! {
    #[test]
    fn behaves_as_a_queue_across_the_wrap(
        size_log2 in 0_u32..5,
        before_wrap in 0_u32..40,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let entries = 1 << size_log2;
        let (mut producer, mut consumer) = pair::<FrameAddress>(entries, u32::MAX - before_wrap);
        // Written but not submitted; submitted; popped but not released.
        let (mut written, mut visible, mut taken) = (VecDeque::new(), VecDeque::new(), 0);
        let mut next = 0;
        for step in steps {
            match step {
                Step::Push => {
                    let full = written.len() + visible.len() + taken == entries as usize;
                    prop_assert_eq!(producer.push(FrameAddress(next)), !full);
                    if !full {
                        written.push_back(next);
                        next += 1;
                    }
                }
                Step::Submit => {
                    producer.submit();
                    visible.append(&mut written);
                }
                Step::Pop => {
                    let expected: Option<u64> = visible.pop_front();
                    prop_assert_eq!(consumer.pop().map(|address| address.0), expected);
                    taken += usize::from(expected.is_some());
                }
                Step::Release => {
                    consumer.release();
                    taken = 0;
                }
            }
        }
    }

    #[test]
    fn a_wild_index_never_yields_more_than_a_ring(index_there in any::<u32>(), start in any::<u32>()) {
        let memory = ring_memory(8, 1, start);
        index(&memory, OFFSETS.producer).store(index_there, Ordering::SeqCst);
        let mut consumer = Consumer::<FrameAddress>::new(Arc::clone(&memory), OFFSETS, 8).unwrap();
        let popped = (0..100).filter_map(|_| consumer.pop()).count();
        prop_assert!(popped <= 8, "{popped}");

        let memory = ring_memory(8, 1, start);
        index(&memory, OFFSETS.consumer).store(index_there, Ordering::SeqCst);
        let mut producer = Producer::<FrameAddress>::new(Arc::clone(&memory), OFFSETS, 8).unwrap();
        let pushed = (0..100).filter(|_| producer.push(FrameAddress(0))).count();
        prop_assert!(pushed <= 8, "{pushed}");
        prop_assert!(producer.free() <= 8 && producer.pending() <= 8);
    }
}
