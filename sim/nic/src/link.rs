//! What a NIC needs of the wire below it: batches of datagrams, a clock, and a way to sleep.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use anyverbs_engine::Time;

/// The UDP port of RoCEv2 (IANA: roce).
pub const ROCE_PORT: u16 = 4791;

/// A link carries RoCEv2 datagrams (UDP payloads, from the BTH to the ICRC) between addresses.
///
/// A link belongs to one NIC, and is called only by the thread that holds that NIC's progress
/// token, so it needs no locks of its own. It may lose, duplicate and reorder datagrams unless
/// [`LinkInfo::reliable`] says otherwise; it never delivers one that was not sent to its address.
pub trait Link: Send {
    /// What this link is and where it is.
    fn info(&self) -> &LinkInfo;

    /// The clock and the bed of this link; shared, since threads sleep without the token.
    fn waiter(&self) -> Arc<dyn Waiter>;

    /// The UDP source port that a flow with this hash leaves from.
    ///
    /// The ICRC covers the source port, so the NIC has to know it before it builds a packet.
    fn source_port(&self, _flow_hash: u32) -> u16 {
        ROCE_PORT
    }

    /// The largest datagram that reaches `peer` whole, in bytes, as far as is known: at most
    /// [`LinkInfo::max_datagram`].
    fn path_max_datagram(&self, _peer: IpAddr) -> usize {
        self.info().max_datagram
    }

    /// From now on, connection requests for the service `id` are for this NIC. Where several NICs share
    /// an address, each service belongs to one of them.
    ///
    /// # Errors
    /// Another NIC of this address has the service; the error says which.
    fn claim_service(&mut self, _id: u64) -> io::Result<()> {
        Ok(())
    }

    /// Gives a service up, if this NIC has it.
    fn release_service(&mut self, _id: u64) {}

    /// Receives what is sent to a multicast group, too.
    ///
    /// # Errors
    /// The link has no multicast, or the system does not permit it for this group.
    fn join(&mut self, _group: IpAddr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Receives no more what is sent to a multicast group.
    fn leave(&mut self, _group: IpAddr) {}

    /// Shows IP identifications ([`RxEntry::ip_id`]) from now on, if it can: a peer uses them, and without
    /// seeing them its datagrams are checked at 16 bits' strength. Called again as long as it does not.
    fn reveal_ids(&mut self) {}

    /// Datagrams lost so far since they were larger than the path to their destination carries.
    fn too_large(&self) -> u64 {
        0
    }

    /// Sends datagrams from the front of `batch`, and consumes those that it took.
    ///
    /// What the link cannot take now stays in the batch, in order, for a later call. Each datagram
    /// carries an ICRC that is right for an IPv4 identification of 0: a link whose packets leave
    /// with another one corrects the ICRC.
    ///
    /// # Errors
    /// Only when the link itself is broken. A datagram that cannot reach its destination is lost,
    /// as on any network.
    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError>;

    /// Adds the datagrams that have arrived to `batch`, as many as fit, and never waits.
    ///
    /// # Errors
    /// Only when the link itself is broken.
    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError>;

    /// When this link wants [`transmit`](Link::transmit) or [`receive`](Link::receive) to be called
    /// although nothing arrived: when a datagram that it holds back is due.
    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

impl Link for Box<dyn Link> {
    fn info(&self) -> &LinkInfo {
        (**self).info()
    }
    fn waiter(&self) -> Arc<dyn Waiter> {
        (**self).waiter()
    }
    fn source_port(&self, flow_hash: u32) -> u16 {
        (**self).source_port(flow_hash)
    }
    fn path_max_datagram(&self, peer: IpAddr) -> usize {
        (**self).path_max_datagram(peer)
    }
    fn claim_service(&mut self, id: u64) -> io::Result<()> {
        (**self).claim_service(id)
    }
    fn release_service(&mut self, id: u64) {
        (**self).release_service(id);
    }
    fn join(&mut self, group: IpAddr) -> io::Result<()> {
        (**self).join(group)
    }
    fn leave(&mut self, group: IpAddr) {
        (**self).leave(group);
    }
    fn reveal_ids(&mut self) {
        (**self).reveal_ids();
    }
    fn too_large(&self) -> u64 {
        (**self).too_large()
    }
    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        (**self).transmit(batch, now)
    }
    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        (**self).receive(batch, now)
    }
    fn next_deadline(&self) -> Option<Time> {
        (**self).next_deadline()
    }
}

