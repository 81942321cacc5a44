//! Where a link is: its address, and the interface that has it.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;

use anyverbs_nic::link::ROCE_PORT;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with, sockopt};

use super::{BindError, PACKET_MAX, filter, sys};

/// MTU of an address whose interface is not found.
const MTU_DEFAULT: usize = 1500;

/// Bytes of the headers before a datagram.
pub(super) const fn headers_of(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    }
}

/// The longest datagram in IP packets of `mtu` bytes.
pub(super) fn datagram_of(address: IpAddr, mtu: usize) -> usize {
    // The length in an IPv4 header counts that header, that in an IPv6 header what is behind it.
    let longest = match address {
        IpAddr::V4(_) => PACKET_MAX - headers_of(address),
        IpAddr::V6(_) => PACKET_MAX - 8,
    };
    mtu.saturating_sub(headers_of(address)).min(longest)
}

/// Whether an address means something on one network only, so that a socket has to be told which.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The address of a link, and the interface that has it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    /// Its interface's number in this network namespace; `None` if no interface lists the address.
    pub(super) interface: Option<u32>,
    /// The MTU of the interface.
    pub(super) mtu: usize,
}

impl Place {
    /// # Errors
    /// Several interfaces have the address, and it does not say which one is meant.
    pub(super) fn find(address: IpAddr) -> Result<Place, BindError> {
        let mut names = sys::interfaces_of(address).unwrap_or_default();
        if is_link_local(address) && names.len() > 1 {
            return Err(BindError::Ambiguous { address, interfaces: names.join(", ") });
        }
        // All of 127.0.0.0/8 is the loopback interface's, which lists one address of it.
        if names.is_empty() && address.is_loopback() {
            names.push("lo".to_owned());
        }
        let mut place = Place { address, interface: None, mtu: MTU_DEFAULT };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        if let Some(name) = names.first()
            && let Ok(socket) = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        {
            place.interface = netdevice::name_to_index(&socket, name).ok();
            place.mtu = sys::interface_mtu(socket.as_fd(), name).unwrap_or(MTU_DEFAULT);
        }
        Ok(place)
    }

    /// The number that goes with IPv6 addresses which mean something on one network only.
    pub(super) fn scope(&self) -> u32 {
        self.interface.unwrap_or(0)
    }

    /// What a socket is bound to for `port` of this address.
    pub(super) fn named(&self, port: u16) -> SocketAddr {
        self.name(self.address, port)
    }

    /// Any address as seen from here.
    pub(super) fn name(&self, address: IpAddr, port: u16) -> SocketAddr {
        match address {
            IpAddr::V4(_) => SocketAddr::new(address, port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, self.scope()).into(),
        }
    }

    /// Sends of `socket` to a multicast group leave by the interface of this address. They go as far
    /// as this network: the kernel's own hop limit of 1 for multicast stays.
    pub(super) fn set_multicast_exit(&self, socket: impl AsFd) -> Result<(), Errno> {
        let Some(index) = self.interface else { return Ok(()) };
        match self.address {
            IpAddr::V4(own) => {
                let none = std::net::Ipv4Addr::UNSPECIFIED;
                sockopt::set_ip_multicast_if_with_ifindex(socket, &none, &own, index)
            }
            IpAddr::V6(_) => sockopt::set_ipv6_multicast_if(socket, index),
        }
    }
}

/// A socket that asks the kernel about ways, and sends nothing. Made with the link, since the one who asks may
/// be in another network namespace by then, or in a sandbox.
pub(super) struct Probe {
    place: Place,
    socket: UdpSocket,
}

impl Probe {
    pub(super) fn new(place: &Place) -> io::Result<Probe> {
        let socket = UdpSocket::bind(place.named(0))?;
        let _ = sys::attach_filter(socket.as_fd(), &filter::NOTHING);
        let _ = place.set_multicast_exit(&socket);
        Ok(Probe { place: place.clone(), socket })
    }

    /// The MTU of the way to `peer`: the least of what routes, interface and routers on the way have
    /// told the kernel so far.
    pub(super) fn path_mtu(&self, peer: IpAddr) -> io::Result<usize> {
        // A connected socket has a route.
        self.socket.connect(self.place.name(peer, ROCE_PORT))?;
        let (level, name) = match peer {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let mtu = sys::option(self.socket.as_fd(), level, name)?;
        usize::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }
}
