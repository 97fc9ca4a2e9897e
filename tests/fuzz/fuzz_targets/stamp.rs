//! Any bytes before a packet as its receive stamp: what is believed is never in the future nor long past.
#![no_main]

use libfuzzer_sys::fuzz_target;
use timeball::daemon::stamps::BatchClock;
use timeball::datapath::steering::RxStamp;
use timeball::time::Timestamp;

/// Nobody waits longer for a reply.
const OLDEST_NANOSECONDS: i64 = 4_000_000_000;

fuzz_target!(|bytes: &[u8]| {
    let Some(stamp) = RxStamp::read(bytes) else { return };
    let _ = stamp.nic_nanoseconds();
    let Some(tai) = stamp.tai_nanoseconds().and_then(|tai| i64::try_from(tai).ok()) else { return };
    let clock = BatchClock::read();
    // A random stamp is hardly ever plausible, so the same one is also tried as a distance from now.
    let near = clock.realtime.nanoseconds() + tai % (2 * OLDEST_NANOSECONDS);
    for nanoseconds in [tai, near] {
        let stamp = Timestamp::from_nanoseconds(nanoseconds);
        if let Some(arrival) = clock.arrival(stamp) {
            let age = clock.realtime.nanoseconds_since(arrival);
            assert!((0..=OLDEST_NANOSECONDS).contains(&age), "{age}");
            let _ = arrival.to_ntp();
        }
    }
});
