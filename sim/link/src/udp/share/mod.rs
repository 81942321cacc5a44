//! Several links, of one or several processes, on one address and UDP port.
//!
//! Each link claims a *number prefix* by a name that only one can have (`names`): its queue pairs and
//! connections get numbers that start with it. One link, the *owner*, has the port. The others are
//! *members*: they send by sockets of their own, and the owner puts what arrives for them into a ring in
//! memory that the two share (`record`), by the first byte of the destination queue pair number.
//! Management datagrams go by the service that they ask for, or by the name of the connection.
//!
//! ```text
//!            claim prefix
//!                 v          port and name free
//!   .-------> Seeking -------------------------> Owner
//!   |             |                                ^
//!   |             | owner answers                  | (never back: an owner is one until it closes)
//!   |             v
//!   '--------- Member
//!   owner gone
//! ```
//!
//! When the owner goes, in whatever way, its sockets close. Each member hears that at once and seeks
//! again: whoever gets the owner's name and then the port is the owner, the others join it and say
//! again who they are. What was sent meanwhile is lost, and sent again by those who miss it.
//!
//! A member that does not read fills its ring, and loses what does not fit. An owner that stops making
//! progress, which its NIC's thread does for a program that does not, stops its members, as a port that
//! is down would. Only processes of one user share: an owner sees what its members receive.

mod member;
mod message;
mod names;
mod owner;
mod record;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyverbs_memory::Bell;
use anyverbs_nic::Time;
use anyverbs_nic::link::NumberPrefix;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

use super::bind::{self, BindError};
use super::sys::{self, Peer};
use super::{UdpCounters, count};
use member::{Member, NotJoined};
use message::{Message, Refusal};
pub(super) use owner::Owner;

/// Links that share an address at most: all prefixes but 0, which the management queue pairs have, and
/// 255, which multicast has (IBA 9.2).
pub(super) const LINKS_MAX: u8 = 254;

/// Services of one link at most: their claims fit into a socket's buffer at once.
const SERVICES_MAX: usize = 128;

/// Bytes of a member's ring: two windows of 256 packets of 4 KiB.
const RING: usize = 2 << 20;

/// How often a link that does not sleep looks whether somebody has something to say.
const LOOK: Duration = Duration::from_millis(1);

/// How long a link that opens waits for the port that nobody shares, since whoever shared it may just be
/// closing; for an owner that does not accept members yet; and for its answer, without which it goes on.
const PORT_PATIENCE: Duration = Duration::from_millis(20);
const JOIN_PATIENCE: Duration = Duration::from_secs(1);
const WELCOME_PATIENCE: Duration = Duration::from_millis(250);

/// How often a link that lost its owner tries, at first and after a while, and when it gives up.
const RETRY: Duration = Duration::from_millis(1);
const RETRY_LATER: Duration = Duration::from_millis(10);
const SEEK_PATIENCE: Duration = Duration::from_secs(10);

/// Whether this process has to do with another: they are one user's, or it is root's.
fn is_trusted(peer: Peer) -> bool {
    peer.uid == 0 || peer.uid == sys::own_uid()
}

/// The first prefix that is free, from the one at `start` on, and what has it now.
fn claim_prefix(address: IpAddr, start: u8) -> Result<Option<(u8, OwnedFd)>, Errno> {
    for n in 0..LINKS_MAX {
        let prefix = 1 + ((u16::from(start) + u16::from(n)) % u16::from(LINKS_MAX)) as u8;
        if let Some(claim) = names::claim(&names::prefix(address, prefix))? {
            return Ok(Some((prefix, claim)));
        }
    }
    Ok(None)
}

/// What a link is at the moment.
pub(super) enum Role {
    Owner(Owner),
    Member(Member),
    /// Neither: since when.
    Seeking(Instant),
    /// Neither, and it will not be again.
    Over,
}

/// A change of roles, which the rest of the link has to know of.
pub(super) enum Change {
    /// It is the owner, by this socket.
    Owner(UdpSocket),
    /// It is a member, and sleeps by this.
    Member(Bell),
    /// It is nothing.
    Seeking,
}

/// What one attempt to become something came to.
enum Attempt {
    Done(Change),
    /// Somebody has the port, and nobody the owner's name.
    PortTaken,
    /// Somebody has the owner's name, and accepts no members yet.
    NotYet,
}

/// A link's part in the sharing of an address.
pub(super) struct Sharing {
    address: IpAddr,
    role: Role,
    services: Vec<(u64, OwnedFd)>,
    epoll: Arc<OwnedFd>,
    counters: Arc<UdpCounters>,
    calls: u32,
    /// When it looks again.
    next_look: Time,
    prefix: u8,
    /// Has the prefix; last, so that nobody takes it before everything else is closed.
    _claim: OwnedFd,
}

