//! Every kind of operation between two devices, one at a time, by calls that allocate nothing themselves.
//!
//! Over a pipe in this crate's tests, over real sockets in those of the UDP link.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyverbs_nic::*;

/// Counts what is allocated on any thread, so those of the devices count, too.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator as it is, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

const WARM_UP: usize = 500;
const OPERATIONS: usize = if cfg!(debug_assertions) { 2_000 } else { 10_000 };
/// What the test harness may allocate meanwhile: it has threads, too.
const OTHERS: u64 = 8;

const QKEY: u32 = 7;
const LEN: u32 = 2500;
/// Where receives go, where WRITEs go, and where READs are from; sends are from 0.
const INTO: u64 = 1 << 14;
const TARGET: u64 = 2 << 14;
const SOURCE: u64 = 3 << 14;
/// Bytes that each side needs.
pub(crate) const MEMORY: usize = 4 << 14;

/// One device.
pub(crate) struct End {
    pub(crate) nic: Nic,
    pub(crate) pd: Pd,
    pub(crate) mr: Arc<Mr>,
}

impl End {
    fn sge(&self, addr: u64, len: u32) -> Sge {
        Sge { addr, len, key: self.mr.key() }
    }
}

/// Polls until `n` completions came, all of them good.
fn complete(cq: &Cq, mut n: usize) {
    let mut out = [Cqe::EMPTY; 4];
    while n > 0 {
        let got = cq.poll(&mut out[..n.min(4)]);
        assert!(out[..got].iter().all(|cqe| cqe.status == WcStatus::Success), "{:?}", &out[..got]);
        n -= got;
    }
}

/// Takes one completion, if it is there.
fn try_complete(cq: &Cq) -> bool {
    let mut out = [Cqe::EMPTY];
    let came = cq.poll(&mut out) == 1;
    assert!(!came || out[0].status == WcStatus::Success, "{out:?}");
    came
}

fn rts(qp: &Qp) {
    let sq_psn = qp.initial_psn();
    qp.to_rts(RtsAttributes { sq_psn, max_rd_atomic: 4, retry_cnt: 7, rnr_retry: 7, timeout: 18 }).unwrap();
}

/// Readies a queue pair for its peer.
fn rtr(qp: &Qp, peer: (&End, &Qp)) {
    qp.to_init(Access::all()).unwrap();
    qp.to_rtr(RtrAttributes {
        peer: peer.0.nic.attributes().gid,
        dest_qpn: peer.1.qpn(),
        rq_psn: peer.1.initial_psn(),
        path_mtu: Mtu::B1024,
        max_dest_rd_atomic: 4,
        min_rnr_timer: 1,
    })
    .unwrap();
}

/// Two devices with a completion queue each, whose events come to a channel.
struct Devices<'a> {
    ends: &'a [End; 2],
    channel: CompletionChannel,
    cqs: [Cq; 2],
}

/// Two queue pairs of one type, the second with the receives.
struct Pair<'a> {
    devices: &'a Devices<'a>,
    qps: [Qp; 2],
    srq: Option<Srq>,
}

impl<'a> Devices<'a> {
    fn new(ends: &'a [End; 2]) -> Self {
        let channel = ends[1].nic.create_comp_channel().unwrap();
        let cqs =
            [ends[0].nic.create_cq(256).unwrap(), ends[1].nic.create_cq_on(256, Some(&channel)).unwrap()];
        Devices { ends, channel, cqs }
    }

    fn init(&self, side: usize, qp_type: QpType) -> QpInit<'_> {
        QpInit {
            qp_type,
            max_send_sge: 32,
            max_recv_sge: 32,
            max_inline: 256,
            ..QpInit::new(&self.cqs[side])
        }
    }

    fn pair(&'a self, qp_type: QpType, shared: bool) -> Pair<'a> {
        let srq =
            shared.then(|| self.ends[1].pd.create_srq(SrqInit { max_wr: 16, max_sge: 4, limit: 0 }).unwrap());
        let first = self.ends[0].pd.create_qp(self.init(0, qp_type)).unwrap();
        let second =
            self.ends[1].pd.create_qp(QpInit { srq: srq.as_ref(), ..self.init(1, qp_type) }).unwrap();
        let qps = [first, second];
        if qp_type == QpType::Ud {
            for qp in &qps {
                qp.to_init(Access::empty()).unwrap();
                qp.set_qkey(QKEY).unwrap();
                qp.to_rtr_datagram().unwrap();
                rts(qp);
            }
        } else {
            self.connect(&qps);
        }
        Pair { devices: self, qps, srq }
    }

    fn connect(&self, qps: &[Qp; 2]) {
        rtr(&qps[0], (&self.ends[1], &qps[1]));
        rtr(&qps[1], (&self.ends[0], &qps[0]));
        qps.iter().for_each(rts);
    }

    fn from(&self, len: u32) -> Sge {
        self.ends[0].sge(0, len)
    }

    fn key(&self) -> u32 {
        self.ends[1].mr.key()
    }

    /// Does something over and over; after a while it allocates nothing.
    fn check(&self, what: &str, mut once: impl FnMut()) {
        (0..WARM_UP).for_each(|_| once());
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..OPERATIONS).for_each(|_| once());
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert!(allocations <= OTHERS, "{what}: {allocations} allocations in {OPERATIONS} operations");
    }
}

