//! Completion channels: where programs that do not poll are told that there is something to poll.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use anyverbs_engine::Time;

use super::queue::ChannelCore;
use crate::error::NicError;
use crate::nic::Nic;

/// A completion channel (`ibv_comp_channel`). Clones are handles to the same one.
///
/// A completion queue that was made with it puts an event here when something that it was asked to tell of is
/// written to it: see [`Cq::request_notify`](crate::Cq::request_notify). A queue has at most one event here at a
/// time, so nothing grows while nobody asks.
#[derive(Clone)]
pub struct CompletionChannel {
    pub(super) core: Arc<ChannelCore>,
    pub(super) nic: Nic,
}

impl CompletionChannel {
    pub(crate) fn create(nic: &Nic) -> Result<Self, NicError> {
        let ticket = nic.limits().channel.take()?;
        Ok(CompletionChannel { core: Arc::new(ChannelCore::new(ticket)), nic: nic.clone() })
    }

    /// Takes an event: the id of the completion queue that it is of. Never waits.
    pub fn poll(&self) -> Option<u64> {
        self.core.mailbox.take()
    }

    /// Sleeps until there is an event or `deadline` has passed, and takes it (`ibv_get_cq_event`). `None` waits
    /// without a limit.
    pub fn wait(&self, deadline: Option<Time>) -> Option<u64> {
        loop {
            if !self.nic.wait_until(deadline, || !self.core.mailbox.is_empty()) {
                return None;
            }
            // Another thread may have been faster.
            if let Some(id) = self.poll() {
                return Some(id);
            }
        }
    }

    /// A descriptor that is readable while there are events, for `poll(2)` and its kind. To be told by it, leave the
    /// reading to [`poll`](CompletionChannel::poll).
    ///
    /// # Errors
    /// [`NicError::System`] if the process may have no more descriptors.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, NicError> {
        self.core.mailbox.fd().map_err(NicError::system("making an eventfd"))
    }
}
