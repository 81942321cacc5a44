//! The value of a packet's headers.

use std::fmt;

use crate::packet::XRCETH_LEN;
use crate::{Aeth, AtomicEth, Bth, Deth, Feth, Layout, Missing, Packet, Qpn, Reth, icrc, pad};

/// The extension headers after the BTH (and XRCETH), by the opcode's [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ext {
    /// None.
    None,
    /// Immediate data.
    Imm(u32),
    /// The R_Key to invalidate.
    Ieth(u32),
    /// The remote memory.
    Reth(Reth),
    /// The remote memory, and immediate data.
    RethImm(Reth, u32),
    /// An acknowledgement.
    Aeth(Aeth),
    /// An acknowledgement, and the value that an atomic found.
    AtomicAck(Aeth, u64),
    /// The operands of an atomic.
    Atomic(AtomicEth),
    /// The address of a datagram.
    Deth(Deth),
    /// The address of a datagram, and immediate data.
    DethImm(Deth, u32),
    /// The reach of a FLUSH, and the remote memory.
    Flush(Feth, Reth),
    /// The remote memory of an ATOMIC WRITE, whose eight bytes are the payload.
    AtomicWrite(Reth),
    /// The sixteen reserved bytes of a congestion notification, sent as zero and not looked at.
    Cnp,
    /// What is missing.
    Missing(Missing),
}

impl Ext {
    /// Which headers these are.
    pub const fn layout(&self) -> Layout {
        match self {
            Ext::None => Layout::None,
            Ext::Imm(_) => Layout::Imm,
            Ext::Ieth(_) => Layout::Ieth,
            Ext::Reth(_) => Layout::Reth,
            Ext::RethImm(..) => Layout::RethImm,
            Ext::Aeth(_) => Layout::Aeth,
            Ext::AtomicAck(..) => Layout::AtomicAck,
            Ext::Atomic(_) => Layout::Atomic,
            Ext::Deth(_) => Layout::Deth,
            Ext::DethImm(..) => Layout::DethImm,
            Ext::Flush(..) => Layout::Flush,
            Ext::AtomicWrite(_) => Layout::AtomicWrite,
            Ext::Cnp => Layout::Cnp,
            Ext::Missing(_) => Layout::Missing,
        }
    }
}

/// The headers of a packet as a value. Only the length of the payload and the bytes themselves are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Base transport header.
    pub bth: Bth,
    /// The shared receive queue: in XRC requests, and only there.
    pub xrc_srqn: Option<Qpn>,
    /// Extension headers; the opcode says which.
    pub ext: Ext,
}

impl Repr {
    /// The most bytes that [`emit`](Repr::emit) writes: an XRC atomic.
    pub const MAX_LEN: usize = Bth::LEN + XRCETH_LEN + AtomicEth::LEN;

    /// Headers without an XRCETH.
    pub const fn new(bth: Bth, ext: Ext) -> Repr {
        Repr { bth, xrc_srqn: None, ext }
    }

    /// Reads the headers of a checked packet.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr { bth: packet.bth(), xrc_srqn: packet.xrc_srqn(), ext: packet.ext() }
    }

    /// Whether the extension headers are those that the opcode calls for. If not, what `emit` writes reads
    /// back as something else.
    pub fn is_consistent(&self) -> bool {
        self.bth.opcode.layout() == Some(self.ext.layout())
            && self.bth.opcode.has_xrceth() == self.xrc_srqn.is_some()
    }

    /// Length in bytes of the headers.
    pub const fn header_len(&self) -> usize {
        let xrceth_len = if self.xrc_srqn.is_some() { XRCETH_LEN } else { 0 };
        Bth::LEN + xrceth_len + self.ext.layout().len()
    }

    /// Length in bytes of the whole datagram around a payload: headers, payload, pad, ICRC. `bth.pad` must
    /// be [`pad`]`(payload_len)` for the packet to be well-formed.
    pub const fn datagram_len(&self, payload_len: usize) -> usize {
        payload_len.saturating_add(self.header_len() + pad(payload_len) as usize + icrc::LEN)
    }

    /// Writes the headers to the front of `buf` and returns their length, [`header_len`](Repr::header_len).
    /// If `buf` is shorter than that, writes nothing and returns 0.
    pub fn emit(&self, buf: &mut [u8]) -> usize {
        let len = self.header_len();
        if buf.len() < len {
            return 0;
        }
        let rest = put(buf, &self.bth.emit());
        let rest = match self.xrc_srqn {
            Some(srqn) => put(rest, &srqn.value().to_be_bytes()),
            None => rest,
        };
        match &self.ext {
            Ext::None => rest,
            Ext::Imm(word) | Ext::Ieth(word) => put(rest, &word.to_be_bytes()),
            Ext::Reth(reth) | Ext::AtomicWrite(reth) => put(rest, &reth.emit()),
            Ext::RethImm(reth, imm) => put(put(rest, &reth.emit()), &imm.to_be_bytes()),
            Ext::Aeth(aeth) => put(rest, &aeth.emit()),
            Ext::AtomicAck(aeth, original) => put(put(rest, &aeth.emit()), &original.to_be_bytes()),
            Ext::Atomic(atomic) => put(rest, &atomic.emit()),
            Ext::Deth(deth) => put(rest, &deth.emit()),
            Ext::DethImm(deth, imm) => put(put(rest, &deth.emit()), &imm.to_be_bytes()),
            Ext::Flush(feth, reth) => put(put(rest, &feth.emit()), &reth.emit()),
            Ext::Cnp => put(rest, &[0; 16]),
            Ext::Missing(missing) => put(rest, &missing.emit()),
        };
        len
    }
}

/// Copies `bytes` to the front of `buf` and returns what is left of it, nothing if they do not fit.
fn put<'a>(buf: &'a mut [u8], bytes: &[u8]) -> &'a mut [u8] {
    match buf.split_at_mut_checked(bytes.len()) {
        Some((front, rest)) => {
            front.copy_from_slice(bytes);
            rest
        }
        None => &mut [],
    }
}

impl fmt::Display for Ext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ext::None | Ext::Cnp => Ok(()),
            Ext::Imm(imm) => write!(f, "imm {imm:#010x}"),
            Ext::Ieth(rkey) => write!(f, "invalidate {rkey:#010x}"),
            Ext::Reth(reth) | Ext::AtomicWrite(reth) => reth.fmt(f),
            Ext::RethImm(reth, imm) => write!(f, "{reth} imm {imm:#010x}"),
            Ext::Aeth(aeth) => aeth.fmt(f),
            Ext::AtomicAck(aeth, original) => write!(f, "{aeth} original {original:#x}"),
            Ext::Atomic(atomic) => atomic.fmt(f),
            Ext::Deth(deth) => deth.fmt(f),
            Ext::DethImm(deth, imm) => write!(f, "{deth} imm {imm:#010x}"),
            Ext::Flush(feth, reth) => write!(f, "{feth} {reth}"),
            Ext::Missing(missing) => missing.fmt(f),
        }
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bth.fmt(f)?;
        if let Some(srqn) = self.xrc_srqn {
            write!(f, " srq {srqn}")?;
        }
        if !self.ext.layout().is_empty() && self.ext != Ext::Cnp {
            write!(f, " {}", self.ext)?;
        }
        Ok(())
    }
}
