//! Posting work requests.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, PoisonError};

use anyverbs_engine::QpState;
use anyverbs_memory::{Producer, WindowType};

use super::Qp;
use crate::error::{PostError, PostReason};
use crate::work::{RecvWqe, RecvWr, SendWqe, SendWr, Wqe};

impl Qp {
    /// Posts send work requests, in order, and rings one doorbell (`ibv_post_send`).
    ///
    /// # Errors
    /// [`PostError`] names the first work request that was not posted. Keys and addresses are
    /// checked when the work request is carried out, and show in its completion.
    pub fn post_send(&self, wrs: &[SendWr<'_>]) -> Result<(), PostError> {
        use QpState::*;
        if !matches!(self.state(), ReadyToSend | SendQueueDrain | SendQueueError | Error) {
            return Err(PostError { index: 0, reason: PostReason::BadState });
        }
        let result = post_all(&self.sq, wrs, |wr| SendWqe::new(wr, &self.caps));
        self.doorbell();
        result
    }

    /// Posts one that binds a memory window of type 1.
    pub(crate) fn post_bind(&self, wr: &SendWr<'_>) -> Result<(), PostError> {
        use QpState::*;
        if !matches!(self.state(), ReadyToSend | SendQueueDrain | SendQueueError | Error) {
            return Err(PostError { index: 0, reason: PostReason::BadState });
        }
        let wrs = std::slice::from_ref(wr);
        let result = post_all(&self.sq, wrs, |wr| SendWqe::lay_out(wr, &self.caps, WindowType::One));
        self.doorbell();
        result
    }

    /// Posts receive work requests, in order (`ibv_post_recv`).
    ///
    /// # Errors
    /// [`PostError`] names the first work request that was not posted.
    pub fn post_recv(&self, wrs: &[RecvWr<'_>]) -> Result<(), PostError> {
        if self.state() == QpState::Reset {
            return Err(PostError { index: 0, reason: PostReason::BadState });
        }
        let Some(rq) = &self.rq else {
            return Err(PostError { index: 0, reason: PostReason::NoReceiveQueue });
        };
        let result = post_all(rq, wrs, |wr| RecvWqe::new(wr, self.caps.max_recv_sge));
        // Either the flush of a queue pair that fails just now sees what was posted, or we see here
        // that it has failed.
        fence(Ordering::SeqCst);
        if self.state() == QpState::Error {
            self.doorbell();
        }
        result
    }

    pub(super) fn doorbell(&self) {
        if self.shared.doorbell.ring() {
            self.nic().ring_doorbell(self.qpn());
        }
    }
}

/// Puts work requests into a queue and shows them to the NIC all at once.
pub(crate) fn post_all<'a, W, T: Wqe>(
    queue: &Mutex<Producer<T>>,
    wrs: &[W],
    lay_out: impl Fn(&W) -> Result<(T, &'a [u8]), PostReason>,
) -> Result<(), PostError> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let mut result = Ok(());
    for (index, wr) in wrs.iter().enumerate() {
        let posted =
            lay_out(wr).and_then(|(wqe, tail)| queue.push_with(wqe, tail).map_err(|_| PostReason::QueueFull));
        if let Err(reason) = posted {
            result = Err(PostError { index, reason });
            break;
        }
    }
    queue.publish();
    result
}
