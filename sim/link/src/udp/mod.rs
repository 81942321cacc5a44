//! RoCEv2 over UDP port 4791.
//!
//! What makes it fast is what lets the kernel handle many datagrams at once: runs of equal size
//! leave in one call (UDP_SEGMENT) and arrive in one (UDP_GRO).

mod backend;
mod bind;
mod buffers;
mod control;
mod exits;
mod filter;
mod patience;
mod place;
mod receive;
mod runs;
mod share;
mod sides;
mod sys;
mod transmit;
mod waiter;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, ROCE_PORT, RxBatch, TxBatch, Waiter};
use rustix::io::Errno;

pub use bind::{BindError, Holder};

use backend::Backend;
use exits::Exits;
use place::{Place, Probe};
use receive::Receiver;
use share::{Change, Role, Sharing};
use sides::{SideBell, Sides};
use sys::{Calls, Ring};
use transmit::Transmitter;
use waiter::{Sources, UdpWaiter};

/// The most that one receive can bring: an IP packet.
const PACKET_MAX: usize = 65_535;

/// Sends that are handed to the kernel at once at most.
const SENDS_MAX: usize = 16;

/// How a UDP link talks to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Io {
    /// What is faster for each kind of call, of what the system permits: io_uring for several
    /// sends at once, plain system calls for one and for receives.
    #[default]
    Auto,
    /// io_uring for everything, or an error.
    Uring,
    /// Plain system calls.
    Sockets,
}

/// Source ports that a link has at most.
const SOURCE_PORTS_MAX: usize = 256;

/// How a UDP link is made.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// How it talks to the kernel.
    pub io: Io,
    /// Whether it shares its address with other links of this user, in this process and in others.
    pub share: bool,
    /// Whether it shares an address that another link has already; otherwise only with links to come.
    pub join: bool,
    /// What the prefix of a link that shares is drawn from: a seed for a run that can be repeated, or `None`
    /// for another one each time.
    pub seed: Option<u64>,
    /// Source ports that queue pairs are spread over, each a socket of its own, at most 256: what routers
    /// and network cards tell flows apart by. With 0, everything leaves from the RoCE port.
    pub source_ports: usize,
    /// The MTU of all paths in bytes, IP header included, at most that of the interface. `None`: what the
    /// system knows of the path to each peer.
    pub mtu: Option<usize>,
    /// Once a peer is heard that uses the IP identification, as the kernel's rxe does: receives such
    /// datagrams by a raw socket, if the system permits one (CAP_NET_RAW; IPv4 only), so that their ICRC is
    /// checked at full strength. Without it, it is checked at 16 bits' strength, and only for such peers.
    pub raw: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        UdpOptions {
            io: Io::Auto,
            share: true,
            join: true,
            seed: None,
            source_ports: 8,
            mtu: None,
            raw: true,
        }
    }
}

/// What a UDP link counts. Shared with whoever watches it.
#[derive(Default, Debug)]
pub struct UdpCounters {
    sent: AtomicU64,
    sends: AtomicU64,
    received: AtomicU64,
    receives: AtomicU64,
    discarded: AtomicU64,
    lost: AtomicU64,
    too_large: AtomicU64,
    full: AtomicU64,
    forwarded: AtomicU64,
    overrun: AtomicU64,
    unclaimed: AtomicU64,
    refused: AtomicU64,
    takeovers: AtomicU64,
    members: AtomicU64,
}

impl UdpCounters {
    /// Datagrams that the kernel took.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends that carried them.
    pub fn sends(&self) -> u64 {
        self.sends.load(Ordering::Relaxed)
    }

    /// Datagrams that arrived and were handed to the NIC, which counts what becomes of each.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Datagrams that arrived and went no further: without a byte, or longer than the NIC has room for.
    pub fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Receives that brought them: fewer where the kernel put neighbours together.
    pub fn receives(&self) -> u64 {
        self.receives.load(Ordering::Relaxed)
    }

