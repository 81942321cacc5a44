//! The base transport header (IBA 9.2).

use std::fmt;

use crate::number::be24;
use crate::{Opcode, Psn, Qpn};

/// The base transport header, which begins every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bth {
    /// Service and operation.
    pub opcode: Opcode,
    /// Solicited event: the receiver shall raise a solicited completion event.
    pub solicited: bool,
    /// MigReq: the path migration state is "migrated", which is the normal state.
    pub migrated: bool,
    /// Zero bytes after the payload, 0 to 3; higher bits are not sent.
    pub pad: u8,
    /// Partition key.
    pub pkey: u16,
    /// Forward congestion notification.
    pub fecn: bool,
    /// Backward congestion notification.
    pub becn: bool,
    /// The queue pair this packet is for.
    pub dest_qpn: Qpn,
    /// The responder shall acknowledge.
    pub ack_request: bool,
    /// Sequence number of this packet.
    pub psn: Psn,
}

impl Bth {
    /// Length in bytes.
    pub const LEN: usize = 12;

    /// Byte of the header that switches may change (FECN, BECN) and that the ICRC therefore masks.
    pub(crate) const VARIANT_BYTE: usize = 4;

    /// A header with the default partition key (0xFFFF, full member), migrated, and nothing else set.
    pub const fn new(opcode: Opcode, dest_qpn: Qpn, psn: Psn) -> Bth {
        Bth {
            opcode,
            solicited: false,
            migrated: true,
            pad: 0,
            pkey: 0xFFFF,
            fecn: false,
            becn: false,
            dest_qpn,
            ack_request: false,
            psn,
        }
    }

    /// Reads a header. Reserved bits and the transport version are ignored;
    /// [`Packet::new_checked`](crate::Packet::new_checked) checks the version.
    pub const fn parse(bytes: &[u8; Bth::LEN]) -> Bth {
        let [op, flags, p0, p1, congestion, q0, q1, q2, ack, s0, s1, s2] = *bytes;
        Bth {
            opcode: Opcode::from_value(op),
            solicited: flags & 0x80 != 0,
            migrated: flags & 0x40 != 0,
            pad: flags >> 4 & 3,
            pkey: u16::from_be_bytes([p0, p1]),
            fecn: congestion & 0x80 != 0,
            becn: congestion & 0x40 != 0,
            dest_qpn: Qpn::new(u32::from_be_bytes([0, q0, q1, q2])),
            ack_request: ack & 0x80 != 0,
            psn: Psn::new(u32::from_be_bytes([0, s0, s1, s2])),
        }
    }

    /// The header on the wire, with transport version 0 and zero reserved bits.
    pub const fn emit(&self) -> [u8; Bth::LEN] {
        let flags = (self.solicited as u8) << 7 | (self.migrated as u8) << 6 | (self.pad & 3) << 4;
        let [p0, p1] = self.pkey.to_be_bytes();
        let congestion = (self.fecn as u8) << 7 | (self.becn as u8) << 6;
        let [q0, q1, q2] = be24(self.dest_qpn.value());
        let [s0, s1, s2] = be24(self.psn.value());
        let ack = (self.ack_request as u8) << 7;
        [self.opcode.value(), flags, p0, p1, congestion, q0, q1, q2, ack, s0, s1, s2]
    }
}

impl fmt::Display for Bth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} qp {} psn {}", self.opcode, self.dest_qpn, self.psn)?;
        if self.pkey != 0xFFFF {
            write!(f, " pkey {:#06x}", self.pkey)?;
        }
        for (set, name) in
            [(self.ack_request, " ack"), (self.solicited, " se"), (self.fecn, " fecn"), (self.becn, " becn")]
        {
            if set {
                f.write_str(name)?;
            }
        }
        if self.pad & 3 != 0 {
            write!(f, " pad {}", self.pad & 3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Operation, Service};

    #[test]
    fn bits_are_where_the_specification_puts_them() {
        let bth = Bth {
            opcode: Opcode::new(Service::Rc, Operation::SendOnly),
            solicited: true,
            migrated: false,
            pad: 3,
            pkey: 0x1234,
            fecn: true,
            becn: false,
            dest_qpn: Qpn::new(0xabcdef),
            ack_request: true,
            psn: Psn::new(0x010203),
        };
        let bytes = [0x04, 0xB0, 0x12, 0x34, 0x80, 0xab, 0xcd, 0xef, 0x80, 1, 2, 3];
        assert_eq!(bth.emit(), bytes);
        assert_eq!(Bth::parse(&bytes), bth);
    }

    #[test]
    fn display() {
        let mut bth = Bth::new(Opcode::new(Service::Rc, Operation::SendOnly), Qpn::new(0xaabb), Psn::new(17));
        assert_eq!(bth.to_string(), "RC SEND_ONLY qp 0x00aabb psn 17");
        (bth.ack_request, bth.pad, bth.pkey) = (true, 3, 0x7FFF);
        assert_eq!(bth.to_string(), "RC SEND_ONLY qp 0x00aabb psn 17 pkey 0x7fff ack pad 3");
    }
}
