//! Completion queues: channels, moderation, overrun, time stamps, another depth; and asynchronous events.

mod pipe;
mod side;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyverbs_nic::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use side::*;

struct Pair {
    a: Side,
    b: Side,
    cq_a: Cq,
    cq_b: Cq,
    channel: CompletionChannel,
    qp_a: Qp,
    qp_b: Qp,
}

/// A connection whose receiver has a channel, and sixteen receives posted.
fn pair(depth: u32) -> Pair {
    let [a, b] = sides();
    let channel = b.nic.create_comp_channel().unwrap();
    let cq_a = a.nic.create_cq(64).unwrap();
    let cq_b = b.nic.create_cq_on(depth, Some(&channel)).unwrap();
    let [qp_a, qp_b] =
        [(&a, &cq_a), (&b, &cq_b)].map(|(side, cq)| side.pd.create_qp(QpInit::new(cq)).unwrap());
    connect((&a, &qp_a), (&b, &qp_b));
    for wr_id in 0..16 {
        qp_b.post_recv(&[RecvWr { wr_id, sges: &[b.sge(0, 8)] }]).unwrap();
    }
    Pair { a, b, cq_a, cq_b, channel, qp_a, qp_b }
}

impl Pair {
    /// Sends, and waits until it was acknowledged: then its receive has completed.
    fn send(&self, solicited: bool) {
        let sges = [self.a.sge(0, 8)];
        self.qp_a.post_send(&[SendWr { solicited, ..SendWr::new(1, SendOp::Send, &sges) }]).unwrap();
        assert_eq!(outcome(&self.a.completions(&self.cq_a, 1)), [(1, WcStatus::Success)]);
    }

