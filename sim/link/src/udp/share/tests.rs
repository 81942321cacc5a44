//! Links that share an address, against those who want them no good.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};

use anyverbs_memory::{Block, RecordConsumer, RecordProducer};
use anyverbs_nic::link::{Link, LinkError, RxBatch};
use rustix::net::SendFlags;

use super::super::{UdpLink, UdpOptions};
use super::message::Heard;
use anyverbs_nic::link::ROCE_PORT;

use super::*;

/// An address of this process that no other test uses.
fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let n = std::process::id();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    IpAddr::from([127, 128 + (n >> 8) as u8 % 64, n as u8, last])
}

fn bind(address: IpAddr) -> Result<UdpLink, BindError> {
    UdpLink::bind(address, &UdpOptions::default())
}

/// What a link has received; it is called more often than the clock of a test goes on.
fn receive(link: &mut UdpLink) -> Result<Vec<Vec<u8>>, LinkError> {
    let mut batch = RxBatch::with_capacity(1 << 18, 256);
    let waiter = link.waiter();
    for _ in 0..4 {
        link.receive(&mut batch, waiter.now() + 2 * LOOK)?;
    }
    Ok(batch.entries().iter().map(|entry| batch.bytes()[entry.range()].to_vec()).collect())
}

/// Calls a link until something is so.
fn until<T>(link: &mut UdpLink, mut look: impl FnMut(&mut UdpLink) -> Option<T>) -> T {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look(link) {
            return found;
        }
        assert!(Instant::now() < give_up, "it did not come to it");
        receive(link).unwrap();
    }
}

fn heard(link: &mut UdpLink, socket: &OwnedFd) -> Message {
    until(link, |_| match message::receive(socket) {
        Heard::Nothing => None,
        Heard::Message(message, None) => Some(message),
        other => panic!("{other:?}"),
    })
}

fn is_closed(link: &mut UdpLink, socket: &OwnedFd) {
    until(link, |_| matches!(message::receive(socket), Heard::Closed).then_some(()));
}

/// A prefix that the link does not have, and others do not either.
fn other_prefix(link: &UdpLink) -> u8 {
    let own = link.info().prefix.unwrap().value as u8;
    if own == 7 { 8 } else { 7 }
}

fn memory() -> RecordConsumer {
    RecordConsumer::create(RING).unwrap()
}

fn hello(prefix: u8) -> Message {
    Message::Hello { prefix, ring: RING as u32 }
}

/// Says something to the owner of an address over a connection of its own.
fn say(address: IpAddr, message: Message, with: Option<std::os::fd::BorrowedFd<'_>>) -> OwnedFd {
    let (socket, _) = names::connect(&names::owner(address)).unwrap();
    message::send(&socket, message, with).unwrap();
    socket
}

