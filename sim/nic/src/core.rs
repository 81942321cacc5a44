//! What the progress token guards, and one pass of progress over it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use anyverbs_engine::{Action, Context, Counters, QpType, QueuePair, Time};
use anyverbs_memory::{RegionTable, Span};
use anyverbs_wire::{Flow, Packet, Qpn, Repr};
use rand_chacha::ChaCha20Rng;

use crate::afford::afford;
use crate::attributes::{DeviceAttributes, NicConfig, OVERHEAD_MAX};
use crate::cm::Cm;
use crate::completion::CqCore;
use crate::error::NicError;
use crate::event::AsyncEvent;
use crate::held::Held;
use crate::link::{Link, LinkError, RxBatch, RxEntry, TxBatch, Waiter};
use crate::mailbox::Mailbox;
use crate::multicast::Groups;
use crate::numbered::Numbered;
use crate::peer_ids::{PeerIds, Verdict};
use crate::peers::Peers;
use crate::qp::{QpCore, Receives, View};
use crate::shared_receive::SrqCore;
use crate::timers::Timers;
use crate::transmit::Deferred;
use crate::work::MULTICAST_QPN;

/// Room for datagrams going out: more than a queue pair sends in one turn.
const TX_DATAGRAMS: usize = 256;

/// What a queue pair may send in one turn, with both its halves.
const TURN: usize = 130;

/// The buffer for datagrams coming in, in bytes: a few coalesced reads of 64 KiB.
const RX_BYTES: usize = 512 * 1024;

/// The number of no protection domain.
pub(crate) const NO_DOMAIN: u32 = 0;

/// Bytes of the places of a queue pair among the doorbells and among those in turn, rounded up.
const PER_QP: usize = 64;

/// Bytes of the smaller things that a device consists of, rounded up.
const FIXED: usize = 512 * 1024;

/// Datagrams handled in a pass, at most.
const RX_DATAGRAMS: usize = 1024;

/// What is known of the datagram in hand beside its contents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ecn: u8,
    pub(crate) len: usize,
}

/// The state of a NIC that only the holder of the progress token touches.
pub(crate) struct Core {
    pub(crate) link: Box<dyn Link>,
    pub(crate) waiter: Arc<dyn Waiter>,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) regions: RegionTable,
    pub(crate) held: Held,
    pub(crate) qps: Numbered<QpCore>,
    pub(crate) srqs: Numbered<SrqCore>,
    pub(crate) groups: Groups,
    /// Which IP identifications the senders of MADs and to groups use.
    pub(crate) other_ids: PeerIds,
    pub(crate) events: Arc<Mailbox<AsyncEvent>>,
    pub(crate) arrival: Arrival,
    /// Completion queues that have to tell of completions at some time, whatever else happens.
    pub(crate) untold: Vec<(Time, Arc<CqCore>)>,
    pub(crate) peers: Peers,
    pub(crate) cm: Cm,
    pub(crate) counters: Counters,
    pub(crate) timers: Timers,
    /// Queue pairs with something to send, in turn.
    pub(crate) ready: VecDeque<u32>,
    /// The link took no more when they were to send last.
    pub(crate) blocked: bool,
    /// Packets whose time has not come.
    pub(crate) deferred: Deferred,
    pub(crate) tx: TxBatch,
    rx: RxBatch,
    pub(crate) actions: Vec<Action<Span>>,
    pub(crate) datagram_max: usize,
    /// Datagrams arrived in the last pass.
    heard: bool,
    /// When the last pass began.
    time: Time,
    /// Entries were written to completion queues since this was last looked at.
    pub(crate) completed: bool,
    /// The link broke, and how: nothing arrives any more.
    broken: Option<LinkError>,
}

