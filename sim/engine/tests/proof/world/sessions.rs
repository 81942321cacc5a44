//! Sessions begin and end, and hosts crash, forget and come back.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyverbs_engine::congestion::Control;
use anyverbs_engine::{Counters, Time};
use anyverbs_wire::rnr;

use super::{Checked, Clock, Endpoint, Event, World};
use crate::book::{CANARY, End, Fact, READABLE, READABLE_LEN, Side, WORDS};
use crate::driver::{self, EndMemory};
use crate::network::Fault;
use crate::oracles::Violation;
use crate::plan::{self, Incident, Setup, readable};
use crate::rng::{Rng, Stream};

impl World {
    // ---- Sessions ---------------------------------------------------------------------------

    /// Opens a session between the hosts of a wiring; `old` is the one that it takes the place of.
    pub(super) fn open(&mut self, pair: usize, old: Option<usize>) -> Result<usize, Violation> {
        let index = self.book.sessions.len();
        let wiring = self.plan.wirings[pair];
        let psns = old.map(|old| self.book.sessions[old].sides.each_ref().map(|side| side.sq_psn));
        let (session, setups) = plan::session(self.seed, index, &wiring, &self.plan.moods, psns);
        let load = |side: &Side| side.wrs.iter().map(|wr| wr.packets + 2).sum::<u64>();
        // A control that met congestion sends a packet a millisecond.
        let slow = setups.iter().any(|setup| matches!(setup.config.congestion, Control::Delay(_)));
        let packet = Duration::from_micros(if slow { 1200 } else { 100 });
        let work = packet * session.sides.iter().map(load).sum::<u64>() as u32;
        let rnr =
            setups.iter().map(|setup| rnr::delay(setup.rtr.min_rnr_timer) * setup.receives as u32 * 3).sum();
        let timeout = session.sides.iter().map(|side| side.timeout).max().unwrap_or_default();
        let patience = session.sides.iter().map(|side| side.timeout * (u32::from(side.retry_cnt) + 3)).max();
        let slack: Duration = work + rnr + Duration::from_millis(2);
        let from = self.now.max(self.plan.heal_at);
        self.due_at = self.due_at.max(from + patience.unwrap_or_default() * 5 / 4 + slack);
        self.at(from + timeout * 5 + slack, Event::DueIntact(index));
        self.book.sessions.push(session);
        for (side, setup) in setups.into_iter().enumerate() {
            self.add_endpoint(End { session: index, side }, wiring.hosts, setup)?;
        }
        Ok(index)
    }

    fn add_endpoint(&mut self, at: End, hosts: [usize; 2], setup: Setup) -> Checked {
        let e = self.endpoints.len();
        let mut region = vec![CANARY; setup.region_len];
        region[READABLE..READABLE + READABLE_LEN]
            .iter_mut()
            .zip(readable(0))
            .for_each(|(byte, now)| *byte = now);
        region[WORDS..WORDS + 32].fill(0);
        let wiring = self.plan.wirings.iter().find(|wiring| wiring.qpns[1 - at.side] == setup.rtr.dest_qpn);
        let qpn = wiring.expect("each session has a wiring").qpns[at.side].value();
        let host = hosts[at.side];
        self.hosts[host].table.insert(qpn, e);
        let mut rng = Rng::stream(self.seed, Stream::Program(e as u32), 0);
        let versions: Vec<_> = (0..rng.below(8)).map(|_| 5 + rng.below(400)).collect();
        let starts_after = rng.below(50);
        let memory = EndMemory {
            rkey: setup.rkey,
            base: setup.base,
            region,
            registered: true,
            posted: VecDeque::new(),
            taken: BTreeMap::new(),
            sends: BTreeMap::new(),
            held: BTreeMap::new(),
            buffers: setup.buffers,
            reserved: 0,
        };
        self.endpoints.push(Endpoint {
            at,
            host,
            peer_host: hosts[1 - at.side],
            qpn,
            qp: driver::connect(&setup),
            memory,
            counters: Counters::default(),
            setup,
            alive: true,
            timer: None,
            waits: false,
            receives_posted: 0,
            completed: 0,
            rng,
            moods: 0,
        });
        versions.into_iter().for_each(|delay| self.after(Duration::from_micros(delay), Event::Version(e)));
        self.after(Duration::from_micros(starts_after), Event::Program(e));
        let late = self.plan.moods.late_receives;
        let late = self.chaos.strikes(late, Fault::LateReceives, e as u32, 0);
        self.post_receives(e, if late { setup.receives / 3 } else { setup.receives + 2 })
    }

