//! Memory objects of two NICs over a pipe: regions of every kind, windows of both types, domains, limits.

#[path = "../pipe/mod.rs"]
mod pipe;
mod regions;
mod type_1;
mod type_2;

use std::sync::Arc;
use std::time::Duration;

use anyverbs_nic::*;

const ALL: Access = Access::all().difference(Access::ZERO_BASED);
const READ: Access = Access::REMOTE_READ;
const WRITE: Access = Access::REMOTE_WRITE;
const LEN: usize = 1 << 16;

struct Side {
    nic: Nic,
    pd: Pd,
    cq: Cq,
    block: Arc<Block>,
    mr: Mr,
    qp: Qp,
}

fn open(link: pipe::Pipe, config: NicConfig) -> Side {
    let nic = Nic::open(Box::new(link), config).unwrap();
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(64).unwrap();
    let block = Arc::new(Block::new(LEN).unwrap());
    let mr = pd.register(Arc::clone(&block), 0..LEN, ALL).unwrap();
    let qp = create_qp(&pd, &cq);
    Side { nic, pd, cq, block, mr, qp }
}

fn create_qp(pd: &Pd, cq: &Cq) -> Qp {
    let init = QpInit { max_send_wr: 8, max_recv_wr: 8, max_send_sge: 4, max_recv_sge: 4, ..QpInit::new(cq) };
    pd.create_qp(QpInit { signal_all: true, ..init }).unwrap()
}

fn connect(nics: [&Nic; 2], qps: [&Qp; 2]) {
    for (own, peer) in [(0, 1), (1, 0)] {
        let (qp, gid) = (qps[own], nics[peer].attributes().gid);
        qp.to_init(ALL).unwrap();
        qp.to_rtr(RtrAttributes {
            peer: gid,
            dest_qpn: qps[peer].qpn(),
            rq_psn: qps[peer].initial_psn(),
            path_mtu: Mtu::B1024,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
        })
        .unwrap();
        qp.to_rts(RtsAttributes {
            sq_psn: qp.initial_psn(),
            max_rd_atomic: 4,
            retry_cnt: 7,
            rnr_retry: 7,
            timeout: 14,
        })
        .unwrap();
    }
}

/// `a` asks, `b` has the memory.
fn pair() -> [Side; 2] {
    let sides = pipe::pair().map(|link| open(link, NicConfig::default()));
    let [a, b] = &sides;
    connect([&a.nic, &b.nic], [&a.qp, &b.qp]);
    sides
}

/// Another connected pair of queue pairs.
fn another([a, b]: [&Side; 2]) -> [Qp; 2] {
    let qps = [create_qp(&a.pd, &a.cq), create_qp(&b.pd, &b.cq)];
    connect([&a.nic, &b.nic], [&qps[0], &qps[1]]);
    qps
}

fn post(qp: &Qp, wr_id: u64, op: SendOp, sges: &[Sge]) -> Result<(), PostError> {
    qp.post_send(&[SendWr::new(wr_id, op, sges)])
}

impl Side {
    fn sge(&self, addr: u64, len: u32) -> Sge {
        Sge { addr, len, key: self.mr.key() }
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

    fn ends(&self, n: usize) -> Vec<(u64, WcStatus)> {
        self.completions(n).iter().map(|cqe| (cqe.wr_id, cqe.status)).collect()
    }

    /// Posts, and waits for the one completion.
    fn does(&self, op: SendOp, sges: &[Sge]) -> WcStatus {
        self.does_by(&self.qp, op, sges)
    }

    fn does_by(&self, qp: &Qp, op: SendOp, sges: &[Sge]) -> WcStatus {
        post(qp, 1, op, sges).unwrap();
        self.completions(1)[0].status
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.block.read(at, &mut bytes).unwrap();
        bytes
    }

    fn bind(&self, mw: &Mw, rkey: u32) -> MwBind {
        MwBind { mw: mw.handle(), rkey, region: self.mr.key(), addr: 4096, len: 64, access: READ | WRITE }
    }
}

fn write(addr: u64, rkey: u32) -> SendOp {
    SendOp::Write { addr, rkey }
}

fn read(addr: u64, rkey: u32) -> SendOp {
    SendOp::Read { addr, rkey }
}
