//! The link that has the port: it hands members what is theirs.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyverbs_memory::RecordProducer;
use anyverbs_nic::link::RxEntry;
use anyverbs_wire::mad::{self, Route};
use anyverbs_wire::{Packet, Qpn};
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::super::sys::Peer;
use super::super::{UdpCounters, count};
use super::message::{self, Heard, Message, Refusal};
use super::{RING, SERVICES_MAX, is_trusted, names};

/// Connections that have not said who they are.
const PENDING_MAX: usize = 16;

/// Events, accepted connections, and messages of one member, that one look handles: nobody who floods a
/// socket keeps the NIC in here, and what is left makes the next sleep end at once.
const EVENTS_MAX: usize = 32;
const ACCEPTS_MAX: usize = 16;
const MESSAGES_MAX: usize = 64;

/// What epoll reports of the listener; members are reported by their prefix.
const LISTENER: u64 = 256;
/// And of connections that have not said who they are: this plus their descriptor.
const PENDING: u64 = 1 << 16;

/// A member: one descriptor, and one ring.
struct Seat {
    control: OwnedFd,
    ring: RecordProducer,
    services: usize,
    /// There is something in the ring that was not published.
    touched: bool,
}

pub(in super::super) struct Owner {
    /// First, so that nobody new comes while the others are told to go.
    listener: OwnedFd,
    prefix: u8,
    epoll: Arc<OwnedFd>,
    counters: Arc<UdpCounters>,
    pending: Vec<OwnedFd>,
    /// By prefix.
    seats: Box<[Option<Seat>]>,
    members: usize,
    /// Whose each service is. Of several, which a service that changes hands may have for a moment, the
    /// last one that claimed it has it.
    services: BTreeMap<u64, Vec<u8>>,
    touched: Vec<u8>,
    /// Members were heard since the last flush.
    attended: bool,
    /// There was no descriptor for a connection, and nobody listens until the next look: who waits to be
    /// accepted would wake this link again and again.
    deaf: bool,
}

impl Owner {
    /// `listener` has the owner's name, and listens.
    pub(super) fn new(
        listener: OwnedFd,
        prefix: u8,
        epoll: Arc<OwnedFd>,
        counters: Arc<UdpCounters>,
    ) -> Result<Owner, Errno> {
        let owner = Owner {
            listener,
            prefix,
            epoll,
            counters,
            pending: Vec::with_capacity(PENDING_MAX),
            seats: (0..=u8::MAX).map(|_| None).collect(),
            members: 0,
            services: BTreeMap::new(),
            touched: Vec::with_capacity(usize::from(u8::MAX)),
            attended: false,
            deaf: false,
        };
        owner.listen()?;
        Ok(owner)
    }

    fn listen(&self) -> Result<(), Errno> {
        epoll::add(&self.epoll, &self.listener, EventData::new_u64(LISTENER), EventFlags::IN)
    }

    /// Whether it has to look again although nothing happens.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    // ---- Datagrams --------------------------------------------------------------------------

    /// Whether a datagram is for this link's own NIC. If it is a member's, it has it now.
    #[inline]
    pub(in super::super) fn keeps(&mut self, entry: &RxEntry, datagram: &[u8]) -> bool {
        // The prefix is the first byte of the destination queue pair number (IBA 9.2). Without members,
        // the NIC counts what is nobody's.
        self.members == 0 || datagram.get(5) == Some(&self.prefix) || self.hand_over(entry, datagram)
    }

    /// As [`keeps`](Owner::keeps), for what does not start with this link's own prefix.
    #[inline(never)]
    fn hand_over(&mut self, entry: &RxEntry, datagram: &[u8]) -> bool {
        let Some(&[prefix, high, low]) = datagram.get(5..8).and_then(|bytes| bytes.first_chunk()) else {
            return true;
        };
        match prefix {
            0 if Qpn::new(u32::from_be_bytes([0, 0, high, low])) == Qpn::GSI => {
                self.hand_over_mad(entry, datagram)
            }
            // No queue pair of any link: the NIC counts it.
            0 | 0xFF => true,
            prefix => {
                let mut found = self.forward(prefix, entry, datagram);
                if !found && !self.attended {
                    // A new member's, perhaps, that waits to be heard.
                    self.attend();
                    found = self.forward(prefix, entry, datagram);
                }
                if !found {
                    count(&self.counters.unclaimed, 1);
                }
                false
            }
        }
    }

