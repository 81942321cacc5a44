//! RoCEv2 packets: headers, opcodes, the invariant CRC and connection-manager MADs.
//!
//! Every packet has two faces. [`Packet`] is a checked view of a received datagram: once
//! [`Packet::new_checked`] has accepted it, no accessor can panic. [`Repr`] is the value of its headers,
//! which can be compared, printed on one line and emitted again. Header structs ([`Bth`], [`Reth`], ...)
//! convert to and from fixed-size arrays, so reading one can neither fail nor run off the end.
//!
//! ```
//! use anyverbs_wire::{Bth, Ext, Flow, Opcode, Operation, Packet, Psn, Qpn, Repr, Service, icrc};
//!
//! let flow = Flow { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), source_port: 0xC001 };
//! let mut bth = Bth::new(Opcode::new(Service::Rc, Operation::SendOnly), Qpn::new(0xaabb), Psn::new(17));
//! bth.ack_request = true;
//! bth.pad = anyverbs_wire::pad(5);
//! let repr = Repr { bth, xrc_srqn: None, ext: Ext::None };
//!
//! let mut datagram = vec![0; repr.datagram_len(5)];
//! let header_len = repr.emit(&mut datagram);
//! datagram[header_len..header_len + 5].copy_from_slice(b"hello");
//! let icrc_at = datagram.len() - icrc::LEN;
//! let icrc = icrc::compute(&flow, 0, &datagram[..icrc_at]);
//! datagram[icrc_at..].copy_from_slice(&icrc);
//!
//! let packet = Packet::new_checked(&datagram).unwrap();
//! assert_eq!(icrc::verify(&flow, &datagram), Some(0));
//! assert_eq!(Repr::parse(&packet), repr);
//! assert_eq!(packet.to_string(), "RC SEND_ONLY qp 0x00aabb psn 17 ack pad 3 len 5");
//! ```
//!
//! The crate does no I/O, allocates nothing and contains no unsafe code.

#![forbid(unsafe_code)]

mod aeth;
mod atomic;
mod bth;
mod capture;
pub mod credit;
mod deth;
mod flow;
mod flush;
pub mod icrc;
pub mod mad;
mod missing;
mod number;
mod opcode;
mod packet;
mod repr;
mod reth;
pub mod rnr;

pub use aeth::{Aeth, NakCode, Syndrome};
pub use atomic::AtomicEth;
pub use bth::Bth;
pub use capture::encapsulate;
pub use deth::Deth;
pub use flow::{Flow, UDP_PORT};
pub use flush::{Feth, Selectivity};
pub use missing::{Gap, Missing};
pub use number::{Psn, Qpn};
pub use opcode::{Layout, Opcode, Operation, Service};
pub use packet::{Malformed, Packet};
pub use repr::{Ext, Repr};
pub use reth::Reth;

/// The zero bytes that follow a payload of `payload_len` bytes so that it ends on a multiple of four
/// (0 to 3).
pub const fn pad(payload_len: usize) -> u8 {
    (payload_len.wrapping_neg() & 3) as u8
}

/// The `N` bytes of `bytes` from `at`, or zeros where `bytes` is too short: a read that cannot panic.
pub(crate) fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .and_then(|chunk| chunk.first_chunk())
        .copied()
        .unwrap_or([0; N])
}
