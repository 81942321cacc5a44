//! Connections in virtual time: nothing has a clock or a thread of its own.

use std::net::IpAddr;
use std::time::Duration;

use anyverbs_network::{Network, NetworkConfig, Program, Trace};
use anyverbs_nic::cm::{
    AcceptParams, Cause, ConnectError, ConnectParams, ConnectionEvent, PortSpace, ServiceId,
};
use anyverbs_nic::{Access, Nic, NicConfig, Pd, Qp, QpInit, QpState, Time};

const SERVICE: ServiceId = ServiceId::new(PortSpace::Tcp, 7471);

fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn open(network: &Network, n: u8) -> Nic {
    let config = NicConfig { seed: Some(u64::from(n)), ..NicConfig::default() };
    let nic = Nic::open(Box::new(network.host(address(n))), config).unwrap();
    network.attach(address(n), nic.progress_handle());
    nic
}

fn qp(nic: &Nic) -> (Pd, Qp) {
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(16).unwrap();
    let init = QpInit { max_send_wr: 4, max_recv_wr: 4, signal_all: true, ..QpInit::new(&cq) };
    let qp = pd.create_qp(init).unwrap();
    qp.to_init(Access::all()).unwrap();
    (pd, qp)
}

fn rendezvous() -> Trace {
    let network = Network::new(NetworkConfig::default());
    let (client, server) = (open(&network, 1), open(&network, 2));
    let asking = Program::new(address(1), move || {
        let (_pd, qp) = qp(&client);
        let params = ConnectParams::new(address(2), SERVICE).private_data(b"in virtual time");
        let connection = client.connect(&qp, &params).unwrap().wait(None).unwrap().unwrap();
        // A REQ and a REP, 1 us each and some nanoseconds on the wire; nobody computes.
        let now = client.waiter().now();
        assert!(now < Time::from_nanos(3000), "{now:?}");
        connection.disconnect(b"").unwrap();
        let event = connection.wait(None);
        assert!(
            matches!(event, Some(ConnectionEvent::Disconnected { cause: Cause::Local, .. })),
            "{event:?}"
        );
        assert!(matches!(connection.wait(None), Some(ConnectionEvent::TimewaitExit)));
        assert!(client.waiter().now() > Time::from_nanos(500_000_000), "after twice a packet's life");
    });
    let asked = Program::new(address(2), move || {
        let (_pd, qp) = qp(&server);
        let listener = server.listen(SERVICE, 4).unwrap();
        // One that polls, since the other one waits.
        let mut request = loop {
            if let Some(request) = listener.poll() {
                break request;
            }
        };
        assert_eq!(&request.private_data()[..15], b"in virtual time");
        let connection = request.accept(&qp, &AcceptParams::default()).unwrap();
        assert!(matches!(connection.wait(None), Some(ConnectionEvent::Established { .. })));
        assert_eq!(qp.state(), QpState::ReadyToSend);
        let event = connection.wait(None);
        assert!(matches!(event, Some(ConnectionEvent::Disconnected { cause: Cause::Peer, .. })), "{event:?}");
        assert_eq!(qp.state(), QpState::Error);
    });
    network.run(vec![asking, asked]).unwrap()
}

#[test]
fn a_connection_comes_and_goes_the_same_each_time() {
    let trace = rendezvous();
    assert_eq!(trace, rendezvous());
}

/// One device at both ends.
#[test]
fn a_device_connects_to_itself() {
    let network = Network::new(NetworkConfig::default());
    let nic = open(&network, 1);
    network
        .run(vec![Program::new(address(1), move || {
            let ((_pd, asking), (_other_pd, asked)) = (qp(&nic), qp(&nic));
            let listener = nic.listen(SERVICE, 4).unwrap();
            let mut connecting = nic.connect(&asking, &ConnectParams::new(address(1), SERVICE)).unwrap();
            let passive = listener.wait(None).unwrap().accept(&asked, &AcceptParams::default()).unwrap();
            let active = connecting.wait(None).unwrap().unwrap();
            assert!(matches!(passive.wait(None), Some(ConnectionEvent::Established { .. })));
            assert_eq!([asking.state(), asked.state()], [QpState::ReadyToSend; 2]);
            active.disconnect(b"").unwrap();
            assert!(matches!(passive.wait(None), Some(ConnectionEvent::Disconnected { .. })));
            for connection in [active, passive] {
                while !matches!(connection.wait(None), Some(ConnectionEvent::TimewaitExit)) {}
            }
        })])
        .unwrap();
}

/// More than a minute passes, and none of it is ours.
#[test]
fn a_peer_that_is_not_there_is_given_up_at_its_time() {
    let network = Network::new(NetworkConfig::default());
    let client = open(&network, 1);
    let trace = network
        .run(vec![Program::new(address(1), move || {
            let (_pd, qp) = qp(&client);
            let mut connecting = client.connect(&qp, &ConnectParams::new(address(9), SERVICE)).unwrap();
            let outcome = connecting.wait(None).unwrap();
            assert!(matches!(outcome, Err(ConnectError::Unreachable)));
            // 4.096 us x 2^20, and 4.096 us x 2^16 there and back, sixteen times.
            let patience = Duration::from_nanos((4096 << 20) + 2 * (4096 << 16)) * 16;
            assert_eq!(Duration::from_nanos(client.waiter().now().as_nanos()), patience);
        })])
        .unwrap();
    assert_eq!(trace.delivered, 0);
}
