//! Queue pairs connected by address and service, over a pipe.

#[path = "cm/basic.rs"]
mod basic;
#[path = "cm/datagrams.rs"]
mod datagrams;
#[path = "cm/drops.rs"]
mod drops;
#[path = "cm/fuzz.rs"]
mod fuzz;
#[path = "cm/limits.rs"]
mod limits;
#[path = "cm/lossy.rs"]
mod lossy;
mod pipe;
mod tap;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyverbs_nic::cm::*;
use anyverbs_nic::*;

const ALL: Access = Access::all();
const SERVICE: ServiceId = ServiceId::new(PortSpace::Tcp, 7471);

/// Answers in some tens of milliseconds.
pub(crate) fn config() -> NicConfig {
    let cm = CmConfig {
        response_timeout: 13,
        max_retries: 15,
        packet_lifetime: 13,
        service_timeout: 18,
        hold_unclaimed: Duration::from_millis(20),
        retry_refused: Duration::ZERO,
    };
    NicConfig { cm, ..NicConfig::default() }
}

pub(crate) struct Side {
    pub(crate) nic: Nic,
    pub(crate) pd: Pd,
    pub(crate) cq: Cq,
    pub(crate) mr: Mr,
    pub(crate) knobs: Arc<tap::Knobs>,
}

impl Side {
    fn open((link, knobs): (tap::Tap, Arc<tap::Knobs>), config: NicConfig) -> Side {
        let nic = Nic::open(Box::new(link), config).unwrap();
        let pd = nic.alloc_pd().unwrap();
        let cq = nic.create_cq(4096).unwrap();
        let block = Arc::new(Block::new(1 << 16).unwrap());
        let mr = pd.register(block, 0..1 << 16, ALL).unwrap();
        Side { nic, pd, cq, mr, knobs }
    }

    /// A queue pair in Init.
    fn qp(&self) -> Qp {
        let init = QpInit { max_send_wr: 4, max_recv_wr: 4, signal_all: true, ..QpInit::new(&self.cq) };
        let qp = self.pd.create_qp(init).unwrap();
        qp.to_init(ALL).unwrap();
        qp
    }

    fn address(&self) -> IpAddr {
        self.nic.attributes().gid
    }

    /// In half a minute: so late that it is a failure.
    fn late(&self) -> Option<Time> {
        Some(self.nic.waiter().now() + Duration::from_secs(30))
    }

    fn sge(&self) -> [Sge; 1] {
        [Sge { addr: 0, len: 8, key: self.mr.key() }]
    }

    fn send(&self, qp: &Qp, wr_id: u64) {
        qp.post_send(&[SendWr::new(wr_id, SendOp::Send, &self.sge())]).unwrap();
    }

    fn receive(&self, qp: &Qp, wr_id: u64) {
        qp.post_recv(&[RecvWr { wr_id, sges: &self.sge() }]).unwrap();
    }

    fn completion(&self) -> (u64, WcStatus) {
        assert!(self.cq.wait(self.late()), "no completion");
        let mut out = [Cqe::EMPTY];
        assert_eq!(self.cq.poll(&mut out), 1);
        (out[0].wr_id, out[0].status)
    }

    /// Waits until the connection manager holds nothing any more.
    fn settles(&self) {
        self.settles_but(Usage::default());
    }

    fn settles_but(&self, usage: Usage) {
        let late = self.late();
        while self.nic.cm_usage() != usage {
            assert!(self.nic.waiter().now() < late.unwrap(), "{:?}", self.nic.cm_usage());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(crate) fn pair() -> [Side; 2] {
    pair_with(config())
}

pub(crate) fn pair_with(config: NicConfig) -> [Side; 2] {
    tap::pair().map(|link| Side::open(link, config))
}

/// What `a` asks `b` for.
pub(crate) fn ask(b: &Side) -> ConnectParams<'static> {
    ConnectParams::new(b.address(), SERVICE)
}

/// Connects a queue pair of `a` to one of `b`, which listens.
pub(crate) fn connect(a: &Side, b: &Side, listener: &Listener, qps: [&Qp; 2]) -> [Connection; 2] {
    let mut connecting = a.nic.connect(qps[0], &ask(b)).unwrap();
    let mut request = listener.wait(b.late()).expect("a request");
    let passive = request.accept(qps[1], &AcceptParams::default()).unwrap();
    let active = connecting.wait(a.late()).expect("an answer").unwrap();
    assert!(matches!(passive.wait(b.late()), Some(ConnectionEvent::Established { .. })));
    [active, passive]
}

/// One message each way.
pub(crate) fn exchange(a: &Side, b: &Side, qps: [&Qp; 2]) {
    for (from, to, own, peer) in [(a, b, qps[0], qps[1]), (b, a, qps[1], qps[0])] {
        to.receive(peer, 7);
        from.send(own, 8);
        assert_eq!(to.completion(), (7, WcStatus::Success));
        assert_eq!(from.completion(), (8, WcStatus::Success));
    }
}

pub(crate) fn reason(error: ConnectError) -> RejectReason {
    match error {
        ConnectError::Rejected(rejected) => rejected.reason,
        other => panic!("{other}"),
    }
}