    fn received(&self) -> usize {
        self.cq_b.poll(&mut [Cqe::EMPTY; 16])
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() == 1
}

#[test]
fn a_channel_tells_once_of_what_comes_after_it_was_asked() {
    let p = pair(64);
    p.send(false);
    assert_eq!(p.channel.poll(), None, "nobody asked");
    p.cq_b.request_notify(false).unwrap();
    assert_eq!(p.channel.poll(), None, "what is there makes no event");
    p.send(false);
    p.send(false);
    assert_eq!(p.channel.wait(p.b.soon()), Some(p.cq_b.id()));
    assert_eq!(p.channel.poll(), None, "one event for one question");
    assert_eq!(p.received(), 3);

    // Only what was solicited: the second.
    p.cq_b.request_notify(true).unwrap();
    p.send(false);
    assert_eq!(p.channel.poll(), None);
    p.send(true);
    assert_eq!(p.channel.wait(p.b.soon()), Some(p.cq_b.id()));
    // Errors are solicited by themselves.
    p.cq_b.request_notify(true).unwrap();
    p.qp_b.to_error().unwrap();
    assert_eq!(p.channel.wait(p.b.soon()), Some(p.cq_b.id()));
    assert!(p.cq_a.request_notify(false).is_err(), "it has no channel");
}

#[test]
fn a_thread_that_sleeps_in_poll_is_woken_by_the_descriptor() {
    let p = pair(64);
    let fd = p.channel.fd().unwrap();
    assert!(!is_readable(fd));
    for _ in 0..5 {
        p.cq_b.request_notify(false).unwrap();
        std::thread::scope(|scope| {
            // Nobody polls or waits at this end: the progress thread has to do it.
            let sleeper = scope.spawn(|| {
                let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap()
            });
            p.send(false);
            assert_eq!(sleeper.join().unwrap(), 1, "not within ten seconds");
        });
        assert_eq!(p.channel.poll(), Some(p.cq_b.id()));
        assert!(!is_readable(fd));
        assert_eq!(p.received(), 1);
    }
}

#[test]
fn several_completions_are_told_of_together_or_after_a_while() {
    let p = pair(64);
    let rule = Moderation { count: 3, period: Duration::ZERO };
    p.cq_b.moderate(rule).unwrap();
    assert_eq!(p.cq_b.moderation(), rule);
    p.cq_b.request_notify(false).unwrap();
    p.send(false);
    p.send(false);
    assert_eq!(p.channel.poll(), None);
    p.send(false);
    assert_eq!(p.channel.wait(p.b.soon()), Some(p.cq_b.id()));

    // Too few come, and time tells.
    p.cq_b.moderate(Moderation { count: 100, period: Duration::from_millis(5) }).unwrap();
    p.cq_b.request_notify(false).unwrap();
    p.send(false);
    assert_eq!(p.channel.wait(p.b.soon()), Some(p.cq_b.id()));

    // A rule that ends does not leave behind what waited for it.
    p.cq_b.moderate(Moderation { count: 100, period: Duration::ZERO }).unwrap();
    p.cq_b.request_notify(false).unwrap();
    p.send(false);
    p.cq_b.moderate(Moderation::default()).unwrap();
    assert_eq!(p.channel.wait(p.b.soon()), Some(p.cq_b.id()));
    for (count, period) in [(0, 0), (1 << 16, 0), (1, 1 << 16)] {
        assert!(p.cq_b.moderate(Moderation { count, period: Duration::from_micros(period) }).is_err());
    }
}

#[test]
fn an_overrun_is_an_error_of_the_queue_and_the_end_of_its_queue_pair() {
    let p = pair(2);
    p.send(false);
    p.send(false);
    assert!(!p.cq_b.is_overrun());
    let sges = [p.a.sge(0, 8)];
    p.qp_a.post_send(&[SendWr::new(3, SendOp::Send, &sges)]).unwrap();
    let events = [p.b.event(), p.b.event()];
    assert!(events.contains(&AsyncEvent::CqError { cq: p.cq_b.id() }), "{events:?}");
    assert!(events.contains(&AsyncEvent::QpFatal { qpn: p.qp_b.qpn() }), "{events:?}");
    assert!(p.cq_b.is_overrun());
    assert_eq!(p.qp_b.state(), QpState::Error);
    // What was written before is still there.
    assert_eq!(p.received(), 2);
}

#[test]
fn completions_are_stamped_in_their_order() {
    let p = pair(64);
    let before = p.b.nic.waiter().now();
    p.send(false);
    p.send(false);
    let after = p.b.nic.waiter().now();
    let mut out = [Cqe::EMPTY; 4];
    assert_eq!(p.cq_b.poll(&mut out), 2);
    let [first, second] = [out[0].timestamp, out[1].timestamp];
    assert!(
        before <= first && first <= second && second <= after,
        "{before:?} {first:?} {second:?} {after:?}"
    );
}

#[test]
fn a_queue_takes_what_is_in_it_along_to_another_depth() {
    let p = pair(4);
    for _ in 0..3 {
        p.send(false);
    }
    assert!(matches!(p.cq_b.resize(2), Err(NicError::Invalid { .. })), "three do not fit");
    p.cq_b.resize(100).unwrap();
    assert_eq!(p.cq_b.depth(), 100);
    for _ in 0..9 {
        p.send(false);
    }
    let mut out = [Cqe::EMPTY; 16];
    assert_eq!(p.cq_b.poll(&mut out), 12);
    assert!(out[..12].iter().map(|cqe| cqe.wr_id).eq(0..12), "in order");
    assert!(matches!(p.cq_b.resize(0), Err(NicError::OutOfRange { .. })));
}

#[test]
fn events_of_what_is_gone_are_gone() {
    let p = pair(64);
    p.cq_b.request_notify(false).unwrap();
    p.send(false);
    let write = SendOp::Write { addr: 0, rkey: p.b.mr.key() ^ 1 };
    p.qp_a.post_send(&[SendWr::new(1, write, &[p.a.sge(0, 8)])]).unwrap();
    p.a.completions(&p.cq_a, 1);
    assert!(is_readable(p.b.nic.async_fd().unwrap()) && is_readable(p.channel.fd().unwrap()));
    let Pair { b, cq_b, channel, qp_b, .. } = p;
    drop(qp_b);
    drop(cq_b);
    assert_eq!((channel.poll(), b.nic.poll_async_event()), (None, None));
    assert!(!is_readable(b.nic.async_fd().unwrap()) && !is_readable(channel.fd().unwrap()));
}

#[test]
fn a_request_that_may_not_be_is_an_event_at_its_target() {
    let p = pair(64);
    let write = SendOp::Write { addr: 0, rkey: p.b.mr.key() ^ 1 };
    p.qp_a.post_send(&[SendWr::new(1, write, &[p.a.sge(0, 8)])]).unwrap();
    assert_eq!(outcome(&p.a.completions(&p.cq_a, 1)), [(1, WcStatus::RemAccessErr)]);
    assert_eq!(p.b.event(), AsyncEvent::QpAccessError { qpn: p.qp_b.qpn() });
}

#[test]
fn limits_are_limits_and_end_with_their_objects() {
    let config = NicConfig { max_cq: 2, max_srq: 1, max_ah: 1, max_xrcd: 1, ..NicConfig::default() };
    let [a, _b] = sides_with(config);
    let exhausted = |result: Result<(), NicError>| {
        assert!(matches!(result, Err(NicError::Exhausted { .. })), "{result:?}");
    };
    let cqs = [(); 2].map(|()| a.nic.create_cq(8).unwrap());
    exhausted(a.nic.create_cq(8).map(drop));
    let _channels = [(); 2].map(|()| a.nic.create_comp_channel().unwrap());
    exhausted(a.nic.create_comp_channel().map(drop));
    drop(cqs);
    a.nic.create_cq(8).unwrap();
    let init = SrqInit { max_wr: 1, max_sge: 1, limit: 0 };
    let srq = a.pd.create_srq(init).unwrap();
    exhausted(a.pd.create_srq(init).map(drop));
    drop(srq);
    a.pd.create_srq(init).unwrap();
    let attributes = AhAttributes::new("10.0.0.9".parse().unwrap());
    let ah = a.pd.create_ah(attributes).unwrap();
    exhausted(a.pd.create_ah(attributes).map(drop));
    drop(ah);
    a.pd.create_ah(attributes).unwrap();
    let _domain = a.nic.open_xrcd().unwrap();
    exhausted(a.nic.open_xrcd().map(drop));
    let DeviceUsage { cq, srq, ah, xrcd, channel, qp, .. } = a.nic.usage();
    assert_eq!((cq, srq, ah, xrcd, channel, qp), (0, 0, 0, 1, 2, 0));
}
