//! Two NICs over a pipe: the object model, errors, and progress without anybody polling.

mod pipe;

use std::sync::Arc;
use std::time::Duration;

use anyverbs_nic::*;

struct Side {
    nic: Nic,
    pd: Pd,
    cq: Cq,
    block: Arc<Block>,
    mr: Mr,
    qp: Qp,
}

const ALL: Access = Access::all();

fn side(link: pipe::Pipe, config: NicConfig) -> Side {
    let nic = Nic::open(Box::new(link), config).unwrap();
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(64).unwrap();
    let block = Arc::new(Block::new(1 << 16).unwrap());
    let mr = pd.register(Arc::clone(&block), 0..1 << 16, ALL).unwrap();
    let qp = pd
        .create_qp(QpInit {
            max_send_wr: 8,
            max_recv_wr: 8,
            max_send_sge: 4,
            max_recv_sge: 4,
            signal_all: true,
            ..QpInit::new(&cq)
        })
        .unwrap();
    Side { nic, pd, cq, block, mr, qp }
}

fn connect(a: &Side, b: &Side) {
    for (own, peer) in [(a, b), (b, a)] {
        own.qp.to_init(ALL).unwrap();
        own.qp
            .to_rtr(RtrAttributes {
                peer: peer.nic.attributes().gid,
                dest_qpn: peer.qp.qpn(),
                rq_psn: peer.qp.initial_psn(),
                path_mtu: Mtu::B1024,
                max_dest_rd_atomic: 4,
                min_rnr_timer: 1,
            })
            .unwrap();
        own.qp
            .to_rts(RtsAttributes {
                sq_psn: own.qp.initial_psn(),
                max_rd_atomic: 4,
                retry_cnt: 7,
                rnr_retry: 7,
                timeout: 14,
            })
            .unwrap();
    }
}

fn pair() -> [Side; 2] {
    let sides = pipe::pair().map(|link| side(link, NicConfig::default()));
    connect(&sides[0], &sides[1]);
    sides
}

impl Side {
    fn sge(&self, addr: u64, len: u32) -> Sge {
        Sge { addr, len, key: self.mr.key() }
    }

    fn post(&self, wr_id: u64, op: SendOp, sges: &[Sge]) -> Result<(), PostError> {
        self.qp.post_send(&[SendWr::new(wr_id, op, sges)])
    }

    /// Waits for `n` completions; fails after a while.
    fn completions(&self, n: usize) -> Vec<Cqe> {
        let deadline = self.nic.waiter().now() + Duration::from_secs(10);
        let mut got = Vec::new();
        while got.len() < n {
            assert!(self.cq.wait(Some(deadline)), "only {got:?} after ten seconds");
            let mut out = [Cqe::EMPTY; 16];
            let count = self.cq.poll(&mut out);
            got.extend_from_slice(&out[..count]);
        }
        got
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.block.read(at, &mut bytes).unwrap();
        bytes
    }
}

fn outcome(completions: &[Cqe]) -> Vec<(u64, WcStatus)> {
    completions.iter().map(|cqe| (cqe.wr_id, cqe.status)).collect()
}

#[test]
fn a_send_gathers_and_the_receive_scatters() {
    let [a, b] = pair();
    a.block.write(0, b"hello ").unwrap();
    a.block.write(100, b"world").unwrap();
    let into = [b.sge(0, 3), b.sge(1000, 0), b.sge(2000, 100)];
    b.qp.post_recv(&[RecvWr { wr_id: 77, sges: &into }]).unwrap();
    a.post(5, SendOp::SendImm(9), &[a.sge(0, 6), a.sge(100, 5)]).unwrap();
    let got = b.completions(1)[0];
    assert_eq!((got.wr_id, got.status, got.opcode), (77, WcStatus::Success, WcOpcode::Recv));
    assert_eq!((got.byte_len, got.imm, got.qpn), (11, Some(9), b.qp.qpn()));
    assert_eq!([b.bytes(0, 3), b.bytes(2000, 9)].concat(), b"hello world\0");
    let sent = a.completions(1)[0];
    assert_eq!((sent.wr_id, sent.status, sent.opcode), (5, WcStatus::Success, WcOpcode::Send));
}

#[test]
fn a_target_whose_program_sleeps_still_answers() {
    let [a, b] = pair();
    b.block.write(4096, &[7; 5000]).unwrap();
    let remote = b.mr.key();
    a.block.write(0, &[3; 3000]).unwrap();
    // Nobody touches `b` from here on: only its progress thread does.
    a.post(0, SendOp::Write { addr: 0, rkey: remote }, &[a.sge(0, 3000)]).unwrap();
    a.post(1, SendOp::Read { addr: 4096, rkey: remote }, &[a.sge(8192, 5000)]).unwrap();
    a.post(2, SendOp::FetchAdd { addr: 32768, rkey: remote, add: 5 }, &[a.sge(20000, 8)]).unwrap();
    a.post(3, SendOp::CompareSwap { addr: 32768, rkey: remote, compare: 5, swap: 6 }, &[a.sge(20008, 8)])
        .unwrap();
    let done = outcome(&a.completions(4));
    assert_eq!(done, [0, 1, 2, 3].map(|id| (id, WcStatus::Success)));
    assert_eq!(b.bytes(0, 3000), [3; 3000]);
    assert_eq!(a.bytes(8192, 5000), [7; 5000]);
    assert_eq!(a.block.load_u64(20008).unwrap(), 5);
    assert_eq!(b.block.load_u64(32768).unwrap(), 6);
}

