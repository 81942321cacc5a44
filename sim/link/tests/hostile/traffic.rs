//! Honest traffic between a victim and its peer, with every byte checked.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyverbs_link::udp::UdpLink;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, TxBatch, Waiter};
use anyverbs_nic::*;

use crate::rig::{Host, datagram_qp, number_of, pair, pattern, poll};

pub(crate) const QKEY: u32 = 0x1ee7;
const RC_PAIRS: usize = 2;
const SEND: usize = 3000;
const WRITE: usize = 2000;
const UC_LEN: usize = 1500;
const UD_LEN: usize = 500;
/// Receives that wait for unreliable messages.
const WAITING: usize = 16;
const PAGE: usize = 4096;
/// Memory of a pair: five pages of a reliable one, a page for each receive and one to send from otherwise.
const AREA: usize = 32 * PAGE;

/// A link that keeps copies of the last datagrams that it was given.
struct Tapped {
    inner: UdpLink,
    tape: Tape,
}

/// The datagrams of the peer, the oldest first.
pub(crate) type Tape = Arc<Mutex<VecDeque<Vec<u8>>>>;

const TAPE: usize = 256;

impl Link for Tapped {
    fn info(&self) -> &LinkInfo {
        self.inner.info()
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.inner.waiter()
    }

    fn source_port(&self, flow_hash: u32) -> u16 {
        self.inner.source_port(flow_hash)
    }

    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        let mut tape = self.tape.lock().unwrap();
        for entry in batch.entries() {
            let mut place = if tape.len() == TAPE { tape.pop_front().unwrap() } else { Vec::new() };
            place.clear();
            place.extend_from_slice(&batch.bytes()[entry.range()]);
            tape.push_back(place);
        }
        drop(tape);
        self.inner.transmit(batch, now)
    }

    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        self.inner.receive(batch, now)
    }

    fn next_deadline(&self) -> Option<Time> {
        self.inner.next_deadline()
    }
}

/// A connected pair: the honest peer's side, then the victim's.
struct Pair {
    qps: [Qp; 2],
    cqs: [Cq; 2],
}

pub(crate) struct Traffic {
    pub(crate) peer: Host,
    pub(crate) victim: Host,
    pub(crate) tape: Tape,
    reliable: Vec<Pair>,
    connected: Pair,
    datagram: Pair,
    ah: Ah,
    round: Mutex<u64>,
}

/// What the attacker knows of a queue pair of the victim: everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) qp_type: QpType,
    pub(crate) qpn: u32,
    /// The first PSN that it expected, and the first that it sent.
    pub(crate) psns: [u32; 2],
}

impl Traffic {
    pub(crate) fn new(seed: u64) -> Traffic {
        let config = NicConfig { seed: Some(seed), ..NicConfig::default() };
        let memory = AREA * (RC_PAIRS + 2);
        let tape = Tape::default();
        let peer = Host::over(config, memory, |inner| Box::new(Tapped { inner, tape: Arc::clone(&tape) }));
        let victim = Host::new(NicConfig { seed: Some(!seed), ..config }, memory);
        let hosts = [&peer, &victim];
        let cqs = || hosts.map(|host| host.nic.create_cq(1024).unwrap());
        let make = |qp_type| {
            let cqs = cqs();
            Pair { qps: pair(qp_type, (&peer, &cqs[0]), (&victim, &cqs[1])), cqs }
        };
        let reliable = (0..RC_PAIRS).map(|_| make(QpType::Rc)).collect();
        let connected = make(QpType::Uc);
        let cqs = cqs();
        let qps = [0, 1].map(|n| datagram_qp(hosts[n], &cqs[n], QKEY));
        let datagram = Pair { qps, cqs };
        let ah = peer.pd.create_ah(AhAttributes::new(victim.address())).unwrap();
        let traffic = Traffic { tape, reliable, connected, datagram, ah, round: Mutex::new(1), peer, victim };
        for n in 0..WAITING {
            traffic.wait_for_unreliable(&traffic.connected, RC_PAIRS, n as u64);
            traffic.wait_for_unreliable(&traffic.datagram, RC_PAIRS + 1, n as u64);
        }
        traffic
    }

