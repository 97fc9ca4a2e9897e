//! ethtool requests through ioctl(2) `SIOCETHTOOL`: what a network device is, and its offload switches.
//!
//! Owns: the layout of the requests (linux/ethtool.h). Does not own: what to switch, or when.
//!
//! The one idea a newcomer lacks: a socket stays in the network namespace it was opened in, so an [`Ethtool`] keeps
//! speaking of the same devices whatever namespace the calling thread moves to. sysfs does not (it shows the namespace
//! of its mount), which is why queues are counted here and not in /sys/class/net.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GET_TS_INFO: u32 = 0x41;
const ETH_SS_FEATURES: u32 = 4;
/// 32-bit words of one feature's name.
const NAME_WORDS: usize = 8;

/// Receive stripping of 802.1Q tags, by the name `ethtool -k` lists as rx-vlan-offload.
pub const STRIP_8021Q: &str = "rx-vlan-hw-parse";
/// Receive stripping of 802.1ad (service) tags.
pub const STRIP_8021AD: &str = "rx-vlan-stag-hw-parse";

/// Who drives a device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Driver {
    /// The driver's name.
    pub name: String,
    /// Its version; for most drivers the kernel's.
    pub version: String,
    /// Where the device sits, such as its PCI address; empty for virtual ones.
    pub bus: String,
}

/// Queues in use now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Channels {
    /// Receive-only queues.
    pub rx: u32,
    /// Transmit-only queues.
    pub tx: u32,
    /// Pairs of both.
    pub combined: u32,
}

/// What a device can stamp (linux/net_tstamp.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamping {
    /// `SOF_TIMESTAMPING_*` bits.
    pub so_timestamping: u32,
    /// N of /dev/ptpN; `None` when the device has no clock.
    pub phc_index: Option<u32>,
    /// Bit n set = `HWTSTAMP_TX_` value n is possible.
    pub tx_types: u32,
    /// Bit n set = `HWTSTAMP_FILTER_` value n is possible.
    pub rx_filters: u32,
}

/// State of one offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Feature {
    /// It is on.
    pub active: bool,
    /// It can be switched.
    pub changeable: bool,
}

/// The device's feature words, as ETHTOOL_GFEATURES lays them out, and where a named one lies in them.
struct FeatureBlocks {
    /// cmd, size, then per block of 32 features: available, requested, active, never changed.
    words: Vec<u32>,
    /// Number of the feature asked for.
    index: usize,
}

/// Asks about the devices of the network namespace it was opened in.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
}

impl Ethtool {
    /// For the devices of the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor and nobody else has it.
        Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The name that an interface has now.
    ///
    /// # Errors
    /// `ENODEV` when it is gone.
    pub fn name_of(&self, ifindex: u32) -> io::Result<String> {
        let mut request = empty_request();
        request.ifr_ifru.ifru_ifindex = ifindex as libc::c_int;
        // SAFETY: SIOCGIFNAME reads the index of a whole ifreq and writes its name.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let name: Vec<u8> = request.ifr_name.iter().map(|&octet| octet as u8).collect();
        Ok(text(&name))
    }

    /// Who drives the device.
    ///
    /// # Errors
    /// `ENODEV` for an unknown device, `EOPNOTSUPP` when the driver does not say.
    pub fn driver(&self, interface: &str) -> io::Result<Driver> {
        let mut words = [0; 49];
        words[0] = ETHTOOL_GDRVINFO;
        // SAFETY: struct ethtool_drvinfo is 196 octets, 49 words.
        unsafe { self.request(interface, &mut words) }?;
        let bytes = octets(&words);
        let part = |n: usize| text(&bytes[4 + 32 * n..4 + 32 * (n + 1)]);
        Ok(Driver { name: part(0), version: part(1), bus: part(3) })
    }

    /// Queues in use.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the driver does not say, which single-queue drivers do not.
    pub fn channels(&self, interface: &str) -> io::Result<Channels> {
        let mut words = [0; 9];
        words[0] = ETHTOOL_GCHANNELS;
        // SAFETY: struct ethtool_channels is 9 words.
        unsafe { self.request(interface, &mut words) }?;
        Ok(Channels { rx: words[5], tx: words[6], combined: words[8] })
    }

    /// What the device can stamp.
    ///
    /// # Errors
    /// `ENODEV` for an unknown device.
    pub fn timestamping(&self, interface: &str) -> io::Result<Timestamping> {
        let mut words = [0; 11];
        words[0] = ETHTOOL_GET_TS_INFO;
        // SAFETY: struct ethtool_ts_info is 11 words.
        unsafe { self.request(interface, &mut words) }?;
        // The kernel says -1 for no clock.
        let phc_index = if words[2] > i32::MAX as u32 { None } else { Some(words[2]) };
        Ok(Timestamping { so_timestamping: words[1], phc_index, tx_types: words[3], rx_filters: words[7] })
    }

