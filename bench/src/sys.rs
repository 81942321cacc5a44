//! The calls into the system that Rust cannot check, each behind a safe function.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Sets a socket option that is an `int`.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the kernel only reads it.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets `handler` run when `signal` arrives. System calls that it interrupts return early.
///
/// The handler may only do what is safe in a signal handler; a handler that touches nothing but atomics, and
/// calls [`exit_now`], is.
pub(crate) fn on_signal(signal: i32, handler: extern "C" fn(i32)) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`: an empty mask, no flags, and a handler that is set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    // SAFETY: `action` is initialised and outlives the call; without SA_SIGINFO the kernel calls the handler
    // with one argument, which is what its type says.
    let rc = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends the process at once, without running destructors. May be called in a signal handler.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code, is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}

/// Sends SIGALRM to this process after so many seconds, instead of any alarm before; 0: never. May be called in a
/// signal handler.
pub(crate) fn alarm(seconds: u32) {
    // SAFETY: alarm takes any number, touches no memory of ours, and is async-signal-safe.
    unsafe { libc::alarm(seconds) };
}

/// Writes to standard error as well as it can. May be called in a signal handler.
pub(crate) fn complain(words: &[u8]) {
    // SAFETY: the pointer and the length describe `words`; write is async-signal-safe.
    unsafe { libc::write(libc::STDERR_FILENO, words.as_ptr().cast(), words.len()) };
}
