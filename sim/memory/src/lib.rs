//! The unsafe core of the software RDMA NIC: the memory it shares with its users, with its peers
//! on this host and with nobody's permission, and the few operations that are sound on such memory.
//!
//! - [`Block`]: page-aligned memory that another process can map.
//! - [`RegionTable`]: what is registered, and the windows into it: the one place where rights and bounds are
//!   checked. [`ForeignMemory`] is memory of the program that may be registered.
//! - [`copy`]: copies from and to memory that may change meanwhile, alone or fused with a CRC.
//! - [`ring()`]: single-producer, single-consumer rings of plain values, without a pointer inside.
//! - [`record_ring`]: the same for records of any length, between processes, with a doorbell.
//!
//! # Racy memory
//! Registered memory belongs to the program, and a program (or a peer with a right to it) may write
//! to a buffer while the NIC reads it. That is a bug of the program's data, never of this process:
//! no reference (`&[u8]`) is made to such memory; it is read and written *bytewise atomically in
//! meaning*: each byte read is some value that was stored there, and no value read decides where
//! the next access goes. The CRC of outgoing payload is computed over the private copy that is sent,
//! so a buffer that changes under way yields a packet that is right about its own content.

mod block;
pub mod copy;
mod region;
mod ring;

pub use block::{Block, BlockError};
pub use region::{
    Access, AccessError, Bind, BindError, Change, DeregisterError, ForeignMemory, Memory, Owner, RegionInfo,
    RegionKind, RegionTable, RegisterError, Span, SpanError, WindowBinding, WindowId, WindowInfo, WindowType,
};
pub use ring::record::{Bell, Note, Popped, RecordConsumer, RecordProducer, record_ring};
pub use ring::{Consumer, Producer, ring, ring_with_tail};