#[test]
fn a_deregistered_region_is_refused_and_everything_behind_is_flushed() {
    let [a, mut b] = pair();
    let gone = b.mr.key();
    b.mr = b.pd.register(Arc::clone(&b.block), 0..64, ALL).unwrap();
    assert_ne!(b.mr.key(), gone);
    b.qp.post_recv(&[RecvWr { wr_id: 9, sges: &[b.sge(0, 64)] }]).unwrap();
    a.post(0, SendOp::Write { addr: 0, rkey: gone }, &[a.sge(0, 8)]).unwrap();
    a.post(1, SendOp::Send, &[a.sge(0, 8)]).unwrap();
    let expected = [(0, WcStatus::RemAccessErr), (1, WcStatus::WrFlushErr)];
    assert_eq!(outcome(&a.completions(2)), expected);
    assert_eq!(outcome(&b.completions(1)), [(9, WcStatus::WrFlushErr)]);
    // What is posted now is flushed, too.
    a.post(2, SendOp::Send, &[a.sge(0, 8)]).unwrap();
    assert_eq!(outcome(&a.completions(1)), [(2, WcStatus::WrFlushErr)]);
    b.qp.post_recv(&[RecvWr { wr_id: 10, sges: &[b.sge(0, 64)] }]).unwrap();
    assert_eq!(outcome(&b.completions(1)), [(10, WcStatus::WrFlushErr)]);
    assert_eq!([a.qp.state(), b.qp.state()], [QpState::Error; 2]);
}

#[test]
fn a_wrong_local_key_is_a_local_protection_error_on_either_side() {
    let [a, b] = pair();
    let wrong = Sge { addr: 0, len: 8, key: a.mr.key() ^ 1 };
    a.post(0, SendOp::Send, &[wrong]).unwrap();
    assert_eq!(outcome(&a.completions(1)), [(0, WcStatus::LocProtErr)]);

    let [c, d] = pair();
    let beyond = Sge { addr: 65530, len: 8, key: d.mr.key() };
    d.qp.post_recv(&[RecvWr { wr_id: 1, sges: &[beyond] }]).unwrap();
    c.post(0, SendOp::Send, &[c.sge(0, 8)]).unwrap();
    assert_eq!(outcome(&d.completions(1)), [(1, WcStatus::LocProtErr)]);
    let read = Sge { addr: 0, len: 8, key: 1 };
    let [e, f] = pair();
    e.post(3, SendOp::Read { addr: 0, rkey: f.mr.key() }, &[read]).unwrap();
    assert_eq!(outcome(&e.completions(1)), [(3, WcStatus::LocProtErr)]);
    drop(b);
}

#[test]
fn full_queues_and_wrong_states_are_refused() {
    let [a, b] = pair();
    for id in 0..8 {
        b.qp.post_recv(&[RecvWr { wr_id: id, sges: &[] }]).unwrap();
    }
    let refused = b.qp.post_recv(&[RecvWr { wr_id: 8, sges: &[] }]).unwrap_err();
    assert_eq!((refused.index, refused.reason), (0, PostReason::QueueFull));
    let five = [a.sge(0, 1); 5];
    assert_eq!(a.post(0, SendOp::Send, &five).unwrap_err().reason, PostReason::TooManySges);
    let op = SendOp::FetchAdd { addr: 0, rkey: 0, add: 0 };
    assert_eq!(a.post(0, op, &[a.sge(0, 4)]).unwrap_err().reason, PostReason::BadLength);
    let refused = a.pd.register(Arc::clone(&a.block), 0..8, Access::REMOTE_WRITE);
    assert!(matches!(refused, Err(NicError::AccessFlags { .. })));
    let [c, _d] = pipe::pair().map(|link| side(link, NicConfig::default()));
    assert_eq!(c.post(0, SendOp::Send, &[]).unwrap_err().reason, PostReason::BadState);
    assert!(matches!(c.qp.to_error(), Err(NicError::State { .. })));
}

#[test]
fn a_destroyed_queue_pair_leaves_no_completion_behind() {
    let [a, b] = pair();
    for id in 0..8 {
        b.qp.post_recv(&[RecvWr { wr_id: id, sges: &[b.sge(0, 8)] }]).unwrap();
    }
    b.qp.to_error().unwrap();
    assert!(b.cq.wait(Some(b.nic.waiter().now() + Duration::from_secs(10))));
    let Side { nic, cq, qp, .. } = b;
    drop(qp);
    assert!(!cq.wait(Some(nic.waiter().now() + Duration::from_millis(20))));
    drop(a);
}

