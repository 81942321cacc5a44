//! Queue pairs: set up with types, then posted to.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::batch::Batch;
use super::completion::Cq;
use super::connection::{Endpoint, QpNumber};
use super::domain::DomainInner;
use super::error::{Error, PostError, PostReason};
use super::pool::Lease;
use super::posting::QpInner;
use super::remote::RemoteSlice;
use super::request::{Receive, Request};
use crate::provider::SendOp;

mod sealed {
    pub trait Sealed {}
}

/// A transport service that queue pairs can have.
pub trait Transport: sealed::Sealed {}

/// Reliable connection: messages and one-sided operations arrive once, in order, between two queue pairs.
#[derive(Debug)]
pub enum Rc {}
impl sealed::Sealed for Rc {}
impl Transport for Rc {}

/// The state of a queue pair that can receive buffers, and has no peer yet.
#[derive(Debug)]
pub enum Init {}

/// The state of a queue pair that is connected, or was: when its connection breaks, its requests complete with an
/// error [`Status`](crate::Status).
#[derive(Debug)]
pub enum Ready {}

/// How a queue pair is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct QpOptions {
    pub(crate) id: u64,
    pub(crate) send_depth: u32,
    pub(crate) recv_depth: u32,
    pub(crate) path_mtu: Option<u32>,
    pub(crate) max_rd_atomic: Option<u8>,
    pub(crate) retry_count: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) ack_timeout: Duration,
    pub(crate) rnr_timer: Duration,
}

impl Default for QpOptions {
    fn default() -> QpOptions {
        QpOptions::new()
    }
}

impl QpOptions {
    /// 64 slots each way, and for the rest what suits a network that rarely loses anything.
    pub const fn new() -> QpOptions {
        QpOptions {
            id: 0,
            send_depth: 64,
            recv_depth: 64,
            path_mtu: None,
            max_rd_atomic: None,
            retry_count: 7,
            rnr_retry: 7,
            ack_timeout: Duration::from_micros(67_108),
            rnr_timer: Duration::from_micros(640),
        }
    }

    /// A number of the program's own, which every completion of the queue pair carries. 0 without this.
    pub const fn id(mut self, id: u64) -> QpOptions {
        self.id = id;
        self
    }

    /// How many requests can be under way. Each reserves a place on the send completion queue.
    pub const fn send_depth(mut self, slots: u32) -> QpOptions {
        self.send_depth = slots;
        self
    }

    /// How many buffers can wait for messages. Each reserves a place on the receive completion queue.
    pub const fn recv_depth(mut self, slots: u32) -> QpOptions {
        self.recv_depth = slots;
        self
    }

    /// The largest payload of a packet, in bytes: 256, 512, 1024, 2048 or 4096. The device's without this; the
    /// smaller one of both ends counts.
    pub const fn path_mtu(mut self, bytes: u32) -> QpOptions {
        self.path_mtu = Some(bytes);
        self
    }

    /// The most READs and atomics under way, as the one who asks and as the one who answers. The device's without
    /// this.
    pub const fn max_rd_atomic(mut self, count: u8) -> QpOptions {
        self.max_rd_atomic = Some(count);
        self
    }

    /// How often a request is sent again before it fails with
    /// [`RetryExcErr`](crate::Status::RetryExcErr): 0 to 7.
    pub const fn retry_count(mut self, times: u8) -> QpOptions {
        self.retry_count = times;
        self
    }

    /// How often a message is sent again to a peer that has no buffer posted, before it fails with
    /// [`RnrRetryExcErr`](crate::Status::RnrRetryExcErr): 0 to 6, or 7 for ever.
    pub const fn rnr_retry(mut self, times: u8) -> QpOptions {
        self.rnr_retry = times;
        self
    }

    /// How long to wait for an answer before sending again. Rounded up to 4.096 us times a power of two.
    pub const fn ack_timeout(mut self, timeout: Duration) -> QpOptions {
        self.ack_timeout = timeout;
        self
    }

    /// How long the peer is told to wait when it finds no buffer posted here. Rounded up to what the protocol can
    /// say: 10 us to 655 ms.
    pub const fn rnr_timer(mut self, delay: Duration) -> QpOptions {
        self.rnr_timer = delay;
        self
    }
}

