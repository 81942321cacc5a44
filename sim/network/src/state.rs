//! All that is simulated: the clock, the events to come, the hosts, the programs.
//!
//! Nothing here runs a program or a NIC; the scheduler does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Condvar};
use std::time::Duration;

use anyverbs_nic::Time;
use anyverbs_nic::link::{RxBatch, RxEntry, TxBatch, TxEntry};

use crate::host::{Datagram, Host};
use crate::trace::{Fate, Recorder, Trace};
use crate::{Failure, NetworkConfig};

/// An event's place in the order of all: its time, and a number that no other event has.
pub(crate) type EventKey = (Time, u64);

/// What is to come.
#[derive(Debug)]
enum Event {
    Arrival { host: usize, datagram: Datagram },
    Timer { host: usize },
    Room { host: usize },
    Resume { program: usize },
}

/// What the scheduler has to do for an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Let this host's NIC progress, then end the sleep of those who wait for something to happen.
    Service(usize),
    /// Let this program go on.
    Resume(usize),
}

/// How a program gives up the baton.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sleep {
    /// Until something happens, or the deadline.
    Wait(Option<Time>),
    /// For a small step.
    Relax,
}

/// A program that sleeps.
#[derive(Clone, Copy, Debug)]
struct Parked {
    host: usize,
    relaxed: bool,
    /// When it wakes up, as things are.
    resume: Option<EventKey>,
}

/// One program of a run.
pub(crate) struct ProgramState {
    pub(crate) host: usize,
    /// Tells its thread to look who has the baton.
    pub(crate) bell: Arc<Condvar>,
    pub(crate) finished: bool,
    /// It went to sleep in a destructor while a panic unwound it.
    pub(crate) unwinding: bool,
    parked: Option<Parked>,
    /// Its next step of relaxing, and the activity of its host at the last one.
    relax_step: Duration,
    relax_activity: u64,
}

pub(crate) struct State {
    pub(crate) config: NetworkConfig,
    pub(crate) now: Time,
    events: BTreeMap<EventKey, Event>,
    sequence: u64,
    pub(crate) hosts: Vec<Host>,
    by_address: BTreeMap<IpAddr, usize>,
    /// The hosts in each multicast group.
    groups: BTreeMap<IpAddr, BTreeSet<usize>>,
    /// When the last datagram from one host to another arrives.
    last_arrival: BTreeMap<(usize, usize), Time>,
    /// Buffers of datagrams that are done with.
    spare: Vec<Vec<u8>>,
    recorder: Recorder,
    /// The events of earlier runs.
    events_before: u64,
    /// Hosts whose link or clock was used since their NIC last progressed.
    pub(crate) touched: BTreeSet<usize>,
    /// A NIC progresses in the scheduler's hands.
    pub(crate) progressing: bool,
    pub(crate) running: bool,
    pub(crate) programs: Vec<ProgramState>,
    /// The program that runs.
    pub(crate) baton: Option<usize>,
    /// Once it is set, programs are not run but unwound.
    pub(crate) failure: Option<Failure>,
}

impl State {
    pub(crate) fn new(config: NetworkConfig) -> Self {
        State {
            config,
            now: Time::ZERO,
            events: BTreeMap::new(),
            sequence: 0,
            hosts: Vec::new(),
            by_address: BTreeMap::new(),
            groups: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            spare: Vec::new(),
            recorder: Recorder::new(),
            events_before: 0,
            touched: BTreeSet::new(),
            progressing: false,
            running: false,
            programs: Vec::new(),
            baton: None,
            failure: None,
        }
    }

    pub(crate) fn trace(&self) -> Trace {
        // Counted, not inferred, so that the sum of all fates says something.
        let in_flight = self.events.values().filter(|event| matches!(event, Event::Arrival { .. })).count();
        self.recorder.trace(self.now, in_flight as u64)
    }

