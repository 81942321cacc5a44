//! A peer whose packets leave with IP identifications that the link does not show, as kernel rxe's do.

mod pipe;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, TxBatch, Waiter};
use anyverbs_nic::*;
use anyverbs_wire::icrc;

/// A link whose datagrams leave with IP identifications that count up.
struct Numbered {
    inner: pipe::Pipe,
    next: u16,
    /// By how much they grow.
    step: u16,
    /// What its datagrams' ICRC is off by.
    wrong: u8,
    /// How often it was asked to show identifications.
    asked: Arc<AtomicU32>,
}

impl Link for Numbered {
    fn info(&self) -> &LinkInfo {
        self.inner.info()
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.inner.waiter()
    }

    fn path_max_datagram(&self, peer: IpAddr) -> usize {
        self.inner.path_max_datagram(peer) / 2
    }

    fn reveal_ids(&mut self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        for n in 0..batch.len() {
            let range = batch.entries()[n].range();
            let len = range.len();
            let tail = batch.bytes_mut()[range].last_chunk_mut().unwrap();
            *tail = icrc::correct_id(*tail, len, self.next);
            tail[2] ^= self.wrong;
            self.next = self.next.wrapping_add(self.step);
        }
        self.inner.transmit(batch, now)
    }

    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        self.inner.receive(batch, now)
    }
}

/// Connects two NICs, and sends 50 messages from the first to the second. Returns the counters of the
/// second, how often its link was asked to show identifications, and how the first message ended.
fn run(wrong: u8) -> (Counters, u32, WcStatus) {
    let [a, b] = pipe::pair();
    let asked = Arc::<AtomicU32>::default();
    let a = Numbered { inner: a, next: 0xFFF0, step: 1, wrong, asked: Arc::default() };
    let b = Numbered { inner: b, next: 0, step: 0, wrong: 0, asked: Arc::clone(&asked) };
    let nics = [
        Nic::open(Box::new(a), NicConfig::default()).unwrap(),
        Nic::open(Box::new(b), NicConfig::default()).unwrap(),
    ];
    let sides = nics.clone().map(|nic| {
        let pd = nic.alloc_pd().unwrap();
        let cq = nic.create_cq(128).unwrap();
        let init = QpInit { max_send_wr: 64, max_recv_wr: 64, signal_all: true, ..QpInit::new(&cq) };
        let qp = pd.create_qp(init).unwrap();
        (cq, qp)
    });
    let [(cq_a, qp_a), (_, qp_b)] = &sides;
    for (qp, peer, nic) in [(qp_a, qp_b, &nics[1]), (qp_b, qp_a, &nics[0])] {
        qp.to_init(Access::all()).unwrap();
        qp.to_rtr(RtrAttributes {
            peer: nic.attributes().gid,
            dest_qpn: peer.qpn(),
            rq_psn: peer.initial_psn(),
            path_mtu: Mtu::B1024,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 1,
        })
        .unwrap();
        qp.to_rts(RtsAttributes {
            sq_psn: qp.initial_psn(),
            max_rd_atomic: 1,
            retry_cnt: 3,
            rnr_retry: 7,
            timeout: 10,
        })
        .unwrap();
    }
    let block = Arc::new(Block::new(4096).unwrap());
    let mr = qp_b.pd().unwrap().register(block, 0..4096, Access::all()).unwrap();
    let sges = [Sge { addr: 0, len: 64, key: mr.key() }];
    for wr_id in 0..50 {
        qp_b.post_recv(&[RecvWr { wr_id, sges: &sges }]).unwrap();
    }
    for wr_id in 0..50 {
        let op = SendOp::Send;
        let inline = Some(&b"hello"[..]);
        qp_a.post_send(&[SendWr { inline, ..SendWr::new(wr_id, op, &[]) }]).unwrap();
    }
    let deadline = nics[0].waiter().now() + Duration::from_secs(20);
    let blank = Cqe::EMPTY;
    let mut first = None;
    let mut done = 0;
    while done < 50 {
        assert!(cq_a.wait(Some(deadline)), "{done} of 50 messages were sent");
        let mut out = [blank; 64];
        let n = cq_a.poll(&mut out);
        first = first.or(out[..n].first().map(|cqe| cqe.status));
        done += n;
    }
    (nics[1].counters(), asked.load(Ordering::Relaxed), first.unwrap())
}

#[test]
fn its_first_packets_show_it_and_the_others_arrive() {
    let (counters, asked, status) = run(0);
    assert_eq!(status, WcStatus::Success);
    assert_eq!((counters.rx_icrc_unproven_id, counters.rx_icrc_encapsulated, asked), (2, 0, 2));
    assert!(counters.rcvd_pkts >= 50, "{counters:?}");
}

#[test]
fn corrupt_packets_show_nothing() {
    let (counters, asked, status) = run(0x40);
    assert_eq!(status, WcStatus::RetryExcErr);
    assert_eq!((counters.rx_icrc_unproven_id, counters.rcvd_pkts, asked), (0, 0, 0));
    assert!(counters.rx_icrc_encapsulated >= 50, "{counters:?}");
}

#[test]
fn a_path_mtu_that_the_path_does_not_carry_is_refused() {
    let [a, b] = pipe::pair();
    let peer = b.info().address;
    let nic = Nic::open(
        Box::new(Numbered { inner: a, next: 0, step: 0, wrong: 0, asked: Arc::default() }),
        NicConfig::default(),
    )
    .unwrap();
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(16).unwrap();
    let init = QpInit { max_send_wr: 1, max_recv_wr: 1, signal_all: true, ..QpInit::new(&cq) };
    let qp = pd.create_qp(init).unwrap();
    qp.to_init(Access::all()).unwrap();
    let to_rtr = |path_mtu| {
        qp.to_rtr(RtrAttributes {
            peer,
            dest_qpn: 5,
            rq_psn: 0,
            path_mtu,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 1,
        })
    };
    // The pipe carries 4200 bytes, and this path a half of that: 2100, too few for 2048 with headers.
    let error = to_rtr(Mtu::B4096).unwrap_err();
    assert!(
        matches!(error, NicError::PathMtu { given: 4096, fits: Some(1024), carried: 2100, .. }),
        "{error}"
    );
    for part in ["path_mtu is 4096", "2100 bytes", "take 1024", &peer.to_string()] {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
    assert!(to_rtr(Mtu::B2048).is_err());
    assert_eq!(qp.state(), QpState::Init);
    to_rtr(Mtu::B1024).unwrap();
}
