//! The limit: the same UDP socket calls as the software NIC's link, without a protocol.
//!
//! The sockets are made as the link makes its own (unconnected, non-blocking, large buffers, path MTU
//! discovery, UDP_SEGMENT and UDP_GRO) and polled by the same kind of loop. Datagrams have the length of the path MTU,
//! so the packets on the wire are those of the verbs rows less their headers.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use crate::sys::set_option;

/// Segments in one send: kernels before 6.9 take no more.
const SEGMENTS_MAX: usize = 64;
/// Bytes in one send: an IPv4 packet of 65,535 bytes less its IP and UDP headers.
const SEND_MAX: usize = 65_507;
/// Buffers as large as those of the link.
const SOCKET_BUFFER: i32 = 8 << 20;

/// A UDP socket and the one peer it talks to.
pub(crate) struct RawSocket {
    socket: UdpSocket,
    peer: SocketAddr,
    segment: usize,
    /// The most bytes that one call takes.
    batch: usize,
    inbound: Box<[u8]>,
    outbound: Box<[u8]>,
}

impl RawSocket {
    /// A socket at `address` on a port that the system chooses, for datagrams of `segment` bytes.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub(crate) fn open(address: IpAddr, segment: usize) -> io::Result<RawSocket> {
        let segment = segment.clamp(1, SEND_MAX);
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_nonblocking(true)?;
        let fd = socket.as_fd();
        for (name, force) in
            [(libc::SO_RCVBUF, libc::SO_RCVBUFFORCE), (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE)]
        {
            if set_option(fd, libc::SOL_SOCKET, force, SOCKET_BUFFER).is_err() {
                // As much as the system's limit allows; the default will do as well.
                let _ = set_option(fd, libc::SOL_SOCKET, name, SOCKET_BUFFER);
            }
        }
        let (level, name, value) = match address {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
        };
        set_option(fd, level, name, value)?;
        // Without receive offload, each datagram takes a call; without segmentation, each send does.
        let _ = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        let segmented = set_option(fd, libc::SOL_UDP, libc::UDP_SEGMENT, segment as i32).is_ok();
        let batch = if segmented { segment * (SEND_MAX / segment).clamp(1, SEGMENTS_MAX) } else { segment };
        let peer = socket.local_addr()?;
        let buffer = || vec![0x5A; SEND_MAX].into_boxed_slice();
        Ok(RawSocket { socket, peer, segment, batch, inbound: buffer(), outbound: buffer() })
    }

    /// The port that the peer has to know.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Whom to talk to, and whom to hear.
    pub(crate) fn set_peer(&mut self, peer: SocketAddr) {
        self.peer = peer;
    }

    /// The length of a datagram, in bytes.
    pub(crate) fn segment(&self) -> usize {
        self.segment
    }

    /// Sends up to `len` bytes, at most one batch, in one call; returns how many left. 0: the buffer is full.
    ///
    /// # Errors
    /// When the socket is broken. A datagram that the network refused counts as sent and lost.
    pub(crate) fn send_some(&mut self, len: usize) -> io::Result<usize> {
        let len = len.min(self.batch);
        match self.socket.send_to(&self.outbound[..len], self.peer) {
            Ok(_) => Ok(len),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
                    && self.batch > self.segment =>
            {
                // This device cannot segment.
                set_option(self.socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0)?;
                self.batch = self.segment;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(len),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Sends one datagram of up to `len` bytes; returns how many left. 0: the buffer is full.
    ///
    /// # Errors
    /// As [`send_some`](Self::send_some).
    pub(crate) fn send_one(&mut self, len: usize) -> io::Result<usize> {
        self.send_some(len.min(self.segment))
    }

    /// Sends a number, in a datagram of its own.
    ///
    /// # Errors
    /// As [`send_some`](Self::send_some). A datagram that does not fit into the buffer is lost.
    pub(crate) fn send_number(&mut self, number: u64) -> io::Result<()> {
        match self.socket.send_to(&number.to_le_bytes(), self.peer) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// The last number that the other side sent, if one has come.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub(crate) fn receive_number(&mut self) -> io::Result<Option<u64>> {
        let len = self.receive()?;
        Ok(self.inbound[..len].last_chunk().map(|bytes| u64::from_le_bytes(*bytes)))
    }

    /// What one call brings: the bytes of one datagram, or of several that the kernel put together. 0: nothing.
    ///
    /// # Errors
    /// When the socket is broken.
    pub(crate) fn receive(&mut self) -> io::Result<usize> {
        match self.socket.recv_from(&mut self.inbound) {
            // Anybody can send to a UDP port.
            Ok((len, from)) if from == self.peer => Ok(len),
            Ok(_) => Ok(0),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(segment: usize) -> (RawSocket, RawSocket) {
        let open = || RawSocket::open(IpAddr::from([127, 0, 0, 1]), segment).expect("a socket");
        let (mut a, mut b) = (open(), open());
        let at = |s: &RawSocket| SocketAddr::from(([127, 0, 0, 1], s.port().expect("bound")));
        a.set_peer(at(&b));
        b.set_peer(at(&a));
        (a, b)
    }

    fn drain(socket: &mut RawSocket) -> usize {
        let mut bytes = 0;
        loop {
            match socket.receive().expect("a working socket") {
                0 => return bytes,
                n => bytes += n,
            }
        }
    }

    #[test]
    fn batches_arrive_whole() {
        let (mut a, mut b) = pair(1000);
        let mut left = 100_000;
        while left > 0 {
            left -= a.send_some(left).expect("sent");
        }
        assert_eq!(drain(&mut b), 100_000);
        assert_eq!(a.send_one(5000).expect("sent"), 1000);
        assert_eq!(drain(&mut b), 1000);
        assert!(a.batch.is_multiple_of(1000) && a.batch <= 64_000);
    }

    #[test]
    fn strangers_are_not_heard() {
        let (mut a, _b) = pair(100);
        let (mut c, _d) = pair(100);
        c.set_peer(SocketAddr::from(([127, 0, 0, 1], a.port().expect("bound"))));
        c.send_some(100).expect("sent");
        assert_eq!(drain(&mut a), 0);
    }
}