    /// The host at `address`, which is made if there is none.
    pub(crate) fn host_at(&mut self, address: IpAddr) -> usize {
        *self.by_address.entry(address).or_insert_with(|| {
            self.hosts.push(Host::new(address, self.config.seed, self.config.bandwidth_bits_per_s));
            self.hosts.len() - 1
        })
    }

    /// Notes that somebody other than the scheduler used the link or the clock of a host.
    pub(crate) fn touch(&mut self, host: usize) {
        if !self.progressing {
            self.touched.insert(host);
        }
    }

    fn schedule(&mut self, at: Time, event: Event) -> EventKey {
        let key = (at.max(self.now), self.sequence);
        self.sequence += 1;
        self.events.insert(key, event);
        key
    }

    fn cancel(&mut self, key: Option<EventKey>) {
        if let Some(key) = key {
            self.events.remove(&key);
        }
    }

    /// Moves the clock to the next event, and does of it what needs no program and no NIC.
    ///
    /// # Errors
    /// There is none, or a limit does not allow it.
    pub(crate) fn next_due(&mut self) -> Result<Due, Failure> {
        loop {
            let Some((&(at, _), _)) = self.events.first_key_value() else {
                return Err(Failure::Deadlock { waiting: self.unfinished(), at: self.now });
            };
            let limit = Time::ZERO + self.config.time_limit;
            if at > limit {
                return Err(Failure::TimeLimit { limit, unfinished: self.unfinished() });
            }
            if self.recorder.events - self.events_before >= self.config.event_limit {
                let (limit, unfinished, at) = (self.config.event_limit, self.unfinished(), self.now);
                return Err(Failure::EventLimit { limit, unfinished, at });
            }
            let Some((_, event)) = self.events.pop_first() else {
                continue;
            };
            self.recorder.events += 1;
            self.now = self.now.max(at);
            match event {
                Event::Arrival { host, datagram } => {
                    if self.arrive(host, datagram) {
                        return Ok(Due::Service(host));
                    }
                }
                Event::Timer { host } => {
                    self.hosts[host].timer = None;
                    return Ok(Due::Service(host));
                }
                Event::Room { host } => {
                    self.hosts[host].room = None;
                    return Ok(Due::Service(host));
                }
                Event::Resume { program } => {
                    self.unpark(program);
                    return Ok(Due::Resume(program));
                }
            }
        }
    }

    /// When the NIC of `host` wants to progress next.
    pub(crate) fn set_timer(&mut self, host: usize, deadline: Option<Time>) {
        // A NIC that has just done everything and asks for more at once gets it a moment later, or
        // time would stand still.
        let wanted = deadline.map(|at| at.max(self.now + Duration::from_nanos(1)));
        let current = self.hosts[host].timer;
        if current.map(|(at, _)| at) != wanted {
            self.cancel(current);
            self.hosts[host].timer = wanted.map(|at| self.schedule(at, Event::Timer { host }));
        }
    }
}

/// Datagrams.
impl State {
    /// Takes datagrams from the front of `batch` while the wire of `host` has room.
    pub(crate) fn transmit(&mut self, host: usize, batch: &mut TxBatch) {
        let limit = self.config.transmit_queue.max(1);
        let mut taken = 0;
        for entry in batch.entries() {
            if let Some(room) = self.hosts[host].wire.full_until(limit, self.now) {
                if self.hosts[host].room.is_none() {
                    self.hosts[host].room = Some(self.schedule(room, Event::Room { host }));
                }
                break;
            }
            self.send(host, entry, &batch.bytes()[entry.range()]);
            taken += 1;
        }
        if taken > 0 {
            self.hosts[host].activity += 1;
            batch.consume(taken);
        }
    }

