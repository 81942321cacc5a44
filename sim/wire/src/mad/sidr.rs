//! SIDR_REQ and SIDR_REP: which queue pair takes a service's datagrams (IBA 12.11).

use std::fmt;

use super::{BODY_LEN, ServiceId, long, put, qpn, word};
use crate::number::be24;
use crate::{Qpn, chunk};

/// Service id resolution request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidrReq {
    /// The sender's name for the request.
    pub request_id: u32,
    /// Partition key.
    pub pkey: u16,
    /// The service that is asked for.
    pub service_id: ServiceId,
    /// For the receiver's consumer.
    pub private_data: [u8; 216],
}

impl SidrReq {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> SidrReq {
        SidrReq {
            request_id: word(body, 0),
            pkey: u16::from_be_bytes(chunk(body, 4)),
            service_id: ServiceId(long(body, 8)),
            private_data: chunk(body, 16),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.request_id.to_be_bytes());
        put(&mut body, 4, &self.pkey.to_be_bytes());
        put(&mut body, 8, &self.service_id.0.to_be_bytes());
        put(&mut body, 16, &self.private_data);
        body
    }
}

impl fmt::Display for SidrReq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:#010x} service {}", self.request_id, self.service_id)
    }
}

/// Outcome of a resolution (IBA 12.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SidrStatus(pub u8);

impl SidrStatus {
    /// The queue pair and the Q_Key are valid.
    pub const VALID: SidrStatus = SidrStatus(0);
    /// The service is not supported.
    pub const UNSUPPORTED: SidrStatus = SidrStatus(1);
    /// The service refuses.
    pub const REJECTED: SidrStatus = SidrStatus(2);
    /// No queue pair is available.
    pub const NO_QP: SidrStatus = SidrStatus(3);
    /// Ask elsewhere.
    pub const REDIRECT: SidrStatus = SidrStatus(4);
    /// The request's version is not supported.
    pub const UNSUPPORTED_VERSION: SidrStatus = SidrStatus(5);
}

impl fmt::Display for SidrStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SidrStatus::VALID => f.write_str("valid"),
            SidrStatus::UNSUPPORTED => f.write_str("unsupported"),
            SidrStatus::REJECTED => f.write_str("rejected"),
            SidrStatus::NO_QP => f.write_str("no queue pair"),
            SidrStatus::REDIRECT => f.write_str("redirect"),
            SidrStatus::UNSUPPORTED_VERSION => f.write_str("unsupported version"),
            SidrStatus(code) => write!(f, "status {code}"),
        }
    }
}

/// Service id resolution reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidrRep {
    /// The name that the SIDR_REQ gave.
    pub request_id: u32,
    /// Outcome.
    pub status: SidrStatus,
    /// Bytes of `info` that mean something.
    pub info_len: u8,
    /// The queue pair that takes the service's datagrams.
    pub qpn: Qpn,
    /// The service.
    pub service_id: ServiceId,
    /// The queue pair's Q_Key.
    pub qkey: u32,
    /// Additional information, which depends on the status.
    pub info: [u8; 72],
    /// For the receiver's consumer.
    pub private_data: [u8; 136],
}

impl SidrRep {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> SidrRep {
        SidrRep {
            request_id: word(body, 0),
            status: SidrStatus(body[4]),
            info_len: body[5],
            qpn: qpn(body, 8),
            service_id: ServiceId(long(body, 12)),
            qkey: word(body, 20),
            info: chunk(body, 24),
            private_data: chunk(body, 96),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.request_id.to_be_bytes());
        body[4] = self.status.0;
        body[5] = self.info_len;
        put(&mut body, 8, &be24(self.qpn.value()));
        put(&mut body, 12, &self.service_id.0.to_be_bytes());
        put(&mut body, 20, &self.qkey.to_be_bytes());
        put(&mut body, 24, &self.info);
        put(&mut body, 96, &self.private_data);
        body
    }
}

impl fmt::Display for SidrRep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:#010x} {}", self.request_id, self.status)?;
        write!(f, " service {} qp {} qkey {:#010x}", self.service_id, self.qpn, self.qkey)
    }
}
