//! What forged, replayed and guessed packets can do: docs/security.md says it, and these tests show it.

mod pipe;
mod tap;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyverbs_nic::cm::{ConnectParams, PortSpace, ServiceId, Usage};
use anyverbs_nic::*;
use anyverbs_wire::mad::{self, Message, Rtu};
use anyverbs_wire::{
    Aeth, Bth, Deth, Ext, NakCode, Opcode, Operation, Packet, Psn, Qpn, Repr, Reth, Service, Syndrome,
};

const ALL: Access = Access::all();
const STRANGER: [u8; 4] = [10, 6, 6, 6];

struct Side {
    nic: Nic,
    pd: Pd,
    cq: Cq,
    block: Arc<Block>,
    mr: Mr,
    qp: Qp,
    knobs: Arc<tap::Knobs>,
}

fn side((link, knobs): (tap::Tap, Arc<tap::Knobs>)) -> Side {
    let nic = Nic::open(Box::new(link), NicConfig::default()).unwrap();
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(64).unwrap();
    let block = Arc::new(Block::new(1 << 16).unwrap());
    // Half of the block: the other half is nobody's.
    let mr = pd.register(Arc::clone(&block), 0..1 << 15, ALL).unwrap();
    let qp = create_qp(&pd, &cq);
    Side { nic, pd, cq, block, mr, qp, knobs }
}

fn create_qp(pd: &Pd, cq: &Cq) -> Qp {
    pd.create_qp(QpInit { max_send_wr: 8, max_recv_wr: 8, signal_all: true, ..QpInit::new(cq) }).unwrap()
}

/// `a`, which is attacked or impersonated, and `b`, the victim.
fn pair() -> [Side; 2] {
    pair_with(ALL)
}

/// The same, with what peers may do through the victim's queue pair.
fn pair_with(access: Access) -> [Side; 2] {
    let sides = tap::pair().map(side);
    let [a, b] = &sides;
    for (own, peer, access) in [(a, b, ALL), (b, a, access)] {
        own.qp.to_init(access).unwrap();
        let rtr = RtrAttributes {
            peer: peer.address(),
            dest_qpn: peer.qp.qpn(),
            rq_psn: peer.qp.initial_psn(),
            path_mtu: Mtu::B1024,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
        };
        own.qp.to_rtr(rtr).unwrap();
        let sq_psn = own.qp.initial_psn();
        own.qp
            .to_rts(RtsAttributes { sq_psn, max_rd_atomic: 4, retry_cnt: 7, rnr_retry: 7, timeout: 17 })
            .unwrap();
    }
    sides
}

impl Side {
    fn address(&self) -> IpAddr {
        self.nic.attributes().gid
    }

    fn write(&self, wr_id: u64, rkey: u32, addr: u64) {
        let sges = [Sge { addr: 0, len: 8, key: self.mr.key() }];
        let op = SendOp::Write { addr, rkey };
        let wr = SendWr::new(wr_id, op, &sges);
        self.qp.post_send(&[wr]).unwrap();
    }

    fn completion(&self) -> WcStatus {
        let late = self.nic.waiter().now() + Duration::from_secs(30);
        assert!(self.cq.wait(Some(late)), "no completion");
        let mut out = [Cqe::EMPTY];
        assert_eq!(self.cq.poll(&mut out), 1);
        out[0].status
    }

    /// Lets a datagram arrive as if `source` had sent it, and waits until it was looked at.
    fn arrives(&self, source: IpAddr, datagram: Vec<u8>) {
        self.knobs.forged.lock().unwrap().push_back((source, datagram));
        while !self.knobs.forged.lock().unwrap().is_empty() {
            self.nic.progress();
        }
        // The pass that took it is over when this one could begin.
        while !self.nic.progress() {
            std::thread::yield_now();
        }
    }

