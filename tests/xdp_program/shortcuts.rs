//! The program's shortcuts while they change: they answer nothing that the maps would not.

use crate::frames::Frame;
use crate::{CHILD_MAC, OUR_MAC, PLAIN, counts, load, say};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;
use timeball::datapath::steering::{PrefixAction, Steering, SteeringAddress, Verdict};
use timeball::sys::bpf::{TestRunInput, test_run_xdp};

fn local(address: &str, mac: [u8; 6]) -> SteeringAddress {
    SteeringAddress { tags: [0, 0], address: address.parse().unwrap(), mac }
}

/// What becomes of a request from `source` to `address` at `mac`.
fn verdict(steering: &Steering, source: &str, address: &str, mac: [u8; 6]) -> Verdict {
    let before = counts(steering);
    let frame = Frame::request(source, address, &[], 48).with_link(0, &mac);
    crate::run(steering, &frame.bytes);
    let after = counts(steering);
    Verdict::ALL.into_iter().find(|&verdict| before[verdict as usize] != after[verdict as usize]).unwrap()
}

const FAMILIES: [(&str, [&str; 3], &str, &str); 2] = [
    ("10.99.66.7", ["10.99.0.1", "10.99.0.3", "10.99.0.5"], "10.99.66.0/24", "10.99.67.0/24"),
    ("fd99:66::7", ["fd99::1", "fd99::3", "fd99::5"], "fd99:66::/32", "fd99:67::/32"),
];

#[test]
fn the_first_address_is_an_address_like_the_others_when_it_comes_moves_and_goes() {
    let Some(mut steering) = load(&PLAIN) else { return };
    // Not redirected for want of a socket.
    let taken = Verdict::PassedNoSocket;
    for (client, [first, second, third], ..) in FAMILIES {
        let told =
            |steering: &Steering, mac| [first, second, third].map(|to| verdict(steering, client, to, mac));
        let gone = Verdict::PassedNotOurAddress;
        let elsewhere = Verdict::PassedOtherMac;
        // Each list, and what becomes of requests to the three addresses at our MAC and at the child's.
        let steps = [
            (vec![], [gone; 3], [gone; 3]),
            (vec![local(second, OUR_MAC)], [gone, taken, gone], [gone, elsewhere, gone]),
            (
                vec![local(first, OUR_MAC), local(second, OUR_MAC)],
                [taken, taken, gone],
                [elsewhere, elsewhere, gone],
            ),
            (
                vec![local(first, OUR_MAC), local(second, CHILD_MAC)],
                [taken, elsewhere, gone],
                [elsewhere, taken, gone],
            ),
            (
                vec![local(first, OUR_MAC), local(third, OUR_MAC)],
                [taken, gone, taken],
                [elsewhere, gone, elsewhere],
            ),
            (vec![local(first, CHILD_MAC)], [elsewhere, gone, gone], [taken, gone, gone]),
            (vec![], [gone; 3], [gone; 3]),
            (vec![local(first, CHILD_MAC)], [elsewhere, gone, gone], [taken, gone, gone]),
            (vec![local(first, OUR_MAC)], [taken, gone, gone], [elsewhere, gone, gone]),
        ];
        for (step, (addresses, at_ours, at_childs)) in steps.into_iter().enumerate() {
            steering.replace_locals(&addresses).unwrap();
            assert_eq!(told(&steering, OUR_MAC), at_ours, "step {step} to {first}");
            assert_eq!(told(&steering, CHILD_MAC), at_childs, "step {step} to {first} at the child's MAC");
        }
        steering.replace_locals(&[]).unwrap();
    }
}

