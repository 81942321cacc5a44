//! What idle queue pairs cost a poll: nothing, or each peer more would slow down all others.
//!
//! A device has so many connected queue pairs, of which every second one has sent a message, so that its timer
//! was armed. Then nothing happens any more, and a program polls. There are two kinds of idle, since a timer
//! that was armed stays in its queue until it is due:
//!
//! - *armed*: time stands still, so that all those timers wait;
//! - *settled*: all of them have been due, and time goes on by ten microseconds a poll.
//!
//! ```text
//! cargo bench -p anyverbs-nic --bench idle         nanoseconds per poll, for people
//! idle QUEUE_PAIRS ARMED_POLLS SETTLED_POLLS       polls so often, for `ci/engine-cost`
//! ```

use std::env;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, RxEntry, TxBatch, Waiter};
use anyverbs_nic::*;

/// Numbers of queue pairs that people see.
const QUEUE_PAIRS: [u32; 5] = [1, 10, 100, 1_000, 10_000];

/// Room for queue pairs on every device, so that its tables are of one size. The numbers of queue pairs have
/// 24 bits, of which a table twice as large takes the low ones.
const QUEUE_PAIRS_MAX: u32 = 20_000;

/// Polls for a figure in nanoseconds.
const POLLS: u32 = 1_000_000;

/// How far time goes on by a poll that finds nothing, in the second kind of idle.
const STEP: Duration = Duration::from_micros(10);

/// The timeout attribute, about 67 ms, and a time after which every timer has been due.
const TIMEOUT: u8 = 14;
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// A clock that its owner moves, and nobody sleeps by.
#[derive(Default)]
struct Clock {
    now: AtomicU64,
    step: AtomicU64,
}

impl Waiter for Clock {
    fn now(&self) -> Time {
        Time::from_nanos(self.now.load(Ordering::Relaxed))
    }

    fn wait(&self, _deadline: Option<Time>) {}

    fn wake(&self) {}

    fn relax(&self) {
        self.now.fetch_add(self.step.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn wants_progress_thread(&self) -> bool {
        false
    }
}

/// A link to oneself.
struct Loopback {
    clock: Arc<Clock>,
    info: LinkInfo,
    datagrams: Vec<Vec<u8>>,
}

impl Link for Loopback {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.clock.clone()
    }

    fn transmit(&mut self, batch: &mut TxBatch, _now: Time) -> Result<(), LinkError> {
        self.datagrams.extend(batch.entries().iter().map(|entry| batch.bytes()[entry.range()].to_vec()));
        batch.consume(batch.len());
        Ok(())
    }

    fn receive(&mut self, batch: &mut RxBatch, _now: Time) -> Result<(), LinkError> {
        let mut start = 0;
        for datagram in self.datagrams.drain(..) {
            let len = datagram.len();
            batch.buffer()[start..start + len].copy_from_slice(&datagram);
            let source = self.info.address;
            assert!(
                batch.push(RxEntry {
                    source,
                    destination: source,
                    source_port: 4791,
                    ip_id: None,
                    ecn: 0,
                    start,
                    len
                }),
                "a message at a time"
            );
            start += len;
        }
        Ok(())
    }
}

/// A device with idle queue pairs.
struct Idle {
    clock: Arc<Clock>,
    nic: Nic,
    cq: Cq,
    _qps: Vec<Qp>,
}

impl Idle {
    fn new(queue_pairs: u32) -> Result<Idle, NicError> {
        let clock = Arc::new(Clock::default());
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let detail = "to oneself".into();
        let info = LinkInfo {
            name: "loopback",
            detail,
            address,
            max_datagram: 4200,
            reliable: true,
            prefix: None,
            warnings: Vec::new(),
        };
        let link = Loopback { clock: Arc::clone(&clock), info, datagrams: Vec::new() };
        let config = NicConfig { seed: Some(1), max_qp: QUEUE_PAIRS_MAX, ..NicConfig::default() };
        let nic = Nic::open(Box::new(link), config)?;
        let cq = nic.create_cq(16)?;
        let pd = nic.alloc_pd()?;
        let qps = (0..queue_pairs).map(|_| connected(&pd, &cq)).collect::<Result<Vec<_>, _>>()?;
        for (n, qp) in qps.iter().enumerate().step_by(2) {
            send(qp, &cq, n as u64);
        }
        Ok(Idle { clock, nic, cq, _qps: qps })
    }

