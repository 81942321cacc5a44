//! A queue pair under its types: slots, posting and teardown, whatever the service and the state.

use std::mem;
use std::sync::Arc;

use super::batch::Batch;
use super::completion::{Cq, Credit};
use super::connection::{Endpoint, QpNumber};
use super::domain::DomainInner;
use super::error::{Error, PostError, PostReason};
use super::pool::Lease;
use super::queue_pair::QpOptions;
use super::request::{Operation, Receive, Request};
use super::slots::{Posted, SLOTS_MAX, SlotTable, WorkId};
use crate::provider::{QpBackend, QpRequest, RecvWork, Refusal, Segment, SendOp, SendWork};

/// A queue pair whatever its state.
pub(crate) struct QpInner {
    /// `None` once it is destroyed.
    backend: Option<Box<dyn QpBackend>>,
    pub(crate) send: Arc<SlotTable>,
    pub(crate) recv: Arc<SlotTable>,
    /// The places on both completion queues; `None` once they were given back, which is after `backend` is gone.
    credits: Option<[Credit; 2]>,
    domain: Arc<DomainInner>,
    path_mtu: u16,
    options: QpOptions,
    max_message: u32,
    max_inline: u32,
}

impl QpInner {
    pub(crate) fn new(
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

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.domain.device.backend.attributes().address,
            number: self.send.number,
            psn: self.backend.as_ref().map_or(0, |backend| backend.initial_psn()),
            path_mtu: self.path_mtu,
            max_reads: self.options.max_rd_atomic.unwrap_or(1),
        }
    }

    pub(crate) fn connect(&self, peer: &Endpoint) -> Result<(), Error> {
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

    pub(crate) fn post(&self, request: Request) -> Result<(), PostError<Request>> {
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

    pub(crate) fn post_inline(&self, op: SendOp, bytes: &[u8], id: u64) -> Result<(), PostReason> {
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

    pub(crate) fn post_recv(&self, receive: Receive) -> Result<(), PostError<Lease>> {
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
    pub(crate) fn tear_down(&mut self) -> Result<Vec<Lease>, Error> {
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
