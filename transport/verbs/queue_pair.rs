//! Queue pairs: set up with types, then posted to.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::batch::Batch;
use super::completion::{Cq, Credit};
use super::connection::{Endpoint, QpNumber};
use super::domain::DomainInner;
use super::error::{Error, PostError, PostReason};
use super::pool::Lease;
use super::remote::RemoteSlice;
use super::request::{Operation, Receive, Request};
use super::slots::{Posted, SLOTS_MAX, SlotTable, WorkId};
use crate::provider::{QpBackend, QpRequest, RecvWork, Refusal, Segment, SendOp, SendWork};

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
            ack_timeout: Duration::from_micros(67_109),
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
/// [`destroy`](Qp::destroy) hands them out instead. If it is forgotten ([`mem::forget`]), its buffers and all that
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

/// A queue pair whatever its state.
pub(crate) struct QpInner {
    /// `None` once it is destroyed.
    backend: Option<Box<dyn QpBackend>>,
    send: Arc<SlotTable>,
    recv: Arc<SlotTable>,
    /// The places on both completion queues; `None` once they were given back, which is after `backend` is gone.
    credits: Option<[Credit; 2]>,
    domain: Arc<DomainInner>,
    path_mtu: u16,
    options: QpOptions,
    max_message: u32,
    max_inline: u32,
}