impl Core {
    pub(crate) fn new(
        link: Box<dyn Link>,
        rng: ChaCha20Rng,
        config: &NicConfig,
        attributes: &DeviceAttributes,
    ) -> Result<Self, NicError> {
        let datagram_max = attributes.path_mtu.bytes() as usize + OVERHEAD_MAX;
        let (max_qp, quotas) = (attributes.max_qp, config.quotas);
        let early_per_peer = quotas.early_per_peer.unwrap_or(config.max_early.div_ceil(4));
        let tables = Numbered::<QpCore>::bytes(max_qp)
            .saturating_add(Numbered::<SrqCore>::bytes(config.max_srq))
            .saturating_add(Held::bytes(config.max_early))
            .saturating_add((max_qp as usize).saturating_mul(PER_QP));
        afford(tables.saturating_add(TX_DATAGRAMS * datagram_max + RX_BYTES + FIXED))
            .map_err(NicError::system("allocating the tables and buffers of a device"))?;
        Ok(Core {
            cm: Cm::new(config, attributes, link.info(), &rng),
            peers: Peers::new(quotas.qp_per_peer.unwrap_or(max_qp)),
            qps: Numbered::new(max_qp).with_prefix(link.info().prefix),
            waiter: link.waiter(),
            link,
            rng,
            regions: RegionTable::new(config.max_mr, config.max_mw)
                .map_err(NicError::system("allocating the region table"))?,
            held: Held::new(config.max_early, max_qp, early_per_peer),
            srqs: Numbered::new(config.max_srq),
            groups: Groups::new(config),
            other_ids: PeerIds::default(),
            events: Arc::new(Mailbox::new(64)),
            arrival: Arrival { source: attributes.gid, destination: attributes.gid, ecn: 0, len: 0 },
            untold: Vec::new(),
            counters: Counters::default(),
            timers: Timers::default(),
            ready: VecDeque::with_capacity(config.max_qp as usize),
            blocked: false,
            deferred: Deferred::default(),
            tx: TxBatch::with_capacity(TX_DATAGRAMS * datagram_max, TX_DATAGRAMS),
            rx: RxBatch::with_capacity(RX_BYTES, RX_DATAGRAMS),
            actions: Vec::with_capacity(TX_DATAGRAMS),
            datagram_max,
            heard: false,
            time: Time::ZERO,
            completed: false,
            broken: None,
        })
    }

    /// One pass: what was posted goes out, what arrived is handled, what is due is done. Returns
    /// whether entries were written to completion queues.
    ///
    /// Acknowledgements of what arrives in this pass leave with the next one if it also completed
    /// receives: the program that polls for them is likely to post its reply first, and both go out
    /// in one send. Otherwise they leave at once.
    pub(crate) fn pass(&mut self, doorbells: impl Fn() -> Option<u32>) -> bool {
        let now = self.send_posted(doorbells);
        self.receive(now);
        self.fire_timers(now);
        self.tell(now);
        self.serve_cm(now);
        if !self.completed {
            self.send(now);
        }
        self.take_completed()
    }

    /// Whether datagrams arrived in the last pass.
    pub(crate) fn heard(&self) -> bool {
        self.heard
    }

    /// Whether entries were written to completion queues, or connection events to mailboxes, since this was
    /// last asked.
    pub(crate) fn take_completed(&mut self) -> bool {
        let told = self.cm.take_told() | self.events.take_news();
        std::mem::take(&mut self.completed) | told
    }

    /// The first part of a pass, all that a poster needs: what was posted goes out. Returns the time.
    pub(crate) fn send_posted(&mut self, doorbells: impl Fn() -> Option<u32>) -> Time {
        let now = self.waiter.now();
        self.time = now;
        while let Some(qpn) = doorbells() {
            self.drain_send_queue(qpn, now);
        }
        self.send(now);
        now
    }

    /// When the last pass began.
    pub(crate) fn time(&self) -> Time {
        self.time
    }

