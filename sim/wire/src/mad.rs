//! Management datagrams of the connection manager (IBA 12, 13.4).
//!
//! A MAD is the 256-byte payload of a UD SEND_ONLY between the general services interfaces of two ports,
//! [`Qpn::GSI`] with [`QKEY`]. As for packets there is a checked view, [`Packet`], and a value, [`Repr`],
//! whose [`Message`] has one variant a message:
//!
//! ```
//! use anyverbs_wire::mad::{Message, Packet, Repr, Rtu};
//!
//! let rtu = Rtu { local_comm_id: 0x11, remote_comm_id: 0x22, private_data: [0; 224] };
//! let repr = Repr { transaction_id: 7, status: 0, message: Message::Rtu(rtu) };
//! let bytes = repr.emit();
//! let packet = Packet::new_checked(&bytes).unwrap();
//! assert_eq!(Repr::parse(&packet), repr);
//! assert_eq!(packet.to_string(), "CM RTU tid 0x7 comm 0x00000011 > 0x00000022");
//! ```
//!
//! Private data has the fixed size of its message, since its length does not travel. What librdmacm puts
//! there is an [`IpHeader`].
//!
//! Fields narrower than their type are masked when they are emitted. Fields of the reliable datagram
//! service are sent as zero and not looked at, but for [`Rep::ee_context`], which XRC uses. The header's
//! attribute modifier belongs to the [`Ece`] of a REQ or REP; other messages send it as zero.

use std::fmt;
use std::time::Duration;

use crate::{Qpn, chunk};

mod alternate;
mod connect;
mod disconnect;
mod ip_header;
mod reject;
mod route;
mod service_id;
mod sidr;

pub use alternate::{ApStatus, Apr, Lap};
pub use connect::{Ece, Path, Rep, Req, Rtu, Transport};
pub use disconnect::{Drep, Dreq};
pub use ip_header::IpHeader;
pub use reject::{Mra, Rej, RejectReason, Subject};
pub use route::Route;
pub use service_id::{PortSpace, ServiceId};
pub use sidr::{SidrRep, SidrReq, SidrStatus};

/// Length in bytes of a MAD.
pub const LEN: usize = 256;
/// Length in bytes of the header that all MADs share.
pub const HEADER_LEN: usize = 24;
/// Length in bytes of what follows the header.
const BODY_LEN: usize = LEN - HEADER_LEN;
/// The Q_Key of the general services interface.
pub const QKEY: u32 = 0x8001_0000;

const BASE_VERSION: u8 = 1;
const CLASS_CM: u8 = 7;
const CLASS_VERSION: u8 = 2;
const METHOD_SEND: u8 = 3;

/// Which message a MAD carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Attribute {
    /// Request for communication.
    Req = 0x10,
    /// Message receipt acknowledgement: "wait longer".
    Mra = 0x11,
    /// Reject.
    Rej = 0x12,
    /// Reply to a request.
    Rep = 0x13,
    /// Ready to use.
    Rtu = 0x14,
    /// Request to disconnect.
    Dreq = 0x15,
    /// Reply to a request to disconnect.
    Drep = 0x16,
    /// Service id resolution request, for datagrams.
    SidrReq = 0x17,
    /// Service id resolution reply.
    SidrRep = 0x18,
    /// Load alternate path.
    Lap = 0x19,
    /// Alternate path response.
    Apr = 0x1A,
}

impl Attribute {
    const fn from_value(value: u16) -> Option<Attribute> {
        Some(match value {
            0x10 => Attribute::Req,
            0x11 => Attribute::Mra,
            0x12 => Attribute::Rej,
            0x13 => Attribute::Rep,
            0x14 => Attribute::Rtu,
            0x15 => Attribute::Dreq,
            0x16 => Attribute::Drep,
            0x17 => Attribute::SidrReq,
            0x18 => Attribute::SidrRep,
            0x19 => Attribute::Lap,
            0x1A => Attribute::Apr,
            _ => return None,
        })
    }

    /// The attribute id on the wire.
    pub const fn value(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Attribute::Req => "REQ",
            Attribute::Mra => "MRA",
            Attribute::Rej => "REJ",
            Attribute::Rep => "REP",
            Attribute::Rtu => "RTU",
            Attribute::Dreq => "DREQ",
            Attribute::Drep => "DREP",
            Attribute::SidrReq => "SIDR_REQ",
            Attribute::SidrRep => "SIDR_REP",
            Attribute::Lap => "LAP",
            Attribute::Apr => "APR",
        })
    }
}

