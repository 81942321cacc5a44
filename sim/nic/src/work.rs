//! Work requests as posted, and as they lie in the queues.

use std::net::{IpAddr, Ipv6Addr};

use anyverbs_engine::{self as engine, MESSAGE_MAX, Op, QpType, SendRequest};
use anyverbs_memory::{Access, Bind, WindowId, WindowType};
use anyverbs_wire::{Feth, Qpn, Selectivity};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Ah;
use crate::error::PostReason;
use crate::window::MwBind;

/// Scatter/gather elements of a work request, at most.
pub(crate) const SGE_MAX: u32 = 32;

/// Bytes of inline data, at most: they lie where the elements would.
pub(crate) const INLINE_MAX: u32 = SGE_MAX * SGE_LEN as u32;

/// Bytes of an element.
pub(crate) const SGE_LEN: usize = size_of::<Sge>();

/// A piece of registered memory (`ibv_sge`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sge {
    /// Where it starts, in the region's own addresses.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The region's key.
    pub key: u32,
}

/// A send work request (`ibv_send_wr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendWr<'a> {
    /// The caller's name for it; it comes back in the completion.
    pub wr_id: u64,
    /// What to do.
    pub op: SendOp,
    /// The local memory: gathered from for SEND and WRITE, scattered to for READ and atomics.
    pub sges: &'a [Sge],
    /// Write a completion queue entry on success.
    pub signaled: bool,
    /// Ask for a solicited event at the peer.
    pub solicited: bool,
    /// Wait for all earlier READs and atomics first.
    pub fence: bool,
    /// Send these bytes, copied now, instead of what `sges` names.
    pub inline: Option<&'a [u8]>,
    /// Whom it is for.
    pub destination: Destination<'a>,
}

impl<'a> SendWr<'a> {
    /// A signalled work request for the peer of a connected queue pair, without flags.
    pub const fn new(wr_id: u64, op: SendOp, sges: &'a [Sge]) -> Self {
        let destination = Destination::Connected;
        SendWr { wr_id, op, sges, signaled: true, solicited: false, fence: false, inline: None, destination }
    }
}

/// Whom a send work request is for, where the queue pair alone does not say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Destination<'a> {
    /// RC, UC: the peer of the queue pair.
    #[default]
    Connected,
    /// UD: a queue pair, or the queue pairs of a multicast group.
    Datagram {
        /// The address.
        ah: &'a Ah,
        /// The queue pair there; for a multicast group [`MULTICAST_QPN`].
        remote_qpn: u32,
        /// The key that it admits.
        remote_qkey: u32,
    },
    /// XRC: a shared receive queue of the peer, by its number.
    SharedReceive(u32),
}

/// The queue pair number that means all queue pairs of a multicast group (IBA 10.5).
pub const MULTICAST_QPN: u32 = 0x00ff_ffff;

/// The operation of a send work request (`ibv_wr_opcode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendOp {
    /// SEND.
    Send,
    /// SEND with immediate data.
    SendImm(u32),
    /// SEND that invalidates this key of the peer.
    SendInvalidate(u32),
    /// RDMA WRITE.
    Write {
        /// Where to, in the addresses of the peer's region.
        addr: u64,
        /// The key of the peer's region.
        rkey: u32,
    },
    /// RDMA WRITE with immediate data.
    WriteImm {
        /// Where to, in the addresses of the peer's region.
        addr: u64,
        /// The key of the peer's region.
        rkey: u32,
        /// The immediate data.
        imm: u32,
    },
    /// RDMA READ.
    Read {
        /// Where from, in the addresses of the peer's region.
        addr: u64,
        /// The key of the peer's region.
        rkey: u32,
    },
    /// Add to eight remote bytes.
    FetchAdd {
        /// Where, in the addresses of the peer's region; a multiple of eight.
        addr: u64,
        /// The key of the peer's region.
        rkey: u32,
        /// What to add, wrapping.
        add: u64,
    },
    /// Compare eight remote bytes, and replace them if equal.
    CompareSwap {
        /// Where, in the addresses of the peer's region; a multiple of eight.
        addr: u64,
        /// The key of the peer's region.
        rkey: u32,
        /// What they must hold.
        compare: u64,
        /// What replaces them.
        swap: u64,
    },
    /// Wait until what was written before is visible to everyone there (`IBV_WR_FLUSH`).
    Flush {
        /// Where, in the addresses of the peer's region.
        addr: u64,
        /// The key of the peer's region.
        rkey: u32,
        /// How many bytes; `None`: the whole region.
        len: Option<u32>,
    },
    /// Write eight bytes that are seen whole or not at all (`IBV_WR_ATOMIC_WRITE`).
    AtomicWrite {
        /// Where to, in the addresses of the peer's region; a multiple of eight.
        addr: u64,
        /// The key of the peer's region.
        rkey: u32,
    },
    /// Bind a memory window of type 2 (`IBV_WR_BIND_MW`): see [`Mw`](crate::Mw).
    BindMw(MwBind),
    /// Invalidate the key of a memory window of type 2 that is bound to this queue pair (`IBV_WR_LOCAL_INV`).
    LocalInvalidate(u32),
}