    fn hand_over_mad(&mut self, entry: &RxEntry, datagram: &[u8]) -> bool {
        let packet = Packet::new_checked(datagram).ok();
        let mad = packet.as_ref().and_then(|packet| mad::Packet::new_checked(packet.payload()).ok());
        match mad.map(|mad| mad.route()) {
            Some(Route::Service(id)) => {
                // Whoever asks may have been told of a service that this link has not heard of yet.
                self.attend();
                let whose = self.services.get(&id.0).and_then(|links| links.last()).copied();
                // What nobody wants, and what is for those who are gone, this link's NIC refuses.
                !whose.is_some_and(|whose| self.forward(whose, entry, datagram))
            }
            Some(Route::Name(name)) => !self.forward((name >> 24) as u8, entry, datagram),
            Some(Route::Sender) => {
                for prefix in 1..0xFF {
                    self.forward(prefix, entry, datagram);
                }
                true
            }
            None => true,
        }
    }

    /// Puts a datagram into the ring of a member, or counts that it was full; false if there is no such
    /// member.
    fn forward(&mut self, prefix: u8, entry: &RxEntry, datagram: &[u8]) -> bool {
        let Some(seat) = &mut self.seats[usize::from(prefix)] else { return false };
        if seat.ring.push(&super::record::note(entry), datagram) {
            count(&self.counters.forwarded, 1);
        } else {
            count(&self.counters.overrun, 1);
        }
        if !seat.touched {
            seat.touched = true;
            self.touched.push(prefix);
        }
        true
    }

    /// Shows members what was put into their rings, and wakes those that sleep.
    #[inline]
    pub(in super::super) fn flush(&mut self) {
        self.attended = false;
        while let Some(prefix) = self.touched.pop() {
            let Some(seat) = &mut self.seats[usize::from(prefix)] else { continue };
            seat.touched = false;
            if seat.ring.publish() {
                // If its socket is full of messages, or closed, it wakes by that.
                let _ = message::send(&seat.control, Message::Bell, None);
            }
            if seat.ring.is_poisoned() {
                self.dismiss(prefix, Refusal::Malformed);
            }
        }
    }

    // ---- Members ----------------------------------------------------------------------------

