//! The NIC's connection manager over real sockets.

mod support;

use std::thread;
use std::time::Duration;

use anyverbs_link::udp::Io;
use anyverbs_nic::cm::{AcceptParams, ConnectParams, ConnectionEvent, PortSpace, ServiceId, Usage};
use anyverbs_nic::{Access, Nic, NicConfig, Qp, QpInit, QpState};

const SERVICE: ServiceId = ServiceId::new(PortSpace::Tcp, 7471);
const ROUNDS: usize = 4;

fn open() -> (Nic, Qp) {
    let nic = Nic::open(Box::new(support::udp(Io::Auto)), NicConfig::default()).unwrap();
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(16).unwrap();
    let init = QpInit { max_send_wr: 4, max_recv_wr: 4, signal_all: true, ..QpInit::new(&cq) };
    let qp = pd.create_qp(init).unwrap();
    (nic, qp)
}

/// Both sides sleep until the other one speaks, with the times of the kernel's rdma_cm.
#[test]
fn connections_come_and_go_over_udp() {
    let ((asking, own), (asked, other)) = (open(), open());
    let server = asked.attributes().gid;
    let listener = asked.listen(SERVICE, 4).unwrap();
    let late = |nic: &Nic| Some(nic.waiter().now() + Duration::from_secs(60));
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                other.to_reset();
                other.to_init(Access::all()).unwrap();
                let mut request = listener.wait(late(&asked)).expect("a request");
                let passive = request.accept(&other, &AcceptParams::default()).unwrap();
                let event = passive.wait(late(&asked));
                assert!(matches!(event, Some(ConnectionEvent::Established { .. })), "{event:?}");
                let event = passive.wait(late(&asked));
                assert!(matches!(event, Some(ConnectionEvent::Disconnected { .. })), "{event:?}");
                assert!(matches!(passive.wait(late(&asked)), Some(ConnectionEvent::TimewaitExit)));
            }
        });
        for _ in 0..ROUNDS {
            own.to_reset();
            own.to_init(Access::all()).unwrap();
            let params = ConnectParams::new(server, SERVICE);
            let mut connecting = asking.connect(&own, &params).unwrap();
            let active = connecting.wait(late(&asking)).expect("an answer").unwrap();
            assert_eq!(own.state(), QpState::ReadyToSend);
            active.disconnect(b"").unwrap();
            while !matches!(active.wait(late(&asking)), Some(ConnectionEvent::TimewaitExit)) {}
        }
    });
    assert_eq!(asking.cm_usage(), Usage::default());
}
