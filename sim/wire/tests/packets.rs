//! Properties of packets: what is emitted reads back, no bytes panic, and a flipped bit is noticed.

use anyverbs_wire::{
    Aeth, AtomicEth, Bth, Deth, Ext, Feth, Flow, Gap, Layout, Missing, Opcode, Packet, Psn, Qpn, Repr, Reth,
    Selectivity, Syndrome, icrc, pad,
};
use proptest::prelude::*;

/// Every opcode that parses.
fn opcodes() -> impl Strategy<Value = Opcode> {
    let known: Vec<Opcode> = (0..=255).map(Opcode::from_value).filter(|o| o.layout().is_some()).collect();
    proptest::sample::select(known)
}

fn bths(opcode: Opcode) -> impl Strategy<Value = Bth> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (flags, 0..4u8, any::<u16>(), any::<u32>(), any::<u32>()).prop_map(move |(flags, pad, pkey, qpn, psn)| {
        Bth {
            opcode,
            solicited: flags.0,
            migrated: flags.1,
            pad,
            pkey,
            fecn: flags.2,
            becn: flags.3,
            dest_qpn: Qpn::new(qpn),
            ack_request: flags.4,
            psn: Psn::new(psn),
        }
    })
}

fn reths() -> impl Strategy<Value = Reth> {
    any::<(u64, u32, u32)>().prop_map(|(va, rkey, len)| Reth { va, rkey, len })
}

fn aeths() -> impl Strategy<Value = Aeth> {
    (any::<u8>(), 0..1u32 << 24).prop_map(|(byte, msn)| Aeth { syndrome: Syndrome::from_u8(byte), msn })
}

fn deths() -> impl Strategy<Value = Deth> {
    any::<(u32, u32)>().prop_map(|(qkey, qpn)| Deth { qkey, source_qpn: Qpn::new(qpn) })
}

fn feths() -> impl Strategy<Value = Feth> {
    let selectivity = prop_oneof![
        Just(Selectivity::Range),
        Just(Selectivity::Region),
        (2..4u8).prop_map(Selectivity::Reserved)
    ];
    (0..16u8, selectivity).prop_map(|(placement, selectivity)| Feth { placement, selectivity })
}

fn exts(layout: Layout) -> BoxedStrategy<Ext> {
    match layout {
        Layout::None => Just(Ext::None).boxed(),
        Layout::Imm => any::<u32>().prop_map(Ext::Imm).boxed(),
        Layout::Ieth => any::<u32>().prop_map(Ext::Ieth).boxed(),
        Layout::Reth => reths().prop_map(Ext::Reth).boxed(),
        Layout::RethImm => (reths(), any::<u32>()).prop_map(|(reth, imm)| Ext::RethImm(reth, imm)).boxed(),
        Layout::Aeth => aeths().prop_map(Ext::Aeth).boxed(),
        Layout::AtomicAck => {
            (aeths(), any::<u64>()).prop_map(|(aeth, old)| Ext::AtomicAck(aeth, old)).boxed()
        }
        Layout::Atomic => any::<(u64, u32, u64, u64)>()
            .prop_map(|(va, rkey, swap_add, compare)| Ext::Atomic(AtomicEth { va, rkey, swap_add, compare }))
            .boxed(),
        Layout::Deth => deths().prop_map(Ext::Deth).boxed(),
        Layout::DethImm => (deths(), any::<u32>()).prop_map(|(deth, imm)| Ext::DethImm(deth, imm)).boxed(),
        Layout::Flush => (feths(), reths()).prop_map(|(feth, reth)| Ext::Flush(feth, reth)).boxed(),
        Layout::AtomicWrite => reths().prop_map(Ext::AtomicWrite).boxed(),
        Layout::Cnp => Just(Ext::Cnp).boxed(),
        Layout::Missing => any::<(u16, [(u16, u16); Missing::GAPS])>()
            .prop_map(|(seen, gaps)| (seen, gaps.map(|(start, len)| Gap { start, len })))
            .prop_map(|(seen, gaps)| Ext::Missing(Missing { seen, gaps }))
            .boxed(),
    }
}