    fn hosts(&self) -> [&Host; 2] {
        [&self.peer, &self.victim]
    }

    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.reliable.iter().chain([&self.connected, &self.datagram])
    }

    pub(crate) fn queue_pairs(&self) -> impl Iterator<Item = &Qp> {
        self.pairs().flat_map(|pair| &pair.qps)
    }

    pub(crate) fn targets(&self) -> Vec<Target> {
        let target = |pair: &Pair| Target {
            qp_type: pair.qps[1].qp_type(),
            qpn: pair.qps[1].qpn(),
            psns: [pair.qps[0].initial_psn(), pair.qps[1].initial_psn()],
        };
        self.pairs().map(target).collect()
    }

    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        self.hosts().map(Host::address)
    }

    /// Exchanges messages until `stop`; how many rounds that were.
    pub(crate) fn run(&self, stop: &AtomicBool) -> u64 {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            self.run_rounds(1);
            rounds += 1;
            // The attacker needs a processor, too, and PSNs that are far away are to stay so.
            std::thread::sleep(std::time::Duration::from_millis(1 + rounds / 50_000));
        }
        rounds
    }

    pub(crate) fn run_rounds(&self, rounds: u64) {
        for _ in 0..rounds {
            let number = {
                let mut round = self.round.lock().unwrap();
                *round += 1;
                *round
            };
            for (n, pair) in self.reliable.iter().enumerate() {
                self.exchange(pair, n * AREA, number << 8 | n as u64);
            }
            self.send_unreliable(number);
            self.take_unreliable(&self.connected, RC_PAIRS, 0);
            self.take_unreliable(&self.datagram, RC_PAIRS + 1, GRH_LEN);
        }
    }

    /// SEND and WRITE to the victim; READ and FETCH_ADD by the victim.
    fn exchange(&self, pair: &Pair, area: usize, number: u64) {
        let [peer, victim] = self.hosts();
        let [out, into, target, back, counter] = [0, 1, 2, 3, 4].map(|page| area + page * PAGE);
        peer.block.write(out, &pattern(number, SEND)).unwrap();
        peer.block.write(counter, &number.to_ne_bytes()).unwrap();
        let [qp, other] = &pair.qps;
        other.post_recv(&[RecvWr { wr_id: number, sges: &[victim.sge(into, PAGE)] }]).unwrap();
        let write = SendOp::Write { addr: target as u64, rkey: victim.mr.key() };
        let (whole, part) = ([peer.sge(out, SEND)], [peer.sge(out, WRITE)]);
        qp.post_send(&[SendWr::new(number, write, &part), SendWr::new(number, SendOp::Send, &whole)])
            .unwrap();
        let read = SendOp::Read { addr: out as u64, rkey: peer.mr.key() };
        let add = SendOp::FetchAdd { addr: counter as u64, rkey: peer.mr.key(), add: 1 };
        let (whole, word) = ([victim.sge(back, SEND)], [victim.sge(counter, 8)]);
        other.post_send(&[SendWr::new(number, read, &whole), SendWr::new(number, add, &word)]).unwrap();

        let sent = peer.successes(&pair.cqs[0], 2);
        let done = victim.successes(&pair.cqs[1], 3);
        assert!(sent.iter().chain(&done).all(|cqe| cqe.wr_id == number), "{sent:?} {done:?}");
        let received = done.iter().find(|cqe| cqe.opcode == WcOpcode::Recv).expect("the message");
        assert_eq!(received.byte_len as usize, SEND);
        for (at, len) in [(into, SEND), (target, WRITE), (back, SEND)] {
            assert_eq!(number_of(&victim.bytes(at, len)), number);
        }
        assert_eq!(victim.block.load_u64(counter).unwrap(), number);
        assert_eq!(peer.block.load_u64(counter).unwrap(), number + 1);
    }

    fn send_unreliable(&self, number: u64) {
        let peer = &self.peer;
        for (index, pair, len) in
            [(RC_PAIRS, &self.connected, UC_LEN), (RC_PAIRS + 1, &self.datagram, UD_LEN)]
        {
            let out = index * AREA + WAITING * PAGE;
            peer.block.write(out, &pattern(number, len)).unwrap();
            let destination = match pair.qps[0].qp_type() {
                QpType::Ud => {
                    Destination::Datagram { ah: &self.ah, remote_qpn: pair.qps[1].qpn(), remote_qkey: QKEY }
                }
                _ => Destination::Connected,
            };
            let sges = [peer.sge(out, len)];
            pair.qps[0]
                .post_send(&[SendWr { destination, ..SendWr::new(number, SendOp::Send, &sges) }])
                .unwrap();
            peer.successes(&pair.cqs[0], 1);
        }
    }

    /// What came of unreliable messages: some may be lost and some come again, but each is whole.
    fn take_unreliable(&self, pair: &Pair, index: usize, header: usize) {
        for cqe in poll(&pair.cqs[1]) {
            assert_eq!(cqe.status, WcStatus::Success);
            let (slot, len) = (cqe.wr_id as usize, cqe.byte_len as usize - header);
            number_of(&self.victim.bytes(index * AREA + slot * PAGE + header, len));
            self.wait_for_unreliable(pair, index, cqe.wr_id);
        }
    }

    fn wait_for_unreliable(&self, pair: &Pair, index: usize, slot: u64) {
        let sges = [self.victim.sge(index * AREA + slot as usize * PAGE, PAGE)];
        pair.qps[1].post_recv(&[RecvWr { wr_id: slot, sges: &sges }]).unwrap();
    }

    /// What the victim counted, once nothing arrives any more.
    pub(crate) fn settled_counters(&self) -> Counters {
        let mut before = None;
        loop {
            let (arrived, counters) = (self.victim.udp.received(), self.victim.nic.counters());
            // The same twice, with time for a packet between: an acknowledgement may still be on its way.
            let now = Some((arrived, counters.rcvd_pkts));
            if before == now && arrived == self.victim.udp.received() {
                return counters;
            }
            before = now;
            std::thread::sleep(std::time::Duration::from_millis(50));
            self.victim.nic.progress();
        }
    }
}
