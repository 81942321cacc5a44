//! The InfiniBand transport as a state machine: no I/O, no clock, no threads, no unsafe code.
//!
//! A [`QueuePair`] is fed events, each with the time at which it happened, and answers with ordered
//! [`Action`]s. It never moves a byte of payload: it names ranges, and asks a small synchronous
//! [`Memory`] for what only the owner of the memory knows.
//!
//! ```text
//!   post_send ---.                          .--> Transmit { at, header, payload }
//!   on_packet ---+--> QueuePair (+ Memory) -+--> Place    { datagram range -> target }
//!   on_early  ---+                          +--> Hold     { datagram -> buffer }
//!   on_timer  ---+                          +--> Complete { work request, status }
//!   transmit  ---'                          '--> Event
//!                    next_deadline() says when on_timer is due
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `qp` | types, states and transitions of queue pairs, and the checks that admit a packet |
//! | `reliable` | RC and XRC: requester and responder, what comes early, what is sent again |
//! | `unreliable` | UC and UD |
//! | [`congestion`] | how fast a queue pair may send |
//! | [`cm`] | how queue pairs find each other: the connection manager |
//!
//! The order of actions is meaning, and whoever carries them out keeps it: what arrived is *placed*
//! before it is acknowledged, and the requester *completes* only what was acknowledged.
//!
//! Rules cite the InfiniBand Architecture Specification, volume 1 (`IBA`), by section or by
//! compliance statement (`C9-105`).
#![forbid(unsafe_code)]

mod action;
pub mod cm;
pub mod congestion;
mod counters;
mod memory;
mod pacer;
mod qp;
mod reliable;
mod segment;
mod time;
mod unreliable;
mod work;

pub use action::{Action, Completion, Event, Queue, Source, Target, Transmit};
pub use counters::Counters;
pub use memory::{Denied, Memory, Need, Receive};
pub use qp::{
    Config, Context, Early, MESSAGE_MAX, Mtu, QpState, QpType, QueuePair, ReadyToReceive, ReadyToSend,
    Recovery,
};
pub use time::Time;
pub use work::{Destination, Op, ReceiveKind, SendRequest, Status};