impl Pair<'_> {
    fn receive(&self, sges: &[Sge]) {
        let wr = [RecvWr { wr_id: 1, sges }];
        match &self.srq {
            Some(srq) => srq.post_recv(&wr).unwrap(),
            None => self.qps[1].post_recv(&wr).unwrap(),
        }
    }

    fn space(&self, len: u32) -> [Sge; 1] {
        [self.devices.ends[1].sge(INTO, len)]
    }

    /// An operation that takes a receive.
    fn two_sided(&self, wr: SendWr<'_>) {
        self.receive(&self.space(4096));
        self.qps[0].post_send(&[wr]).unwrap();
        complete(&self.devices.cqs[0], 1);
        let unreliable =
            matches!(wr.destination, Destination::Datagram { .. }) || self.qps[0].qp_type() == QpType::Uc;
        let waiter = self.devices.ends[1].nic.waiter();
        let mut again = waiter.now() + Duration::from_millis(200);
        while !try_complete(&self.devices.cqs[1]) {
            // A network may lose what is unreliable, be it the one within a busy host.
            if unreliable && waiter.now() > again {
                self.qps[0].post_send(&[wr]).unwrap();
                complete(&self.devices.cqs[0], 1);
                again = waiter.now() + Duration::from_millis(200);
            }
        }
    }

    /// One that the peer does not see.
    fn one_sided(&self, wr: SendWr<'_>) {
        self.qps[0].post_send(&[wr]).unwrap();
        complete(&self.devices.cqs[0], 1);
    }
}

/// All of it.
pub(crate) fn check(ends: &[End; 2]) {
    let devices = Devices::new(ends);
    connected(&devices, QpType::Rc);
    connected(&devices, QpType::Uc);
    one_sided(&devices);
    lists(&devices);
    datagrams(&devices);
    shared_receives(&devices);
    extended(&devices);
    events(&devices);
}

fn connected(devices: &Devices<'_>, qp_type: QpType) {
    let pair = devices.pair(qp_type, false);
    let sges = [devices.from(LEN)];
    let (addr, rkey) = (TARGET, devices.key());
    for op in [SendOp::Send, SendOp::SendImm(3), SendOp::WriteImm { addr, rkey, imm: 4 }] {
        devices.check(&format!("{qp_type:?} {op:?}"), || pair.two_sided(SendWr::new(1, op, &sges)));
    }
    let inline = Some(&[9_u8; 200][..]);
    devices.check(&format!("{qp_type:?} inline"), || {
        pair.two_sided(SendWr { inline, ..SendWr::new(1, SendOp::Send, &[]) });
    });
    devices.check(&format!("{qp_type:?} WRITE"), || {
        pair.one_sided(SendWr::new(1, SendOp::Write { addr, rkey }, &sges));
        // What is unreliable waits for nobody: the next one sees to it that the peer keeps up.
        pair.two_sided(SendWr::new(1, SendOp::Send, &[]));
    });
}

fn one_sided(devices: &Devices<'_>) {
    let pair = devices.pair(QpType::Rc, false);
    let (whole, word) = ([devices.from(LEN)], [devices.from(8)]);
    let rkey = devices.key();
    let [addr, counter] = [SOURCE, TARGET];
    devices.check("READ", || pair.one_sided(SendWr::new(1, SendOp::Read { addr, rkey }, &whole)));
    for op in [
        SendOp::FetchAdd { addr: counter, rkey, add: 1 },
        SendOp::CompareSwap { addr: counter, rkey, compare: 0, swap: 1 },
        SendOp::AtomicWrite { addr: counter, rkey },
    ] {
        devices.check(&format!("{op:?}"), || pair.one_sided(SendWr::new(1, op, &word)));
    }
    let flush = SendOp::Flush { addr, rkey, len: Some(64) };
    devices.check("FLUSH", || pair.one_sided(SendWr::new(1, flush, &[])));
}

