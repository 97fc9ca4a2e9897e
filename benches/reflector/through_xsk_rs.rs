//! Through xsk-rs, with the load generator's adapter.

use super::swap::swap;
use super::{BUSY_POLL, BUSY_POLL_BUDGET, ENTRIES, Failure, Rings};
use serde_json::{Value, json};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use timeball::load::xsk::{Next, Xsk, XskConfig};
use timeball::sys::xdp_socket::CopyMode;

pub struct ThroughXskRs(Xsk);

impl ThroughXskRs {
    pub fn open(interface: &str, mode: CopyMode, busy_poll: bool) -> Result<Self, Failure> {
        let config = XskConfig { interface: interface.to_owned(), queue: 0, entries: ENTRIES, mode };
        let mut xsk = Xsk::open(&config)?;
        if busy_poll {
            xsk.set_busy_poll(BUSY_POLL.as_micros() as u32, BUSY_POLL_BUDGET)?;
        }
        Ok(Self(xsk))
    }
}

impl AsFd for ThroughXskRs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Rings for ThroughXskRs {
    fn round(&mut self) -> io::Result<usize> {
        self.0.complete();
        let received = self.0.receive(|packet| if swap(packet) { Next::SendBack } else { Next::Recycle });
        self.0.flush()?;
        self.0.refill();
        Ok(received)
    }

    fn has_received(&mut self) -> bool {
        self.0.has_received()
    }

    fn has_unsent(&mut self) -> bool {
        self.0.waiting() > 0
    }

    fn drives_nic(&mut self) -> bool {
        self.0.note_driving();
        self.0.drives_nic()
    }

    fn counts(&self) -> Value {
        let counters = self.0.counters();
        json!({
            "rings": "xsk-rs",
            "received": counters.received,
            "sent": counters.sent,
            "unsent": counters.unsent,
            "wakeups": counters.wakeups,
        })
    }
}
