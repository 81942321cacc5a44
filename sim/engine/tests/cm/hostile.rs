//! MADs that no honest peer sends, to connections in every state: nothing panics, tables stay within their
//! limits, every event comes at most once, every message is counted once.

use std::collections::BTreeMap;
use std::mem::discriminant;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::mad::{LEN, RejectReason};

/// A MAD made of one that was seen, with some bytes changed, or of nothing but chance.
fn forge(rng: &mut Rng, seen: &[[u8; LEN]]) -> Vec<u8> {
    let mut mad = match rng.below(8) {
        0 => {
            let mut mad = [0; LEN];
            mad.iter_mut().for_each(|byte| *byte = rng.next() as u8);
            mad[..4].copy_from_slice(&[1, 7, 2, 3]);
            mad[4..6].fill(0);
            mad
        }
        _ => seen[rng.below(seen.len() as u64) as usize],
    };
    if rng.chance(300) {
        // Another message with the same ids.
        mad[16..18].copy_from_slice(&(0x10 + rng.below(9) as u16).to_be_bytes());
    }
    if rng.chance(300) {
        // The sender's id where the receiver's should be.
        let (a, b) = mad[24..32].split_at_mut(4);
        a.swap_with_slice(b);
    }
    for _ in 0..rng.below(4) {
        // Mostly in the header and the fields, less in the private data.
        let at = if rng.chance(900) { rng.below(140) } else { rng.below(LEN as u64) };
        mad[at as usize] = if rng.chance(500) { rng.next() as u8 } else { 0 };
    }
    let len = if rng.chance(20) { rng.below(300) as usize } else { LEN };
    mad.iter().copied().chain(std::iter::repeat(0)).take(len).collect()
}

/// The consumer's calls, with no regard for states.
fn call_at_random(world: &mut World, rng: &mut Rng, side: usize, ids: &[Id], qpn: u32) {
    let Some(id) = ids.get(rng.below(ids.len().max(1) as u64) as usize).copied() else { return };
    match rng.below(7) {
        0 | 1 => {
            let events = world.sides[side].events.clone();
            let request = events.iter().find_map(|event| match event {
                Event::ConnectRequest(request) if request.id == id => Some(*request),
                _ => None,
            });
            if let Some(request) = request {
                let _ = world.accept(side, &request, qpn);
            }
        }
        2 | 3 => {
            let _ = world.establish(side, id);
        }
        4 => {
            let _ = world.disconnect(side, id);
        }
        5 => {
            let reason = RejectReason(rng.below(40) as u16);
            let _ = world.call(side, |cm, now, out| cm.reject(now, id, reason, b"i", b"p", out));
        }
        _ if rng.chance(200) => {
            let _ = world.call(side, |cm, now, out| cm.abandon(now, id, out));
        }
        _ => {}
    }
}

fn check_events(events: &[Event]) {
    let mut told: BTreeMap<Id, Vec<&Event>> = BTreeMap::new();
    for event in events {
        let before = told.entry(event.id()).or_default();
        assert!(before.iter().all(|other| discriminant(*other) != discriminant(event)), "{event:?} twice");
        assert!(
            !before.iter().any(|other| matches!(other, Event::TimewaitExit { .. })),
            "{event:?} at the end"
        );
        before.push(event);
    }
}

#[test]
fn no_mad_breaks_a_connection_manager() {
    let limits =
        Limits { connections: 12, held: 2, answers: 3, resolutions: 3, rate: 50, ..Limits::default() };
    let (mut handled, mut dropped) = (0, 0);
    for seed in 0..60 {
        let mut rng = Rng(seed ^ 0x5eed);
        let mut world = World::with([0, 1].map(|side| Config { limits, ..config(side) }), seed);
        let mut qpn = 50;
        for round in 0..400 {
            let side = rng.below(2) as usize;
            if rng.chance(50) || round == 0 {
                qpn += 1;
                let connect = world.request(side, qpn);
                let _ = world.call(side, |cm, now, out| cm.connect(now, &connect, b"", out));
            }
            let seen: Vec<_> = world.sent.iter().rev().take(20).map(|(_, _, mad)| mad.emit()).collect();
            for _ in 0..3 {
                let forged = forge(&mut rng, &seen);
                let source = match rng.below(10) {
                    0 => [192, 0, 2, rng.below(250) as u8].into(),
                    from => world.sides[from as usize % 2].address,
                };
                let to = rng.below(2) as usize;
                world.call(to, |cm, now, out| cm.on_datagram(now, source, &forged, out));
            }
            qpn += 1;
            let ids: Vec<_> = world.sides[side].events.iter().map(Event::id).collect();
            call_at_random(&mut world, &mut rng, side, &ids, qpn);
            let longest = if rng.chance(100) { 5000 } else { 5 };
            world.run(rng.millis(longest));
            for side in &world.sides {
                let usage = side.cm.usage();
                assert!(usage.connections <= 12 && usage.held <= 2, "{usage:?}");
                assert!(usage.answers <= 3 && usage.resolutions <= 3, "{usage:?}");
            }
        }
        // Left alone, all that does not stand ends; what stands is disconnected.
        world.settle();
        for side in 0..2 {
            check_events(&world.sides[side].events);
            let ids: Vec<_> = world.sides[side].events.iter().map(Event::id).collect();
            for id in ids {
                let _ = world.disconnect(side, id);
            }
        }
        world.settle();
        world.assert_counted();
        for side in &world.sides {
            assert_eq!(side.cm.usage(), Usage { listeners: 1, ..Usage::default() }, "seed {seed}");
            handled += side.cm.counters().handled;
            dropped += side.cm.counters().dropped() + side.cm.counters().malformed;
        }
    }
    // Forgeries that nobody looks at would prove nothing.
    assert!(handled > 2_000 && dropped > 10_000, "{handled} {dropped}");
}
