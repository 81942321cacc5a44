use super::*;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A capture from the IPv4 header, without its ICRC.
struct Capture {
    flow: Flow,
    ip_id: u16,
    datagram: Vec<u8>,
    icrc: [u8; 4],
}

fn capture(ip_packet: &str, icrc: [u8; 4]) -> Capture {
    let bytes = hex(ip_packet);
    let address = |at| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap().into();
    Capture {
        flow: Flow {
            source: address(12),
            destination: address(16),
            source_port: u16::from_be_bytes([bytes[20], bytes[21]]),
        },
        ip_id: u16::from_be_bytes([bytes[4], bytes[5]]),
        datagram: bytes[28..].to_vec(),
        icrc,
    }
}

/// A congestion notification from a ConnectX-4 Lx.
fn cnp() -> Capture {
    let headers = "45c2003c718c4000401191610a0011010a001201000012b7002800008100ffff4000011800000000";
    capture(&format!("{headers}{}", "00".repeat(16)), [0x82, 0xfd, 0x00, 0x2a])
}

/// A UC SEND_ONLY, the other public vector.
fn uc_send() -> Capture {
    let bytes = "45010040047840004011b4d5c0a80007c0a80007c00012b7002caca22460ffff000000d3\
                 00cf17104630818be28935d90e9a95505401be885e500000";
    capture(bytes, [0x78, 0xf3, 0x53, 0xf3])
}

#[test]
fn captured_packets() {
    for capture in [cnp(), uc_send()] {
        assert_eq!(compute(&capture.flow, capture.ip_id, &capture.datagram), capture.icrc);
        let whole = [&capture.datagram[..], &capture.icrc].concat();
        assert_eq!(verify_any_id(&capture.flow, &whole), Some(capture.ip_id));
        assert_eq!(verify(&capture.flow, &whole), None, "identifications from 128 need verify_any_id");
    }
}

#[test]
fn the_start_is_eight_bytes_of_ones() {
    assert_eq!(START, crc32fast::hash(&[0xFF; 8]));
}

/// The ICRC by its definition, from the bytes of the IP header on, with its own masking.
fn by_definition(mut ip_packet: Vec<u8>) -> [u8; 4] {
    let udp = if ip_packet[0] >> 4 == 4 { 20 } else { 40 };
    let masked: &[usize] = if udp == 20 { &[1, 8, 10, 11] } else { &[1, 2, 3, 7] };
    for &at in masked {
        ip_packet[at] = 0xFF;
    }
    if udp == 40 {
        ip_packet[0] |= 0x0F;
    }
    for at in [udp + 6, udp + 7, udp + 8 + 4] {
        ip_packet[at] = 0xFF;
    }
    let mut crc = u32::MAX;
    for byte in [0xFF; 8].into_iter().chain(ip_packet) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0xEDB8_8320 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

fn flows() -> [Flow; 2] {
    let v6 = |last| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 1, 2, 3, last).into();
    [
        Flow { source: [10, 1, 2, 3].into(), destination: [10, 1, 2, 4].into(), source_port: 0xC123 },
        Flow { source: v6(1), destination: v6(2), source_port: 0xFFFF },
    ]
}

fn datagram(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn both_families_agree_with_the_definition() {
    for flow in flows() {
        for len in [12, 16, 28, 44, 60, 64, 100, 1024, 4096 + 16] {
            for (tos, ttl, id) in [(0, 64, 0), (0xFF, 1, 0), (0x02, 255, 0xABCD)] {
                let datagram = datagram(len);
                let mut headers = [0; 48];
                let n = crate::encapsulate(&flow, id, tos, ttl, len + LEN, &mut headers);
                let expected = by_definition([&headers[..n], &datagram].concat());
                assert_eq!(compute(&flow, id, &datagram), expected, "{flow} {len}");
            }
        }
    }
}

#[test]
fn parts_make_the_whole() {
    for flow in flows() {
        let datagram = datagram(300);
        for cut in 12..datagram.len() {
            let (headers, rest) = datagram.split_at(cut);
            let state = start(&flow, 5, headers, datagram.len() + LEN);
            assert_eq!(finish(extend(state, rest)), compute(&flow, 5, &datagram));
        }
    }
}

#[test]
fn every_identification_is_corrected_and_recovered() {
    let [flow, _] = flows();
    for len in [28, 256, 4096 + 24, 9000, 60_000] {
        let body = datagram(len - LEN);
        let zero = compute(&flow, 0, &body);
        let step = if len == 28 { 1 } else { 257 };
        for id in (0..=u16::MAX).step_by(step) {
            let corrected = correct_id(zero, len, id);
            assert_eq!(recover_id(corrected, zero, len), Some(id));
            if id % 1021 == 0 {
                assert_eq!(corrected, compute(&flow, id, &body), "len {len} id {id}");
            }
        }
    }
}

#[test]
fn identifications_in_turn_are_those_one_by_one() {
    for len in [16, 28, 80, 4096 + 28, 4800, 60_001] {
        let zero = [9, 8, 7, 6];
        let mut in_turn = InTurn::new(len);
        for id in (0..=u16::MAX).chain(0..300) {
            assert_eq!(in_turn.correct(zero), correct_id(zero, len, id), "len {len} id {id}");
            if id == 1000 && len > 28 {
                break;
            }
        }
    }
}

/// Brute force over all identifications agrees with the algebra on what is an identification and what not.
#[test]
fn recovery_agrees_with_brute_force() {
    let len = 64;
    let zero = [1, 2, 3, 4];
    let all: std::collections::HashMap<[u8; 4], u16> =
        (0..=u16::MAX).map(|id| (correct_id(zero, len, id), id)).collect();
    assert_eq!(all.len(), 1 << 16);
    let mut found = 0;
    for guess in 0..1u32 << 20 {
        let icrc = guess.wrapping_mul(0x9E37_79B1).to_le_bytes();
        let recovered = recover_id(icrc, zero, len);
        assert_eq!(recovered, all.get(&icrc).copied());
        found += usize::from(recovered.is_some());
    }
    assert!((4..64).contains(&found), "one guess in 2^16 fits: 16 expected, {found} found");
}

#[test]
fn verify_accepts_a_batch_and_no_more() {
    let [v4, v6] = flows();
    let body = datagram(60);
    let with = |flow: &Flow, id| [&body[..], &compute(flow, id, &body)].concat();
    for id in [0, 1, 127] {
        assert_eq!(verify(&v4, &with(&v4, id)), Some(id));
    }
    for id in [128, 256, 0xFFFF] {
        assert_eq!(verify(&v4, &with(&v4, id)), None);
        assert_eq!(verify_any_id(&v4, &with(&v4, id)), Some(id));
    }
    assert_eq!(verify(&v6, &with(&v6, 77)), Some(0), "IPv6 has no identification");
    assert_eq!(verify_any_id(&v6, &with(&v4, 0)), None);
}

#[test]
fn nonsense_lengths_do_not_panic() {
    for flow in flows() {
        for len in 0..64 {
            let bytes = datagram(len);
            assert_eq!(verify(&flow, &bytes), None);
            let _ = compute(&flow, 0, &bytes);
        }
        let huge = vec![0x55; 70_000];
        let whole = [&huge[..], &compute(&flow, 0, &huge)].concat();
        assert_eq!(verify(&flow, &whole), Some(0));
    }
}
