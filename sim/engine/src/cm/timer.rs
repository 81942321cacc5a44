//! What happens when nothing happens.

use anyverbs_wire::mad::{Message, Mra, Repr, Subject};

use super::config::bounded;
use super::event::{Action, Cause, Event, Id, PrivateData};
use super::{ConnectionManager, Output, State};
use crate::time::Time;

impl ConnectionManager {
    /// Handles timers that are due by now.
    pub fn on_timer(&mut self, now: Time, actions: &mut Vec<Action>) {
        let out = &mut Output { now, actions };
        while let Some(id) = self.table.pop_due(now) {
            self.on_due(out, id);
        }
        self.on_due_resolutions(out);
        while let Some(held) = self.held.pop_due(now) {
            self.refuse_held(out, &held);
        }
        while self.answers.pop_due(now).is_some() {}
    }

    fn on_due(&mut self, out: &mut Output<'_>, id: Id) {
        match self.state(id) {
            Some(State::ReqSent | State::MraReqRcvd) => self.repeat(out, id, State::ReqSent),
            Some(State::RepSent | State::MraRepRcvd) => self.repeat(out, id, State::RepSent),
            Some(State::DreqSent) => self.repeat(out, id, State::DreqSent),
            Some(State::ReqRcvd) => self.send_mra(out, id, State::MraReqSent, Subject::Req),
            Some(State::RepRcvd) => self.send_mra(out, id, State::MraRepSent, Subject::Rep),
            Some(State::MraReqSent) => self.give_up(out, id, Subject::Req),
            Some(State::MraRepSent) => self.give_up(out, id, Subject::Rep),
            Some(State::TimeWait) => self.close(out, id),
            Some(State::Established) | None => {}
        }
    }

    /// No answer came in time: the message is sent again, or the last time was the last.
    fn repeat(&mut self, out: &mut Output<'_>, id: Id, state: State) {
        let Some(connection) = self.table.get_mut(id) else { return };
        connection.state = state;
        if let Some(retries_left) = connection.retries_left.checked_sub(1)
            && let Some(mad) = connection.request.as_deref().copied()
        {
            connection.retries_left = retries_left;
            let (peer, deadline) = (connection.peer, out.now + connection.response);
            self.counters.retried.count(mad.message.attribute());
            out.send(&mut self.counters, peer, mad);
            self.table.arm(id, deadline);
            return;
        }
        match state {
            State::DreqSent => {
                let cause = if connection.cause == Cause::Local { Cause::Timeout } else { connection.cause };
                self.over(out, id, cause, PrivateData::EMPTY);
            }
            State::RepSent => self.give_up(out, id, Subject::Rep),
            _ => self.give_up(out, id, Subject::Other),
        }
    }

    /// The consumer is slow: the peer is told before it repeats itself (IBA 12.6.6).
    fn send_mra(&mut self, out: &mut Output<'_>, id: Id, state: State, subject: Subject) {
        let service_timeout = self.config.service_timeout.min(31);
        let Some(connection) = self.table.get_mut(id) else { return };
        let mra = Mra {
            local_comm_id: id.0,
            remote_comm_id: connection.remote_comm_id(),
            subject,
            service_timeout,
            private_data: [0; 222],
        };
        let mad = Repr { transaction_id: connection.transaction_id, status: 0, message: Message::Mra(mra) };
        connection.state = state;
        connection.answer = Some(Box::new(mad));
        // When the peer has certainly lost its patience: all its retries after the time that we promise.
        let round = connection.service + bounded(self.config.packet_lifetime) * 2;
        let patience = bounded(service_timeout) + round * (u32::from(connection.max_retries) + 1);
        let peer = connection.peer;
        out.send(&mut self.counters, peer, mad);
        self.table.arm(id, out.now + patience);
    }

    /// The peer, or our consumer, has not answered for too long.
    fn give_up(&mut self, out: &mut Output<'_>, id: Id, subject: Subject) {
        let Some(connection) = self.table.get(id) else { return };
        let asked_only = matches!(connection.state, State::ReqSent | State::MraReqSent);
        out.tell(connection, Event::Unreachable { id });
        self.send_timeout_rej(out, id, subject);
        // No packet can be under way to a queue pair that never was told of the other.
        if asked_only {
            self.close(out, id);
        } else {
            self.enter_timewait(out, id);
        }
    }
}
