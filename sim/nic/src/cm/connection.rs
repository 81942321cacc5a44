//! A connection, from the answer to its end.

use std::net::IpAddr;
use std::task::Waker;

use anyverbs_engine::Time;
use anyverbs_engine::cm::{Cause, ConnectResponse, Event, PrivateData, Rejected, State};
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::RejectReason;

use super::connect::Answer;
use super::handle::Handle;
use super::mailbox::Notice;
use crate::error::NicError;
use crate::queue_pair::{RtrAttributes, RtsAttributes};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer, or its device, does not want to.
    #[error("the peer rejected the connection: {}", .0.reason)]
    Rejected(Box<Rejected>),
    /// The peer did not answer, as often as it was asked.
    #[error("the peer did not answer")]
    Unreachable,
    /// The peer accepted, and our own queue pair could not be readied.
    #[error("the peer accepted, but the queue pair could not be readied: {0}")]
    NotReady(#[source] NicError),
}

/// What happens to a connection.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// The peer is ready: the connection that we accepted stands.
    Established {
        /// What came with the peer's message; `None` if data overtook it.
        private_data: Option<PrivateData>,
    },
    /// It does not come to be, and the queue pair is in the error state. Timewait follows.
    Failed(ConnectError),
    /// It is over, and the queue pair is in the error state. Timewait follows.
    Disconnected {
        /// Why.
        cause: Cause,
        /// What came with the peer's last message.
        private_data: PrivateData,
    },
    /// The last event: no packet of the connection can be under way any more, and its queue pair may be
    /// connected anew.
    TimewaitExit,
}

/// A connection. When it is dropped it is disconnected: the queue pair goes to the error state.
pub struct Connection {
    handle: Handle,
    peer: IpAddr,
    qpn: u32,
    answer: Option<Answer>,
}

impl Connection {
    pub(super) fn new(handle: Handle, peer: IpAddr, qpn: u32, answer: Option<Answer>) -> Self {
        Connection { handle, peer, qpn, answer }
    }

    /// The peer's GID.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Our queue pair.
    pub fn qpn(&self) -> u32 {
        self.qpn
    }

    /// How the peer accepted, if we asked; with its private data.
    pub fn response(&self) -> Option<&ConnectResponse> {
        self.answer.as_ref().map(|answer| &*answer.response)
    }

    /// The attributes of our queue pair's transition to ReadyToReceive, if we asked: for a program that
    /// moves it itself.
    pub fn rtr_attributes(&self) -> Option<RtrAttributes> {
        self.answer.as_ref().map(Answer::rtr)
    }

    /// The same for the transition to ReadyToSend.
    pub fn rts_attributes(&self) -> Option<RtsAttributes> {
        self.answer.as_ref().map(Answer::rts)
    }

    /// Whether it stands.
    pub fn is_established(&self) -> bool {
        self.handle.state() == Some(State::Established)
    }

    /// Whether it is over, and timewait as well.
    pub fn has_ended(&self) -> bool {
        self.handle.mailbox.has_ended()
    }

    /// Tells the peer that a queue pair which the program moves itself is ready: only after
    /// [`Nic::connect_by_number`](crate::Nic::connect_by_number). Up to 224 bytes of private data.
    ///
    /// # Errors
    /// [`NicError::Cm`].
    pub fn establish(&self, private_data: &[u8]) -> Result<(), NicError> {
        self.handle.call_engine("establishing a connection", |engine, now, id, actions| {
            engine.establish(now, id, private_data, actions)
        })
    }

    /// Says no to the peer's answer, before [`establish`](Self::establish). Up to 148 bytes of private
    /// data.
    ///
    /// # Errors
    /// [`NicError::Cm`].
    pub fn reject(&self, reason: RejectReason, private_data: &[u8]) -> Result<(), NicError> {
        self.handle.call_engine("rejecting a connection", |engine, now, id, actions| {
            engine.reject(now, id, reason, &[], private_data, actions)
        })
    }

    /// A first packet has come, which a program saw on a queue pair that it moves itself (`rdma_notify`
    /// with `IBV_EVENT_COMM_EST`). Where the NIC moves the queue pair, it does this, too.
    ///
    /// # Errors
    /// [`NicError::Cm`] if the connection is over.
    pub fn notify_established(&self) -> Result<(), NicError> {
        let qpn = Qpn::new(self.qpn);
        self.handle.call_engine("establishing a connection", |engine, now, _, actions| {
            engine.communication_established(now, qpn, actions);
            Ok(())
        })
    }

    /// Ends the connection, with up to 220 bytes of private data (`rdma_disconnect`). The queue pair goes
    /// to the error state now; [`ConnectionEvent::Disconnected`] comes when the peer has agreed, and not
    /// at all for a connection that was accepted and does not stand yet.
    ///
    /// # Errors
    /// [`NicError::Cm`]: too much private data, or it is over already.
    pub fn disconnect(&self, private_data: &[u8]) -> Result<(), NicError> {
        const ACTION: &str = "disconnecting";
        let id = self.handle.id;
        self.handle.call(ACTION, |core, now| {
            let cm = &mut core.cm;
            cm.engine.disconnect(now, id, private_data, &mut cm.actions).map_err(NicError::cm(ACTION))?;
            // Before the message leaves, which is when this returns.
            core.end_queue_pair(id);
            Ok(())
        })
    }

    /// What happened, in order; `None`: nothing new. If there is nothing the NIC makes progress inline,
    /// on the calling thread.
    pub fn poll(&self) -> Option<ConnectionEvent> {
        self.handle.poll().map(event)
    }

    /// Sleeps until something happens or `deadline` has passed. `None` waits without a limit, unless the
    /// last event was taken.
    pub fn wait(&self, deadline: Option<Time>) -> Option<ConnectionEvent> {
        self.handle.wait(deadline).map(event)
    }

    /// Wakes `waker` for each event. It is called while the NIC makes progress, so it must not call the
    /// NIC.
    pub fn set_waker(&self, waker: &Waker) {
        self.handle.set_waker(waker);
    }
}

fn event(notice: Notice) -> ConnectionEvent {
    let event = match notice {
        Notice::NotReady(error) => return ConnectionEvent::Failed(ConnectError::NotReady(error)),
        Notice::Event(event) => *event,
    };
    match event {
        Event::Established { private_data, .. } => ConnectionEvent::Established { private_data },
        Event::Rejected(rejected) => ConnectionEvent::Failed(ConnectError::Rejected(Box::new(rejected))),
        Event::Unreachable { .. } => ConnectionEvent::Failed(ConnectError::Unreachable),
        Event::Disconnected { cause, private_data, .. } => {
            ConnectionEvent::Disconnected { cause, private_data }
        }
        Event::TimewaitExit { .. } => ConnectionEvent::TimewaitExit,
        // The answer was taken before there was a connection, and the others are of other objects.
        Event::ConnectResponse(_)
        | Event::ConnectRequest(_)
        | Event::SidrRequest(_)
        | Event::SidrReply(_) => ConnectionEvent::Established { private_data: None },
    }
}
