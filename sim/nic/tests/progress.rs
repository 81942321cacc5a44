//! What one thread does while another is about to sleep, or about to find out.

mod pipe;
mod side;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyverbs_nic::*;
use side::*;

#[test]
fn another_moderation_wakes_who_waits_for_what_was_held_back() {
    let [a, b] = sides();
    let cq_a = a.nic.create_cq(64).unwrap();
    let channel = b.nic.create_comp_channel().unwrap();
    let cq_b = b.nic.create_cq_on(64, Some(&channel)).unwrap();
    let [qp_a, qp_b] =
        [(&a, &cq_a), (&b, &cq_b)].map(|(side, cq)| side.pd.create_qp(QpInit::new(cq)).unwrap());
    connect((&a, &qp_a), (&b, &qp_b));
    cq_b.moderate(Moderation { count: 2, period: Duration::ZERO }).unwrap();
    for _ in 0..3 {
        cq_b.request_notify(false).unwrap();
        qp_b.post_recv(&[RecvWr { wr_id: 1, sges: &[b.sge(0, 64)] }]).unwrap();
        qp_a.post_send(&[SendWr::new(2, SendOp::Send, &[a.sge(0, 64)])]).unwrap();
        a.completions(&cq_a, 1);
        assert!(cq_b.wait(b.soon()), "the message");
        assert_eq!(channel.poll(), None, "it waits for another one");
        thread::scope(|scope| {
            let hours = b.nic.waiter().now() + Duration::from_secs(10_000);
            let event = scope.spawn({
                let channel = &channel;
                move || channel.wait(Some(hours))
            });
            // Most likely it sleeps by now; if not, there is less to see, and nothing to fail.
            thread::sleep(Duration::from_millis(50));
            cq_b.moderate(Moderation::default()).unwrap();
            let deadline = b.soon().unwrap();
            while !event.is_finished() && b.nic.waiter().now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            let woken = event.is_finished();
            b.nic.waiter().wake();
            assert_eq!(event.join().unwrap(), Some(cq_b.id()));
            assert!(woken, "it slept on, with an event in its channel");
        });
        cq_b.moderate(Moderation { count: 2, period: Duration::ZERO }).unwrap();
        assert_eq!(b.completions(&cq_b, 1)[0].status, WcStatus::Success);
    }
}

#[test]
fn a_receive_that_is_posted_while_its_queue_pair_fails_is_flushed() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(1 << 16).unwrap());
    for round in 0..200 {
        let init = |cq| QpInit { max_recv_wr: 4096, ..QpInit::new(cq) };
        let qp_a = a.pd.create_qp(init(&cq_a)).unwrap();
        let qp_b = b.pd.create_qp(init(&cq_b)).unwrap();
        connect((&a, &qp_a), (&b, &qp_b));
        let begun = AtomicBool::new(false);
        let posted = thread::scope(|scope| {
            let poster = scope.spawn(|| {
                let mut posted = 0;
                while qp_b.post_recv(&[RecvWr { wr_id: posted, sges: &[] }]).is_ok() {
                    posted += 1;
                    begun.store(true, Ordering::Relaxed);
                    if qp_b.state() == QpState::Error {
                        break;
                    }
                }
                posted
            });
            while !begun.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // Nobody has such a key: the peer refuses, and fails.
            let bad = SendOp::Write { addr: 0, rkey: !b.mr.key() };
            qp_a.post_send(&[SendWr::new(1, bad, &[a.sge(0, 8)])]).unwrap();
            a.completions(&cq_a, 1);
            poster.join().unwrap()
        });
        let deadline = b.soon();
        let mut flushed = 0;
        while flushed < posted {
            assert!(cq_b.wait(deadline), "round {round}: {flushed} of {posted} receives came back");
            let mut out = [Cqe::EMPTY; 64];
            let n = cq_b.poll(&mut out);
            assert!(out[..n].iter().all(|cqe| cqe.status == WcStatus::WrFlushErr));
            flushed += n as u64;
        }
    }
}