    /// The program closes a queue pair; nothing of it is looked at any more.
    pub(super) fn close(&mut self, e: usize) -> Checked {
        let Endpoint { at, alive, .. } = self.endpoints[e];
        if !alive {
            return Ok(());
        }
        self.book.sessions[at.session].sides[at.side].closed = true;
        self.call(e, None, |qp, cx| qp.enter_error(cx))?;
        let held = self.endpoints[e].memory.held.len();
        if held > 0 {
            let what = format!("{at:?}: {held} buffers of early packets are not given back");
            return Err(Violation { oracle: "conservation", what });
        }
        let region = std::mem::take(&mut self.endpoints[e].memory.region);
        self.fact_at(e, Fact::Region { at, bytes: &region })?;
        self.bury(e);
        Ok(())
    }

    fn bury(&mut self, e: usize) {
        let endpoint = &mut self.endpoints[e];
        endpoint.alive = false;
        let table = &mut self.hosts[endpoint.host].table;
        if table.get(&endpoint.qpn) == Some(&e) {
            table.remove(&endpoint.qpn);
        }
    }

    fn die(&mut self, e: usize) -> Checked {
        let Endpoint { at, alive, .. } = self.endpoints[e];
        if alive {
            self.bury(e);
            self.book.sessions[at.session].sides[at.side].dead = true;
            self.fact_at(e, Fact::Died { at })?;
        }
        Ok(())
    }

    // ---- Faults -----------------------------------------------------------------------------

    pub(super) fn incident(&mut self, nth: usize) -> Checked {
        let (_, incident) = self.plan.incidents[nth];
        let current = |end: End| End { session: self.current[end.session], ..end }.id();
        let (fault, entity) = match incident {
            Incident::Partition { from, to, .. } => (Fault::Partition, self.links[from][to].id as usize),
            Incident::Forget { end } => (Fault::Forget, current(end)),
            Incident::Restart { host, .. } => (Fault::Restart, host),
            Incident::ClockJump { host, .. } => (Fault::ClockJump, host),
            Incident::Deregister { end } => (Fault::Deregister, current(end)),
        };
        if !self.chaos.strikes(true, fault, entity as u32, nth as u64) {
            return Ok(());
        }
        match incident {
            Incident::Partition { from, to, length } => self.links[from][to].cut_until = self.now + length,
            Incident::Forget { .. } => self.die(entity)?,
            Incident::Restart { host, back_after } => {
                let there: Vec<usize> = self.hosts[host].table.values().copied().collect();
                there.into_iter().try_for_each(|e| self.die(e))?;
                self.hosts[host].shared = [0; 8];
                self.hosts[host].up = false;
                self.after(back_after, Event::Reconnect(host));
            }
            Incident::ClockJump { host, by } => {
                let clock = &mut self.hosts[host].clock;
                *clock = Clock { world: self.now, local: clock.local(self.now) + by, ..*clock };
                let there: Vec<usize> = self.hosts[host].table.values().copied().collect();
                there.into_iter().for_each(|e| self.after(Duration::ZERO, Event::Timer(e)));
            }
            Incident::Deregister { .. } => {
                let Endpoint { at, alive, ref mut memory, .. } = self.endpoints[entity];
                if alive {
                    memory.registered = false;
                    self.book.sessions[at.session].sides[at.side].deregistered = true;
                    self.fact_at(entity, Fact::Deregistered { at })?;
                }
            }
        }
        Ok(())
    }

    /// A host is back: what it was connected to is connected anew, under the same numbers.
    pub(super) fn reconnect(&mut self, host: usize) -> Checked {
        self.hosts[host].up = true;
        for pair in 0..self.current.len() {
            let (wiring, old) = (self.plan.wirings[pair], self.current[pair]);
            let broken = self.book.sessions[old].sides.iter().any(|side| side.dead);
            let up = wiring.hosts.iter().all(|host| self.hosts[*host].up);
            if wiring.hosts.contains(&host) && broken && up {
                self.close(old * 2)?;
                self.close(old * 2 + 1)?;
                self.current[pair] = self.open(pair, Some(old))?;
            }
        }
        Ok(())
    }

    pub(super) fn heal(&mut self) -> Checked {
        self.chaos.healed = true;
        self.book.healed_at = Some(self.now);
        self.links.iter_mut().flatten().for_each(|link| link.cut_until = Time::ZERO);
        for e in 0..self.endpoints.len() {
            self.post_receives(e, u64::MAX)?;
        }
        Ok(())
    }
}
