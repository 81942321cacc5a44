//! Faults come as often as the profile says, where the seed says, and nothing else happens.

mod support;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyverbs_link::fault::{FaultCounts, FaultProfile, Faulty};
use anyverbs_link::udp::Io;
use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, TxBatch};
use support::{Arrived, Recorder, Sent, Tape, collect, push, udp};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

/// Datagrams of a run, enough for statistics, and 1 us apart.
const MANY: u64 = 20_000;

struct Run {
    sent: Vec<Sent>,
    counts: Arc<FaultCounts>,
}

/// Sends [`MANY`] datagrams that carry their number, one by one, and drives what is held back.
fn run(profile: &str, stream: u64) -> Run {
    let (recorder, tape) = Recorder::new(false);
    let mut link = Faulty::new(recorder, profile.parse().unwrap(), stream);
    let mut batch = TxBatch::with_capacity(1 << 16, 64);
    let mut now = Time::ZERO;
    for number in 0..MANY {
        push_number(&mut batch, number);
        link.transmit(&mut batch, now).unwrap();
        assert!(batch.is_empty());
        now = now + Duration::from_micros(1);
    }
    drain(&mut link);
    let sent = std::mem::take(&mut tape.lock().unwrap().sent);
    Run { sent, counts: link.counts() }
}

fn push_number(batch: &mut TxBatch, number: u64) {
    batch.push(PEER, 4791, 2, 24).unwrap().copy_from_slice(&[number.to_le_bytes(); 3].concat());
}

fn drain(link: &mut impl Link) {
    let mut empty = TxBatch::with_capacity(1, 1);
    while let Some(at) = link.next_deadline() {
        link.transmit(&mut empty, at).unwrap();
    }
}

/// The number of a datagram that may have one bit flipped: two of its three copies agree.
fn number(sent: &Sent) -> u64 {
    let copies: Vec<_> = sent.bytes.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    if copies[0] == copies[1] || copies[0] == copies[2] { copies[0] } else { copies[1] }
}

fn numbers(run: &Run) -> Vec<u64> {
    run.sent.iter().map(number).collect()
}

/// `n` is what `p` of [`MANY`] makes likely: within five standard deviations.
fn assert_likely(n: u64, p: f64) {
    let expected = p * MANY as f64;
    let deviation = (expected * (1.0 - p)).sqrt();
    assert!((n as f64 - expected).abs() < 5.0 * deviation, "{n}, expected {expected} +- {deviation}");
}

#[test]
fn without_faults_everything_passes_at_once() {
    let run = run("seed=1", 0);
    assert!(numbers(&run).into_iter().eq(0..MANY));
    assert!(
        run.sent.iter().enumerate().all(|(i, s)| s.at == Time::from_nanos(1000 * i as u64) && s.ecn == 2)
    );
    assert_eq!(run.counts.datagrams(), MANY);
}

#[test]
fn the_same_seed_and_stream_make_the_same_faults() {
    let all = "loss=0.05,duplicate=0.05,reorder=0.05,corrupt=0.05,delay=5us,jitter=3us";
    let first = run(&format!("{all},seed=1"), 1);
    assert_eq!(first.sent, run(&format!("{all},seed=1"), 1).sent);
    assert_ne!(first.sent, run(&format!("{all},seed=2"), 1).sent);
    assert_ne!(first.sent, run(&format!("{all},seed=1"), 2).sent);
    // What is sent does not depend on how it is cut into calls.
    let (recorder, tape) = Recorder::new(false);
    let mut link = Faulty::new(recorder, format!("{all},seed=1").parse().unwrap(), 1);
    let mut whole = TxBatch::with_capacity(1 << 20, MANY as usize);
    (0..MANY).for_each(|number| push_number(&mut whole, number));
    link.transmit(&mut whole, Time::ZERO).unwrap();
    drain(&mut link);
    let lost = |sent: &[Sent]| {
        let arrived: std::collections::BTreeSet<_> = sent.iter().map(number).collect();
        (0..MANY).filter(|n| !arrived.contains(n)).collect::<Vec<_>>()
    };
    let overflowed = link.counts().overflowed();
    assert_eq!(overflowed > 0, lost(&tape.lock().unwrap().sent) != lost(&first.sent), "{overflowed}");
    assert_eq!(link.counts().lost(), first.counts.lost());
    assert_eq!(link.counts().corrupted(), first.counts.corrupted());
}

