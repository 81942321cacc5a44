use super::*;
use crate::Psn;

pub(super) fn req() -> Req {
    Req {
        local_comm_id: 0x0102_0304,
        ece: Ece { vendor_id: 0x56_5242, options: 0x0708_090a },
        service_id: ServiceId::new(PortSpace::Tcp, 7471),
        ca_guid: 0x1111_2222_3333_4444,
        qkey: 0,
        qpn: Qpn::new(0xaabbcc),
        responder_resources: 16,
        initiator_depth: 8,
        remote_response_timeout: 20,
        transport: Transport::Uc,
        flow_control: true,
        starting_psn: Psn::new(0x010203),
        local_response_timeout: 20,
        retry_count: 7,
        pkey: 0xFFFF,
        path_mtu: 3,
        rdc_exists: false,
        rnr_retry_count: 6,
        max_cm_retries: 15,
        srq: true,
        extended_transport: 1,
        primary: Path {
            local_lid: 0xFFFF,
            remote_lid: 0xFFFE,
            local_gid: "::ffff:10.0.0.1".parse().unwrap(),
            remote_gid: "::ffff:10.0.0.2".parse().unwrap(),
            flow_label: 0xABCDE,
            packet_rate: 0x25,
            traffic_class: 0x68,
            hop_limit: 64,
            service_level: 5,
            subnet_local: true,
            ack_timeout: 17,
        },
        alternate: Path::NONE,
        private_data: [0xEE; 92],
    }
}

/// Offsets after the MAD header, as the kernel's `ibta_vol1_c12.h` has them.
#[test]
fn req_fields_are_where_the_specification_puts_them() {
    let mad = Repr { transaction_id: 0x55, status: 0, message: Message::Req(req()) }.emit();
    assert_eq!(mad[..4], [1, 7, 2, 3]);
    assert_eq!(mad[4..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x55, 0, 0x10, 0, 0, 7, 8, 9, 10]);
    let body = &mad[HEADER_LEN..];
    assert_eq!(body[..8], [1, 2, 3, 4, 0, 0x56, 0x52, 0x42]);
    assert_eq!(body[8..16], [0, 0, 0, 0, 1, 6, 0x1d, 0x2f]);
    assert_eq!(body[32..36], [0xaa, 0xbb, 0xcc, 16]);
    assert_eq!(body[36..40], [0, 0, 0, 8]);
    assert_eq!(body[43], 20 << 3 | 1 << 1 | 1);
    assert_eq!(body[44..48], [1, 2, 3, 20 << 3 | 7]);
    assert_eq!(body[48..52], [0xFF, 0xFF, 3 << 4 | 6, 15 << 4 | 1 << 3 | 1]);
    assert_eq!(body[52..56], [0xFF, 0xFF, 0xFF, 0xFE]);
    assert_eq!(body[66..72], [0xFF, 0xFF, 10, 0, 0, 1]);
    assert_eq!(body[82..88], [0xFF, 0xFF, 10, 0, 0, 2]);
    assert_eq!(body[88..92], [0xAB, 0xCD, 0xE0, 0x25]);
    assert_eq!(body[92..96], [0x68, 64, 5 << 4 | 8, 17 << 3]);
    assert!(body[96..140].iter().all(|&byte| byte == 0));
    assert!(body[140..].iter().all(|&byte| byte == 0xEE));
}

#[test]
fn rep_fields_are_where_the_specification_puts_them() {
    let rep = Rep {
        local_comm_id: 1,
        remote_comm_id: 2,
        ece: Ece { vendor_id: 0x56_5242, options: 0x0708_090a },
        qkey: 3,
        qpn: Qpn::new(4),
        ee_context: Qpn::new(0x0a_0b0c),
        starting_psn: Psn::new(5),
        responder_resources: 6,
        initiator_depth: 7,
        target_ack_delay: 0x1F,
        failover: 2,
        flow_control: true,
        rnr_retry_count: 7,
        srq: true,
        ca_guid: 8,
        private_data: [0xEE; 196],
    };
    let mad = Repr { transaction_id: 0, status: 0, message: Message::Rep(rep) }.emit();
    assert_eq!(mad[20..24], [7, 8, 9, 10]);
    let body = &mad[HEADER_LEN..];
    assert_eq!(body[..16], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 4, 0x56]);
    assert_eq!(
        body[16..28],
        [0x0a, 0x0b, 0x0c, 0x52, 0, 0, 5, 0x42, 6, 7, 0xF8 | 2 << 1 | 1, 7 << 5 | 1 << 4]
    );
    assert_eq!(body[28..36], [0, 0, 0, 0, 0, 0, 0, 8]);
    assert!(body[36..].iter().all(|&byte| byte == 0xEE));
}

