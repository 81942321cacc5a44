//! Ctrl-C: the first one asks the command to stop and print what it has; the second one ends it at once, and so
//! does the alarm if the command has not stopped after a while. The alarm also ends a step that does not return.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use crate::sys;

/// The signal that arrived, or 0.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// How long a command that was asked to stop may take to print what it has, in seconds.
const STOP_LIMIT: u32 = 5;

extern "C" fn note(signal: i32) {
    if CAUGHT.swap(signal, Ordering::Relaxed) != 0 {
        sys::exit_now(128 + signal);
    }
    sys::alarm(STOP_LIMIT);
}

extern "C" fn give_up(_: i32) {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => {
            sys::complain(b"\nanyverbs: a step did not end within its time limit; giving up\n");
            sys::exit_now(1);
        }
        signal => sys::exit_now(128 + signal),
    }
}

/// Starts to listen to SIGINT, SIGTERM and SIGHUP.
///
/// # Errors
/// When the system refuses, which it has no reason to.
pub(crate) fn install() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        sys::on_signal(signal, note)?;
    }
    sys::on_signal(libc::SIGALRM, give_up)
}

/// Ends this process if it does not set another limit, or none, within `limit`. For steps that look at the clock
/// themselves: it is there in case they do not get to it. The second process ends with the first.
pub(crate) fn limit_step(limit: Option<Duration>) {
    if !pending() {
        let seconds = limit.map_or(0, |limit| u32::try_from(limit.as_secs()).unwrap_or(0).saturating_add(1));
        sys::alarm(seconds);
    }
}

/// Whether the user wants to stop.
pub(crate) fn pending() -> bool {
    CAUGHT.load(Ordering::Relaxed) != 0
}

/// The exit code that tells the shell which signal it was: 130 for Ctrl-C.
pub(crate) fn exit_code() -> u8 {
    128_u8.wrapping_add(CAUGHT.load(Ordering::Relaxed).clamp(1, 64) as u8)
}
