//! Several threads post to one queue pair and poll one completion queue.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyverbs::{Cq, Device, DeviceOptions, QpOptions, Rc, Receive, Request};

const MESSAGES: usize = 3000;

/// Receives until all have come, posting each buffer again; notes the ids that were seen.
fn receive(cq: &Cq, repost: impl Fn(anyverbs::Lease, u64), seen: &[AtomicUsize], total: &AtomicUsize) {
    while total.load(Ordering::Relaxed) < MESSAGES {
        cq.poll(|completion| {
            let completion = completion.ok().expect("it arrives");
            let buffer = completion.buffer.expect("it has a buffer");
            let id = u64::from_ne_bytes(buffer[..8].try_into().expect("it has 8 bytes"));
            seen[usize::try_from(id).unwrap()].fetch_add(1, Ordering::Relaxed);
            total.fetch_add(1, Ordering::Relaxed);
            repost(buffer, completion.id);
        });
        cq.wait(Duration::from_millis(1));
    }
}

#[test]
fn each_message_and_each_completion_is_seen_once() {
    let open = || Device::open(&DeviceOptions::new()).unwrap();
    let (a, b) = (open(), open());
    let (domain_a, domain_b) = (a.domain().unwrap(), b.domain().unwrap());
    let (cq_a, cq_b) = (a.completion_queue(128).unwrap(), b.completion_queue(128).unwrap());
    let qp_a = domain_a.queue_pair::<Rc>(&QpOptions::new(), &cq_a, &cq_a).unwrap();
    let qp_b = domain_b.queue_pair::<Rc>(&QpOptions::new(), &cq_b, &cq_b).unwrap();
    let (pool_a, pool_b) = (domain_a.pool(40, 64).unwrap(), domain_b.pool(64, 64).unwrap());
    for id in 0..64 {
        qp_b.post_recv(Receive::new(pool_b.lease().unwrap()).id(id)).unwrap();
    }
    let (to_a, to_b) = (qp_a.endpoint(), qp_b.endpoint());
    let (qp_a, qp_b) = (qp_a.connect(&to_b).unwrap(), qp_b.connect(&to_a).unwrap());

    let seen: Vec<_> = (0..MESSAGES).map(|_| AtomicUsize::new(0)).collect();
    let sent = Mutex::new(vec![0; MESSAGES]);
    let (total, next, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let repost =
                        |lease, id| qp_b.post_recv(Receive::new(lease).id(id)).expect("its slot is free");
                    receive(&cq_b, repost, &seen, &total);
                })
            })
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let polled = cq_a.poll(|completion| {
                        let id = usize::try_from(completion.ok().expect("it was sent").id).unwrap();
                        sent.lock().unwrap()[id] += 1;
                    });
                    if polled == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
        let posters: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        if id >= MESSAGES {
                            return;
                        }
                        let mut lease = a.wait_until(|| pool_a.lease());
                        lease.copy_from(&(id as u64).to_ne_bytes()).unwrap();
                        let mut request = Request::send(lease).id(id as u64);
                        while let Err(refused) = qp_a.post(request) {
                            request = refused.request;
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for poster in posters {
            poster.join().unwrap();
        }
        for receiver in receivers {
            receiver.join().unwrap();
        }
        while pool_a.available() < pool_a.count() {
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1), "each message arrived once");
    assert!(sent.lock().unwrap().iter().all(|&count| count == 1), "each request completed once");
    assert_eq!((cq_a.strays(), cq_b.strays()), (0, 0));
    assert_eq!(qp_b.destroy().unwrap().len(), 64);
}

#[test]
fn queue_pairs_come_and_go_while_others_poll() {
    let device = Device::open(&DeviceOptions::new()).unwrap();
    let domain = device.domain().unwrap();
    let cq = device.completion_queue(512).unwrap();
    let pool = domain.pool(64, 64).unwrap();
    let done = AtomicBool::new(false);
    let returned = AtomicUsize::new(0);
    thread::scope(|scope| {
        let poller = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                cq.poll(|completion| {
                    assert!(completion.buffer.is_some());
                    returned.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        let makers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        // A queue pair that sends to itself.
                        let options = QpOptions::new().send_depth(16).recv_depth(16);
                        let qp = domain.queue_pair::<Rc>(&options, &cq, &cq).unwrap();
                        let endpoint = qp.endpoint();
                        for _ in 0..8 {
                            qp.post_recv(pool.lease().unwrap()).unwrap();
                        }
                        let qp = qp.connect(&endpoint).unwrap();
                        for _ in 0..8 {
                            qp.send(pool.lease().unwrap()).unwrap();
                        }
                        let left = qp.destroy().unwrap();
                        returned.fetch_add(left.len(), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for maker in makers {
            maker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        poller.join().unwrap();
    });
    assert_eq!(returned.into_inner(), 2 * 100 * 16, "each buffer came back once");
    assert_eq!(pool.available(), 64);
    assert_eq!(cq.reserved(), 0);
}
