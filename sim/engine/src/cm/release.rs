//! The end of a connection (IBA 12.10.8).

use std::net::IpAddr;

use anyverbs_wire::mad::{Drep, Dreq, Message, Repr};

use super::counters::{Outcome, Why};
use super::error::Error;
use super::event::{Action, Cause, Event, Id, PrivateData};
use super::{ConnectionManager, Output, State, fixed};
use crate::time::Time;

impl ConnectionManager {
    /// Ends a connection. The consumer's queue pair is in the error state already. What comes next is
    /// `Disconnected`.
    ///
    /// A connection that was accepted but does not stand yet is ended once it stands: the consumer does not
    /// hear of that. There is room for 220 bytes of private data.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`], [`Error::OutOfState`], [`Error::PrivateDataTooLong`].
    pub fn disconnect(
        &mut self,
        now: Time,
        id: Id,
        private_data: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let private_data = fixed(private_data)?;
        let connection = self.table.get_mut(id).ok_or(Error::UnknownId)?;
        match connection.state {
            State::Established => {
                self.send_dreq(&mut Output { now, actions }, id, Cause::Local, private_data);
                Ok(())
            }
            State::RepSent | State::MraRepRcvd if connection.closing.is_none() => {
                connection.closing = Some(Box::new(private_data));
                Ok(())
            }
            state => Err(Error::OutOfState(state)),
        }
    }

    pub(super) fn send_dreq(&mut self, out: &mut Output<'_>, id: Id, cause: Cause, private_data: [u8; 220]) {
        let transaction_id = (self.entropy)();
        let Some(connection) = self.table.get_mut(id) else { return };
        connection.cause = cause;
        connection.release_id = Some(transaction_id);
        connection.answer = None;
        let dreq = Dreq {
            local_comm_id: id.0,
            remote_comm_id: connection.remote_comm_id(),
            remote_qpn: connection.remote_qpn(),
            private_data,
        };
        let mad = Repr { transaction_id, status: 0, message: Message::Dreq(dreq) };
        self.request(out, id, State::DreqSent, mad);
    }

    /// The peer uses the queue pair of this connection for another one. A connection that stands is ended
    /// (IBA 12.9.8.3.1); one that does not will be, since the peer does not know it.
    pub(super) fn disconnect_stale(&mut self, out: &mut Output<'_>, id: Id) {
        if self.state(id) == Some(State::Established) {
            self.send_dreq(out, id, Cause::Stale, [0; 220]);
        }
    }

    /// DREQ: the peer ends the connection (IBA 12.6.10).
    pub(super) fn on_dreq(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        dreq: &Dreq,
    ) -> Outcome {
        let connection = match self.find(source, dreq.remote_comm_id, Some(dreq.local_comm_id), None) {
            Ok(connection) => connection,
            Err(Why::UnknownId) => return self.on_unexpected_dreq(out, source, mad, dreq),
            Err(why) => return Outcome::Dropped(why),
        };
        if connection.local_qpn() != Some(dreq.remote_qpn) {
            return Outcome::Dropped(Why::UnknownId);
        }
        let (id, cause) = (connection.id, connection.cause);
        let outcome = match connection.state {
            // From RepSent: the RTU was lost, and the peer is done already.
            State::Established | State::RepSent | State::MraRepRcvd => {
                self.over(out, id, Cause::Peer, PrivateData::received(&dreq.private_data));
                Outcome::Handled
            }
            // Both at once: each answers the other, neither needs the answer.
            State::DreqSent => {
                self.over(out, id, cause, PrivateData::received(&dreq.private_data));
                Outcome::Handled
            }
            State::TimeWait => Outcome::Duplicate,
            _ => return Outcome::Dropped(Why::OutOfState),
        };
        self.send_drep(out, source, mad, dreq);
        outcome
    }

    /// A DREQ to a connection that is no more: our DREP was lost, and the peer waits for it.
    fn on_unexpected_dreq(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        dreq: &Dreq,
    ) -> Outcome {
        if !self.admission.take_token(out.now) {
            return Outcome::Dropped(Why::Throttled);
        }
        self.send_drep(out, source, mad, dreq);
        Outcome::Dropped(Why::UnknownId)
    }

    fn send_drep(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, dreq: &Dreq) {
        let drep = Drep {
            local_comm_id: dreq.remote_comm_id,
            remote_comm_id: dreq.local_comm_id,
            private_data: [0; 224],
        };
        let answer = Repr { transaction_id: mad.transaction_id, status: 0, message: Message::Drep(drep) };
        out.send(&mut self.counters, source, answer);
    }

    /// DREP: the peer agrees (IBA 12.6.11).
    pub(super) fn on_drep(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        drep: &Drep,
    ) -> Outcome {
        let connection = match self.find(source, drep.remote_comm_id, Some(drep.local_comm_id), None) {
            Ok(connection) => connection,
            Err(why) => return Outcome::Dropped(why),
        };
        let (id, cause) = (connection.id, connection.cause);
        match connection.state {
            _ if connection.release_id != Some(mad.transaction_id) => Outcome::Dropped(Why::WrongTransaction),
            State::DreqSent => {
                self.over(out, id, cause, PrivateData::received(&drep.private_data));
                Outcome::Handled
            }
            State::TimeWait => Outcome::Duplicate,
            _ => Outcome::Dropped(Why::OutOfState),
        }
    }

    /// A connection that stood is over.
    pub(super) fn over(&mut self, out: &mut Output<'_>, id: Id, cause: Cause, private_data: PrivateData) {
        if let Some(connection) = self.table.get(id) {
            out.tell(connection, Event::Disconnected { id, cause, private_data });
            self.enter_timewait(out, id);
        }
    }

    /// From now on only packets that are still under way belong to the connection. Its id and its queue pair
    /// stay taken until they are gone (IBA 12.9.7, "TimeWait"); the peer's queue pair may be connected anew.
    pub(super) fn enter_timewait(&mut self, out: &mut Output<'_>, id: Id) {
        self.settle(id);
        self.table.unbind_remote_qp(id);
        if let Some(connection) = self.table.get_mut(id) {
            connection.state = State::TimeWait;
            connection.request = None;
            connection.answer = None;
            connection.closing = None;
            let end = out.now + connection.timewait;
            self.table.arm(id, end);
        }
    }

    /// A connection is no more.
    pub(super) fn close(&mut self, out: &mut Output<'_>, id: Id) {
        self.settle(id);
        if let Some(connection) = self.table.remove(id) {
            out.tell(&connection, Event::TimewaitExit { id, qpn: connection.local_qpn() });
        }
    }
}