    fn send(&mut self, from: usize, entry: &TxEntry, bytes: &[u8]) {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        let source = self.hosts[from].address;
        let TxEntry { destination, source_port, ecn, .. } = *entry;
        let datagram = Datagram { source, destination, source_port, ecn, bytes: buffer };
        self.recorder.note(Fate::Sent, self.now, entry.destination, &datagram);
        if bytes.len() > self.config.max_datagram {
            self.drop_datagram(entry.destination, datagram);
            return;
        }
        let sender = &mut self.hosts[from];
        let left = sender.wire.send(bytes.len() + self.config.overhead_bytes, self.now);
        let jitter = sender.draw_jitter(self.config.jitter);
        let arrival = left + self.config.latency + jitter;
        if destination.is_multicast() {
            return self.send_to_group(from, arrival, datagram);
        }
        match self.by_address.get(&destination) {
            Some(&to) => self.deliver_at(from, to, arrival, datagram),
            None => self.drop_datagram(destination, datagram),
        }
    }

    fn deliver_at(&mut self, from: usize, to: usize, arrival: Time, datagram: Datagram) {
        let last = self.last_arrival.entry((from, to)).or_default();
        let arrival = arrival.max(*last);
        *last = arrival;
        self.schedule(arrival, Event::Arrival { host: to, datagram });
    }

    /// A switch copies the datagram to every member of its group, the sender among them if it is one.
    fn send_to_group(&mut self, from: usize, arrival: Time, datagram: Datagram) {
        let members: Vec<usize> =
            self.groups.get(&datagram.destination).into_iter().flatten().copied().collect();
        let Some((&last, others)) = members.split_last() else {
            return self.drop_datagram(datagram.destination, datagram);
        };
        for &to in others {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.extend_from_slice(&datagram.bytes);
            let copy = Datagram { bytes, ..datagram };
            // Each copy is a datagram of its own, which is delivered or dropped.
            self.recorder.note(Fate::Sent, self.now, copy.destination, &copy);
            self.deliver_at(from, to, arrival, copy);
        }
        self.deliver_at(from, last, arrival, datagram);
    }

    /// Has `host` receive what is sent to a multicast group.
    pub(crate) fn join(&mut self, host: usize, group: IpAddr) {
        self.groups.entry(group).or_default().insert(host);
    }

