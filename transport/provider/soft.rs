//! The software NIC as a provider: an adapter, with nothing of its own.

use std::any::Any;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyverbs_link::capture::{Captured, wall_origin};
use anyverbs_link::fault::Faulty;
use anyverbs_memory::{Access, Block};
use anyverbs_nic as nic;
use anyverbs_nic::link::{Link, Progress, Waiter};

use super::{
    CqBackend, DeviceBackend, DeviceOptions, DomainBackend, LocalKey, QpBackend, QpRequest, RawCompletion,
    RecvWork, Refusal, RegionBackend, Segment, SendOp, SendWork,
};
use crate::verbs::batch::Batch;
use crate::verbs::completion::Status;
use crate::verbs::connection::Endpoint;
use crate::verbs::device::DeviceAttributes;
use crate::verbs::error::{Error, PostReason};
use crate::verbs::queue_pair::QpOptions;

/// Bytes of inline data of a send: what fits into a work queue entry without making all of them larger.
const INLINE: u32 = 64;

/// A software NIC on a link.
pub(crate) struct SoftDevice {
    nic: nic::Nic,
    waiter: Arc<dyn Waiter>,
    attributes: DeviceAttributes,
}

/// Opens a NIC on `link`, with what `options` want around the link.
///
/// The faults are the network's, so they are next to the link; the capture is the host's, so it is next to the NIC,
/// and shows what the NIC sends, lost or not, and what reaches it.
pub(crate) fn open(link: Box<dyn Link>, options: &DeviceOptions) -> Result<SoftDevice, Error> {
    let mut link = link;
    if let Some(profile) = options.fault {
        let stream = stream(link.info().address);
        link = Box::new(Faulty::new(link, profile, stream));
    }
    if let Some(path) = &options.capture {
        // In virtual time a capture begins when time does, so that the file depends on the seed alone.
        let waiter = link.waiter();
        let real = waiter.wants_progress_thread();
        let origin = if real { wall_origin(waiter.now()) } else { Duration::ZERO };
        let captured = Captured::create(link, path, origin)
            .map_err(|source| Error::Capture { path: path.clone(), source })?;
        link = Box::new(captured);
    }
    let config = nic::NicConfig { seed: options.seed, ..nic::NicConfig::default() };
    let nic =
        nic::Nic::open(link, config).map_err(|error| Error::provider("opening the software NIC", error))?;
    Ok(SoftDevice { attributes: attributes(&nic), waiter: Arc::clone(nic.waiter()), nic })
}

/// Which stream of a fault profile's random numbers the device at an address has, so that two devices with one profile
/// do not suffer the same faults at the same time.
fn stream(address: IpAddr) -> u64 {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits();
    (octets >> 64) as u64 ^ octets as u64
}

impl SoftDevice {
    /// What a scheduler drives it by.
    pub(crate) fn progress(&self) -> Weak<dyn Progress> {
        self.nic.progress_handle()
    }
}

fn attributes(nic: &nic::Nic) -> DeviceAttributes {
    let (own, link) = (nic.attributes(), nic.link_info());
    DeviceAttributes {
        provider: "soft",
        link: link.name,
        link_detail: link.detail.clone(),
        address: own.gid,
        path_mtu: own.path_mtu.bytes(),
        max_qp: own.max_qp,
        max_cqe: own.max_cqe,
        max_mr: own.max_mr,
        max_qp_wr: own.max_qp_wr,
        max_inline: INLINE.min(own.max_inline),
        max_rd_atomic: own.max_rd_atomic,
        max_message: own.max_message,
    }
}

impl DeviceBackend for SoftDevice {
    fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    fn allocate_domain(&self) -> Result<Box<dyn DomainBackend>, Error> {
        let pd = self.nic.alloc_pd().map_err(|error| Error::provider("making a protection domain", error))?;
        Ok(Box::new(SoftDomain { pd }))
    }

    fn create_completion_queue(&self, depth: u32) -> Result<Box<dyn CqBackend>, Error> {
        let cq =
            self.nic.create_cq(depth).map_err(|error| Error::provider("making a completion queue", error))?;
        Ok(Box::new(SoftCq { cq, waiter: Arc::clone(&self.waiter) }))
    }

    fn relax(&self) {
        self.waiter.relax();
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.waiter.now().as_nanos())
    }

    fn failure(&self) -> Option<String> {
        self.nic.link_error()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.nic.counters().iter().collect()
    }
}

struct SoftDomain {
    pd: nic::Pd,
}

impl DomainBackend for SoftDomain {
    fn register(
        &self,
        block: &Arc<Block>,
        range: Range<usize>,
        access: Access,
    ) -> Result<Box<dyn RegionBackend>, Error> {
        let mr = self
            .pd
            .register(Arc::clone(block), range, access)
            .map_err(|error| Error::provider("registering memory", error))?;
        Ok(Box::new(SoftRegion { mr }))
    }