    /// The counters that a datagram moves.
    fn moved(&self, source: IpAddr, datagram: Vec<u8>) -> Vec<(&'static str, u64)> {
        let before = self.nic.counters();
        self.arrives(source, datagram);
        let after = self.nic.counters();
        let all = after.iter().zip(before.iter());
        all.filter(|(after, before)| after != before)
            .map(|(after, before)| (after.0, after.1 - before.1))
            .collect()
    }

    /// Nothing of what matters has changed: the connection works, and the memory is as it was.
    fn is_unharmed(&self, peer: &Side) {
        assert_eq!(self.qp.state(), QpState::ReadyToSend);
        assert_eq!(self.block.load_u64(64), Ok(0));
        peer.write(1, self.mr.key(), 128);
        assert_eq!(peer.completion(), WcStatus::Success);
    }
}

/// A WRITE of eight bytes to address 64 of `b`, as `a` would send it next.
fn forged_write(a: &Side, b: &Side) -> (Repr, [u8; 8]) {
    let opcode = Opcode::new(Service::Rc, Operation::WriteOnly);
    let mut bth = Bth::new(opcode, Qpn::new(b.qp.qpn()), Psn::new(a.qp.initial_psn()));
    bth.ack_request = true;
    let reth = Reth { va: 64, rkey: b.mr.key(), len: 8 };
    (Repr { bth, xrc_srqn: None, ext: Ext::Reth(reth) }, [0xee; 8])
}

fn sealed(a: &Side, b: &Side, header: &Repr, payload: &[u8]) -> Vec<u8> {
    tap::datagram(a.address(), b.address(), header, payload)
}

/// What an observer of everything could send from the peer's address is believed. So the tests below are of
/// packets that really would do harm if their one flaw were overlooked.
#[test]
fn a_packet_without_a_flaw_is_believed() {
    let [a, b] = pair();
    let (header, payload) = forged_write(&a, &b);
    b.arrives(a.address(), sealed(&a, &b, &header, &payload));
    assert_eq!(b.block.load_u64(64), Ok(u64::from_ne_bytes(payload)));
}

#[test]
fn a_packet_with_one_flaw_is_counted_and_changes_nothing() {
    let [a, b] = pair();
    let (good, payload) = forged_write(&a, &b);
    let change = |change: fn(&mut Repr)| {
        let mut header = good;
        change(&mut header);
        sealed(&a, &b, &header, &payload)
    };
    let (peer, stranger) = (a.address(), IpAddr::from(STRANGER));
    let from_stranger = tap::datagram(stranger, b.address(), &good, &payload);
    assert_eq!(b.moved(stranger, from_stranger), [("rx_wrong_source", 1)]);
    let other_qpn = change(|header| header.bth.dest_qpn = Qpn::new(header.bth.dest_qpn.value() ^ 0x80_0000));
    assert_eq!(b.moved(peer, other_qpn), [("rx_unknown_qp", 1)]);
    let other_partition = change(|header| header.bth.pkey = 0x8001);
    assert_eq!(b.moved(peer, other_partition), [("bad_pkey_cntr", 1)]);
    let unreliable = change(|header| {
        header.bth.opcode = Opcode::new(Service::Uc, Operation::WriteOnly);
    });
    assert_eq!(b.moved(peer, unreliable), [("rx_wrong_service", 1)]);
    let mut corrupt = sealed(&a, &b, &good, &payload);
    corrupt[30] ^= 1;
    assert_eq!(b.moved(peer, corrupt), [("rx_icrc_encapsulated", 1)]);
    let mut short = sealed(&a, &b, &good, &payload);
    short.truncate(20);
    assert_eq!(b.moved(peer, short), [("rx_malformed", 1)]);
    // A PSN that is over is one of a request that was executed; the peer hears so and nothing happens.
    let old = change(|header| header.bth.psn = header.bth.psn.sub(5));
    let moved = b.moved(peer, old);
    assert!(moved.contains(&("duplicate_request", 1)), "{moved:?}");
    assert!(!b.cq.wait(Some(Time::ZERO)), "and no program hears of any");
    b.is_unharmed(&a);
}

