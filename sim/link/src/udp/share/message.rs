//! What an owner and its members tell each other, over a seqpacket socket: one fixed layout.
//!
//! ```text
//! 0        8         10     11       12       16        24   32
//! anyverbs | version | kind | prefix | number | service | 0  |      little-endian
//! ```

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The version of the messages and of the ring behind them.
const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"anyverbs";
const LEN: usize = 32;

/// One message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// A member names its prefix and the bytes of its ring, whose memory file comes with the message.
    Hello { prefix: u8, ring: u32 },
    /// The member wants requests for a service.
    Claim { service: u64 },
    /// The member wants them no more.
    Release { service: u64 },
    /// The owner accepts the member.
    Welcome,
    /// The owner does not, and closes the connection.
    Refused(Refusal),
    /// There is something in the ring of a member that sleeps.
    Bell,
}

/// Why an owner has nothing to do with somebody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// It speaks another version.
    Version,
    /// It is another user's.
    User,
    /// Another member has its prefix.
    Prefix,
    /// It claims too many services.
    Services,
    /// What it said made no sense, or the memory that it handed over.
    Malformed,
    /// Too many wait to become members.
    Crowded,
    /// It has no descriptor left.
    Descriptors,
}

const REFUSALS: [Refusal; 7] = [
    Refusal::Version,
    Refusal::User,
    Refusal::Prefix,
    Refusal::Services,
    Refusal::Malformed,
    Refusal::Crowded,
    Refusal::Descriptors,
];

impl Refusal {
    /// Whether it may be another matter a little later.
    pub(super) fn is_passing(self) -> bool {
        matches!(self, Refusal::Crowded | Refusal::Descriptors)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Version => {
                "it is of another version of this library, and the two do not share a port; use one version"
            }
            Refusal::User => "it belongs to another user; a port is shared by processes of one user",
            Refusal::Prefix => "another link has this one's number prefix",
            Refusal::Services => "this link claims too many services",
            Refusal::Malformed => "it could make no sense of what this link said, or of its memory",
            Refusal::Crowded => "too many links want to join at once",
            Refusal::Descriptors => {
                "it has no file descriptor left for another link; raise its limit (ulimit -n)"
            }
        })
    }
}

impl Message {
    fn emit(self) -> [u8; LEN] {
        let (kind, prefix, number, service) = match self {
            Message::Hello { prefix, ring } => (1, prefix, ring, 0),
            Message::Claim { service } => (2, 0, 0, service),
            Message::Release { service } => (3, 0, 0, service),
            Message::Welcome => (16, 0, 0, 0),
            Message::Refused(refusal) => (17, 0, refusal as u32, 0),
            Message::Bell => (18, 0, 0, 0),
        };
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = kind;
        bytes[11] = prefix;
        bytes[12..16].copy_from_slice(&number.to_le_bytes());
        bytes[16..24].copy_from_slice(&service.to_le_bytes());
        bytes
    }

    /// Reads a message, believing nothing.
    fn parse(bytes: &[u8]) -> Result<Message, Refusal> {
        let Ok(bytes) = <&[u8; LEN]>::try_from(bytes) else { return Err(Refusal::Malformed) };
        let [m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, kind, prefix, n0, n1, n2, n3, rest @ ..] = bytes;
        if [m0, m1, m2, m3, m4, m5, m6, m7].map(|byte| *byte) != MAGIC {
            return Err(Refusal::Malformed);
        }
        // A refusal is the one message that every version reads.
        let number = u32::from_le_bytes([*n0, *n1, *n2, *n3]);
        let refusal = REFUSALS.get(number as usize).copied();
        if let (17, Some(refusal)) = (*kind, refusal) {
            return Ok(Message::Refused(refusal));
        }
        if u16::from_le_bytes([*v0, *v1]) != VERSION {
            return Err(Refusal::Version);
        }
        let service = rest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        match *kind {
            1 => Ok(Message::Hello { prefix: *prefix, ring: number }),
            2 => Ok(Message::Claim { service }),
            3 => Ok(Message::Release { service }),
            16 => Ok(Message::Welcome),
            18 => Ok(Message::Bell),
            _ => Err(Refusal::Malformed),
        }
    }
}

/// Sends a message, and a descriptor with it, without waiting.
pub(super) fn send(socket: &OwnedFd, message: Message, with: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let bytes = message.emit();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let with = with.as_slice();
    if !with.is_empty() && !control.push(SendAncillaryMessage::ScmRights(with)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags).map(drop)
}

/// What a look at a socket found.
#[derive(Debug)]
pub(super) enum Heard {
    /// Nothing yet.
    Nothing,
    /// The other side is gone.
    Closed,
    /// A message, and the descriptor that came with it.
    Message(Message, Option<OwnedFd>),
    /// Something else, and what to answer.
    Nonsense(Refusal),
}