    fn create_queue_pair(&self, request: &QpRequest<'_>) -> Result<Box<dyn QpBackend>, Error> {
        let options = request.options;
        let init = nic::QpInit {
            send_cq: soft_cq(request.send_cq, "send completion queue")?,
            recv_cq: soft_cq(request.recv_cq, "receive completion queue")?,
            qp_type: nic::QpType::Rc,
            srq: None,
            // A queue without slots is never posted to; the NIC wants at least one.
            max_send_wr: options.send_depth.max(1),
            max_recv_wr: options.recv_depth.max(1),
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline: INLINE,
            signal_all: true,
        };
        let failed = |error| Error::provider("making a queue pair", error);
        let qp = self.pd.create_qp(init).map_err(failed)?;
        qp.to_init(Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC).map_err(failed)?;
        Ok(Box::new(SoftQp { qp }))
    }
}

fn soft_cq<'a>(cq: &'a dyn CqBackend, what: &'static str) -> Result<&'a nic::Cq, Error> {
    let any: &dyn Any = cq;
    any.downcast_ref::<SoftCq>().map(|cq| &cq.cq).ok_or(Error::ForeignDevice { what })
}

struct SoftRegion {
    mr: nic::Mr,
}

impl RegionBackend for SoftRegion {
    fn local(&self) -> LocalKey {
        // Regions are zero-based: their first byte has the address 0.
        LocalKey { base: 0, key: self.mr.key().into() }
    }

    fn remote(&self) -> (u64, u64) {
        (0, self.mr.key().into())
    }

    fn deregister(self: Box<Self>) -> Result<(), Error> {
        // Dropping a region deregisters it; nothing touches the memory when that has returned.
        drop(self.mr);
        Ok(())
    }
}

struct SoftCq {
    cq: nic::Cq,
    waiter: Arc<dyn Waiter>,
}

impl CqBackend for SoftCq {
    fn poll(&self, out: &mut [RawCompletion]) -> usize {
        let max = out.len();
        let mut places = out.iter_mut();
        self.cq.poll_each(max, |entry| {
            if let Some(place) = places.next() {
                *place = RawCompletion {
                    id: entry.wr_id,
                    status: status(entry.status),
                    write_imm: entry.opcode == nic::WcOpcode::RecvRdmaWithImm,
                    len: entry.byte_len,
                    imm: entry.imm,
                };
            }
        })
    }

    fn wait(&self, timeout: Duration) -> bool {
        // Beyond what the clock can count is never: about 584 years.
        let deadline = u64::try_from(timeout.as_nanos())
            .ok()
            .and_then(|timeout| self.waiter.now().as_nanos().checked_add(timeout).map(nic::Time::from_nanos));
        self.cq.wait(deadline)
    }
}

fn status(status: nic::WcStatus) -> Status {
    use nic::WcStatus;
    match status {
        WcStatus::Success => Status::Success,
        WcStatus::LocLenErr => Status::LocLenErr,
        WcStatus::LocProtErr => Status::LocProtErr,
        WcStatus::WrFlushErr => Status::WrFlushErr,
        WcStatus::BadRespErr => Status::BadRespErr,
        WcStatus::RemInvReqErr => Status::RemInvReqErr,
        WcStatus::RemAccessErr => Status::RemAccessErr,
        WcStatus::RemOpErr => Status::RemOpErr,
        WcStatus::RetryExcErr => Status::RetryExcErr,
        WcStatus::RnrRetryExcErr => Status::RnrRetryExcErr,
        WcStatus::MwBindErr => Status::MwBindErr,
        WcStatus::LocQpOpErr => Status::LocQpOpErr,
    }
}

struct SoftQp {
    qp: nic::Qp,
}

impl QpBackend for SoftQp {
    fn number(&self) -> u32 {
        self.qp.qpn()
    }

    fn initial_psn(&self) -> u32 {
        self.qp.initial_psn()
    }

    fn connect(&self, peer: &Endpoint, options: &QpOptions) -> Result<(), Error> {
        let failed = |error| Error::provider("connecting a queue pair", error);
        let own_reads = options.max_rd_atomic.unwrap_or(1);
        // An endpoint's MTU was checked when it was made.
        let path_mtu = nic::Mtu::from_bytes(peer.path_mtu.into()).unwrap_or(nic::Mtu::B256);
        self.qp
            .to_rtr(nic::RtrAttributes {
                peer: peer.address,
                dest_qpn: peer.number.value(),
                rq_psn: peer.psn,
                path_mtu,
                max_dest_rd_atomic: own_reads,
                min_rnr_timer: nic::rnr::code_at_least(options.rnr_timer),
            })
            .map_err(failed)?;
        self.qp
            .to_rts(nic::RtsAttributes {
                sq_psn: self.qp.initial_psn(),
                max_rd_atomic: own_reads.min(peer.max_reads),
                retry_cnt: options.retry_count,
                rnr_retry: options.rnr_retry,
                timeout: timeout_code(options.ack_timeout),
            })
            .map_err(failed)
    }

