//! BTH opcodes: three bits of transport service, five of operation (IBA 9.2.1).

use std::fmt;

/// A transport service: the class of an [`Opcode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Reliable datagram. Its opcodes are named, but nothing implements the service and
    /// [`Packet`](crate::Packet) rejects its packets.
    Rd,
    /// Unreliable datagram.
    Ud,
    /// Extended reliable connection: requests name the shared receive queue they are for.
    Xrc,
}

impl Service {
    const fn class(self) -> u8 {
        match self {
            Service::Rc => 0x00,
            Service::Uc => 0x20,
            Service::Rd => 0x40,
            Service::Ud => 0x60,
            Service::Xrc => 0xA0,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Service::Rc => "RC",
            Service::Uc => "UC",
            Service::Rd => "RD",
            Service::Ud => "UD",
            Service::Xrc => "XRC",
        })
    }
}

macro_rules! operations {
    ($($variant:ident = $code:literal, $name:literal, $doc:literal;)*) => {
        /// What a packet does: the low five bits of an [`Opcode`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Operation {
            $(#[doc = $doc] $variant = $code,)*
        }

        impl Operation {
            /// Every operation, by code.
            pub const ALL: &[Operation] = &[$(Operation::$variant),*];

            const fn from_code(code: u8) -> Option<Operation> {
                match code {
                    $($code => Some(Operation::$variant),)*
                    _ => None,
                }
            }

            /// The operation's name in capitals, as dissectors print it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Operation::$variant => $name,)*
                }
            }
        }
    };
}

operations! {
    SendFirst = 0x00, "SEND_FIRST", "First packet of a SEND of several.";
    SendMiddle = 0x01, "SEND_MIDDLE", "Neither first nor last of a SEND.";
    SendLast = 0x02, "SEND_LAST", "Last packet of a SEND.";
    SendLastImm = 0x03, "SEND_LAST_IMM", "Last packet of a SEND with immediate data.";
    SendOnly = 0x04, "SEND_ONLY", "A SEND in one packet.";
    SendOnlyImm = 0x05, "SEND_ONLY_IMM", "A SEND with immediate data in one packet.";
    WriteFirst = 0x06, "WRITE_FIRST", "First packet of an RDMA WRITE of several.";
    WriteMiddle = 0x07, "WRITE_MIDDLE", "Neither first nor last of an RDMA WRITE.";
    WriteLast = 0x08, "WRITE_LAST", "Last packet of an RDMA WRITE.";
    WriteLastImm = 0x09, "WRITE_LAST_IMM", "Last packet of an RDMA WRITE with immediate data.";
    WriteOnly = 0x0A, "WRITE_ONLY", "An RDMA WRITE in one packet.";
    WriteOnlyImm = 0x0B, "WRITE_ONLY_IMM", "An RDMA WRITE with immediate data in one packet.";
    ReadRequest = 0x0C, "READ_REQUEST", "An RDMA READ request.";
    ReadResponseFirst = 0x0D, "READ_RESPONSE_FIRST", "First packet of a READ response of several.";
    ReadResponseMiddle = 0x0E, "READ_RESPONSE_MIDDLE", "Neither first nor last of a READ response.";
    ReadResponseLast = 0x0F, "READ_RESPONSE_LAST", "Last packet of a READ response.";
    ReadResponseOnly = 0x10, "READ_RESPONSE_ONLY", "A READ response in one packet.";
    Acknowledge = 0x11, "ACK", "Acknowledgement, negative or positive.";
    AtomicAcknowledge = 0x12, "ATOMIC_ACK", "Acknowledgement of an atomic, with the value before it.";
    CompareSwap = 0x13, "COMPARE_SWAP", "Atomic compare and swap of 8 bytes.";
    FetchAdd = 0x14, "FETCH_ADD", "Atomic fetch and add of 8 bytes.";
    SendLastInvalidate = 0x16, "SEND_LAST_INVALIDATE", "Last packet of a SEND that invalidates an R_Key.";
    SendOnlyInvalidate = 0x17, "SEND_ONLY_INVALIDATE", "A SEND in one packet that invalidates an R_Key.";
    Flush = 0x1C, "FLUSH", "FLUSH of earlier writes to their memory.";
    AtomicWrite = 0x1D, "ATOMIC_WRITE", "Write of 8 bytes that is seen whole or not at all.";
}

impl Operation {
    /// Whether the requester sends this operation (and not the responder).
    pub const fn is_request(self) -> bool {
        !self.is_response()
    }