/// Why a payload is not a connection-manager MAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MalformedMad {
    /// Not 256 bytes long.
    #[error("MAD of {0} bytes instead of 256")]
    Length(u32),
    /// Base version other than 1.
    #[error("MAD base version {0} instead of 1")]
    BaseVersion(u8),
    /// Not of the connection manager's class, 7.
    #[error("MAD of management class {0:#04x} instead of 0x07")]
    Class(u8),
    /// Class version other than 2.
    #[error("connection-manager class version {0} instead of 2")]
    ClassVersion(u8),
    /// Not a Send.
    #[error("MAD method {0:#04x} instead of 0x03")]
    Method(u8),
    /// Not a message of [`Attribute`].
    #[error("unknown connection-manager message {0:#06x}")]
    Attribute(u16),
}

/// A checked view of a connection-manager MAD.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
    attribute: Attribute,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks the length and the header of a MAD.
    ///
    /// # Errors
    ///
    /// [`MalformedMad`] says what is wrong.
    pub fn new_checked(buffer: T) -> Result<Packet<T>, MalformedMad> {
        let bytes = buffer.as_ref();
        if bytes.len() != LEN {
            return Err(MalformedMad::Length(u32::try_from(bytes.len()).unwrap_or(u32::MAX)));
        }
        let [base_version, class, class_version, method] = chunk(bytes, 0);
        if base_version != BASE_VERSION {
            return Err(MalformedMad::BaseVersion(base_version));
        }
        if class != CLASS_CM {
            return Err(MalformedMad::Class(class));
        }
        if class_version != CLASS_VERSION {
            return Err(MalformedMad::ClassVersion(class_version));
        }
        if method != METHOD_SEND {
            return Err(MalformedMad::Method(method));
        }
        let id = u16::from_be_bytes(chunk(bytes, 16));
        let attribute = Attribute::from_value(id).ok_or(MalformedMad::Attribute(id))?;
        Ok(Packet { buffer, attribute })
    }

    /// Which message this is.
    pub fn attribute(&self) -> Attribute {
        self.attribute
    }

    /// Status of the header; 0 in all messages of the connection manager.
    pub fn status(&self) -> u16 {
        u16::from_be_bytes(self.chunk(4))
    }

    /// Transaction id, by which a request and its reply are matched.
    pub fn transaction_id(&self) -> u64 {
        u64::from_be_bytes(self.chunk(8))
    }

    /// The service that a REQ or SIDR_REQ asks for.
    pub fn service_id(&self) -> Option<ServiceId> {
        matches!(self.attribute, Attribute::Req | Attribute::SidrReq)
            .then(|| ServiceId(u64::from_be_bytes(self.chunk(HEADER_LEN + 8))))
    }

    /// The receiver's own communication id, which the sender learnt from an earlier message: in all
    /// messages but REQ and the SIDR pair. A REJ that answers a lost REQ may have 0.
    pub fn remote_comm_id(&self) -> Option<u32> {
        (!matches!(self.attribute, Attribute::Req | Attribute::SidrReq | Attribute::SidrRep))
            .then(|| u32::from_be_bytes(self.chunk(HEADER_LEN + 4)))
    }

    /// The message.
    pub fn message(&self) -> Message {
        let (body, modifier) = (&self.chunk(HEADER_LEN), u32::from_be_bytes(self.chunk(20)));
        match self.attribute {
            Attribute::Req => Message::Req(Req::parse(body, modifier)),
            Attribute::Mra => Message::Mra(Mra::parse(body)),
            Attribute::Rej => Message::Rej(Rej::parse(body)),
            Attribute::Rep => Message::Rep(Rep::parse(body, modifier)),
            Attribute::Rtu => Message::Rtu(Rtu::parse(body)),
            Attribute::Dreq => Message::Dreq(Dreq::parse(body)),
            Attribute::Drep => Message::Drep(Drep::parse(body)),
            Attribute::SidrReq => Message::SidrReq(SidrReq::parse(body)),
            Attribute::SidrRep => Message::SidrRep(SidrRep::parse(body)),
            Attribute::Lap => Message::Lap(Lap::parse(body)),
            Attribute::Apr => Message::Apr(Apr::parse(body)),
        }
    }

    fn chunk<const N: usize>(&self, at: usize) -> [u8; N] {
        chunk(self.buffer.as_ref(), at)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Repr::parse(self).fmt(f)
    }
}

/// A connection-manager MAD as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Transaction id: chosen by whoever asks, repeated by whoever answers.
    pub transaction_id: u64,
    /// Status; 0.
    pub status: u16,
    /// The message.
    pub message: Message,
}

