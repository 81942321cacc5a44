//! Receiving what arrives.

use anyverbs_wire::{Ext, Operation, Psn, Qpn, Repr, Reth};

use crate::action::{Action, Completion, Queue, Target};
use crate::memory::{Memory, Need, Receive};
use crate::qp::{Config, Context, MESSAGE_MAX, Path, QpType, Verdict};
use crate::segment::{Piece, is_right_length, piece};
use crate::work::{ReceiveKind, Status};

/// Bytes in front of a datagram's payload, for a global routing header (IBA 11.4.1.2).
const GRH: u32 = 40;

/// A message of several packets, between its First and its Last.
#[derive(Clone, Copy, Debug)]
enum Inbound {
    Send { slot: u64, capacity: u64, received: u32 },
    Write { reth: Reth, received: u32 },
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug)]
enum Dropped {
    /// Not what may come now, or not of the right length.
    Invalid,
    /// The memory may not be written.
    Access,
    /// No receive work request.
    NoReceive,
    /// It does not fit into the receive work request.
    TooLong,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    qp_type: QpType,
    qkey: u32,
    expected: Psn,
    inbound: Option<Inbound>,
    /// A receive work request whose message was given up: its slot and capacity.
    spare: Option<(u64, u64)>,
}

impl Receiver {
    pub(crate) fn new(config: &Config) -> Self {
        Receiver { qp_type: config.qp_type, qkey: 0, expected: Psn::new(0), inbound: None, spare: None }
    }

    pub(crate) fn start(&mut self, psn: Psn) {
        self.expected = psn;
    }

    pub(crate) fn set_qkey(&mut self, qkey: u32) {
        self.qkey = qkey;
    }