    /// Datagrams that the kernel refused: no route, a closed gate.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Datagrams that were lost since they are larger than the path to their destination carries: its
    /// MTU was set or discovered to be less than that of the queue pair.
    pub fn too_large(&self) -> u64 {
        self.too_large.load(Ordering::Relaxed)
    }

    /// Sends that had to wait because the socket's buffer was full.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// Datagrams that this link received for others that share its address, and handed over.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Datagrams for others that were lost, since those do not take what is handed over to them.
    pub fn overrun(&self) -> u64 {
        self.overrun.load(Ordering::Relaxed)
    }

    /// Datagrams for queue pair numbers that no link of the address has.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// Links, or whoever connected, that were refused a share of the address.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How often the link that received for this one went away.
    pub fn takeovers(&self) -> u64 {
        self.takeovers.load(Ordering::Relaxed)
    }

    /// Links that this one receives for at the moment.
    pub fn members(&self) -> u64 {
        self.members.load(Ordering::Relaxed)
    }
}

/// Adds to a counter that only one thread at a time writes.
fn count(counter: &AtomicU64, n: usize) {
    counter.store(counter.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
}

/// A link over UDP port 4791 of one address, which it may share with others: see [`UdpOptions::share`].
///
/// Of the links that share an address, one has the port and hands datagrams over to the others, by the
/// [prefix](LinkInfo::prefix) of their numbers; when it closes or dies, another one takes over.
pub struct UdpLink {
    info: LinkInfo,
    /// A raw socket was asked for and permitted, and there is none yet.
    may_reveal: bool,
    /// Asks what paths carry; `None` if that was said.
    probe: Option<Probe>,
    waiter: Arc<UdpWaiter>,
    counters: Arc<UdpCounters>,
    backend: Backend,
    transmitter: Transmitter,
    receiver: Receiver,
    /// After the backend, so that the port is free when the other links hear that this one is gone.
    sharing: Option<Sharing>,
}

impl UdpLink {
    /// Binds UDP port 4791 of `address`, which has to be an address of this host; or joins the link that has
    /// it.
    ///
    /// # Errors
    /// When the port is taken by somebody who does not share it, or is not to be had on this address, or
    /// when `options` ask for what the system does not permit. That no raw socket is permitted is no error;
    /// the link says so.
    pub fn bind(address: IpAddr, options: &UdpOptions) -> Result<UdpLink, BindError> {
        if options.source_ports > SOURCE_PORTS_MAX {
            return Err(BindError::SourcePorts { given: options.source_ports, max: SOURCE_PORTS_MAX });
        }
        bind::check(address)?;
        let fail = |action| move |source| BindError::System { address, action, source };
        let place = Place::find(address)?;
        let max_datagram = max_datagram(&place, options.mtu)?;
        let counters = Arc::<UdpCounters>::default();
        let (mut sharing, alone) = match options.share {
            true => Sharing::claim(address, options.seed, Arc::clone(&counters))?,
            false => (None, None),
        };
        let role = match &mut sharing {
            Some(sharing) => sharing.open(options.join)?,
            None => Change::Owner(bind::take(address).map_err(|e| bind::refusal(address, e))?),
        };
        let (main, bell, gro, mut capped) = match role {
            Change::Owner(socket) => {
                let bound = bind::prepare(address, socket)?;
                (Some(Arc::new(bound.socket)), None, bound.gro, bound.capped)
            }
            Change::Member(bell) => (None, Some(Arc::new(bell)), false, Vec::new()),
            Change::Seeking => return Err(bind::in_use(address)),
        };
        let mut exits = Exits::new(main.clone());
        // Who has not the RoCE port from the start cannot have it for its source port either.
        let ports = options.source_ports.max(usize::from(main.is_none()));
        let cut = exits.add(&place, ports).map_err(fail("opening sockets to send from"))?;
        capped.extend(cut.filter(|_| main.is_none()));
        let gso = exits.can_segment();
        let ring = match options.io {
            Io::Sockets => Err("as was asked".to_owned()),
            Io::Auto | Io::Uring => Ring::new(&place, gso),
        };
        if let (Io::Uring, Err(reason)) = (options.io, &ring) {
            return Err(BindError::NoUring { reason: reason.clone() });
        }
        let probe = Probe::new(&place).map_err(fail("opening a socket to look for paths"))?;
        let side_bell = Arc::new(SideBell::new());
        let sides = Sides::new(place.clone(), Arc::clone(&side_bell));
        let mut may_reveal = false;

        let mut detail = vec![match &ring {
            Ok(_) if options.io == Io::Uring => "io_uring".to_owned(),
            Ok(_) => "io_uring where several sends go together, else sockets".to_owned(),
            Err(reason) => format!("sockets ({reason})"),
        }];
        detail.extend(gso.then(|| "GSO".to_owned()));
        detail.extend(gro.then(|| "GRO".to_owned()));
        if address.is_ipv4() {
            // Only tried: what it will be good for is not known before a peer is heard.
            let raw = options.raw.then(sides::raw_socket);
            may_reveal = matches!(raw, Some(Ok(_)));
            detail.push(match raw {
                Some(Ok(_)) => "raw socket where a peer needs it".to_owned(),
                Some(Err(error)) => format!("no raw socket ({error})"),
                None => "no raw socket (as was asked)".to_owned(),
            });
        }
        detail.extend(capped.iter().map(ToString::to_string));
        let prefix = sharing.as_ref().map(Sharing::prefix);
        detail.extend(alone.map(|reason| format!("not shared ({reason})")));
        detail.extend(prefix.map(|prefix| format!("number prefix {:#04x}", prefix.value)));
        let info = LinkInfo {
            name: "udp",
            detail: detail.join(", "),
            address,
            max_datagram,
            reliable: false,
            prefix,
            warnings: capped.iter().map(|capped| capped.warning()).collect(),
        };
        let calls = Calls::new(place.scope());
        let sources = Sources { socket: main.clone(), bell };
        let events = sharing.as_ref().map(Sharing::events);
        Ok(UdpLink {
            info,
            may_reveal,
            probe: options.mtu.is_none().then_some(probe),
            waiter: Arc::new(UdpWaiter::new(sources, side_bell, events)),
            backend: Backend::new(main, exits, sides, calls, ring.ok(), options.io == Io::Uring),
            transmitter: Transmitter::new(gso, Arc::clone(&counters)),
            receiver: Receiver::new(address, Arc::clone(&counters)),
            counters,
            sharing,
        })
    }

    /// What this link counts, to be read while the NIC has the link.
    pub fn counters(&self) -> Arc<UdpCounters> {
        Arc::clone(&self.counters)
    }

    fn broken(&self, action: &str, errno: Errno) -> LinkError {
        self.hopeless(action, errno.into())
    }

    fn hopeless(&self, action: &str, source: io::Error) -> LinkError {
        LinkError { action: format!("{action} {}:{ROCE_PORT}", self.info.address), source }
    }

    /// Hears what other links of this address have to say, and changes roles if it is time to.
    #[cold]
    fn attend(&mut self, now: Time) -> Result<(), BindError> {
        let Some(sharing) = &mut self.sharing else { return Ok(()) };
        let (rung, change) = sharing.attend(now)?;
        if rung {
            // Of those who slept, one came here and took the ringing away.
            self.waiter.rouse();
        }
        change.map_or(Ok(()), |change| self.change(change))
    }

    fn change(&mut self, change: Change) -> Result<(), BindError> {
        let sources = match change {
            Change::Owner(socket) => {
                let socket = bind::prepare(self.info.address, socket)?.socket;
                Sources { socket: Some(Arc::new(socket)), bell: None }
            }
            Change::Member(bell) => Sources { socket: None, bell: Some(Arc::new(bell)) },
            Change::Seeking => Sources::default(),
        };
        self.listen_to(sources);
        Ok(())
    }

    fn listen_to(&mut self, sources: Sources) {
        self.backend.receive_from(sources.socket.clone());
        self.waiter.listen_to(sources);
    }

    fn try_receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        let due = self.sharing.as_mut().is_some_and(|sharing| sharing.is_due(now));
        if due || self.waiter.take_called() {
            self.attend(now).map_err(|e| self.hopeless("receiving at", io::Error::other(e)))?;
        }
        let UdpLink { backend, receiver, sharing, .. } = self;
        let done = match sharing.as_mut().map(Sharing::role) {
            None => receiver.receive(backend, None, batch),
            Some(Role::Owner(owner)) => {
                let done = receiver.receive(backend, Some(owner), batch);
                owner.flush();
                done
            }
            Some(Role::Member(member)) => {
                member.receive(batch, &self.counters);
                // Of the groups that it is in, each link has sockets of its own.
                let done = receiver.receive(backend, None, batch);
                if member.is_over()
                    && let Some(change) = sharing.as_mut().map(|sharing| sharing.seek(now))
                {
                    self.change(change).map_err(|e| self.hopeless("receiving at", io::Error::other(e)))?;
                }
                done
            }
            Some(Role::Seeking(_)) => receiver.receive(backend, None, batch),
            // After an error that said why.
            Some(Role::Over) => Err(Errno::NOTCONN),
        };
        done.map_err(|errno| self.broken("receiving at", errno))
    }
}