impl Sharing {
    /// Claims a number prefix; where a sandbox forbids what it takes, there is no sharing, and the reason.
    ///
    /// # Errors
    /// When all are taken, or the system is short of something.
    pub(super) fn claim(
        address: IpAddr,
        seed: Option<u64>,
        counters: Arc<UdpCounters>,
    ) -> Result<(Option<Sharing>, Option<String>), BindError> {
        // Another place each time, so that the numbers of a link that is gone are not those of the next.
        // Keys of hash maps are random.
        let start = seed.unwrap_or_else(|| RandomState::new().hash_one(Instant::now())) as u8;
        let claimed = claim_prefix(address, start).and_then(|claim| Ok((claim, owner::events()?)));
        let (claim, epoll) = match claimed {
            Ok(claimed) => claimed,
            Err(errno @ (Errno::PERM | Errno::ACCESS | Errno::AFNOSUPPORT | Errno::NOSYS)) => {
                let reason = format!("unix sockets or epoll: {}", io::Error::from(errno));
                return Ok((None, Some(reason)));
            }
            Err(errno) => {
                let action = "claiming a number prefix";
                return Err(BindError::System { address, action, source: errno.into() });
            }
        };
        let (prefix, claim) = claim.ok_or(BindError::Crowded { address, limit: u32::from(LINKS_MAX) })?;
        let sharing = Sharing {
            address,
            role: Role::Seeking(Instant::now()),
            services: Vec::new(),
            epoll,
            counters,
            calls: 0,
            next_look: Time::ZERO,
            prefix,
            _claim: claim,
        };
        Ok((Some(sharing), None))
    }

    /// The numbers that the NIC may give out.
    pub(super) fn prefix(&self) -> NumberPrefix {
        NumberPrefix { bits: 8, value: u32::from(self.prefix) }
    }

    /// What to sleep on beside datagrams.
    pub(super) fn events(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
    }

    pub(super) fn role(&mut self) -> &mut Role {
        &mut self.role
    }