#[test]
fn a_fault_more_leaves_the_others_where_they_were() {
    let loss = run("loss=0.1,seed=9", 0);
    let more = run("loss=0.1,corrupt=0.3,seed=9", 0);
    assert_eq!(numbers(&loss), numbers(&more));
}

#[test]
fn loss_is_as_frequent_as_said() {
    let run = run("loss=0.1,seed=3", 0);
    assert_eq!(run.sent.len() as u64 + run.counts.lost(), MANY);
    assert_likely(run.counts.lost(), 0.1);
    assert!(numbers(&run).is_sorted());
    assert_eq!(self::run("loss=1", 0).sent, []);
}

#[test]
fn duplicates_follow_their_originals() {
    let run = run("duplicate=0.1,seed=3", 0);
    assert_eq!(run.sent.len() as u64, MANY + run.counts.duplicated());
    assert_likely(run.counts.duplicated(), 0.1);
    let mut numbers = numbers(&run);
    assert!(numbers.is_sorted());
    numbers.dedup();
    assert!(numbers.into_iter().eq(0..MANY));
}

#[test]
fn corruption_flips_one_bit_anywhere() {
    let run = run("corrupt=0.2,seed=3", 0);
    assert_likely(run.counts.corrupted(), 0.2);
    let (mut corrupted, mut places) = (0, [0; 24]);
    for (i, sent) in run.sent.iter().enumerate() {
        let flips: Vec<_> = sent
            .bytes
            .iter()
            .zip([(i as u64).to_le_bytes(); 3].concat())
            .map(|(a, b)| (a ^ b).count_ones())
            .collect();
        match flips.iter().sum() {
            0 => {}
            1 => {
                corrupted += 1;
                places[flips.iter().position(|&f| f == 1).unwrap()] += 1;
            }
            bits => panic!("{bits} bits flipped"),
        }
    }
    assert_eq!(corrupted, run.counts.corrupted());
    assert!(places.iter().all(|&n| n > 100), "{places:?}");
}

#[test]
fn the_reordered_are_overtaken_and_nothing_is_lost() {
    let run = run("reorder=0.1,seed=3", 0);
    assert_likely(run.counts.reordered(), 0.1);
    let numbers = numbers(&run);
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..MANY));
    // Overtaken by 1 to 8 that are not reordered themselves.
    let late = numbers
        .iter()
        .enumerate()
        .filter(|&(i, n)| numbers[..i].iter().rev().take(100).any(|before| before > n))
        .count() as u64;
    let stranded = 10;
    assert!(late <= run.counts.reordered() && late + stranded >= run.counts.reordered(), "{late}");
    for (i, &n) in numbers.iter().enumerate() {
        assert!(i.abs_diff(n as usize) < 30, "{n} came as number {i}");
    }
}

#[test]
fn a_reordered_datagram_that_nobody_overtakes_comes_late() {
    let (recorder, tape) = Recorder::new(false);
    let mut link = Faulty::new(recorder, "reorder=1".parse().unwrap(), 0);
    let mut batch = TxBatch::with_capacity(1 << 10, 4);
    push_number(&mut batch, 1);
    link.transmit(&mut batch, Time::ZERO).unwrap();
    assert!(batch.is_empty() && tape.lock().unwrap().sent.is_empty());
    let due = link.next_deadline().unwrap();
    assert_eq!(due.since(Time::ZERO), Duration::from_micros(100));
    // A receive is as good an occasion as a transmit.
    link.receive(&mut anyverbs_nic::link::RxBatch::with_capacity(1, 1), due).unwrap();
    assert_eq!(tape.lock().unwrap().sent.len(), 1);
    assert_eq!(link.next_deadline(), None);
}

#[test]
fn delays_are_kept_to_the_nanosecond() {
    let delayed = run("delay=5us", 0);
    for (i, sent) in delayed.sent.iter().enumerate() {
        let left = Time::from_nanos(1000 * i as u64);
        assert_eq!((number(sent), sent.at.since(left)), (i as u64, Duration::from_micros(5)));
    }
    let jittered = run("delay=5us,jitter=10us", 0);
    assert_eq!(jittered.sent.len() as u64, MANY);
    let mut delays: Vec<_> =
        jittered.sent.iter().map(|s| s.at.since(Time::from_nanos(1000 * number(s))).as_nanos()).collect();
    delays.sort_unstable();
    // Those that come due between calls leave at the next call, up to 1 us later.
    assert!((5_000..5_100).contains(&delays[0]) && (14_900..=16_000).contains(&delays[delays.len() - 1]));
    let median = delays[delays.len() / 2];
    assert!((9_800..11_200).contains(&median), "{median}");
    assert!(!numbers(&jittered).is_sorted());
}

