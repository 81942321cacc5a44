//! Taking an address, and saying precisely why that failed.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;

use anyverbs_nic::link::ROCE_PORT;
use thiserror::Error;

use super::buffers::{Buffer, Capped};
use super::place::Place;
use super::{exits, sys};

/// Why a UDP link could not be had on an address.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody else has the port on this address.
    #[error(
        "UDP port {ROCE_PORT} of {address} is taken by {holder}; {}",
        another_address(*address)
    )]
    InUse {
        /// The address that was asked for.
        address: IpAddr,
        /// Who has the port.
        holder: Holder,
    },
    /// The address belongs to no interface of this host.
    #[error(
        "{address} is no address of this host; `ip address` lists those that are, \
         and 127.0.0.1 to 127.255.255.254 always are"
    )]
    NotLocal {
        /// The address that was asked for.
        address: IpAddr,
    },
    /// The address is not one that a peer could answer to.
    #[error("{address} is not the address of one host: a link needs one that peers can answer to")]
    NotUnicast {
        /// The address that was asked for.
        address: IpAddr,
    },
    /// The address means something on one network only, and this host has it on several.
    #[error(
        "{address} is link-local, and {interfaces} all have it; give the one that is meant an address of \
         its own, such as by `ip address add fd00::1/64 dev INTERFACE`, and take that"
    )]
    Ambiguous {
        /// The address that was asked for.
        address: IpAddr,
        /// The interfaces that have it.
        interfaces: String,
    },
    /// The MTU that was asked for is not one that the interface carries.
    #[error(
        "an MTU of {given} bytes was asked for on {address}; its interface carries IP packets of up to \
         {interface} bytes, and RoCEv2 needs {least}: choose one between, or none to have it found out"
    )]
    Mtu {
        /// The address that was asked for.
        address: IpAddr,
        /// The MTU that was asked for.
        given: usize,
        /// The MTU of the interface.
        interface: usize,
        /// The smallest one that holds the smallest path MTU.
        least: usize,
    },
    /// More source ports than a link has sockets for.
    #[error("{given} source ports were asked for; a link has at most {max}")]
    SourcePorts {
        /// How many were asked for.
        given: usize,
        /// How many there can be.
        max: usize,
    },
    /// The system forbids it.
    #[error(
        "the system does not let this process use UDP port {ROCE_PORT} of {address} ({source}); \
         a security policy (seccomp, SELinux, AppArmor) or a container's settings may forbid it"
    )]
    Denied {
        /// The address that was asked for.
        address: IpAddr,
        /// What the system said.
        source: io::Error,
    },
    /// As many links as can share an address do.
    #[error(
        "{address} has {limit} links already, and no more can share an address; \
         close some, or take another address"
    )]
    Crowded {
        /// The address that was asked for.
        address: IpAddr,
        /// How many links can share it.
        limit: u32,
    },
    /// Another link has the port, and does not share it with this one.
    #[error(
        "{owner} has UDP port {ROCE_PORT} of {address} and does not share it with this process: {reason}; {}",
        another_address(*address)
    )]
    Refused {
        /// The address that was asked for.
        address: IpAddr,
        /// The process that has the port.
        owner: String,
        /// Why it does not share it.
        reason: String,
    },
    /// io_uring was asked for, and cannot be used here.
    #[error("io_uring was asked for and cannot be used: {reason}; plain sockets always work")]
    NoUring {
        /// What failed, and what the system said.
        reason: String,
    },
    /// Anything else.
    #[error("{action} for {address} failed: {source}")]
    System {
        /// The address that was asked for.
        address: IpAddr,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn another_address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => {
            let [_, b, c, d] = v4.octets();
            let other = Ipv4Addr::new(127, b, c, if d < 254 { d + 1 } else { 1 });
            format!("stop it, or take another address: every 127.x.y.z is one, such as {other}")
        }
        _ => "stop it, or take another address of this host: every 127.x.y.z is one".to_owned(),
    }
}

/// Who has a port, as far as can be seen.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Holder {
    /// The kernel's own RoCE, which holds the port on all addresses.
    KernelRxe,
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// A process of this user, which this process may not look at.
    User {
        /// The user's id.
        uid: u32,
    },
    /// It could not be found out.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::KernelRxe => {
                f.write_str("the kernel's Soft-RoCE (module rdma_rxe, `rdma link` lists its devices)")
            }
            Holder::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Holder::User { uid } => write!(f, "a process of user {uid}"),
            Holder::Unknown => f.write_str("another program or the kernel's Soft-RoCE (module rdma_rxe)"),
        }
    }
}

/// A socket that has the port.
pub(super) struct Bound {
    pub(super) socket: UdpSocket,
    /// The kernel puts datagrams together that arrive one behind the other.
    pub(super) gro: bool,
    /// What the limits of the system made smaller than was asked for.
    pub(super) capped: Vec<Capped>,
}

/// Refuses addresses that peers could not answer to.
pub(super) fn check(address: IpAddr) -> Result<(), BindError> {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(BindError::NotUnicast { address });
    }
    Ok(())
}

