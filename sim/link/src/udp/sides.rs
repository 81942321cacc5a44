//! Other ways in than the socket of the RoCE port: multicast groups, and the raw socket of those who are
//! allowed one.
//!
//! Few datagrams come by them, and to ask the kernel in vain costs as much as a tenth of a message. So
//! they are asked seldom, unless something came by them lately or a sleeper saw that something did.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyverbs_nic::link::ROCE_PORT;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::buffers::Buffer;
use super::control::Notes;
use super::place::Place;
use super::sys::{self, Calls, Received};
use super::{exits, filter};

/// Groups that a link can be in.
pub(super) const GROUPS_MAX: usize = 64;

/// Calls of [`Sides::receive`] for one that asks the kernel, while nothing comes by the side.
const SELDOM: u32 = 16;

/// Calls that keep asking after something came.
const WARM: u32 = 64;

const UDP_HEADER: usize = 8;

/// What a sleeper polls for all ways in but the main one.
pub(super) struct SideBell {
    /// `None` where a sandbox has none: then there are no other ways in.
    pub(super) epoll: Option<OwnedFd>,
    rung: AtomicBool,
}

impl SideBell {
    pub(super) fn new() -> SideBell {
        SideBell { epoll: epoll::create(epoll::CreateFlags::CLOEXEC).ok(), rung: AtomicBool::new(false) }
    }

    /// A sleeper saw that something is there.
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::Relaxed);
    }

    fn add(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        let no_epoll =
            || io::Error::new(io::ErrorKind::Unsupported, "there was no epoll when the link was made");
        let epoll = self.epoll.as_ref().ok_or_else(no_epoll)?;
        Ok(epoll::add(epoll, socket, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?)
    }
}

struct Group {
    address: IpAddr,
    socket: UdpSocket,
    number: u64,
}

/// The raw socket's number; those of groups count from 1.
const RAW: u64 = 0;

/// The ways in beside the socket of the RoCE port.
pub(super) struct Sides {
    place: Place,
    bell: Arc<SideBell>,
    raw: Option<OwnedFd>,
    groups: Vec<Group>,
    next_number: u64,
    calls: Calls,
    /// Turns until the kernel is asked again.
    rest: u32,
    /// Turns for which it is asked each time.
    warm: u32,
    /// The last turn brought something, so the next is the main socket's.
    served: bool,
}

impl Sides {
    pub(super) fn new(place: Place, bell: Arc<SideBell>) -> Sides {
        let calls = Calls::new(place.scope());
        Sides {
            place,
            bell,
            raw: None,
            groups: Vec::new(),
            next_number: 1,
            calls,
            rest: 0,
            warm: 0,
            served: false,
        }
    }

    /// Has datagrams whose IP identification must be seen come by a raw socket, and no more by `main`.
    ///
    /// # Errors
    /// The system does not permit raw sockets (CAP_NET_RAW): everything comes by `main`.
    pub(super) fn open_raw(&mut self, main: &UdpSocket) -> io::Result<()> {
        let IpAddr::V4(own) = self.place.address else { return Err(io::ErrorKind::Unsupported.into()) };
        let raw = raw_socket()?;
        // It hears everything from the start: what comes before its filter is passed over by `parse`.
        sys::attach_filter(raw.as_fd(), &filter::NOTHING)?;
        bind(&raw, &SocketAddr::from((own, 0)))?;
        let _ = Buffer::RECEIVE.size(raw.as_fd());
        sys::attach_filter(raw.as_fd(), &filter::raw(own))?;
        self.bell.add(&raw, RAW)?;
        sys::attach_filter(main.as_fd(), &filter::NOT_RAW)?;
        self.raw = Some(raw);
        Ok(())
    }