#[test]
fn datagrams_that_are_not_ours_are_counted_by_cause() {
    use anyverbs_nic::link::{Link, TxBatch};
    let [mut stranger, own] = pipe::pair();
    let b = side(own, NicConfig { seed: Some(1), ..NicConfig::default() });
    let mut batch = TxBatch::with_capacity(4096, 4);
    let destination = b.nic.attributes().gid;
    batch.push(destination, 4791, 0, 3).unwrap().fill(0xff);
    let datagram = batch.push(destination, 4791, 0, 16).unwrap();
    datagram.fill(0);
    datagram[0] = 4; // RC SEND_ONLY
    datagram[7] = 5;
    stranger.transmit(&mut batch, Time::ZERO).unwrap();
    for _ in 0..1000 {
        b.nic.progress();
        if b.nic.counters().rx_unknown_qp == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let counters = b.nic.counters();
    assert_eq!((counters.rx_malformed, counters.rx_unknown_qp, counters.rcvd_pkts), (1, 1, 0));
}

#[test]
fn one_seed_draws_the_same_numbers_again() {
    let draw = |seed| {
        let [link, _] = pipe::pair();
        let side = side(link, NicConfig { seed, ..NicConfig::default() });
        (side.qp.qpn(), side.qp.initial_psn(), side.mr.key())
    };
    assert_eq!(draw(Some(3)), draw(Some(3)));
    assert_ne!(draw(Some(3)), draw(Some(4)));
    assert_ne!(draw(None), draw(None));
}

#[test]
fn more_than_a_window_waits_for_its_acknowledgements() {
    let [a, b] = pair();
    let sges = [a.sge(0, 1 << 16)];
    let (addr, rkey) = (0, b.mr.key());
    // Reads and writes by turns, a quarter of a MiB of each at a time: two windows.
    let mut done = Vec::new();
    let mut posted = 0;
    while done.len() < 32 {
        while posted < 32 && posted - done.len() < 8 {
            let id = posted as u64;
            let op = if id % 8 < 4 { SendOp::Write { addr, rkey } } else { SendOp::Read { addr, rkey } };
            a.post(id, op, &sges).unwrap();
            posted += 1;
        }
        done.extend(outcome(&a.completions(1)));
    }
    assert_eq!(done, (0..32).map(|id| (id, WcStatus::Success)).collect::<Vec<_>>());
}

#[test]
fn flush_and_atomic_write_are_done_and_answered() {
    let [a, b] = pair();
    a.block.store_u64(0, 0x0102_0304_0506_0708).unwrap();
    let rkey = b.mr.key();
    a.post(1, SendOp::AtomicWrite { addr: 64, rkey }, &[a.sge(0, 8)]).unwrap();
    a.post(2, SendOp::Flush { addr: 64, rkey, len: Some(8) }, &[]).unwrap();
    a.post(3, SendOp::Flush { addr: 0, rkey, len: None }, &[]).unwrap();
    let done = a.completions(3);
    assert_eq!(outcome(&done), [1, 2, 3].map(|wr_id| (wr_id, WcStatus::Success)));
    let opcodes: Vec<WcOpcode> = done.iter().map(|cqe| cqe.opcode).collect();
    assert_eq!(opcodes, [WcOpcode::AtomicWrite, WcOpcode::Flush, WcOpcode::Flush]);
    assert_eq!(b.block.load_u64(64), Ok(0x0102_0304_0506_0708));
    let reason = |result: Result<(), PostError>| result.map_err(|error| error.reason);
    let bad = Err(PostReason::BadLength);
    assert_eq!(reason(a.post(4, SendOp::AtomicWrite { addr: 64, rkey }, &[a.sge(0, 4)])), bad);
    assert_eq!(reason(a.post(5, SendOp::Flush { addr: 0, rkey, len: None }, &[a.sge(0, 8)])), bad);
    a.post(6, SendOp::Flush { addr: (1 << 16) - 4, rkey, len: Some(8) }, &[]).unwrap();
    assert_eq!(outcome(&a.completions(1)), [(6, WcStatus::RemAccessErr)]);
}

/// Regions are not for peers to invalidate.
#[test]
fn a_send_that_invalidates_a_region_is_refused() {
    let [a, b] = pair();
    b.qp.post_recv(&[RecvWr { wr_id: 7, sges: &[b.sge(0, 8)] }]).unwrap();
    a.post(1, SendOp::SendInvalidate(b.mr.key()), &[a.sge(0, 8)]).unwrap();
    assert_eq!(outcome(&a.completions(1)), [(1, WcStatus::RemAccessErr)]);
    assert_eq!(outcome(&b.completions(1)), [(7, WcStatus::RemInvReqErr)]);
}
