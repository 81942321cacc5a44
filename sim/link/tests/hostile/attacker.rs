//! One who knows everything but has no right to anything.
//!
//! What is left out, since no receiver can tell it from the real thing: a packet with the peer's address, the right
//! queue pair number, ICRC and P_Key that also
//! - continues a reliable connection (a PSN from the expected one on to the end of what is kept early, or the answer
//!   to a request that is outstanding): RoCEv2 has no secret in a packet, so 24 bits of PSN are all that stands
//!   between;
//! - is of an unreliable connection and was never sent: such a connection goes on from any PSN (IBA 9.8.2.2). What
//!   the peer did send is replayed here.
//!
//! Packets with flipped bits pass the ICRC by chance once in 2^25 (it is right for any of 128 IP identifications);
//! what they could do then is in the first case above, or a false datagram (UD).

use std::collections::HashSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyverbs_link::udp::UdpCounters;
use anyverbs_nic::link::ROCE_PORT;
use anyverbs_nic::{Counters, Nic, QpType};
use anyverbs_wire::{Bth, Deth, Flow, Layout, Opcode, Operation, Psn, Qpn, Service, icrc};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::sync::Arc;

use crate::rig::HANG;
use crate::support;
use crate::traffic::{QKEY, Tape, Target, Traffic};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    RandomBytes,
    Empty,
    Oversized,
    Truncated,
    BitsFlipped,
    ReplayedAsItWas,
    Replayed,
    BadIcrc,
    WrongPartition,
    UnknownQueuePair,
    MulticastToOne,
    StalePsn,
    FuturePsn,
    StrayResponse,
    Notification,
    WrongService,
    WrongSource,
    Management,
    WrongQkey,
    NoPacket,
}

use Kind::*;

pub(crate) const KINDS: [Kind; 20] = [
    RandomBytes,
    Empty,
    Oversized,
    Truncated,
    BitsFlipped,
    ReplayedAsItWas,
    Replayed,
    BadIcrc,
    WrongPartition,
    UnknownQueuePair,
    MulticastToOne,
    StalePsn,
    FuturePsn,
    StrayResponse,
    Notification,
    WrongService,
    WrongSource,
    Management,
    WrongQkey,
    NoPacket,
];

/// Packets between two looks at how far the victim has got, so that its socket does not overflow.
const BURST: i64 = 48;

/// How far a PSN is from what is expected, at least, and by how much more at most. No test sends as many packets
/// on one connection as bring such a PSN into reach.
const FAR: u32 = 1 << 21;

pub(crate) struct Attacker {
    rng: ChaCha8Rng,
    /// A socket of its own address, and one of the peer's with another port.
    own: UdpSocket,
    spoofing: UdpSocket,
    victim: IpAddr,
    nic: Nic,
    udp: Arc<UdpCounters>,
    tape: Tape,
    targets: Vec<Target>,
    packet: Vec<u8>,
    sent: [u64; KINDS.len()],
    used: HashSet<Kind>,
}

impl Attacker {
    pub(crate) fn new(traffic: &Traffic, seed: u64) -> Attacker {
        let [peer, victim] = traffic.addresses();
        Attacker {
            rng: ChaCha8Rng::seed_from_u64(seed ^ 0xbad),
            own: UdpSocket::bind((support::address(), 0)).unwrap(),
            spoofing: UdpSocket::bind((peer, 0)).unwrap(),
            victim,
            nic: traffic.victim.nic.clone(),
            udp: Arc::clone(&traffic.victim.udp),
            tape: Arc::clone(&traffic.tape),
            targets: traffic.targets(),
            packet: Vec::with_capacity(1 << 16),
            sent: [0; KINDS.len()],
            used: HashSet::new(),
        }
    }

    pub(crate) fn attack(&mut self, packets: u64) {
        let mut room = BURST;
        for n in 1..=packets {
            let kind = KINDS[self.below(KINDS.len())];
            let spoofed = self.make(kind);
            self.send(spoofed);
            self.note(kind);
            // Large ones fill a socket's buffer soon.
            room -= (1 + self.packet.len() as i64 / 1000).min(room);
            if room == 0 || n == packets {
                self.catch_up();
                room = BURST;
            }
        }
    }

