//! `timeball query`: asks one server, a few times at most, and sets nothing.

use super::Failure;
use super::args::QueryArguments;
use crate::sys::{clock, process};
use crate::time::{Log2Seconds, NtpDuration, NtpTimestamp, Realtime, Timestamp};
use crate::wire::{Header, KissCode, Leap, Mode, Packet, Version};
use serde::Serialize;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How long one answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// Between two questions: what a burst of NTP uses (RFC 5905 section 13.2).
const PAUSE: Duration = Duration::from_secs(2);

/// What one exchange showed.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    server: String,
    /// Seconds; > 0: this machine's clock is behind.
    offset_seconds: f64,
    /// Round trip without the server's own time, seconds.
    delay_seconds: f64,
    /// Between the server's receive and transmit timestamp, seconds.
    turnaround_seconds: f64,
    leap: &'static str,
    version: u8,
    stratum: u8,
    reference_id: String,
    precision: i8,
    poll: i8,
    root_delay_seconds: f64,
    root_dispersion_seconds: f64,
    /// Seconds since the server's clock was last set, by its own word.
    reference_age_seconds: f64,
    samples: u8,
}

pub(super) fn query(arguments: &QueryArguments) -> Result<(), Failure> {
    let (host, port) = (arguments.server.host.as_str(), arguments.server.port);
    let address = (host, port)
        .to_socket_addrs()
        .map_err(|error| Failure::failed(format_args!("{host}: {error}")))?
        .next()
        .ok_or_else(|| Failure::failed(format_args!("{host} has no address")))?;
    let mut best: Option<Sample> = None;
    let mut last_failure = None;
    let mut answers = 0;
    for number in 0..arguments.samples {
        if number > 0 {
            std::thread::sleep(PAUSE);
        }
        match ask(address) {
            Ok(sample) => {
                answers += 1;
                if best.as_ref().is_none_or(|best| sample.delay_seconds < best.delay_seconds) {
                    best = Some(sample);
                }
            }
            // Told to stop (RFC 5905 section 7.4), so no further question.
            Err(Unanswered::Kiss(failure)) => return Err(failure),
            Err(Unanswered::Failed(failure)) => last_failure = Some(failure),
        }
    }
    match (best, last_failure) {
        (Some(best), _) => show(&Sample { samples: answers, ..best }, arguments.json),
        (None, Some(failure)) => Err(failure),
        (None, None) => Err(Failure::failed("nothing was asked")),
    }
}

/// Why there is no sample.
enum Unanswered {
    /// The server refuses.
    Kiss(Failure),
    /// Anything else; another try may do.
    Failed(Failure),
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn ask(address: SocketAddr) -> Result<Sample, Unanswered> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::failed(format_args!("{address} did not answer within {} s", ANSWER_TIME.as_secs()))
        }
        _ => Failure::failed(format_args!("{address}: {error}")),
    };
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A port of the kernel's choice for each question (RFC 9109), and connected, so that only the server's
    // datagrams are received.
    let socket = UdpSocket::bind(any).map_err(failed)?;
    socket.connect(address).map_err(failed)?;
    // The transmit timestamp tells nothing of our clock: it is a random number that only the server can repeat.
    let [cookie] = process::random_words().map_err(failed)?;
    let cookie = NtpTimestamp::from_bits(cookie | 1);
    let mut request = Header::new(Leap::None, Version::V4, Mode::Client);
    request.set_transmit_timestamp(cookie);
    let deadline = Instant::now() + ANSWER_TIME;
    let sent = clock::realtime();
    socket.send(request.as_bytes()).map_err(failed)?;
    let mut buffer = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(io::ErrorKind::TimedOut.into()).into());
        }
        socket.set_read_timeout(Some(left)).map_err(failed)?;
        let length = socket.recv(&mut buffer).map_err(failed)?;
        let received = clock::realtime();
        let Some(reply) = buffer.get(..length).and_then(|bytes| Packet::parse(bytes).ok()) else { continue };
        // Not the answer to this question: wait on.
        if reply.header.mode() == Mode::Server && reply.header.origin_timestamp() == cookie {
            return judge(address, reply.header, sent, received);
        }
    }
}

