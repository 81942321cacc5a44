//! The types and states of queue pairs (IBA 10.2.4, 10.3.1).

use anyverbs_wire::Service;

use crate::work::{Destination, Op, SendRequest};

/// The type of a queue pair (`ibv_qp_type`).
///
/// | | SEND | WRITE | READ, atomics, FLUSH, ATOMIC WRITE | memory windows | lost packets |
/// |---|---|---|---|---|---|
/// | RC, XRC | yes | yes | yes | yes | sent again |
/// | UC | yes | yes | no | yes | the message is lost |
/// | UD | one packet | no | no | no | the message is lost |
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum QpType {
    /// Reliable connection.
    #[default]
    Rc,
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram.
    Ud,
    /// Extended reliable connection, the initiator: it sends to shared receive queues (IBA A14).
    XrcSend,
    /// Extended reliable connection, the target: it only answers.
    XrcRecv,
}

impl QpType {
    /// The transport service whose packets it sends and admits.
    pub(crate) fn service(self) -> Service {
        match self {
            QpType::Rc => Service::Rc,
            QpType::Uc => Service::Uc,
            QpType::Ud => Service::Ud,
            QpType::XrcSend | QpType::XrcRecv => Service::Xrc,
        }
    }

    /// Whether lost packets are sent again.
    pub(crate) fn is_reliable(self) -> bool {
        matches!(self, QpType::Rc | QpType::XrcSend | QpType::XrcRecv)
    }

    /// Whether such a queue pair can carry out a send work request, by its operation (IBA table 46)
    /// and destination.
    pub fn can_do(self, request: &SendRequest) -> bool {
        let op = match self {
            QpType::Rc | QpType::XrcSend => true,
            QpType::Uc => matches!(request.op, Op::Send { .. } | Op::Write { .. } | Op::Local),
            QpType::Ud => matches!(request.op, Op::Send { .. }),
            QpType::XrcRecv => false,
        };
        let destination = matches!(
            (self, request.destination),
            (QpType::Rc | QpType::Uc, Destination::Connected)
                | (QpType::Ud, Destination::Datagram { .. })
                | (QpType::XrcSend, Destination::SharedReceive(_))
        );
        op && destination
    }
}

/// The state of a queue pair (IBA 10.3.1, figure 124).
///
/// ```text
///          to_init        to_rtr               to_rts               to_sqd
///   Reset ---------> Init --------> ReadyToReceive -----> ReadyToSend -----> SendQueueDrain
///                                                          ^   |   ^               |
///                                                   resume |   |   '--- resume ----'
///                                                          |   v error of a send (UC, UD)
///                                                     SendQueueError
///
///   any state but Reset -- an error, enter_error --> Error
///   any state -- reset --> Reset
/// ```
///
/// | state | receives may be posted | sends may be posted | requests are answered | requests are made |
/// |---|---|---|---|---|
/// | Reset | no | no | no | no |
/// | Init | yes | no | no | no |
/// | ReadyToReceive | yes | no | yes | no |
/// | ReadyToSend | yes | yes | yes | yes |
/// | SendQueueDrain | yes | yes, and wait | yes | those that had begun |
/// | SendQueueError | yes | yes, flushed | yes | no |
/// | Error | yes, flushed | yes, flushed | no | no |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QpState {
    /// As created.
    Reset,
    /// Receives may be posted.
    Init,
    /// Answers requests.
    ReadyToReceive,
    /// Answers and makes requests.
    ReadyToSend,
    /// Makes no new requests (SQD).
    SendQueueDrain,
    /// A send of an unreliable queue pair failed; its receives go on (SQE).
    SendQueueError,
    /// Everything is flushed.
    Error,
}

impl QpState {
    /// Whether requests of the peer are looked at.
    pub fn answers(self) -> bool {
        use QpState::*;
        matches!(self, ReadyToReceive | ReadyToSend | SendQueueDrain | SendQueueError)
    }

    /// Whether requests are on their way, so that answers to them are looked at.
    pub fn requests(self) -> bool {
        matches!(self, QpState::ReadyToSend | QpState::SendQueueDrain)
    }
}