/// The clock of a link, and the place where threads that wait for it sleep.
pub trait Waiter: Send + Sync {
    /// The time now, on the clock that every [`Time`] of this link is read from.
    fn now(&self) -> Time;

    /// Sleeps until datagrams may have arrived, until somebody calls [`wake`](Waiter::wake), or
    /// until `deadline`. May return early. `None` waits without a limit.
    fn wait(&self, deadline: Option<Time>);

    /// Ends the sleep of every thread in [`wait`](Waiter::wait), and makes the next `wait` return
    /// at once if nobody sleeps now.
    fn wake(&self);

    /// How often [`wake`](Waiter::wake) was called. Whoever is about to sleep asks before the last look at whether there
    /// is something to do, and sleeps by [`wait_since`](Waiter::wait_since): then no call is missed, however many
    /// threads are about to.
    fn wakes(&self) -> u64 {
        0
    }

    /// As [`wait`](Waiter::wait); returns at once if `wake` was called since [`wakes`](Waiter::wakes) said this.
    fn wait_since(&self, _wakes: u64, deadline: Option<Time>) {
        self.wait(deadline);
    }

    /// Called by a program that polled and found nothing, before it polls again.
    ///
    /// A real link tells the processor, or yields it where cores are few; a virtual link lets
    /// virtual time go on, without which a polling program would poll for ever.
    fn relax(&self);

    /// Whether the NIC should have a progress thread for the time when nobody polls. False where a
    /// scheduler drives progress.
    fn wants_progress_thread(&self) -> bool {
        true
    }
}

/// The numbers that a NIC may give to its queue pairs and connections, where several NICs share an address:
/// those whose first bits are these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumberPrefix {
    /// How many of the first bits are fixed, 1..=16.
    pub bits: u32,
    /// Those bits.
    pub value: u32,
}

impl NumberPrefix {
    /// `number`, of `width` bits, with its first bits replaced by these.
    pub fn apply(&self, number: u32, width: u32) -> u32 {
        let low = width - self.bits;
        self.value << low | number & ((1 << low) - 1)
    }

    /// Whether `number`, of `width` bits, starts with these.
    pub fn is_of(&self, number: u32, width: u32) -> bool {
        number >> (width - self.bits) == self.value
    }
}

/// What a link is, for people, and what the NIC must know of it.
#[derive(Clone, Debug)]
pub struct LinkInfo {
    /// Its kind, as options name it: `udp`, `virtual`.
    pub name: &'static str,
    /// How it does its work, for people: `io_uring, GSO, GRO`.
    pub detail: String,
    /// Its own address: the GID of the NIC's port.
    pub address: IpAddr,
    /// The largest datagram (UDP payload) that it carries, in bytes.
    pub max_datagram: usize,
    /// Nothing is lost, duplicated or reordered.
    pub reliable: bool,
    /// Which numbers the NIC may give out; `None`: all.
    pub prefix: Option<NumberPrefix>,
    /// What makes it worse than it could be here, and what mends that, a sentence each.
    pub warnings: Vec<String>,
}

/// A link that is broken, and how.
#[derive(Debug)]
pub struct LinkError {
    /// What the link was doing: "receiving from 127.0.0.1:4791".
    pub action: String,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.source)
    }
}