fn judge(
    address: SocketAddr,
    reply: &Header,
    sent: Timestamp<Realtime>,
    received: Timestamp<Realtime>,
) -> Result<Sample, Unanswered> {
    if reply.stratum == 0
        && [KissCode::Deny, KissCode::Restrict, KissCode::Rate]
            .map(KissCode::reference_id)
            .contains(&reply.reference_id)
    {
        let code = reply.reference_id;
        return Err(Unanswered::Kiss(Failure::failed(format_args!(
            "{address} refuses: Kiss-o'-Death {code}"
        ))));
    }
    if reply.leap() == Leap::Unsynchronised || !(1..=15).contains(&reply.stratum) {
        return Err(
            Failure::failed(format_args!("{address} is not synchronised (stratum 16 or leap 3)")).into()
        );
    }
    let (t1, t4) = (sent.to_ntp(), received.to_ntp());
    let (t2, t3) = (reply.receive_timestamp(), reply.transmit_timestamp());
    if t2.is_unknown() || t3.is_unknown() {
        return Err(Failure::failed(format_args!("{address} answered without timestamps")).into());
    }
    // RFC 5905 section 8. Halved before they are added, since the sum of two differences may not fit.
    let offset = NtpDuration::from_bits((t2 - t1).to_bits() / 2 + (t3 - t4).to_bits() / 2);
    let turnaround = t3 - t2;
    Ok(Sample {
        server: address.to_string(),
        offset_seconds: offset.seconds(),
        delay_seconds: ((t4 - t1) - turnaround).seconds(),
        turnaround_seconds: turnaround.seconds(),
        leap: match reply.leap() {
            Leap::None => "none",
            Leap::Insert => "insert",
            Leap::Delete => "delete",
            Leap::Unsynchronised => "unsynchronised",
        },
        version: reply.version_number(),
        stratum: reply.stratum,
        reference_id: reply.reference_id.to_string(),
        precision: reply.precision().0,
        poll: reply.poll().0,
        root_delay_seconds: reply.root_delay().to_duration().seconds(),
        root_dispersion_seconds: reply.root_dispersion().to_duration().seconds(),
        reference_age_seconds: (t3 - reply.reference_timestamp()).seconds(),
        samples: 1,
    })
}

fn show(sample: &Sample, json: bool) -> Result<(), Failure> {
    let mut output = io::stdout();
    if json {
        writeln!(output, "{}", serde_json::to_string(sample).map_err(Failure::failed)?)?;
        return Ok(());
    }
    let sign = if sample.offset_seconds < 0.0 { "ahead" } else { "behind" };
    writeln!(output, "server           {} (best of {} answered)", sample.server, sample.samples)?;
    writeln!(output, "offset           {:+.9} s, this clock is {sign}", sample.offset_seconds)?;
    writeln!(
        output,
        "delay            {:.9} s, server took {:.9} s",
        sample.delay_seconds, sample.turnaround_seconds
    )?;
    writeln!(
        output,
        "stratum          {}, reference {}, leap {}",
        sample.stratum, sample.reference_id, sample.leap
    )?;
    writeln!(
        output,
        "root             delay {:.6} s, dispersion {:.6} s",
        sample.root_delay_seconds, sample.root_dispersion_seconds
    )?;
    let precision = Log2Seconds(sample.precision).to_duration().seconds();
    writeln!(output, "precision        2^{} s ({precision:.1e} s)", sample.precision)?;
    writeln!(
        output,
        "clock last set   {:.1} s ago, NTP version {}",
        sample.reference_age_seconds, sample.version
    )?;
    Ok(())
}