    /// State of the offload called `feature`; `None` when this kernel knows no such name.
    ///
    /// # Errors
    /// `ENODEV` for an unknown device.
    pub fn feature(&self, interface: &str, feature: &str) -> io::Result<Option<Feature>> {
        let Some(FeatureBlocks { words, index }) = self.feature_blocks(interface, feature)? else {
            return Ok(None);
        };
        let block = 2 + 4 * (index / 32);
        let bit = |word: usize| words.get(word).is_some_and(|word| word >> (index % 32) & 1 == 1);
        Ok(Some(Feature { changeable: bit(block), active: bit(block + 2) }))
    }

    /// Switches an offload and reads it back.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_ADMIN, `EOPNOTSUPP` when the name is unknown or the switch did not move: a driver may
    /// take a request and keep to its ways.
    pub fn set_feature(&self, interface: &str, feature: &str, on: bool) -> io::Result<()> {
        let unsupported = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        let blocks = self.feature_blocks(interface, feature)?.ok_or_else(unsupported)?;
        let block_count = blocks.words[1] as usize;
        // cmd, size, then per block: valid, requested.
        let mut words = vec![0; 2 + 2 * block_count];
        words[0] = ETHTOOL_SFEATURES;
        words[1] = block_count as u32;
        let valid = 2 + 2 * (blocks.index / 32);
        let bit = 1 << (blocks.index % 32);
        *words.get_mut(valid).ok_or_else(unsupported)? = bit;
        words[valid + 1] = if on { bit } else { 0 };
        // SAFETY: the buffer holds as many blocks as its second word says; the kernel only reads them.
        unsafe { self.request(interface, &mut words) }?;
        match self.feature(interface, feature)? {
            Some(state) if state.active == on => Ok(()),
            _ => Err(unsupported()),
        }
    }

    fn feature_blocks(&self, interface: &str, feature: &str) -> io::Result<Option<FeatureBlocks>> {
        // cmd, reserved, a 64-bit mask of string sets, the size of the one asked for.
        let mut size = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        size[2..4].copy_from_slice(&halves(1 << ETH_SS_FEATURES));
        // SAFETY: struct ethtool_sset_info with one data word is 5 words, and one set is asked for.
        unsafe { self.request(interface, &mut size) }?;
        let count = size[4] as usize;
        // cmd, set, count, then the names.
        let mut names = vec![0; 3 + NAME_WORDS * count];
        names[0] = ETHTOOL_GSTRINGS;
        names[1] = ETH_SS_FEATURES;
        // SAFETY: the kernel writes as many names as it has features, which is a constant of the running kernel and
        // was read just above.
        unsafe { self.request(interface, &mut names) }?;
        let Some(index) = names[3..].chunks_exact(NAME_WORDS).position(|name| text(&octets(name)) == feature)
        else {
            return Ok(None);
        };
        let block_count = count.div_ceil(32);
        let mut words = vec![0; 2 + 4 * block_count];
        words[0] = ETHTOOL_GFEATURES;
        words[1] = block_count as u32;
        // SAFETY: the kernel writes no more blocks than the second word allows.
        unsafe { self.request(interface, &mut words) }?;
        // The kernel puts its own count of blocks there, and ETHTOOL_SFEATURES wants it back.
        if words[1] as usize != block_count {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some(FeatureBlocks { words, index }))
    }

    /// # Safety
    /// `words` must be as long as the kernel's struct for the command in its first word.
    unsafe fn request(&self, interface: &str, words: &mut [u32]) -> io::Result<()> {
        let mut request = empty_request();
        if interface.len() >= request.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the name is terminated (the length was checked, the rest is zero); the data is as long as the command
        // needs, which the caller promises.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn empty_request() -> libc::ifreq {
    // SAFETY: ifreq is integers, arrays of them and a nullable pointer, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// A 64-bit word as the two 32-bit words that lie in its place.
fn halves(long: u64) -> [u32; 2] {
    let bytes = long.to_ne_bytes();
    let half = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [half(0), half(4)]
}

fn octets(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The text before the first zero octet.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&octet| octet == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_has_no_clock_and_its_name() {
        let ethtool = Ethtool::open().unwrap();
        assert_eq!(ethtool.name_of(1).unwrap(), "lo");
        assert_eq!(ethtool.timestamping("lo").unwrap().phc_index, None);
        assert_eq!(
            ethtool.feature("lo", "loopback").unwrap(),
            Some(Feature { active: true, changeable: false })
        );
        assert_eq!(ethtool.feature("lo", "no-such-feature").unwrap(), None);
    }

    #[test]
    fn unknown_and_overlong_names_are_no_device() {
        let ethtool = Ethtool::open().unwrap();
        for name in ["none-such", "a-name-longer-than-the-kernel-allows"] {
            assert_eq!(ethtool.driver(name).unwrap_err().raw_os_error(), Some(libc::ENODEV), "{name}");
        }
    }

    #[test]
    fn text_ends_at_the_first_zero_or_with_the_bytes() {
        assert_eq!(text(b"veth\0\0junk"), "veth");
        assert_eq!(text(b"full"), "full");
    }
}