/// A guessed PSN is right with a probability of window / 2^24; one that is ahead is not executed before
/// what stands in between has come.
#[test]
fn a_guessed_psn_that_is_ahead_is_not_executed() {
    let [a, b] = pair();
    let (mut header, payload) = forged_write(&a, &b);
    header.bth.psn = header.bth.psn.add(1 << 20);
    let moved = b.moved(a.address(), sealed(&a, &b, &header, &payload));
    assert!(moved.contains(&("out_of_seq_request", 1)), "{moved:?}");
    b.is_unharmed(&a);
}

#[test]
fn a_packet_that_comes_again_is_not_executed_again() {
    let [a, b] = pair();
    a.block.store_u64(0, 7).unwrap();
    a.write(1, b.mr.key(), 64);
    assert_eq!(a.completion(), WcStatus::Success);
    assert_eq!(b.block.load_u64(64), Ok(7));
    b.block.store_u64(64, 0).unwrap();
    let sent = a.knobs.sent.lock().unwrap().clone();
    let write = sent
        .into_iter()
        .find(|datagram| {
            let packet = Packet::new_checked(&datagram[..]).unwrap();
            packet.operation() == Some(Operation::WriteOnly)
        })
        .unwrap();
    let moved = b.moved(a.address(), write);
    assert!(moved.contains(&("duplicate_request", 1)), "{moved:?}");
    b.is_unharmed(&a);
}