impl QpInner {
    fn new(
        domain: &Arc<DomainInner>,
        options: &QpOptions,
        send_cq: &Cq,
        recv_cq: &Cq,
    ) -> Result<QpInner, Error> {
        for (cq, what) in [(send_cq, "send completion queue"), (recv_cq, "receive completion queue")] {
            if !Arc::ptr_eq(&cq.inner.device, &domain.device) {
                return Err(Error::ForeignDevice { what });
            }
        }
        let attributes = domain.device.backend.attributes();
        let max_depth = attributes.max_qp_wr.min(SLOTS_MAX);
        let shallower = "ask for less, or use several queue pairs";
        within("send queue depth", options.send_depth, 0, max_depth, shallower)?;
        within("receive queue depth", options.recv_depth, 0, max_depth, shallower)?;
        within("retry count", options.retry_count.into(), 0, 7, "use a value that 3 bits can hold")?;
        within("RNR retry count", options.rnr_retry.into(), 0, 7, "use a value that 3 bits can hold")?;
        let path_mtu = options.path_mtu.unwrap_or(attributes.path_mtu);
        within("path MTU", path_mtu, 256, attributes.path_mtu, "leave it to the device")?;
        if !path_mtu.is_power_of_two() {
            return Err(Error::Limit {
                what: "path MTU",
                asked: path_mtu.into(),
                found: "the protocol has 256, 512, 1024, 2048 and 4096".to_owned(),
                remedy: "use one of them",
            });
        }
        let mut options = options.clone();
        let reads = options.max_rd_atomic.unwrap_or(attributes.max_rd_atomic);
        within(
            "READs under way",
            reads.into(),
            1,
            attributes.max_rd_atomic.into(),
            "leave it to the device",
        )?;
        options.max_rd_atomic = Some(reads);

        let credits =
            [Credit::reserve(send_cq, options.send_depth)?, Credit::reserve(recv_cq, options.recv_depth)?];
        let backend = domain.backend.create_queue_pair(&QpRequest {
            send_cq: &*send_cq.inner.backend,
            recv_cq: &*recv_cq.inner.backend,
            options: &options,
        })?;
        let number = QpNumber::new(backend.number());
        let [send, recv] = credits.each_ref().map(|credit| credit.attach(number, options.id));
        Ok(QpInner {
            backend: Some(backend),
            send,
            recv,
            credits: Some(credits),
            domain: Arc::clone(domain),
            // At most 4096 by the device's attributes.
            path_mtu: u16::try_from(path_mtu).unwrap_or(4096),
            max_message: attributes.max_message,
            max_inline: attributes.max_inline,
            options,
        })
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.domain.device.backend.attributes().address,
            number: self.send.number,
            psn: self.backend.as_ref().map_or(0, |backend| backend.initial_psn()),
            path_mtu: self.path_mtu,
            max_reads: self.options.max_rd_atomic.unwrap_or(1),
        }
    }

    fn connect(&self, peer: &Endpoint) -> Result<(), Error> {
        let own = self.endpoint();
        let unreachable = |reason| Err(Error::Unreachable { local: own.address, peer: peer.address, reason });
        if own.address.is_ipv4() != peer.address.is_ipv4() {
            return unreachable("one has an IPv4 address and the other IPv6; open both with one family");
        }
        if own.address.is_loopback() != peer.address.is_loopback() {
            return unreachable(
                "one is a loopback address, which only its own machine reaches; open both with an address of their network",
            );
        }
        let Some(backend) = &self.backend else { return Ok(()) };
        backend.connect(&Endpoint { path_mtu: own.path_mtu.min(peer.path_mtu), ..*peer }, &self.options)
    }

    /// What is wrong with a request, before it takes a slot.
    pub(crate) fn check(&self, request: &Request) -> Result<SendWork<'static>, PostReason> {
        if !Arc::ptr_eq(request.lease.domain(), &self.domain) {
            return Err(PostReason::WrongDomain);
        }
        let work = request.work()?;
        if work.local.len > self.max_message {
            return Err(PostReason::TooLong);
        }
        Ok(work)
    }

    fn post(&self, request: Request) -> Result<(), PostError<Request>> {
        let mut work = match self.check(&request) {
            Ok(work) => work,
            Err(reason) => return Err(PostError { reason, request }),
        };
        let (parts, lease) = request.apart();
        let refused = |reason, lease| Err(PostError { reason, request: Request::again(parts, lease) });
        let operation = parts.op.operation();
        let posted = Posted { lease: Some(lease), id: parts.id, operation, len: work.local.len };
        let id = match self.send.insert(posted) {
            Ok(id) => id,
            Err(Posted { lease: Some(lease), .. }) => return refused(PostReason::QueueFull, lease),
            Err(_) => return Ok(()),
        };
        work.id = id.0;
        match self.give(&[work]) {
            Ok(()) => Ok(()),
            Err(refusal) => match self.send.take(id).and_then(|posted| posted.lease) {
                Some(lease) => refused(refusal.reason, lease),
                // The provider completed what it refused, and the completion brought the lease back.
                None => Ok(()),
            },
        }
    }

    fn post_inline(&self, op: SendOp, bytes: &[u8], id: u64) -> Result<(), PostReason> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if len > self.max_inline {
            return Err(PostReason::TooLong);
        }
        let posted = Posted { lease: None, id, operation: op.operation(), len };
        let id = self.send.insert(posted).map_err(|_| PostReason::QueueFull)?;
        let local = Segment { address: 0, len, key: 0 };
        let work = SendWork { id: id.0, op, local, fence: false, solicited: false, inline: Some(bytes) };
        self.give(&[work]).map_err(|refusal| {
            self.send.take(id);
            refusal.reason
        })
    }

    pub(crate) fn post_batch(&self, batch: &mut Batch<'_>) -> Result<(), PostReason> {
        let count = batch.len;
        let mut work = [SendWork::EMPTY; Batch::CAPACITY];
        let mut parts = [const { None }; Batch::CAPACITY];
        let mut staged = 0;
        let mut failure = None;
        // Every request moves into a slot, or stays where it is.
        for place in batch.requests.iter_mut().take(count) {
            let Some(request) = place.take() else { break };
            let ready = match self.check(&request) {
                Ok(ready) => ready,
                Err(reason) => {
                    *place = Some(request);
                    failure = Some(reason);
                    break;
                }
            };
            let (template, lease) = request.apart();
            let operation = template.op.operation();
            let posted = Posted { lease: Some(lease), id: template.id, operation, len: ready.local.len };
            match self.send.insert(posted) {
                Ok(id) => {
                    work[staged] = SendWork { id: id.0, ..ready };
                    parts[staged] = Some(template);
                    staged += 1;
                }
                Err(Posted { lease, .. }) => {
                    *place = lease.map(|lease| Request::again(template, lease));
                    failure = Some(PostReason::QueueFull);
                    break;
                }
            }
        }
        let mut gone = staged;
        if staged > 0
            && let Err(refusal) = self.give(&work[..staged])
        {
            gone = refusal.index.min(staged);
            failure = Some(refusal.reason);
            // What was refused comes out of its slot and back to its place.
            for index in gone..staged {
                let lease = self.send.take(WorkId(work[index].id)).and_then(|posted| posted.lease);
                if let (Some(template), Some(lease)) = (parts[index], lease) {
                    batch.requests[index] = Some(Request::again(template, lease));
                }
            }
        }
        batch.requests[..count].rotate_left(gone);
        batch.len = count - gone;
        failure.map_or(Ok(()), Err)
    }

    fn post_recv(&self, receive: Receive) -> Result<(), PostError<Lease>> {
        let Receive { lease, id } = receive;
        if !Arc::ptr_eq(lease.domain(), &self.domain) {
            return Err(PostError { reason: PostReason::WrongDomain, request: lease });
        }
        let local = lease.local();
        // A lease has at most 2^31 - 1 bytes.
        let len = u32::try_from(lease.capacity()).unwrap_or(u32::MAX);
        let id = match self.recv.insert(Posted { lease: Some(lease), id, operation: Operation::Recv, len }) {
            Ok(id) => id,
            Err(Posted { lease: Some(lease), .. }) => {
                return Err(PostError { reason: PostReason::QueueFull, request: lease });
            }
            Err(_) => return Ok(()),
        };
        let work = RecvWork { id: id.0, local: Segment { address: local.base, len, key: local.key } };
        let Some(backend) = &self.backend else { return Ok(()) };
        match backend.post_recv(&work) {
            Ok(()) => Ok(()),
            Err(reason) => match self.recv.take(id).and_then(|posted| posted.lease) {
                Some(request) => Err(PostError { reason, request }),
                // As in `post`.
                None => Ok(()),
            },
        }
    }

    fn give(&self, work: &[SendWork<'_>]) -> Result<(), Refusal> {
        match &self.backend {
            Some(backend) => backend.post_send(work),
            None => Err(Refusal { index: 0, reason: PostReason::BadState }),
        }
    }

    /// Destroys the queue pair, and takes out what did not complete. Does nothing the second time.
    fn tear_down(&mut self) -> Result<Vec<Lease>, Error> {
        let Some(backend) = self.backend.take() else { return Ok(Vec::new()) };
        if let Err(error) = backend.destroy() {
            // The device may still write to the buffers and complete requests: everything that it may touch stays
            // alive for ever, and completions still find their slots.
            mem::forget(self.credits.take());
            mem::forget(Arc::clone(&self.send));
            mem::forget(Arc::clone(&self.recv));
            mem::forget(Arc::clone(&self.domain));
            return Err(error);
        }
        // From here on no new completion names the slots; giving the places back waits for polls under way.
        drop(self.credits.take());
        let left = self.send.drain().into_iter().chain(self.recv.drain());
        Ok(left.filter_map(|posted| posted.lease).collect())
    }
}

impl Drop for QpInner {
    fn drop(&mut self) {
        // The leases go back to their pools; what a failure leaks is kept by `tear_down`.
        drop(self.tear_down());
    }
}

/// Checks a number of the options.
fn within(what: &'static str, asked: u32, min: u32, max: u32, remedy: &'static str) -> Result<(), Error> {
    if (min..=max).contains(&asked) {
        return Ok(());
    }
    let found = format!("this device has {min} to {max}");
    Err(Error::Limit { what, asked: asked.into(), found, remedy })
}
