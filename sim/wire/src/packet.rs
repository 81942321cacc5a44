//! A checked view of a datagram.

use std::fmt;
use std::ops::Range;

use crate::{
    Aeth, AtomicEth, Bth, Deth, Ext, Feth, Layout, Missing, Opcode, Operation, Psn, Qpn, Repr, Reth, Service,
    chunk, icrc,
};

/// Why a datagram is not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a BTH and an ICRC, or than its opcode's headers and an ICRC.
    #[error("datagram of {len} bytes is too short: its headers and ICRC take {need}")]
    TooShort {
        /// Length of the datagram in bytes, or `u32::MAX`.
        len: u32,
        /// Length that the headers and the ICRC take.
        need: u32,
    },
    /// The payload, its pad and the headers are all multiples of four, so the datagram must be.
    #[error("datagram of {len} bytes is not a multiple of four")]
    Unaligned {
        /// Length of the datagram in bytes, or `u32::MAX`.
        len: u32,
    },
    /// An opcode that no service defines, or one of the reliable datagram service.
    #[error("unknown opcode {0:#04x}")]
    UnknownOpcode(u8),
    /// A transport header version other than 0.
    #[error("transport header version {0} instead of 0")]
    Version(u8),
    /// The pad count exceeds the payload.
    #[error("pad of {pad} bytes in a payload of {payload}")]
    PadTooLong {
        /// The pad count, 1 to 3.
        pad: u8,
        /// Bytes between the headers and the ICRC.
        payload: u32,
    },
}

/// A datagram from its BTH to its ICRC, checked so that no accessor can panic or read outside it.
///
/// What is checked is the shape. Whether the ICRC is right is [`icrc::verify`]'s to say, and whether the
/// packet makes sense on its queue pair is the transport's.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
    layout: Layout,
    /// Start of the payload.
    header_len: usize,
    /// End of the payload, without pad.
    payload_end: usize,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks the shape of a datagram.
    ///
    /// # Errors
    ///
    /// [`Malformed`] says which rule the datagram breaks; the rules are tried in the order length of a BTH,
    /// version, opcode, length of the headers, alignment, pad.
    pub fn new_checked(buffer: T) -> Result<Packet<T>, Malformed> {
        let bytes = buffer.as_ref();
        let len = bytes.len();
        let too_short = |need: usize| Malformed::TooShort { len: count(len), need: count(need) };
        if len < Bth::LEN + icrc::LEN {
            return Err(too_short(Bth::LEN + icrc::LEN));
        }
        let version = bytes[1] & 0xF;
        if version != 0 {
            return Err(Malformed::Version(version));
        }
        let opcode = Opcode::from_value(bytes[0]);
        let layout = opcode.layout().ok_or(Malformed::UnknownOpcode(opcode.value()))?;
        let xrceth_len = if opcode.has_xrceth() { XRCETH_LEN } else { 0 };
        let header_len = Bth::LEN + xrceth_len + layout.len();
        let payload =
            len.checked_sub(header_len + icrc::LEN).ok_or_else(|| too_short(header_len + icrc::LEN))?;
        if len % 4 != 0 {
            return Err(Malformed::Unaligned { len: count(len) });
        }
        let pad = bytes[1] >> 4 & 3;
        let payload_len = payload
            .checked_sub(usize::from(pad))
            .ok_or(Malformed::PadTooLong { pad, payload: count(payload) })?;
        Ok(Packet { layout, header_len, payload_end: header_len + payload_len, buffer })
    }

    /// The buffer that was checked.
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// The whole datagram.
    pub fn as_bytes(&self) -> &[u8] {
        self.buffer.as_ref()
    }

    /// Service and operation.
    pub fn opcode(&self) -> Opcode {
        Opcode::from_value(self.chunk::<1>(0)[0])
    }

    /// The transport service; `None` for a congestion notification.
    pub fn service(&self) -> Option<Service> {
        self.opcode().service()
    }

    /// The operation; `None` for a congestion notification.
    pub fn operation(&self) -> Option<Operation> {
        self.opcode().operation()
    }

    /// Which extension headers the packet has.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The queue pair this packet is for.
    pub fn dest_qpn(&self) -> Qpn {
        let [q0, q1, q2] = self.chunk(5);
        Qpn::new(u32::from_be_bytes([0, q0, q1, q2]))
    }

    /// Sequence number.
    pub fn psn(&self) -> Psn {
        let [s0, s1, s2] = self.chunk(9);
        Psn::new(u32::from_be_bytes([0, s0, s1, s2]))
    }

    /// The base transport header.
    pub fn bth(&self) -> Bth {
        Bth::parse(&self.chunk(0))
    }

    /// The shared receive queue that an XRC request names.
    pub fn xrc_srqn(&self) -> Option<Qpn> {
        self.opcode().has_xrceth().then(|| Qpn::new(u32::from_be_bytes(self.chunk(Bth::LEN))))
    }

    /// The extension headers.
    pub fn ext(&self) -> Ext {
        let at = self.header_len.saturating_sub(self.layout.len());
        let word = |offset: usize| u32::from_be_bytes(self.chunk(at + offset));
        let reth = |offset: usize| Reth::parse(&self.chunk(at + offset));
        let aeth = || Aeth::parse(&self.chunk(at));
        let deth = || Deth::parse(&self.chunk(at));
        match self.layout {
            Layout::None => Ext::None,
            Layout::Imm => Ext::Imm(word(0)),
            Layout::Ieth => Ext::Ieth(word(0)),
            Layout::Reth => Ext::Reth(reth(0)),
            Layout::RethImm => Ext::RethImm(reth(0), word(Reth::LEN)),
            Layout::Aeth => Ext::Aeth(aeth()),
            Layout::AtomicAck => Ext::AtomicAck(aeth(), u64::from_be_bytes(self.chunk(at + Aeth::LEN))),
            Layout::Atomic => Ext::Atomic(AtomicEth::parse(&self.chunk(at))),
            Layout::Deth => Ext::Deth(deth()),
            Layout::DethImm => Ext::DethImm(deth(), word(Deth::LEN)),
            Layout::Flush => Ext::Flush(Feth::parse(&self.chunk(at)), reth(Feth::LEN)),
            Layout::AtomicWrite => Ext::AtomicWrite(reth(0)),
            Layout::Cnp => Ext::Cnp,
            Layout::Missing => Ext::Missing(Missing::parse(&self.chunk(at))),
        }
    }

    /// Length in bytes of the BTH and all extension headers: where the payload begins.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Where the payload is in the datagram, without its pad.
    pub fn payload_range(&self) -> Range<usize> {
        self.header_len..self.payload_end
    }

    /// The payload, without its pad.
    pub fn payload(&self) -> &[u8] {
        self.as_bytes().get(self.payload_range()).unwrap_or_default()
    }

    /// The last four bytes, right or not.
    pub fn icrc(&self) -> [u8; icrc::LEN] {
        self.as_bytes().last_chunk().copied().unwrap_or_default()
    }

    fn chunk<const N: usize>(&self, at: usize) -> [u8; N] {
        chunk(self.as_bytes(), at)
    }
}

