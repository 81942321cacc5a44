//! Any mix of threads that poll, that wait, with and without a time limit, and that sleep on a descriptor, with
//! traffic: nobody hangs, and each message arrives once.
//!
//! Over a pipe in this crate's tests, over real sockets in those of the UDP link.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use anyverbs_nic::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A wait that takes so long takes for ever.
const HANG: Duration = Duration::from_secs(120);

/// Queues on each side, with their threads.
const GROUPS: usize = 3;
const THREADS_MAX: usize = 3;
/// Messages that may be on their way in a group.
const SLOTS: usize = 16;
const MESSAGE: usize = 2000;
const SLOT: usize = 2048;
/// What the message says, and what the work request is called, that ends a thread.
const STOP: u64 = u64::MAX;

/// Bytes that each side needs.
pub(crate) const MEMORY: usize = GROUPS * SLOTS * SLOT;

/// One device.
pub(crate) struct End {
    pub(crate) nic: Nic,
    pub(crate) pd: Pd,
    pub(crate) block: Arc<Block>,
    pub(crate) mr: Arc<Mr>,
}

impl End {
    fn sge(&self, group: usize, slot: usize) -> [Sge; 1] {
        [Sge { addr: ((group * SLOTS + slot) * SLOT) as u64, len: MESSAGE as u32, key: self.mr.key() }]
    }
}

/// How a thread gets at what completes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    Polls,
    /// Until something comes.
    Waits,
    /// For so many microseconds, over and over.
    WaitsFor(u64),
    /// In `poll(2)`, on the descriptor of the queue's channel.
    Sleeps,
}

/// A completion queue with its channel, and how its threads use it.
struct Queue {
    nic: Nic,
    cq: Cq,
    channel: CompletionChannel,
    styles: Vec<Style>,
}

impl Queue {
    /// At most one thread sleeps: an event wakes one, and the question is asked once for all.
    fn new(end: &End, threads: usize, rng: &mut ChaCha8Rng) -> Queue {
        let channel = end.nic.create_comp_channel().unwrap();
        let cq = end.nic.create_cq_on(4 * SLOTS as u32, Some(&channel)).unwrap();
        let mut styles: Vec<Style> = Vec::new();
        while styles.len() < threads {
            let style = match rng.next_u32() % 4 {
                0 => Style::Polls,
                1 => Style::Waits,
                2 => Style::WaitsFor(u64::from(rng.next_u32() % 3000)),
                _ => Style::Sleeps,
            };
            if style != Style::Sleeps || !styles.contains(&style) {
                styles.push(style);
            }
        }
        Queue { nic: end.nic.clone(), cq, channel, styles }
    }

    fn take(&self) -> Option<Cqe> {
        let mut out = [Cqe::EMPTY];
        (self.cq.poll(&mut out) == 1).then_some(out[0])
    }

    /// The next completion, in a thread's own style.
    fn next(&self, style: Style) -> Cqe {
        let now = || self.nic.waiter().now();
        let give_up = now() + HANG;
        loop {
            if style == Style::Sleeps {
                self.cq.request_notify(false).unwrap();
            }
            if let Some(cqe) = self.take() {
                return cqe;
            }
            assert!(now() < give_up, "a thread hangs that {style:?}");
            match style {
                Style::Polls => thread::yield_now(),
                Style::Waits => _ = self.cq.wait(Some(give_up)),
                Style::WaitsFor(micros) => _ = self.cq.wait(Some(now() + Duration::from_micros(micros))),
                Style::Sleeps => {
                    let fd = self.channel.fd().unwrap();
                    let limit = Timespec { tv_sec: HANG.as_secs() as i64, tv_nsec: 0 };
                    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
                    assert_eq!(ready, 1, "a thread hangs that sleeps on a descriptor");
                    self.channel.poll();
                }
            }
        }
    }
}

/// How many slots are free, and a place to wait for one.
struct Slots {
    free: Mutex<Vec<usize>>,
    freed: Condvar,
}

impl Slots {
    fn new() -> Slots {
        Slots { free: Mutex::new((0..SLOTS).collect()), freed: Condvar::new() }
    }

    fn take(&self) -> usize {
        let free = self.free.lock().unwrap();
        let (mut free, late) = self.freed.wait_timeout_while(free, HANG, |free| free.is_empty()).unwrap();
        assert!(!late.timed_out(), "no send completes");
        free.pop().unwrap()
    }

    fn put(&self, slot: usize) {
        self.free.lock().unwrap().push(slot);
        self.freed.notify_one();
    }
}

/// What a message says: its number over and over.
fn contents(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(MESSAGE / 8)
}

