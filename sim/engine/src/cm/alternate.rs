//! Alternate paths, which this device does not do (IBA 12.8).

use std::net::IpAddr;

use anyverbs_wire::mad::{ApStatus, Apr, Lap, Message, Repr};

use super::counters::{Outcome, Why};
use super::{ConnectionManager, Output, State};

impl ConnectionManager {
    /// LAP: the peer wants a path to fall back to. It hears that there are none, and need not repeat itself.
    ///
    /// The peer may send it once the connection stands for it, which its RTU may still have to tell us. A LAP
    /// begins a transaction, so that only address, ids and queue pair show whose it is.
    pub(super) fn on_lap(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, lap: &Lap) -> Outcome {
        let connection = match self.find(source, lap.remote_comm_id, Some(lap.local_comm_id), None) {
            Ok(connection) => connection,
            Err(Why::UnknownId) => return self.on_unexpected_lap(out, source, mad, lap),
            Err(why) => return Outcome::Dropped(why),
        };
        if connection.local_qpn() != Some(lap.remote_qpn) {
            return Outcome::Dropped(Why::UnknownId);
        }
        match connection.state {
            State::Established | State::RepSent | State::MraRepRcvd => {
                self.send_apr(out, source, mad, lap, ApStatus::UNSUPPORTED);
                Outcome::Dropped(Why::Unacceptable)
            }
            _ => Outcome::Dropped(Why::OutOfState),
        }
    }

    fn on_unexpected_lap(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, lap: &Lap) -> Outcome {
        if !self.admission.take_token(out.now) {
            return Outcome::Dropped(Why::Throttled);
        }
        self.send_apr(out, source, mad, lap, ApStatus::INVALID_COMM_ID);
        Outcome::Dropped(Why::UnknownId)
    }

    fn send_apr(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, lap: &Lap, status: ApStatus) {
        let apr = Apr {
            local_comm_id: lap.remote_comm_id,
            remote_comm_id: lap.local_comm_id,
            info_len: 0,
            status,
            info: [0; 72],
            private_data: [0; 148],
        };
        let answer = Repr { transaction_id: mad.transaction_id, status: 0, message: Message::Apr(apr) };
        out.send(&mut self.counters, source, answer);
    }

    /// APR: an answer to what we never ask.
    pub(super) fn on_apr(&self, source: IpAddr, apr: &Apr) -> Outcome {
        let named = self.find(source, apr.remote_comm_id, Some(apr.local_comm_id), None);
        Outcome::Dropped(named.err().unwrap_or(Why::OutOfState))
    }
}
