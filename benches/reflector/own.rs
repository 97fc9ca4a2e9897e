//! Through the server's own port, in the order of the daemon's round (`daemon::exchange`).

use super::swap::swap;
use super::{BUSY_POLL, BUSY_POLL_BUDGET, ENTRIES, Rings};
use serde_json::{Value, json};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use timeball::datapath::af_xdp::{
    BATCH, BusyPoll, Frame, Link, Port, PortConfig, PortError, RingSizes, StampRequest,
};
use timeball::sys::xdp_socket::CopyMode;

pub struct Own {
    port: Port,
    frames: Vec<Frame>,
}

impl Own {
    pub fn open(ifindex: u32, mode: CopyMode, busy_poll: bool) -> Result<Self, PortError> {
        let busy_poll = busy_poll.then_some(BusyPoll { duration: BUSY_POLL, budget: BUSY_POLL_BUDGET });
        let config = PortConfig {
            frames: 4 * ENTRIES,
            rings: RingSizes { fill: ENTRIES, receive: ENTRIES, transmit: ENTRIES, completion: ENTRIES },
            mode,
            busy_poll,
            ..PortConfig::new(ifindex, 0)
        };
        Ok(Self { port: Port::open(&config)?, frames: Vec::with_capacity(BATCH) })
    }
}

impl AsFd for Own {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

impl Rings for Own {
    fn round(&mut self) -> io::Result<usize> {
        self.port.complete(|_, _| {});
        let received = self.port.receive(&mut self.frames);
        for frame in self.frames.drain(..) {
            let packet = self.port.packet_mut(&frame);
            let length = packet.len();
            if swap(packet) {
                self.port.send(frame, length, StampRequest::None);
            } else {
                self.port.recycle(frame);
            }
        }
        let flushed = self.port.flush();
        let filled = self.port.refill();
        if flushed == Link::Gone || filled == Link::Gone {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        Ok(received)
    }

    fn has_received(&mut self) -> bool {
        self.port.has_received()
    }

    fn has_unsent(&mut self) -> bool {
        self.port.has_unsent()
    }

    fn drives_nic(&mut self) -> bool {
        self.port.note_driving();
        self.port.facts().drives_nic
    }

    fn counts(&self) -> Value {
        let counters = self.port.counters();
        json!({
            "rings": "own",
            "received": counters.rx_packets,
            "sent": counters.tx_packets,
            "unsent": counters.tx_full,
            "wakeups": counters.wakeups,
        })
    }
}
