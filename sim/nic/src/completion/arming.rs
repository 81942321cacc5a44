//! Who wants to be told of the next completion.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, fence};
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, fence};

/// What a completion queue was asked to tell (`ibv_req_notify_cq`).
#[derive(Debug)]
pub(crate) struct Arming(AtomicU8);

const NONE: u8 = 0;
const SOLICITED: u8 = 1;
const ANY: u8 = 2;

impl Arming {
    pub(crate) fn new() -> Self {
        Arming(AtomicU8::new(NONE))
    }

    /// Asks for one notice, of the next completion or of the next that was solicited. To ask for more than before
    /// counts, to ask for less does not.
    ///
    /// Whoever asks and then finds the queue empty will get the notice of what comes: either the look sees the
    /// completion, or its writer sees the question.
    pub(crate) fn ask(&self, solicited_only: bool) {
        self.0.fetch_max(if solicited_only { SOLICITED } else { ANY }, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Says whether a completion that was just made visible is one to tell of. The question stays.
    pub(crate) fn wants(&self, solicited: bool) -> bool {
        // Pairs with the fence in `ask`.
        fence(Ordering::SeqCst);
        match self.0.load(Ordering::Relaxed) {
            NONE => false,
            SOLICITED => solicited,
            _ => true,
        }
    }

    /// Answers the question: true for the one who has to tell.
    pub(crate) fn answer(&self) -> bool {
        self.0.swap(NONE, Ordering::SeqCst) != NONE
    }
}