    fn note(&mut self, kind: Kind) {
        self.sent[kind as usize] += 1;
        self.used.insert(kind);
    }

    pub(crate) fn kinds_used(&self) -> usize {
        self.used.len()
    }

    fn sent(&self, kind: Kind) -> u64 {
        self.sent[kind as usize]
    }

    /// The causes that nothing but an attack has, against what was sent.
    pub(crate) fn check(&self, counters: &Counters, discarded: u64) {
        let exact = [
            ("discarded by the link", discarded, self.sent(Empty)),
            ("rx_wrong_source", counters.rx_wrong_source, self.sent(WrongSource)),
            ("bad_pkey_cntr", counters.bad_pkey_cntr, self.sent(WrongPartition)),
            ("rx_wrong_service", counters.rx_wrong_service, self.sent(WrongService)),
            ("qkey_viol_cntr", counters.qkey_viol_cntr, self.sent(WrongQkey)),
        ];
        for (name, counted, sent) in exact {
            assert_eq!(counted, sent, "{name}: {counters:#?}");
        }
        assert!(counters.rx_malformed >= self.sent(NoPacket), "{counters:#?}");
        let unknown = self.sent(UnknownQueuePair) + self.sent(MulticastToOne);
        assert!(counters.rx_unknown_qp >= unknown, "{counters:#?}");
        assert!(counters.rx_icrc_encapsulated >= self.sent(BadIcrc), "{counters:#?}");
        assert!(counters.duplicate_request >= self.sent(StalePsn), "{counters:#?}");
        assert!(counters.out_of_seq_request >= self.sent(FuturePsn), "{counters:#?}");
        assert!(counters.unexpected_response >= self.sent(StrayResponse), "{counters:#?}");
    }

    /// Waits until the victim has looked at everything that was sent.
    fn catch_up(&mut self) {
        // It is behind all others in the socket, and nothing else is counted like it.
        let spoofed = self.make(WrongSource);
        self.send(spoofed);
        self.note(WrongSource);
        let give_up = Instant::now() + HANG;
        let target = self.sent(WrongSource);
        while self.nic.counters().rx_wrong_source < target {
            assert!(
                Instant::now() < give_up,
                "the victim does not get on: {:#?}, link {:?}",
                self.nic.counters(),
                self.udp
            );
            std::thread::sleep(Duration::from_micros(30));
        }
    }

    fn send(&mut self, spoofed: bool) {
        let socket = if spoofed { &self.spoofing } else { &self.own };
        // A full buffer on our side, or an error that an earlier packet met, is none of this one's.
        while socket.send_to(&self.packet, (self.victim, ROCE_PORT)).is_err() {
            std::thread::yield_now();
        }
    }

    // ---- Dice -------------------------------------------------------------------------------

    fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u32() as usize) % n
    }

    fn target(&mut self, accepts: impl Fn(QpType) -> bool) -> Target {
        let fitting: Vec<Target> = self.targets.iter().copied().filter(|t| accepts(t.qp_type)).collect();
        fitting[self.below(fitting.len())]
    }

    /// A number that is no queue pair of the victim.
    fn stranger(&mut self) -> u32 {
        loop {
            let qpn = self.rng.next_u32() & 0x00ff_ffff;
            if qpn > 1 && qpn != 0x00ff_ffff && self.targets.iter().all(|target| target.qpn != qpn) {
                return qpn;
            }
        }
    }

    /// An operation that the service has.
    fn operation(&mut self, service: Service, fits: impl Fn(Operation) -> bool) -> Opcode {
        loop {
            let operation = Operation::ALL[self.below(Operation::ALL.len())];
            let opcode = Opcode::new(service, operation);
            if fits(operation) && opcode.operation().is_some() {
                return opcode;
            }
        }
    }

    /// A PSN long gone (behind) or long to come.
    fn far(&mut self, from: u32, ahead: bool) -> Psn {
        let by = self.rng.next_u32() % FAR;
        match ahead {
            true => Psn::new(from).add(2 * FAR + by),
            false => Psn::new(from).sub(1 + by),
        }
    }

    // ---- Packets ----------------------------------------------------------------------------

    /// Headers of `bth`, with random extension headers and payload, and room for the ICRC.
    fn write(&mut self, bth: Bth) {
        let extension = bth.opcode.layout().map_or(0, Layout::len);
        let extension = extension + if bth.opcode.has_xrceth() { 4 } else { 0 };
        let payload = 4 * self.below(100);
        self.packet.clear();
        self.packet.extend(bth.emit());
        self.packet.resize(Bth::LEN + extension + payload, 0);
        self.rng.fill_bytes(&mut self.packet[Bth::LEN..]);
    }

    /// Puts the ICRC behind what is written.
    fn seal(&mut self, spoofed: bool) {
        let socket = if spoofed { &self.spoofing } else { &self.own };
        let own = socket.local_addr().unwrap();
        let flow = Flow { source: own.ip(), destination: self.victim, source_port: own.port() };
        let icrc = icrc::compute(&flow, 0, &self.packet);
        self.packet.extend(icrc);
    }

    /// A packet of the peer, as it was sent; random bytes as long as there is none.
    fn captured(&mut self) {
        let tape = self.tape.lock().unwrap();
        self.packet.clear();
        match tape.len() {
            0 => self.packet.resize(64, 0xff),
            len => self.packet.extend_from_slice(&tape[self.rng.next_u32() as usize % len]),
        }
    }

    /// What the peer sent, so that it is right from the port of the spoofing socket.
    fn forged_replay(&mut self) {
        self.captured();
        self.packet.truncate(self.packet.len() - icrc::LEN);
        self.seal(true);
    }

    /// A packet to a queue pair of the victim that is right but for its PSN, which is long gone.
    fn forged(&mut self, change: impl FnOnce(&mut Bth)) {
        let target = self.target(|qp_type| qp_type == QpType::Rc);
        let opcode = self.operation(Service::Rc, Operation::is_request);
        let psn = self.far(target.psns[0], false);
        let mut bth = Bth::new(opcode, Qpn::new(target.qpn), psn);
        change(&mut bth);
        self.write(bth);
    }

    fn datagram(&mut self, qpn: u32, qkey: u32) {
        let opcode = self.operation(Service::Ud, |_| true);
        let psn = Psn::new(self.rng.next_u32());
        self.write(Bth::new(opcode, Qpn::new(qpn), psn));
        let deth = Deth { qkey, source_qpn: Qpn::new(self.rng.next_u32()) };
        self.packet[Bth::LEN..Bth::LEN + Deth::LEN].copy_from_slice(&deth.emit());
    }

    /// Makes the next packet; says whether it is to come from the peer's address.
    fn make(&mut self, kind: Kind) -> bool {
        let coin = self.rng.next_u32() & 1 == 0;
        match kind {
            RandomBytes => {
                let len = 1 + self.below(300);
                self.random(len);
                return coin;
            }
            Empty => self.packet.clear(),
            Oversized => {
                let longest = if self.below(32) == 0 { 60_000 } else { 2_000 };
                let more = 4 * self.below(longest / 4);
                // A packet in all but its length, now and then with its ICRC.
                self.forged(|_| {});
                self.packet.resize(5000 + more, 7);
                if coin {
                    self.seal(true);
                }
            }
            Truncated => {
                self.forged_replay();
                let len = 1 + self.below(self.packet.len() - 1);
                self.packet.truncate(len);
            }
            BitsFlipped => {
                self.forged_replay();
                for _ in 0..1 + self.below(8) {
                    let bit = self.below(8 * self.packet.len());
                    self.packet[bit / 8] ^= 1 << (bit % 8);
                }
            }
            ReplayedAsItWas => self.captured(),
            Replayed => self.forged_replay(),
            BadIcrc => {
                self.forged(|_| {});
                self.seal(true);
                let last = self.packet.len() - 1;
                // The upper half of it does not depend on the IP identification alone.
                self.packet[last - 3 + self.rng.next_u32() as usize % 4] ^= 0x55;
                self.packet[last] ^= 0xa0;
            }
            WrongPartition => {
                let pkey = 0x1234 ^ (self.rng.next_u32() as u16 & 0x8fff);
                self.forged(|bth| bth.pkey = pkey);
                self.seal(true);
            }
            UnknownQueuePair => {
                let qpn = Qpn::new(self.stranger());
                self.forged(|bth| bth.dest_qpn = qpn);
                self.seal(true);
            }
            MulticastToOne => {
                self.datagram(Qpn::MULTICAST.value(), QKEY);
                self.seal(coin);
                return coin;
            }
            StalePsn => {
                self.forged(|bth| bth.ack_request = coin);
                self.seal(true);
            }
            FuturePsn => {
                let target = self.target(|qp_type| qp_type == QpType::Rc);
                let psn = self.far(target.psns[0], true);
                self.forged(|bth| (bth.psn, bth.dest_qpn) = (psn, Qpn::new(target.qpn)));
                self.seal(true);
            }
            StrayResponse => {
                let target = self.target(|qp_type| qp_type == QpType::Rc);
                let opcode = self.operation(Service::Rc, Operation::is_response);
                let psn = self.far(target.psns[1], coin);
                self.write(Bth::new(opcode, Qpn::new(target.qpn), psn));
                self.seal(true);
            }
            Notification => {
                let target = self.target(|qp_type| qp_type != QpType::Ud);
                let psn = self.far(target.psns[1], coin);
                let rc = target.qp_type == QpType::Rc && self.rng.next_u32() & 1 == 0;
                let opcode = if rc { Opcode::MISSING } else { Opcode::CNP };
                self.write(Bth::new(opcode, Qpn::new(target.qpn), psn));
                self.seal(true);
            }
            WrongService => {
                let target = self.target(|_| true);
                let service = match target.qp_type {
                    QpType::Rc => [Service::Uc, Service::Ud, Service::Xrc],
                    QpType::Uc => [Service::Rc, Service::Ud, Service::Xrc],
                    _ => [Service::Rc, Service::Uc, Service::Xrc],
                }[self.below(3)];
                let opcode = self.operation(service, |_| true);
                let psn = Psn::new(target.psns[0]);
                self.write(Bth::new(opcode, Qpn::new(target.qpn), psn));
                self.seal(true);
            }
            WrongSource => {
                // Whatever PSN it has: the expected one, now and then.
                let target = self.target(|qp_type| qp_type != QpType::Ud);
                let service = if target.qp_type == QpType::Rc { Service::Rc } else { Service::Uc };
                let opcode = self.operation(service, |_| true);
                let psn = Psn::new(target.psns[0]).add(self.rng.next_u32() % 4096);
                self.write(Bth::new(opcode, Qpn::new(target.qpn), psn));
                self.seal(false);
                return false;
            }
            Management => {
                self.datagram(Qpn::GSI.value(), 0x8001_0000);
                self.packet.truncate(Bth::LEN + Deth::LEN);
                self.packet[0] = Opcode::new(Service::Ud, Operation::SendOnly).value();
                let deth = Deth { qkey: 0x8001_0000, source_qpn: Qpn::GSI };
                self.packet[Bth::LEN..].copy_from_slice(&deth.emit());
                let len = self.packet.len();
                self.packet.resize(len + 256, 0);
                let body = &mut self.packet[len..];
                self.rng.fill_bytes(body);
                // The header of a connection manager's MAD, now and then.
                if coin {
                    body[..4].copy_from_slice(&[1, 7, 2, 3]);
                }
                self.seal(coin);
                return coin;
            }
            WrongQkey => {
                let target = self.target(|qp_type| qp_type == QpType::Ud);
                let qkey = QKEY ^ (1 << self.below(32));
                self.datagram(target.qpn, qkey);
                self.seal(coin);
                return coin;
            }
            NoPacket => {
                self.forged(|_| {});
                // Another version, or an opcode that there is not.
                if coin {
                    self.packet[1] |= 1 + (self.rng.next_u32() as u8) % 15;
                } else {
                    self.packet[0] = 0x1f;
                }
                self.seal(true);
            }
        }
        true
    }

    fn random(&mut self, len: usize) {
        self.packet.clear();
        self.packet.resize(len, 0);
        self.rng.fill_bytes(&mut self.packet);
    }
}