fn reprs() -> impl Strategy<Value = Repr> {
    opcodes().prop_flat_map(|opcode| {
        let layout = opcode.layout().expect("only opcodes that parse");
        let srqn = any::<u32>().prop_map(move |n| opcode.has_xrceth().then(|| Qpn::new(n)));
        (bths(opcode), srqn, exts(layout)).prop_map(|(bth, xrc_srqn, ext)| Repr { bth, xrc_srqn, ext })
    })
}

fn flows() -> impl Strategy<Value = Flow> {
    let v4 = any::<([u8; 4], [u8; 4], u16)>().prop_map(|(source, destination, source_port)| Flow {
        source: source.into(),
        destination: destination.into(),
        source_port,
    });
    let v6 = any::<([u8; 16], [u8; 16], u16)>().prop_map(|(source, destination, source_port)| Flow {
        source: source.into(),
        destination: destination.into(),
        source_port,
    });
    prop_oneof![v4, v6]
}

/// A whole datagram: headers, payload, pad and ICRC for an IP identification of a batch.
fn seal(mut repr: Repr, payload: &[u8], flow: &Flow, ip_id: u16) -> (Repr, Vec<u8>) {
    repr.bth.pad = pad(payload.len());
    let mut datagram = vec![0; repr.datagram_len(payload.len())];
    let at = repr.emit(&mut datagram);
    datagram[at..at + payload.len()].copy_from_slice(payload);
    let icrc_at = datagram.len() - icrc::LEN;
    let sum = icrc::compute(flow, ip_id, &datagram[..icrc_at]);
    datagram[icrc_at..].copy_from_slice(&sum);
    (repr, datagram)
}

/// Bytes that often get past the first checks.
fn almost_packets() -> impl Strategy<Value = Vec<u8>> {
    let noise = proptest::collection::vec(any::<u8>(), 0..128);
    (noise, opcodes(), 0..4u8, any::<bool>()).prop_map(|(mut bytes, opcode, pad, keep)| {
        if let ([first, flags, ..], false) = (&mut bytes[..], keep) {
            *first = opcode.value();
            *flags = *flags & 0xC0 | pad << 4;
        }
        bytes
    })
}

/// Calls everything that a packet offers, and checks that it agrees with itself.
fn exercise(bytes: &[u8]) -> Result<(), TestCaseError> {
    let packet = match Packet::new_checked(bytes) {
        Ok(packet) => packet,
        Err(malformed) => {
            prop_assert!(!malformed.to_string().is_empty());
            return Ok(());
        }
    };
    let repr = Repr::parse(&packet);
    prop_assert!(repr.is_consistent());
    prop_assert_eq!(repr.header_len(), packet.header_len());
    prop_assert_eq!(repr.bth.opcode, packet.opcode());
    prop_assert_eq!(repr.bth.dest_qpn, packet.dest_qpn());
    prop_assert_eq!(repr.bth.psn, packet.psn());
    prop_assert_eq!(repr.ext.layout(), packet.layout());
    prop_assert_eq!(packet.payload_range().start, packet.header_len());
    prop_assert_eq!(packet.payload_range().end + usize::from(repr.bth.pad) + icrc::LEN, bytes.len());
    prop_assert_eq!(packet.payload(), &bytes[packet.payload_range()]);
    prop_assert_eq!(&packet.icrc()[..], &bytes[bytes.len() - icrc::LEN..]);
    prop_assert_eq!(packet.service(), packet.opcode().service());
    prop_assert_eq!(packet.operation(), packet.opcode().operation());
    let line = packet.to_string();
    prop_assert!(!line.contains('\n'), "one line");
    prop_assert!(line.starts_with(&repr.to_string()));

    let mut headers = [0; Repr::MAX_LEN];
    let len = repr.emit(&mut headers);
    let whole = [&headers[..len], &bytes[len..]].concat();
    let again = Packet::new_checked(&whole).expect("a packet with its reserved bits cleared");
    prop_assert_eq!(Repr::parse(&again), repr);
    Ok(())
}