/// A receive work request (`ibv_recv_wr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecvWr<'a> {
    /// The caller's name for it; it comes back in the completion.
    pub wr_id: u64,
    /// The local memory that is scattered to.
    pub sges: &'a [Sge],
}

/// Operation codes in the send queue. Plain numbers, since a queue holds plain data.
pub(crate) mod opcode {
    pub(crate) const SEND: u8 = 0;
    pub(crate) const SEND_IMM: u8 = 1;
    pub(crate) const WRITE: u8 = 2;
    pub(crate) const WRITE_IMM: u8 = 3;
    pub(crate) const READ: u8 = 4;
    pub(crate) const FETCH_ADD: u8 = 5;
    pub(crate) const COMPARE_SWAP: u8 = 6;
    pub(crate) const SEND_INVALIDATE: u8 = 7;
    pub(crate) const FLUSH: u8 = 8;
    pub(crate) const FLUSH_REGION: u8 = 9;
    pub(crate) const ATOMIC_WRITE: u8 = 10;
    pub(crate) const BIND_MW: u8 = 11;
    pub(crate) const LOCAL_INV: u8 = 12;
}

const SIGNALED: u8 = 1;
const SOLICITED: u8 = 2;
const FENCE: u8 = 4;
const INLINE: u8 = 8;
const DATAGRAM: u8 = 16;
const XRC: u8 = 32;

/// A work request that concerns this side alone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Local {
    Bind(Bind),
    Invalidate(u32),
}

/// A send work request in its queue: no pointers, only keys and offsets. Its elements, or its inline data, are the
/// tail of its entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SendWqe {
    pub(crate) wr_id: u64,
    /// The remote address; for datagrams the first half of the destination's GID.
    addr: u64,
    /// What to add, or what to compare with; for datagrams the second half of the GID.
    operand: u64,
    swap: u64,
    rkey: u32,
    imm: u32,
    pub(crate) len: u32,
    /// The remote queue pair of a datagram, or the remote shared receive queue.
    remote: u32,
    qkey: u32,
    pub(crate) opcode: u8,
    flags: u8,
    sge_count: u16,
}

/// What the work requests of a queue pair may be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    pub(crate) qp_type: QpType,
    pub(crate) pd: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline: u32,
    pub(crate) signal_all: bool,
}