    /// Receives what is sent to `group`, too. To be in it already is no error.
    pub(super) fn join(&mut self, group: IpAddr) -> io::Result<()> {
        let own = self.place.address;
        let invalid = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if !group.is_multicast() {
            return invalid(format!(
                "{group} is no multicast group: those are 224.0.0.0 to 239.255.255.255 and ff00::/8"
            ));
        }
        if group.is_ipv4() != own.is_ipv4() {
            return invalid(format!(
                "the group {group} and this link's address {own} are of different families"
            ));
        }
        if own.is_ipv6() && own.is_loopback() {
            let text = format!(
                "{group} cannot be joined on {own}: the loopback interface has no multicast for IPv6; take an \
                 address of another interface, or of 127.0.0.0/8 for groups on this host"
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        if self.groups.iter().any(|known| known.address == group) {
            return Ok(());
        }
        if self.groups.len() == GROUPS_MAX {
            let text = format!("the link is in {GROUPS_MAX} multicast groups, its limit; leave one first");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        let number = self.next_number;
        let socket = member(&self.place, group).map_err(|error| {
            io::Error::new(error.kind(), format!("joining {group} at the interface of {own}: {error}"))
        })?;
        self.bell.add(&socket, number)?;
        self.next_number += 1;
        self.groups.push(Group { address: group, socket, number });
        Ok(())
    }

    /// Receives what is sent to `group` no more.
    pub(super) fn leave(&mut self, group: IpAddr) {
        // Closing the socket ends its membership and takes it off the epoll.
        self.groups.retain(|known| known.address != group);
    }

    /// Whether the kernel should be asked now.
    pub(super) fn is_turn(&mut self) -> bool {
        if self.raw.is_none() && self.groups.is_empty() {
            return false;
        }
        if std::mem::take(&mut self.served) {
            return false;
        }
        if self.warm > 0 {
            self.warm -= 1;
            return true;
        }
        // Looked at before it is written, so that no line of cache goes to and fro.
        if self.bell.rung.load(Ordering::Relaxed) {
            self.bell.rung.store(false, Ordering::Relaxed);
            self.rest = 0;
        }
        match self.rest.checked_sub(1) {
            Some(rest) => {
                self.rest = rest;
                false
            }
            None => {
                self.rest = SELDOM - 1;
                true
            }
        }
    }

    /// What came by any of these ways, those with something in turn; never waits.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(self.bell.epoll.as_ref()?, &mut events[..], Some(&at_once)).unwrap_or(0) == 0 {
            return None;
        }
        let received = match events[0].data.u64() {
            RAW => self.receive_raw(buffer),
            number => self.receive_group(number, buffer),
        };
        self.warm = WARM;
        self.served = true;
        received
    }

    fn receive_raw(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let received = self.calls.receive(self.raw.as_ref()?.as_fd(), buffer).ok()?;
        let IpAddr::V4(own) = self.place.address else { return None };
        parse(&buffer[..received.len.min(buffer.len())], own)
    }

    fn receive_group(&mut self, number: u64, buffer: &mut [u8]) -> Option<Received> {
        let group = self.groups.iter().find(|group| group.number == number)?;
        let received = self.calls.receive(group.socket.as_fd(), buffer).ok()?;
        Some(Received { group: Some(group.address), ..received })
    }
}

/// A raw socket for UDP. While there is one, the kernel shows it each datagram of the host, at a tenth of the
/// cost of a small one: so there is none before a peer is heard that uses identifications.
///
/// # Errors
/// The system does not permit it.
pub(super) fn raw_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::UDP))?)
}