    /// When there will be something to do although nothing arrives; a time in the past if there is
    /// something to do now.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        if !self.ready.is_empty() || !self.tx.is_empty() {
            return Some(Time::ZERO);
        }
        let untold = self.untold.iter().map(|(time, _)| *time).min();
        let cm = self.cm.next_deadline();
        [self.timers.next(), self.deferred.next(), self.link.next_deadline(), untold, cm]
            .into_iter()
            .flatten()
            .min()
    }

    /// How the link broke, if it did.
    pub(crate) fn broken(&self) -> Option<&LinkError> {
        self.broken.as_ref()
    }

    // ---- Out --------------------------------------------------------------------------------

    /// Hands what was posted on a queue pair to its engine.
    fn drain_send_queue(&mut self, qpn: u32, now: Time) {
        let Some(qp) = self.qps.get_mut(qpn) else { return };
        // Before the queue is read: what is posted from here on rings again.
        qp.shared.doorbell.answer();
        while let Some((slot, wqe)) = self.qps.get_mut(qpn).and_then(|qp| qp.sq.take()) {
            self.engine(qpn, now, |engine, cx| {
                let posted = engine.post_send(cx, wqe.request(slot));
                debug_assert!(posted, "the ring holds no more than the engine, and checks the state");
            });
        }
        self.engine(qpn, now, |engine, cx| engine.flush_receives(cx));
        self.carry_out_all(qpn, now, &[]);
        self.set_ready_first(qpn);
    }

    /// Calls the engine of a queue pair with everything that it needs, if there is such a queue pair.
    #[inline]
    pub(crate) fn engine<R>(
        &mut self,
        qpn: u32,
        now: Time,
        call: impl FnOnce(&mut QueuePair, &mut Context<'_, View<'_>>) -> R,
    ) -> Option<R> {
        let Core { qps, srqs, regions, held, events, actions, counters, .. } = self;
        let qp = qps.get_mut(qpn)?;
        let (share, pd, access, sq, receives) = (qp.share, qp.pd, qp.access, &qp.sq, &mut qp.receives);
        let mut view = View { regions, held, srqs, events, share, qpn, pd, access, sq, receives };
        let mut cx = Context { now, memory: &mut view, actions, counters };
        Some(call(&mut qp.engine, &mut cx))
    }

    /// Lets queue pairs send in turn, until nobody has anything or the link takes no more.
    fn send(&mut self, now: Time) {
        self.send_deferred(now);
        while let Some(qpn) = self.ready.pop_front() {
            self.blocked = !self.make_room(TURN, now);
            if self.blocked {
                self.ready.push_front(qpn);
                break;
            }
            let Some(qp) = self.qps.get_mut(qpn) else { continue };
            qp.ready = false;
            let more = self.engine(qpn, now, |engine, cx| engine.transmit(cx)).unwrap_or(false);
            self.carry_out_all(qpn, now, &[]);
            // What its window or a timer holds back waits for an event, not for its next turn.
            self.set_ready(qpn, more);
        }
        self.flush(now);
    }

    /// Whether `datagrams` more fit into the batch, after it was flushed if necessary.
    pub(crate) fn make_room(&mut self, datagrams: usize, now: Time) -> bool {
        let fits =
            |tx: &TxBatch, max: usize| tx.len() + datagrams <= TX_DATAGRAMS && tx.has_room(datagrams * max);
        if !fits(&self.tx, self.datagram_max) {
            self.flush(now);
        }
        fits(&self.tx, self.datagram_max)
    }

    fn flush(&mut self, now: Time) {
        // Called for an empty batch too: a link may hold datagrams back until they are due.
        if self.broken.is_none()
            && let Err(error) = self.link.transmit(&mut self.tx, now)
        {
            self.breaks(error);
        }
        if self.broken.is_some() {
            // A broken link loses everything, and queue pairs end by their own timeouts.
            self.tx.consume(usize::MAX);
        }
    }

    /// Moves a queue pair to the error state.
    pub(crate) fn enter_error(&mut self, qpn: u32) {
        let now = self.waiter.now();
        self.engine(qpn, now, |engine, cx| engine.enter_error(cx));
        self.carry_out(qpn, now, &[]);
    }

    /// Moves the engine of a queue pair to the Reset state, and gives back what it held.
    pub(crate) fn reset(&mut self, qpn: u32) {
        let now = self.waiter.now();
        self.engine(qpn, now, |engine, cx| engine.reset(cx));
        self.carry_out_all(qpn, now, &[]);
        self.regions.forget_queue_pair(qpn);
        // Only now: it has given its buffers back.
        if let Some(share) = self.qps.get_mut(qpn).and_then(|qp| qp.share.take()) {
            self.peers.leave(share);
        }
    }

    fn breaks(&mut self, error: LinkError) {
        self.broken = Some(error);
        self.events.put(AsyncEvent::DeviceFatal);
    }

    /// Gives back what a queue pair had taken from shared receive queues.
    pub(crate) fn forget_receives(&mut self, qpn: u32) {
        let Core { qps, srqs, .. } = self;
        match qps.get(qpn).map(|qp| &qp.receives) {
            Some(Receives::Shared(srqn)) => {
                if let Some(srq) = srqs.get_mut(*srqn) {
                    srq.forget(qpn);
                }
            }
            Some(Receives::Xrc(_)) => srqs.values_mut().for_each(|srq| srq.forget(qpn)),
            _ => {}
        }
    }

    // ---- In ---------------------------------------------------------------------------------

    fn receive(&mut self, now: Time) {
        self.heard = false;
        if self.broken.is_some() {
            return;
        }
        self.rx.clear();
        if let Err(error) = self.link.receive(&mut self.rx, now) {
            self.breaks(error);
            return;
        }
        if self.rx.entries().is_empty() {
            return;
        }
        // The batch leaves `self` for the loop, so that a datagram and the rest can be borrowed.
        let rx = std::mem::replace(&mut self.rx, RxBatch::with_capacity(0, 0));
        self.heard = true;
        for entry in rx.entries() {
            self.on_datagram(entry, &rx.bytes()[entry.range()], now);
        }
        self.rx = rx;
    }

    /// Checks a datagram and hands it to its queue pair. What fails a check is counted, by cause,
    /// and changes nothing else (IBA 9.6).
    fn on_datagram(&mut self, entry: &RxEntry, datagram: &[u8], now: Time) {
        let Ok(packet) = Packet::new_checked(datagram) else {
            self.counters.rx_malformed += 1;
            return;
        };
        let qpn = packet.dest_qpn().value();
        let RxEntry { source, destination, source_port, ecn, len, .. } = *entry;
        if packet.dest_qpn() <= Qpn::GSI {
            self.on_management(entry, datagram, &packet, now);
            return;
        }
        if qpn == MULTICAST_QPN {
            if !self.groups.has(destination) {
                self.counters.rx_unknown_qp += 1;
                return;
            }
        } else {
            let Some(qp) = self.qps.get(qpn) else {
                self.counters.rx_unknown_qp += 1;
                return;
            };
            // Datagrams may come from anywhere; what is connected hears its peer alone.
            if (qp.qp_type != QpType::Ud && qp.peer != Some(source)) || destination.is_multicast() {
                self.counters.rx_wrong_source += 1;
                return;
            }
        }
        let flow = Flow { source, destination, source_port };
        let ids = self.qps.get_mut(qpn).map(|qp| &mut qp.ids).unwrap_or(&mut self.other_ids);
        match ids.check(&flow, entry.ip_id, datagram) {
            Verdict::Good => {}
            Verdict::Corrupt => return self.counters.rx_icrc_encapsulated += 1,
            Verdict::Unproven => {
                self.link.reveal_ids();
                return self.counters.rx_icrc_unproven_id += 1;
            }
        }
        let repr = Repr::parse(&packet);
        let payload = packet.payload();
        self.arrival = Arrival { source, destination, ecn, len };
        if qpn == MULTICAST_QPN {
            self.on_multicast(&repr, payload, now);
        } else {
            self.on_packet(qpn, &repr, payload, now);
        }
    }

    /// Hands a packet to a queue pair.
    fn on_packet(&mut self, qpn: u32, repr: &Repr, payload: &[u8], now: Time) {
        if let Some(srqn) = repr.xrc_srqn {
            self.enter_domain_of(qpn, srqn.value());
        }
        let (len, ecn) = (payload.len() as u32, self.arrival.ecn);
        self.engine(qpn, now, |engine, cx| engine.on_packet(cx, repr, len, ecn));
        self.carry_out(qpn, now, payload);
        self.take_turns(qpn, now);
    }

    /// Hands a packet to each queue pair of its group.
    fn on_multicast(&mut self, repr: &Repr, payload: &[u8], now: Time) {
        for nth in 0.. {
            let Some(qpn) = self.groups.member(self.arrival.destination, nth) else { break };
            self.on_packet(qpn, repr, payload, now);
        }
    }

    /// The target of an extended reliable connection has no protection domain of its own: what a packet may touch is
    /// what the shared receive queue may that it names (IBA A14.5).
    fn enter_domain_of(&mut self, qpn: u32, srqn: u32) {
        let Core { qps, srqs, .. } = self;
        let Some(qp) = qps.get_mut(qpn) else { return };
        if let Receives::Xrc(domain) = &qp.receives {
            let own = srqs.get(srqn).filter(|srq| srq.xrc.as_ref().is_some_and(|(xrcd, _)| xrcd == domain));
            qp.pd = own.map_or(NO_DOMAIN, |srq| srq.pd);
        }
    }

    /// Handles packets that had come early, and whose turn it is now.
    fn take_turns(&mut self, qpn: u32, now: Time) {
        while let Some(early) = self.engine(qpn, now, |engine, cx| engine.on_early(cx)).flatten() {
            let Some(buffer) = early.buffer else {
                self.carry_out(qpn, now, &[]);
                continue;
            };
            let (bytes, len) = self.held.take(buffer);
            self.carry_out(qpn, now, &bytes[..len]);
            self.held.put_back(buffer, bytes);
        }
    }

    // ---- Time -------------------------------------------------------------------------------

    /// Lets completion queues tell of what has waited for more to come with it.
    fn tell(&mut self, now: Time) {
        while let Some(due) = self.untold.iter().position(|(time, _)| *time <= now) {
            let (_, cq) = self.untold.swap_remove(due);
            cq.tell();
            self.completed = true;
        }
    }

    fn fire_timers(&mut self, now: Time) {
        while let Some((time, qpn)) = self.timers.due(now) {
            let Some(qp) = self.qps.get_mut(qpn) else { continue };
            if qp.timer != Some(time) {
                continue;
            }
            qp.timer = None;
            self.engine(qpn, now, |engine, cx| engine.on_timer(cx));
            self.carry_out(qpn, now, &[]);
        }
    }
}