    /// When a look is due although nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        let looks = match &self.role {
            Role::Seeking(_) => true,
            Role::Owner(owner) => owner.is_deaf(),
            Role::Member(_) | Role::Over => false,
        };
        looks.then_some(self.next_look)
    }

    // ---- Opening ----------------------------------------------------------------------------

    /// Becomes owner, or member if `join`.
    ///
    /// # Errors
    /// When others have the port and do not share it with this link.
    pub(super) fn open(&mut self, join: bool) -> Result<Change, BindError> {
        let start = Instant::now();
        loop {
            let patience = match self.attempt(join)? {
                Attempt::Done(change) => {
                    self.await_welcome()?;
                    return Ok(change);
                }
                Attempt::PortTaken => PORT_PATIENCE,
                Attempt::NotYet if join => JOIN_PATIENCE,
                Attempt::NotYet => Duration::ZERO,
            };
            if start.elapsed() >= patience {
                return Err(bind::in_use(self.address));
            }
            thread::sleep(RETRY);
        }
    }

    /// Waits a while for the answer of the owner: a refusal is better known at once.
    fn await_welcome(&mut self) -> Result<(), BindError> {
        let give_up = Instant::now() + WELCOME_PATIENCE;
        while let Role::Member(member) = &mut self.role {
            let owner = member.owner();
            let heard = member.attend();
            heard.map_err(|refusal| self.refused(owner, refusal))?;
            let left = give_up.saturating_duration_since(Instant::now());
            if let Role::Member(member) = &mut self.role
                && !member.is_welcome()
                && !member.is_over()
                && left > Duration::ZERO
            {
                let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
                let _ = poll(&mut [PollFd::new(member.control(), PollFlags::IN)], Some(&left));
            } else {
                break;
            }
        }
        Ok(())
    }

    fn refused(&self, owner: Peer, refusal: Refusal) -> BindError {
        BindError::Refused {
            address: self.address,
            owner: names::process(owner.pid),
            reason: refusal.to_string(),
        }
    }

    /// Tries to become owner, or else member, without waiting.
    fn attempt(&mut self, join: bool) -> Result<Attempt, BindError> {
        let address = self.address;
        let system = |action| move |errno: Errno| BindError::System { address, action, source: errno.into() };
        let name = names::claim(&names::owner(address)).map_err(system("taking the owner's name"))?;
        let Some(listener) = name else {
            return if join { self.try_join() } else { Ok(Attempt::NotYet) };
        };
        // The name first: whoever has the port but not the name, does not share.
        let socket = match bind::take(address) {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(Attempt::PortTaken),
            Err(error) => return Err(bind::refusal(address, error)),
        };
        let epoll = Arc::clone(&self.epoll);
        let mut owner = names::listen(&listener)
            .and_then(|()| Owner::new(listener, self.prefix, epoll, Arc::clone(&self.counters)))
            .map_err(system("listening for other links of this address"))?;
        for (service, _) in &self.services {
            owner.claim(*service, self.prefix);
        }
        self.role = Role::Owner(owner);
        Ok(Attempt::Done(Change::Owner(socket)))
    }

    fn try_join(&mut self) -> Result<Attempt, BindError> {
        let address = self.address;
        let services = self.services.iter().map(|(service, _)| *service);
        match Member::join(address, self.prefix, services, &self.epoll) {
            Ok(member) => {
                let bell = member.bell();
                self.role = Role::Member(member);
                Ok(Attempt::Done(Change::Member(bell)))
            }
            Err(NotJoined::NotYet) => Ok(Attempt::NotYet),
            Err(NotJoined::Refused(owner, refusal)) => Err(self.refused(owner, refusal)),
            Err(NotJoined::System(action, source)) => Err(BindError::System { address, action, source }),
        }
    }

    // ---- Running ----------------------------------------------------------------------------

    /// Whether it is time to [`attend`](Sharing::attend). The count is for callers whose clock stands.
    #[inline]
    pub(super) fn is_due(&mut self, now: Time) -> bool {
        self.calls = self.calls.wrapping_add(1);
        now >= self.next_look || self.calls.is_multiple_of(1024)
    }

    /// Hears what others have to say, and tries to become something if this link is nothing. True if the
    /// owner rang, which any thread that sleeps has to know.
    ///
    /// # Errors
    /// When there is no more hope to receive anything.
    pub(super) fn attend(&mut self, now: Time) -> Result<(bool, Option<Change>), BindError> {
        self.next_look = now + LOOK;
        match &mut self.role {
            Role::Owner(owner) => {
                owner.attend();
                Ok((false, None))
            }
            Role::Member(member) => {
                let owner = member.owner();
                match member.attend() {
                    Ok(rung) => Ok((rung, None)),
                    Err(refusal) if refusal.is_passing() => {
                        member.lose();
                        Ok((false, None))
                    }
                    Err(refusal) => Err(self.refused(owner, refusal)),
                }
            }
            Role::Seeking(since) => {
                let waited = since.elapsed();
                self.next_look = now + if waited < 100 * RETRY { RETRY } else { RETRY_LATER };
                let is_over = waited > SEEK_PATIENCE;
                match self.attempt(true) {
                    Ok(Attempt::Done(change)) => Ok((false, Some(change))),
                    Ok(_) if is_over => Err(bind::in_use(self.address)),
                    // The system may be short of something for a moment.
                    Err(error) if is_over || !matches!(error, BindError::System { .. }) => Err(error),
                    _ => Ok((false, None)),
                }
            }
            Role::Over => Ok((false, None)),
        }
    }

    /// Seeks again, after its membership is over.
    pub(super) fn seek(&mut self, now: Time) -> Change {
        // From an owner that has not taken it yet, it comes back later.
        let welcome = matches!(&self.role, Role::Member(member) if member.is_welcome());
        self.next_look = if welcome { now } else { now + RETRY_LATER };
        self.leave(Role::Seeking(Instant::now()));
        count(&self.counters.takeovers, 1);
        Change::Seeking
    }

    /// Gives up what it is, so that others can take it over, and nothing wakes those who sleep.
    pub(super) fn give_up(&mut self) {
        self.leave(Role::Over);
    }

    fn leave(&mut self, role: Role) {
        if let Role::Member(member) = &self.role {
            // A process that was forked may hold the socket open, and what is closed here go on talking.
            let _ = epoll::delete(&self.epoll, member.control());
        }
        self.role = role;
    }

    // ---- Services ---------------------------------------------------------------------------

    /// Requests for a service are for this link.
    pub(super) fn claim_service(&mut self, id: u64) -> io::Result<()> {
        if self.services.iter().any(|(service, _)| *service == id) {
            return Ok(());
        }
        if self.services.len() == SERVICES_MAX {
            let text = format!("a link that shares its address has {SERVICES_MAX} services at most");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        self.services.push((id, names::claim_service(self.address, id)?));
        match &mut self.role {
            Role::Owner(owner) => owner.claim(id, self.prefix),
            Role::Member(member) => member.tell(Message::Claim { service: id }),
            Role::Seeking(_) | Role::Over => {}
        }
        Ok(())
    }

    /// Requests for a service are for this link no more.
    pub(super) fn release_service(&mut self, id: u64) {
        let before = self.services.len();
        self.services.retain(|(service, _)| *service != id);
        if self.services.len() == before {
            return;
        }
        match &mut self.role {
            Role::Owner(owner) => owner.release(id, self.prefix),
            Role::Member(member) => member.tell(Message::Release { service: id }),
            Role::Seeking(_) | Role::Over => {}
        }
    }
}