    pub(crate) fn on_packet<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        packet: &Repr,
        payload: u32,
    ) -> Verdict {
        let done = match (self.qp_type, piece(operation, packet, payload)) {
            (QpType::Ud, Some((piece, _))) => self.datagram(cx, path, packet, &piece),
            (_, Some((piece, reth))) => self.message(cx, path, packet.bth.psn, &piece, reth),
            (_, None) => Err(Dropped::Invalid),
        };
        match done {
            Ok(()) => {}
            Err(Dropped::Invalid) => cx.counters.resp_remote_invalid_requests += 1,
            Err(Dropped::Access) => cx.counters.resp_remote_access_errors += 1,
            Err(Dropped::NoReceive) => cx.counters.out_of_buffer += 1,
            Err(Dropped::TooLong) => cx.counters.resp_local_length_error += 1,
        }
        Verdict::Alive
    }

    fn take_receive<M: Memory>(&mut self, cx: &mut Context<'_, M>) -> Result<(u64, u64), Dropped> {
        if let Some(spare) = self.spare.take() {
            return Ok(spare);
        }
        match cx.memory.take_receive(None) {
            Receive::Taken { slot, capacity } => Ok((slot, capacity)),
            Receive::Empty | Receive::Unknown => Err(Dropped::NoReceive),
        }
    }

    // ---- UD ---------------------------------------------------------------------------------

    /// A datagram: admitted by its key (IBA 9.6.1.4.1), placed behind the header area.
    fn datagram<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        packet: &Repr,
        piece: &Piece,
    ) -> Result<(), Dropped> {
        let (Ext::Deth(deth) | Ext::DethImm(deth, _)) = packet.ext else { return Err(Dropped::Invalid) };
        if deth.qkey != self.qkey {
            cx.counters.qkey_viol_cntr += 1;
            return Ok(());
        }
        if !is_right_length(path.mtu, piece) {
            return Err(Dropped::Invalid);
        }
        let (slot, capacity) = self.take_receive(cx)?;
        let len = GRH + piece.payload;
        if u64::from(len) > capacity {
            self.spare = Some((slot, capacity));
            return Err(Dropped::TooLong);
        }
        cx.actions.push(Action::PlaceGrh { slot });
        if piece.payload > 0 {
            let to = Target::Receive { slot, offset: GRH };
            cx.actions.push(Action::Place { from: 0, len: piece.payload, to });
        }
        complete(cx, slot, ReceiveKind::Send, len, piece, Some(deth.source_qpn));
        Ok(())
    }

    // ---- UC ---------------------------------------------------------------------------------

    /// A packet of a message (IBA 9.8.2.2).
    fn message<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        psn: Psn,
        piece: &Piece,
        reth: Option<Reth>,
    ) -> Result<(), Dropped> {
        let gap = psn != self.expected;
        if gap || piece.first {
            self.give_up();
        }
        self.expected = psn.add(1);
        // The rest of a message whose beginning was lost or refused has nothing to go on from.
        let rest = !piece.first && self.inbound.is_none();
        if gap || rest {
            cx.counters.out_of_seq_request += 1;
        }
        if rest {
            return Ok(());
        }
        let done = match (is_right_length(path.mtu, piece), piece.is_write) {
            (false, _) => Err(Dropped::Invalid),
            (true, true) => self.write(cx, reth, piece),
            (true, false) => self.send(cx, piece),
        };
        if done.is_err() {
            self.give_up();
        }
        done
    }

    fn send<M: Memory>(&mut self, cx: &mut Context<'_, M>, piece: &Piece) -> Result<(), Dropped> {
        let (slot, capacity, received) = match (piece.first, self.inbound) {
            (true, _) => {
                let (slot, capacity) = self.take_receive(cx)?;
                (slot, capacity, 0)
            }
            (false, Some(Inbound::Send { slot, capacity, received })) => (slot, capacity, received),
            _ => return Err(Dropped::Invalid),
        };
        self.inbound = Some(Inbound::Send { slot, capacity, received });
        let total = received.checked_add(piece.payload).filter(|total| u64::from(*total) <= capacity);
        let total = total.ok_or(Dropped::TooLong)?;
        if piece.payload > 0 {
            let to = Target::Receive { slot, offset: received };
            cx.actions.push(Action::Place { from: 0, len: piece.payload, to });
        }
        self.inbound = (!piece.last).then_some(Inbound::Send { slot, capacity, received: total });
        if piece.last {
            complete(cx, slot, ReceiveKind::Send, total, piece, None);
        }
        Ok(())
    }

    fn write<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        reth: Option<Reth>,
        piece: &Piece,
    ) -> Result<(), Dropped> {
        let (reth, received) = match (reth, self.inbound) {
            (Some(reth), None) => (reth, 0),
            (None, Some(Inbound::Write { reth, received })) => (reth, received),
            _ => return Err(Dropped::Invalid),
        };
        let total = received.checked_add(piece.payload).ok_or(Dropped::Invalid)?;
        if reth.len > MESSAGE_MAX || total > reth.len || piece.last != (total == reth.len) {
            return Err(Dropped::Invalid);
        }
        let span = if piece.payload > 0 {
            let mut check =
                |va, len| cx.memory.check(reth.rkey, va, len, Need::RemoteWrite).map_err(|_| Dropped::Access);
            if piece.first {
                check(reth.va, reth.len)?;
            }
            Some(check(reth.va.wrapping_add(u64::from(received)), piece.payload)?)
        } else {
            None
        };
        let receive = match piece.imm {
            Some(_) => Some(self.take_receive(cx)?.0),
            None => None,
        };
        if let Some(span) = span {
            cx.actions.push(Action::Place { from: 0, len: piece.payload, to: Target::Region(span) });
        }
        self.inbound = (!piece.last).then_some(Inbound::Write { reth, received: total });
        if let Some(slot) = receive {
            complete(cx, slot, ReceiveKind::WriteImm, total, piece, None);
        }
        Ok(())
    }

    // ---- Ending -----------------------------------------------------------------------------

    /// Gives the message in progress up; its receive work request serves the next one.
    fn give_up(&mut self) {
        if let Some(Inbound::Send { slot, capacity, .. }) = self.inbound.take() {
            self.spare = Some((slot, capacity));
        }
    }

    /// Forgets a receive work request that was reported.
    pub(crate) fn forget_receive(&mut self, slot: u64) {
        self.give_up();
        self.spare = self.spare.filter(|spare| spare.0 != slot);
    }

    /// Flushes the receive work request that was taken and has not completed.
    pub(crate) fn flush<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        self.give_up();
        if let Some((slot, _)) = self.spare.take() {
            cx.complete_receive(slot, Status::FlushError);
        }
    }
}

/// A message that consumed a receive work request is complete.
fn complete<M: Memory>(
    cx: &mut Context<'_, M>,
    slot: u64,
    kind: ReceiveKind,
    len: u32,
    piece: &Piece,
    source: Option<Qpn>,
) {
    cx.actions.push(Action::Complete(Completion {
        queue: Queue::Receive,
        slot,
        status: Status::Success,
        signaled: true,
        len,
        kind,
        imm: piece.imm,
        solicited: piece.solicited,
        invalidated: None,
        source,
    }));
}
