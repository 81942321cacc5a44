//! Every call into the kernel that Rust cannot check, each behind a safe function.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::thread;

use anyverbs_nic::link::ROCE_PORT;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::SENDS_MAX;
use super::control::{Control, Name, Notes};
use super::place::Place;
use super::runs::Run;

/// How long a datagram of a host to itself may take.
const PROBE_PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Flags of every send: it does not wait, and raises no signal.
const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Sets a socket option that is an `int`.
pub(super) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the kernel
    // only reads it.
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

/// Reads a socket option that is an `int`.
pub(super) fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, which has that many, and both
    // outlive the call.
    let rc = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, ptr::from_mut(&mut value).cast(), &raw mut len)
    };
    if rc == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Who is at the other end of a unix socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    /// The process; 0 if it is of another pid namespace.
    pub(super) pid: u32,
    /// Its user when it connected, or listened.
    pub(super) uid: u32,
}

/// Who is at the other end of a unix socket that was connected.
pub(super) fn peer(fd: impl AsFd) -> Result<Peer, Errno> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let fd = fd.as_fd().as_raw_fd();
    let at = ptr::from_mut(&mut found).cast();
    // SAFETY: the kernel writes at most `len` bytes to `found`, which has that many and which any bytes
    // are valid for; both outlive the call.
    let rc = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) };
    if rc != 0 {
        return Err(last_errno());
    }
    Ok(Peer { pid: found.pid.cast_unsigned(), uid: found.uid })
}

