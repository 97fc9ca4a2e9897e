//! What one interface is and can do, as far as the kernel tells without trying.
//!
//! Owns: gathering. Does not own: what follows from it (`report`, `vlan`).
//!
//! The one idea a newcomer lacks: any of these questions may go unanswered (an old kernel, a driver that does not care).
//! That is kept as the reason why, because "cannot" and "does not say" lead to different advice.

use super::InterfaceWatch;
use super::TagStack;
use super::view::{Address, Interface, View};
use super::vlan::STRIPPING;
use crate::sys::ethtool::{Channels, Driver, Ethtool, Feature};
use crate::sys::netlink;
use serde::Serialize;
use std::io;

/// Why nothing can be said about an interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No interface has that name.
    #[error("no interface is called {name:?}; there are: {}", .existing.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        existing: Vec<String>,
    },
    /// The kernel refused to list interfaces.
    #[error("cannot list interfaces: {0}")]
    List(#[from] io::Error),
}

/// An answer, or why there is none.
type Answer<T> = Result<T, String>;

/// What one interface is and can do.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InterfaceFacts {
    /// The interface.
    pub interface: Interface,
    /// Its addresses, usable or not.
    pub addresses: Vec<Address>,
    /// The VLAN interfaces on top of it.
    pub vlan_children: Vec<VlanChild>,
    /// Who drives it.
    #[serde(serialize_with = "answer")]
    pub driver: Answer<Driver>,
    /// Its queues in use.
    #[serde(serialize_with = "answer")]
    pub channels: Answer<Channels>,
    /// State of the offloads that take VLAN tags out of frames, those the kernel knows.
    #[serde(serialize_with = "answer")]
    pub stripping: Answer<Vec<(&'static str, Feature)>>,
    /// What it has for XDP and AF_XDP.
    #[serde(serialize_with = "answer")]
    pub device: Answer<DeviceFacts>,
    /// What it can stamp.
    #[serde(serialize_with = "answer")]
    pub stamps: Answer<StampFacts>,
}

/// An interface that carries the frames of one tag stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VlanChild {
    /// Its name.
    pub name: String,
    /// The tags of its frames, from the outside in.
    pub tags: TagStack,
    /// Its addresses, usable or not.
    pub addresses: Vec<Address>,
}

/// What the kernel's `netdev` family says, in words (those of the kernel's netdev.yaml; "bit-N" for newer ones).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceFacts {
    /// What its driver does for XDP.
    pub xdp: Vec<String>,
    /// Receive metadata that a device-bound XDP program can read; `None`: kernel older than 6.8.
    pub rx_metadata: Option<Vec<String>>,
    /// Transmit metadata in zero-copy mode; `None`: kernel older than 6.8.
    pub tx_metadata: Option<Vec<String>>,
    /// Segments of a zero-copy frame.
    pub zero_copy_segments_max: Option<u32>,
}

/// What the interface can stamp for sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StampFacts {
    /// N of /dev/ptpN, the NIC's clock.
    pub phc_index: Option<u32>,
    /// `SOF_TIMESTAMPING_` flags that say who stamps.
    pub sources: Vec<String>,
    /// Which packets the NIC can stamp on receipt (`HWTSTAMP_FILTER_`).
    pub rx_filters: Vec<String>,
}

// linux/netdev.h, linux/net_tstamp.h; word n is bit n.
const XDP_WORDS: [&str; 7] =
    ["basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"];
const RX_METADATA_WORDS: [&str; 3] = ["timestamp", "hash", "vlan-tag"];
const TX_METADATA_WORDS: [&str; 3] = ["tx-timestamp", "tx-checksum", "tx-launch-time-fifo"];
/// The bits after these are options of a request, not abilities.
const STAMP_SOURCE_WORDS: [&str; 7] =
    ["tx-hardware", "tx-software", "rx-hardware", "rx-software", "software", "sys-hardware", "raw-hardware"];
const RX_FILTER_WORDS: [&str; 16] = [
    "none",
    "all",
    "some",
    "ptp-v1-l4-event",
    "ptp-v1-l4-sync",
    "ptp-v1-l4-delay-req",
    "ptp-v2-l4-event",
    "ptp-v2-l4-sync",
    "ptp-v2-l4-delay-req",
    "ptp-v2-l2-event",
    "ptp-v2-l2-sync",
    "ptp-v2-l2-delay-req",
    "ptp-v2-event",
    "ptp-v2-sync",
    "ptp-v2-delay-req",
    "ntp-all",
];

