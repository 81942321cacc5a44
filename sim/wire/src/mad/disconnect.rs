//! DREQ and DREP: the end of a connection (IBA 12.6.10, 12.6.11).

use std::fmt;

use super::{BODY_LEN, put, qpn, word};
use crate::number::be24;
use crate::{Qpn, chunk};

/// Request to disconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dreq {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// The receiver's.
    pub remote_comm_id: u32,
    /// The receiver's queue pair.
    pub remote_qpn: Qpn,
    /// For the receiver's consumer.
    pub private_data: [u8; 220],
}

impl Dreq {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> Dreq {
        Dreq {
            local_comm_id: word(body, 0),
            remote_comm_id: word(body, 4),
            remote_qpn: qpn(body, 8),
            private_data: chunk(body, 12),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        put(&mut body, 8, &be24(self.remote_qpn.value()));
        put(&mut body, 12, &self.private_data);
        body
    }
}

impl fmt::Display for Dreq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} > {:#010x} qp {}", self.local_comm_id, self.remote_comm_id, self.remote_qpn)
    }
}

/// Reply to a request to disconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drep {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// The receiver's.
    pub remote_comm_id: u32,
    /// For the receiver's consumer.
    pub private_data: [u8; 224],
}

impl Drep {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> Drep {
        Drep { local_comm_id: word(body, 0), remote_comm_id: word(body, 4), private_data: chunk(body, 8) }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        put(&mut body, 8, &self.private_data);
        body
    }
}

impl fmt::Display for Drep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} > {:#010x}", self.local_comm_id, self.remote_comm_id)
    }
}