/// Keys are checked for each packet, with their domain, range and rights. The peer that tries is cut off.
#[test]
fn memory_that_was_not_granted_is_not_touched() {
    let elsewhere = |b: &Side| b.nic.alloc_pd().unwrap();
    let region =
        |pd: &Pd, block: &Arc<Block>, access| pd.register(Arc::clone(block), 0..1 << 15, access).unwrap();
    type Setup<'a> = Box<dyn Fn(&Side) -> (Option<Mr>, u32, u64) + 'a>;
    let cases: [(&str, Setup<'_>); 5] = [
        ("a guessed key", Box::new(|b| (None, b.mr.key() ^ 0x1357, 64))),
        (
            "a key of another domain",
            Box::new(|b| {
                let mr = region(&elsewhere(b), &b.block, ALL);
                let key = mr.key();
                (Some(mr), key, 64)
            }),
        ),
        (
            "a region that is for reading",
            Box::new(|b| {
                let mr = region(&b.pd, &b.block, Access::REMOTE_READ);
                let key = mr.key();
                (Some(mr), key, 64)
            }),
        ),
        ("memory behind the region", Box::new(|b| (None, b.mr.key(), 1 << 15))),
        ("a region that is gone", Box::new(|b| (None, region(&b.pd, &b.block, ALL).key(), 64))),
    ];
    for (name, setup) in cases {
        let [a, b] = pair();
        let (_mr, key, addr) = setup(&b);
        is_refused(name, &a, &b, key, addr);
    }
    // A region that is for writing, behind a queue pair that is not.
    let [a, b] = pair_with(Access::REMOTE_READ);
    is_refused("a queue pair that is for reading", &a, &b, b.mr.key(), 64);
}

fn is_refused(name: &str, a: &Side, b: &Side, key: u32, addr: u64) {
    a.block.store_u64(0, 7).unwrap();
    a.write(1, key, addr);
    assert_eq!(a.completion(), WcStatus::RemAccessErr, "{name}");
    assert_eq!((b.block.load_u64(64), b.block.load_u64(1 << 15)), (Ok(0), Ok(0)), "{name}");
    assert_eq!(b.qp.state(), QpState::Error, "{name}");
    assert_eq!(b.nic.counters().resp_remote_access_errors, 1, "{name}");
}

/// The limit of what can be done without authentication: whoever can send from the peer's address, and
/// knows queue pair and PSN, ends the connection. The PSN is random, so that has to be seen or guessed.
#[test]
fn a_forged_packet_from_the_peers_address_can_end_a_queue_pair() {
    let [a, b] = pair();
    let (mut header, payload) = forged_write(&a, &b);
    header.bth.opcode = Opcode::new(Service::Rc, Operation::WriteLast);
    header.ext = Ext::None;
    b.arrives(a.address(), sealed(&a, &b, &header, &payload));
    assert_eq!(b.qp.state(), QpState::Error);
    assert_eq!(b.nic.counters().resp_remote_invalid_requests, 1);

    let [a, b] = pair();
    a.knobs.lose(|_| true);
    a.write(1, b.mr.key(), 128);
    let opcode = Opcode::new(Service::Rc, Operation::Acknowledge);
    let aeth = Aeth { syndrome: Syndrome::Nak(NakCode::RemoteAccess), msn: 0 };
    let nak =
        |psn| Repr { bth: Bth::new(opcode, Qpn::new(a.qp.qpn()), psn), xrc_srqn: None, ext: Ext::Aeth(aeth) };
    let psn = Psn::new(a.qp.initial_psn());
    // With a PSN of nothing that is outstanding, it is nothing.
    a.arrives(b.address(), tap::datagram(b.address(), a.address(), &nak(psn.add(1 << 22)), &[]));
    assert_eq!(a.qp.state(), QpState::ReadyToSend);
    a.arrives(b.address(), tap::datagram(b.address(), a.address(), &nak(psn), &[]));
    assert_eq!(a.completion(), WcStatus::RemAccessErr);
    assert_eq!(a.qp.state(), QpState::Error);
}

/// ReDMArk's first six: what one sees of some numbers tells nothing of the others.
#[test]
fn numbers_tell_nothing_of_one_another() {
    let devices = [0, 1].map(|_| tap::pair().map(side));
    let mut drawn: [Vec<Vec<u32>>; 3] = Default::default();
    for device in devices.iter().flatten() {
        let kept: Vec<(Mr, Qp)> = (0..200)
            .map(|_| {
                let mr = device.pd.register(Arc::clone(&device.block), 0..64, ALL).unwrap();
                (mr, create_qp(&device.pd, &device.cq))
            })
            .collect();
        drawn[0].push(kept.iter().map(|(mr, _)| mr.key()).collect());
        drawn[1].push(kept.iter().map(|(_, qp)| qp.qpn()).collect());
        drawn[2].push(kept.iter().map(|(_, qp)| qp.initial_psn()).collect());
    }
    for (numbers, bits) in drawn.iter().zip([32, 24, 24]) {
        for of_device in numbers {
            let steps: BTreeSet<u32> = of_device.windows(2).map(|two| two[1].wrapping_sub(two[0])).collect();
            assert!(steps.len() > 190, "steps repeat themselves: {of_device:x?}");
            for bit in 0..bits {
                let ones = of_device.iter().filter(|number| **number >> bit & 1 == 1).count();
                // Fewer than one in 10^12 fair coins shows this, of 200 throws.
                assert!((50..=150).contains(&ones), "bit {bit} is one {ones} times of 200");
            }
        }
        // Each device has its own generator, with a state of its own to begin with.
        let firsts: BTreeSet<u32> = numbers.iter().map(|of_device| of_device[0]).collect();
        assert_eq!(firsts.len(), numbers.len());
    }
}

/// A key that was given back is not given out again.
#[test]
fn a_key_is_not_used_again_soon() {
    let [(link, _), _] = tap::pair();
    // A seed, since of so many truly random numbers two are the same once in two thousand runs.
    let nic = Nic::open(Box::new(link), NicConfig { seed: Some(7), ..NicConfig::default() }).unwrap();
    let pd = nic.alloc_pd().unwrap();
    let block = Arc::new(Block::new(64).unwrap());
    let mut keys = BTreeSet::new();
    for _ in 0..2000 {
        let mr = pd.register(Arc::clone(&block), 0..64, ALL).unwrap();
        assert!(keys.insert(mr.key()), "again");
    }
}

#[test]
fn what_is_no_mad_is_counted_by_cause() {
    let [a, b] = tap::pair().map(side);
    let (peer, good) = (a.address(), tap::mad_header());
    let rtu = Message::Rtu(Rtu { local_comm_id: 1, remote_comm_id: 2, private_data: [0; 224] });
    let mad = mad::Repr { transaction_id: 3, status: 0, message: rtu }.emit();
    let change = |change: fn(&mut Repr)| {
        let mut header = good;
        change(&mut header);
        sealed(&a, &b, &header, &mad)
    };
    let deth = |qkey, source| Ext::Deth(Deth { qkey, source_qpn: Qpn::new(source) });
    let subnet = change(|header| header.bth.dest_qpn = Qpn::new(0));
    assert_eq!(b.moved(peer, subnet), [("rx_unknown_qp", 1)]);
    let reliable = change(|header| {
        header.bth.opcode = Opcode::new(Service::Rc, Operation::SendOnly);
        header.ext = Ext::None;
    });
    assert_eq!(b.moved(peer, reliable), [("rx_wrong_service", 1)]);
    let with_data = change(|header| {
        header.bth.opcode = Opcode::new(Service::Ud, Operation::SendOnlyImm);
        if let Ext::Deth(deth) = header.ext {
            header.ext = Ext::DethImm(deth, 0);
        }
    });
    assert_eq!(b.moved(peer, with_data), [("rx_wrong_service", 1)]);
    let other_partition = change(|header| header.bth.pkey = 0x8001);
    assert_eq!(b.moved(peer, other_partition), [("bad_pkey_cntr", 1)]);
    let header = Repr { ext: deth(0x1234, 1), ..good };
    assert_eq!(b.moved(peer, sealed(&a, &b, &header, &mad)), [("qkey_viol_cntr", 1)]);
    // A program's queue pair cannot speak for its device.
    let header = Repr { ext: deth(mad::QKEY, 0x4711), ..good };
    assert_eq!(b.moved(peer, sealed(&a, &b, &header, &mad)), [("rx_wrong_source", 1)]);
    let mut corrupt = sealed(&a, &b, &good, &mad);
    corrupt[100] ^= 1;
    assert_eq!(b.moved(peer, corrupt), [("rx_icrc_encapsulated", 1)]);
    let cm = b.nic.cm_counters();
    assert_eq!((cm.received.total(), cm.malformed), (0, 0), "none of them came so far");
    assert_eq!(b.moved(peer, sealed(&a, &b, &good, &mad[..255])), [("rcvd_pkts", 1)]);
    assert_eq!(b.nic.cm_counters().malformed, 1);
    assert_eq!(b.moved(peer, sealed(&a, &b, &good, &mad)), [("rcvd_pkts", 1)]);
    assert_eq!(b.nic.cm_counters().unknown_id, 1);
    assert_eq!(b.nic.cm_usage(), Usage::default());
}

/// Somebody else repeats what the peer has said, from the REQ to the end: none of it counts.
#[test]
fn a_stranger_that_knows_all_mads_does_not_disturb_a_connection() {
    let [a, b] = tap::pair().map(side);
    for side in [&a, &b] {
        side.qp.to_init(ALL).unwrap();
    }
    let service = ServiceId::new(PortSpace::Tcp, 1);
    let listener = b.nic.listen(service, 4).unwrap();
    let late = b.nic.waiter().now() + Duration::from_secs(30);
    let mut connecting = a.nic.connect(&a.qp, &ConnectParams::new(b.address(), service)).unwrap();
    let mut request = listener.wait(Some(late)).unwrap();
    let passive = request.accept(&b.qp, &Default::default()).unwrap();
    let active = connecting.wait(Some(late)).unwrap().unwrap();
    assert!(passive.wait(Some(late)).is_some());
    // The goodbye of the peer, which it has not said: from another address, and from its own with an id, a
    // queue pair or a transaction that is not right.
    let mads = a.knobs.mads();
    let ids = mads.iter().find_map(|mad| match &mad.message {
        Message::Rtu(rtu) => Some((rtu.local_comm_id, rtu.remote_comm_id)),
        _ => None,
    });
    let (local_comm_id, remote_comm_id) = ids.unwrap();
    let dreq =
        mad::Dreq { local_comm_id, remote_comm_id, remote_qpn: Qpn::new(b.qp.qpn()), private_data: [0; 220] };
    let forged = |source: IpAddr, dreq: mad::Dreq| {
        let mad = mad::Repr { transaction_id: 99, status: 0, message: Message::Dreq(dreq) }.emit();
        b.arrives(source, tap::datagram(source, b.address(), &tap::mad_header(), &mad));
    };
    forged(STRANGER.into(), dreq);
    assert_eq!(b.nic.cm_counters().wrong_source, 1);
    forged(a.address(), mad::Dreq { local_comm_id: local_comm_id ^ 1, ..dreq });
    forged(a.address(), mad::Dreq { remote_qpn: Qpn::new(17), ..dreq });
    assert_eq!(b.nic.cm_counters().unknown_id, 2);
    assert!(active.is_established() && passive.is_established());
    a.write(1, b.mr.key(), 128);
    assert_eq!(a.completion(), WcStatus::Success);
    // As with packets: what has no flaw is believed, so that the ids must not be seen.
    forged(a.address(), dreq);
    assert_eq!(b.qp.state(), QpState::Error);
}

/// Requests make no queue pairs, and take no more than their share of anything.
#[test]
fn a_flood_of_requests_takes_no_queue_pair_and_is_forgotten() {
    let [a, b] = tap::pair().map(side);
    let service = ServiceId::new(PortSpace::Tcp, 1);
    let listener = b.nic.listen(service, 16).unwrap();
    a.qp.to_init(ALL).unwrap();
    let connecting = a.nic.connect(&a.qp, &ConnectParams::new(b.address(), service)).unwrap();
    let mads = a.knobs.mads();
    let Message::Req(req) = mads[0].message else { panic!("a REQ comes first: {mads:?}") };
    for n in 0..2000 {
        let req = mad::Req { local_comm_id: n, qpn: Qpn::new(0x1000 + n), ..req };
        let mad = mad::Repr { transaction_id: u64::from(n), status: 0, message: Message::Req(req) }.emit();
        b.arrives(STRANGER.into(), tap::datagram(STRANGER.into(), b.address(), &tap::mad_header(), &mad));
    }
    let usage = b.nic.cm_usage();
    assert!(usage.pending <= 16 && usage.connections <= 16, "{usage:?}");
    let counters = b.nic.cm_counters();
    assert!(counters.over_quota + counters.throttled > 1900);
    drop((listener, connecting));
    assert_eq!(b.nic.cm_usage().connections, 0);
    // All the queue pairs are still to be had.
    let rest: Vec<Qp> = (0..100).map(|_| create_qp(&b.pd, &b.cq)).collect();
    assert_eq!(rest.len(), 100);
}

/// A claim without a test is a hope.
#[test]
fn each_test_that_the_document_names_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
    };
    let document = read(&root.join("docs/security.md"));
    let mut named = BTreeSet::new();
    // Every other piece between backticks is code.
    for code in document.split('`').skip(1).step_by(2) {
        if let Some((file, function)) = code.split_once(".rs:") {
            named.insert((file.to_owned(), function.to_owned()));
        }
    }
    assert!(named.len() > 20, "{named:?}");
    for (file, function) in named {
        let folder = if file.starts_with("sim/") { root.clone() } else { root.join("sim/nic/tests") };
        let source = read(&folder.join(format!("{file}.rs")));
        assert!(source.contains(&format!("#[test]\nfn {function}()")), "{file}.rs has no test {function}");
    }
}