#[test]
fn what_the_wrapped_link_does_not_take_stays_in_order() {
    let (recorder, tape) = Recorder::new(false);
    let mut link = Faulty::new(recorder, "duplicate=0.5,seed=4".parse().unwrap(), 0);
    tape.lock().unwrap().takes = Some(1);
    let mut batch = TxBatch::with_capacity(1 << 20, 2000);
    (0..2000).for_each(|number| push_number(&mut batch, number));
    let mut now = Time::ZERO;
    for _ in 0..10 {
        link.transmit(&mut batch, now).unwrap();
        assert!(!batch.is_empty());
        now = link.next_deadline().expect("a time to try again");
    }
    tape.lock().unwrap().takes = None;
    while !batch.is_empty() {
        link.transmit(&mut batch, now).unwrap();
    }
    assert_eq!(link.next_deadline(), None);
    let mut seen: Vec<_> = tape.lock().unwrap().sent.iter().map(number).collect();
    assert!(seen.is_sorted());
    seen.dedup();
    assert!(seen.into_iter().eq(0..2000));
}

#[test]
fn more_than_can_be_held_is_lost_and_counted() {
    let (recorder, tape) = Recorder::new(false);
    let mut link = Faulty::new(recorder, "delay=1s".parse().unwrap(), 0);
    let mut batch = TxBatch::with_capacity(1 << 20, 20);
    for _ in 0..100 {
        (0..10).for_each(|_| {
            batch.push(PEER, 4791, 0, 60_000).unwrap();
        });
        link.transmit(&mut batch, Time::ZERO).unwrap();
        assert!(batch.is_empty());
    }
    let counts = link.counts();
    assert!(counts.overflowed() > 500, "{counts:?}");
    drain(&mut link);
    assert_eq!(tape.lock().unwrap().sent.len() as u64 + counts.overflowed(), 1000);
}

#[test]
fn a_reliable_link_is_reliable_no_more() {
    let info = |profile: &str| {
        let (recorder, _) = Recorder::new(false);
        Faulty::new(recorder, profile.parse().unwrap(), 0).info().clone()
    };
    assert!(info("seed=1").reliable);
    for profile in ["loss=0.1", "jitter=1us", "corrupt=1e-9"] {
        assert!(!info(profile).reliable, "{profile}");
    }
    assert_eq!(info("loss=0.1").detail, "memory, faults loss=0.1");
    assert_eq!(FaultProfile::default(), "loss=0".parse().unwrap());
}

#[test]
fn over_udp_the_whole_arrive_with_a_valid_icrc_and_the_corrupt_without() {
    let link: Box<dyn Link> = Box::new(udp(Io::Auto));
    let mut from = Faulty::new(link, "corrupt=0.3,loss=0.1,seed=5".parse().unwrap(), 0);
    let mut to = udp(Io::Auto);
    let (source, destination) = (from.info().address, to.info().address);
    let mut batch = TxBatch::with_capacity(1 << 20, 256);
    for mark in 0..200 {
        push(&mut batch, source, destination, 0, 100, mark);
    }
    let now = from.waiter().now();
    from.transmit(&mut batch, now).unwrap();
    let counts = from.counts();
    let arrived = collect(&mut to, 200 - counts.lost() as usize);
    assert_eq!(arrived.len() as u64, 200 - counts.lost());
    let corrupt = arrived.iter().filter(|d: &&Arrived| d.ip_id.is_none()).count();
    assert_eq!(corrupt as u64, counts.corrupted());
    assert!(corrupt > 20);
}

#[test]
fn wrappers_go_around_one_another() {
    let (recorder, tape): (_, Arc<Mutex<Tape>>) = Recorder::new(false);
    let inner: Box<dyn Link> = Box::new(Faulty::new(recorder, "delay=1us".parse().unwrap(), 1));
    let mut link = Faulty::new(inner, "delay=2us".parse().unwrap(), 2);
    let mut batch = TxBatch::with_capacity(1 << 10, 4);
    push_number(&mut batch, 1);
    link.transmit(&mut batch, Time::ZERO).unwrap();
    drain(&mut link);
    assert_eq!(tape.lock().unwrap().sent[0].at, Time::from_nanos(3000));
}