impl InterfaceFacts {
    /// Asks the kernel all about the interface called `name` in the calling thread's network namespace.
    ///
    /// # Errors
    /// There is none of that name, or the interfaces cannot be listed.
    pub fn gather(name: &str) -> Result<Self, InterfaceError> {
        Self::gather_from(InterfaceWatch::open()?.view(), name)
    }

    /// As [`gather`](Self::gather), with a view at hand.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn gather_from(view: &View, name: &str) -> Result<Self, InterfaceError> {
        let interface = view.interface_named(name).cloned().ok_or_else(|| InterfaceError::Unknown {
            name: name.to_owned(),
            existing: view.interfaces().map(|one| one.name.clone()).collect(),
        })?;
        let ifindex = interface.ifindex;
        let vlan_children = view
            .vlan_children(ifindex)
            .into_iter()
            .map(|(tags, child)| VlanChild {
                name: child.name.clone(),
                tags,
                addresses: view.addresses(child.ifindex).cloned().collect(),
            })
            .collect();
        let ethtool = Ethtool::open()?;
        Ok(Self {
            addresses: view.addresses(ifindex).cloned().collect(),
            vlan_children,
            driver: ethtool.driver(name).map_err(|error| unsaid(&error)),
            channels: ethtool.channels(name).map_err(|error| unsaid(&error)),
            stripping: stripping(&ethtool, name).map_err(|error| unsaid(&error)),
            device: device(ifindex),
            stamps: stamps(&ethtool, name).map_err(|error| unsaid(&error)),
            interface,
        })
    }

    /// Receive queues in use, each of which may have an AF_XDP socket.
    pub fn receive_queues(&self) -> Option<u32> {
        match &self.channels {
            Ok(channels) => Some(channels.rx + channels.combined),
            Err(_) => self.interface.rx_queues,
        }
    }
}

fn unsaid(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver does not say".to_owned(),
        _ => error.to_string(),
    }
}

fn stripping(ethtool: &Ethtool, name: &str) -> io::Result<Vec<(&'static str, Feature)>> {
    let mut known = Vec::new();
    for feature in STRIPPING {
        known.extend(ethtool.feature(name, feature)?.map(|state| (feature, state)));
    }
    Ok(known)
}

fn device(ifindex: u32) -> Answer<DeviceFacts> {
    let features = netlink::device_features(ifindex).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => "kernel older than 6.3".to_owned(),
        _ => error.to_string(),
    })?;
    Ok(DeviceFacts {
        xdp: words(features.xdp, &XDP_WORDS),
        rx_metadata: features.rx_metadata.map(|bits| words(bits, &RX_METADATA_WORDS)),
        tx_metadata: features.xsk.map(|bits| words(bits, &TX_METADATA_WORDS)),
        zero_copy_segments_max: features.zero_copy_segments_max,
    })
}

fn stamps(ethtool: &Ethtool, name: &str) -> io::Result<StampFacts> {
    let said = ethtool.timestamping(name)?;
    let abilities = u64::from(said.so_timestamping) & ((1 << STAMP_SOURCE_WORDS.len()) - 1);
    Ok(StampFacts {
        phc_index: said.phc_index,
        sources: words(abilities, &STAMP_SOURCE_WORDS),
        rx_filters: words(said.rx_filters.into(), &RX_FILTER_WORDS),
    })
}

/// The words for the bits that are set, "bit-N" where there is no word.
fn words(bits: u64, names: &[&str]) -> Vec<String> {
    let word = |bit: usize| names.get(bit).map_or_else(|| format!("bit-{bit}"), |&name| name.to_owned());
    (0..64).filter(|bit| bits >> bit & 1 == 1).map(word).collect()
}

/// Serializes an answer as itself and a missing one as `{"unknown": reason}`.
fn answer<T: Serialize, S: serde::Serializer>(answer: &Answer<T>, to: S) -> Result<S::Ok, S::Error> {
    match answer {
        Ok(value) => value.serialize(to),
        Err(reason) => to.collect_map([("unknown", reason)]),
    }
}
