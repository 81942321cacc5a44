//! Asynchronous events: what is told beside completions.

use std::os::fd::BorrowedFd;

use anyverbs_engine::{Event, Time};

use crate::error::NicError;
use crate::nic::Nic;

/// Something that happened to an object of the device (`ibv_async_event`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsyncEvent {
    /// A packet of the peer arrived at a queue pair that is not yet ready to send (`IBV_EVENT_COMM_EST`).
    CommunicationEstablished {
        /// The queue pair.
        qpn: u32,
    },
    /// What had begun when the send queue was to drain has ended (`IBV_EVENT_SQ_DRAINED`).
    SendQueueDrained {
        /// The queue pair.
        qpn: u32,
    },
    /// A request of the peer was invalid, and ended the queue pair (`IBV_EVENT_QP_REQ_ERR`).
    QpRequestError {
        /// The queue pair.
        qpn: u32,
    },
    /// The peer touched what it may not touch, and ended the queue pair (`IBV_EVENT_QP_ACCESS_ERR`).
    QpAccessError {
        /// The queue pair.
        qpn: u32,
    },
    /// The queue pair ended since one of its completions was lost (`IBV_EVENT_QP_FATAL`).
    QpFatal {
        /// The queue pair.
        qpn: u32,
    },
    /// A queue pair in the error state takes nothing more from its shared receive queue
    /// (`IBV_EVENT_QP_LAST_WQE_REACHED`).
    LastWqeReached {
        /// The queue pair.
        qpn: u32,
    },
    /// A completion queue was full when a completion came (`IBV_EVENT_CQ_ERR`).
    CqError {
        /// [`Cq::id`](crate::Cq::id).
        cq: u64,
    },
    /// Fewer receives wait in a shared receive queue than its limit (`IBV_EVENT_SRQ_LIMIT_REACHED`).
    SrqLimitReached {
        /// The number of the queue.
        srqn: u32,
    },
    /// The link broke: see [`Nic::link_error`] (`IBV_EVENT_DEVICE_FATAL`).
    DeviceFatal,
}

impl AsyncEvent {
    /// What an engine told of its queue pair.
    pub(crate) fn of_queue_pair(event: Event, qpn: u32) -> Self {
        match event {
            Event::CommunicationEstablished => AsyncEvent::CommunicationEstablished { qpn },
            Event::SendQueueDrained => AsyncEvent::SendQueueDrained { qpn },
            Event::RequestError => AsyncEvent::QpRequestError { qpn },
            Event::AccessError => AsyncEvent::QpAccessError { qpn },
        }
    }

    /// The queue pair that it is about.
    pub fn qpn(&self) -> Option<u32> {
        use AsyncEvent::*;
        match *self {
            CommunicationEstablished { qpn }
            | SendQueueDrained { qpn }
            | QpRequestError { qpn }
            | QpAccessError { qpn }
            | QpFatal { qpn }
            | LastWqeReached { qpn } => Some(qpn),
            CqError { .. } | SrqLimitReached { .. } | DeviceFatal => None,
        }
    }
}

impl Nic {
    /// Takes an asynchronous event; never waits. Events of an object are gone with it, and one that is still there is
    /// not there twice.
    pub fn poll_async_event(&self) -> Option<AsyncEvent> {
        self.events().take()
    }

    /// Sleeps until there is an asynchronous event or `deadline` has passed, and takes it (`ibv_get_async_event`).
    pub fn wait_async_event(&self, deadline: Option<Time>) -> Option<AsyncEvent> {
        loop {
            if !self.wait_until(deadline, || !self.events().is_empty()) {
                return None;
            }
            // Another thread may have been faster.
            if let Some(event) = self.poll_async_event() {
                return Some(event);
            }
        }
    }

    /// A descriptor that is readable while there are asynchronous events; leave the reading to
    /// [`poll_async_event`](Nic::poll_async_event).
    ///
    /// # Errors
    /// [`NicError::System`] if the process may have no more descriptors.
    pub fn async_fd(&self) -> Result<BorrowedFd<'_>, NicError> {
        self.events().fd().map_err(NicError::system("making an eventfd"))
    }
}
