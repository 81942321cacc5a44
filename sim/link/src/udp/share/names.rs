//! What links of one address agree on without talking: names of abstract unix sockets.
//!
//! To bind such a name is atomic, a name is gone with its socket, and each network namespace has its own, as it
//! has its own UDP ports.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::super::sys::{self, Peer};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 254;

fn address_of(what: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new_abstract_name(what.as_bytes())
}

pub(super) fn owner(address: IpAddr) -> String {
    format!("anyverbs/{address}/owner")
}

pub(super) fn prefix(address: IpAddr, prefix: u8) -> String {
    format!("anyverbs/{address}/prefix/{prefix:02x}")
}

pub(super) fn service(address: IpAddr, id: u64) -> String {
    format!("anyverbs/{address}/service/{id:016x}")
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Takes a name; `None` if somebody has it.
pub(super) fn claim(name: &str) -> Result<Option<OwnedFd>, Errno> {
    let socket = socket()?;
    match rustix::net::bind(&socket, &address_of(name)?) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::ADDRINUSE) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Lets others connect to a name that was claimed.
pub(super) fn listen(socket: &OwnedFd) -> Result<(), Errno> {
    rustix::net::listen(socket, BACKLOG)
}

/// The next connection, and who made it.
///
/// # Errors
/// `AGAIN` if there is none.
pub(super) fn accept(socket: &OwnedFd) -> Result<(OwnedFd, Peer), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = rustix::net::accept_with(socket, flags)?;
    let peer = sys::peer(&connection)?;
    Ok((connection, peer))
}

/// Connects to a name, without waiting; and says who listens there.
///
/// # Errors
/// `CONNREFUSED` if nobody listens, `AGAIN` if too many wait to be accepted.
pub(super) fn connect(name: &str) -> Result<(OwnedFd, Peer), Errno> {
    let socket = socket()?;
    rustix::net::connect(&socket, &address_of(name)?)?;
    let peer = sys::peer(&socket)?;
    Ok((socket, peer))
}

/// A process, for people.
pub(super) fn process(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

/// Has the service `id` of `address`, which nobody else can have at the same time.
///
/// # Errors
/// `AddrInUse` if another link has it, and which process' that is.
pub(super) fn claim_service(address: IpAddr, id: u64) -> io::Result<OwnedFd> {
    let name = service(address, id);
    if let Some(socket) = claim(&name)? {
        // Whoever is refused connects, to learn whose it is.
        listen(&socket)?;
        return Ok(socket);
    }
    let whose = match connect(&name) {
        Ok((_, peer)) => process(peer.pid),
        Err(_) => "another process".to_owned(),
    };
    let id = anyverbs_wire::mad::ServiceId(id);
    let text = format!("service {id} of {address} belongs to {whose}; stop that, or take another service");
    Err(io::Error::new(io::ErrorKind::AddrInUse, text))
}