    fn post_send(&self, work: &[SendWork<'_>]) -> Result<(), Refusal> {
        // One request is the common case, and needs no arrays.
        if let [work] = work {
            let sge = sge(&work.local);
            let refused = |error: nic::PostError| Refusal { index: 0, reason: reason(error.reason) };
            return self.qp.post_send(&[send_wr(work, &sge)]).map_err(refused);
        }
        for (chunk, work) in work.chunks(Batch::CAPACITY).enumerate() {
            let mut sges = [None; Batch::CAPACITY];
            for (sge_, work) in sges.iter_mut().zip(work) {
                *sge_ = sge(&work.local);
            }
            let mut wrs = [send_wr(&SendWork::EMPTY, &None); Batch::CAPACITY];
            for ((wr, work), sge) in wrs.iter_mut().zip(work).zip(&sges) {
                *wr = send_wr(work, sge);
            }
            self.qp.post_send(&wrs[..work.len()]).map_err(|error| Refusal {
                index: chunk * Batch::CAPACITY + error.index,
                reason: reason(error.reason),
            })?;
        }
        Ok(())
    }

    fn post_recv(&self, work: &RecvWork) -> Result<(), PostReason> {
        let sge = sge(&work.local);
        self.qp
            .post_recv(&[nic::RecvWr { wr_id: work.id, sges: sge.as_slice() }])
            .map_err(|error| reason(error.reason))
    }

    fn destroy(self: Box<Self>) -> Result<(), Error> {
        // Dropping a queue pair destroys it: afterwards no memory is accessed and no completion of it appears.
        drop(self.qp);
        Ok(())
    }
}

/// The element for some memory; none for no bytes, as some devices take the length 0 for 2^31.
fn sge(local: &Segment) -> Option<nic::Sge> {
    // Keys of the software NIC have 32 bits.
    (local.len > 0).then_some(nic::Sge { addr: local.address, len: local.len, key: local.key as u32 })
}

fn send_wr<'a>(work: &SendWork<'a>, sge: &'a Option<nic::Sge>) -> nic::SendWr<'a> {
    nic::SendWr {
        wr_id: work.id,
        op: op(work.op),
        sges: if work.inline.is_some() { &[] } else { sge.as_slice() },
        signaled: true,
        solicited: work.solicited,
        fence: work.fence,
        inline: work.inline,
        destination: nic::Destination::Connected,
    }
}

fn op(op: SendOp) -> nic::SendOp {
    // A key that a token brought and that has more than 32 bits is none of a software NIC: 0 is no key at all.
    let narrow = |key| u32::try_from(key).unwrap_or(0);
    match op {
        SendOp::Send => nic::SendOp::Send,
        SendOp::SendImm(imm) => nic::SendOp::SendImm(imm),
        SendOp::Write { address, key } => nic::SendOp::Write { addr: address, rkey: narrow(key) },
        SendOp::WriteImm { address, key, imm } => {
            nic::SendOp::WriteImm { addr: address, rkey: narrow(key), imm }
        }
        SendOp::Read { address, key } => nic::SendOp::Read { addr: address, rkey: narrow(key) },
        SendOp::FetchAdd { address, key, add } => {
            nic::SendOp::FetchAdd { addr: address, rkey: narrow(key), add }
        }
        SendOp::CompareSwap { address, key, expected, new } => {
            nic::SendOp::CompareSwap { addr: address, rkey: narrow(key), compare: expected, swap: new }
        }
    }
}

fn reason(reason: nic::PostReason) -> PostReason {
    match reason {
        nic::PostReason::QueueFull => PostReason::QueueFull,
        nic::PostReason::BadState => PostReason::BadState,
        nic::PostReason::BadLength | nic::PostReason::BadInline => PostReason::TooLong,
        nic::PostReason::TooManySges
        | nic::PostReason::BadOperation
        | nic::PostReason::BadDestination
        | nic::PostReason::NoReceiveQueue
        | nic::PostReason::BadWindow => PostReason::Refused,
    }
}

/// The attribute `timeout` for at least this time: 4.096 us times 2^code, and 0 for never (IBA 9.7.6.1.3).
fn timeout_code(timeout: Duration) -> u8 {
    (1..=31).find(|code| Duration::from_nanos(4096 << code) >= timeout).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_rounded_up() {
        assert_eq!(timeout_code(Duration::ZERO), 1);
        assert_eq!(timeout_code(Duration::from_nanos(8192)), 1);
        assert_eq!(timeout_code(Duration::from_nanos(8193)), 2);
        assert_eq!(timeout_code(Duration::from_micros(67_108)), 14);
        assert_eq!(timeout_code(Duration::MAX), 0);
    }
}
