//! The seam between the link and the ways to call the kernel.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::exits::Exits;
use super::runs::Run;
use super::sides::Sides;
use super::sys::{Calls, Received, Ring};

/// What a link asks of the kernel. No call waits.
pub(super) trait Kernel {
    /// Sends `runs` of `bytes` in order: how many the kernel took, and the error of the next one.
    /// Those after it were not tried. If not all were taken, at least one was, or there is an error.
    fn send(&mut self, runs: &[Run], bytes: &[u8]) -> (usize, Option<Errno>);

    /// Receives what one packet brings, which may be many datagrams, to the front of `buffer`.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno>;
}

/// Sends that go to the kernel together from this number on go through the ring, unless it is to be
/// used for everything.
///
/// Measured on loopback by `cargo bench -p anyverbs-link` on two virtual Zen 3 processors, Linux 6.18,
/// against plain calls: 16 sends at once take 5 to 8 % less of the processor by the ring, but one
/// takes 13 to 18 % more, and a receive that finds nothing 2.4 times as much (1.22 and 0.50 us). A
/// ping-pong of 64 bytes is 20 % slower by the ring alone (5.4 and 4.5 us one way), a stream of
/// full segmented sends 10 % (6.9 and 7.6 GB/s); divided like this, both are what plain calls give.
const RING_FROM: usize = 2;

/// The sockets of a link, and the ways to use them.
pub(super) struct Backend {
    /// The socket of the RoCE port; `None` while another link has it, and receives for this one.
    main: Option<Arc<UdpSocket>>,
    pub(super) exits: Exits,
    pub(super) sides: Sides,
    calls: Calls,
    ring: Option<Ring>,
    /// Everything goes through the ring. Otherwise only what it is good for does.
    ring_only: bool,
}

impl Backend {
    pub(super) fn new(
        main: Option<Arc<UdpSocket>>,
        exits: Exits,
        sides: Sides,
        calls: Calls,
        ring: Option<Ring>,
        ring_only: bool,
    ) -> Backend {
        Backend { main, exits, sides, calls, ring, ring_only }
    }

    /// From now on, what arrives at this socket, which has the RoCE port, is received.
    pub(super) fn receive_from(&mut self, main: Option<Arc<UdpSocket>>) {
        self.exits.set_main(main.clone());
        self.main = main;
    }

    /// Has datagrams whose IP identification must be seen come with it, from now on, if that is permitted.
    /// False if there is no socket of the RoCE port that they come to.
    pub(super) fn open_raw(&mut self) -> bool {
        let Some(main) = &self.main else { return false };
        // What is not permitted now, though it was when the link was made, stays as it is.
        let _ = self.sides.open_raw(main);
        true
    }

    /// Receives by the socket of the RoCE port.
    fn receive_main(&mut self, buffer: &mut [u8]) -> Result<Received, Errno> {
        let Some(main) = &self.main else { return Err(Errno::AGAIN) };
        let fd = main.as_fd();
        if self.ring_only
            && let Some(ring) = &mut self.ring
        {
            let outcome = ring.receive(fd, buffer);
            if !ring.is_usable() {
                self.ring = None;
            }
            return outcome;
        }
        self.calls.receive(fd, buffer)
    }
}

impl Kernel for Backend {
    fn send(&mut self, runs: &[Run], bytes: &[u8]) -> (usize, Option<Errno>) {
        if let Some(ring) = &mut self.ring
            && (self.ring_only || runs.len() >= RING_FROM)
        {
            let outcome = ring.send(|port| self.exits.get(port), runs, bytes);
            if ring.is_usable() {
                return outcome;
            }
            self.ring = None;
            if outcome != (0, None) {
                return outcome;
            }
        }
        for (sent, run) in runs.iter().enumerate() {
            // A port that no socket has would make every ICRC wrong.
            let Some(fd) = self.exits.get(run.source_port) else {
                return (sent, Some(Errno::ADDRNOTAVAIL));
            };
            if let Err(errno) = self.calls.send(fd, run, bytes) {
                return (sent, Some(errno));
            }
        }
        (runs.len(), None)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno> {
        // By turns: what comes by one way does not keep the others waiting.
        if self.sides.is_turn()
            && let Some(received) = self.sides.receive(buffer)
        {
            return Ok(received);
        }
        self.receive_main(buffer)
    }
}