/// Length of the header that names an XRC request's shared receive queue.
pub(crate) const XRCETH_LEN: usize = 4;

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} len {}", Repr::parse(self), self.payload_range().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(opcode: u8, flags: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = opcode;
        bytes[1] = flags;
        bytes
    }

    fn refused(bytes: &[u8]) -> Malformed {
        Packet::new_checked(bytes).expect_err("malformed")
    }

    #[test]
    fn each_rule_has_its_error() {
        assert_eq!(refused(&[]), Malformed::TooShort { len: 0, need: 16 });
        assert_eq!(refused(&datagram(0x04, 0, 15)), Malformed::TooShort { len: 15, need: 16 });
        assert_eq!(refused(&datagram(0x04, 0x01, 16)), Malformed::Version(1));
        assert_eq!(refused(&datagram(0x15, 0, 64)), Malformed::UnknownOpcode(0x15));
        assert_eq!(refused(&datagram(0x44, 0, 64)), Malformed::UnknownOpcode(0x44));
        assert_eq!(refused(&datagram(0x0C, 0, 28)), Malformed::TooShort { len: 28, need: 32 });
        assert_eq!(refused(&datagram(0xAC, 0, 32)), Malformed::TooShort { len: 32, need: 36 });
        assert_eq!(refused(&datagram(0x04, 0, 17)), Malformed::Unaligned { len: 17 });
        assert_eq!(refused(&datagram(0x04, 0x10, 16)), Malformed::PadTooLong { pad: 1, payload: 0 });
    }

    #[test]
    fn smallest_packets_are_accepted() {
        for (opcode, len) in
            [(0x04, 16), (0x0C, 32), (0xAC, 36), (0x13, 44), (0x1C, 36), (0x64, 24), (0x81, 32), (0xC1, 44)]
        {
            let bytes = datagram(opcode, 0, len);
            let packet = Packet::new_checked(&bytes[..]).unwrap();
            assert_eq!(packet.payload_range(), len - 4..len - 4);
            assert!(Packet::new_checked(&bytes[..len - 4]).is_err());
        }
    }

    #[test]
    fn the_payload_excludes_its_pad() {
        let packet = Packet::new_checked(datagram(0x04, 0x30, 12 + 8 + 4)).unwrap();
        assert_eq!(packet.payload_range(), 12..17);
        assert_eq!(packet.payload().len(), 5);
    }
}