/// A socket that is in a group at the interface of `place`.
fn member(place: &Place, group: IpAddr) -> Result<UdpSocket, Errno> {
    let family = if group.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // Every process of the host that is in the group has such a socket, and each gets a copy.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &place.name(group, ROCE_PORT))?;
    let socket = UdpSocket::from(socket);
    exits::prepare(&socket, place).map_err(errno)?;
    place.set_multicast_exit(&socket)?;
    let fd = socket.as_fd();
    match (group, place.address) {
        (IpAddr::V4(group), IpAddr::V4(own)) => {
            // Not what others of this host are in on another interface.
            sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0).map_err(errno)?;
            sys::set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1).map_err(errno)?;
            sockopt::set_ip_add_membership_with_ifindex(&socket, &group, &own, place.scope())?;
        }
        (IpAddr::V6(group), _) => {
            sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0).map_err(errno)?;
            sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1).map_err(errno)?;
            sockopt::set_ipv6_add_membership(&socket, &group, place.scope())?;
        }
        (IpAddr::V4(_), IpAddr::V6(_)) => return Err(Errno::AFNOSUPPORT),
    }
    let _ = Buffer::RECEIVE.size(fd);
    let _ = sys::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    Ok(socket)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// A datagram to `own` behind its IPv4 and UDP headers, as a raw socket shows it, if it is one that
/// [`filter::raw`] lets pass.
fn parse(packet: &[u8], own: Ipv4Addr) -> Option<Received> {
    let ip: &[u8; 20] = packet.first_chunk()?;
    let ip_len = usize::from(ip[0] & 0xF) * 4;
    let udp: &[u8; UDP_HEADER] = packet.get(ip_len..)?.first_chunk()?;
    let id = u16::from_be_bytes([ip[4], ip[5]]);
    let is_whole = u16::from_be_bytes([ip[6], ip[7]]) & 0x1FFF == 0;
    let is_ours = ip[16..] == own.octets() && udp[2..4] == ROCE_PORT.to_be_bytes();
    if !is_whole || !is_ours || id < filter::KNOWN_IDS || udp[6..] != [0, 0] {
        return None;
    }
    // What is behind the datagram, if anything, is not of it.
    let len = usize::from(u16::from_be_bytes([udp[4], udp[5]])).checked_sub(UDP_HEADER)?;
    let start = ip_len + UDP_HEADER;
    packet.get(start..start + len)?;
    let source = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    Some(Received {
        start,
        len,
        source: Some((source, u16::from_be_bytes([udp[0], udp[1]])).into()),
        group: None,
        ip_id: Some(id),
        notes: Notes { ecn: ip[1] & 3, segment: 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_a_raw_socket_are_taken_apart() {
        // The headers of a congestion notification that a ConnectX-4 Lx sent, with an option put in.
        let mut packet = vec![
            0x46, 0xc2, 0x00, 0x40, 0x71, 0x8c, 0x40, 0x00, 0x40, 0x11, 0x91, 0x61, 0x0a, 0x00, 0x11, 0x01,
            0x0a, 0x00, 0x12, 0x01, 1, 1, 1, 0, 0x12, 0x34, 0x12, 0xb7, 0x00, 0x28, 0x00, 0x00,
        ];
        packet.extend([7; 32]);
        let own = [10, 0, 18, 1].into();
        let received = parse(&packet, own).unwrap();
        assert_eq!((received.start, received.len, received.ip_id), (32, 32, Some(0x718c)));
        assert_eq!(received.source, Some("10.0.17.1:4660".parse().unwrap()));
        assert_eq!(received.notes, Notes { ecn: 2, segment: 0 });
        for cut in 0..packet.len() {
            assert!(parse(&packet[..cut], own).is_none(), "{cut}");
        }
        // Another address, a later fragment, a small identification, another port, a checksum; and a
        // datagram shorter than its own header.
        for (at, value) in [(19, 2), (7, 1), (4, 0), (27, 0xb8), (31, 1), (29, 7)] {
            let before = std::mem::replace(&mut packet[at], value);
            let small = std::mem::replace(&mut packet[5], if at == 4 { 127 } else { 0x8c });
            assert!(parse(&packet, own).is_none(), "{at}");
            (packet[at], packet[5]) = (before, small);
        }
        packet[0] = 0x4F;
        assert!(parse(&packet, own).is_none());
    }
}
