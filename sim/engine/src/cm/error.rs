//! Why the connection manager refuses what its consumer asks.

use super::State;

/// A call that the connection manager did not carry out. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// No connection or resolution has this id, or it has ended.
    #[error("no connection or resolution has this id; it may have ended")]
    UnknownId,
    /// The connection is in a state that does not allow this.
    #[error("a connection in state {0:?} does not allow this")]
    OutOfState(State),
    /// More private data than the message has room for.
    #[error("private data of more than {max} bytes")]
    PrivateDataTooLong {
        /// Room in bytes.
        max: usize,
    },
    /// More additional information than the message has room for.
    #[error("additional information of more than {max} bytes")]
    InfoTooLong {
        /// Room in bytes.
        max: usize,
    },
    /// The queue-pair number is reserved, or belongs to another connection, maybe one in timewait.
    #[error("the queue-pair number is reserved, or used by another connection")]
    QpnInUse,
    /// The initiator depth is more than the peer's responder resources (IBA 12.6.8).
    #[error("initiator depth above the {offered} responder resources of the peer")]
    InitiatorDepth {
        /// What the peer offers.
        offered: u8,
    },
    /// Somebody listens on this service.
    #[error("the service is listened on")]
    ServiceInUse,
    /// Nobody listens on this service.
    #[error("the service is not listened on")]
    NotListening,
    /// [`Limits::listeners`](super::Limits::listeners) is reached.
    #[error("too many listeners")]
    TooManyListeners,
    /// [`Limits::connections`](super::Limits::connections) is reached.
    #[error("too many connections")]
    TooManyConnections,
    /// [`Limits::resolutions`](super::Limits::resolutions) is reached.
    #[error("too many resolutions")]
    TooManyResolutions,
    /// The source of random numbers gave no communication id that is free.
    #[error("no free communication id was found")]
    NoFreeId,
}