impl SendWqe {
    /// Checks a work request, and lays it out with its tail.
    pub(crate) fn new<'a>(wr: &SendWr<'a>, caps: &Caps) -> Result<(Self, &'a [u8]), PostReason> {
        Self::lay_out(wr, caps, WindowType::Two)
    }

    /// As [`new`](SendWqe::new); what is bound is a window of this type.
    pub(crate) fn lay_out<'a>(
        wr: &SendWr<'a>,
        caps: &Caps,
        bound_as: WindowType,
    ) -> Result<(Self, &'a [u8]), PostReason> {
        use opcode::*;
        let (opcode, addr, rkey, imm, operand, swap) = match wr.op {
            SendOp::Send => (SEND, 0, 0, 0, 0, 0),
            SendOp::SendImm(imm) => (SEND_IMM, 0, 0, imm, 0, 0),
            SendOp::Write { addr, rkey } => (WRITE, addr, rkey, 0, 0, 0),
            SendOp::WriteImm { addr, rkey, imm } => (WRITE_IMM, addr, rkey, imm, 0, 0),
            SendOp::Read { addr, rkey } => (READ, addr, rkey, 0, 0, 0),
            SendOp::FetchAdd { addr, rkey, add } => (FETCH_ADD, addr, rkey, 0, add, 0),
            SendOp::CompareSwap { addr, rkey, compare, swap } => (COMPARE_SWAP, addr, rkey, 0, compare, swap),
            SendOp::SendInvalidate(rkey) => (SEND_INVALIDATE, 0, rkey, 0, 0, 0),
            SendOp::Flush { addr, rkey, len: Some(_) } => (FLUSH, addr, rkey, 0, 0, 0),
            SendOp::Flush { addr, rkey, len: None } => (FLUSH_REGION, addr, rkey, 0, 0, 0),
            SendOp::AtomicWrite { addr, rkey } => (ATOMIC_WRITE, addr, rkey, 0, 0, 0),
            SendOp::BindMw(MwBind { mw, rkey, region, addr, len, .. }) => {
                (BIND_MW, addr, rkey, region, len, mw.id.serial)
            }
            SendOp::LocalInvalidate(rkey) => (LOCAL_INV, 0, rkey, 0, 0, 0),
        };
        let mut wqe = SendWqe {
            wr_id: wr.wr_id,
            addr,
            operand,
            swap,
            rkey,
            imm,
            len: 0,
            remote: 0,
            qkey: 0,
            opcode,
            flags: 0,
            sge_count: 0,
        };
        for (flag, set) in
            [(SIGNALED, wr.signaled || caps.signal_all), (SOLICITED, wr.solicited), (FENCE, wr.fence)]
        {
            wqe.flags |= if set { flag } else { 0 };
        }
        let tail = match wr.inline {
            Some(data) => wqe.set_inline(data, caps)?,
            None => {
                wqe.len = total(wr.sges, caps.max_send_sge)?;
                wqe.sge_count = wr.sges.len() as u16;
                wr.sges.as_bytes()
            }
        };
        match wr.op {
            SendOp::FetchAdd { .. } | SendOp::CompareSwap { .. } | SendOp::AtomicWrite { .. }
                if wqe.len != 8 =>
            {
                return Err(PostReason::BadLength);
            }
            SendOp::Flush { .. } if wqe.len != 0 => return Err(PostReason::BadLength),
            SendOp::Flush { len, .. } => wqe.len = len.unwrap_or(0),
            SendOp::BindMw(_) | SendOp::LocalInvalidate(_) if wqe.len != 0 || !wr.sges.is_empty() => {
                return Err(PostReason::BadLength);
            }
            // The key of a window of type 1 is not the program's to choose.
            SendOp::BindMw(bind) if bind.mw.kind != bound_as => return Err(PostReason::BadWindow),
            // It goes nowhere: the place of a destination is free.
            SendOp::BindMw(bind) => (wqe.remote, wqe.qkey) = (bind.mw.id.home, bind.access.bits()),
            _ => {}
        }
        wqe.address(&wr.destination, caps)?;
        match caps.qp_type.can_do(&wqe.request(0)) {
            true => Ok((wqe, tail)),
            false => Err(PostReason::BadOperation),
        }
    }

    fn set_inline<'a>(&mut self, data: &'a [u8], caps: &Caps) -> Result<&'a [u8], PostReason> {
        use opcode::*;
        let takes =
            matches!(self.opcode, SEND | SEND_IMM | SEND_INVALIDATE | WRITE | WRITE_IMM | ATOMIC_WRITE);
        if data.len() > caps.max_inline as usize || !takes {
            return Err(PostReason::BadInline);
        }
        self.len = data.len() as u32;
        self.flags |= INLINE;
        Ok(data)
    }

    /// Notes whom it is for.
    fn address(&mut self, destination: &Destination<'_>, caps: &Caps) -> Result<(), PostReason> {
        match *destination {
            Destination::Connected => {}
            Destination::SharedReceive(srqn) => {
                self.remote = srqn & 0x00ff_ffff;
                self.flags |= XRC;
            }
            Destination::Datagram { ah, remote_qpn, remote_qkey } => {
                // The address of one domain is none in another (IBA 10.2.2.2).
                if ah.pd_number() != caps.pd {
                    return Err(PostReason::BadDestination);
                }
                self.remote = remote_qpn & 0x00ff_ffff;
                self.qkey = remote_qkey;
                self.flags |= DATAGRAM;
                if caps.qp_type == QpType::Ud {
                    let gid = match ah.attributes().destination {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
                        IpAddr::V6(v6) => v6.to_bits(),
                    };
                    (self.addr, self.operand) = ((gid >> 64) as u64, gid as u64);
                }
            }
        }
        Ok(())
    }

    /// Whether its tail is inline data.
    pub(crate) fn is_inline(&self) -> bool {
        self.flags & INLINE != 0
    }

    /// Where a datagram goes: the address, and the queue pair there.
    pub(crate) fn datagram(&self) -> Option<(IpAddr, u32)> {
        let gid = Ipv6Addr::from_bits(u128::from(self.addr) << 64 | u128::from(self.operand));
        (self.flags & DATAGRAM != 0).then(|| (IpAddr::V6(gid).to_canonical(), self.remote))
    }

    /// What it binds, or the key that it invalidates, if it is about a memory window.
    pub(crate) fn local(&self) -> Option<Local> {
        match self.opcode {
            opcode::LOCAL_INV => Some(Local::Invalidate(self.rkey)),
            opcode::BIND_MW => Some(Local::Bind(Bind {
                window: WindowId { home: self.remote, serial: self.swap },
                key: self.rkey,
                region: self.imm,
                addr: self.addr,
                len: self.operand,
                access: Access::from_bits_truncate(self.qkey),
            })),
            _ => None,
        }
    }

    /// What the engine needs to know of it.
    pub(crate) fn request(&self, slot: u64) -> SendRequest {
        let (va, rkey) = (self.addr, self.rkey);
        let op = match self.opcode {
            opcode::SEND_IMM => Op::Send { imm: Some(self.imm) },
            opcode::WRITE => Op::Write { va, rkey, imm: None },
            opcode::WRITE_IMM => Op::Write { va, rkey, imm: Some(self.imm) },
            opcode::READ => Op::Read { va, rkey },
            opcode::FETCH_ADD => Op::FetchAdd { va, rkey, add: self.operand },
            opcode::COMPARE_SWAP => Op::CompareSwap { va, rkey, compare: self.operand, swap: self.swap },
            opcode::SEND_INVALIDATE => Op::SendInvalidate { rkey },
            opcode::FLUSH => Op::Flush { va, rkey, feth: flush(Selectivity::Range) },
            opcode::FLUSH_REGION => Op::Flush { va, rkey, feth: flush(Selectivity::Region) },
            opcode::ATOMIC_WRITE => Op::AtomicWrite { va, rkey },
            opcode::BIND_MW | opcode::LOCAL_INV => Op::Local,
            _ => Op::Send { imm: None },
        };
        SendRequest {
            slot,
            op,
            len: self.len,
            signaled: self.flags & SIGNALED != 0,
            solicited: self.flags & SOLICITED != 0,
            fence: self.flags & FENCE != 0,
            destination: match self.flags & (DATAGRAM | XRC) {
                DATAGRAM => engine::Destination::Datagram { qpn: Qpn::new(self.remote), qkey: self.qkey },
                XRC => engine::Destination::SharedReceive(Qpn::new(self.remote)),
                _ => engine::Destination::Connected,
            },
        }
    }
}

