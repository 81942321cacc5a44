//! The progress token: whoever holds it does the work of all.

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard, atomic::fence};
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard, atomic::fence};
use std::sync::{PoisonError, TryLockError};

/// Something that one thread at a time works on, while the others leave it work and go on.
///
/// A thread that wants work done first leaves a note of it (a doorbell), then tries the lock. If
/// another thread holds it, that thread looks for notes again *after* letting go, so no note is
/// forgotten and nobody waits.
#[derive(Debug)]
pub(crate) struct Token<T> {
    value: Mutex<T>,
}

impl<T> Token<T> {
    pub(crate) fn new(value: T) -> Self {
        Token { value: Mutex::new(value) }
    }

    /// Does the work if the token is free, and again as long as notes were left meanwhile. Returns
    /// whether it was free.
    pub(crate) fn try_work(&self, mut work: impl FnMut(&mut T), notes_left: impl Fn() -> bool) -> bool {
        // Pairs with the fence below: either we see the lock free, or its holder sees our note.
        fence(Ordering::SeqCst);
        let mut worked = false;
        while let Some(mut value) = self.try_lock() {
            work(&mut value);
            drop(value);
            worked = true;
            fence(Ordering::SeqCst);
            if !notes_left() {
                break;
            }
        }
        worked
    }

    /// Waits for the token, for set-up and teardown. The caller works off notes afterwards, by
    /// [`try_work`](Token::try_work).
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.value.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
