//! One queue pair, and what it sends.

use crate::bottleneck::NoMemory;
use anyverbs_engine::congestion::Control;
use anyverbs_engine::*;
use anyverbs_wire::{Psn, Qpn, Repr};

pub(crate) fn us(us: u64) -> Time {
    Time::from_nanos(us * 1000)
}

/// A queue pair whose peer is 0x118, with a place for what it does.
pub(crate) struct One {
    pub(crate) qp: QueuePair,
    pub(crate) counters: Counters,
}

impl One {
    pub(crate) fn new(congestion: Control) -> Self {
        One::with(Config { congestion, ..Config::default() })
    }

    /// Ready to receive.
    pub(crate) fn with(config: Config) -> Self {
        let mut qp = QueuePair::new(config);
        assert!(qp.to_init());
        assert!(qp.to_rtr(&ReadyToReceive {
            dest_qpn: Qpn::new(0x118),
            rq_psn: Psn::new(0),
            path_mtu: Mtu::B4096,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 12,
        }));
        One { qp, counters: Counters::default() }
    }

    pub(crate) fn ready_to_send(mut self) -> Self {
        let attributes =
            ReadyToSend { sq_psn: Psn::new(0), max_rd_atomic: 4, retry_cnt: 7, rnr_retry: 7, timeout: 14 };
        assert!(self.qp.to_rts(&attributes));
        self
    }

    pub(crate) fn act(
        &mut self,
        now: Time,
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, NoMemory>),
    ) -> Vec<Transmit<()>> {
        let mut actions = Vec::new();
        let counters = &mut self.counters;
        let mut cx = Context { now, memory: &mut NoMemory, actions: &mut actions, counters };
        f(&mut self.qp, &mut cx);
        while self.qp.transmit(&mut cx) {}
        let transmit = |action| match action {
            Action::Transmit(transmit) => Some(transmit),
            _ => None,
        };
        actions.into_iter().filter_map(transmit).collect()
    }

    pub(crate) fn arrives(&mut self, now: Time, packet: &Repr, payload: u32, ecn: u8) -> Vec<Transmit<()>> {
        self.act(now, |qp, cx| qp.on_packet(cx, packet, payload, ecn))
    }

    pub(crate) fn post(&mut self, now: Time, len: u32) -> Vec<Transmit<()>> {
        let op = Op::Write { va: 0, rkey: 1, imm: None };
        let request = SendRequest::new(0, op, len);
        self.act(now, |qp, cx| assert!(qp.post_send(cx, request)))
    }
}
