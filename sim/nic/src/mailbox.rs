//! What the NIC has to tell, kept until somebody asks: asynchronous events, and events of completion queues.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard, atomic::AtomicBool};
use std::sync::{OnceLock, PoisonError};

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard, atomic::AtomicBool};
use rustix::event::{EventfdFlags, eventfd};

/// A queue of messages, none of which is in it twice, with a descriptor for those who want one to poll.
///
/// The descriptor is readable while there are messages. It is made when it is first asked for.
#[derive(Debug)]
pub(crate) struct Mailbox<M> {
    messages: Mutex<VecDeque<M>>,
    /// There is something, as far as a look without the lock can tell.
    some: AtomicBool,
    /// Something came since somebody last asked, for who has to wake sleepers.
    news: AtomicBool,
    fd: OnceLock<OwnedFd>,
}

impl<M: PartialEq + Copy> Mailbox<M> {
    /// A mailbox with room for so many messages before it has to grow.
    pub(crate) fn new(room: usize) -> Self {
        Mailbox {
            messages: Mutex::new(VecDeque::with_capacity(room)),
            some: AtomicBool::new(false),
            news: AtomicBool::new(false),
            fd: OnceLock::new(),
        }
    }

    fn messages(&self) -> MutexGuard<'_, VecDeque<M>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for so many messages, so that none of them has to be allocated for when it comes.
    pub(crate) fn reserve(&self, room: usize) {
        let mut messages = self.messages();
        let more = room.saturating_sub(messages.len());
        messages.reserve(more);
    }

    /// Adds a message, unless it is there already.
    pub(crate) fn put(&self, message: M) {
        let mut messages = self.messages();
        if messages.contains(&message) {
            return;
        }
        messages.push_back(message);
        self.some.store(true, Ordering::SeqCst);
        self.news.store(true, Ordering::SeqCst);
        self.signal(1);
    }

    /// Takes the oldest message.
    pub(crate) fn take(&self) -> Option<M> {
        if self.is_empty() {
            return None;
        }
        let mut messages = self.messages();
        let message = messages.pop_front();
        self.some.store(!messages.is_empty(), Ordering::SeqCst);
        if message.is_some() {
            self.unsignal();
        }
        message
    }

    /// Drops the messages that are of something which is not there any more.
    pub(crate) fn forget(&self, mut is_of: impl FnMut(&M) -> bool) {
        let mut messages = self.messages();
        let before = messages.len();
        messages.retain(|message| !is_of(message));
        for _ in messages.len()..before {
            self.unsignal();
        }
        self.some.store(!messages.is_empty(), Ordering::SeqCst);
    }

    /// Whether there is no message.
    pub(crate) fn is_empty(&self) -> bool {
        !self.some.load(Ordering::SeqCst)
    }

    /// Whether something came since this was last asked.
    pub(crate) fn take_news(&self) -> bool {
        self.news.load(Ordering::Relaxed) && self.news.swap(false, Ordering::SeqCst)
    }

    /// A descriptor that is readable while there are messages.
    ///
    /// # Errors
    /// The process has as many descriptors open as it may.
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        // Under the lock, so that no message comes between the look and the first signal.
        let messages = self.messages();
        if self.fd.get().is_none() {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
            // Whoever set it meanwhile would have held the lock.
            let _ = self.fd.set(eventfd(0, flags)?);
            self.signal(messages.len() as u64);
        }
        self.fd.get().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::Other.into())
    }

    /// Adds to what the descriptor counts.
    fn signal(&self, messages: u64) {
        if let Some(fd) = self.fd.get()
            && messages > 0
        {
            // It fails only if it counts 2^64 already.
            let _ = rustix::io::write(fd, &messages.to_ne_bytes());
        }
    }

    fn unsignal(&self) {
        if let Some(fd) = self.fd.get() {
            // Whoever read it himself has taken the count; the message is what matters.
            let _ = rustix::io::read(fd, &mut [0_u8; 8]);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(mailbox: &Mailbox<u32>) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let fd = mailbox.fd().unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn messages_come_once_in_order_and_the_descriptor_tells() {
        let mailbox = Mailbox::new(4);
        assert_eq!((mailbox.take(), mailbox.take_news()), (None, false));
        for message in [1, 2, 1, 3] {
            mailbox.put(message);
        }
        assert_eq!((mailbox.take_news(), mailbox.take_news()), (true, false));
        assert!(is_readable(&mailbox), "what came before the descriptor");
        mailbox.forget(|message| *message == 2);
        assert_eq!([mailbox.take(), mailbox.take()], [Some(1), Some(3)]);
        assert!(mailbox.is_empty() && !is_readable(&mailbox));
        mailbox.put(1);
        assert!(is_readable(&mailbox));
        mailbox.forget(|_| true);
        assert!(mailbox.is_empty() && !is_readable(&mailbox));
    }
}
