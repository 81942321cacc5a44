//! Service id resolution: which queue pair takes a service's datagrams (IBA 12.11).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{IpHeader, Message, Repr, ServiceId, SidrRep, SidrReq, SidrStatus};

use super::counters::{Outcome, Why};
use super::error::Error;
use super::event::{Action, Event, Id, PrivateData, SidrReply, SidrRequest};
use super::{Asked, ConnectionManager, Held, Output, fixed, fixed_after};
use crate::time::Time;

/// What to ask for: the fields of a SIDR_REQ.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SidrAsk {
    /// The peer's address.
    pub destination: IpAddr,
    /// The service.
    pub service_id: ServiceId,
    /// The partition.
    pub pkey: u16,
    /// The header that librdmacm's peers expect before the private data (IBA A11).
    pub ip_header: Option<IpHeader>,
}

/// What to answer with: the fields of a SIDR_REP.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SidrAnswer<'a> {
    /// How it went.
    pub status: SidrStatus,
    /// The queue pair that takes the service's datagrams.
    pub qpn: Qpn,
    /// Its Q_Key.
    pub qkey: u32,
    /// Additional information, which depends on the status: up to 72 bytes.
    pub info: &'a [u8],
}

/// A resolution in progress.
#[derive(Debug)]
struct Resolution {
    peer: IpAddr,
    transaction_id: u64,
    service_id: ServiceId,
    deadline: Time,
    side: Side,
}

#[derive(Debug)]
enum Side {
    /// We asked.
    Asking { request: Box<Repr>, retries_left: u8, response: Duration },
    /// A peer asked, by this id.
    Asked { request_id: u32 },
}

/// Resolutions in progress.
#[derive(Debug)]
pub(super) struct Resolutions {
    entries: BTreeMap<Id, Resolution>,
    /// Those that peers asked for, by their names.
    remote: BTreeMap<(IpAddr, u32), Id>,
    deadlines: BTreeSet<(Time, Id)>,
    limit: usize,
}

