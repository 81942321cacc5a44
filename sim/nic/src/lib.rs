//! A software RDMA NIC: the verbs object model over any datagram [`Link`](link::Link).
//!
//! ```text
//!  Nic --alloc_pd--> Pd --register--> Mr        objects, as in the verbs manual
//!   |                 |---alloc_mw---> Mw
//!   |                 '---create_qp--> Qp --post_send / post_recv--.
//!   '--create_cq--> Cq --poll / wait                               v
//!  ------------------------------------------------------------- doorbell ----
//!   Token<Core>: one thread at a time makes progress (try-lock, nobody queues)
//!     Core: queue pairs (engine + rings), regions, timers, packets in and out
//!       '--> Link: datagrams, a clock, a place to sleep
//! ```
//!
//! Progress belongs to whoever holds the token: a program that posts or polls does it inline; a
//! thread of the NIC takes over when nobody polls for a while, and sleeps when there is nothing to do.
//! See [`Nic::progress`].
#![forbid(unsafe_code)]

mod address;
mod afford;
mod attributes;
pub mod cm;
mod completion;
mod core;
mod datapath;
mod device_memory;
mod doorbell;
mod error;
mod event;
mod held;
mod limits;
pub mod link;
mod mailbox;
mod multicast;
mod nic;
mod numbered;
mod peer_ids;
mod peers;
mod qp;
mod queue_pair;
mod region;
mod shared_receive;
mod thread;
mod timers;
mod token;
mod transmit;
mod window;
mod work;

pub use address::{Ah, AhAttributes, GRH_LEN};
pub use anyverbs_engine::{Counters, Mtu, QpState, QpType, Recovery, Time, congestion};
pub use anyverbs_memory::{
    Access, AccessError, Block, ForeignMemory, Memory, RegionInfo, RegionKind, WindowBinding, WindowInfo,
    WindowType,
};
pub use anyverbs_wire::rnr;
pub use attributes::{DeviceAttributes, DeviceUsage, NicConfig, PortAttributes};
pub use completion::{CompletionChannel, Cq, Cqe, Moderation, WcOpcode, WcStatus};
pub use device_memory::{Dm, DmInUse};
pub use error::{NicError, PostError, PostReason};
pub use event::AsyncEvent;
pub use nic::Nic;
pub use queue_pair::{Qp, QpAttributes, QpInit, RtrAttributes, RtsAttributes};
pub use region::{Advice, Mr, MrChange, MrInUse, Pd};
pub use shared_receive::{Srq, SrqAttributes, SrqInit, XrcDomain};
pub use window::{BindWr, Mw, MwBind, MwHandle, inc_rkey};
pub use work::{Destination, MULTICAST_QPN, RecvWr, SendOp, SendWr, Sge};
