//! Chooses a provider, and says why.

use std::fmt;
use std::net::Ipv4Addr;

use anyverbs_link::udp::{BindError, Io, UdpLink, UdpOptions};
use anyverbs_nic::link::Link;

use super::{DeviceBackend, DeviceOptions, LinkKind, ProviderKind, soft};
use crate::sys;
use crate::verbs::error::Error;

/// A device that could be, and whether it can.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// Its name: the provider and what it stands on, `soft/udp-uring`.
    pub name: String,
    /// Who would drive it.
    pub provider: ProviderKind,
    /// Whether it can be opened.
    pub usable: bool,
    /// What it is like, or why it cannot be used.
    pub detail: String,
    /// What would make it usable; of one that is, what would make it better.
    pub remedy: Option<String>,
}

impl Candidate {
    fn unusable(name: impl Into<String>, provider: ProviderKind, why: impl fmt::Display) -> Candidate {
        Candidate { name: name.into(), provider, usable: false, detail: why.to_string(), remedy: None }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Candidate { name, usable, detail, remedy, .. } = self;
        write!(f, "{name}: {}{detail}", if *usable { "" } else { "not usable: " })?;
        match remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// What a provider of this crate that is not finished yet says of what it found.
const LATER: &str = "this version drives the software NIC only; use the device `soft`";

/// Every device that the options allow, in the order of preference, each tried out.
///
/// ```
/// for candidate in anyverbs::candidates(&"auto".parse()?) {
///     println!("{candidate}");
/// }
/// # Ok::<(), anyverbs::ParseError>(())
/// ```
pub fn candidates(options: &DeviceOptions) -> Vec<Candidate> {
    let wants = |kind| matches!(options.provider, ProviderKind::Auto) || options.provider == kind;
    let mut all = Vec::new();
    if wants(ProviderKind::Soft) {
        all.extend(soft_candidates(options));
    }
    // A link is something that only the software NIC stands on.
    if options.link == LinkKind::Auto || options.provider != ProviderKind::Auto {
        if wants(ProviderKind::RdmaCore) {
            all.extend(rdma_core_candidates());
        }
        if wants(ProviderKind::Libfabric) {
            all.extend(libfabric_candidates());
        }
    }
    all
}

/// Opens the first candidate that can be.
pub(crate) fn open(options: &DeviceOptions) -> Result<Box<dyn DeviceBackend>, Error> {
    let none = |candidates| Error::NoDevice { asked: options.to_string(), candidates };
    if !matches!(options.provider, ProviderKind::Auto | ProviderKind::Soft) {
        return Err(none(candidates(options)));
    }
    let link = bind(options.link, options).map_err(|(kind, error)| {
        none(vec![Candidate::unusable(format!("soft/{kind}"), ProviderKind::Soft, error)])
    })?;
    Ok(Box::new(soft::open(Box::new(link), options)?))
}

/// Binds a link of one kind, to the address or else to the first loopback address that is free.
fn bind(kind: LinkKind, asked: &DeviceOptions) -> Result<UdpLink, (LinkKind, BindError)> {
    let address = asked.address;
    let io = match kind {
        LinkKind::Auto | LinkKind::Udp => Io::Auto,
        LinkKind::UdpUring => Io::Uring,
        LinkKind::UdpSockets => Io::Sockets,
    };
    let kind = if kind == LinkKind::Auto { LinkKind::Udp } else { kind };
    // Of an address that was asked for, a share will do; without one, each device gets its own, which others
    // may then ask for.
    let options = UdpOptions { io, join: address.is_some(), seed: asked.seed, ..UdpOptions::default() };
    if let Some(address) = address {
        return UdpLink::bind(address, &options).map_err(|error| (kind, error));
    }
    let mut last = 1;
    loop {
        match UdpLink::bind(Ipv4Addr::new(127, 0, 0, last).into(), &options) {
            Err(BindError::InUse { .. }) if last < 254 => last += 1,
            result => return result.map_err(|error| (kind, error)),
        }
    }
}

fn soft_candidates(options: &DeviceOptions) -> Vec<Candidate> {
    let kinds: &[LinkKind] = match options.link {
        LinkKind::Auto | LinkKind::Udp => &[LinkKind::UdpUring, LinkKind::UdpSockets],
        LinkKind::UdpUring => &[LinkKind::UdpUring],
        LinkKind::UdpSockets => &[LinkKind::UdpSockets],
    };
    let candidate = |&kind: &LinkKind| {
        let name = format!("soft/{kind}");
        match bind(kind, options) {
            Ok(link) => Candidate {
                name,
                provider: ProviderKind::Soft,
                usable: true,
                detail: format!("{}, {}", link.info().address, link.info().detail),
                remedy: (!link.info().warnings.is_empty()).then(|| link.info().warnings.join("; ")),
            },
            Err((_, error)) => Candidate::unusable(name, ProviderKind::Soft, error),
        }
    };
    kinds.iter().map(candidate).collect()
}

fn rdma_core_candidates() -> Vec<Candidate> {
    let provider = ProviderKind::RdmaCore;
    match sys::rdma_core::list() {
        Err(missing) => vec![Candidate::unusable("rdma-core", provider, missing)],
        Ok(devices) if devices.is_empty() => {
            vec![Candidate::unusable("rdma-core", provider, "libibverbs works, and lists no device")]
        }
        Ok(devices) => devices
            .into_iter()
            .map(|device| {
                let what = format!("{:?} device, GUID {:016x}", device.transport, device.guid);
                let detail = match device.opened {
                    Ok(()) => format!("{what}, can be opened"),
                    Err(error) => format!("{what}, cannot be opened: {error}"),
                };
                Candidate {
                    remedy: Some(LATER.to_owned()),
                    ..Candidate::unusable(format!("rdma-core/{}", device.name), provider, detail)
                }
            })
            .collect(),
    }
}

fn libfabric_candidates() -> Vec<Candidate> {
    let provider = ProviderKind::Libfabric;
    match sys::libfabric::list() {
        Err(missing) => vec![Candidate::unusable("libfabric", provider, missing)],
        Ok(found) if found.is_empty() => {
            vec![Candidate::unusable("libfabric", provider, "libfabric works, and offers no provider")]
        }
        Ok(found) => found
            .into_iter()
            .map(|found| {
                let mut abilities = vec![format!("{:?} endpoint", found.endpoint)];
                let named = [
                    (found.messages, "messages"),
                    (found.one_sided, "one-sided"),
                    (found.atomics, "atomics"),
                ];
                abilities.extend(named.iter().filter(|(can, _)| *can).map(|(_, name)| (*name).to_owned()));
                Candidate {
                    remedy: Some(LATER.to_owned()),
                    ..Candidate::unusable(
                        format!("libfabric/{}/{}", found.provider, found.domain),
                        provider,
                        format!("on {}: {}", found.fabric, abilities.join(", ")),
                    )
                }
            })
            .collect(),
    }
}