/// Binds an unconnected socket to the RoCE port of `address`.
pub(super) fn take(address: IpAddr) -> io::Result<UdpSocket> {
    // The place was found when the link was made; if it cannot be now, the address alone has to do.
    let name =
        Place::find(address).map_or(SocketAddr::new(address, ROCE_PORT), |place| place.named(ROCE_PORT));
    UdpSocket::bind(name)
}

/// What it means that a port could not be taken.
pub(super) fn refusal(address: IpAddr, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => in_use(address),
        io::ErrorKind::AddrNotAvailable => BindError::NotLocal { address },
        io::ErrorKind::PermissionDenied => BindError::Denied { address, source },
        _ => BindError::System { address, action: "binding a socket", source },
    }
}

/// Somebody has the RoCE port of `address`.
pub(super) fn in_use(address: IpAddr) -> BindError {
    BindError::InUse { address, holder: holder(address) }
}

/// Makes a socket that was [taken](take) ready to send and receive.
pub(super) fn prepare(address: IpAddr, socket: UdpSocket) -> Result<Bound, BindError> {
    let fail = |action| move |source| BindError::System { address, action, source };
    let place = Place::find(address)?;
    exits::prepare(&socket, &place).map_err(fail("forbidding fragmentation"))?;
    let fd = socket.as_fd();
    let (level, notes) = match address {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVTOS),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    };
    sys::set_option(fd, level, notes, 1).map_err(fail("asking for ECN marks"))?;
    let gro = sys::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
    let capped = [Buffer::RECEIVE, Buffer::SEND].into_iter().filter_map(|buffer| buffer.size(fd)).collect();
    Ok(Bound { socket, gro, capped })
}

/// Who has the RoCE port of `address`.
fn holder(address: IpAddr) -> Holder {
    let mut holder = Holder::Unknown;
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let Ok(table) = fs::read_to_string(table) else {
            continue;
        };
        for socket in table.lines().skip(1).filter_map(|line| holding(line, address)) {
            holder = match (socket.inode, process_of(socket.inode)) {
                (_, Some((pid, name))) => return Holder::Process { pid, name },
                (0, None) if Path::new("/sys/module/rdma_rxe").exists() => return Holder::KernelRxe,
                (0, None) => Holder::Unknown,
                (_, None) => Holder::User { uid: socket.uid },
            };
        }
    }
    if holder == Holder::Unknown && Path::new("/sys/module/rdma_rxe").exists() {
        holder = Holder::KernelRxe;
    }
    holder
}

/// A line of /proc/net/udp.
#[derive(PartialEq, Eq, Debug)]
struct SocketLine {
    uid: u32,
    inode: u64,
}

/// What a line of /proc/net/udp or udp6 says, if its socket has the RoCE port of `address`.
fn holding(line: &str, address: IpAddr) -> Option<SocketLine> {
    let mut fields = line.split_ascii_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    if u16::from_str_radix(port, 16) != Ok(ROCE_PORT) {
        return None;
    }
    // Each group of eight digits is a word of the address as the machine reads it.
    let mut octets = [0; 16];
    let words = ip.len() / 8;
    for (word, octets) in octets.chunks_exact_mut(4).enumerate().take(words) {
        let digits = ip.get(8 * word..8 * word + 8)?;
        octets.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    let bound = if words == 1 {
        IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
    } else {
        IpAddr::from(octets).to_canonical()
    };
    if bound != address && !bound.is_unspecified() {
        return None;
    }
    let uid = fields.nth(5)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(SocketLine { uid, inode })
}

/// The process that has the socket with this inode, of those that this process may look at.
fn process_of(inode: u64) -> Option<(u32, String)> {
    let link = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has_it = files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == link.as_str()));
        if has_it {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_socket_table() {
        let line = "  123: 0100007F:12B7 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4242 2 0";
        let found = Some(SocketLine { uid: 1000, inode: 4242 });
        assert_eq!(holding(line, [127, 0, 0, 1].into()), found);
        assert_eq!(holding(line, [127, 0, 0, 2].into()), None);
        assert_eq!(holding(&line.replace("0100007F", "00000000"), [10, 0, 0, 2].into()), found);
        assert_eq!(holding(&line.replace("12B7", "12B8"), [127, 0, 0, 1].into()), None);
        let v6 = line.replace("0100007F", "B80D0120000000000000000007000000");
        assert_eq!(holding(&v6, "2001:db8::7".parse().unwrap()), found);
        for cut in 0..line.len() {
            holding(&line[..cut], [127, 0, 0, 1].into());
        }
    }

    #[test]
    fn addresses_that_cannot_be_had() {
        for address in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            let address = address.parse().unwrap();
            assert!(matches!(check(address), Err(BindError::NotUnicast { .. })), "{address}");
        }
        // TEST-NET-3 and the documentation prefix are nobody's.
        for address in ["203.0.113.77", "2001:db8::77"] {
            let ip: IpAddr = address.parse().unwrap();
            let error = refusal(ip, take(ip).unwrap_err());
            assert!(matches!(error, BindError::NotLocal { .. }), "{error}");
            assert!(error.to_string().contains(address), "{error}");
        }
    }
}
