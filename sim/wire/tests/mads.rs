//! Properties of connection-manager MADs.

use anyverbs_wire::mad::{HEADER_LEN, IpHeader, LEN, Packet, Repr};
use proptest::prelude::*;

/// Bits of a body: first byte, first bit of it from the most significant, number of bits.
type Bits = (usize, usize, usize);

/// Every message: its attribute id, its name, and the bits that are reserved or serve reliable datagrams.
const MESSAGES: &[(u8, &str, &[Bits])] = &[
    (
        0x10,
        "REQ",
        &[
            (4, 0, 8),
            (24, 0, 32),
            (36, 0, 24),
            (40, 0, 24),
            (90, 4, 6),
            (94, 5, 3),
            (95, 5, 3),
            (134, 4, 6),
            (138, 5, 3),
            (139, 5, 3),
        ],
    ),
    (0x11, "MRA", &[(8, 2, 6), (9, 5, 3)]),
    (0x12, "REJ", &[(8, 2, 6), (9, 7, 1)]),
    (0x13, "REP", &[(27, 4, 4)]),
    (0x14, "RTU", &[]),
    (0x15, "DREQ", &[(11, 0, 8)]),
    (0x16, "DREP", &[]),
    (0x17, "SIDR_REQ", &[(6, 0, 16)]),
    (0x18, "SIDR_REP", &[(6, 0, 16), (11, 0, 8)]),
    (0x19, "LAP", &[(8, 0, 32), (15, 5, 3), (16, 0, 32), (58, 4, 4), (61, 0, 2), (62, 5, 3), (63, 5, 3)]),
    (0x1A, "APR", &[(10, 0, 16)]),
];

fn mads() -> impl Strategy<Value = (usize, [u8; LEN])> {
    let body = proptest::collection::vec(any::<u8>(), LEN - HEADER_LEN);
    let header = (any::<u16>(), any::<u64>(), any::<u32>());
    (0..MESSAGES.len(), header, body).prop_map(|(message, (status, tid, modifier), body)| {
        let mut mad = [0; LEN];
        mad[..4].copy_from_slice(&[1, 7, 2, 3]);
        mad[4..6].copy_from_slice(&status.to_be_bytes());
        mad[8..16].copy_from_slice(&tid.to_be_bytes());
        mad[17] = MESSAGES[message].0;
        if matches!(MESSAGES[message].1, "REQ" | "REP") {
            mad[20..24].copy_from_slice(&modifier.to_be_bytes());
        }
        mad[HEADER_LEN..].copy_from_slice(&body);
        (message, mad)
    })
}

proptest! {
    /// Random bytes parse to a random value of the message, so this covers every value there is. That only
    /// the reserved bits get lost shows that `emit` and `parse` agree on every field.
    #[test]
    fn mads_round_trip((message, mut mad) in mads()) {
        let (_, name, reserved) = MESSAGES[message];
        let repr = Repr::parse(&Packet::new_checked(&mad).expect("well-formed"));
        prop_assert_eq!(repr.message.attribute().to_string(), name);
        let emitted = repr.emit();
        prop_assert_eq!(Repr::parse(&Packet::new_checked(&emitted).expect("well-formed")), repr);
        for &(byte, bit, bits) in reserved {
            for bit in 8 * (HEADER_LEN + byte) + bit..8 * (HEADER_LEN + byte) + bit + bits {
                mad[bit / 8] &= !(0x80 >> (bit % 8));
            }
        }
        prop_assert!(emitted == mad, "{name}: {:?}", emitted.iter().zip(&mad).position(|(a, b)| a != b));
    }

    #[test]
    fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), fix in 0..20usize) {
        let n = bytes.len().min(fix);
        bytes[..n].copy_from_slice(&[1, 7, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0, 0][..n]);
        match Packet::new_checked(&bytes) {
            Ok(packet) => {
                let _ = (packet.service_id(), packet.remote_comm_id(), packet.message());
            }
            Err(malformed) => prop_assert!(!malformed.to_string().is_empty()),
        }
        let _ = IpHeader::parse(&bytes);
    }

    #[test]
    fn every_mad_prints_on_one_line((message, mad) in mads()) {
        let line = Packet::new_checked(&mad).expect("well-formed").to_string();
        let start = format!("CM {} tid ", MESSAGES[message].1);
        prop_assert!(line.starts_with(&start), "{line}");
        prop_assert!(!line.contains('\n'));
    }

    #[test]
    fn ip_headers_round_trip(
        (v6, source, destination) in any::<(bool, [u8; 16], [u8; 16])>(),
        source_port in any::<u16>(),
        user in proptest::collection::vec(any::<u8>(), 0..=56),
    ) {
        let v4 = |address: [u8; 16]| [address[0], address[1], address[2], address[3]];
        let header = if v6 {
            IpHeader { source: source.into(), destination: destination.into(), source_port }
        } else {
            IpHeader { source: v4(source).into(), destination: v4(destination).into(), source_port }
        };
        let data: [u8; 92] = header.with_user_data(&user).expect("fits");
        let (parsed, rest) = IpHeader::parse(&data).expect("well-formed");
        prop_assert_eq!(parsed, header);
        prop_assert_eq!(&rest[..user.len()], &user[..]);
        prop_assert!(rest[user.len()..].iter().all(|&byte| byte == 0));
    }
}
