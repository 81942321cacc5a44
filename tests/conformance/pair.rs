//! Two devices, and what most cases need of them.

use std::collections::VecDeque;
use std::time::Duration;

use anyverbs::{Completion, Cq, Device, Domain, Lease, Operation, Pool, Qp, QpOptions, Rc, Status};

/// How long a case waits for a completion before it fails, on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same in virtual time, where nobody else is.
const PATIENCE_VIRTUAL: Duration = Duration::from_secs(10);

/// Bytes in a lease of a side's pool.
pub(crate) const SIZE: usize = 70_000;
/// Leases in a side's pool.
pub(crate) const COUNT: usize = 160;

/// One device with one of everything.
pub(crate) struct Side {
    pub(crate) device: Device,
    pub(crate) domain: Domain,
    pub(crate) cq: Cq,
    pub(crate) pool: Pool,
    /// Polled, and not asked for yet.
    done: VecDeque<Completion>,
}

impl Side {
    fn new(device: Device) -> Side {
        let domain = device.domain().unwrap();
        let cq = device.completion_queue(1024).unwrap();
        let pool = domain.pool(COUNT, SIZE).unwrap();
        Side { device, domain, cq, pool, done: VecDeque::new() }
    }

    fn poll(&mut self) -> usize {
        let done = &mut self.done;
        self.cq.poll(|completion| done.push_back(completion))
    }

    /// A lease of `len` bytes with the pattern of `seed`.
    pub(crate) fn lease(&self, len: usize, seed: usize) -> Lease {
        let mut lease = self.pool.lease().expect("the pool has a lease");
        lease.set_len(len).unwrap();
        fill(&mut lease, seed);
        lease
    }

    fn take(&mut self, count: usize, wanted: fn(&Completion) -> bool) -> Option<Vec<Completion>> {
        if self.done.iter().filter(|completion| wanted(completion)).count() < count {
            return None;
        }
        let mut taken = Vec::new();
        let mut rest = VecDeque::new();
        for completion in self.done.drain(..) {
            if taken.len() < count && wanted(&completion) {
                taken.push(completion);
            } else {
                rest.push_back(completion);
            }
        }
        self.done = rest;
        Some(taken)
    }
}

/// Two sides, driven by one thread.
pub(crate) struct Pair {
    pub(crate) a: Side,
    pub(crate) b: Side,
    /// Datagrams may be lost between them: so may the answer that says what went wrong.
    pub(crate) faulty: bool,
}

/// Which side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
    A,
    B,
}

impl Pair {
    pub(crate) fn new(a: Device, b: Device, faulty: bool) -> Pair {
        Pair { a: Side::new(a), b: Side::new(b), faulty }
    }

    /// A connected queue pair on each side.
    pub(crate) fn connect(&self) -> (Qp<Rc>, Qp<Rc>) {
        self.connect_with(&options(), &options())
    }

    pub(crate) fn connect_with(&self, a: &QpOptions, b: &QpOptions) -> (Qp<Rc>, Qp<Rc>) {
        let a = self.a.domain.queue_pair::<Rc>(a, &self.a.cq, &self.a.cq).unwrap();
        let b = self.b.domain.queue_pair::<Rc>(b, &self.b.cq, &self.b.cq).unwrap();
        let (to_a, to_b) = (a.endpoint(), b.endpoint());
        (a.connect(&to_b).unwrap(), b.connect(&to_a).unwrap())
    }

    /// Waits for the next `count` completions of requests at a side.
    pub(crate) fn requests(&mut self, at: At, count: usize) -> Vec<Completion> {
        self.wait(at, count, |completion| !is_receive(completion))
    }

    /// Waits for the next `count` completions of receives at a side.
    pub(crate) fn receives(&mut self, at: At, count: usize) -> Vec<Completion> {
        self.wait(at, count, is_receive)
    }