#[test]
fn fields_of_the_small_messages() {
    let ids = (1, 2);
    let rej = Rej {
        local_comm_id: ids.0,
        remote_comm_id: ids.1,
        subject: Subject::Rep,
        info_len: 0x7F,
        reason: RejectReason::CONSUMER,
        info: [0x11; 72],
        private_data: [0x22; 148],
    };
    let body = rej.emit();
    assert_eq!(body[..14], [0, 0, 0, 1, 0, 0, 0, 2, 0x40, 0xFE, 0, 28, 0x11, 0x11]);
    assert_eq!((body[83], body[84], body[231]), (0x11, 0x22, 0x22));

    let mra = Mra {
        local_comm_id: ids.0,
        remote_comm_id: ids.1,
        subject: Subject::Other,
        service_timeout: 0x1F,
        private_data: [0x22; 222],
    };
    assert_eq!(mra.emit()[8..12], [0x80, 0xF8, 0x22, 0x22]);

    let dreq = Dreq {
        local_comm_id: ids.0,
        remote_comm_id: ids.1,
        remote_qpn: Qpn::new(0x010203),
        private_data: [0x22; 220],
    };
    assert_eq!(dreq.emit()[8..14], [1, 2, 3, 0, 0x22, 0x22]);

    let sidr = SidrRep {
        request_id: 1,
        status: SidrStatus::NO_QP,
        info_len: 72,
        qpn: Qpn::new(0x010203),
        service_id: ServiceId(0x0111_0009),
        qkey: 0x0123_4567,
        info: [0x11; 72],
        private_data: [0x22; 136],
    };
    let body = sidr.emit();
    assert_eq!(body[..12], [0, 0, 0, 1, 3, 72, 0, 0, 1, 2, 3, 0]);
    assert_eq!(body[12..25], [0, 0, 0, 0, 1, 0x11, 0, 9, 1, 0x23, 0x45, 0x67, 0x11]);
    assert_eq!((body[95], body[96]), (0x11, 0x22));
}

#[test]
fn fields_of_alternate_paths() {
    let Req { primary: path, .. } = req();
    let lap = Lap {
        local_comm_id: 1,
        remote_comm_id: 2,
        remote_qpn: Qpn::new(0x010203),
        remote_response_timeout: 20,
        path,
        private_data: [0xEE; 168],
    };
    let body = lap.emit();
    assert_eq!(
        body[..24],
        [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 2, 3, 20 << 3, 0, 0, 0, 0, 255, 255, 255, 254]
    );
    assert_eq!((body[36..40].to_vec(), body[52..56].to_vec()), (vec![10, 0, 0, 1], vec![10, 0, 0, 2]));
    assert_eq!(body[56..64], [0xAB, 0xCD, 0xE0, 0x68, 64, 0x25, 5 << 4 | 8, 17 << 3]);
    assert!(body[64..].iter().all(|&byte| byte == 0xEE));

    let apr = Apr {
        local_comm_id: 1,
        remote_comm_id: 2,
        info_len: 72,
        status: ApStatus::UNSUPPORTED,
        info: [0x11; 72],
        private_data: [0x22; 148],
    };
    let body = apr.emit();
    assert_eq!(body[..13], [0, 0, 0, 1, 0, 0, 0, 2, 72, 2, 0, 0, 0x11]);
    assert_eq!((body[83], body[84], body[231]), (0x11, 0x22, 0x22));
}

#[test]
fn each_rule_has_its_error() {
    let good = Repr { transaction_id: 1, status: 0, message: Message::Req(req()) }.emit();
    assert!(Packet::new_checked(&good).is_ok());
    let with = |at: usize, byte| {
        let mut mad = good;
        mad[at] = byte;
        Packet::new_checked(mad).expect_err("malformed")
    };
    assert_eq!(with(0, 2), MalformedMad::BaseVersion(2));
    assert_eq!(with(1, 4), MalformedMad::Class(4));
    assert_eq!(with(2, 1), MalformedMad::ClassVersion(1));
    assert_eq!(with(3, 0x81), MalformedMad::Method(0x81));
    assert_eq!(with(17, 0x1B), MalformedMad::Attribute(0x1B));
    assert_eq!(Packet::new_checked(&good[..255]).expect_err("short"), MalformedMad::Length(255));
    assert_eq!(Packet::new_checked([0; 257]).expect_err("long"), MalformedMad::Length(257));
}

#[test]
fn routing_fields_are_those_of_the_message() {
    let routed = |message| {
        let mad = Repr { transaction_id: 1, status: 0, message }.emit();
        let packet = Packet::new_checked(&mad).unwrap();
        (packet.service_id(), packet.remote_comm_id())
    };
    assert_eq!(routed(Message::Req(req())), (Some(ServiceId::new(PortSpace::Tcp, 7471)), None));
    let drep = Drep { local_comm_id: 1, remote_comm_id: 2, private_data: [0; 224] };
    assert_eq!(routed(Message::Drep(drep)), (None, Some(2)));
    let service_id = ServiceId::new(PortSpace::Udp, 9);
    let sidr = SidrReq { request_id: 1, pkey: 0xFFFF, service_id, private_data: [0; 216] };
    assert_eq!(routed(Message::SidrReq(sidr)), (Some(service_id), None));
}

#[test]
fn codes() {
    assert_eq!(timeout(0), Duration::from_nanos(4096));
    assert_eq!(timeout(20), Duration::from_nanos(4096 << 20));
    assert_eq!(timeout(0xFF), timeout(31));
    assert_eq!([0, 1, 3, 5, 6].map(path_mtu), [None, Some(256), Some(1024), Some(4096), None]);
    assert_eq!(private_data::<4>(&[1, 2]), Some([1, 2, 0, 0]));
    assert_eq!(private_data::<1>(&[1, 2]), None);
}

#[test]
fn display() {
    assert_eq!(
        Repr { transaction_id: 0x55, status: 0, message: Message::Req(req()) }.to_string(),
        "CM REQ tid 0x55 comm 0x01020304 service tcp:7471 Uc qp 0xaabbcc psn 66051 mtu 1024 resources 16 \
         depth 8 path ::ffff:10.0.0.1 > ::ffff:10.0.0.2"
    );
}
