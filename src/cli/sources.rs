//! `timeball sources`: whom the clock is set by, and why not by the others.
//!
//! The one idea a newcomer lacks: this is `chronyc sources` with its last column in words. The sign, the stratum, the poll
//! interval and the reach register in octal are where they are there.

use super::table::columns;
use crate::daemon::associations::{SourceReport, SourcesReport, SynchronisationReport};
use crate::time::NtpDuration;
use std::fmt::Write as _;
use std::net::SocketAddr;

/// How much of a name the table shows: an IPv6 address with a scope fits.
const NAME_SHOWN_MAX: usize = 48;

pub(super) fn text(report: &SourcesReport) -> String {
    let mut text = String::new();
    if report.sources.is_empty() {
        text.push_str("no sources are configured\n");
        return text;
    }
    // Which instance a source is in is of interest where there is another one.
    let several = report.instances.len() > 1;
    let heading = [
        "S",
        "instance",
        "mode",
        "source",
        "stratum",
        "poll",
        "reach",
        "last",
        "offset",
        "error bound",
        "delay",
        "reason",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(report.sources.iter().map(row));
    if !several {
        rows.iter_mut().for_each(|row| _ = row.remove(1));
    }
    text.push_str(&columns(&rows));
    let _ = writeln!(text, "\n{}", synchronisation(&report.synchronisation, several));
    text.push_str(
        "S: * system peer, + combined, - right but not combined, x wrong, ~ too variable, ? not usable; offset > 0: this \
         clock is behind\n",
    );
    text
}

fn row(source: &SourceReport) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let length =
        |seconds: Option<f64>| or_dash(seconds.map(|seconds| duration(seconds).with_unit().to_string()));
    let offset = source.offset_seconds.map(|seconds| format!("{:+}", duration(seconds).with_unit()));
    vec![
        source.sign.clone(),
        source.instance.clone(),
        source.mode.clone(),
        name_of(source),
        or_dash(source.stratum.map(|stratum| stratum.to_string())),
        or_dash(source.poll.map(|poll| poll.to_string())),
        or_dash(source.reach.map(|reach| format!("{reach:o}"))),
        or_dash(source.last_sample_seconds.map(age)),
        or_dash(offset),
        length(source.error_bound_seconds),
        length(source.delay_seconds),
        source.reason.clone(),
    ]
}

/// As configured, with the address where that says more; the port only where it is another than NTP's. Of a long name the
/// beginning, since each line is as long as the longest: `--json` has all of it.
fn name_of(source: &SourceReport) -> String {
    let shown = match source.name.char_indices().nth(NAME_SHOWN_MAX) {
        Some((end, _)) => format!("{}...", &source.name[..end]),
        None => source.name.clone(),
    };
    let Some(address) = &source.address else { return shown };
    let address = match address.strip_suffix(":123") {
        Some(bare) => bare.trim_start_matches('[').trim_end_matches(']'),
        None => address,
    };
    let host = address.parse::<SocketAddr>().map(|address| address.ip().to_string());
    // An interface's name says more than its number.
    let is_scoped = |(host, _)| address.split_once('%').is_some_and(|(same, _)| same == host);
    if source.name.is_empty() || source.name == address || host.is_ok_and(|host| host == source.name) {
        address.to_owned()
    } else if source.name.split_once('%').is_some_and(is_scoped) {
        shown
    } else {
        format!("{shown} ({address})")
    }
}

fn duration(seconds: f64) -> NtpDuration {
    NtpDuration::from_seconds_f64(seconds)
}

/// As chrony shows it: seconds, then minutes, hours, days.
fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..=999 => format!("{whole} s"),
        1000..=59_999 => format!("{} min", whole / 60),
        60_000..=359_999 => format!("{} h", whole / 3600),
        _ => format!("{} d", whole / 86_400),
    }
}