impl Drop for UdpLink {
    fn drop(&mut self) {
        // Whoever still has the waiter must not keep the port.
        self.waiter.listen_to(Sources::default());
    }
}

/// The largest datagram of a link with this MTU, or with that of its interface.
fn max_datagram(place: &Place, mtu: Option<usize>) -> Result<usize, BindError> {
    /// The smallest path MTU, with all that can be around it.
    const LEAST: usize = 256 + 64;
    let least = LEAST + place::headers_of(place.address);
    match mtu {
        Some(given) if !(least..=place.mtu).contains(&given) => {
            Err(BindError::Mtu { address: place.address, given, interface: place.mtu, least })
        }
        mtu => Ok(place::datagram_of(place.address, mtu.unwrap_or(place.mtu))),
    }
}

impl Link for UdpLink {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::clone(&self.waiter) as Arc<dyn Waiter>
    }

    fn source_port(&self, flow_hash: u32) -> u16 {
        self.backend.exits.port(flow_hash)
    }

    fn path_max_datagram(&self, peer: IpAddr) -> usize {
        let most = self.info.max_datagram;
        let Some(probe) = &self.probe else { return most };
        // Without a route nothing arrives, whatever its size: there the interface's limit stands.
        probe.path_mtu(peer).map_or(most, |mtu| place::datagram_of(peer, mtu).min(most))
    }

    fn join(&mut self, group: IpAddr) -> io::Result<()> {
        self.backend.sides.join(group)
    }

    fn leave(&mut self, group: IpAddr) {
        self.backend.sides.leave(group);
    }

    fn reveal_ids(&mut self) {
        // A link without the port hears of identifications what the link that has it tells.
        if self.may_reveal && self.backend.open_raw() {
            self.may_reveal = false;
        }
    }

    fn too_large(&self) -> u64 {
        self.counters.too_large()
    }

    fn transmit(&mut self, batch: &mut TxBatch, _now: Time) -> Result<(), LinkError> {
        let done = self.transmitter.transmit(&mut self.backend, batch);
        done.map_err(|errno| self.broken("sending from", errno))
    }

    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        let received = self.try_receive(batch, now);
        if received.is_err() {
            // A link that does not receive must not keep others from it.
            if let Some(sharing) = &mut self.sharing {
                sharing.give_up();
                self.listen_to(Sources::default());
            }
        }
        received
    }

    fn claim_service(&mut self, id: u64) -> io::Result<()> {
        self.sharing.as_mut().map_or(Ok(()), |sharing| sharing.claim_service(id))
    }

    fn release_service(&mut self, id: u64) {
        if let Some(sharing) = &mut self.sharing {
            sharing.release_service(id);
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        self.sharing.as_ref().and_then(Sharing::next_deadline)
    }
}