/// Queue pairs, and the queues on both sides.
struct Group {
    qps: [Qp; 2],
    queues: [Queue; 2],
    slots: Slots,
    seen: Vec<AtomicU32>,
}

impl Group {
    fn new(ends: &[End; 2], messages: usize, rng: &mut ChaCha8Rng) -> Group {
        let threads = 1 + rng.next_u32() as usize % THREADS_MAX;
        let queues = [0, 1].map(|side| Queue::new(&ends[side], threads, rng));
        let qps = [0, 1].map(|side: usize| ends[side].pd.create_qp(QpInit::new(&queues[side].cq)).unwrap());
        for (own, peer) in [(0, 1), (1, 0)] {
            let qp = &qps[own];
            qp.to_init(Access::all()).unwrap();
            qp.to_rtr(RtrAttributes {
                peer: ends[peer].nic.attributes().gid,
                dest_qpn: qps[peer].qpn(),
                rq_psn: qps[peer].initial_psn(),
                path_mtu: Mtu::B1024,
                max_dest_rd_atomic: 1,
                min_rnr_timer: 1,
            })
            .unwrap();
            let sq_psn = qp.initial_psn();
            qp.to_rts(RtsAttributes { sq_psn, max_rd_atomic: 1, retry_cnt: 7, rnr_retry: 7, timeout: 18 })
                .unwrap();
        }
        let seen = (0..messages).map(|_| AtomicU32::new(0)).collect();
        Group { qps, queues, slots: Slots::new(), seen }
    }

    /// Posts all messages, then one for each thread that ends it.
    fn post(&self, end: &End, index: usize) {
        let threads = self.queues[0].styles.len();
        let stops = std::iter::repeat_n(STOP, threads);
        for number in (0..self.seen.len() as u64).chain(stops) {
            let slot = self.slots.take();
            let [sge] = end.sge(index, slot);
            end.block.write(sge.addr as usize, &contents(number)).unwrap();
            let wr_id = if number == STOP { STOP } else { slot as u64 };
            self.qps[0].post_send(&[SendWr::new(wr_id, SendOp::Send, &[sge])]).unwrap();
        }
    }

    fn take_sent(&self, style: Style) {
        loop {
            let cqe = self.queues[0].next(style);
            assert_eq!(cqe.status, WcStatus::Success);
            if cqe.wr_id == STOP {
                return;
            }
            self.slots.put(cqe.wr_id as usize);
        }
    }

    fn receive(&self, end: &End, index: usize, slot: usize) {
        let wr = RecvWr { wr_id: slot as u64, sges: &end.sge(index, slot) };
        self.qps[1].post_recv(&[wr]).unwrap();
    }

    fn take_received(&self, end: &End, index: usize, style: Style) {
        loop {
            let cqe = self.queues[1].next(style);
            assert_eq!((cqe.status, cqe.byte_len as usize), (WcStatus::Success, MESSAGE));
            let [sge] = end.sge(index, cqe.wr_id as usize);
            let mut bytes = vec![0; MESSAGE];
            end.block.read(sge.addr as usize, &mut bytes).unwrap();
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(bytes == contents(number), "message {number}");
            if number == STOP {
                return;
            }
            self.seen[number as usize].fetch_add(1, Ordering::Relaxed);
            self.receive(end, index, cqe.wr_id as usize);
        }
    }
}

/// Runs one mix after the other, each of which follows from a seed; the first is printed.
pub(crate) fn run_many(mixes: u64, messages: usize, ends: impl Fn() -> [End; 2]) {
    let first = first_seed();
    let _ = writeln!(std::io::stderr(), "mixes: ANYVERBS_SEED={first}");
    for n in 0..mixes {
        run(&ends(), messages, first.wrapping_add(n));
    }
}

fn run(ends: &[End; 2], messages: usize, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let groups: Vec<Group> = (0..GROUPS).map(|_| Group::new(ends, messages, &mut rng)).collect();
    thread::scope(|scope| {
        for (index, group) in groups.iter().enumerate() {
            (0..SLOTS).for_each(|slot| group.receive(&ends[1], index, slot));
            scope.spawn(move || group.post(&ends[0], index));
            for &style in &group.queues[0].styles {
                scope.spawn(move || group.take_sent(style));
            }
            for &style in &group.queues[1].styles {
                scope.spawn(move || group.take_received(&ends[1], index, style));
            }
        }
    });
    for group in &groups {
        assert!(group.seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1), "each message came once");
    }
}

/// The seed to begin with: given by `ANYVERBS_SEED`, or drawn.
fn first_seed() -> u64 {
    let given = std::env::var("ANYVERBS_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        std::hash::Hasher::finish(&std::hash::BuildHasher::build_hasher(&std::hash::RandomState::new()))
    })
}
