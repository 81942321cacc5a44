//! Completion queues.

mod arming;
mod channel;
mod entry;
mod queue;

use std::sync::Arc;

use anyverbs_engine::Time;

pub use channel::CompletionChannel;
pub(crate) use entry::Entry;
pub use entry::{Cqe, WcOpcode, WcStatus};
pub use queue::Moderation;
pub(crate) use queue::{CqCore, Pushed};

use crate::error::{NicError, in_range};
use crate::nic::Nic;

/// A completion queue (`ibv_cq`). Clones are handles to the same queue; any thread may poll.
#[derive(Clone)]
pub struct Cq {
    pub(crate) core: Arc<CqCore>,
    pub(crate) nic: Nic,
}

impl Cq {
    pub(crate) fn create(
        nic: &Nic,
        id: u64,
        depth: u32,
        channel: Option<&CompletionChannel>,
    ) -> Result<Cq, NicError> {
        in_range("cqe", u64::from(depth), 1, u64::from(nic.attributes().max_cqe))?;
        if channel.is_some_and(|channel| !channel.nic.is_same(nic)) {
            return Err(NicError::OtherDevice { object: "completion channel" });
        }
        let channel = channel.map(|channel| Arc::clone(&channel.core));
        let core = CqCore::new(id, depth, channel, nic.limits().cq.take()?)
            .map_err(NicError::system("allocating a completion queue"))?;
        Ok(Cq { core: Arc::new(core), nic: nic.clone() })
    }

    /// Its number on its device, never used again: what events name it by.
    pub fn id(&self) -> u64 {
        self.core.id()
    }

    /// Takes up to `out.len()` completions out of the queue and returns how many.
    ///
    /// If there is none, the NIC makes progress inline, on the calling thread.
    pub fn poll(&self, out: &mut [Cqe]) -> usize {
        let max = out.len();
        let mut places = out.iter_mut();
        self.poll_each(max, |cqe| {
            if let Some(place) = places.next() {
                *place = cqe;
            }
        })
    }

    /// The same, for those who need no copies: hands up to `max` completions to `sink`, which must not poll this queue.
    pub fn poll_each(&self, max: usize, mut sink: impl FnMut(Cqe)) -> usize {
        let taken = self.core.take(max, &mut sink);
        if taken > 0 || max == 0 {
            self.nic.note_poll();
            return taken;
        }
        let heard = self.nic.hear();
        let taken = self.core.take(max, &mut sink);
        // If something arrived it may be what the program looks for in its memory: no time to relax.
        if taken == 0 && !heard {
            self.nic.waiter().relax();
        }
        taken
    }

    /// Sleeps until there is something to poll or `deadline` has passed; says whether there is.
    /// `None` waits without a limit.
    pub fn wait(&self, deadline: Option<Time>) -> bool {
        self.nic.wait_until(deadline, || !self.core.is_empty())
    }

    /// Asks for one event in the queue's channel, when the next completion is written to the queue, or the next
    /// whose sender asked for a solicited event, or that is an error (`ibv_req_notify_cq`).
    ///
    /// What is in the queue already makes no event: ask, then poll until the queue is empty, then wait.
    ///
    /// # Errors
    /// [`NicError::Invalid`] for a queue that was made without a channel.
    pub fn request_notify(&self, solicited_only: bool) -> Result<(), NicError> {
        if !self.core.has_channel() {
            let reason = "it was made without a completion channel";
            return Err(NicError::Invalid { action: "asking a completion queue for events", reason });
        }
        self.core.ask(solicited_only);
        // Who asks is about to sleep where the NIC does not see it.
        self.nic.hand_over();
        Ok(())
    }

    /// Tells of several completions at a time (`ibv_modify_cq`).
    ///
    /// # Errors
    /// [`NicError::OutOfRange`] for a count of no or more than 65,535 completions, or a period of more than 65,535 us.
    pub fn moderate(&self, moderation: Moderation) -> Result<(), NicError> {
        in_range("cq_count", moderation.count.into(), 1, 0xffff)?;
        in_range("cq_period", moderation.period.as_micros() as u64, 0, 0xffff)?;
        self.core.moderate(moderation);
        // What waited for the old rule waits no longer, and whoever sleeps for it is woken.
        self.nic.control(|core| {
            self.core.tell();
            core.completed = true;
        });
        Ok(())
    }

    /// How many completions are told of together.
    pub fn moderation(&self) -> Moderation {
        self.core.moderation()
    }

    /// Gives the queue another depth; what is in it stays (`ibv_resize_cq`).
    ///
    /// # Errors
    /// [`NicError::OutOfRange`] for a depth outside the device's limits, [`NicError::Invalid`] if more is in the queue
    /// than would fit.
    pub fn resize(&self, depth: u32) -> Result<(), NicError> {
        in_range("cqe", u64::from(depth), 1, u64::from(self.nic.attributes().max_cqe))?;
        self.nic.control(|_| self.core.resize(depth))
    }

    /// How many entries the queue holds.
    pub fn depth(&self) -> u32 {
        self.core.depth()
    }

    /// Whether a completion was lost because the queue was full (`IBV_EVENT_CQ_ERR`). Nothing is written to such a
    /// queue any more.
    pub fn is_overrun(&self) -> bool {
        self.core.is_overrun()
    }
}