/// One line, for here and for `timeball status`.
pub(super) fn synchronisation(report: &SynchronisationReport, several: bool) -> String {
    let instance = report.system_peer_instance.as_ref().filter(|_| several);
    let instance = instance.map_or_else(String::new, |name| format!(" in {name}"));
    let mut line = match &report.system_peer {
        // What is served then is not by them, and `timeball status` has it.
        None if report.sources == 0 => return "nobody gives us time here".to_owned(),
        Some(peer) if !report.synchronised => {
            format!(
                "not synchronised: by {peer}{instance}, which is selected, this clock is too far off to be served"
            )
        }
        Some(peer) => {
            format!("synchronised to {peer}{instance}, {} of {} sources used", report.used, report.sources)
        }
        None => format!("not synchronised, none of {} sources used", report.sources),
    };
    if let (Some(offset), Some(jitter)) = (report.offset_seconds, report.jitter_seconds) {
        let _ = write!(line, ", last offset {:+}", duration(offset).with_unit());
        let _ = write!(line, ", jitter {}", duration(jitter).with_unit());
    }
    match report.frequency_ppm {
        Some(ppm) => _ = write!(line, ", clock runs {ppm:+.3} ppm"),
        None => line.push_str(", clock is only measured"),
    }
    if let Some(slew) = report.slew_ppm.filter(|slew| *slew != 0.0) {
        let _ = write!(line, " and slews {slew:+.3} ppm");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chrony_user_reads_it_at_once() {
        let good = SourceReport {
            sign: "*".into(),
            mode: "server".into(),
            name: "ntp.example.org".into(),
            address: Some("192.0.2.1:123".into()),
            stratum: Some(2),
            poll: Some(6),
            reach: Some(255),
            last_sample_seconds: Some(12.7),
            offset_seconds: Some(-12.3e-6),
            error_bound_seconds: Some(0.0078),
            delay_seconds: Some(1.5e-3),
            reason: "system peer".into(),
            ..SourceReport::default()
        };
        let silent = SourceReport {
            sign: "?".into(),
            mode: "server".into(),
            name: "2001:db8::1".into(),
            address: Some("[2001:db8::1]:123".into()),
            poll: Some(6),
            reach: Some(0),
            reason: "no valid answer to the last 8 polls".into(),
            ..SourceReport::default()
        };
        let synchronisation = SynchronisationReport {
            steering: true,
            system_peer: Some("192.0.2.1:123".into()),
            system_peer_instance: Some("default".into()),
            synchronised: true,
            offset_seconds: Some(5e-6),
            jitter_seconds: Some(1e-6),
            frequency_ppm: Some(-3.5),
            slew_ppm: Some(0.25),
            sources: 2,
            used: 1,
            steps: 0,
            foreign_steps: 0,
        };
        let instances = vec!["default".to_owned()];
        let report = SourcesReport { instances, synchronisation, sources: vec![good, silent] };
        let shown = text(&report);
        let expected = "\
S  mode    source                       stratum  poll  reach  last    offset  error bound    delay  reason
*  server  ntp.example.org (192.0.2.1)        2     6    377  12 s  -12.3 us      7.80 ms  1.50 ms  system peer
?  server  2001:db8::1                        -     6      0     -         -            -        -  no valid answer to the last 8 polls

synchronised to 192.0.2.1:123, 1 of 2 sources used, last offset +5.00 us, jitter 1.00 us, clock runs -3.500 ppm and slews +0.250 ppm
";
        assert!(shown.starts_with(expected), "{shown}");
        let mut report = report;
        report.instances = vec!["red".into(), "blue".into()];
        report.synchronisation.system_peer_instance = Some("red".into());
        for (source, instance) in report.sources.iter_mut().zip(["red", "blue"]) {
            source.instance = instance.to_owned();
        }
        let shown = text(&report);
        let starts = ["S  instance  mode", "*  red       server", "?  blue      server"];
        assert!(shown.lines().zip(starts).all(|(line, start)| line.starts_with(start)), "{shown}");
        assert!(shown.contains("synchronised to 192.0.2.1:123 in red, 1 of"), "{shown}");
        report.synchronisation.synchronised = false;
        let shown = text(&report);
        assert!(shown.contains("\nnot synchronised: by 192.0.2.1:123 in red, which is selected"), "{shown}");
        assert_eq!(text(&SourcesReport::default()), "no sources are configured\n");
        let broadcast =
            SourceReport { sign: " ".into(), mode: "broadcast".into(), ..SourceReport::default() };
        let shown = text(&SourcesReport { sources: vec![broadcast], ..SourcesReport::default() });
        assert!(shown.contains("\nnobody gives us time here\n"), "{shown}");
    }

    #[test]
    fn a_long_name_is_cut_and_its_address_is_not() {
        let named = |name: &str, address: Option<&str>| {
            name_of(&SourceReport {
                name: name.into(),
                address: address.map(str::to_owned),
                ..Default::default()
            })
        };
        let long = "n".repeat(253);
        let cut = format!("{}...", "n".repeat(48));
        assert_eq!(named(&long, None), cut);
        assert_eq!(named(&long, Some("192.0.2.1:123")), format!("{cut} (192.0.2.1)"));
        let address = "2001:db8:1111:2222:3333:4444:5555:6666";
        assert_eq!(named(address, Some(&format!("[{address}]:123"))), address);
        assert_eq!(named("192.0.2.1", Some("192.0.2.1:1123")), "192.0.2.1:1123");
        assert_eq!(named("2001:db8::1", Some("[2001:db8::1]:1123")), "[2001:db8::1]:1123");
        assert_eq!(named("fe80::1%eth0", Some("[fe80::1%2]:123")), "fe80::1%eth0");
        assert_eq!(named(&"\u{e9}".repeat(48), None).chars().count(), 48, "characters, not octets");
    }
}