proptest! {
    #[test]
    fn what_is_emitted_reads_back(repr in reprs(), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let flow = Flow { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), source_port: 1 };
        let (repr, datagram) = seal(repr, &payload, &flow, 0);
        prop_assert!(repr.is_consistent());
        let packet = Packet::new_checked(&datagram).expect("well-formed");
        prop_assert_eq!(Repr::parse(&packet), repr);
        prop_assert_eq!(packet.payload(), &payload[..]);
        exercise(&datagram)?;
    }

    #[test]
    fn a_short_buffer_is_left_alone(repr in reprs(), short in 0..Repr::MAX_LEN) {
        let mut buf = [0xEE; Repr::MAX_LEN];
        let written = repr.emit(&mut buf[..short]);
        prop_assert_eq!(written, if short < repr.header_len() { 0 } else { repr.header_len() });
        prop_assert!(buf[written..].iter().all(|&byte| byte == 0xEE));
    }

    #[test]
    fn no_bytes_panic(bytes in almost_packets(), flow in flows()) {
        exercise(&bytes)?;
        let _ = (icrc::verify(&flow, &bytes), icrc::verify_any_id(&flow, &bytes));
        let _ = icrc::start(&flow, 0, &bytes, usize::MAX);
        let _ = icrc::correct_id([0; 4], usize::MAX, 0xFFFF);
        let _ = icrc::recover_id([0; 4], [1; 4], usize::MAX);
    }

    #[test]
    fn a_flipped_bit_is_noticed(
        (repr, flow) in (reprs(), flows()),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        ip_id in 0..128u16,
        at in any::<proptest::sample::Index>(),
    ) {
        let (_, mut datagram) = seal(repr, &payload, &flow, ip_id);
        let expected = if flow.is_ipv4() { ip_id } else { 0 };
        prop_assert_eq!(icrc::verify(&flow, &datagram), Some(expected));
        prop_assert_eq!(icrc::verify_any_id(&flow, &datagram), Some(expected));
        let bit = at.index(8 * datagram.len());
        datagram[bit / 8] ^= 1 << (bit % 8);
        if bit / 8 == 4 {
            prop_assert_eq!(icrc::verify(&flow, &datagram), Some(expected), "FECN and BECN are masked");
        } else {
            prop_assert_eq!(icrc::verify(&flow, &datagram), None);
            prop_assert_eq!(icrc::verify_any_id(&flow, &datagram), None);
        }
    }

    #[test]
    fn another_flow_is_noticed(repr in reprs(), flow in flows(), bit in 0..16u32) {
        let (_, datagram) = seal(repr, b"payload!", &flow, 3);
        let other = Flow { source_port: flow.source_port ^ 1 << bit, ..flow };
        prop_assert_eq!(icrc::verify_any_id(&other, &datagram), None);
        if flow.source != flow.destination {
            let other = Flow { source: flow.destination, destination: flow.source, ..flow };
            // Exchanging two different addresses changes more than one bit, so one case in 2^25 may pass by chance.
            prop_assert_eq!(icrc::verify(&other, &datagram), None);
        }
    }
}

