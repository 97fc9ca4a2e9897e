//! RFC 5905 figure 20: what becomes of a packet, by the mode of the association it belongs to and its own mode.
//!
//! Owns: the table, as one complete `match`. Does not own: finding the association, and doing what the table says.

use crate::wire::Mode;

/// What an association is, in the rows of figure 20. The numbers are the figure's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum AssociationMode {
    /// 1: a configured peer; sends mode 1.
    SymmetricActive = 1,
    /// 2: a peer that asked us; sends mode 2.
    SymmetricPassive = 2,
    /// 3: we ask a server, or a group of them (manycast); sends mode 3.
    Client = 3,
    /// 4: a server association. None is ever kept, since servers answer without state; the row says that packets
    /// would be thrown away if one were.
    Server = 4,
    /// 5: we send mode 5 to a broadcast or multicast address.
    Broadcast = 5,
    /// 6: we listen to a broadcast server. Not to be confused with mode 6 packets.
    BroadcastClient = 6,
}

impl AssociationMode {
    /// All of them, in the figure's order.
    pub const ALL: [Self; 6] = [
        Self::SymmetricActive,
        Self::SymmetricPassive,
        Self::Client,
        Self::Server,
        Self::Broadcast,
        Self::BroadcastClient,
    ];
}

/// A cell of figure 20.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dispatch {
    /// PROC: it belongs to the association; test it, then use it.
    Process,
    /// DSCRD: no use, no harm.
    Discard,
    /// ERR: two passive ends; discard the packet and dissolve the passive association.
    Error,
    /// NEWPS: a peer asks for a symmetric passive association.
    NewPassive,
    /// FXMIT: a request for time; answer it without keeping state.
    FastTransmit,
    /// MANY: perhaps the answer to a manycast request of ours.
    Manycast,
    /// NEWBC: a broadcast server we do not know yet.
    NewBroadcastClient,
}

/// RFC 5905 figure 20. `association` is `None` where no association matches the packet.
#[must_use]
pub const fn dispatch(association: Option<AssociationMode>, packet: Mode) -> Dispatch {
    use AssociationMode as A;
    match (association, packet) {
        // Never time: reserved, and what monitors speak (RFC 5905 section 9.2 leaves them to other doors).
        (_, Mode::Reserved | Mode::Control | Mode::Private) => Dispatch::Discard,

        (None, Mode::SymmetricActive) => Dispatch::NewPassive,
        (None, Mode::SymmetricPassive) => Dispatch::Discard,
        (None, Mode::Client) => Dispatch::FastTransmit,
        (None, Mode::Server) => Dispatch::Manycast,
        (None, Mode::Broadcast) => Dispatch::NewBroadcastClient,

        (Some(A::SymmetricActive), Mode::SymmetricActive | Mode::SymmetricPassive) => Dispatch::Process,
        (Some(A::SymmetricActive), Mode::Client | Mode::Server | Mode::Broadcast) => Dispatch::Discard,

        (Some(A::SymmetricPassive), Mode::SymmetricActive) => Dispatch::Process,
        (Some(A::SymmetricPassive), Mode::SymmetricPassive) => Dispatch::Error,
        (Some(A::SymmetricPassive), Mode::Client | Mode::Server | Mode::Broadcast) => Dispatch::Discard,

        (Some(A::Client), Mode::Server) => Dispatch::Process,
        (
            Some(A::Client),
            Mode::SymmetricActive | Mode::SymmetricPassive | Mode::Client | Mode::Broadcast,
        ) => Dispatch::Discard,

        (
            Some(A::Server | A::Broadcast),
            Mode::SymmetricActive | Mode::SymmetricPassive | Mode::Client | Mode::Server | Mode::Broadcast,
        ) => Dispatch::Discard,

        (Some(A::BroadcastClient), Mode::Broadcast) => Dispatch::Process,
        (
            Some(A::BroadcastClient),
            Mode::SymmetricActive | Mode::SymmetricPassive | Mode::Client | Mode::Server,
        ) => Dispatch::Discard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figure as the RFC prints it, with the modes it has no column for added on both sides.
    const FIGURE_20: &str = "
        0  DSCRD  NEWPS  DSCRD  FXMIT  MANY   NEWBC  DSCRD  DSCRD
        1  DSCRD  PROC   PROC   DSCRD  DSCRD  DSCRD  DSCRD  DSCRD
        2  DSCRD  PROC   ERR    DSCRD  DSCRD  DSCRD  DSCRD  DSCRD
        3  DSCRD  DSCRD  DSCRD  DSCRD  PROC   DSCRD  DSCRD  DSCRD
        4  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD
        5  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD
        6  DSCRD  DSCRD  DSCRD  DSCRD  DSCRD  PROC   DSCRD  DSCRD";

    const fn word(cell: Dispatch) -> &'static str {
        match cell {
            Dispatch::Process => "PROC",
            Dispatch::Discard => "DSCRD",
            Dispatch::Error => "ERR",
            Dispatch::NewPassive => "NEWPS",
            Dispatch::FastTransmit => "FXMIT",
            Dispatch::Manycast => "MANY",
            Dispatch::NewBroadcastClient => "NEWBC",
        }
    }

    /// RFC 5905 figure 20, all rows; the figure has no column for modes 0, 6 and 7: RFC 5905 section 9.2 and
    /// RFC 8633 sections 3.4 and 5.1, never taken for time. Checklist 6 to 15, 17.
    #[test]
    fn every_cell_of_figure_20_is_as_printed() {
        let mut cells = 0;
        for line in FIGURE_20.trim().lines() {
            let mut words = line.split_whitespace();
            let row: u8 = words.next().unwrap().parse().unwrap();
            let association = AssociationMode::ALL.into_iter().find(|mode| *mode as u8 == row);
            assert_eq!(association.is_none(), row == 0);
            for (mode, expected) in words.enumerate() {
                let mode = Mode::from_low_bits(mode as u8);
                assert_eq!(word(dispatch(association, mode)), expected, "association {row}, packet {mode:?}");
                cells += 1;
            }
        }
        assert_eq!(cells, 56);
    }
}
