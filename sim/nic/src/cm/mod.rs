//! The connection manager of the device: queue pairs connected by address and service (`rdma_cm`).
//!
//! ```text
//!  program         Listener --poll/wait--> ConnectRequest --accept--> Connection --poll/wait--> events
//!                  Nic::connect --> Connecting --poll/wait--> Connection
//!                  UdListener --> UdRequest --accept(qpn, qkey)          Nic::resolve_ud --> Resolving
//!  ---------------------------------------- mailboxes ----------------------------------------------
//!  progress token  Cm: the engine's ConnectionManager, who owns which id, the doors that are open
//!                    | MADs                                    | QP transitions
//!                  queue pair 1 (gsi)                        queue pairs
//! ```
//!
//! An object a role, and dropping it in any state ends what it stands for: a listener closes, a request
//! that nobody answered is rejected, a request of our own is taken back, a connection disconnected. What
//! remains for a while is timewait, in which the number of the queue pair is given to no other one.
//!
//! Queue pairs that are passed as such are readied by the device, in the pass that hears of it: the asking
//! one goes from Init to ReadyToSend when the peer accepts, the answering one to ReadyToReceive when it
//! accepts and to ReadyToSend when the peer is ready, which a first packet says as well as an RTU. A
//! program that moves its queue pairs itself, as librdmacm does, uses the calls that end in `_by_number`
//! and [`Connection::establish`]; those queue pairs do not go to the error state either when the connection
//! is over.
//!
//! A service of one of librdmacm's port spaces ([`PortSpace`]) carries the addresses before the private
//! data, so that stock peers understand us and the other way round.
//!
//! | private data of | bytes | after the addresses |
//! |---|---|---|
//! | a request ([`ConnectParams`]) | 92 | 56 |
//! | an acceptance ([`AcceptParams`]) | 196 | |
//! | a rejection | 148 | |
//! | [`Connection::establish`] | 224 | |
//! | [`Connection::disconnect`] | 220 | |
//! | a resolution ([`UdParams`]) | 216 | 180 |
//! | its answer | 136 | |

mod config;
mod connect;
mod connection;
mod datagram;
mod gsi;
mod handle;
mod listener;
mod mailbox;
mod request;
mod state;
mod terms;

pub use anyverbs_engine::cm::{
    Capabilities, Cause, ConnectResponse, Counters, Error, PrivateData, Rejected, SidrReply, Terms,
    Transport, Usage,
};
pub use anyverbs_wire::mad::{IpHeader, PortSpace, RejectReason, ServiceId, SidrStatus, Subject};
pub use config::{CmConfig, QuotaCounters, Quotas};
pub use connect::{ConnectParams, Connecting};
pub use connection::{ConnectError, Connection, ConnectionEvent};
pub use datagram::{Resolving, UD_QKEY, UdListener, UdParams, UdRequest};
pub use listener::Listener;
pub use request::{AcceptParams, ConnectRequest};
pub(crate) use state::Cm;

use crate::nic::Nic;

impl Nic {
    /// What the connection manager saw.
    pub fn cm_counters(&self) -> Counters {
        self.control(|core| *core.cm.engine.counters())
    }

    /// What the connection manager holds at the moment.
    pub fn cm_usage(&self) -> Usage {
        self.control(|core| core.cm.engine.usage())
    }

    /// What quotas refused.
    pub fn quota_counters(&self) -> QuotaCounters {
        self.control(|core| QuotaCounters {
            held_quota: core.held.refused(),
            qp_per_peer: core.peers.refused(),
        })
    }
}
