//! The acknowledge extended transport header (IBA 9.3.5, 9.7.5.1).

use std::fmt;

use crate::number::be24;
use crate::{credit, rnr};

/// Acknowledges requests: what became of them, and how many messages are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aeth {
    /// Positive, negative, or "receiver not ready".
    pub syndrome: Syndrome,
    /// Message sequence number: 24 bits, higher bits are not sent.
    pub msn: u32,
}

impl Aeth {
    /// Length in bytes.
    pub const LEN: usize = 4;

    /// Reads a header.
    pub const fn parse(bytes: &[u8; Aeth::LEN]) -> Aeth {
        let [syndrome, m0, m1, m2] = *bytes;
        Aeth { syndrome: Syndrome::from_u8(syndrome), msn: u32::from_be_bytes([0, m0, m1, m2]) }
    }

    /// The header on the wire.
    pub const fn emit(&self) -> [u8; Aeth::LEN] {
        let [m0, m1, m2] = be24(self.msn);
        [self.syndrome.to_u8(), m0, m1, m2]
    }
}

impl fmt::Display for Aeth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} msn {}", self.syndrome, self.msn)
    }
}

/// The syndrome byte of an [`Aeth`] (IBA 9.7.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Syndrome {
    /// All requests up to this PSN are done.
    Ack {
        /// End-to-end flow control credit, a code of [`credit`]: five bits, higher bits are not sent.
        credit: u8,
    },
    /// No receive work request was ready: try again after the delay.
    RnrNak {
        /// The delay, a code of [`rnr`]: five bits, higher bits are not sent.
        timer: u8,
    },
    /// The request failed.
    Nak(NakCode),
    /// A syndrome that the specification reserves: the whole byte.
    Reserved(u8),
}

impl Syndrome {
    /// An acknowledgement that sets no credit limit (code 0x1F).
    pub const ACK: Syndrome = Syndrome::Ack { credit: credit::UNLIMITED };

    /// Reads a syndrome; every byte has a meaning.
    pub const fn from_u8(byte: u8) -> Syndrome {
        let code = byte & 0x1F;
        match byte >> 5 {
            0b000 => Syndrome::Ack { credit: code },
            0b001 => Syndrome::RnrNak { timer: code },
            0b011 => Syndrome::Nak(NakCode::from_u8(code)),
            _ => Syndrome::Reserved(byte),
        }
    }

    /// The byte on the wire.
    pub const fn to_u8(self) -> u8 {
        match self {
            Syndrome::Ack { credit } => credit & 0x1F,
            Syndrome::RnrNak { timer } => 0x20 | timer & 0x1F,
            Syndrome::Nak(code) => 0x60 | code.to_u8(),
            Syndrome::Reserved(byte) => byte,
        }
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Syndrome::Ack { credit } => match credit::decode(credit) {
                None => f.write_str("ok"),
                Some(messages) => write!(f, "ok credit {messages}"),
            },
            Syndrome::RnrNak { timer } => write!(f, "rnr {:?}", rnr::delay(timer)),
            Syndrome::Nak(code) => write!(f, "nak {code}"),
            Syndrome::Reserved(byte) => write!(f, "syndrome {byte:#04x}"),
        }
    }
}

/// Why a request failed (IBA 9.7.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NakCode {
    /// A packet is missing: send again from this PSN.
    PsnSequenceError,
    /// The request is malformed, out of place or not allowed on this queue pair.
    InvalidRequest,
    /// Key, bounds or permission of the remote memory.
    RemoteAccess,
    /// The responder could not carry it out for a reason of its own.
    RemoteOperation,
    /// An error of the reliable datagram service.
    InvalidRdRequest,
    /// A reserved code: 5 to 31, higher bits are not sent.
    Other(u8),
}

impl NakCode {
    /// Reads a code from the low five bits.
    pub const fn from_u8(byte: u8) -> NakCode {
        match byte & 0x1F {
            0 => NakCode::PsnSequenceError,
            1 => NakCode::InvalidRequest,
            2 => NakCode::RemoteAccess,
            3 => NakCode::RemoteOperation,
            4 => NakCode::InvalidRdRequest,
            code => NakCode::Other(code),
        }
    }

    /// The code, below 32.
    pub const fn to_u8(self) -> u8 {
        match self {
            NakCode::PsnSequenceError => 0,
            NakCode::InvalidRequest => 1,
            NakCode::RemoteAccess => 2,
            NakCode::RemoteOperation => 3,
            NakCode::InvalidRdRequest => 4,
            NakCode::Other(code) => code & 0x1F,
        }
    }
}

impl fmt::Display for NakCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NakCode::PsnSequenceError => f.write_str("psn_sequence"),
            NakCode::InvalidRequest => f.write_str("invalid_request"),
            NakCode::RemoteAccess => f.write_str("remote_access"),
            NakCode::RemoteOperation => f.write_str("remote_operation"),
            NakCode::InvalidRdRequest => f.write_str("invalid_rd_request"),
            NakCode::Other(code) => write!(f, "code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_round_trips() {
        for byte in 0..=255 {
            assert_eq!(Syndrome::from_u8(byte).to_u8(), byte);
        }
    }

    #[test]
    fn bytes_of_the_specification() {
        assert_eq!(Syndrome::ACK.to_u8(), 0x1F);
        assert_eq!(Syndrome::RnrNak { timer: 12 }.to_u8(), 0x2C);
        assert_eq!(Syndrome::Nak(NakCode::PsnSequenceError).to_u8(), 0x60);
        assert_eq!(Syndrome::Nak(NakCode::InvalidRequest).to_u8(), 0x61);
        assert_eq!(Syndrome::Nak(NakCode::RemoteAccess).to_u8(), 0x62);
        assert_eq!(Syndrome::Nak(NakCode::RemoteOperation).to_u8(), 0x63);
        assert_eq!(Syndrome::from_u8(0x40), Syndrome::Reserved(0x40));
    }

    #[test]
    fn the_msn_is_24_bits() {
        let aeth = Aeth { syndrome: Syndrome::ACK, msn: 0xAB12_3456 };
        assert_eq!(aeth.emit(), [0x1F, 0x12, 0x34, 0x56]);
        assert_eq!(Aeth::parse(&aeth.emit()).msn, 0x12_3456);
    }
}