    /// Hears what members, and those who want to become members, have to say.
    pub(super) fn attend(&mut self) {
        self.attended = true;
        if self.deaf {
            self.deaf = self.listen().is_err();
        }
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok(found) = epoll::wait(&self.epoll, &mut events[..], Some(&now)) else { return };
        for event in &events[..found] {
            let data = event.data;
            match data.u64() {
                LISTENER => self.accept(),
                token if token >= PENDING => self.introduce((token - PENDING) as i32),
                prefix => self.hear(prefix as u8),
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            match names::accept(&self.listener) {
                Ok((connection, peer)) => self.consider(connection, peer),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.deaf = epoll::delete(&self.epoll, &self.listener).is_ok();
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn consider(&mut self, connection: OwnedFd, peer: Peer) {
        if !is_trusted(peer) {
            return self.refuse(&connection, Refusal::User);
        }
        if self.pending.len() == PENDING_MAX {
            // Those who mean it introduce themselves at once.
            let silent = self.pending.remove(0);
            self.refuse(&silent, Refusal::Crowded);
        }
        let descriptor = connection.as_raw_fd();
        let token = EventData::new_u64(PENDING + descriptor as u64);
        if epoll::add(&self.epoll, &connection, token, EventFlags::IN).is_ok() {
            self.pending.push(connection);
            // It has mostly said who it is before it was accepted.
            self.introduce(descriptor);
        }
    }

    /// Sends a refusal, after which the connection is closed.
    fn refuse(&self, connection: &OwnedFd, refusal: Refusal) {
        count(&self.counters.refused, 1);
        // Descriptors may live on in another process: what is closed here shall be forgotten here.
        let _ = epoll::delete(&self.epoll, connection);
        let _ = message::send(connection, Message::Refused(refusal), None);
    }

    /// Hears who a connection is from.
    fn introduce(&mut self, descriptor: i32) {
        let Some(at) = self.pending.iter().position(|pending| pending.as_raw_fd() == descriptor) else {
            return;
        };
        let heard = message::receive(&self.pending[at]);
        if matches!(heard, Heard::Nothing) {
            return;
        }
        let connection = self.pending.remove(at);
        let seated = match heard {
            Heard::Message(Message::Hello { prefix, ring }, Some(memory)) => {
                self.check(prefix, ring, memory).map(|ring| (prefix, ring))
            }
            Heard::Nonsense(refusal) => Err(refusal),
            Heard::Closed | Heard::Nothing => return,
            Heard::Message(..) => Err(Refusal::Malformed),
        };
        match seated {
            Ok((prefix, ring)) => self.seat(prefix, connection, ring),
            Err(refusal) => self.refuse(&connection, refusal),
        }
    }

    fn check(&mut self, prefix: u8, ring: u32, memory: OwnedFd) -> Result<RecordProducer, Refusal> {
        if matches!(prefix, 0 | 0xFF) || ring != RING as u32 {
            return Err(Refusal::Malformed);
        }
        // The one before it may be gone, and this link not have heard of it yet.
        self.hear(prefix);
        if prefix == self.prefix || self.seats[usize::from(prefix)].is_some() {
            return Err(Refusal::Prefix);
        }
        RecordProducer::open(memory, ring as usize).map_err(|_| Refusal::Malformed)
    }

    fn seat(&mut self, prefix: u8, control: OwnedFd, ring: RecordProducer) {
        let token = EventData::new_u64(u64::from(prefix));
        if epoll::modify(&self.epoll, &control, token, EventFlags::IN).is_err()
            || message::send(&control, Message::Welcome, None).is_err()
        {
            return;
        }
        self.seats[usize::from(prefix)] = Some(Seat { control, ring, services: 0, touched: false });
        self.members += 1;
        self.counters.members.store(self.members as u64, Ordering::Relaxed);
    }

    /// Hears what a member has to say.
    fn hear(&mut self, prefix: u8) {
        for _ in 0..MESSAGES_MAX {
            let Some(seat) = &mut self.seats[usize::from(prefix)] else { return };
            match message::receive(&seat.control) {
                Heard::Nothing => return,
                Heard::Closed => return self.unseat(prefix),
                Heard::Message(Message::Claim { service }, None) => {
                    seat.services += 1;
                    if seat.services > SERVICES_MAX {
                        return self.dismiss(prefix, Refusal::Services);
                    }
                    self.claim(service, prefix);
                }
                Heard::Message(Message::Release { service }, None) => {
                    seat.services = seat.services.saturating_sub(1);
                    self.release(service, prefix);
                }
                Heard::Message(..) => return self.dismiss(prefix, Refusal::Malformed),
                Heard::Nonsense(refusal) => return self.dismiss(prefix, refusal),
            }
        }
    }

    fn dismiss(&mut self, prefix: u8, refusal: Refusal) {
        if let Some(seat) = &self.seats[usize::from(prefix)] {
            self.refuse(&seat.control, refusal);
        }
        self.unseat(prefix);
    }

    fn unseat(&mut self, prefix: u8) {
        let Some(seat) = self.seats[usize::from(prefix)].take() else { return };
        let _ = epoll::delete(&self.epoll, &seat.control);
        self.members -= 1;
        self.counters.members.store(self.members as u64, Ordering::Relaxed);
        self.services.retain(|_, links| {
            links.retain(|link| *link != prefix);
            !links.is_empty()
        });
    }

    // ---- Services ---------------------------------------------------------------------------

    /// Requests for a service go to the link with this prefix from now on.
    pub(super) fn claim(&mut self, service: u64, prefix: u8) {
        let links = self.services.entry(service).or_default();
        links.retain(|link| *link != prefix);
        links.push(prefix);
    }

    pub(super) fn release(&mut self, service: u64, prefix: u8) {
        if let Some(links) = self.services.get_mut(&service) {
            links.retain(|link| *link != prefix);
            if links.is_empty() {
                self.services.remove(&service);
            }
        }
    }
}

/// The epoll instance of a link, which outlives its roles.
pub(super) fn events() -> Result<Arc<OwnedFd>, Errno> {
    Ok(Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?))
}