impl Wqe for SendWqe {
    fn sge_count(&self) -> usize {
        self.sge_count.into()
    }
}

fn flush(selectivity: Selectivity) -> Feth {
    Feth { placement: Feth::GLOBAL, selectivity }
}

/// A receive work request in its queue; its elements are the tail of its entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RecvWqe {
    pub(crate) wr_id: u64,
    pub(crate) capacity: u32,
    sge_count: u32,
}

impl RecvWqe {
    pub(crate) fn new<'a>(wr: &RecvWr<'a>, max_sge: u32) -> Result<(Self, &'a [u8]), PostReason> {
        let capacity = total(wr.sges, max_sge)?;
        let wqe = RecvWqe { wr_id: wr.wr_id, capacity, sge_count: wr.sges.len() as u32 };
        Ok((wqe, wr.sges.as_bytes()))
    }
}

impl Wqe for RecvWqe {
    fn sge_count(&self) -> usize {
        self.sge_count as usize
    }
}

/// What both kinds of work requests have.
pub(crate) trait Wqe: Copy + FromBytes + IntoBytes + Immutable {
    /// How many elements its tail holds.
    fn sge_count(&self) -> usize;
}

/// The bytes that a list of elements names.
fn total(sges: &[Sge], max_sge: u32) -> Result<u32, PostReason> {
    if sges.len() > max_sge as usize {
        return Err(PostReason::TooManySges);
    }
    let total: u64 = sges.iter().map(|sge| u64::from(sge.len)).sum();
    u32::try_from(total).ok().filter(|total| *total <= MESSAGE_MAX).ok_or(PostReason::BadLength)
}

/// The pieces of elements that bytes `offset..offset + len` of their concatenation lie in: each as
/// an address, a length and a key.
pub(crate) fn pieces(sges: impl Iterator<Item = Sge>, offset: u32, len: u32) -> impl Iterator<Item = Sge> {
    let mut skip = u64::from(offset);
    let mut left = len;
    sges.filter_map(move |sge| {
        if skip >= u64::from(sge.len) {
            skip -= u64::from(sge.len);
            return None;
        }
        let take = left.min(sge.len - skip as u32);
        let piece = Sge { addr: sge.addr.wrapping_add(skip), len: take, key: sge.key };
        skip = 0;
        left -= take;
        (take > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::{Sge, pieces};

    #[test]
    fn pieces_cover_the_range_and_nothing_else() {
        let sges = [10, 0, 5, 20].map(|len| Sge { addr: 100 * u64::from(len), len, key: len });
        let flat: Vec<(u32, u64)> =
            sges.iter().flat_map(|sge| (0..sge.len).map(|i| (sge.key, sge.addr + u64::from(i)))).collect();
        for offset in 0..=35u32 {
            for len in 0..=35 - offset {
                let got: Vec<(u32, u64)> = pieces(sges.iter().copied(), offset, len)
                    .flat_map(|p| (0..p.len).map(move |i| (p.key, p.addr + u64::from(i))))
                    .collect();
                assert_eq!(got, flat[offset as usize..(offset + len) as usize], "{offset} {len}");
            }
        }
    }
}
