//! The sockets that datagrams leave from, one for each source port.
//!
//! Routers and network cards spread flows over paths and queues by their ports, and the destination
//! port is always the same: so each queue pair keeps to one of several source ports. Nothing is
//! received here; a socket that is not connected is not told either that a peer's port is closed.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyverbs_nic::link::ROCE_PORT;

use super::buffers::{Buffer, Capped};
use super::place::Place;
use super::{filter, sys};

/// The first of the source ports that RoCEv2 senders take (IBA annex A17 leaves them free; network
/// cards and the kernel use these).
const PORTS_FROM: u16 = 0xC000;

/// Ports tried at random before the kernel chooses one.
const TRIES: usize = 16;

/// Makes the datagrams of a socket what the ICRC takes them for, and has them leave in the right
/// direction.
///
/// With "don't fragment" and no connection, plain sends have the IP identification 0, and segment k of
/// a segmented send has k: the ICRC covers it, so it has to be known.
pub(super) fn prepare(socket: &UdpSocket, place: &Place) -> io::Result<()> {
    let (level, name, value) = if place.address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    };
    socket.set_nonblocking(true)?;
    sys::set_option(socket.as_fd(), level, name, value)?;
    // Where there is no multicast, unicast has to work nevertheless; who joins a group is told then.
    let _ = place.set_multicast_exit(socket);
    Ok(())
}

/// The sockets that a link sends from.
pub(super) struct Exits {
    /// The socket that has the RoCE port, while this link has it.
    main: Option<Arc<UdpSocket>>,
    /// Those with ports of their own. A link keeps them for as long as it lives: the ICRC of what queue pairs
    /// send covers the port.
    own: Vec<(u16, Arc<UdpSocket>)>,
}

impl Exits {
    /// At most one exit: the socket that has the RoCE port.
    pub(super) fn new(main: Option<Arc<UdpSocket>>) -> Exits {
        Exits { main, own: Vec::new() }
    }

    /// From now on, this socket has the RoCE port.
    pub(super) fn set_main(&mut self, main: Option<Arc<UdpSocket>>) {
        self.main = main;
    }

    /// Adds `n` sockets with source ports of their own, and says what of their buffers the system cut.
    pub(super) fn add(&mut self, place: &Place, n: usize) -> io::Result<Option<Capped>> {
        let random = RandomState::new();
        let mut capped = None;
        for i in 0..n {
            let (port, socket) = open(place, |t| random.hash_one((i, t)))?;
            prepare(&socket, place)?;
            capped = Buffer::SEND.size(socket.as_fd());
            // What is sent here by mistake is not to fill memory until the link is closed. Where a sandbox has
            // no filters, it may.
            let _ = sys::attach_filter(socket.as_fd(), &filter::NOTHING);
            self.own.push((port, Arc::new(socket)));
        }
        Ok(capped)
    }

    /// The source port of a flow.
    pub(super) fn port(&self, flow_hash: u32) -> u16 {
        let own = &self.own;
        let spread = u64::from(flow_hash.wrapping_mul(0x9E37_79B1));
        own.get(((spread * own.len() as u64) >> 32) as usize).map_or(ROCE_PORT, |&(port, _)| port)
    }

    /// The socket of a source port.
    pub(super) fn get(&self, port: u16) -> Option<BorrowedFd<'_>> {
        let own = self.own.iter().find(|(own, _)| *own == port).map(|(_, socket)| socket);
        own.or(self.main.as_ref().filter(|_| port == ROCE_PORT)).map(|socket| socket.as_fd())
    }

    /// Whether the kernel cuts one send of these sockets into many datagrams.
    pub(super) fn can_segment(&self) -> bool {
        let some = self.main.as_ref().or(self.own.first().map(|(_, socket)| socket));
        some.is_some_and(|socket| sys::option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT).is_ok())
    }
}

/// A socket on a random source port of `place`.
fn open(place: &Place, random: impl Fn(usize) -> u64) -> io::Result<(u16, UdpSocket)> {
    for t in 0..TRIES {
        let port = PORTS_FROM | random(t) as u16;
        match UdpSocket::bind(place.named(port)) {
            Ok(socket) => return Ok((port, socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    let socket = UdpSocket::bind(place.named(0))?;
    Ok((socket.local_addr()?.port(), socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_spread_over_all_ports_and_each_has_its_socket() {
        let place = Place::find([127, 0, 0, 1].into()).unwrap();
        let first = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut exits = Exits::new(Some(first));
        assert_eq!(exits.port(12345), ROCE_PORT);
        exits.add(&place, 8).unwrap();
        let mut flows = std::collections::BTreeMap::<u16, u32>::new();
        // Queue pair numbers are random; counted ones have to spread, too.
        for hash in 0..8000 {
            let port = exits.port(hash);
            assert_eq!(port, exits.port(hash));
            *flows.entry(port).or_default() += 1;
        }
        assert_eq!(flows.len(), 8, "{flows:?}");
        assert!(flows.values().all(|n| (800..1200).contains(n)), "{flows:?}");
        for &port in flows.keys() {
            assert!(port >= PORTS_FROM, "{port}");
            assert!(exits.get(port).is_some());
        }
        assert!(exits.get(ROCE_PORT).is_some() && exits.get(1).is_none());
    }
}
