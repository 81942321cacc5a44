//! "No", said and heard (IBA 12.6.7).

use std::net::IpAddr;
use std::time::Duration;

use anyverbs_wire::mad::{Message, Rej, RejectReason, Repr, SidrStatus, Subject, private_data};

use super::config::bounded;
use super::counters::{Outcome, Why};
use super::error::Error;
use super::event::{Action, Cause, Event, Id, PrivateData, Rejected};
use super::table::{Connection, RemoteId};
use super::{Asked, ConnectionManager, Held, Output, State, fixed, sidr};
use crate::time::Time;

/// How often a request is repeated that was rejected for want of a listener.
const RETRY_REFUSED_EVERY: Duration = Duration::from_millis(100);

impl ConnectionManager {
    /// Rejects a request, or a peer's acceptance. The id means nothing after the `TimewaitExit` that follows.
    ///
    /// There is room for 72 bytes of additional information and for 148 bytes of private data.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`], [`Error::OutOfState`], [`Error::InfoTooLong`], [`Error::PrivateDataTooLong`].
    pub fn reject(
        &mut self,
        now: Time,
        id: Id,
        reason: RejectReason,
        info: &[u8],
        private_data: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let info = Info::new(info).ok_or(Error::InfoTooLong { max: 72 })?;
        let private_data = fixed(private_data)?;
        let connection = self.table.get(id).ok_or(Error::UnknownId)?;
        let state = connection.state;
        let subject = match state {
            State::ReqRcvd | State::MraReqSent => Subject::Req,
            State::RepRcvd | State::MraRepSent => Subject::Rep,
            _ => return Err(Error::OutOfState(state)),
        };
        let mut mad = rejection(connection, subject, reason, &info);
        if let Message::Rej(rej) = &mut mad.message {
            rej.private_data = private_data;
        }
        let out = &mut Output { now, actions };
        self.send_last_answer(out, id, mad);
        match subject {
            Subject::Req => self.close(out, id),
            _ => self.enter_timewait(out, id),
        }
        Ok(())
    }

    /// Rejects for a consumer that has let go.
    pub(super) fn reject_as_consumer(&mut self, out: &mut Output<'_>, id: Id) {
        // Of the errors none is possible: the connection is there, in a state that can be rejected.
        let _ = self.reject(out.now, id, RejectReason::CONSUMER, &[], &[], out.actions);
    }

    /// Takes back a REQ. The peer may have it, and finds by our GUID what it was (IBA 12.6.7.2, reason 4).
    pub(super) fn cancel_request(&mut self, out: &mut Output<'_>, id: Id) {
        self.send_timeout_rej(out, id, Subject::Other);
        self.close(out, id);
    }

    /// Tells the peer that we no longer wait for it, as far as it can be told.
    pub(super) fn send_timeout_rej(&mut self, out: &mut Output<'_>, id: Id, subject: Subject) {
        let info = Info::guid(self.config.ca_guid);
        if let Some(connection) = self.table.get(id) {
            let mad = rejection(connection, subject, RejectReason::TIMEOUT, &info);
            self.send_last_answer(out, id, mad);
        }
    }

    /// Sends a REJ that ends a connection, and keeps it for a peer that has not heard it.
    fn send_last_answer(&mut self, out: &mut Output<'_>, id: Id, mad: Repr) {
        let Some(connection) = self.table.get(id) else { return };
        let (peer, remote_id) = (connection.peer, connection.remote_id());
        let promised = match connection.state {
            State::MraReqSent | State::MraRepSent => bounded(self.config.service_timeout),
            _ => Duration::ZERO,
        };
        out.send(&mut self.counters, peer, mad);
        if let Some(remote_id) = remote_id {
            self.keep_last_answer(out, Asked::Connection(remote_id), mad, promised);
        }
    }

    /// Rejects a message that belongs to no connection of ours.
    pub(super) fn refuse(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        reason: RejectReason,
    ) -> Repr {
        let (subject, ours, theirs) = match &mad.message {
            Message::Req(req) => (Subject::Req, 0, req.local_comm_id),
            Message::Rep(rep) => (Subject::Rep, rep.remote_comm_id, rep.local_comm_id),
            _ => (Subject::Other, 0, 0),
        };
        let rej = Rej {
            local_comm_id: ours,
            remote_comm_id: theirs,
            subject,
            info_len: 0,
            reason,
            info: [0; 72],
            private_data: [0; 148],
        };
        let answer = Repr { transaction_id: mad.transaction_id, status: 0, message: Message::Rej(rej) };
        out.send(&mut self.counters, source, answer);
        answer
    }

    /// Nobody came to listen: what was held is rejected.
    pub(super) fn refuse_held(&mut self, out: &mut Output<'_>, held: &Held) {
        match &held.mad.message {
            Message::SidrReq(request) => {
                let reply = sidr::nothing(request.request_id, request.service_id, SidrStatus::UNSUPPORTED);
                let transaction_id = held.mad.transaction_id;
                let mad = Repr { transaction_id, status: 0, message: Message::SidrRep(reply) };
                out.send(&mut self.counters, held.source, mad);
            }
            _ => {
                self.refuse(out, held.source, &held.mad, RejectReason::INVALID_SERVICE_ID);
            }
        }
    }

    /// Ends a connection for a reason that we found ourselves.
    pub(super) fn fail(&mut self, out: &mut Output<'_>, id: Id, reason: RejectReason, subject: Subject) {
        if let Some(connection) = self.table.get(id) {
            let rejected = Rejected {
                id,
                reason,
                subject,
                info: [0; 72],
                info_len: 0,
                private_data: PrivateData::EMPTY,
            };
            out.tell(connection, Event::Rejected(rejected));
            self.enter_timewait(out, id);
        }
    }

