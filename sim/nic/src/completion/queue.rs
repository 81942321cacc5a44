//! A completion queue as the NIC has it, shared by its handles and the queue pairs that complete to it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicUsize},
};
use std::time::Duration;

use anyverbs_engine::Time;
use anyverbs_memory::{Consumer, Producer, ring};
#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicUsize},
};

use super::arming::Arming;
use super::entry::{Cqe, Entry};
use crate::error::NicError;
use crate::limits::Ticket;
use crate::mailbox::Mailbox;

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

/// The end of a channel that completion queues hold.
#[derive(Debug)]
pub(crate) struct ChannelCore {
    pub(super) mailbox: Mailbox<u64>,
    queues: AtomicUsize,
    _ticket: Ticket,
}

impl ChannelCore {
    pub(super) fn new(ticket: Ticket) -> Self {
        ChannelCore { mailbox: Mailbox::new(4), queues: AtomicUsize::new(0), _ticket: ticket }
    }

    /// One more completion queue tells of itself here.
    fn join(&self) {
        let queues = self.queues.fetch_add(1, Ordering::Relaxed) + 1;
        self.mailbox.reserve(queues);
    }
}

/// The writing side, and when it tells of what it wrote.
struct Writer {
    ring: Producer<Entry>,
    moderation: Moderation,
    /// Completions that were to be told of and were not yet.
    untold: u32,
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
    pub(super) fn new(
        id: u64,
        depth: u32,
        channel: Option<Arc<ChannelCore>>,
        ticket: Ticket,
    ) -> io::Result<Self> {
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

    /// Asks for an event in the channel: see [`Arming::ask`].
    pub(super) fn ask(&self, solicited_only: bool) {
        self.arming.ask(solicited_only);
    }

    pub(super) fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    pub(super) fn moderate(&self, moderation: Moderation) {
        self.writer().moderation = moderation;
    }

    pub(super) fn moderation(&self) -> Moderation {
        self.writer().moderation
    }

    /// How many entries it holds.
    pub(super) fn depth(&self) -> u32 {
        self.writer().ring.capacity()
    }

    pub(super) fn is_overrun(&self) -> bool {
        self.overrun.load(Ordering::Relaxed)
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

    /// Hands up to `max` entries to `sink`; says how many.
    pub(super) fn take(&self, max: usize, sink: &mut impl FnMut(Cqe)) -> usize {
        let mut reader = self.reader();
        for taken in 0..max {
            match reader.pop() {
                Some(entry) => sink(entry.read()),
                None => return taken,
            }
        }
        max
    }

    pub(super) fn is_empty(&self) -> bool {
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
    pub(super) fn resize(&self, depth: u32) -> Result<(), NicError> {
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
