//! Where the progress token's holder leaves what a program is to hear.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use anyverbs_engine::Time;
use anyverbs_engine::cm::{Event, Id};

use crate::error::NicError;
use crate::nic::Nic;

/// What a program is told of a connection or a resolution.
pub(super) enum Notice {
    Event(Box<Event>),
    /// The queue pair could not be readied, so that there will be no connection.
    NotReady(NicError),
}

/// Nothing will come any more.
pub(super) struct Ended;

/// The mailbox of one connection or resolution. It holds a handful of notices: each kind comes once.
#[derive(Default)]
pub(super) struct Mailbox {
    notices: Mutex<VecDeque<Notice>>,
    waker: Mutex<Option<Waker>>,
    /// The id means nothing any more, or something else. Set under the token.
    ended: AtomicBool,
}

impl Mailbox {
    pub(super) fn put(&self, notice: Notice) {
        self.notices().push_back(notice);
        wake(&self.waker);
    }

    /// The last notice: whoever takes it finds that nothing else will come.
    pub(super) fn put_last(&self, notice: Notice) {
        let mut notices = self.notices();
        notices.push_back(notice);
        self.end();
        drop(notices);
        wake(&self.waker);
    }

    pub(super) fn take(&self) -> Option<Notice> {
        self.notices().pop_front()
    }

    /// The next notice, or that there will be none.
    pub(super) fn take_or_end(&self) -> Option<Result<Notice, Ended>> {
        let mut notices = self.notices();
        let notice = notices.pop_front().map(Ok);
        notice.or_else(|| self.has_ended().then_some(Err(Ended)))
    }

    /// Whether [`take_or_end`](Self::take_or_end) has something to say.
    pub(super) fn is_ready(&self) -> bool {
        !self.notices().is_empty() || self.has_ended()
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn set_waker(&self, waker: &Waker) {
        set_waker(&self.waker, waker, || self.is_ready());
    }

    fn notices(&self) -> MutexGuard<'_, VecDeque<Notice>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that came for a listener and were not taken yet: at most its backlog, which counts those that
/// were taken and not answered, too.
pub(super) struct Requests<T> {
    requests: Mutex<VecDeque<(Id, T)>>,
    waker: Mutex<Option<Waker>>,
}

impl<T> Requests<T> {
    pub(super) fn new() -> Self {
        Requests { requests: Mutex::default(), waker: Mutex::default() }
    }

    pub(super) fn put(&self, id: Id, request: T) {
        self.requests().push_back((id, request));
        wake(&self.waker);
    }

    pub(super) fn take(&self) -> Option<(Id, T)> {
        self.requests().pop_front()
    }

    /// Takes a request out that its sender has taken back.
    pub(super) fn remove(&self, id: Id) {
        self.requests().retain(|(own, _)| *own != id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests().is_empty()
    }

    pub(super) fn set_waker(&self, waker: &Waker) {
        set_waker(&self.waker, waker, || !self.is_empty());
    }

    fn requests(&self) -> MutexGuard<'_, VecDeque<(Id, T)>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waker: &Mutex<Option<Waker>>) {
    // Called without the lock: it is somebody else's code.
    let waker = waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn set_waker(place: &Mutex<Option<Waker>>, waker: &Waker, ready: impl Fn() -> bool) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    // What came before anybody could be called must not wait for the next event. What comes from here on
    // finds the waker.
    if ready() {
        waker.wake_by_ref();
    }
}

/// Takes something, after a pass of progress if there is nothing.
pub(super) fn poll<T>(nic: &Nic, take: impl Fn() -> Option<T>) -> Option<T> {
    nic.note_poll();
    if let Some(taken) = take() {
        return Some(taken);
    }
    let heard = nic.hear();
    let taken = take();
    if taken.is_none() && !heard {
        nic.waiter().relax();
    }
    taken
}

/// Sleeps until something can be taken, or until the deadline.
pub(super) fn wait<T>(
    nic: &Nic,
    deadline: Option<Time>,
    ready: impl Fn() -> bool,
    take: impl Fn() -> Option<T>,
) -> Option<T> {
    // Another thread may take what this one was woken for.
    while nic.wait_until(deadline, &ready) {
        if let Some(taken) = take() {
            return Some(taken);
        }
    }
    None
}