/// A queue pair of service `T`: a send queue and a receive queue.
///
/// It begins in [`Init`], where it takes buffers for what will arrive; [`connect`](Qp::connect) makes it
/// [`Ready`], where it takes requests. All methods that post take `&self`: several threads may post.
///
/// Dropping it destroys it, and gives the buffers of everything that did not complete back to their pools;
/// [`destroy`](Qp::destroy) hands them out instead. If it is forgotten ([`std::mem::forget`]), its buffers and all that
/// they need stay alive with it.
///
/// # What does not compile
/// Touching a buffer after it was posted:
/// ```compile_fail,E0382
/// # fn f(qp: &anyverbs::Qp<anyverbs::Rc>, mut lease: anyverbs::Lease) {
/// qp.send(lease).unwrap();
/// lease[0] = 1;
/// # }
/// ```
/// Keeping a slice of a buffer across its post:
/// ```compile_fail,E0505
/// # fn f(qp: &anyverbs::Qp<anyverbs::Rc>, lease: anyverbs::Lease) -> u8 {
/// let bytes = &lease[..];
/// qp.send(lease).unwrap();
/// bytes[0]
/// # }
/// ```
/// Posting a buffer twice:
/// ```compile_fail,E0382
/// # fn f(qp: &anyverbs::Qp<anyverbs::Rc>, lease: anyverbs::Lease) {
/// qp.post_recv(lease).unwrap();
/// qp.post_recv(lease).unwrap();
/// # }
/// ```
/// Sending on a queue pair that is not connected:
/// ```compile_fail,E0599
/// # use anyverbs::{Init, Lease, Qp, Rc};
/// # fn f(qp: &Qp<Rc, Init>, lease: Lease) {
/// qp.send(lease).unwrap();
/// # }
/// ```
/// Connecting twice:
/// ```compile_fail,E0382
/// # use anyverbs::{Endpoint, Init, Qp, Rc};
/// # fn f(qp: Qp<Rc, Init>, peer: &Endpoint) {
/// let first = qp.connect(peer);
/// let second = qp.connect(peer);
/// # }
/// ```
/// Using a queue pair after it was destroyed:
/// ```compile_fail,E0382
/// # use anyverbs::{Lease, Qp, Rc};
/// # fn f(qp: Qp<Rc>, lease: Lease) {
/// qp.destroy().unwrap();
/// qp.send(lease).unwrap();
/// # }
/// ```
/// Destroying it under a batch, which outlives it:
/// ```compile_fail,E0505
/// # use anyverbs::{Qp, Rc};
/// # fn f(qp: Qp<Rc>) {
/// let mut batch = qp.batch();
/// qp.destroy().unwrap();
/// batch.submit().unwrap();
/// # }
/// ```
#[must_use = "dropping a queue pair destroys it"]
pub struct Qp<T: Transport, S = Ready> {
    inner: QpInner,
    kind: PhantomData<fn() -> (T, S)>,
}

impl<T: Transport, S> Qp<T, S> {
    /// Its number on its device.
    pub fn number(&self) -> QpNumber {
        self.inner.send.number
    }

    /// The id that its options gave it.
    pub fn id(&self) -> u64 {
        self.inner.send.qp_id
    }

    /// Posts a buffer for the next message, behind those that wait already. The message may fill all of the
    /// lease's capacity.
    ///
    /// # Errors
    /// [`PostReason::QueueFull`], [`PostReason::WrongDomain`], [`PostReason::BadState`],
    /// [`PostReason::Refused`]; the lease is handed back.
    pub fn post_recv(&self, receive: impl Into<Receive>) -> Result<(), PostError<Lease>> {
        self.inner.post_recv(receive.into())
    }

    /// How many more receives can be posted.
    pub fn recv_room(&self) -> usize {
        self.inner.recv.room()
    }

    /// Destroys the queue pair and hands out the buffers of all that did not complete, first those of the send
    /// queue. What has completed and was not polled counts as not complete: it never comes out of the completion
    /// queue afterwards.
    ///
    /// # Errors
    /// [`Error::Provider`] if the provider cannot destroy it. Its buffers are then leaked, since the device may
    /// still write to them.
    pub fn destroy(mut self) -> Result<Vec<Lease>, Error> {
        self.inner.tear_down()
    }
}

impl<T: Transport> Qp<T, Init> {
    pub(crate) fn new(
        domain: &Arc<DomainInner>,
        options: &QpOptions,
        send_cq: &Cq,
        recv_cq: &Cq,
    ) -> Result<Qp<T, Init>, Error> {
        Ok(Qp { inner: QpInner::new(domain, options, send_cq, recv_cq)?, kind: PhantomData })
    }
}

impl Qp<Rc, Init> {
    /// What the peer needs to connect to this queue pair.
    pub fn endpoint(&self) -> Endpoint {
        self.inner.endpoint()
    }

    /// Connects to the peer's queue pair, and makes this one ready to send.
    ///
    /// Nothing is sent by this: the peer has to call it too, with this side's [`endpoint`](Qp::endpoint). A
    /// request that arrives before it has done so is sent again after the acknowledgement timeout.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Provider`]; the queue pair is destroyed then, and buffers that were posted
    /// to it are back in their pools.
    pub fn connect(self, peer: &Endpoint) -> Result<Qp<Rc, Ready>, Error> {
        self.inner.connect(peer)?;
        Ok(Qp { inner: self.inner, kind: PhantomData })
    }
}

