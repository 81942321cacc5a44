//! Peers that die: the survivor's work ends in error and in time, others go on, and nothing is left of the dead.
//!
//! The peers are processes of their own: this test binary, started again with a role. By default a few rounds;
//! `ANYVERBS_LONG=1` makes a thousand. The seed is printed, and `ANYVERBS_SEED` repeats one.

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod gate;
mod peer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyverbs_nic::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use gate::{Gate, Gated};
use peer::Peer;
use rig::{
    Endpoint, HANG, Host, PATIENT, Patience, connect_to, descriptors, long, number_of, pattern, seed, threads,
};

/// Queue pairs to a peer that dies.
const QPS: usize = 4;
/// Bytes of a message, and of memory for one queue pair: to send from, to receive into, to read into.
const MESSAGE: usize = 1500;
const PAGE: usize = 4096;

/// 67 ms and 4 tries.
const MORTAL: Patience = Patience { timeout: 14, retry_cnt: 3 };

/// The time that a queue pair gives its peer (IBA 9.7.6.1.3), which starts anew with each sign of life.
fn budget(patience: Patience) -> Duration {
    Duration::from_nanos(4096 << patience.timeout) * (u32::from(patience.retry_cnt) + 1)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Death {
    /// SIGKILL.
    Killed,
    /// SIGSTOP: the socket is there, and fills.
    Stopped,
    /// No packet passes any more.
    CutOff,
    /// The peer closes its device, and lives.
    Closed,
}

const DEATHS: [Death; 4] = [Death::Killed, Death::Stopped, Death::CutOff, Death::Closed];

/// One side of a conversation: each message is sent, written and read back, and comes as an echo.
struct Talk {
    qp: Qp,
    cq: Cq,
    /// Where its memory begins, here and at the peer.
    at: usize,
    rkey: u32,
}

/// How a conversation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ended(WcStatus);

impl Talk {
    fn new(host: &Host, at: usize) -> Talk {
        let cq = host.nic.create_cq(64).unwrap();
        let qp = host.pd.create_qp(QpInit::new(&cq)).unwrap();
        Talk { qp, cq, at, rkey: 0 }
    }

    /// One message there and back, everything checked; or the first error. What does not come within the budget of
    /// the queue pair, many times over, will never come.
    fn exchange(&self, host: &Host, number: u64, patience: Patience) -> Result<(), Ended> {
        let [out, echo, back] = [0, 1, 2].map(|page| self.at + page * PAGE);
        host.block.write(out, &pattern(number, MESSAGE)).unwrap();
        self.qp.post_recv(&[RecvWr { wr_id: 0, sges: &[host.sge(echo, PAGE)] }]).unwrap();
        let (message, space) = ([host.sge(out, MESSAGE)], [host.sge(back, MESSAGE)]);
        let addr = back as u64;
        let wrs = [
            SendWr::new(1, SendOp::Write { addr, rkey: self.rkey }, &message),
            SendWr::new(2, SendOp::Read { addr, rkey: self.rkey }, &space),
            SendWr::new(3, SendOp::Send, &message),
        ];
        self.qp.post_send(&wrs).unwrap();
        let now = || host.nic.waiter().now();
        let limit = now() + (budget(patience) * 50).max(HANG / 4);
        let (mut ended, mut sends, mut receives) = (None, 3, 1);
        while sends + receives > 0 {
            assert!(now() < limit, "{sends} sends do not end: {:?}", self.qp.attributes());
            if !self.cq.wait(Some(now() + Duration::from_millis(20))) && sends == 0 {
                // The peer has the message and says nothing. Whoever only waits for it learns nothing of its death:
                // a WRITE of no bytes asks whether it lives.
                self.qp.post_send(&[SendWr::new(4, SendOp::Write { addr, rkey: self.rkey }, &[])]).unwrap();
                sends += 1;
            }
            for cqe in rig::poll(&self.cq) {
                match cqe.wr_id {
                    0 => receives -= 1,
                    _ => sends -= 1,
                }
                if cqe.status != WcStatus::Success {
                    // The first says why; those behind it are flushed.
                    let first = *ended.get_or_insert(Ended(cqe.status));
                    assert!(first.0 == cqe.status || cqe.status == WcStatus::WrFlushErr, "{first:?} {cqe:?}");
                }
            }
        }
        if let Some(ended) = ended {
            assert_eq!(self.qp.state(), QpState::Error);
            return Err(ended);
        }
        for at in [echo, back] {
            assert_eq!(number_of(&host.bytes(at, MESSAGE)), number);
        }
        Ok(())
    }
}

/// Connects conversations, whose memory begins at `at`, with a new peer.
fn talk_to_new_peer(host: &Host, test: &str, qps: usize, at: usize, patience: Patience) -> (Peer, Vec<Talk>) {
    let mut peer = Peer::start(test, qps);
    let mut talks: Vec<Talk> = (0..qps).map(|n| Talk::new(host, at + n * 3 * PAGE)).collect();
    let own: Vec<Endpoint> = talks.iter().map(|talk| rig::endpoint(host, &talk.qp)).collect();
    for (talk, theirs) in talks.iter_mut().zip(&peer.endpoints) {
        connect_to(&talk.qp, *theirs, patience);
        talk.rkey = peer.rkey;
    }
    peer.connect(&own, host.address());
    (peer, talks)
}

/// Descriptors and threads of this process.
fn footprint() -> (usize, usize) {
    (descriptors(), threads())
}

/// Files of ours, or of a peer, in the places for files that are shared or passing.
fn files_left(pids: &[u32]) -> Vec<String> {
    let entries = ["/dev/shm", "/tmp"].into_iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    let names = entries.flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = |name: &String| {
        let mut numbers = name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
        name.contains("anyverbs") && numbers.any(|number: u32| pids.contains(&number))
    };
    names.filter(ours).collect()
}

/// Talks with a peer in all conversations until it dies, and a little longer: until all have ended. Returns its id.
fn outlive(host: &Host, gate: &Gate, test: &str, death: Death, rng: &mut ChaCha8Rng) -> u32 {
    let at = 2 * 3 * PAGE;
    let (peer, talks) = talk_to_new_peer(host, test, QPS, at, MORTAL);
    let pid = peer.pid();
    let mut peer = Some(peer);
    let messages = AtomicU64::new(0);
    let die_after = u64::from(rng.next_u32() % 200);
    let first = u64::from(rng.next_u32()) << 20;
    thread::scope(|scope| {
        for (n, talk) in talks.iter().enumerate() {
            let messages = &messages;
            scope.spawn(move || {
                for number in first + ((n as u64) << 16).. {
                    match talk.exchange(host, number, MORTAL) {
                        Ok(()) => _ = messages.fetch_add(1, Ordering::Relaxed),
                        Err(Ended(WcStatus::RetryExcErr)) => break,
                        Err(Ended(other)) => panic!("{death:?}: it ended by {other:?}"),
                    }
                }
                // It counts as dead to the one who waits for traffic, too: a machine under load may be so slow that
                // a queue pair gives up before its peer dies, and it cannot know better.
                messages.fetch_add(1 << 32, Ordering::Relaxed);
            });
        }
        while messages.load(Ordering::Relaxed) < die_after {
            thread::sleep(Duration::from_micros(200));
        }
        match (death, &mut peer) {
            (Death::Stopped, Some(alive)) => alive.stop(),
            (Death::CutOff, Some(alive)) => gate.close(alive.address),
            (Death::Closed, Some(alive)) => alive.close_device(),
            (Death::Killed, _) | (_, None) => drop(peer.take()),
        }
    });
    drop(talks);
    gate.open();
    pid
}

#[test]
fn survivors_go_on_and_nothing_is_left_of_the_dead() {
    const NAME: &str = "survivors_go_on_and_nothing_is_left_of_the_dead";
    if peer::is_role() {
        return peer::play();
    }
    let seed = seed("dying");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rounds = if long() { 1000 } else { 12 };
    let gate = Gate::default();
    // What were left over of each round would soon be too much.
    let config = NicConfig { max_qp: 16, max_mr: 2, max_cq: 8, ..NicConfig::default() };
    let host = Host::over(config, 64 * PAGE, |link| Box::new(Gated::new(link, gate.clone())));
    let (healthy, talks) = talk_to_new_peer(&host, NAME, 2, 0, PATIENT);
    let stop = AtomicBool::new(false);
    let exchanged = AtomicU64::new(0);
    thread::scope(|scope| {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        for talk in &talks {
            let (host, stop, exchanged) = (&host, &stop, &exchanged);
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    talk.exchange(host, number, PATIENT).expect("the healthy peer's connections go on");
                    exchanged.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        // Threads that sleep for the first time get a descriptor each to be woken by, which is kept.
        for death in DEATHS {
            outlive(&host, &gate, NAME, death, &mut rng);
        }
        let before = footprint();
        for round in 0..rounds {
            let death = DEATHS[rng.next_u32() as usize % DEATHS.len()];
            let progress = exchanged.load(Ordering::Relaxed);
            let pid = outlive(&host, &gate, NAME, death, &mut rng);
            // Sleepers' descriptors are as many as there ever were at once, not more with each round. A thread is
            // gone a little after it was joined.
            let give_up = Instant::now() + HANG;
            while footprint().0 > before.0 + QPS || footprint().1 > before.1 {
                let after = footprint();
                assert!(
                    Instant::now() < give_up,
                    "round {round}, {death:?}: {before:?} before, {after:?} after"
                );
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(files_left(&[std::process::id(), pid]), [""; 0], "round {round}, {death:?}");
            while exchanged.load(Ordering::Relaxed) < progress + 2 {
                thread::sleep(Duration::from_micros(200));
            }
        }
    });
    // There is room for a second region, so none of the rounds has left one.
    host.pd.register(host.block.clone(), 0..PAGE, Access::empty()).unwrap();
    drop((talks, healthy));
}