impl Repr {
    /// Reads a checked MAD.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr { transaction_id: packet.transaction_id(), status: packet.status(), message: packet.message() }
    }

    /// The MAD on the wire.
    pub fn emit(&self) -> [u8; LEN] {
        let mut mad = [0; LEN];
        mad[..4].copy_from_slice(&[BASE_VERSION, CLASS_CM, CLASS_VERSION, METHOD_SEND]);
        mad[4..6].copy_from_slice(&self.status.to_be_bytes());
        mad[8..16].copy_from_slice(&self.transaction_id.to_be_bytes());
        mad[16..18].copy_from_slice(&self.message.attribute().value().to_be_bytes());
        mad[20..24].copy_from_slice(&self.message.attribute_modifier().to_be_bytes());
        mad[HEADER_LEN..].copy_from_slice(&self.message.emit());
        mad
    }
}

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CM {} tid {:#x}", self.message.attribute(), self.transaction_id)?;
        if self.status != 0 {
            write!(f, " status {:#06x}", self.status)?;
        }
        write!(f, " {}", self.message)
    }
}

/// A message of the connection manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the message of its type")]
pub enum Message {
    Req(Req),
    Mra(Mra),
    Rej(Rej),
    Rep(Rep),
    Rtu(Rtu),
    Dreq(Dreq),
    Drep(Drep),
    SidrReq(SidrReq),
    SidrRep(SidrRep),
    Lap(Lap),
    Apr(Apr),
}

impl Message {
    /// Which message this is.
    pub const fn attribute(&self) -> Attribute {
        match self {
            Message::Req(_) => Attribute::Req,
            Message::Mra(_) => Attribute::Mra,
            Message::Rej(_) => Attribute::Rej,
            Message::Rep(_) => Attribute::Rep,
            Message::Rtu(_) => Attribute::Rtu,
            Message::Dreq(_) => Attribute::Dreq,
            Message::Drep(_) => Attribute::Drep,
            Message::SidrReq(_) => Attribute::SidrReq,
            Message::SidrRep(_) => Attribute::SidrRep,
            Message::Lap(_) => Attribute::Lap,
            Message::Apr(_) => Attribute::Apr,
        }
    }

    fn attribute_modifier(&self) -> u32 {
        match self {
            Message::Req(req) => req.ece.options,
            Message::Rep(rep) => rep.ece.options,
            _ => 0,
        }
    }

    fn emit(&self) -> [u8; BODY_LEN] {
        match self {
            Message::Req(message) => message.emit(),
            Message::Mra(message) => message.emit(),
            Message::Rej(message) => message.emit(),
            Message::Rep(message) => message.emit(),
            Message::Rtu(message) => message.emit(),
            Message::Dreq(message) => message.emit(),
            Message::Drep(message) => message.emit(),
            Message::SidrReq(message) => message.emit(),
            Message::SidrRep(message) => message.emit(),
            Message::Lap(message) => message.emit(),
            Message::Apr(message) => message.emit(),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Req(message) => message.fmt(f),
            Message::Mra(message) => message.fmt(f),
            Message::Rej(message) => message.fmt(f),
            Message::Rep(message) => message.fmt(f),
            Message::Rtu(message) => message.fmt(f),
            Message::Dreq(message) => message.fmt(f),
            Message::Drep(message) => message.fmt(f),
            Message::SidrReq(message) => message.fmt(f),
            Message::SidrRep(message) => message.fmt(f),
            Message::Lap(message) => message.fmt(f),
            Message::Apr(message) => message.fmt(f),
        }
    }
}

/// Private data of `N` bytes that begins with `bytes` and ends in zeros; `None` if they are more than `N`.
pub fn private_data<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut data = [0; N];
    data.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(data)
}

/// The time that a five-bit timeout code stands for: 4.096 us x 2^code. Higher bits do not count.
pub const fn timeout(code: u8) -> Duration {
    Duration::from_nanos(4096 << (code & 0x1F))
}

/// The bytes that a path MTU code stands for: 1 to 5 are 256 to 4096, all others are reserved.
pub const fn path_mtu(code: u8) -> Option<u16> {
    match code {
        1..=5 => Some(128 << code),
        _ => None,
    }
}

fn word(body: &[u8; BODY_LEN], at: usize) -> u32 {
    u32::from_be_bytes(chunk(body, at))
}

fn long(body: &[u8; BODY_LEN], at: usize) -> u64 {
    u64::from_be_bytes(chunk(body, at))
}

/// The 24-bit number of the three bytes from `at`.
fn triple(body: &[u8; BODY_LEN], at: usize) -> u32 {
    let [a, b, c] = chunk(body, at);
    u32::from_be_bytes([0, a, b, c])
}

fn qpn(body: &[u8; BODY_LEN], at: usize) -> Qpn {
    Qpn::new(triple(body, at))
}

/// Writes `bytes` from `at`. Offsets are constants of the layouts, so that they fit is what the tests show.
fn put(body: &mut [u8; BODY_LEN], at: usize, bytes: &[u8]) {
    body[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests;