    /// REJ: the peer does not want the connection, or no longer.
    pub(super) fn on_rej(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, rej: &Rej) -> Outcome {
        let (id, state) = match self.rejected_connection(source, mad, rej) {
            Ok(found) => found,
            Err(Why::UnknownId) if self.cancel_held(source, rej) => return Outcome::Handled,
            Err(why) => return Outcome::Dropped(why),
        };
        match state {
            State::ReqSent | State::MraReqRcvd => self.on_rejected_req(out, id, rej),
            // In timewait even if no queue pair is connected: the REJ may have overtaken a copy of the REQ.
            State::ReqRcvd | State::MraReqSent | State::RepSent | State::MraRepRcvd => {
                self.tell_rejected(out, id, rej);
                self.enter_timewait(out, id);
            }
            // The peer has answered the REQ: a REJ of it is late, or not from the peer.
            State::RepRcvd | State::MraRepSent if rej.subject != Subject::Req => {
                self.tell_rejected(out, id, rej);
                self.enter_timewait(out, id);
            }
            State::Established | State::DreqSent if rej.subject != Subject::Req => {
                let cause = Cause::Rejected(rej.reason);
                self.over(out, id, cause, PrivateData::received(&rej.private_data));
            }
            State::TimeWait => return Outcome::Duplicate,
            _ => return Outcome::Dropped(Why::OutOfState),
        }
        Outcome::Handled
    }

    /// The connection that a REJ is about. One that took back its REQ may not know our id: its GUID, in the
    /// additional information, and its own id tell.
    fn rejected_connection(&self, source: IpAddr, mad: &Repr, rej: &Rej) -> Result<(Id, State), Why> {
        let named = self.find(source, rej.remote_comm_id, None, None);
        let connection = match named {
            Err(Why::UnknownId) if rej.reason == RejectReason::TIMEOUT => {
                let id = self.table.by_remote_id(&canceled(source, rej)).ok_or(Why::UnknownId)?;
                self.table.get(id).ok_or(Why::UnknownId)?
            }
            named => named?,
        };
        let theirs = connection.remote_comm_id();
        if rej.local_comm_id != 0 && theirs != 0 && rej.local_comm_id != theirs {
            return Err(Why::UnknownId);
        }
        let transactions = [Some(connection.transaction_id), connection.release_id];
        if !transactions.contains(&Some(mad.transaction_id)) {
            return Err(Why::WrongTransaction);
        }
        Ok((connection.id, connection.state))
    }

    /// Forgets a held request that its sender has taken back.
    fn cancel_held(&mut self, source: IpAddr, rej: &Rej) -> bool {
        rej.reason == RejectReason::TIMEOUT
            && self.held.remove(&Asked::Connection(canceled(source, rej))).is_some()
    }

    fn on_rejected_req(&mut self, out: &mut Output<'_>, id: Id, rej: &Rej) {
        let Some(connection) = self.table.get_mut(id) else { return };
        let patient = out.now.since(connection.started) < self.config.retry_refused;
        if rej.reason == RejectReason::INVALID_SERVICE_ID && patient {
            // The peer is there, and may begin to listen: that costs no retries.
            connection.state = State::ReqSent;
            connection.retries_left = connection.max_retries;
            self.table.arm(id, out.now + RETRY_REFUSED_EVERY);
            return;
        }
        self.tell_rejected(out, id, rej);
        // Stale: the peer is about to end an older connection of this queue pair (IBA 12.4.1).
        if rej.reason == RejectReason::STALE_CONNECTION {
            self.enter_timewait(out, id);
        } else {
            self.close(out, id);
        }
    }

    fn tell_rejected(&self, out: &mut Output<'_>, id: Id, rej: &Rej) {
        if let Some(connection) = self.table.get(id) {
            let rejected = Rejected {
                id,
                reason: rej.reason,
                subject: rej.subject,
                info: rej.info,
                info_len: rej.info_len.min(72),
                private_data: PrivateData::received(&rej.private_data),
            };
            out.tell(connection, Event::Rejected(rejected));
        }
    }
}

/// The sender's name of a request that it takes back.
fn canceled(source: IpAddr, rej: &Rej) -> RemoteId {
    let guid = rej.info.first_chunk().map_or(0, |guid| u64::from_be_bytes(*guid));
    RemoteId { address: source, ca_guid: guid, comm_id: rej.local_comm_id }
}

/// Additional information of a REJ.
struct Info {
    bytes: [u8; 72],
    len: u8,
}

impl Info {
    fn new(bytes: &[u8]) -> Option<Info> {
        Some(Info { bytes: private_data(bytes)?, len: bytes.len() as u8 })
    }

    fn guid(guid: u64) -> Info {
        let mut bytes = [0; 72];
        bytes[..8].copy_from_slice(&guid.to_be_bytes());
        Info { bytes, len: 8 }
    }
}

/// The REJ of a connection. The peer learns our id from an MRA or a REP; until then it is 0.
fn rejection(connection: &Connection, subject: Subject, reason: RejectReason, info: &Info) -> Repr {
    let rej = Rej {
        local_comm_id: if connection.state == State::ReqRcvd { 0 } else { connection.id.0 },
        remote_comm_id: connection.remote_comm_id(),
        subject,
        info_len: info.len,
        reason,
        info: info.bytes,
        private_data: [0; 148],
    };
    Repr { transaction_id: connection.transaction_id, status: 0, message: Message::Rej(rej) }
}
