//! The network loses what it likes.

use super::*;

/// Every third datagram is lost, each way: data, requests, answers, goodbyes.
#[test]
fn connections_come_and_go_over_a_link_that_loses_every_third_datagram() {
    let [a, b] = pair();
    for side in [&a, &b] {
        let mut sent = 0;
        side.knobs.lose(move |_| {
            sent += 1;
            sent % 3 == 0
        });
    }
    let listener = b.nic.listen(SERVICE, 64).unwrap();
    for _ in 0..10 {
        let (qa, qb) = (a.qp(), b.qp());
        let [active, passive] = connect(&a, &b, &listener, [&qa, &qb]);
        exchange(&a, &b, [&qa, &qb]);
        active.disconnect(b"bye").unwrap();
        assert!(matches!(active.wait(a.late()), Some(ConnectionEvent::Disconnected { .. })));
        assert!(matches!(passive.wait(b.late()), Some(ConnectionEvent::Disconnected { .. })));
    }
    drop(listener);
    a.settles();
    b.settles();
    assert!(a.nic.cm_counters().retried.total() + b.nic.cm_counters().retried.total() > 0);
}
