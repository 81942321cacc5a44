//! Cutting SENDs and WRITEs into packets, and knowing them again (IBA 9.4, 9.5).

use anyverbs_wire::{Ext, Operation, Repr, Reth};

use crate::qp::Mtu;
use crate::work::{Op, SendRequest};

/// What a packet of a SEND or WRITE adds to its message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) is_write: bool,
    pub(crate) first: bool,
    pub(crate) last: bool,
    pub(crate) payload: u32,
    pub(crate) imm: Option<u32>,
    pub(crate) invalidate: Option<u32>,
    pub(crate) solicited: bool,
}

/// The packet as a piece of a SEND or WRITE, and the RETH that the first one of a WRITE has; `None` if
/// it is neither.
pub(crate) fn piece(operation: Operation, packet: &Repr, payload: u32) -> Option<(Piece, Option<Reth>)> {
    use Operation as O;
    let (is_write, first, last) = match operation {
        O::SendFirst => (false, true, false),
        O::SendMiddle => (false, false, false),
        O::SendLast | O::SendLastImm | O::SendLastInvalidate => (false, false, true),
        O::SendOnly | O::SendOnlyImm | O::SendOnlyInvalidate => (false, true, true),
        O::WriteFirst => (true, true, false),
        O::WriteMiddle => (true, false, false),
        O::WriteLast | O::WriteLastImm => (true, false, true),
        O::WriteOnly | O::WriteOnlyImm => (true, true, true),
        _ => return None,
    };
    let (imm, invalidate, reth) = match packet.ext {
        Ext::Imm(imm) | Ext::DethImm(_, imm) => (Some(imm), None, None),
        Ext::Ieth(rkey) => (None, Some(rkey), None),
        Ext::Reth(reth) => (None, None, Some(reth)),
        Ext::RethImm(reth, imm) => (Some(imm), None, Some(reth)),
        _ => (None, None, None),
    };
    let solicited = packet.bth.solicited;
    Some((Piece { is_write, first, last, payload, imm, invalidate, solicited }, reth))
}

/// First and Middle packets are full; Last ones are not empty; none is longer (IBA 9.7.4.1.6).
pub(crate) fn is_right_length(mtu: Mtu, piece: &Piece) -> bool {
    let full = piece.payload == mtu.bytes();
    let fits = piece.payload <= mtu.bytes();
    match (piece.first, piece.last) {
        (_, false) => full,
        (true, true) => fits,
        (false, true) => fits && piece.payload > 0,
    }
}

/// Opcode and extended headers of a packet of a SEND or WRITE, by its place in the message.
pub(crate) fn data_header(request: &SendRequest, first: bool, last: bool) -> (Operation, Ext) {
    use Operation as O;
    match request.op {
        Op::Write { va, rkey, imm } => {
            let reth = Reth { va, rkey, len: request.len };
            match (first, last, imm) {
                (true, true, None) => (O::WriteOnly, Ext::Reth(reth)),
                (true, true, Some(imm)) => (O::WriteOnlyImm, Ext::RethImm(reth, imm)),
                (true, false, _) => (O::WriteFirst, Ext::Reth(reth)),
                (false, false, _) => (O::WriteMiddle, Ext::None),
                (false, true, None) => (O::WriteLast, Ext::None),
                (false, true, Some(imm)) => (O::WriteLastImm, Ext::Imm(imm)),
            }
        }
        Op::SendInvalidate { rkey } => match (first, last) {
            (true, true) => (O::SendOnlyInvalidate, Ext::Ieth(rkey)),
            (false, true) => (O::SendLastInvalidate, Ext::Ieth(rkey)),
            (true, false) => (O::SendFirst, Ext::None),
            (false, false) => (O::SendMiddle, Ext::None),
        },
        Op::Send { imm } => match (first, last, imm) {
            (true, true, None) => (O::SendOnly, Ext::None),
            (true, true, Some(imm)) => (O::SendOnlyImm, Ext::Imm(imm)),
            (true, false, _) => (O::SendFirst, Ext::None),
            (false, false, _) => (O::SendMiddle, Ext::None),
            (false, true, None) => (O::SendLast, Ext::None),
            (false, true, Some(imm)) => (O::SendLastImm, Ext::Imm(imm)),
        },
        Op::Read { .. }
        | Op::FetchAdd { .. }
        | Op::CompareSwap { .. }
        | Op::Flush { .. }
        | Op::AtomicWrite { .. } => unreachable!("requests with responses are built by their own branches"),
        Op::Local => unreachable!("what takes no packet is executed, not built"),
    }
}
