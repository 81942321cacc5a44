//! The progress thread: a target must make progress while its program computes or sleeps.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::nic::Shared;

/// How long nobody must have polled before the thread takes over.
const GRACE: Duration = Duration::from_micros(100);

/// How long the thread sleeps, at most, between looks at whether the program still polls.
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// Runs until the device closes.
///
/// ```text
///            a program polls              nobody polls for GRACE
///   standing down ------> standing down ------------------------> working
///         ^   (looks again after a pause,                            |
///         |    or when the last waiter leaves)    a program polls    |
///         '-----------------------------------------------------------'
/// ```
/// Working means: progress, then sleep in the link until something arrives or is due. Nothing runs
/// while nothing happens.
pub(crate) fn run(shared: &Shared) {
    let mut pause = GRACE;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.waiting.load(Ordering::SeqCst) > 0 {
            stand_down(shared, None);
        } else if shared.unpolled() < GRACE {
            stand_down(shared, Some(pause));
            pause = (pause * 2).min(PAUSE_MAX);
        } else {
            pause = GRACE;
            if !shared.progress() {
                // A thread of the program is at it; it may need this processor to go on.
                stand_down(shared, Some(GRACE));
                continue;
            }
            shared.sleep(None, || {
                shared.stop.load(Ordering::SeqCst) || shared.waiting.load(Ordering::SeqCst) > 0
            });
        }
    }
}

/// Sleeps on the bench for a time, or until the last program thread that waits has left.
fn stand_down(shared: &Shared, pause: Option<Duration>) {
    let bench = shared.bench.lock().unwrap_or_else(PoisonError::into_inner);
    match pause {
        Some(pause) => drop(shared.called.wait_timeout(bench, pause)),
        None => drop(shared.called.wait_while(bench, |()| {
            shared.waiting.load(Ordering::SeqCst) > 0 && !shared.stop.load(Ordering::SeqCst)
        })),
    }
}
