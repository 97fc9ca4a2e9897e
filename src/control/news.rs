//! What is worth a line in the log. Each is a change; nothing here comes once per packet.

use super::kiss::Kiss;
use super::state::SourceState;
use crate::time::{Log2Seconds, NtpDuration};
use std::fmt;
use std::net::SocketAddr;

/// Something changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// An association was mobilised.
    Mobilised {
        /// With whom.
        remote: SocketAddr,
    },
    /// An association was dissolved.
    Demobilised {
        /// With whom.
        remote: SocketAddr,
        /// Why.
        reason: Farewell,
    },
    /// A Kiss-o'-Death came and was believed.
    Kissed {
        /// From whom.
        remote: SocketAddr,
        /// What it says.
        kiss: Kiss,
        /// The poll interval from now on.
        interval: Log2Seconds,
    },
    /// An association got further in the selection than before, or less far.
    StateChanged {
        /// With whom.
        remote: SocketAddr,
        /// How far it got.
        before: SourceState,
        /// How far it gets now.
        state: SourceState,
    },
    /// The clock has a reference now; `None`: it has none any more.
    SystemPeer(Option<SocketAddr>),
    /// The address belongs to another source already, and one server has one voice.
    AlreadySource {
        /// Which address.
        remote: SocketAddr,
    },
    /// The table has no room for a source or an association.
    TableFull,
    /// A name leads nowhere, or not now.
    NotResolved,
    /// The clock was stepped by us, by so much (positive: forward).
    Stepped(NtpDuration),
    /// The offset is beyond the panic threshold, and nothing is done about it.
    Panic(NtpDuration),
}

/// Why an association ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Farewell {
    /// The server said DENY or RSTR.
    Kissed(Kiss),
    /// The configuration no longer has its source.
    Removed,
    /// Another that its name leads to may be better, or another that the search found is.
    Replaced,
    /// It was to be heard, and was not for long; or a passive end whose peer has not answered its last eight packets.
    Silent,
    /// A passive end whose peer's stratum number is greater than ours.
    WorseStratum,
    /// A passive end whose peer is passive, too.
    BothPassive,
    /// It came unasked, or a name led to it, and now the configuration has it as a source of its own.
    Configured,
    /// The search for servers starts over.
    SearchedAnew,
    /// It came by a key that is not trusted any more, and that nothing names for it.
    KeyNotTrusted,
}

impl fmt::Display for News {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mobilised { remote } => write!(formatter, "association with {remote}"),
            Self::Demobilised { remote, reason: Farewell::Kissed(kiss) } => {
                write!(formatter, "{remote} refuses to serve us ({kiss}); it is not asked again")
            }
            Self::Demobilised { remote, reason: Farewell::Removed } => {
                write!(formatter, "{remote} is no longer configured")
            }
            Self::Demobilised { remote, reason: Farewell::Replaced } => {
                write!(formatter, "{remote} is of no use and gives way to a better one")
            }
            Self::Demobilised { remote, reason: Farewell::Silent } => {
                write!(formatter, "{remote} has fallen silent")
            }
            Self::Demobilised { remote, reason: Farewell::SearchedAnew } => {
                write!(
                    formatter,
                    "{remote} is let go: too few servers were found, and the search starts over"
                )
            }
            Self::Demobilised { remote, reason: Farewell::WorseStratum } => {
                write!(
                    formatter,
                    "the peer {remote} has a worse stratum than we; it is answered, not followed"
                )
            }
            Self::Demobilised { remote, reason: Farewell::BothPassive } => {
                write!(formatter, "the peer {remote} is passive like us, so neither can lead; it is dropped")
            }
            Self::Demobilised { remote, reason: Farewell::Configured } => {
                write!(formatter, "{remote} is a source by itself now")
            }
            // No other changes it.
            Self::Kissed { remote, kiss, .. } if *kiss != Kiss::Rate => {
                write!(formatter, "{remote} says {kiss}")
            }
            Self::Demobilised { remote, reason: Farewell::KeyNotTrusted } => {
                write!(formatter, "{remote} came by a key that is not trusted any more; it is let go")
            }
            Self::Kissed { remote, kiss, interval } => {
                let seconds = interval.to_duration().seconds();
                write!(formatter, "{remote} says {kiss}; it is asked every {seconds:.0} s from now on")
            }
            Self::StateChanged { remote, state, .. } => {
                write!(formatter, "{remote} {}: {state}", state.name())
            }
            Self::SystemPeer(Some(remote)) => write!(formatter, "synchronised to {remote}"),
            Self::SystemPeer(None) => formatter.write_str("no longer synchronised to any source"),
            Self::AlreadySource { remote } => {
                write!(formatter, "{remote} is a source already, and counts only once")
            }
            Self::TableFull => formatter.write_str("no room for another source; it is left out"),
            Self::NotResolved => formatter.write_str("the name cannot be resolved; it is tried again later"),
            Self::Stepped(offset) => write!(formatter, "the clock was stepped by {offset} s"),
            Self::Panic(offset) => write!(
                formatter,
                "the sources say that the clock is wrong by {offset} s, which is beyond the panic limit: nothing \
                 is done; set the clock by hand, or allow the step at the start"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ReferenceId;

    #[test]
    fn only_rate_is_said_to_change_the_interval() {
        let said = |kiss| {
            let remote = "192.0.2.1:123".parse().unwrap();
            News::Kissed { remote, kiss, interval: Log2Seconds(7) }.to_string()
        };
        assert_eq!(said(Kiss::Rate), "192.0.2.1:123 says RATE; it is asked every 128 s from now on");
        assert_eq!(said(Kiss::Other(ReferenceId(*b"INIT"))), "192.0.2.1:123 says INIT");
    }
}