/// Every bit of one packet, with every identification of a batch standing for its neighbours.
#[test]
fn every_flipped_bit_is_noticed() {
    let flow = Flow { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), source_port: 0xC001 };
    let bth = Bth::new(Opcode::from_value(0x04), Qpn::new(0x11), Psn::new(1));
    for ip_id in [0, 1, 127] {
        let (_, mut datagram) = seal(Repr::new(bth, Ext::None), &[0x5A; 101], &flow, ip_id);
        for bit in (0..8 * datagram.len()).filter(|bit| bit / 8 != 4) {
            datagram[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(icrc::verify_any_id(&flow, &datagram), None, "id {ip_id} bit {bit}");
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(icrc::verify(&flow, &datagram), Some(ip_id));
    }
}

/// Bits of the headers that do not survive a parse and an emit are exactly the reserved ones.
#[test]
fn only_reserved_bits_are_lost() {
    for value in 0..=255u8 {
        let opcode = Opcode::from_value(value);
        let Some(layout) = opcode.layout() else { continue };
        let mut ones = vec![0xFF; 64];
        ones[0] = value;
        ones[1] = 0xF0;
        let packet = Packet::new_checked(&ones[..]).unwrap();
        let mut headers = [0; Repr::MAX_LEN];
        let len = Repr::parse(&packet).emit(&mut headers);
        let lost: u32 = headers[..len].iter().zip(&ones).map(|(kept, one)| (kept ^ one).count_ones()).sum();
        let in_bth = 6 + 7;
        let in_xrceth = if opcode.has_xrceth() { 8 } else { 0 };
        let in_ext = match layout {
            Layout::Deth | Layout::DethImm => 8,
            Layout::Flush => 26,
            Layout::Cnp => 128,
            Layout::Missing => 16,
            _ => 0,
        };
        assert_eq!(lost, in_bth + in_xrceth + in_ext, "{opcode}");
    }
}

#[test]
fn lines_are_like_tcpdump_s() {
    let line = |opcode, ext, srqn: Option<u32>, payload: &[u8]| {
        let mut bth = Bth::new(Opcode::from_value(opcode), Qpn::new(0xaabb), Psn::new(17));
        bth.ack_request = opcode == 0x04;
        let flow = Flow { source: [1, 1, 1, 1].into(), destination: [2, 2, 2, 2].into(), source_port: 1 };
        let repr = Repr { bth, xrc_srqn: srqn.map(Qpn::new), ext };
        let (_, datagram) = seal(repr, payload, &flow, 0);
        Packet::new_checked(&datagram).unwrap().to_string()
    };
    let reth = Reth { va: 0x1000, rkey: 0xBEEF, len: 4096 };
    let aeth = |byte| Aeth { syndrome: Syndrome::from_u8(byte), msn: 9 };
    assert_eq!(line(0x04, Ext::None, None, &[0; 61]), "RC SEND_ONLY qp 0x00aabb psn 17 ack pad 3 len 61");
    assert_eq!(
        line(0x06, Ext::Reth(reth), None, &[0; 1024]),
        "RC WRITE_FIRST qp 0x00aabb psn 17 va 0x1000 rkey 0x0000beef dma 4096 len 1024"
    );
    assert_eq!(line(0x11, Ext::Aeth(aeth(0x1F)), None, &[]), "RC ACK qp 0x00aabb psn 17 ok msn 9 len 0");
    assert_eq!(
        line(0x11, Ext::Aeth(aeth(0x05)), None, &[]),
        "RC ACK qp 0x00aabb psn 17 ok credit 6 msn 9 len 0"
    );
    assert_eq!(
        line(0x11, Ext::Aeth(aeth(0x60)), None, &[]),
        "RC ACK qp 0x00aabb psn 17 nak psn_sequence msn 9 len 0"
    );
    assert_eq!(
        line(0x11, Ext::Aeth(aeth(0x2C)), None, &[]),
        "RC ACK qp 0x00aabb psn 17 rnr 640µs msn 9 len 0"
    );
    assert_eq!(
        line(0x64, Ext::Deth(Deth { qkey: 0x1234, source_qpn: Qpn::GSI }), None, &[0; 4]),
        "UD SEND_ONLY qp 0x00aabb psn 17 from 0x000001 qkey 0x00001234 len 4"
    );
    assert_eq!(
        line(0xA5, Ext::Imm(7), Some(0x33), &[0; 4]),
        "XRC SEND_ONLY_IMM qp 0x00aabb psn 17 srq 0x000033 imm 0x00000007 len 4"
    );
    assert_eq!(line(0x81, Ext::Cnp, None, &[]), "CNP qp 0x00aabb psn 17 len 0");
    let mut missing = Missing { seen: 9, ..Missing::default() };
    missing.gaps[..2].copy_from_slice(&[Gap { start: 0, len: 2 }, Gap { start: 7, len: 1 }]);
    assert_eq!(
        line(0xC1, Ext::Missing(missing), None, &[]),
        "MISSING qp 0x00aabb psn 17 seen 9 gap 0+2 gap 7+1 len 0"
    );
}
