//! Which device is opened, and what is said when it cannot be.

use std::error::Error as _;
use std::fs;
use std::time::Duration;

use anyverbs::{Device, DeviceOptions, Error, LinkKind, ProviderKind, QpOptions, Rc, candidates};

#[test]
fn the_default_works_on_any_machine() {
    let device = Device::open(&DeviceOptions::new()).unwrap();
    let attributes = device.attributes();
    assert_eq!((attributes.provider, attributes.link), ("soft", "udp"));
    assert!(attributes.address.is_loopback());
    assert!(attributes.path_mtu >= 1024 && attributes.max_qp_wr >= 1024, "{attributes:?}");
    assert!(!attributes.link_detail.is_empty());
    // A second one finds another address.
    let second = Device::open(&DeviceOptions::new()).unwrap();
    assert_ne!(second.address(), device.address());
    assert!(!device.counters().is_empty());
}

#[test]
fn an_address_that_is_asked_for_is_shared() {
    let options = DeviceOptions::new().address([127, 77, 1, 1].into());
    let devices = [Device::open(&options).unwrap(), Device::open(&options).unwrap()];
    let sides = devices.each_ref().map(|device| {
        assert_eq!(device.address().to_string(), "127.77.1.1");
        let domain = device.domain().unwrap();
        let cq = device.completion_queue(128).unwrap();
        let qp = domain.queue_pair::<Rc>(&QpOptions::new(), &cq, &cq).unwrap();
        qp.post_recv(domain.pool(1, 64).unwrap().lease().unwrap()).unwrap();
        (qp, cq)
    });
    let [here, there] = sides.each_ref().map(|(qp, _)| qp.endpoint());
    let [(a, cq_a), (b, cq_b)] = sides;
    let (a, b) = (a.connect(&there).unwrap(), b.connect(&here).unwrap());
    a.send_inline(b"there", 0).unwrap();
    b.send_inline(b"and back", 0).unwrap();
    for cq in [cq_a, cq_b] {
        let mut completions = 0;
        while completions < 2 {
            completions += cq.poll(|completion| assert!(completion.status.is_success()));
            cq.wait(Duration::from_millis(1));
        }
    }
}

#[test]
fn an_address_whose_port_is_taken_is_refused_with_the_reason() {
    let address = std::net::Ipv4Addr::new(127, 77, 1, 2);
    let options = DeviceOptions::new().address(address.into());
    let stranger = std::net::UdpSocket::bind((address, 4791)).unwrap();
    let error = Device::open(&options).unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }));
    let text = error.to_string();
    assert!(text.contains("127.77.1.2") && text.contains("4791"), "{text}");
    drop(stranger);
    Device::open(&options).expect("it is free again");
}

#[test]
fn an_address_of_somebody_else_is_refused() {
    let error = Device::open(&"udp@192.0.2.1".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

#[test]
fn hardware_is_refused_with_every_reason() {
    for (kind, name) in [(ProviderKind::RdmaCore, "rdma-core"), (ProviderKind::Libfabric, "libfabric")] {
        let error = Device::open(&DeviceOptions::new().provider(kind)).unwrap_err();
        let Error::NoDevice { asked, candidates } = &error else { panic!("{error}") };
        assert_eq!(asked, name);
        assert!(!candidates.is_empty());
        for candidate in candidates {
            assert!(candidate.name.starts_with(name) && !candidate.usable, "{candidate}");
            assert!(error.to_string().contains(&candidate.detail));
        }
        assert!(error.source().is_none());
    }
}

#[test]
fn every_candidate_is_explained() {
    let all = candidates(&DeviceOptions::new());
    for name in ["soft/udp-uring", "soft/udp-sockets", "rdma-core", "libfabric"] {
        assert!(all.iter().any(|candidate| candidate.name.starts_with(name)), "{name} is not in {all:?}");
    }
    assert!(all.iter().all(|candidate| !candidate.detail.is_empty()));
    assert!(all.iter().any(|candidate| candidate.name == "soft/udp-sockets" && candidate.usable));
    // A link leaves only those that stand on it.
    let sockets = candidates(&DeviceOptions::new().link(LinkKind::UdpSockets));
    assert_eq!(sockets.len(), 1);
    assert!(sockets[0].to_string().starts_with("soft/udp-sockets: 127."), "{}", sockets[0]);
}

#[test]
fn a_capture_has_what_passed() {
    let file = std::env::temp_dir().join(format!("anyverbs-{}.pcapng", std::process::id()));
    let device = Device::open(&DeviceOptions::new().capture(&file)).unwrap();
    let domain = device.domain().unwrap();
    let cq = device.completion_queue(128).unwrap();
    let qp = domain.queue_pair::<Rc>(&QpOptions::new(), &cq, &cq).unwrap();
    qp.post_recv(domain.pool(1, 64).unwrap().lease().unwrap()).unwrap();
    let itself = qp.endpoint();
    let qp = qp.connect(&itself).unwrap();
    qp.send_inline(b"to be found in the file", 0).unwrap();
    let mut completions = 0;
    while completions < 2 {
        completions += cq.poll(|completion| assert!(completion.status.is_success()));
        cq.wait(Duration::from_millis(1));
    }
    drop((qp, cq, domain, device));
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(bytes[..4], [0x0a, 0x0d, 0x0d, 0x0a], "a pcapng section header");
    let needle = b"to be found in the file";
    let found = bytes.windows(needle.len()).filter(|window| window == needle).count();
    assert_eq!(found, 2, "it went out and came in");
}

#[test]
fn a_capture_that_cannot_be_written_is_an_error() {
    let error = Device::open(&DeviceOptions::new().capture("/nonexistent/file.pcapng")).unwrap_err();
    assert!(matches!(error, Error::Capture { .. }));
    assert!(error.to_string().contains("/nonexistent/file.pcapng"), "{error}");
    assert!(error.source().is_some());
}

#[test]
fn a_seed_repeats_the_identifiers() {
    let numbers = |seed: Option<u64>| {
        let mut options = DeviceOptions::new();
        if let Some(seed) = seed {
            options = options.seed(seed);
        }
        let device = Device::open(&options).unwrap();
        let cq = device.completion_queue(128).unwrap();
        let qp = device.domain().unwrap().queue_pair::<Rc>(&QpOptions::new(), &cq, &cq).unwrap();
        qp.number()
    };
    assert_eq!(numbers(Some(5)), numbers(Some(5)));
    assert_ne!(numbers(Some(5)), numbers(Some(6)));
    assert_ne!(numbers(None), numbers(None));
}