#[test]
fn when_all_prefixes_are_taken_a_link_says_so() {
    let address = address();
    let taken: Vec<OwnedFd> = (1..=LINKS_MAX)
        .map(|prefix| names::claim(&names::prefix(address, prefix)).unwrap().unwrap())
        .collect();
    let text = bind(address).err().unwrap().to_string();
    for part in ["254 links", &address.to_string(), "another address"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    drop(taken);
    let prefix = bind(address).unwrap().info().prefix.unwrap();
    assert!(prefix.bits == 8 && (1..=254).contains(&prefix.value));
}

#[test]
fn whoever_makes_no_sense_is_refused_with_a_reason_and_the_owner_goes_on() {
    let address = address();
    let mut link = bind(address).unwrap();
    let own = link.info().prefix.unwrap().value as u8;
    let free = other_prefix(&link);
    let ring = memory();
    let null = std::fs::File::open("/dev/null").unwrap();
    let small = RecordConsumer::create(RING / 2).unwrap();
    let malformed = Refusal::Malformed;
    let cases = [
        (hello(free), None, malformed),
        (hello(free), Some(null.as_fd()), malformed),
        (hello(free), small.fd(), malformed),
        (Message::Hello { prefix: free, ring: (RING / 2) as u32 }, small.fd(), malformed),
        (Message::Hello { prefix: free, ring: u32::MAX }, ring.fd(), malformed),
        (hello(0), ring.fd(), malformed),
        (hello(255), ring.fd(), malformed),
        (hello(own), ring.fd(), Refusal::Prefix),
        (Message::Claim { service: 1 }, None, malformed),
        (Message::Welcome, None, malformed),
        (Message::Bell, ring.fd(), malformed),
    ];
    let count = cases.len() as u64;
    for (message, with, refusal) in cases {
        let socket = say(address, message, with);
        assert_eq!(heard(&mut link, &socket), Message::Refused(refusal), "{message:?}");
        is_closed(&mut link, &socket);
    }
    let (socket, _) = names::connect(&names::owner(address)).unwrap();
    rustix::net::send(&socket, b"GET / HTTP/1.1\r\n", SendFlags::empty()).unwrap();
    assert_eq!(heard(&mut link, &socket), Message::Refused(malformed));
    assert_eq!((link.counters().refused(), link.counters().members()), (count + 1, 0));

    // One that makes sense at first.
    let member = say(address, hello(free), ring.fd());
    assert_eq!(heard(&mut link, &member), Message::Welcome);
    let again = say(address, hello(free), memory().fd());
    assert_eq!(heard(&mut link, &again), Message::Refused(Refusal::Prefix));
    assert_eq!(link.counters().members(), 1);
    message::send(&member, hello(free), None).unwrap();
    assert_eq!(heard(&mut link, &member), Message::Refused(malformed));
    is_closed(&mut link, &member);
    assert_eq!(link.counters().members(), 0);
    // Its prefix is free again, even if the owner hears of both at once.
    let one = say(address, hello(free), memory().fd());
    assert_eq!(heard(&mut link, &one), Message::Welcome);
    drop(one);
    let two = say(address, hello(free), memory().fd());
    assert_eq!(heard(&mut link, &two), Message::Welcome);
}

#[test]
fn a_member_has_so_many_services_and_no_more() {
    let address = address();
    let mut link = bind(address).unwrap();
    let ring = memory();
    let member = say(address, hello(other_prefix(&link)), ring.fd());
    assert_eq!(heard(&mut link, &member), Message::Welcome);
    for service in 0..=SERVICES_MAX as u64 {
        message::send(&member, Message::Claim { service }, None).unwrap();
        receive(&mut link).unwrap();
    }
    assert_eq!(heard(&mut link, &member), Message::Refused(Refusal::Services));
}

#[test]
fn those_who_connect_and_say_nothing_do_not_keep_others_out() {
    let address = address();
    let mut link = bind(address).unwrap();
    let silent: Vec<OwnedFd> = (0..40).map(|_| names::connect(&names::owner(address)).unwrap().0).collect();
    let ring = memory();
    let member = say(address, hello(other_prefix(&link)), ring.fd());
    assert_eq!(heard(&mut link, &member), Message::Welcome);
    assert_eq!(heard(&mut link, &silent[0]), Message::Refused(Refusal::Crowded));
}

#[test]
fn a_member_that_spoils_its_ring_is_dismissed() {
    let address = address();
    let mut link = bind(address).unwrap();
    let ring = memory();
    let prefix = other_prefix(&link);
    let member = say(address, hello(prefix), ring.fd());
    assert_eq!(heard(&mut link, &member), Message::Welcome);
    // The consumer's index, at byte 128 of the memory: far ahead of what there is.
    let fd = ring.fd().unwrap().try_clone_to_owned().unwrap();
    let block = Block::open(fd, RING + 384).unwrap();
    block.store_u64(128, 0x7FFF_FFFF).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = [prefix; 8000];
    until(&mut link, |link| {
        sender.send_to(&datagram, (address, ROCE_PORT)).unwrap();
        (link.counters().members() == 0).then_some(())
    });
    assert_eq!(heard(&mut link, &member), Message::Refused(Refusal::Malformed));
    assert!(link.counters().forwarded() >= 200, "what fitted was handed over");
}

/// Something that has the owner's name.
struct Impostor {
    address: IpAddr,
    listener: Option<OwnedFd>,
}

impl Impostor {
    fn new(address: IpAddr) -> Impostor {
        let listener = names::claim(&names::owner(address)).unwrap().unwrap();
        names::listen(&listener).unwrap();
        Impostor { address, listener: Some(listener) }
    }

    /// The next one that joins.
    fn member(&self, link: &mut UdpLink) -> (OwnedFd, RecordProducer, Block) {
        let listener = self.listener.as_ref().unwrap();
        let (socket, _) = until(link, |_| names::accept(listener).ok());
        let Heard::Message(Message::Hello { prefix, ring }, Some(memory)) = message::receive(&socket) else {
            panic!("no introduction to the owner of {}", self.address);
        };
        assert_eq!((u32::from(prefix), ring as usize), (link.info().prefix.unwrap().value, RING));
        let block = Block::open(memory.try_clone().unwrap(), RING + 384).unwrap();
        (socket, RecordProducer::open(memory, RING).unwrap(), block)
    }
}

#[test]
fn a_member_of_an_owner_without_sense_leaves_it_and_is_itself_as_soon_as_it_can() {
    let address = address();
    let mut impostor = Impostor::new(address);
    // It does not answer, and the link goes on without.
    let mut link = bind(address).unwrap();
    link.claim_service(77).unwrap();
    let own = link.info().prefix.unwrap().value;
    let (socket, mut ring, _block) = impostor.member(&mut link);
    assert!(matches!(message::receive(&socket), Heard::Message(Message::Claim { service: 77 }, None)));
    assert!(ring.push(&[1; 5], b"datagram"));
    let _ = ring.publish();
    let got = until(&mut link, |link| receive(link).unwrap().pop());
    assert_eq!(got, b"datagram");

    // Nonsense on the socket, and nonsense in the ring: it comes again with another one.
    message::send(&socket, Message::Release { service: 0 }, None).unwrap();
    let (_socket, _ring, block) = impostor.member(&mut link);
    block.store_u64(0, 0x00FF_FFFF).unwrap();
    let (socket, mut ring, block) = impostor.member(&mut link);
    // A record that claims to be longer than the ring.
    assert!(ring.push(&[1; 5], b"datagram"));
    block.store_u64(384, u64::MAX).unwrap();
    let _ = ring.publish();
    let (third, mut ring, _block) = impostor.member(&mut link);
    is_closed(&mut link, &socket);
    // What the owner left in the ring is not lost when it dies.
    assert!(ring.push(&[2; 5], b"last words"));
    let _ = ring.publish();
    impostor.listener = None;
    drop(third);
    let got = until(&mut link, |link| receive(link).unwrap().pop());
    assert_eq!(got, b"last words");
    // And now it has the port.
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let got = until(&mut link, |link| {
        sender.send_to(b"to the owner", (address, ROCE_PORT)).unwrap();
        receive(link).unwrap().pop()
    });
    assert_eq!(got, b"to the owner");
    assert_eq!((link.counters().takeovers(), link.info().prefix.unwrap().value), (4, own));
    assert_ne!(link.source_port(0), ROCE_PORT);
}

#[test]
fn a_refusal_is_told_at_once_or_when_it_comes() {
    let address = address();
    let impostor = Impostor::new(address);
    let refuse = |refusal| {
        let listener = impostor.listener.as_ref().unwrap();
        let give_up = Instant::now() + Duration::from_secs(10);
        let (socket, _) = loop {
            match names::accept(listener) {
                Ok(found) => break found,
                Err(_) => assert!(Instant::now() < give_up),
            }
        };
        message::send(&socket, Message::Refused(refusal), None).unwrap();
    };
    let error = thread::scope(|scope| {
        scope.spawn(|| refuse(Refusal::Version));
        bind(address).err().unwrap()
    });
    let text = error.to_string();
    let us = format!("process {}", std::process::id());
    for part in [us.as_str(), "another version", &address.to_string()] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    let mut link = bind(address).unwrap();
    refuse(Refusal::User);
    let give_up = Instant::now() + Duration::from_secs(10);
    let error = loop {
        match receive(&mut link) {
            Err(error) => break error.to_string(),
            Ok(_) => assert!(Instant::now() < give_up),
        }
    };
    assert!(error.contains("another user") && error.contains("4791"), "{error}");
    // That was it: it says so again, and nothing keeps those awake who sleep on.
    assert!(receive(&mut link).is_err());
    assert_eq!(link.next_deadline(), None);
    let waiter = link.waiter();
    // Whoever slept was roused to see it.
    waiter.wait(Some(waiter.now() + Duration::from_millis(1)));
    let deadline = waiter.now() + Duration::from_millis(20);
    waiter.wait(Some(deadline));
    assert!(waiter.now() >= deadline);
}

#[test]
fn a_member_that_finds_a_stranger_at_the_port_goes_on_seeking() {
    let address = address();
    let impostor = Impostor::new(address);
    let mut link = bind(address).unwrap();
    let (socket, _ring, _block) = impostor.member(&mut link);
    // The owner is gone, and somebody who does not share has the port.
    let stranger = UdpSocket::bind((address, ROCE_PORT)).unwrap();
    drop((impostor, socket));
    let deadline = until(&mut link, |link| link.next_deadline());
    for _ in 0..50 {
        receive(&mut link).unwrap();
    }
    assert!(link.next_deadline().is_some_and(|later| later >= deadline));
    drop(stranger);
    until(&mut link, |link| link.next_deadline().is_none().then_some(()));
}