/// Receives a message, if there is one.
pub(super) fn receive(socket: &OwnedFd) -> Heard {
    // An error that the kernel tells once, before what the other side said earlier.
    for _ in 0..2 {
        match receive_once(socket) {
            Err(Errno::CONNRESET) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Err(_) => return Heard::Closed,
            Ok(heard) => return heard,
        }
    }
    Heard::Closed
}

fn receive_once(socket: &OwnedFd) -> Result<Heard, Errno> {
    // One byte and one descriptor more than there should be, to see them.
    let mut bytes = [0; LEN + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    // Descriptors that are not looked at further down are closed here.
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let mut descriptors: Vec<OwnedFd> = descriptors.by_ref().flatten().collect();
    let descriptor = descriptors.pop();
    if got.bytes == 0 {
        return Ok(Heard::Closed);
    }
    // There was no number for the descriptor, or no room for more of them than there should be.
    if descriptor.is_none() && got.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Heard::Nonsense(Refusal::Descriptors));
    }
    if !descriptors.is_empty() || got.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Heard::Nonsense(Refusal::Malformed));
    }
    Ok(match Message::parse(bytes.get(..got.bytes).unwrap_or_default()) {
        Ok(message) => Heard::Message(message, descriptor),
        Err(refusal) => Heard::Nonsense(refusal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn messages_and_descriptors_arrive_as_they_were_sent() {
        let (a, b) = pair();
        let mut messages = vec![
            Message::Hello { prefix: 0xAB, ring: 1 << 21 },
            Message::Claim { service: u64::MAX - 1 },
            Message::Release { service: 0x0106_0050 },
            Message::Welcome,
            Message::Bell,
        ];
        messages.extend(REFUSALS.map(Message::Refused));
        for message in messages {
            send(&a, message, None).unwrap();
            assert!(matches!(receive(&b), Heard::Message(got, None) if got == message), "{message:?}");
        }
        send(&a, Message::Welcome, Some(a.as_fd())).unwrap();
        assert!(matches!(receive(&b), Heard::Message(Message::Welcome, Some(_))));
        assert!(matches!(receive(&b), Heard::Nothing));
        drop(a);
        // The descriptor that came along is closed, too, so this is the end.
        assert!(matches!(receive(&b), Heard::Closed));
    }

    #[test]
    fn nonsense_is_told_from_messages() {
        let (a, b) = pair();
        let say = |bytes: &[u8]| {
            rustix::net::send(&a, bytes, SendFlags::empty()).unwrap();
            receive(&b)
        };
        let good = Message::Bell.emit();
        assert!(matches!(say(&good), Heard::Message(Message::Bell, None)));
        let longer = [&good[..], &[0; 100]].concat();
        for bytes in [&good[..31], &longer[..33], &longer, b"x"] {
            assert!(matches!(say(bytes), Heard::Nonsense(Refusal::Malformed)), "{bytes:?}");
        }
        for (at, byte, refusal) in [
            (0, b'A', Refusal::Malformed),
            (8, 2, Refusal::Version),
            (9, 1, Refusal::Version),
            (10, 0, Refusal::Malformed),
            (10, 17 + 64, Refusal::Malformed),
        ] {
            let mut bad = good;
            bad[at] = byte;
            assert!(matches!(say(&bad), Heard::Nonsense(got) if got == refusal), "{at} {byte}");
        }
        // Of a refusal, any version will do, but not any reason.
        let mut refused = Message::Refused(Refusal::User).emit();
        refused[8] = 77;
        assert!(matches!(say(&refused), Heard::Message(Message::Refused(Refusal::User), None)));
        refused[13] = 1;
        assert!(matches!(say(&refused), Heard::Nonsense(Refusal::Version)));
    }

    #[test]
    fn two_descriptors_are_nonsense_and_closed() {
        let (a, b) = pair();
        let (one, two) = pair();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let both = [one.as_fd(), one.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&both)));
        let bytes = Message::Welcome.emit();
        rustix::net::sendmsg(&a, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
        assert!(matches!(receive(&b), Heard::Nonsense(Refusal::Malformed)));
        drop(one);
        assert!(matches!(receive(&two), Heard::Closed));
    }

    #[test]
    fn what_was_said_before_the_end_is_heard() {
        let (a, b) = pair();
        send(&b, Message::Welcome, None).unwrap();
        send(&a, Message::Refused(Refusal::User), None).unwrap();
        // With something unread, which the kernel reports to the other side before all else.
        drop(a);
        assert!(matches!(receive(&b), Heard::Message(Message::Refused(Refusal::User), None)));
        assert!(matches!(receive(&b), Heard::Closed));
    }
}