impl Qp<Rc, Ready> {
    /// Posts a request.
    ///
    /// # Errors
    /// Any [`PostReason`] but `BatchFull`; the request is handed back.
    #[inline]
    pub fn post(&self, request: Request) -> Result<(), PostError<Request>> {
        self.inner.post(request)
    }

    /// Posts [`Request::send`].
    ///
    /// # Errors
    /// As [`post`](Qp::post); the lease is handed back.
    #[inline]
    pub fn send(&self, lease: Lease) -> Result<(), PostError<Lease>> {
        self.post_lease(Request::send(lease))
    }

    /// Posts [`Request::send_imm`].
    ///
    /// # Errors
    /// As [`post`](Qp::post); the lease is handed back.
    #[inline]
    pub fn send_imm(&self, lease: Lease, imm: u32) -> Result<(), PostError<Lease>> {
        self.post_lease(Request::send_imm(lease, imm))
    }

    /// Posts [`Request::write`].
    ///
    /// # Errors
    /// As [`post`](Qp::post); the lease is handed back.
    #[inline]
    pub fn write(&self, lease: Lease, remote: RemoteSlice) -> Result<(), PostError<Lease>> {
        self.post_lease(Request::write(lease, remote))
    }

    /// Posts [`Request::write_imm`].
    ///
    /// # Errors
    /// As [`post`](Qp::post); the lease is handed back.
    #[inline]
    pub fn write_imm(&self, lease: Lease, remote: RemoteSlice, imm: u32) -> Result<(), PostError<Lease>> {
        self.post_lease(Request::write_imm(lease, remote, imm))
    }

    /// Posts [`Request::read`].
    ///
    /// # Errors
    /// As [`post`](Qp::post); the lease is handed back.
    #[inline]
    pub fn read(&self, lease: Lease, remote: RemoteSlice) -> Result<(), PostError<Lease>> {
        self.post_lease(Request::read(lease, remote))
    }

    /// Posts [`Request::fetch_add`].
    ///
    /// # Errors
    /// As [`post`](Qp::post); the lease is handed back.
    #[inline]
    pub fn fetch_add(&self, lease: Lease, remote: RemoteSlice, add: u64) -> Result<(), PostError<Lease>> {
        self.post_lease(Request::fetch_add(lease, remote, add))
    }

    /// Posts [`Request::compare_swap`].
    ///
    /// # Errors
    /// As [`post`](Qp::post); the lease is handed back.
    #[inline]
    pub fn compare_swap(
        &self,
        lease: Lease,
        remote: RemoteSlice,
        expected: u64,
        new: u64,
    ) -> Result<(), PostError<Lease>> {
        self.post_lease(Request::compare_swap(lease, remote, expected, new))
    }

    /// Sends a copy of `bytes`, up to [`max_inline`](crate::DeviceAttributes::max_inline) of them, that is made at
    /// once: no lease is needed, and the completion has none. `id` is the request's number.
    ///
    /// # Errors
    /// Any [`PostReason`] but `BatchFull`.
    pub fn send_inline(&self, bytes: &[u8], id: u64) -> Result<(), PostReason> {
        self.inner.post_inline(SendOp::Send, bytes, id)
    }

    /// Writes a copy of `bytes`, as [`send_inline`](Qp::send_inline) sends one, to the beginning of `remote`.
    ///
    /// # Errors
    /// Any [`PostReason`] but `BatchFull`.
    pub fn write_inline(&self, bytes: &[u8], remote: RemoteSlice, id: u64) -> Result<(), PostReason> {
        if bytes.len() as u64 > remote.len {
            return Err(PostReason::TooLong);
        }
        self.inner.post_inline(SendOp::Write { address: remote.address, key: remote.key }, bytes, id)
    }

    /// An empty batch for this queue pair.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.inner)
    }

    /// How many more requests can be posted before one has to be polled.
    pub fn send_room(&self) -> usize {
        self.inner.send.room()
    }

    #[inline]
    fn post_lease(&self, request: Request) -> Result<(), PostError<Lease>> {
        self.inner
            .post(request)
            .map_err(|PostError { reason, request }| PostError { reason, request: request.into_lease() })
    }
}

impl<T: Transport, S> fmt::Debug for Qp<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qp")
            .field("number", &self.number())
            .field("id", &self.id())
            .field("send_room", &self.inner.send.room())
            .field("recv_room", &self.inner.recv.room())
            .finish()
    }
}
