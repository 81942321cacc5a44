//! A NIC at each end of a pipe, with memory, and what tests do with them.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::Duration;

use anyverbs_nic::*;

use crate::pipe;

pub(crate) const ALL: Access = Access::all();

/// Bytes of registered memory at each end.
pub(crate) const MEMORY: usize = 1 << 16;

pub(crate) struct Side {
    pub(crate) nic: Nic,
    pub(crate) pd: Pd,
    pub(crate) block: Arc<Block>,
    pub(crate) mr: Mr,
}

/// A NIC at each end of a pipe.
pub(crate) fn sides() -> [Side; 2] {
    sides_with(NicConfig::default())
}

pub(crate) fn sides_with(config: NicConfig) -> [Side; 2] {
    pipe::pair().map(|link| {
        let nic = Nic::open(Box::new(link), config).unwrap();
        let pd = nic.alloc_pd().unwrap();
        let block = Arc::new(Block::new(MEMORY).unwrap());
        let mr = pd.register(Arc::clone(&block), 0..MEMORY, ALL).unwrap();
        Side { nic, pd, block, mr }
    })
}

impl Side {
    pub(crate) fn sge(&self, addr: u64, len: u32) -> Sge {
        Sge { addr, len, key: self.mr.key() }
    }

    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.block.read(at, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn soon(&self) -> Option<Time> {
        Some(self.nic.waiter().now() + Duration::from_secs(10))
    }

    /// Waits for `n` completions; fails after a while.
    pub(crate) fn completions(&self, cq: &Cq, n: usize) -> Vec<Cqe> {
        let deadline = self.soon();
        let mut got = Vec::new();
        while got.len() < n {
            assert!(cq.wait(deadline), "only {got:?} after ten seconds");
            let mut out = [Cqe::EMPTY; 16];
            let count = cq.poll(&mut out);
            got.extend_from_slice(&out[..count]);
        }
        got
    }

    pub(crate) fn event(&self) -> AsyncEvent {
        self.nic.wait_async_event(self.soon()).expect("an event within ten seconds")
    }
}

/// Connects two queue pairs of a connected type.
pub(crate) fn connect(a: (&Side, &Qp), b: (&Side, &Qp)) {
    for ((_, own), (side, peer)) in [(a, b), (b, a)] {
        own.to_init(ALL).unwrap();
        own.to_rtr(RtrAttributes {
            peer: side.nic.attributes().gid,
            dest_qpn: peer.qpn(),
            rq_psn: peer.initial_psn(),
            path_mtu: Mtu::B1024,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
        })
        .unwrap();
        to_rts(own);
    }
}

pub(crate) fn to_rts(qp: &Qp) {
    let sq_psn = qp.initial_psn();
    qp.to_rts(RtsAttributes { sq_psn, max_rd_atomic: 4, retry_cnt: 7, rnr_retry: 7, timeout: 14 }).unwrap();
}

/// A datagram queue pair that is ready.
pub(crate) fn datagram_qp(side: &Side, cq: &Cq, qkey: u32) -> Qp {
    let qp = side.pd.create_qp(QpInit { qp_type: QpType::Ud, ..QpInit::new(cq) }).unwrap();
    qp.to_init(Access::empty()).unwrap();
    qp.set_qkey(qkey).unwrap();
    qp.to_rtr_datagram().unwrap();
    to_rts(&qp);
    qp
}

pub(crate) fn outcome(completions: &[Cqe]) -> Vec<(u64, WcStatus)> {
    completions.iter().map(|cqe| (cqe.wr_id, cqe.status)).collect()
}