#[test]
fn prefixes_drop_from_the_first_to_the_last_whatever_the_other_family_does() {
    use PrefixAction::{Drop, Serve};
    let Some(mut steering) = load(&PLAIN) else { return };
    let prefix = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let locals = FAMILIES.map(|(_, [first, ..], ..)| local(first, OUR_MAC));
    steering.replace_locals(&locals).unwrap();
    let [v4, v6] = FAMILIES;
    let wide = [v4, v6].map(|(_, _, wide, _)| prefix(wide));
    let other = [v4, v6].map(|(_, _, _, other)| prefix(other));
    let steps = [
        (vec![], [false, false]),
        (vec![(wide[0], Drop)], [true, false]),
        (vec![(wide[0], Drop), (wide[1], Drop)], [true, true]),
        (vec![(wide[1], Drop)], [false, true]),
        (vec![(wide[1], Drop), (other[1], Drop)], [false, true]),
        (vec![(other[1], Drop)], [false, false]),
        (vec![(wide[0], Serve), (wide[1], Serve)], [false, false]),
        (vec![(wide[0], Drop), (wide[1], Serve)], [true, false]),
        (vec![(wide[0], Serve), (wide[1], Drop)], [false, true]),
        (vec![], [false, false]),
    ];
    for (step, (denied, dropped)) in steps.into_iter().enumerate() {
        steering.replace_denied(&denied).unwrap();
        let seen = [v4, v6].map(|(client, [first, ..], ..)| {
            verdict(&steering, client, first, OUR_MAC) == Verdict::DroppedDenied
        });
        assert_eq!(seen, dropped, "step {step}");
    }
}

/// Requests keep coming while the first address changes between two: to an address that stays, which none may miss, and to
/// one that is half of each of the two, which none may reach.
#[test]
fn no_request_to_an_address_that_stays_is_missed_and_none_to_a_mixture_is_taken() {
    /// Of the first address. Where each wait takes long, this test takes some seconds.
    const CHANGES: usize = 40;
    let Some(mut steering) = load(&PLAIN) else { return };
    let families = [
        ("10.99.9.9", ["10.99.1.1", "10.99.2.2"], "10.99.200.1", ["10.99.1.2", "10.99.2.1"]),
        ("fd99:9::9", ["fd99:1::1", "fd99:2::2"], "fd99:200::1", ["fd99:1::2", "fd99:2::1"]),
    ];
    let stays = families.map(|(_, _, stays, _)| local(stays, OUR_MAC));
    let firsts = families.map(|(_, [first, _], ..)| local(first, OUR_MAC));
    steering.replace_locals(&[&firsts[..], &stays[..]].concat()).unwrap();
    let before = counts(&steering);
    let done = AtomicBool::new(false);
    let program = steering.program().as_fd().try_clone_to_owned().unwrap();
    let ask = |frames: Vec<Vec<u8>>| {
        let mut asked = 0;
        while !done.load(Ordering::Relaxed) {
            for frame in &frames {
                let input = TestRunInput { metadata: &[], frame, queue: None, repeat: 500 };
                test_run_xdp(&program, &input).unwrap();
                asked += u64::from(input.repeat);
            }
        }
        asked
    };
    let frame = |client: &str, to: &str| Frame::request(client, to, &[], 48).bytes;
    let to_stays = families.map(|(client, _, stays, _)| frame(client, stays)).to_vec();
    let to_mixtures: Vec<_> =
        families.iter().flat_map(|(client, _, _, mixtures)| mixtures.map(|to| frame(client, to))).collect();
    let began = Instant::now();
    let (asked_stays, asked_mixtures) = thread::scope(|scope| {
        let asking = [scope.spawn(|| ask(to_stays)), scope.spawn(|| ask(to_mixtures))];
        for change in 0..CHANGES {
            let firsts = families.map(|(_, firsts, ..)| local(firsts[(change + 1) % 2], OUR_MAC));
            // The old one goes, and with it its shortcut, which the new one gets: it comes before the one that stays.
            steering.replace_locals(&[&firsts[..], &stays[..]].concat()).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        let [stays, mixtures] = asking.map(|thread| thread.join().unwrap());
        (stays, mixtures)
    });
    say(&format!("INFO: {CHANGES} changes of the first addresses took {:?}", began.elapsed()));
    let moved: Vec<u64> =
        counts(&steering).iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(moved[Verdict::PassedNoSocket as usize], asked_stays, "requests to the address that stays");
    assert_eq!(moved[Verdict::PassedNotOurAddress as usize], asked_mixtures, "requests to mixtures");
}
