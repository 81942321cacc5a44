//! Sending without being answered.

use std::collections::VecDeque;

use anyverbs_wire::{Deth, Ext, Operation, Psn, Qpn, Repr};

use crate::action::{Action, Source, Transmit};
use crate::congestion::{Congestion, Control};
use crate::memory::Memory;
use crate::pacer::{OVERHEAD, Outflow};
use crate::qp::{Config, Context, Mtu, Path};
use crate::segment::data_header;
use crate::time::Time;
use crate::work::{Destination, Op, SendRequest, Status};

/// A send work request failed, which was reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SendFailed;

#[derive(Debug)]
pub(crate) struct Sender {
    qpn: Qpn,
    queue: VecDeque<SendRequest>,
    max_send_wr: usize,
    /// The next packet of the work request at the front.
    packet: u32,
    psn: Psn,
    window: u32,
    control: Control,
    pub(crate) outflow: Outflow,
    paced_until: Option<Time>,
}

impl Sender {
    pub(crate) fn new(config: &Config) -> Self {
        let packet = Mtu::B1024.bytes() + OVERHEAD;
        Sender {
            qpn: config.qpn,
            queue: VecDeque::with_capacity(config.max_send_wr),
            max_send_wr: config.max_send_wr,
            packet: 0,
            psn: Psn::new(0),
            window: config.window,
            control: config.congestion,
            outflow: Outflow::new(
                Congestion::new(&config.congestion, config.window, packet),
                config.bytes_per_second,
            ),
            paced_until: None,
        }
    }

    pub(crate) fn set_mtu(&mut self, mtu: Mtu) {
        self.outflow.congestion = Congestion::new(&self.control, self.window, mtu.bytes() + OVERHEAD);
    }

    pub(crate) fn start(&mut self, psn: Psn) {
        self.psn = psn;
    }

    pub(crate) fn post(&mut self, request: SendRequest) -> bool {
        let room = self.queue.len() < self.max_send_wr;
        if room {
            self.queue.push_back(request);
        }
        room
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.packet == 0
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        !self.queue.is_empty() && self.paced_until.is_none()
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.paced_until
    }

    pub(crate) fn on_timer(&mut self) {
        self.paced_until = None;
    }

    /// Emits up to `budget` packets; says whether a work request failed, and whether more could leave at
    /// once. A work request completes behind its last packet, so no packet is given out before its time.
    pub(crate) fn transmit<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        draining: bool,
        budget: usize,
    ) -> (Result<(), SendFailed>, bool) {
        self.paced_until = None;
        for _ in 0..budget {
            let Some(request) = self.queue.front().copied() else { return (Ok(()), false) };
            if draining && self.packet == 0 {
                return (Ok(()), false);
            }
            if request.op == Op::Local {
                let done = cx.memory.execute_local(request.slot);
                self.pop(cx, done.err().unwrap_or(Status::Success));
                if done.is_err() {
                    return (Err(SendFailed), false);
                }
                continue;
            }
            let datagram = matches!(request.destination, Destination::Datagram { .. });
            if datagram && request.len > path.mtu.bytes() {
                // A datagram is one packet (IBA 9.8.3).
                self.pop(cx, Status::LocalLengthError);
                return (Err(SendFailed), false);
            }
            let (Ok(at) | Err(at)) = self.outflow.ready(cx.now);
            if at > cx.now {
                self.paced_until = Some(at);
                return (Ok(()), false);
            }
            let (header, payload) = self.build(path, &request);
            self.outflow.sent(cx.now, at, payload.len());
            cx.actions.push(Action::Transmit(Transmit { at, header, payload }));
            if self.packet == path.mtu.packets(request.len) {
                self.pop(cx, Status::Success);
            }
        }
        (Ok(()), !self.queue.is_empty())
    }

    /// Builds the next packet of a work request, and moves on behind it.
    fn build<S>(&mut self, path: &Path, request: &SendRequest) -> (Repr, Source<S>) {
        let mtu = path.mtu.bytes();
        let offset = self.packet * mtu;
        let len = (request.len - offset).min(mtu);
        let first = self.packet == 0;
        let last = self.packet + 1 == path.mtu.packets(request.len);
        let (operation, ext) = data_header(request, first, last);
        let mut bth = path.bth(operation, self.psn, len);
        bth.solicited = last && request.solicited;
        let slot = request.slot;
        let (ext, payload) = match request.destination {
            Destination::Datagram { qpn, qkey } => {
                bth.dest_qpn = qpn;
                let deth = Deth { qkey, source_qpn: self.qpn };
                let ext = match (operation, request.op) {
                    (Operation::SendOnlyImm, Op::Send { imm: Some(imm) }) => Ext::DethImm(deth, imm),
                    _ => Ext::Deth(deth),
                };
                (ext, Source::Send { slot, offset, len })
            }
            _ if len == 0 => (ext, Source::None),
            _ => (ext, Source::Send { slot, offset, len }),
        };
        self.psn = self.psn.add(1);
        self.packet += 1;
        (Repr { bth, xrc_srqn: None, ext }, payload)
    }

    fn pop<M: Memory>(&mut self, cx: &mut Context<'_, M>, status: Status) {
        if let Some(request) = self.queue.pop_front() {
            self.packet = 0;
            cx.complete_send(&request, status);
        }
    }

    /// Fails one work request with its own status; those before and behind it are flushed.
    pub(crate) fn fail_slot<M: Memory>(&mut self, cx: &mut Context<'_, M>, slot: u64, status: Status) {
        while let Some(request) = self.queue.front() {
            let own = if request.slot == slot { status } else { Status::FlushError };
            self.pop(cx, own);
        }
        self.paced_until = None;
    }

    /// Flushes everything, in order.
    pub(crate) fn flush<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        while !self.queue.is_empty() {
            self.pop(cx, Status::FlushError);
        }
        self.paced_until = None;
    }
}