    /// Lets every timer be due, and time go on from then.
    fn settle(&self) {
        self.clock.now.fetch_add(SETTLED_AFTER.as_nanos() as u64, Ordering::Relaxed);
        // A timer that is armed again when it fires shows by then.
        self.poll(2);
        self.clock.step.store(STEP.as_nanos() as u64, Ordering::Relaxed);
    }

    /// All that is measured.
    #[inline(never)]
    fn poll(&self, polls: u32) {
        let mut out = [Cqe::EMPTY; 16];
        for _ in 0..polls {
            assert_eq!(self.cq.poll(&mut out), 0, "nothing happens");
        }
    }
}

/// A queue pair that is connected to itself: as good as two for what it costs to be there.
fn connected(pd: &Pd, cq: &Cq) -> Result<Qp, NicError> {
    let init = QpInit { max_send_wr: 1, max_recv_wr: 1, signal_all: true, ..QpInit::new(cq) };
    let qp = pd.create_qp(init)?;
    let (psn, rd_atomic) = (qp.initial_psn(), 1);
    qp.to_init(Access::all())?;
    qp.to_rtr(RtrAttributes {
        peer: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        dest_qpn: qp.qpn(),
        rq_psn: psn,
        path_mtu: Mtu::B4096,
        max_dest_rd_atomic: rd_atomic,
        min_rnr_timer: 1,
    })?;
    let (retry_cnt, rnr_retry) = (7, 7);
    qp.to_rts(RtsAttributes {
        sq_psn: psn,
        max_rd_atomic: rd_atomic,
        retry_cnt,
        rnr_retry,
        timeout: TIMEOUT,
    })?;
    Ok(qp)
}

/// Sends an empty message, and polls until it has arrived and was acknowledged.
fn send(qp: &Qp, cq: &Cq, wr_id: u64) {
    let wr = SendWr::new(wr_id, SendOp::Send, &[]);
    qp.post_recv(&[RecvWr { wr_id, sges: &[] }]).expect("the queue is empty");
    let mut out = [Cqe::EMPTY; 16];
    qp.post_send(&[wr]).expect("the queue is empty");
    let mut done = 0;
    for _ in 0..100 {
        done += cq.poll(&mut out);
        if done == 2 {
            return;
        }
    }
    panic!("{done} completions, not 2");
}

/// Nanoseconds per poll.
fn nanoseconds(device: &Idle) -> f64 {
    let start = Instant::now();
    device.poll(POLLS);
    start.elapsed().as_nanos() as f64 / f64::from(POLLS)
}

fn main() -> Result<ExitCode, NicError> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let numbers: Option<Vec<u32>> = arguments.iter().map(|argument| argument.parse().ok()).collect();
    match numbers.as_deref() {
        Some([]) => {
            println!("idle queue pairs   armed   settled   (nanoseconds per poll)");
            for queue_pairs in QUEUE_PAIRS {
                let device = Idle::new(queue_pairs)?;
                let armed = nanoseconds(&device);
                device.settle();
                println!("{queue_pairs:>16} {armed:>7.1} {:>9.1}", nanoseconds(&device));
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(&[queue_pairs @ 1..=QUEUE_PAIRS_MAX, armed, settled]) => {
            let device = Idle::new(queue_pairs)?;
            device.poll(armed);
            device.settle();
            device.poll(settled);
            let counters = device.nic.counters();
            assert_eq!(counters.local_ack_timeout_err, 0, "the queue pairs were idle");
            println!("packets {}", counters.rcvd_pkts);
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!(
                "usage: idle [QUEUE_PAIRS ARMED_POLLS SETTLED_POLLS], up to {QUEUE_PAIRS_MAX} queue pairs"
            );
            Ok(ExitCode::FAILURE)
        }
    }
}
