//! RDMA verbs on any machine: the same program on hardware, on a software fabric, and in virtual time.
//!
//! Anyverbs is a safe, zero-copy interface to RDMA: queue pairs that send, receive, write, read and do atomics on a
//! peer's memory. Where there is no RDMA hardware, a software NIC does the same over UDP, on the wire of RoCEv2.
//!
//! ```text
//! Device -- Domain -- Pool ------ Lease          buffers that are posted and come back
//!   |         |------ Window ---- RemoteToken    memory that a peer reaches
//!   |         '------ Qp -------- Endpoint       what a peer connects to
//!   '------- Cq ----- Completion                 what has ended, with its buffer
//! ```
//!
//! # A first program
//! Two devices in one process; in earnest they are in two, and the endpoints and the token travel between them by a
//! socket, a file, or whatever there is.
//!
//! ```
//! use anyverbs::{Completion, Cq, Device, DeviceOptions, QpOptions, Rc, Rights};
//! use std::time::Duration;
//!
//! fn next(cq: &Cq) -> Completion {
//!     loop {
//!         let mut next = None;
//!         cq.poll(|completion| next = Some(completion));
//!         match next {
//!             Some(completion) => return completion,
//!             None => cq.wait(Duration::from_secs(1)),
//!         };
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One slot each way, so that `next` cannot meet two completions at once.
//! let options = QpOptions::new().send_depth(1).recv_depth(1);
//! let (alice, bob) = (Device::open(&DeviceOptions::new())?, Device::open(&DeviceOptions::new())?);
//! let (here, there) = (alice.domain()?, bob.domain()?);
//! let (alice_sends, alice_receives) = (alice.completion_queue(1)?, alice.completion_queue(1)?);
//! let (bob_sends, bob_receives) = (bob.completion_queue(1)?, bob.completion_queue(1)?);
//! let a = here.queue_pair::<Rc>(&options, &alice_sends, &alice_receives)?;
//! let b = there.queue_pair::<Rc>(&options, &bob_sends, &bob_receives)?;
//!
//! // Bob lends a buffer to whatever comes first, and then connects.
//! let inbox = there.pool(1, 4096)?;
//! b.post_recv(inbox.lease().ok_or("no lease")?)?;
//! let (to_a, to_b) = (a.endpoint(), b.endpoint());
//! let (a, _b) = (a.connect(&to_b)?, b.connect(&to_a)?);
//!
//! // Alice sends. Posting takes the buffer away; its completion brings it back.
//! let outbox = here.pool(1, 4096)?;
//! let mut letter = outbox.lease().ok_or("no lease")?;
//! letter.copy_from(b"hello")?;
//! a.send(letter)?;
//! let mut letter = next(&alice_sends).ok()?.buffer.ok_or("no buffer")?;
//! let received = next(&bob_receives).ok()?.buffer.ok_or("no buffer")?;
//! assert_eq!(&received[..], b"hello");
//!
//! // A window is memory that the peer reaches by itself. Bob's program sees no completion.
//! let window = there.window(64, Rights::WRITE)?;
//! let token = window.token();
//! letter.copy_from(b"written")?;
//! a.write(letter, token.at(8, 7)?)?;
//! next(&alice_sends).ok()?;
//! let memory = window.revoke()?; // From here on it is Bob's alone again.
//! assert_eq!(&memory[8..15], b"written");
//! # Ok(())
//! # }
//! ```
//!
//! # What is safe, and why
//! - **Exclusive or exposed, never both.** A [`Lease`] and a [`Memory`] are slices: nobody else touches them. A
//!   [`Window`] is not: it is copied in and out, or reached by atomics, since peers may write to it at any time.
//!   [`Window::revoke`] turns it into [`Memory`] again.
//! - **A posted buffer comes back exactly once**: in a [`Completion`], from [`Qp::destroy`], or with the refusal of
//!   the post. Nothing else frees it, no timeout and no error.
//! - **A queue never overflows.** Its slots are allocated with it, and attaching it reserves as many places on its
//!   [`Cq`]. Posting and polling allocate nothing.
//! - **Teardown has an order**, kept by ownership: a queue pair goes before its buffers, they before their
//!   registration, that before the memory. What is forgotten ([`std::mem::forget`]) stays alive with all it needs.
//!
//! What would break this does not compile: see [`Qp`]. A window is no slice, not even for a moment:
//! ```compile_fail,E0614
//! # fn f(window: anyverbs::Window) {
//! let bytes: &mut [u8] = &mut *window;
//! # }
//! ```
//! ```compile_fail,E0608
//! # fn f(window: anyverbs::Window) -> u8 {
//! window[0]
//! # }
//! ```
//! Nor is memory reachable that was exposed:
//! ```compile_fail,E0382
//! # use anyverbs::{Domain, Memory, Rights};
//! # fn f(domain: &Domain, mut memory: Memory) {
//! let window = domain.expose(memory, Rights::all());
//! memory[0] = 1;
//! # }
//! ```
//! A slice of a buffer cannot outlive the buffer, nor two that write exist:
//! ```compile_fail,E0515
//! # fn f(pool: &anyverbs::Pool) -> &[u8] {
//! let lease = pool.lease().unwrap();
//! &lease[..]
//! # }
//! ```
//! ```compile_fail,E0499
//! # fn f(mut lease: anyverbs::Lease) {
//! let one = &mut lease[..4];
//! let other = &mut lease[2..];
//! one[3] = other[0];
//! # }
//! ```
//! A buffer cannot be in two places:
//! ```compile_fail,E0599
//! # fn f(lease: anyverbs::Lease) {
//! let copy = lease.clone();
//! # }
//! ```
//!
//! # Threads
//! Every type is `Send` and `Sync`. Several threads may post to one queue pair and poll one completion queue.
//!
//! # In virtual time
//! [`sim::Simulation`] runs the same program on hosts that do not exist, over a network with faults, and exactly the
//! same again from the same seed.
#![deny(unsafe_code)]

mod provider;
pub mod sim;
#[allow(unsafe_code)]
mod sys;
mod verbs;

pub use anyverbs_link::fault::FaultProfile;

pub use provider::{Candidate, DeviceOptions, LinkKind, ProviderKind, candidates};
pub use verbs::batch::Batch;
pub use verbs::completion::{Completion, Cq, Status};
pub use verbs::connection::{Endpoint, QpNumber};
pub use verbs::device::{Device, DeviceAttributes};
pub use verbs::domain::Domain;
pub use verbs::error::{Error, OutOfBounds, ParseError, PostError, PostReason};
pub use verbs::pool::{Lease, Pool};
pub use verbs::queue_pair::{Init, Qp, QpOptions, Rc, Ready, Transport};
pub use verbs::region::Memory;
pub use verbs::remote::{RemoteSlice, RemoteToken};
pub use verbs::request::{Operation, Receive, Request};
pub use verbs::window::{Rights, Window};

#[cfg(test)]
mod tests {
    use super::*;

    fn shared<T: Send + Sync>() {}

    #[test]
    fn everything_is_shared_between_threads() {
        shared::<Device>();
        shared::<Domain>();
        shared::<Pool>();
        shared::<Lease>();
        shared::<Memory>();
        shared::<Window>();
        shared::<Qp<Rc, Init>>();
        shared::<Qp<Rc>>();
        shared::<Cq>();
        shared::<Completion>();
        shared::<Batch<'static>>();
        shared::<Error>();
        shared::<PostError<Request>>();
    }
}

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
