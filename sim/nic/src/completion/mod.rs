//! Completion queues.

mod arming;
mod channel;
mod entry;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyverbs_engine::Time;
use anyverbs_memory::{Consumer, Producer, ring};

pub use channel::CompletionChannel;
pub(crate) use entry::Entry;
pub use entry::{Cqe, WcOpcode, WcStatus};

use arming::Arming;
use channel::ChannelCore;

use crate::error::{NicError, in_range};
use crate::limits::Ticket;
use crate::nic::Nic;

/// The writing side, and when it tells of what it wrote.
struct Writer {
    ring: Producer<Entry>,
    moderation: Moderation,
    /// Completions that were to be told of and were not yet.
    untold: u32,
}

/// How many completions are told of together (`ibv_modify_cq`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moderation {
    /// An event comes after so many completions; 1 at least.
    pub count: u32,
    /// It comes so long after the first of them at the latest; zero: there is no such limit.
    pub period: Duration,
}

impl Default for Moderation {
    fn default() -> Self {
        Moderation { count: 1, period: Duration::ZERO }
    }
}

/// The reading side: the ring, and what was taken out of it while a queue pair was destroyed.
struct Reader {
    ring: Consumer<Entry>,
    /// Older than everything in the ring.
    kept: VecDeque<Entry>,
}

impl Reader {
    fn pop(&mut self) -> Option<Entry> {
        self.kept.pop_front().or_else(|| self.ring.pop())
    }

    fn len(&self) -> usize {
        self.kept.len() + self.ring.len() as usize
    }
}

/// What came of writing an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pushed {
    /// It is there, and whoever wanted to be told was told.
    Done,
    /// It is there; call [`CqCore::tell`] at this time.
    TellAt(Time),
    /// The queue was full, for the first time: the entry is lost.
    Overrun,
    /// The queue had overrun before.
    Dead,
}

/// The queue itself, shared by its handles and the queue pairs that complete to it.
pub(crate) struct CqCore {
    id: u64,
    writer: Mutex<Writer>,
    reader: Mutex<Reader>,
    overrun: AtomicBool,
    arming: Arming,
    channel: Option<Arc<ChannelCore>>,
    _ticket: Ticket,
}

impl CqCore {
    fn new(id: u64, depth: u32, channel: Option<Arc<ChannelCore>>, ticket: Ticket) -> io::Result<Self> {
        let (writer, reader) = ring(depth)?;
        if let Some(channel) = &channel {
            channel.join();
        }
        Ok(CqCore {
            id,
            writer: Mutex::new(Writer { ring: writer, moderation: Moderation::default(), untold: 0 }),
            reader: Mutex::new(Reader { ring: reader, kept: VecDeque::new() }),
            overrun: AtomicBool::new(false),
            arming: Arming::new(),
            channel,
            _ticket: ticket,
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Adds an entry. Only the holder of the progress token does, so the lock is never contended.
    pub(crate) fn push(&self, entry: Entry, now: Time) -> Pushed {
        let mut writer = self.writer();
        if self.overrun.load(Ordering::Relaxed) {
            return Pushed::Dead;
        }
        let fits = writer.ring.push(entry).is_ok();
        writer.ring.publish();
        if !fits {
            self.overrun.store(true, Ordering::Relaxed);
            return Pushed::Overrun;
        }
        let Some(channel) = self.channel.as_ref().filter(|_| self.arming.wants(entry.is_solicited())) else {
            return Pushed::Done;
        };
        writer.untold = writer.untold.saturating_add(1);
        let Moderation { count, period } = writer.moderation;
        if writer.untold >= count {
            writer.untold = 0;
            self.put_event(channel);
        } else if writer.untold == 1 && period > Duration::ZERO {
            return Pushed::TellAt(now + period);
        }
        Pushed::Done
    }

    /// Tells of what was not told of yet, if there is something: its time has come.
    pub(crate) fn tell(&self) {
        let mut writer = self.writer();
        if let Some(channel) = &self.channel
            && std::mem::take(&mut writer.untold) > 0
        {
            self.put_event(channel);
        }
    }

    fn put_event(&self, channel: &ChannelCore) {
        if self.arming.answer() {
            channel.mailbox.put(self.id);
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, max: usize, sink: &mut impl FnMut(Cqe)) -> usize {
        let mut reader = self.reader();
        for taken in 0..max {
            match reader.pop() {
                Some(entry) => sink(entry.read()),
                None => return taken,
            }
        }
        max
    }

    fn is_empty(&self) -> bool {
        self.reader().len() == 0
    }

    /// Takes out all entries of a queue pair. The caller holds the progress token.
    pub(crate) fn purge(&self, qpn: u32) {
        let mut reader = self.reader();
        let Reader { ring, kept } = &mut *reader;
        kept.extend(std::iter::from_fn(|| ring.pop()));
        kept.retain(|entry| entry.qpn != qpn);
    }

    /// Moves to a ring of another depth what there is, in order. The caller holds the progress token.
    fn resize(&self, depth: u32) -> Result<(), NicError> {
        let (mut to, from) = ring(depth).map_err(NicError::system("allocating a completion queue"))?;
        let mut writer = self.writer();
        let mut reader = self.reader();
        if reader.len() > depth as usize {
            let reason = "more completions wait than it would hold: poll them first";
            return Err(NicError::Invalid { action: "resizing the completion queue", reason });
        }
        while let Some(entry) = reader.pop() {
            // There is room for all of them, as was just seen.
            let _ = to.push(entry);
        }
        to.publish();
        writer.ring = to;
        reader.ring = from;
        Ok(())
    }
}

impl Drop for CqCore {
    fn drop(&mut self) {
        if let Some(channel) = &self.channel {
            channel.queues.fetch_sub(1, Ordering::Relaxed);
            channel.mailbox.forget(|id| *id == self.id);
        }
    }
}

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
        self.core.id
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
        if self.core.channel.is_none() {
            let reason = "it was made without a completion channel";
            return Err(NicError::Invalid { action: "asking a completion queue for events", reason });
        }
        self.core.arming.ask(solicited_only);
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
        self.core.writer().moderation = moderation;
        // What waited for the old rule waits no longer.
        self.core.tell();
        Ok(())
    }

    /// How many completions are told of together.
    pub fn moderation(&self) -> Moderation {
        self.core.writer().moderation
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
        self.core.writer().ring.capacity()
    }

    /// Whether a completion was lost because the queue was full (`IBV_EVENT_CQ_ERR`). Nothing is written to such a
    /// queue any more.
    pub fn is_overrun(&self) -> bool {
        self.core.overrun.load(Ordering::Relaxed)
    }
}
