//! What the kernel engine's program has to know of a step.
//!
//! Owns: the settings, and the limits of steps that they set. Does not own: what the program does with them.
//!
//! The one idea a newcomer lacks: a step that does not fit is refused here, before the first request of the whole run, and
//! in the words of the user's flags.

use crate::load::digits::grouped;
use crate::load::engine::{EngineError, Expect, OVERTIME, Plan, Scene};
use crate::load::request::Template;
use std::net::IpAddr;
use std::time::Duration;
use timeball_xdp_prog::load::{INTENDED_BITS, Settings, TEMPLATE_LENGTH};

/// The table of outstanding requests has between 2^16 entries (512 kB; see `INTENDED_BITS`) and 2^24 (128 MB).
pub(super) const SLOT_BITS: std::ops::RangeInclusive<u32> = 16..=24;
/// Requests a second that saturating may reach, for the size of that table: 4.8 million were seen. Beyond it, or with a
/// timeout for which the table is too small, replies may count as late that were in time.
const SATURATED_MAX: f64 = 8_000_000.0;

/// What the program has to know.
pub(super) fn settings(scene: &Scene, template: &Template, plan: &Plan) -> Result<Settings, EngineError> {
    let open = plan.open_at_once(SATURATED_MAX, 1 << SLOT_BITS.end())?;
    let slot_bits = open.next_power_of_two().ilog2();
    // Saturating, nothing is ever overdue.
    let sent_within = nanoseconds(if plan.rate.is_some() { plan.duration + OVERTIME } else { plan.duration });
    if sent_within.saturating_add(nanoseconds(plan.timeout)) >> INTENDED_BITS != 0 {
        return Err(EngineError(format!(
            "a step of {:?} is too long: 78 hours are the limit",
            plan.duration
        )));
    }
    // The number of a request has 32 bits.
    let numbers = 1_u64 << 32;
    let interval = plan.rate.map_or(0.0, |rate| 1e9 / rate);
    let requests_max = plan.requests().unwrap_or(numbers);
    if requests_max > numbers {
        return Err(EngineError(format!(
            "{} requests in one step: {} are the limit, lower the rate or the duration",
            grouped(requests_max, ' '),
            grouped(numbers, ' ')
        )));
    }
    let (ip_sum, udp_sum) = template.sums();
    let mut bytes = [0; TEMPLATE_LENGTH];
    bytes[..template.bytes().len()].copy_from_slice(template.bytes());
    let (first_upper, first_lower) = halves(scene.clients.first());
    let mut target = [0; 16];
    match scene.target {
        IpAddr::V4(address) => target[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => target = address.octets(),
    }
    Ok(Settings {
        first_upper,
        first_lower,
        clients: scene.clients.count(),
        addresses: scene.clients.addresses(),
        interval: interval as u64,
        interval_fraction: (interval.fract() * 2_f64.powi(64)) as u64,
        requests_max,
        sent_within,
        timeout: nanoseconds(plan.timeout),
        target,
        nonce: plan.nonce,
        ifindex: scene.ifindex,
        slot_bits: slot_bits.clamp(*SLOT_BITS.start(), *SLOT_BITS.end()),
        port: scene.port,
        ip_sum,
        udp_sum,
        is_v6: scene.target.is_ipv6().into(),
        differ_in_upper: (scene.clients.shift() != 0).into(),
        saturate: plan.rate.is_none().into(),
        is_echo: (scene.expect == Expect::Echo).into(),
        padding: [0; 2],
        template: bytes,
    })
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An address as the program counts it.
fn halves(address: IpAddr) -> (u64, u64) {
    match address {
        IpAddr::V4(address) => (0, address.to_bits().into()),
        IpAddr::V6(address) => ((address.to_bits() >> 64) as u64, address.to_bits() as u64),
    }
}
