//! LAP and APR: another path for a connection that stands (IBA 12.8).

use std::fmt;

use super::{BODY_LEN, Path, put, qpn, word};
use crate::number::be24;
use crate::{Qpn, chunk};

/// Load alternate path: the sender wants a path to fall back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lap {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// The receiver's.
    pub remote_comm_id: u32,
    /// The receiver's queue pair.
    pub remote_qpn: Qpn,
    /// Time that the receiver has for its response, a code of [`timeout`](super::timeout): five bits.
    pub remote_response_timeout: u8,
    /// The path.
    pub path: Path,
    /// For the receiver's consumer.
    pub private_data: [u8; 168],
}

impl Lap {
    /// The path has the fields of a REQ's, but from the flow label on in other places.
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> Lap {
        Lap {
            local_comm_id: word(body, 0),
            remote_comm_id: word(body, 4),
            remote_qpn: qpn(body, 12),
            remote_response_timeout: body[15] >> 3,
            path: Path {
                local_lid: u16::from_be_bytes(chunk(body, 20)),
                remote_lid: u16::from_be_bytes(chunk(body, 22)),
                local_gid: chunk::<16>(body, 24).into(),
                remote_gid: chunk::<16>(body, 40).into(),
                flow_label: word(body, 56) >> 12,
                traffic_class: body[59],
                hop_limit: body[60],
                packet_rate: body[61] & 0x3F,
                service_level: body[62] >> 4,
                subnet_local: body[62] & 8 != 0,
                ack_timeout: body[63] >> 3,
            },
            private_data: chunk(body, 64),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        put(&mut body, 12, &be24(self.remote_qpn.value()));
        body[15] = self.remote_response_timeout << 3;
        put(&mut body, 20, &self.path.local_lid.to_be_bytes());
        put(&mut body, 22, &self.path.remote_lid.to_be_bytes());
        put(&mut body, 24, &self.path.local_gid.octets());
        put(&mut body, 40, &self.path.remote_gid.octets());
        put(&mut body, 56, &(self.path.flow_label << 12).to_be_bytes());
        body[59] = self.path.traffic_class;
        body[60] = self.path.hop_limit;
        body[61] = self.path.packet_rate & 0x3F;
        body[62] = self.path.service_level << 4 | u8::from(self.path.subnet_local) << 3;
        body[63] = self.path.ack_timeout << 3;
        put(&mut body, 64, &self.private_data);
        body
    }
}

impl fmt::Display for Lap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "comm {:#010x} > {:#010x} qp {}",
            self.local_comm_id, self.remote_comm_id, self.remote_qpn
        )?;
        write!(f, " path {} > {}", self.path.local_gid, self.path.remote_gid)
    }
}

/// What becomes of an alternate path (IBA 12.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApStatus(pub u8);

impl ApStatus {
    /// The path is loaded.
    pub const LOADED: ApStatus = ApStatus(0);
    /// The receiver does not know the connection.
    pub const INVALID_COMM_ID: ApStatus = ApStatus(1);
    /// The receiver does not do alternate paths.
    pub const UNSUPPORTED: ApStatus = ApStatus(2);
    /// The receiver does not want this one.
    pub const REJECTED: ApStatus = ApStatus(3);
}

impl fmt::Display for ApStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ApStatus::LOADED => f.write_str("loaded"),
            ApStatus::INVALID_COMM_ID => f.write_str("invalid communication id"),
            ApStatus::UNSUPPORTED => f.write_str("unsupported"),
            ApStatus::REJECTED => f.write_str("rejected"),
            ApStatus(code) => write!(f, "status {code}"),
        }
    }
}

/// Alternate path response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apr {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// The receiver's.
    pub remote_comm_id: u32,
    /// Bytes of `info` that mean something.
    pub info_len: u8,
    /// Outcome.
    pub status: ApStatus,
    /// Additional information, which depends on the status.
    pub info: [u8; 72],
    /// For the receiver's consumer.
    pub private_data: [u8; 148],
}

impl Apr {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> Apr {
        Apr {
            local_comm_id: word(body, 0),
            remote_comm_id: word(body, 4),
            info_len: body[8],
            status: ApStatus(body[9]),
            info: chunk(body, 12),
            private_data: chunk(body, 84),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        body[8] = self.info_len;
        body[9] = self.status.0;
        put(&mut body, 12, &self.info);
        put(&mut body, 84, &self.private_data);
        body
    }
}

impl fmt::Display for Apr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} > {:#010x} {}", self.local_comm_id, self.remote_comm_id, self.status)
    }
}
