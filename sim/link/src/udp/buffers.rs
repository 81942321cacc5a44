//! How much the kernel holds for a socket, and what to do where it holds less than is good.

use std::fmt;
use std::os::fd::BorrowedFd;

use super::sys;

/// A buffer that a socket should have.
pub(super) struct Buffer {
    what: &'static str,
    /// The system's limit for it.
    limit: &'static str,
    name: i32,
    /// The option of those who may go beyond the limit.
    force: i32,
    bytes: usize,
}

impl Buffer {
    /// What the kernel is asked to hold for the receiver: a few windows of several queue pairs.
    pub(super) const RECEIVE: Buffer = Buffer {
        what: "receive",
        limit: "net.core.rmem_max",
        name: libc::SO_RCVBUF,
        force: libc::SO_RCVBUFFORCE,
        bytes: 8 << 20,
    };

    /// What the kernel is asked to hold on its way out.
    pub(super) const SEND: Buffer = Buffer {
        what: "send",
        limit: "net.core.wmem_max",
        name: libc::SO_SNDBUF,
        force: libc::SO_SNDBUFFORCE,
        bytes: 4 << 20,
    };

    /// Sizes the buffer of a socket; what the system made of it, if that is less.
    pub(super) fn size(self, fd: BorrowedFd<'_>) -> Option<Capped> {
        // The kernel takes a half of what it reports for its own bookkeeping.
        let given = || sys::option(fd, libc::SOL_SOCKET, self.name).map_or(0, |n| n as usize / 2);
        for option in [self.name, self.force] {
            let _ = sys::set_option(fd, libc::SOL_SOCKET, option, self.bytes as i32);
            if given() >= self.bytes {
                return None;
            }
        }
        Some(Capped { given: given(), buffer: self })
    }
}

/// A buffer that the limits of the system made smaller than was asked for.
pub(super) struct Capped {
    buffer: Buffer,
    given: usize,
}

impl Capped {
    /// What it means, and what mends it.
    pub(super) fn warning(&self) -> String {
        let Capped { given, buffer: Buffer { what, limit, bytes, .. } } = self;
        format!(
            "the {what} buffer has {} of {} KiB, so bursts may be lost or sends wait; \
             to mend it: sysctl -w {limit}={bytes}",
            given >> 10,
            bytes >> 10
        )
    }
}

impl fmt::Display for Capped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Buffer { what, limit, bytes, .. } = self.buffer;
        write!(f, "{what} buffer {} of {} KiB ({limit})", self.given >> 10, bytes >> 10)
    }
}
