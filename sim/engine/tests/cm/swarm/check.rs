//! What has to hold, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use super::consumers::{Parameters, Swarm, View};
use anyverbs_engine::Time;
use anyverbs_engine::cm::*;
use anyverbs_wire::mad::timeout;

/// Each event once, in the order of the module's table.
pub(super) fn check_next(before: &[(Time, Event)], event: &Event) {
    assert!(before.iter().all(|(_, other)| discriminant(other) != discriminant(event)), "twice: {event:?}");
    let rank = |event: &Event| match event {
        Event::ConnectRequest(_) | Event::ConnectResponse(_) => 0,
        Event::Established { .. } => 1,
        Event::Rejected(_) | Event::Unreachable { .. } | Event::Disconnected { .. } => 2,
        Event::TimewaitExit { .. } => 3,
        Event::SidrRequest(_) | Event::SidrReply(_) => panic!("not a connection's"),
    };
    if let Some((_, last)) = before.last() {
        assert!(rank(last) < rank(event), "{event:?} after {last:?}");
    }
}

/// An id and a queue pair are free no sooner than the last packet is gone: there and back, by our own clock.
pub(super) fn check_timewait(view: &View, config: &Config) {
    let [.., (ended, end), (freed, Event::TimewaitExit { .. })] = &view.events[..] else { return };
    let connected = matches!(end, Event::Disconnected { .. }) || view.accepted;
    let waited = *freed - *ended;
    let least = timeout(config.packet_lifetime + 1);
    assert!(!connected || waited >= least, "timewait of {waited:?} instead of {least:?}: {view:?}");
}

/// The attempts that stand on each side, as the managers and the consumers see it.
pub(super) fn standing(swarm: &Swarm) -> [BTreeMap<u16, Parameters>; 2] {
    let mut standing = [BTreeMap::new(), BTreeMap::new()];
    let mut ends = BTreeSet::new();
    for ((side, id), view) in &swarm.views {
        let stands = swarm.world.state(*side, *id) == Some(State::Established);
        assert_eq!(stands, view.stands && !view.abandoned, "{view:?}");
        if stands {
            let parameters = view.parameters.unwrap();
            let before = standing[*side].insert(view.attempt, parameters);
            assert_eq!(before, None, "attempt {} stands twice", view.attempt);
            let (active, passive) = (parameters.active.0, parameters.passive.0);
            let peer = if view.qpn == Some(active) { passive } else { active };
            assert!(ends.insert((*side, peer)), "two of ours are connected to {peer} of the peer");
        }
    }
    standing
}

/// Both sides agree: a connection stands on both with the same parameters, or on neither. How many stand.
pub(super) fn check_agreement(swarm: &Swarm) -> usize {
    let [a, b] = standing(swarm);
    let attempts: BTreeSet<_> = a.keys().chain(b.keys()).copied().collect();
    let mut agreed = 0;
    for attempt in attempts {
        let broken = swarm.broken.contains(&attempt);
        // A side that is asked again by the same REQ, after a restart or so late that all is forgotten, and by
        // chance answers with the same id, takes an RTU to its first answer for one to its second.
        let chance = swarm.few_ids && (broken || swarm.told.get(&attempt).is_some_and(|told| *told > 1));
        if let (Some(a), Some(b)) = (a.get(&attempt), b.get(&attempt)) {
            assert!(a == b || chance, "attempt {attempt}: {a:?} {b:?}");
            agreed += usize::from(a == b);
            continue;
        }
        // After a restart one side may stand alone, or if the other one could give up unheard.
        let views = swarm.views.values().chain(&swarm.past).filter(|view| view.attempt == attempt);
        let views: Vec<_> = views.collect();
        let gave_up = views.iter().any(|view| view.gave_up() || view.abandoned);
        let excused = broken || chance || (swarm.hasty && gave_up);
        assert!(excused, "attempt {attempt} stands on one side only: {views:?}");
    }
    agreed
}

/// Every view that its consumer holds has come to its end.
pub(super) fn check_ends(swarm: &Swarm) {
    for view in swarm.views.values().chain(&swarm.past).filter(|view| !view.abandoned) {
        let ends = matches!(view.events.last(), Some((_, Event::TimewaitExit { .. })));
        assert!(ends, "never told of the end: {view:?}");
    }
}