/// The user that this process acts for.
pub(super) fn own_uid() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Has the kernel drop the datagrams for a socket that a classic BPF program returns 0 for.
pub(super) fn attach_filter(fd: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the pointer and the length describe `program`, which points to as many statements as it
    // says; both outlive the call. The kernel copies them, and checks that the program is sound.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The names of the interfaces that have exactly this address.
pub(super) fn interfaces_of(address: IpAddr) -> io::Result<Vec<String>> {
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: on success `list` points to a list that is ours until freeifaddrs.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut at = list;
    while !at.is_null() {
        // SAFETY: `at` is a node of the list, which nobody changes. `ifa_addr` is null or points
        // to a socket address whose family says how long it is; nothing of it needs alignment
        // beyond that of `sockaddr`, since it is read unaligned. `ifa_name` is a C string.
        unsafe {
            let node = &*at;
            if !node.ifa_addr.is_null() {
                let ip = match i32::from((*node.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let name = ptr::read_unaligned(node.ifa_addr.cast::<libc::sockaddr_in>());
                        Some(IpAddr::from(name.sin_addr.s_addr.to_ne_bytes()))
                    }
                    libc::AF_INET6 => {
                        let name = ptr::read_unaligned(node.ifa_addr.cast::<libc::sockaddr_in6>());
                        Some(IpAddr::from(name.sin6_addr.s6_addr))
                    }
                    _ => None,
                };
                if ip == Some(address) {
                    found.push(CStr::from_ptr(node.ifa_name).to_string_lossy().into_owned());
                }
            }
            at = node.ifa_next;
        }
    }
    // SAFETY: `list` came from getifaddrs, and nothing points into it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// The MTU of an interface.
pub(super) fn interface_mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<usize> {
    // SAFETY: all zeroes is a valid `ifreq`: numbers, and pointers that may be null.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFMTU reads the name, which ends in a zero, and writes the MTU, both inside
    // `request`, which outlives the call.
    let mtu = unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_mtu
    };
    usize::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// What one receive gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Where the bytes start in the buffer that was given.
    pub(super) start: usize,
    pub(super) len: usize,
    /// `None` if it came from nothing like UDP.
    pub(super) source: Option<SocketAddr>,
    /// The group that it was sent to; `None`: the link's own address.
    pub(super) group: Option<IpAddr>,
    /// The IP identification, if the IP header was seen.
    pub(super) ip_id: Option<u16>,
    pub(super) notes: Notes,
}

/// All that the kernel needs to be told for one send or receive, except the bytes.
///
/// The pointers in it are set by `prepare_*` and mean something only until the system call that
/// follows is over: no safe function leaves one of them to be used later.
struct Slot {
    header: libc::msghdr,
    vector: libc::iovec,
    name: Name,
    control: Control,
    /// The interface of the link's address, for destinations of one network only.
    scope: u32,
}

// SAFETY: the raw pointers in a slot are dead between calls (see above), so the slot may go to
// another thread between calls, and a shared reference to it gives access to nothing.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    fn new(scope: u32) -> Slot {
        Slot {
            // SAFETY: all zeroes is a valid `msghdr`: numbers, and pointers that may be null.
            header: unsafe { mem::zeroed() },
            vector: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            name: Name::EMPTY,
            control: Control::EMPTY,
            scope,
        }
    }

    /// Points the header at everything else, for a send of `bytes`.
    fn prepare_send(&mut self, run: &Run, bytes: &[u8], port: u16) -> *const libc::msghdr {
        let segment = (run.datagrams > 1).then_some(run.segment as u16);
        let name_len = self.name.set(run.destination, port, self.scope);
        let control_len = self.control.set_send(run.destination.is_ipv4(), run.ecn, segment);
        self.point(bytes.as_ptr().cast_mut(), bytes.len(), name_len, control_len);
        &raw const self.header
    }

    /// Points the header at everything else, for a receive into `buffer`.
    fn prepare_receive(&mut self, buffer: &mut [u8]) -> *mut libc::msghdr {
        self.point(buffer.as_mut_ptr(), buffer.len(), Name::CAPACITY, Control::CAPACITY);
        &raw mut self.header
    }

    fn point(&mut self, bytes: *mut u8, len: usize, name_len: usize, control_len: usize) {
        self.vector = libc::iovec { iov_base: bytes.cast(), iov_len: len };
        self.header.msg_name = self.name.as_mut_ptr().cast();
        self.header.msg_namelen = name_len as libc::socklen_t;
        self.header.msg_iov = &raw mut self.vector;
        self.header.msg_iovlen = 1;
        self.header.msg_control =
            if control_len == 0 { ptr::null_mut() } else { self.control.as_mut_ptr().cast() };
        self.header.msg_controllen = control_len;
        self.header.msg_flags = 0;
    }

    /// What a receive of `len` bytes left in the slot. Of a datagram that was longer than the
    /// buffer, its beginning is there, and its ICRC will not fit.
    fn received(&self, start: usize, len: usize) -> Received {
        Received {
            start,
            len,
            source: self.name.get(self.header.msg_namelen as usize),
            group: None,
            ip_id: None,
            notes: self.control.received(self.header.msg_controllen),
        }
    }
}

/// Plain system calls.
pub(super) struct Calls {
    slot: Box<Slot>,
}

impl Calls {
    pub(super) fn new(scope: u32) -> Calls {
        Calls { slot: Box::new(Slot::new(scope)) }
    }

