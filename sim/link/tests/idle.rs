//! A thousand connected queue pairs with nothing to do cost nothing.
//!
//! What is measured is the time of processors that this process took, and how often the threads of its devices woke:
//! neither grows because other programs keep the machine busy.

mod rig;
mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use anyverbs_nic::*;
use rig::{Host, pair};
use rustix::time::{ClockId, clock_gettime};

const PAIRS: usize = 500;

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often the progress threads went to sleep, all together.
fn sleeps() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    statuses
        .filter(|status| field(status, "Name:") == "anyverbs-nic")
        .map(|status| field(&status, "voluntary_ctxt_switches:").parse::<u64>().unwrap())
        .sum()
}

#[test]
fn a_thousand_idle_queue_pairs_cost_no_processor() {
    let hosts = [(); 2].map(|()| Host::new(NicConfig::default(), 1 << 16));
    let [a, b] = &hosts;
    let cqs = hosts.each_ref().map(|host| host.nic.create_cq(4 * PAIRS as u32).unwrap());
    let pairs: Vec<_> = (0..PAIRS).map(|_| pair(QpType::Rc, (a, &cqs[0]), (b, &cqs[1]))).collect();
    let before = sleeps();
    for [from, to] in &pairs {
        to.post_recv(&[RecvWr { wr_id: 1, sges: &[b.sge(0, 4096)] }]).unwrap();
        from.post_send(&[SendWr::new(2, SendOp::Send, &[a.sge(0, 3000)])]).unwrap();
    }
    a.successes(&cqs[0], PAIRS);
    b.successes(&cqs[1], PAIRS);

    // Timers that were set for the traffic, of a second each, run out and find that there is nothing to do.
    let mut last = sleeps();
    assert!(last > before, "there are progress threads, and their sleeps are counted");
    let (mut seconds, mut quiet) = (0, 0);
    while quiet < 3 {
        thread::sleep(Duration::from_secs(1));
        let now = sleeps();
        quiet = if now == last { quiet + 1 } else { 0 };
        seconds += 1;
        assert!(seconds < 120, "two devices do not come to rest: {} sleeps in a second", now - last);
        last = now;
    }

    let (time, slept) = (processor_time(), sleeps());
    thread::sleep(Duration::from_secs(10));
    let (time, slept) = (processor_time() - time, sleeps() - slept);
    assert!(slept < 20, "the progress threads woke {slept} times in 10 s");
    assert!(time < Duration::from_millis(20), "{time:?} of a processor in 10 s");

    // They are idle, not dead.
    for [from, to] in &pairs {
        to.post_recv(&[RecvWr { wr_id: 1, sges: &[b.sge(0, 4096)] }]).unwrap();
        from.post_send(&[SendWr::new(2, SendOp::Send, &[a.sge(0, 3000)])]).unwrap();
    }
    a.successes(&cqs[0], PAIRS);
    b.successes(&cqs[1], PAIRS);
}
