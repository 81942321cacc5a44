//! A link whose datagrams another one receives and hands over.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyverbs_memory::{Bell, Popped, RecordConsumer};
use anyverbs_nic::link::RxBatch;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::super::receive::filled;
use super::super::sys::Peer;
use super::super::{UdpCounters, count};
use super::message::{self, Heard, Message, Refusal};
use super::{RING, is_trusted, names};

/// Messages that one look handles.
const MESSAGES_MAX: usize = 64;

pub(in super::super) struct Member {
    control: OwnedFd,
    /// The owner.
    peer: Peer,
    ring: RecordConsumer,
    welcome: bool,
    lost: bool,
}

/// Why there is no membership.
pub(super) enum NotJoined {
    /// Nobody accepts members at this moment.
    NotYet,
    /// The owner does not want this member, or the other way round.
    Refused(Peer, Refusal),
    /// What the system said to something else.
    System(&'static str, std::io::Error),
}

impl Member {
    /// Connects to the owner, and tells it all that it needs to know, without waiting for its answer: it gets
    /// to it when it makes progress.
    pub(super) fn join(
        address: IpAddr,
        prefix: u8,
        services: impl Iterator<Item = u64>,
        epoll: &OwnedFd,
    ) -> Result<Member, NotJoined> {
        let (control, peer) = names::connect(&names::owner(address)).map_err(|errno| match errno {
            // Not listening yet, or no more; or too many wait.
            Errno::CONNREFUSED | Errno::AGAIN | Errno::CONNRESET => NotJoined::NotYet,
            errno => NotJoined::System("connecting to the link that has the port", errno.into()),
        })?;
        if !is_trusted(peer) {
            return Err(NotJoined::Refused(peer, Refusal::User));
        }
        let system = |action| move |error| NotJoined::System(action, error);
        let ring = RecordConsumer::create(RING).map_err(system("allocating a ring"))?;
        let hello = Message::Hello { prefix, ring: RING as u32 };
        // The connection may be closed already: with a reason, or because the owner is on its way out.
        let refused = |_| match message::receive(&control) {
            Heard::Message(Message::Refused(refusal), None) => NotJoined::Refused(peer, refusal),
            _ => NotJoined::NotYet,
        };
        message::send(&control, hello, ring.fd()).map_err(refused)?;
        for service in services {
            message::send(&control, Message::Claim { service }, None).map_err(refused)?;
        }
        epoll::add(epoll, &control, EventData::new_u64(0), EventFlags::IN)
            .map_err(|errno| NotJoined::System("watching a socket", errno.into()))?;
        Ok(Member { control, peer, ring, welcome: false, lost: false })
    }

    pub(super) fn control(&self) -> &OwnedFd {
        &self.control
    }

    pub(super) fn owner(&self) -> Peer {
        self.peer
    }

    pub(super) fn is_welcome(&self) -> bool {
        self.welcome
    }

    pub(super) fn bell(&self) -> Bell {
        self.ring.bell()
    }

    /// Tells the owner of a service. An owner that does not keep up is left, and told everything anew.
    pub(super) fn tell(&mut self, message: Message) {
        if message::send(&self.control, message, None).is_err() {
            self.lose();
        }
    }

    /// Leaves the owner, after what is in the ring.
    pub(super) fn lose(&mut self) {
        self.lost = true;
    }

    /// Hears what the owner has to say; true if it rang.
    pub(super) fn attend(&mut self) -> Result<bool, Refusal> {
        let mut rung = false;
        for _ in 0..MESSAGES_MAX {
            match message::receive(&self.control) {
                Heard::Nothing => break,
                Heard::Message(Message::Bell, None) => rung = true,
                Heard::Message(Message::Welcome, None) => self.welcome = true,
                Heard::Message(Message::Refused(refusal), None) => return Err(refusal),
                Heard::Closed | Heard::Message(..) | Heard::Nonsense(_) => {
                    self.lost = true;
                    break;
                }
            }
        }
        Ok(rung)
    }

    /// Adds what is in the ring to `batch`, as much as fits.
    pub(in super::super) fn receive(&mut self, batch: &mut RxBatch, counters: &UdpCounters) {
        let mut used = filled(batch);
        let mut received = 0;
        while batch.room() > 0 {
            let room = batch.buffer().get_mut(used..).unwrap_or_default();
            match self.ring.pop(room) {
                Popped::Record { note, len } => {
                    batch.push(super::record::entry(&note, used, len));
                    used += len;
                    received += 1;
                }
                // One that can never fit is lost.
                Popped::Larger { .. } if batch.entries().is_empty() => self.ring.skip(),
                Popped::Larger { .. } | Popped::Empty => break,
            }
        }
        if received > 0 {
            count(&counters.received, received);
        }
        self.ring.release();
    }

    /// Whether nothing will come of this membership any more: the owner is gone, and so is what it left, or
    /// it makes no sense.
    pub(in super::super) fn is_over(&mut self) -> bool {
        self.ring.is_poisoned() || self.lost && self.ring.is_empty()
    }
}
