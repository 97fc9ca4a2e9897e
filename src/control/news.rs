//! What is worth a line in the log. Each is a change; nothing here comes once per packet.

use super::kiss::Kiss;
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
    /// A pool has better members.
    Replaced,
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
                write!(formatter, "{remote} is of no use and is replaced by another member of its pool")
            }
            Self::Kissed { remote, kiss, interval } => {
                let seconds = interval.to_duration().seconds();
                write!(formatter, "{remote} says {kiss}; it is asked every {seconds:.0} s from now on")
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