    fn wait(&mut self, at: At, count: usize, wanted: fn(&Completion) -> bool) -> Vec<Completion> {
        let clock = self.a.device.clone();
        let virtual_time = clock.attributes().link == "virtual";
        let patience = if virtual_time { PATIENCE_VIRTUAL } else { PATIENCE };
        let deadline = clock.now() + patience;
        loop {
            let polled = self.a.poll() + self.b.poll();
            let side = if at == At::A { &mut self.a } else { &mut self.b };
            if let Some(taken) = side.take(count, wanted) {
                return taken;
            }
            if polled == 0 {
                // Short, as the other side may have something to do first.
                side.cq.wait(Duration::from_millis(1));
            }
            assert!(
                clock.now() < deadline,
                "no {count} completions at {at:?} within {patience:?}; A has {:?}, B has {:?}",
                self.a.done,
                self.b.done
            );
        }
    }

    /// Polls for a time; what comes is kept.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let deadline = self.a.device.now() + time;
        while self.a.device.now() < deadline {
            self.a.poll();
            self.b.poll();
            self.a.cq.wait(Duration::from_micros(200));
        }
    }

    /// The end of a case: nothing is left over, and every lease is back.
    pub(crate) fn finish(&mut self, qps: (Qp<Rc>, Qp<Rc>)) {
        qps.0.destroy().unwrap();
        qps.1.destroy().unwrap();
        self.check_idle();
    }

    /// Everything that was lent or reserved is back.
    pub(crate) fn check_idle(&mut self) {
        for side in [&mut self.a, &mut self.b] {
            side.poll();
            assert!(side.done.is_empty(), "nobody asked for {:?}", side.done);
            assert_eq!(side.pool.available(), COUNT, "every lease is back");
            assert_eq!(side.cq.reserved(), 0, "every place is free");
            assert_eq!(side.cq.strays(), 0, "every completion had a request");
        }
    }

    /// Drops what was polled and not asked for.
    pub(crate) fn forget_seen(&mut self) {
        self.a.done.clear();
        self.b.done.clear();
    }

    /// The statuses with which a request may fail that the peer refuses: over a faulty network the refusal may be lost,
    /// and the peer, whose queue pair is in its error state, says nothing more.
    pub(crate) fn check_refused(&self, found: Status, expected: Status) {
        let silent = self.faulty && found == Status::RetryExcErr;
        assert!(found == expected || silent, "{found}, not {expected}");
    }
}

/// A case that fails says what its devices counted.
impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, side) in [("A", &self.a), ("B", &self.b)] {
                let counters = side.device.counters().into_iter().filter(|&(_, value)| value > 0);
                println!("{name}: {:?}, {:?}", counters.collect::<Vec<_>>(), side.device.failure());
            }
        }
    }
}

/// Options for short tests on machines that stand still for half a second now and then: a peer without a buffer is
/// tried again soon, and one that does not answer is given up after two seconds.
pub(crate) fn options() -> QpOptions {
    QpOptions::new().ack_timeout(Duration::from_millis(250)).rnr_timer(Duration::from_micros(100))
}

fn is_receive(completion: &Completion) -> bool {
    matches!(completion.operation, Operation::Recv | Operation::RecvWriteImm)
}

/// Fills bytes with a pattern that differs from seed to seed and has no short period.
pub(crate) fn fill(bytes: &mut [u8], seed: usize) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = pattern(seed, i);
    }
}

/// Fails if bytes are not the pattern of a seed, or not so many.
pub(crate) fn check(bytes: &[u8], len: usize, seed: usize) {
    assert_eq!(bytes.len(), len);
    let wrong = bytes.iter().enumerate().find(|&(i, &byte)| byte != pattern(seed, i));
    assert_eq!(wrong, None, "a byte that is not of pattern {seed}");
}

fn pattern(seed: usize, i: usize) -> u8 {
    (i.wrapping_mul(167) ^ (i >> 8).wrapping_mul(59) ^ seed.wrapping_mul(101)) as u8
}
