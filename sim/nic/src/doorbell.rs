//! What a poster rings when it has put something into a queue.

#[cfg(loom)]
use loom::sync::atomic::AtomicBool;
#[cfg(not(loom))]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// The doorbell of one queue. It is answered once for all who rang since it was answered last.
#[derive(Debug)]
pub(crate) struct Doorbell(AtomicBool);

impl Doorbell {
    pub(crate) fn new() -> Self {
        Doorbell(AtomicBool::new(false))
    }

    /// Rings, after something was put into the queue; false if it was rung before and not yet answered: then
    /// whoever answers that sees what was put in now, too.
    pub(crate) fn ring(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    /// Answers it, before the queue is looked at: who rings from here on rings anew.
    ///
    /// A swap and not a store: it reads what the last one who rang wrote, so the look at the queue sees what he put
    /// in. After a mere store it might not, and he, whom nobody told to ring anew, would wait for ever.
    pub(crate) fn answer(&self) {
        self.0.swap(false, Ordering::SeqCst);
    }
}
