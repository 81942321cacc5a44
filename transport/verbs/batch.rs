//! Several requests, one doorbell.

use std::fmt;

use super::error::{PostError, PostReason};
use super::posting::QpInner;
use super::request::Request;

/// Requests that are posted together, with one doorbell: what makes small messages cheap.
///
/// It belongs to one queue pair and can be used again and again. Requests that were pushed and not submitted are
/// dropped with the batch: their buffers go back to their pools.
///
/// ```no_run
/// # fn f(qp: &anyverbs::Qp<anyverbs::Rc>, pool: &anyverbs::Pool) -> Result<(), Box<dyn std::error::Error>> {
/// use anyverbs::Request;
/// let mut batch = qp.batch();
/// while let Some(lease) = pool.lease().filter(|_| !batch.is_full()) {
///     batch.push(Request::send(lease))?;
/// }
/// batch.submit()?;
/// # Ok(())
/// # }
/// ```
pub struct Batch<'q> {
    qp: &'q QpInner,
    /// The first `len` are there.
    pub(crate) requests: [Option<Request>; Batch::CAPACITY],
    pub(crate) len: usize,
}

impl<'q> Batch<'q> {
    /// How many requests fit.
    pub const CAPACITY: usize = 32;

    pub(crate) fn new(qp: &'q QpInner) -> Batch<'q> {
        Batch { qp, requests: [const { None }; Batch::CAPACITY], len: 0 }
    }

    /// Adds a request behind those that are there.
    ///
    /// # Errors
    /// [`PostReason::BatchFull`], or what is wrong with the request itself; it is handed back.
    pub fn push(&mut self, request: Request) -> Result<(), PostError<Request>> {
        if let Err(reason) = self.qp.check(&request) {
            return Err(PostError { reason, request });
        }
        match self.requests.get_mut(self.len) {
            Some(place) => {
                *place = Some(request);
                self.len += 1;
                Ok(())
            }
            None => Err(PostError { reason: PostReason::BatchFull, request }),
        }
    }

    /// Posts all requests in order and rings the doorbell once.
    ///
    /// # Errors
    /// Why a request was refused. Those before it are posted and gone from the batch; it and those behind it are
    /// still there, for another try, or for [`pop`](Batch::pop).
    pub fn submit(&mut self) -> Result<(), PostReason> {
        let qp = self.qp;
        qp.post_batch(self)
    }

    /// Takes back the request that was pushed last.
    pub fn pop(&mut self) -> Option<Request> {
        self.len = self.len.checked_sub(1)?;
        self.requests[self.len].take()
    }

    /// How many requests are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no more fit.
    pub fn is_full(&self) -> bool {
        self.len == Batch::CAPACITY
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.len).finish_non_exhaustive()
    }
}