    /// Sends the datagrams of `run` in one call, which never waits.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>, run: &Run, bytes: &[u8]) -> Result<(), Errno> {
        let Some(bytes) = bytes.get(run.range()) else {
            return Err(Errno::INVAL);
        };
        let header = self.slot.prepare_send(run, bytes, ROCE_PORT);
        // SAFETY: the header points to the slot's own name, control and vector, and the vector to
        // `bytes`; all outlive the call, which only reads them.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), header, SEND_FLAGS) };
        if sent < 0 { Err(last_errno()) } else { Ok(()) }
    }

    /// Receives one datagram, or several that the kernel put together, and never waits.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
        let header = self.slot.prepare_receive(buffer);
        // SAFETY: the header points to the slot's own name, control and vector with their true
        // sizes, and the vector to `buffer`, which is borrowed exclusively for the call.
        let len = unsafe { libc::recvmsg(fd.as_raw_fd(), header, libc::MSG_DONTWAIT) };
        match usize::try_from(len) {
            Ok(len) => Ok(self.slot.received(0, len)),
            Err(_) => Err(last_errno()),
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The same calls by way of io_uring: several in one entry into the kernel.
///
/// A ring is used as a list of system calls that do not wait: [`Ring::run`] hands the kernel what
/// was pushed, and comes back when the kernel is through with all of it. So nothing is in flight
/// between calls, and any thread may make the next one (there is no single issuer, and the kernel
/// polls nothing).
pub(super) struct Ring {
    ring: IoUring,
    slots: Box<[Slot]>,
    /// What each call returned, by the number of its slot.
    results: [i32; SENDS_MAX],
    /// Why the kernel refused to be entered: entries are left in the ring that it must never see.
    refused: Option<i32>,
}

/// The result of a call that the kernel was never given.
const NOT_TRIED: i32 = -libc::ECANCELED;

impl Ring {
    /// A ring, after it was seen to send and to receive on a socket of `address`.
    ///
    /// # Errors
    /// What failed, for people.
    pub(super) fn new(place: &Place, gso: bool) -> Result<Ring, String> {
        let failed = |action: &str, error: io::Error| match error.raw_os_error() {
            Some(libc::EPERM) => format!("{action}: {error}; kernel.io_uring_disabled or seccomp forbids it"),
            Some(libc::ENOSYS) => format!("{action}: {error}; the kernel lacks it, or seccomp hides it"),
            _ => format!("{action}: {error}"),
        };
        let ring = IoUring::new(SENDS_MAX as u32).map_err(|error| failed("io_uring_setup", error))?;
        if !ring.params().is_feature_ext_arg() {
            return Err("Linux before 5.11 may wait although it is told not to".to_owned());
        }
        let slots = (0..SENDS_MAX).map(|_| Slot::new(place.scope())).collect();
        let mut ring = Ring { ring, slots, results: [0; SENDS_MAX], refused: None };
        let probed = ring.probe(place, gso);
        if let Some(errno) = ring.refused {
            return Err(failed("io_uring_enter", io::Error::from_raw_os_error(errno)));
        }
        probed.map_err(|(action, error)| failed(action, error))?;
        Ok(ring)
    }

    /// Sends two datagrams to itself in one piece, with an ECN mark, receives them, and finds that
    /// there are no more.
    fn probe(&mut self, place: &Place, gso: bool) -> Result<(), (&'static str, io::Error)> {
        let scratch = UdpSocket::bind(place.named(0)).map_err(|error| ("binding a socket", error))?;
        let port = scratch.local_addr().map_err(|error| ("binding a socket", error))?.port();
        scratch.set_nonblocking(true).map_err(|error| ("making a socket non-blocking", error))?;
        let fd = scratch.as_fd();
        let datagrams = if gso { 2 } else { 1 };
        let run = Run {
            destination: place.address,
            source_port: port,
            ecn: 2,
            start: 0,
            len: datagrams * 8,
            segment: 8,
            datagrams,
        };
        if let (0, errno) = self.send_to(|_| Some(fd), &[run], &[0; 16], port) {
            return Err(("SENDMSG by io_uring", errno.unwrap_or(Errno::CANCELED).into()));
        }
        let mut buffer = [0; 16];
        for _ in 0..datagrams {
            // The kernel delivers what a host sends to itself at once, unless it is very busy.
            let _ = poll(&mut [PollFd::new(&scratch, PollFlags::IN)], Some(&PROBE_PATIENCE));
            self.receive(fd, &mut buffer).map_err(|errno| ("RECVMSG by io_uring", errno.into()))?;
        }
        match self.receive(fd, &mut buffer) {
            Err(Errno::AGAIN) => Ok(()),
            _ => Err(("RECVMSG by io_uring", io::Error::other("it found what was not there"))),
        }
    }

    /// The kernel let itself be entered so far.
    pub(super) fn is_usable(&self) -> bool {
        self.refused.is_none()
    }

    /// Sends `runs` in order, without waiting: how many the kernel took, and the error of the next
    /// one. Those after it were not tried.
    ///
    /// `exit` gives the socket of a source port.
    pub(super) fn send<'a>(
        &mut self,
        exit: impl Fn(u16) -> Option<BorrowedFd<'a>>,
        runs: &[Run],
        bytes: &[u8],
    ) -> (usize, Option<Errno>) {
        self.send_to(exit, runs, bytes, ROCE_PORT)
    }

    fn send_to<'a>(
        &mut self,
        exit: impl Fn(u16) -> Option<BorrowedFd<'a>>,
        runs: &[Run],
        bytes: &[u8],
        port: u16,
    ) -> (usize, Option<Errno>) {
        let runs = &runs[..runs.len().min(self.slots.len())];
        let mut pushed = 0;
        for (i, run) in runs.iter().enumerate() {
            let (Some(bytes), Some(fd)) = (bytes.get(run.range()), exit(run.source_port)) else {
                break;
            };
            let header = self.slots[i].prepare_send(run, bytes, port);
            let entry = opcode::SendMsg::new(types::Fd(fd.as_raw_fd()), header)
                .flags(SEND_FLAGS as u32)
                .build()
                .user_data(i as u64);
            // Linked: one that fails takes those behind it along, so none overtakes another.
            let linked = if i + 1 < runs.len() { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
            // SAFETY: the entry points to the slot's header, and that to the slot's own name,
            // control and vector and to `bytes`. `self` and `bytes` are borrowed until this
            // function returns, and `run` below returns only when the kernel is through with it.
            if unsafe { self.ring.submission().push(&entry.flags(linked)) }.is_err() {
                break;
            }
            pushed += 1;
        }
        self.run(pushed);
        let sent = self.results[..pushed].iter().take_while(|&&result| result >= 0).count();
        let errno = match self.results[..pushed].get(sent) {
            Some(&NOT_TRIED) => None,
            Some(&result) => Some(Errno::from_raw_os_error(-result)),
            None if pushed == 0 => Some(Errno::INVAL),
            None => None,
        };
        (sent, errno)
    }

    /// Receives one datagram, or several that the kernel put together, and never waits.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
        let header = self.slots[0].prepare_receive(buffer);
        let entry = opcode::RecvMsg::new(types::Fd(fd.as_raw_fd()), header)
            .flags(libc::MSG_DONTWAIT as u32)
            .build()
            .user_data(0);
        // SAFETY: the entry points to the slot's header, and that to the slot's own name, control
        // and vector with their true sizes and to `buffer`. `self` and `buffer` are borrowed
        // exclusively until this function returns, and `run` below returns only when the kernel
        // is through with them.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return Err(Errno::AGAIN);
        }
        self.run(1);
        match usize::try_from(self.results[0]) {
            Ok(len) => Ok(self.slots[0].received(0, len)),
            Err(_) if self.results[0] == NOT_TRIED => Err(Errno::AGAIN),
            Err(_) => Err(Errno::from_raw_os_error(-self.results[0])),
        }
    }

    /// Has the kernel carry out the `n` entries that were pushed, and comes back when it is through
    /// with all of them.
    ///
    /// If the kernel refuses to be entered, the entries that it did not take stay in the ring, and
    /// the ring is not used again: their pointers will be stale.
    fn run(&mut self, n: usize) {
        self.results[..n].fill(NOT_TRIED);
        let mut given = n;
        let mut done = 0;
        while done < given {
            if self.refused.is_none()
                && let Err(error) = self.ring.submit_and_wait(given - done)
                && error.raw_os_error() != Some(libc::EINTR)
            {
                self.refused = Some(error.raw_os_error().unwrap_or(libc::EIO));
            }
            if self.refused.is_some() {
                // What it took earlier, it carries out without being entered again; a chain of
                // linked entries goes on whenever this thread comes back from the kernel.
                given = n - self.ring.submission().len();
                thread::yield_now();
            }
            for completion in self.ring.completion() {
                if let Some(result) = self.results.get_mut(completion.user_data() as usize) {
                    *result = completion.result();
                }
                done += 1;
            }
        }
    }
}
