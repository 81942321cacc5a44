//! What one can ask of a device before it is opened.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyverbs_link::fault::FaultProfile;

use crate::verbs::error::ParseError;

/// Who drives a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[non_exhaustive]
pub enum ProviderKind {
    /// The best one that works here.
    #[default]
    Auto,
    /// The software NIC of this crate.
    Soft,
    /// RDMA hardware, or the kernel's Soft-RoCE, through rdma-core.
    RdmaCore,
    /// Fabrics that libfabric knows.
    Libfabric,
}

impl ProviderKind {
    const ALL: [ProviderKind; 4] =
        [ProviderKind::Auto, ProviderKind::Soft, ProviderKind::RdmaCore, ProviderKind::Libfabric];

    fn name(self) -> &'static str {
        match self {
            ProviderKind::Auto => "auto",
            ProviderKind::Soft => "soft",
            ProviderKind::RdmaCore => "rdma-core",
            ProviderKind::Libfabric => "libfabric",
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ProviderKind {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<ProviderKind, ParseError> {
        named(&ProviderKind::ALL, "a provider", text)
    }
}

/// What the software NIC stands on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[non_exhaustive]
pub enum LinkKind {
    /// The best one that works here.
    #[default]
    Auto,
    /// UDP port 4791, with io_uring where the system permits it and plain sockets elsewhere.
    Udp,
    /// UDP port 4791 with io_uring.
    UdpUring,
    /// UDP port 4791 with plain sockets.
    UdpSockets,
}

impl LinkKind {
    const ALL: [LinkKind; 4] = [LinkKind::Auto, LinkKind::Udp, LinkKind::UdpUring, LinkKind::UdpSockets];

    fn name(self) -> &'static str {
        match self {
            LinkKind::Auto => "auto",
            LinkKind::Udp => "udp",
            LinkKind::UdpUring => "udp-uring",
            LinkKind::UdpSockets => "udp-sockets",
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LinkKind {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<LinkKind, ParseError> {
        named(&LinkKind::ALL, "a link", text)
    }
}

/// The one of `all` that is displayed as `text`.
fn named<T: Copy + fmt::Display>(all: &[T], expected: &'static str, text: &str) -> Result<T, ParseError> {
    all.iter().copied().find(|kind| kind.to_string() == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(T::to_string).collect();
        ParseError::new(expected, format!("`{text}` is none of {}", names.join(", ")))
    })
}

/// Which device to open, and what to put around its link.
///
/// As text it is a provider or a link, and an address if one is wanted: `auto`, `udp-sockets`, `udp@127.0.0.5`.
///
/// ```
/// use anyverbs::{DeviceOptions, LinkKind};
/// let options: DeviceOptions = "udp-sockets@127.0.0.5".parse()?;
/// let same = DeviceOptions::new().link(LinkKind::UdpSockets).address("127.0.0.5".parse().unwrap());
/// assert_eq!(options.to_string(), same.to_string());
/// # Ok::<(), anyverbs::ParseError>(())
/// ```
#[derive(Clone, Default, Debug)]
#[must_use]
pub struct DeviceOptions {
    pub(crate) provider: ProviderKind,
    pub(crate) link: LinkKind,
    pub(crate) address: Option<IpAddr>,
    pub(crate) fault: Option<FaultProfile>,
    pub(crate) capture: Option<PathBuf>,
    pub(crate) seed: Option<u64>,
}

impl DeviceOptions {
    /// Whatever works here, on the first loopback address that is free.
    pub fn new() -> DeviceOptions {
        DeviceOptions::default()
    }

    /// Who drives it.
    pub fn provider(mut self, provider: ProviderKind) -> DeviceOptions {
        self.provider = provider;
        self
    }

    /// What a software NIC stands on.
    pub fn link(mut self, link: LinkKind) -> DeviceOptions {
        self.link = link;
        self
    }

    /// The address of the device, one of this machine's. Without this it is the first of 127.0.0.1, 127.0.0.2 and
    /// so on whose port is free.
    pub fn address(mut self, address: IpAddr) -> DeviceOptions {
        self.address = Some(address);
        self
    }

    /// Lets the network lose, duplicate, reorder, delay and corrupt what this device sends and receives.
    pub fn fault(mut self, profile: FaultProfile) -> DeviceOptions {
        self.fault = Some(profile);
        self
    }

    /// Writes what this device sends and receives to a pcapng file.
    ///
    /// It sees what a capture on the device's own machine would: faults happen in the network, so what they lose on
    /// its way out is in the file, and what they lose on its way in is not.
    pub fn capture(mut self, file: impl Into<PathBuf>) -> DeviceOptions {
        self.capture = Some(file.into());
        self
    }

    /// Draws queue pair numbers, sequence numbers and keys from this seed, so that a run can be repeated. They
    /// can be guessed then: for tests only. Without this they come from the system's entropy.
    pub fn seed(mut self, seed: u64) -> DeviceOptions {
        self.seed = Some(seed);
        self
    }
}

impl fmt::Display for DeviceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.provider, self.link) {
            (ProviderKind::Auto, link) => write!(f, "{link}")?,
            (provider, LinkKind::Auto) => write!(f, "{provider}")?,
            (provider, link) => write!(f, "{provider}/{link}")?,
        }
        match self.address {
            Some(address) => write!(f, "@{address}"),
            None => Ok(()),
        }
    }
}

impl FromStr for DeviceOptions {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<DeviceOptions, ParseError> {
        let error = |problem| ParseError::new("a device", problem);
        let (kinds, address) = match text.split_once('@') {
            Some((kinds, address)) => {
                let address =
                    address.parse().map_err(|_| error(format!("`{address}` is not an IP address")))?;
                (kinds, Some(address))
            }
            None => (text, None),
        };
        let (provider, link) = match kinds.split_once('/') {
            Some((provider, link)) => (provider.parse()?, link.parse()?),
            None => match (kinds.parse(), kinds.parse()) {
                (Ok(provider), Ok(link)) => (provider, link),
                (Ok(provider), Err(_)) => (provider, LinkKind::Auto),
                (Err(_), Ok(link)) => (ProviderKind::Auto, link),
                (Err(_), Err(_)) => {
                    let providers = ProviderKind::ALL.iter().map(ProviderKind::to_string);
                    let links = LinkKind::ALL.iter().skip(1).map(LinkKind::to_string);
                    let names: Vec<_> = providers.chain(links).collect();
                    return Err(error(format!("`{kinds}` is none of {}", names.join(", "))));
                }
            },
        };
        Ok(DeviceOptions { provider, link, address, ..DeviceOptions::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_gives_the_options_back() {
        for text in ["auto", "udp", "udp-uring", "udp-sockets@127.0.0.9", "soft", "rdma-core", "soft/udp@::1"]
        {
            assert_eq!(text.parse::<DeviceOptions>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn text_that_is_wrong_names_what_is_right() {
        for text in ["", "tcp", "udp@", "udp@localhost", "soft/", "/udp", "@127.0.0.1", "soft/udp/udp"] {
            let error = text.parse::<DeviceOptions>().unwrap_err().to_string();
            assert!(
                error.contains("udp-sockets") || error.contains("IP address") || error.contains("libfabric"),
                "{error}"
            );
        }
    }
}
