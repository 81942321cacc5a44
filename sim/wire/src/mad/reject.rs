//! REJ and MRA: "no" and "not yet" (IBA 12.6.6, 12.6.7).

use std::fmt;

use super::{BODY_LEN, put, word};
use crate::chunk;

/// The message that a REJ or an MRA is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A REQ.
    Req,
    /// A REP.
    Rep,
    /// In a REJ none of these, in an MRA a LAP.
    Other,
    /// Reserved.
    Reserved,
}

impl Subject {
    const fn from_bits(bits: u8) -> Subject {
        match bits & 3 {
            0 => Subject::Req,
            1 => Subject::Rep,
            2 => Subject::Other,
            _ => Subject::Reserved,
        }
    }

    const fn to_bits(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Subject::Req => "REQ",
            Subject::Rep => "REP",
            Subject::Other => "other",
            Subject::Reserved => "reserved",
        })
    }
}

/// Why a connection was refused (IBA 12.6.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RejectReason(pub u16);

macro_rules! reasons {
    ($($constant:ident = $code:literal, $text:literal;)*) => {
        impl RejectReason {
            $(
                #[doc = concat!("Code ", $code, ": ", $text, ".")]
                pub const $constant: RejectReason = RejectReason($code);
            )*
        }

        impl fmt::Display for RejectReason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($code => f.write_str($text),)*
                    code => write!(f, "reason {code}"),
                }
            }
        }
    };
}

reasons! {
    NO_QP = 1, "no queue pair available";
    NO_RESOURCES = 3, "no resources available";
    TIMEOUT = 4, "timeout";
    UNSUPPORTED = 5, "unsupported request";
    INVALID_COMM_ID = 6, "invalid communication id";
    INVALID_COMM_INSTANCE = 7, "invalid communication instance";
    INVALID_SERVICE_ID = 8, "invalid service id";
    INVALID_TRANSPORT = 9, "invalid transport service";
    STALE_CONNECTION = 10, "stale connection";
    INVALID_GID = 12, "primary remote port GID rejected";
    INVALID_MTU = 26, "invalid path MTU";
    INSUFFICIENT_RESOURCES = 27, "insufficient responder resources";
    CONSUMER = 28, "rejected by the consumer";
    INVALID_RNR_RETRY = 29, "RNR retry count rejected";
    DUPLICATE_COMM_ID = 30, "duplicate local communication id";
    INVALID_CLASS_VERSION = 31, "unsupported class version";
}

/// Reject: the connection will not be, or is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rej {
    /// The sender's name for the connection; 0 if it has none.
    pub local_comm_id: u32,
    /// The receiver's; 0 if the sender does not know it.
    pub remote_comm_id: u32,
    /// What is rejected.
    pub subject: Subject,
    /// Bytes of `info` that mean something: seven bits.
    pub info_len: u8,
    /// Why.
    pub reason: RejectReason,
    /// Additional information, which depends on the reason.
    pub info: [u8; 72],
    /// For the receiver's consumer.
    pub private_data: [u8; 148],
}

impl Rej {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> Rej {
        Rej {
            local_comm_id: word(body, 0),
            remote_comm_id: word(body, 4),
            subject: Subject::from_bits(body[8] >> 6),
            info_len: body[9] >> 1,
            reason: RejectReason(u16::from_be_bytes(chunk(body, 10))),
            info: chunk(body, 12),
            private_data: chunk(body, 84),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        body[8] = self.subject.to_bits() << 6;
        body[9] = self.info_len << 1;
        put(&mut body, 10, &self.reason.0.to_be_bytes());
        put(&mut body, 12, &self.info);
        put(&mut body, 84, &self.private_data);
        body
    }
}

impl fmt::Display for Rej {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} > {:#010x}", self.local_comm_id, self.remote_comm_id)?;
        write!(f, " of {}: {}", self.subject, self.reason)
    }
}

/// Message receipt acknowledgement: the answer will take longer than the asker thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mra {
    /// The sender's name for the connection.
    pub local_comm_id: u32,
    /// The receiver's.
    pub remote_comm_id: u32,
    /// What was received.
    pub subject: Subject,
    /// How long the answer will take, a code of [`timeout`](super::timeout): five bits.
    pub service_timeout: u8,
    /// For the receiver's consumer.
    pub private_data: [u8; 222],
}

impl Mra {
    pub(super) fn parse(body: &[u8; BODY_LEN]) -> Mra {
        Mra {
            local_comm_id: word(body, 0),
            remote_comm_id: word(body, 4),
            subject: Subject::from_bits(body[8] >> 6),
            service_timeout: body[9] >> 3,
            private_data: chunk(body, 10),
        }
    }

    pub(super) fn emit(&self) -> [u8; BODY_LEN] {
        let mut body = [0; BODY_LEN];
        put(&mut body, 0, &self.local_comm_id.to_be_bytes());
        put(&mut body, 4, &self.remote_comm_id.to_be_bytes());
        body[8] = self.subject.to_bits() << 6;
        body[9] = self.service_timeout << 3;
        put(&mut body, 10, &self.private_data);
        body
    }
}

impl fmt::Display for Mra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comm {:#010x} > {:#010x}", self.local_comm_id, self.remote_comm_id)?;
        write!(f, " of {} within {:?}", self.subject, super::timeout(self.service_timeout))
    }
}