impl Resolutions {
    pub(super) fn new(limit: usize) -> Self {
        Resolutions { entries: BTreeMap::new(), remote: BTreeMap::new(), deadlines: BTreeSet::new(), limit }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn index_len(&self) -> usize {
        self.remote.len() + self.deadlines.len()
    }

    pub(super) fn contains(&self, id: Id) -> bool {
        self.entries.contains_key(&id)
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    fn insert(&mut self, id: Id, resolution: Resolution) {
        self.deadlines.insert((resolution.deadline, id));
        if let Side::Asked { request_id } = resolution.side {
            self.remote.insert((resolution.peer, request_id), id);
        }
        self.entries.insert(id, resolution);
    }

    fn remove(&mut self, id: Id) -> Option<Resolution> {
        let resolution = self.entries.remove(&id)?;
        self.deadlines.remove(&(resolution.deadline, id));
        if let Side::Asked { request_id } = resolution.side {
            self.remote.remove(&(resolution.peer, request_id));
        }
        Some(resolution)
    }

    fn pop_due(&mut self, now: Time) -> Option<(Id, Resolution)> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.remove(id).map(|resolution| (id, resolution))
    }
}

impl ConnectionManager {
    /// Asks a peer for the queue pair of a datagram service. What comes next is `SidrReply` or `Unreachable`.
    ///
    /// There is room for 216 bytes of private data, with an [`IpHeader`] for 180.
    ///
    /// # Errors
    ///
    /// [`Error::PrivateDataTooLong`], [`Error::TooManyResolutions`], [`Error::NoFreeId`].
    pub fn sidr_request(
        &mut self,
        now: Time,
        ask: &SidrAsk,
        private_data: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<Id, Error> {
        let private_data = fixed_after(ask.ip_header.as_ref(), private_data)?;
        if self.resolutions.is_full() {
            return Err(Error::TooManyResolutions);
        }
        let id = self.draw_id()?;
        let transaction_id = (self.entropy)();
        let request = SidrReq { request_id: id.0, pkey: ask.pkey, service_id: ask.service_id, private_data };
        let mad = Repr { transaction_id, status: 0, message: Message::SidrReq(request) };
        let peer = ask.destination.to_canonical();
        let response = self.config.response(self.config.response_timeout);
        let side = Side::Asking { request: Box::new(mad), retries_left: self.config.retries(), response };
        let deadline = now + response;
        let service_id = ask.service_id;
        self.resolutions.insert(id, Resolution { peer, transaction_id, service_id, deadline, side });
        Output { now, actions }.send(&mut self.counters, peer, mad);
        Ok(id)
    }

    /// Answers a resolution. Its id means nothing any more.
    ///
    /// There is room for 136 bytes of private data.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`], [`Error::InfoTooLong`], [`Error::PrivateDataTooLong`].
    pub fn sidr_reply(
        &mut self,
        now: Time,
        id: Id,
        answer: &SidrAnswer<'_>,
        private_data: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let private_data = fixed(private_data)?;
        let info = anyverbs_wire::mad::private_data(answer.info).ok_or(Error::InfoTooLong { max: 72 })?;
        let asked = self.resolutions.entries.get(&id).ok_or(Error::UnknownId)?;
        let Side::Asked { request_id } = asked.side else { return Err(Error::UnknownId) };
        let reply = SidrRep {
            request_id,
            status: answer.status,
            info_len: answer.info.len() as u8,
            qpn: answer.qpn,
            service_id: asked.service_id,
            qkey: answer.qkey,
            info,
            private_data,
        };
        let out = &mut Output { now, actions };
        self.finish_resolution(out, id, reply);
        Ok(())
    }

    fn finish_resolution(&mut self, out: &mut Output<'_>, id: Id, reply: SidrRep) {
        let Some(asked) = self.resolutions.remove(id) else { return };
        let mad = Repr { transaction_id: asked.transaction_id, status: 0, message: Message::SidrRep(reply) };
        self.admission.settled(asked.peer, asked.service_id);
        out.send(&mut self.counters, asked.peer, mad);
        let name = Asked::Resolution { address: asked.peer, request_id: reply.request_id };
        self.keep_last_answer(out, name, mad, Duration::ZERO);
    }

    pub(super) fn abandon_resolution(&mut self, out: &mut Output<'_>, id: Id) -> Result<(), Error> {
        let resolution = self.resolutions.entries.get(&id).ok_or(Error::UnknownId)?;
        match resolution.side {
            Side::Asking { .. } => {
                self.resolutions.remove(id);
            }
            Side::Asked { request_id } => {
                let reply = nothing(request_id, resolution.service_id, SidrStatus::REJECTED);
                self.finish_resolution(out, id, reply);
            }
        }
        Ok(())
    }

    /// SIDR_REQ: a peer asks (IBA 12.11.1).
    pub(super) fn on_sidr_req(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        request: &SidrReq,
    ) -> Outcome {
        let asked = Asked::Resolution { address: source, request_id: request.request_id };
        if self.resolutions.remote.contains_key(&(source, request.request_id))
            || self.repeat_last_answer(out, source, mad, asked)
            || self.held.contains(&asked)
        {
            return Outcome::Duplicate;
        }
        if !self.admission.take_token(out.now) {
            return Outcome::Dropped(Why::Throttled);
        }
        self.on_new_sidr_req(out, source, mad, request)
    }

    pub(super) fn on_new_sidr_req(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        request: &SidrReq,
    ) -> Outcome {
        let service_id = request.service_id;
        if !self.admission.listens(service_id) {
            return self.on_unclaimed_sidr_req(out, source, mad, request);
        }
        let Some(id) = self.draw_id().ok().filter(|_| !self.resolutions.is_full()) else {
            return Outcome::Dropped(Why::NoResources);
        };
        if let Err(why) = self.admission.admit(source, service_id) {
            return Outcome::Dropped(why);
        }
        let resolution = Resolution {
            peer: source,
            transaction_id: mad.transaction_id,
            service_id,
            deadline: out.now + self.answer_life(),
            side: Side::Asked { request_id: request.request_id },
        };
        self.resolutions.insert(id, resolution);
        let asked = SidrRequest {
            id,
            service_id,
            source,
            pkey: request.pkey,
            private_data: PrivateData::received(&request.private_data),
        };
        out.actions.push(Action::Event(Event::SidrRequest(asked)));
        Outcome::Handled
    }

    fn on_unclaimed_sidr_req(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        request: &SidrReq,
    ) -> Outcome {
        let held = Held { source, service_id: request.service_id, mad: *mad };
        let hold = self.config.hold_unclaimed;
        if hold.is_zero() || self.held.is_full() {
            self.refuse_held(out, &held);
            return Outcome::Dropped(Why::NoListener);
        }
        let asked = Asked::Resolution { address: source, request_id: request.request_id };
        self.held.insert(asked, held, out.now + hold);
        Outcome::Handled
    }

    /// SIDR_REP: the answer to a resolution of ours (IBA 12.11.2).
    pub(super) fn on_sidr_rep(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        reply: &SidrRep,
    ) -> Outcome {
        let id = Id(reply.request_id);
        let why = match self.resolutions.entries.get(&id) {
            Some(Resolution { side: Side::Asked { .. }, .. }) | None => Why::UnknownId,
            Some(asking) if asking.peer != source => Why::WrongSource,
            Some(asking) if asking.transaction_id != mad.transaction_id => Why::WrongTransaction,
            Some(_) => {
                self.resolutions.remove(id);
                out.actions.push(Action::Event(Event::SidrReply(answered(id, reply))));
                return Outcome::Handled;
            }
        };
        Outcome::Dropped(why)
    }

    pub(super) fn on_due_resolutions(&mut self, out: &mut Output<'_>) {
        while let Some((id, mut resolution)) = self.resolutions.pop_due(out.now) {
            let again = match &mut resolution.side {
                Side::Asking { request, retries_left, response } => retries_left.checked_sub(1).map(|left| {
                    *retries_left = left;
                    (**request, *response)
                }),
                Side::Asked { .. } => {
                    self.admission.settled(resolution.peer, resolution.service_id);
                    None
                }
            };
            match again {
                Some((mad, response)) => {
                    self.counters.retried.count(mad.message.attribute());
                    out.send(&mut self.counters, resolution.peer, mad);
                    resolution.deadline = out.now + response;
                    self.resolutions.insert(id, resolution);
                }
                None => out.actions.push(Action::Event(Event::Unreachable { id })),
            }
        }
    }
}

/// A reply without a queue pair.
pub(super) fn nothing(request_id: u32, service_id: ServiceId, status: SidrStatus) -> SidrRep {
    SidrRep {
        request_id,
        status,
        info_len: 0,
        qpn: Qpn::new(0),
        service_id,
        qkey: 0,
        info: [0; 72],
        private_data: [0; 136],
    }
}

fn answered(id: Id, reply: &SidrRep) -> SidrReply {
    SidrReply {
        id,
        status: reply.status,
        qpn: reply.qpn,
        qkey: reply.qkey,
        info: reply.info,
        info_len: reply.info_len.min(72),
        private_data: PrivateData::received(&reply.private_data),
    }
}