    /// Takes `host` out of a multicast group. What is on its way arrives.
    pub(crate) fn leave(&mut self, host: usize, group: IpAddr) {
        if let Some(members) = self.groups.get_mut(&group) {
            members.remove(&host);
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    /// Returns false if the queue is full.
    fn arrive(&mut self, host: usize, datagram: Datagram) -> bool {
        let to = self.hosts[host].address;
        if self.hosts[host].received.len() >= self.config.receive_queue {
            self.drop_datagram(to, datagram);
            return false;
        }
        self.recorder.note(Fate::Delivered, self.now, to, &datagram);
        self.hosts[host].received.push_back(datagram);
        true
    }

    fn drop_datagram(&mut self, to: IpAddr, datagram: Datagram) {
        self.recorder.note(Fate::Dropped, self.now, to, &datagram);
        self.recycle(datagram.bytes);
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.spare.push(buffer);
    }

    /// Moves datagrams from the queue of `host` into `batch`, as many as fit.
    ///
    /// # Errors
    /// The length of a datagram for which the whole buffer is too small.
    pub(crate) fn receive(&mut self, host: usize, batch: &mut RxBatch) -> Result<(), usize> {
        let mut start = batch.entries().iter().map(|entry| entry.start + entry.len).max().unwrap_or(0);
        while batch.room() > 0
            && let Some(datagram) = self.hosts[host].received.front()
        {
            let len = datagram.bytes.len();
            let Some(space) = batch.buffer().get_mut(start..start + len) else {
                return if batch.entries().is_empty() { Err(len) } else { Ok(()) };
            };
            space.copy_from_slice(&datagram.bytes);
            let Datagram { source, destination, source_port, ecn, .. } = *datagram;
            batch.push(RxEntry { source, destination, source_port, ip_id: None, ecn, start, len });
            start += len;
            if let Some(datagram) = self.hosts[host].received.pop_front() {
                self.recycle(datagram.bytes);
            }
        }
        Ok(())
    }
}

/// Programs.
impl State {
    pub(crate) fn begin_run(&mut self) {
        self.running = true;
        self.events_before = self.recorder.events;
    }

    pub(crate) fn end_run(&mut self) {
        self.running = false;
        self.programs.clear();
    }

    /// Adds a program that begins now.
    pub(crate) fn add_program(&mut self, host: usize) {
        let program = self.programs.len();
        let resume = Some(self.schedule(self.now, Event::Resume { program }));
        self.programs.push(ProgramState {
            host,
            bell: Arc::new(Condvar::new()),
            finished: false,
            unwinding: false,
            parked: Some(Parked { host, relaxed: true, resume }),
            relax_step: self.config.relax_step,
            relax_activity: 0,
        });
    }

    pub(crate) fn finish_program(&mut self, program: usize) {
        self.unpark(program);
        self.programs[program].finished = true;
    }

    /// The hosts of the programs that have not ended.
    fn unfinished(&self) -> Vec<IpAddr> {
        self.programs.iter().filter(|p| !p.finished).map(|p| self.hosts[p.host].address).collect()
    }

    /// Puts a program to sleep until something happens on `host`.
    pub(crate) fn park(&mut self, program: usize, host: usize, sleep: Sleep) {
        let woken = !matches!(sleep, Sleep::Relax) && std::mem::take(&mut self.hosts[host].wake_pending);
        let (relaxed, until) = match sleep {
            Sleep::Wait(_) if woken => (false, Some(self.now)),
            // A wait whose deadline has passed is a poll: time has to go on.
            Sleep::Wait(Some(deadline)) if deadline > self.now => (false, Some(deadline)),
            Sleep::Wait(None) => (false, None),
            Sleep::Wait(Some(_)) | Sleep::Relax => (true, Some(self.now + self.relax_step(program, host))),
        };
        let resume = until.map(|at| self.schedule(at, Event::Resume { program }));
        self.programs[program].parked = Some(Parked { host, relaxed, resume });
        self.hosts[host].sleepers.push(program);
    }

    /// How long a polling program relaxes: twice as long as before if nothing happened.
    fn relax_step(&mut self, program: usize, host: usize) -> Duration {
        let activity = self.hosts[host].activity;
        let program = &mut self.programs[program];
        if program.relax_activity != activity {
            program.relax_activity = activity;
            program.relax_step = self.config.relax_step;
        }
        let step = program.relax_step.max(Duration::from_nanos(1));
        program.relax_step = step.saturating_mul(2).min(self.config.relax_step_max).max(step);
        step
    }

    fn unpark(&mut self, program: usize) {
        if let Some(parked) = self.programs[program].parked.take() {
            self.cancel(parked.resume);
            self.hosts[parked.host].sleepers.retain(|&sleeper| sleeper != program);
        }
    }

    /// Something happened on `host`: whoever sleeps there wakes up now.
    pub(crate) fn rouse(&mut self, host: usize) {
        self.hosts[host].activity += 1;
        self.resume_sleepers(host, true);
    }

    /// Somebody called `wake`: whoever waits wakes up now, or else the next to wait does at once.
    /// Who relaxes sleeps on, so that a NIC that always calls it cannot stop the clock.
    pub(crate) fn wake(&mut self, host: usize) {
        self.hosts[host].activity += 1;
        let waiters = self.resume_sleepers(host, false);
        self.hosts[host].wake_pending = !waiters;
    }

    /// Returns whether there was one.
    fn resume_sleepers(&mut self, host: usize, relaxed_too: bool) -> bool {
        let mut any = false;
        for i in 0..self.hosts[host].sleepers.len() {
            let program = self.hosts[host].sleepers[i];
            let Some(parked) = self.programs[program].parked else {
                continue;
            };
            if parked.relaxed && !relaxed_too {
                continue;
            }
            any = true;
            if parked.resume.is_none_or(|(at, _)| at > self.now) {
                self.cancel(parked.resume);
                let resume = Some(self.schedule(self.now, Event::Resume { program }));
                self.programs[program].parked = Some(Parked { resume, ..parked });
            }
        }
        any
    }
}