/// Lists of as many elements as there may be, on both sides.
fn lists(devices: &Devices<'_>) {
    let pair = devices.pair(QpType::Rc, false);
    let list =
        |end: &End, at: u64| -> [Sge; 32] { std::array::from_fn(|n| end.sge(at + 128 * n as u64, 100)) };
    let (from, into) = (list(&devices.ends[0], 0), list(&devices.ends[1], INTO));
    devices.check("lists", || {
        pair.receive(&into);
        pair.qps[0].post_send(&[SendWr::new(1, SendOp::Send, &from)]).unwrap();
        complete(&devices.cqs[0], 1);
        complete(&devices.cqs[1], 1);
    });
    let read = SendOp::Read { addr: SOURCE, rkey: devices.key() };
    devices.check("READ into a list", || pair.one_sided(SendWr::new(1, read, &from)));
}

fn datagrams(devices: &Devices<'_>) {
    let pair = devices.pair(QpType::Ud, false);
    let ah = devices.ends[0].pd.create_ah(AhAttributes::new(devices.ends[1].nic.attributes().gid)).unwrap();
    let destination = Destination::Datagram { ah: &ah, remote_qpn: pair.qps[1].qpn(), remote_qkey: QKEY };
    let sges = [devices.from(1000)];
    devices.check("UD", || pair.two_sided(SendWr { destination, ..SendWr::new(1, SendOp::Send, &sges) }));
}

fn shared_receives(devices: &Devices<'_>) {
    let pair = devices.pair(QpType::Rc, true);
    let sges = [devices.from(LEN)];
    devices.check("SRQ", || pair.two_sided(SendWr::new(1, SendOp::Send, &sges)));
}

fn extended(devices: &Devices<'_>) {
    let [a, b] = devices.ends;
    let domain = b.nic.open_xrcd().unwrap();
    let init = SrqInit { max_wr: 16, max_sge: 4, limit: 0 };
    let srq = b.pd.create_xrc_srq(init, &domain, &devices.cqs[1]).unwrap();
    let first = a.pd.create_qp(devices.init(0, QpType::XrcSend)).unwrap();
    let qps = [first, b.nic.create_xrc_target(&domain).unwrap()];
    devices.connect(&qps);
    let destination = Destination::SharedReceive(srq.number());
    let pair = Pair { devices, qps, srq: Some(srq) };
    let sges = [devices.from(LEN)];
    devices.check("XRC", || pair.two_sided(SendWr { destination, ..SendWr::new(1, SendOp::Send, &sges) }));
}

/// Events in a channel, and asynchronous ones, each slept for.
fn events(devices: &Devices<'_>) {
    let pair = devices.pair(QpType::Rc, true);
    let sges = [devices.from(LEN)];
    let nic = &devices.ends[1].nic;
    let soon = || Some(nic.waiter().now() + Duration::from_secs(120));
    for with_descriptor in [false, true] {
        if with_descriptor {
            devices.channel.fd().unwrap();
            nic.async_fd().unwrap();
        }
        devices.check("channel events", || {
            devices.cqs[1].request_notify(false).unwrap();
            pair.receive(&pair.space(4096));
            pair.qps[0].post_send(&[SendWr::new(1, SendOp::Send, &sges)]).unwrap();
            assert_eq!(devices.channel.wait(soon()), Some(devices.cqs[1].id()));
            complete(&devices.cqs[0], 1);
            complete(&devices.cqs[1], 1);
        });
        let Some(srq) = &pair.srq else { return };
        devices.check("asynchronous events", || {
            pair.receive(&pair.space(4096));
            srq.set_limit(1).unwrap();
            pair.qps[0].post_send(&[SendWr::new(1, SendOp::Send, &sges)]).unwrap();
            let event = nic.wait_async_event(soon());
            assert_eq!(event, Some(AsyncEvent::SrqLimitReached { srqn: srq.number() }));
            complete(&devices.cqs[0], 1);
            complete(&devices.cqs[1], 1);
        });
    }
}