impl std::error::Error for LinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// One datagram in a [`TxBatch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxEntry {
    /// Where it goes; the port is always [`ROCE_PORT`].
    pub destination: IpAddr,
    /// The UDP source port, one that [`Link::source_port`] gave.
    pub source_port: u16,
    /// The two ECN bits of the IP header.
    pub ecn: u8,
    /// Where its bytes start in [`TxBatch::bytes`].
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl TxEntry {
    /// Where its bytes are in [`TxBatch::bytes`].
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// Datagrams on their way out, one behind the other in one buffer, so that neighbours of one size
/// and destination can leave as one segmented send.
#[derive(Debug)]
pub struct TxBatch {
    bytes: Box<[u8]>,
    filled: usize,
    entries: Vec<TxEntry>,
    /// Entries before this one were consumed.
    first: usize,
}

impl TxBatch {
    /// An empty batch that holds up to `bytes` bytes in up to `datagrams` datagrams.
    pub fn with_capacity(bytes: usize, datagrams: usize) -> Self {
        TxBatch {
            bytes: vec![0; bytes].into_boxed_slice(),
            filled: 0,
            entries: Vec::with_capacity(datagrams),
            first: 0,
        }
    }

    /// Whether a datagram of `len` bytes fits in now.
    pub fn has_room(&self, len: usize) -> bool {
        self.entries.len() < self.entries.capacity() && self.bytes.len() - self.filled >= len
    }

    /// Adds a datagram of `len` bytes and gives its bytes, which hold whatever they held before.
    ///
    /// Returns `None` if it does not fit.
    pub fn push(&mut self, destination: IpAddr, source_port: u16, ecn: u8, len: usize) -> Option<&mut [u8]> {
        if !self.has_room(len) {
            return None;
        }
        let start = self.filled;
        self.filled += len;
        self.entries.push(TxEntry { destination, source_port, ecn, start, len });
        Some(&mut self.bytes[start..start + len])
    }

    /// Takes back the datagram that was pushed last.
    pub fn pop(&mut self) {
        if self.entries.len() > self.first
            && let Some(entry) = self.entries.pop()
        {
            self.filled = entry.start;
        }
    }

    /// The datagrams that wait, in order.
    pub fn entries(&self) -> &[TxEntry] {
        &self.entries[self.first..]
    }

    /// The buffer that entries point into.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// The buffer that entries point into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.filled]
    }

    /// Takes the first `n` datagrams off the batch; an emptied batch starts over at its beginning.
    pub fn consume(&mut self, n: usize) {
        self.first = self.first.saturating_add(n).min(self.entries.len());
        if self.first == self.entries.len() {
            self.entries.clear();
            self.first = 0;
            self.filled = 0;
        }
    }

    /// Whether no datagram waits.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// How many datagrams wait.
    pub fn len(&self) -> usize {
        self.entries().len()
    }
}

/// One datagram in an [`RxBatch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxEntry {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it was sent to: the link's address, or a group that it has joined.
    pub destination: IpAddr,
    /// The UDP source port.
    pub source_port: u16,
    /// The IP identification, if the link saw it (most sockets do not show it).
    pub ip_id: Option<u16>,
    /// The two ECN bits of the IP header.
    pub ecn: u8,
    /// Where its bytes start in [`RxBatch::bytes`].
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl RxEntry {
    /// Where its bytes are in [`RxBatch::bytes`].
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// Datagrams that arrived, in one buffer that the NIC owns and the link fills.
#[derive(Debug)]
pub struct RxBatch {
    bytes: Box<[u8]>,
    entries: Vec<RxEntry>,
}

impl RxBatch {
    /// An empty batch with a buffer of `bytes` bytes for up to `datagrams` datagrams.
    pub fn with_capacity(bytes: usize, datagrams: usize) -> Self {
        RxBatch { bytes: vec![0; bytes].into_boxed_slice(), entries: Vec::with_capacity(datagrams) }
    }

    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// The whole buffer; the link decides which part of it the next datagrams go to.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// How many more datagrams can be noted.
    pub fn room(&self) -> usize {
        self.entries.capacity() - self.entries.len()
    }

    /// Notes a datagram whose bytes are in the buffer. Returns false, and notes nothing, if there is
    /// no room or the range is not inside the buffer.
    pub fn push(&mut self, entry: RxEntry) -> bool {
        let fits =
            self.room() > 0 && entry.start.checked_add(entry.len).is_some_and(|end| end <= self.bytes.len());
        if fits {
            self.entries.push(entry);
        }
        fits
    }

    /// The datagrams, in the order of their arrival.
    pub fn entries(&self) -> &[RxEntry] {
        &self.entries
    }

    /// The buffer that entries point into.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a scheduler that drives NICs itself calls, instead of a progress thread.
pub trait Progress: Send + Sync {
    /// Does everything that can be done now, and says when there will be more to do although no
    /// datagram arrives.
    fn progress(&self) -> Option<Time>;
}
