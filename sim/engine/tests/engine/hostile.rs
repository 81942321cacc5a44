//! Packets that no honest peer sends, in states that they do not fit: nothing panics, nothing is
//! placed outside what was checked, and what was posted still completes at most once, in order.

use crate::pair::{Pair, RKEY, Rng, pattern};
use anyverbs_engine::*;
use anyverbs_wire::*;

/// A packet whose fields are each right with some probability.
fn packet(rng: &mut Rng, psn: Psn) -> Vec<u8> {
    let psn = match rng.below(4) {
        0 => Psn::new(rng.below(1 << 24) as u32),
        1 => psn.add(rng.below(5) as u32),
        2 => psn.sub(rng.below(5) as u32),
        _ => psn,
    };
    let mut bytes = vec![0; [12, 16, 20, 28, 40, 44][rng.below(6) as usize] + 4 * rng.below(70) as usize];
    for byte in &mut bytes {
        *byte = if rng.below(3) == 0 { rng.below(256) as u8 } else { 0 };
    }
    let opcodes =
        [0, 1, 2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 0x16, 0x17, 0x1c, 0x1d, 0xc1];
    bytes[0] = opcodes[rng.below(opcodes.len() as u64) as usize];
    bytes[1] &= 0x30;
    bytes[2..4].copy_from_slice(&[0xff, 0xff]);
    bytes[9..12].copy_from_slice(&psn.value().to_be_bytes()[1..]);
    if rng.below(2) == 0 && bytes.len() >= 28 {
        // A plausible RETH.
        bytes[12..20].copy_from_slice(&rng.below(1 << 16).to_be_bytes());
        bytes[20..24].copy_from_slice(&RKEY.to_be_bytes());
        bytes[24..28].copy_from_slice(&(rng.below(2000) as u32).to_be_bytes());
    }
    bytes
}

#[test]
fn no_packet_breaks_a_queue_pair() {
    let mut accepted = 0;
    for seed in 1..=300 {
        let mut rng = Rng(seed * 0x9e37_79b9);
        let mut pair = Pair::new(0xff_fff8, seed);
        for slot in 0..20 {
            pair.post_receive(slot, 300);
        }
        pair.post(0, Op::Send { imm: None }, pattern(1, 1000));
        pair.post(1, Op::Read { va: 0, rkey: RKEY }, vec![0; 1000]);
        pair.post(2, Op::FetchAdd { va: 0, rkey: RKEY, add: 1 }, vec![0; 8]);
        let mut expected = Psn::new(0xff_fff8);
        for _ in 0..200 {
            for side in 0..2 {
                let datagram = packet(&mut rng, expected);
                if Packet::new_checked(&datagram).is_ok() {
                    let before = pair.sides[side].counters.rcvd_pkts;
                    pair.deliver(side, &datagram);
                    accepted += pair.sides[side].counters.rcvd_pkts - before;
                }
            }
            if rng.below(4) == 0 {
                expected = expected.add(1);
                pair.step();
            }
        }
        pair.with_context(0, |qp, cx| qp.enter_error(cx));
        pair.with_context(1, |qp, cx| qp.enter_error(cx));
        let slots = |side, queue| -> Vec<u64> {
            pair.completed(side, queue).into_iter().map(|(slot, _)| slot).collect()
        };
        assert_eq!(slots(0, Queue::Send), [0, 1, 2], "seed {seed}");
        assert_eq!(slots(1, Queue::Receive), (0..20).collect::<Vec<_>>(), "seed {seed}");
    }
    assert!(accepted > 2000, "only {accepted} packets got as far as the engine");
}