    /// Whether the responder sends this operation: READ responses and acknowledgements.
    pub const fn is_response(self) -> bool {
        matches!(
            self,
            Operation::ReadResponseFirst
                | Operation::ReadResponseMiddle
                | Operation::ReadResponseLast
                | Operation::ReadResponseOnly
                | Operation::Acknowledge
                | Operation::AtomicAcknowledge
        )
    }

    const fn layout(self) -> Layout {
        use Operation::*;
        match self {
            SendFirst | SendMiddle | SendLast | SendOnly | WriteMiddle | WriteLast | ReadResponseMiddle => {
                Layout::None
            }
            SendLastImm | SendOnlyImm | WriteLastImm => Layout::Imm,
            WriteFirst | WriteOnly | ReadRequest => Layout::Reth,
            WriteOnlyImm => Layout::RethImm,
            ReadResponseFirst | ReadResponseLast | ReadResponseOnly | Acknowledge => Layout::Aeth,
            AtomicAcknowledge => Layout::AtomicAck,
            CompareSwap | FetchAdd => Layout::Atomic,
            SendLastInvalidate | SendOnlyInvalidate => Layout::Ieth,
            Flush => Layout::Flush,
            AtomicWrite => Layout::AtomicWrite,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which extension headers follow the BTH (and, for XRC requests, the XRCETH). One for each variant of
/// [`Ext`](crate::Ext).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// No extension header.
    None,
    /// Immediate data.
    Imm,
    /// The R_Key to invalidate.
    Ieth,
    /// RETH.
    Reth,
    /// RETH, then immediate data.
    RethImm,
    /// AETH.
    Aeth,
    /// AETH, then the original value.
    AtomicAck,
    /// AtomicETH.
    Atomic,
    /// DETH.
    Deth,
    /// DETH, then immediate data.
    DethImm,
    /// FETH, then RETH.
    Flush,
    /// RETH; the eight bytes to write are the payload.
    AtomicWrite,
    /// Sixteen reserved bytes.
    Cnp,
    /// What is missing.
    Missing,
}

impl Layout {
    /// Length in bytes of the extension headers.
    pub const fn len(self) -> usize {
        match self {
            Layout::None => 0,
            Layout::Imm | Layout::Ieth | Layout::Aeth => 4,
            Layout::Deth => 8,
            Layout::AtomicAck | Layout::DethImm => 12,
            Layout::Reth | Layout::AtomicWrite | Layout::Cnp => 16,
            Layout::RethImm | Layout::Flush => 20,
            Layout::Atomic | Layout::Missing => 28,
        }
    }

    /// Whether there is no extension header.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// The first byte of the BTH: a service and an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opcode(u8);

impl Opcode {
    /// RoCEv2 congestion notification packet (IBA A17.9).
    pub const CNP: Opcode = Opcode(0x81);

    /// What a responder misses, told to a requester: our own, of the opcodes that are left to
    /// manufacturers (IBA 9.2.1). Who does not know it drops it as being of another service.
    pub const MISSING: Opcode = Opcode(0xC1);

    /// The opcode of an operation of a service. Not every service has every operation: see
    /// [`operation`](Opcode::operation).
    pub const fn new(service: Service, operation: Operation) -> Opcode {
        Opcode(service.class() | operation as u8)
    }

    /// The opcode with this value, known or not.
    pub const fn from_value(value: u8) -> Opcode {
        Opcode(value)
    }

    /// The byte on the wire.
    pub const fn value(self) -> u8 {
        self.0
    }

    /// The service named by the top three bits; `None` for CNP, MISSING and reserved classes.
    pub const fn service(self) -> Option<Service> {
        match self.0 & 0xE0 {
            0x00 => Some(Service::Rc),
            0x20 => Some(Service::Uc),
            0x40 => Some(Service::Rd),
            0x60 => Some(Service::Ud),
            0xA0 => Some(Service::Xrc),
            _ => None,
        }
    }

    /// The operation, if this service has it: UC has SEND and WRITE, UD has SEND in one packet, with or
    /// without immediate data.
    #[inline]
    pub const fn operation(self) -> Option<Operation> {
        OPERATIONS[self.0 as usize]
    }

    const fn find_operation(self) -> Option<Operation> {
        let code = self.0 & 0x1F;
        match self.service() {
            Some(Service::Rc | Service::Rd | Service::Xrc) => Operation::from_code(code),
            Some(Service::Uc) if code <= Operation::WriteOnlyImm as u8 => Operation::from_code(code),
            Some(Service::Ud)
                if code == Operation::SendOnly as u8 || code == Operation::SendOnlyImm as u8 =>
            {
                Operation::from_code(code)
            }
            _ => None,
        }
    }

    /// Whether it is of a service, known operation or not.
    #[inline]
    pub const fn is_of(self, service: Service) -> bool {
        self.0 & 0xE0 == service.class()
    }

    /// Which extension headers follow; `None` for an opcode that this crate does not parse.
    pub const fn layout(self) -> Option<Layout> {
        if self.0 == Opcode::CNP.0 {
            return Some(Layout::Cnp);
        }
        if self.0 == Opcode::MISSING.0 {
            return Some(Layout::Missing);
        }
        match (self.service(), self.operation()) {
            (Some(Service::Rc | Service::Uc | Service::Xrc), Some(operation)) => Some(operation.layout()),
            (Some(Service::Ud), Some(Operation::SendOnly)) => Some(Layout::Deth),
            (Some(Service::Ud), Some(Operation::SendOnlyImm)) => Some(Layout::DethImm),
            _ => None,
        }
    }

    /// Whether an XRCETH follows the BTH: it does in XRC requests, not in responses (IBA A14).
    pub const fn has_xrceth(self) -> bool {
        match (self.service(), self.operation()) {
            (Some(Service::Xrc), Some(operation)) => operation.is_request(),
            _ => false,
        }
    }
}

/// The operation of each opcode: this is asked for every packet.
const OPERATIONS: [Option<Operation>; 256] = {
    let mut operations = [None; 256];
    let mut value = 0;
    while value < 256 {
        operations[value] = Opcode(value as u8).find_operation();
        value += 1;
    }
    operations
};

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.service(), self.operation()) {
            (Some(service), Some(operation)) => write!(f, "{service} {operation}"),
            _ if *self == Opcode::CNP => f.write_str("CNP"),
            _ if *self == Opcode::MISSING => f.write_str("MISSING"),
            _ => write!(f, "opcode {:#04x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_specification() {
        assert_eq!(Opcode::new(Service::Rc, Operation::SendFirst).value(), 0x00);
        assert_eq!(Opcode::new(Service::Uc, Operation::SendOnly).value(), 0x24);
        assert_eq!(Opcode::new(Service::Ud, Operation::SendOnly).value(), 0x64);
        assert_eq!(Opcode::new(Service::Ud, Operation::SendOnlyImm).value(), 0x65);
        assert_eq!(Opcode::new(Service::Rc, Operation::AtomicWrite).value(), 0x1D);
        assert_eq!(Opcode::new(Service::Xrc, Operation::ReadRequest).value(), 0xAC);
    }

    #[test]
    fn new_and_its_inverse() {
        for service in [Service::Rc, Service::Xrc, Service::Rd] {
            for &operation in Operation::ALL {
                let opcode = Opcode::new(service, operation);
                assert_eq!((opcode.service(), opcode.operation()), (Some(service), Some(operation)));
            }
        }
    }

    #[test]
    fn services_have_only_their_own_operations() {
        let parsed = |class: u8| (class..class + 0x20).filter(|&v| Opcode::from_value(v).layout().is_some());
        assert_eq!(parsed(0x00).count(), Operation::ALL.len());
        assert_eq!(parsed(0x20).collect::<Vec<_>>(), (0x20..=0x2B).collect::<Vec<_>>());
        assert_eq!(parsed(0x40).count(), 0);
        assert_eq!(parsed(0x60).collect::<Vec<_>>(), [0x64, 0x65]);
        assert_eq!(parsed(0x80).collect::<Vec<_>>(), [0x81]);
        assert_eq!(parsed(0xA0).count(), Operation::ALL.len());
        assert_eq!(parsed(0xC0).collect::<Vec<_>>(), [0xC1]);
        assert_eq!((0xE0..=0xFF).filter(|&v| Opcode(v).layout().is_some()).count(), 0);
    }

    #[test]
    fn only_xrc_requests_name_a_shared_receive_queue() {
        let with: Vec<u8> = (0..=255).filter(|&v| Opcode(v).has_xrceth()).collect();
        assert_eq!(with.len(), Operation::ALL.len() - 6);
        assert!(with.iter().all(|v| v & 0xE0 == 0xA0));
        assert!(!with.contains(&0xB1));
    }

    #[test]
    fn display() {
        assert_eq!(Opcode::new(Service::Rc, Operation::SendOnly).to_string(), "RC SEND_ONLY");
        assert_eq!(Opcode::CNP.to_string(), "CNP");
        assert_eq!(Opcode::from_value(0x66).to_string(), "opcode 0x66");
    }
}
