//! Reliable connections, RC and XRC: the requester, which sends until it is answered, and the
//! responder, which executes once and in order (IBA 9.7).
//!
//! Both count packets from the start in 64 bits, a *position*. A PSN is the low 24 bits of a position
//! plus the first PSN; comparing positions needs no thought about wrapping, a message of 2^23 packets
//! is no special case, and a PSN that came round again is not mistaken for what it was 2^24 packets ago.

mod answer;
mod arrivals;
mod credit;
mod early;
mod recovery;
mod repairs;
mod requester;
mod responder;
mod response;
mod timeout;

pub(crate) use requester::Requester;
pub(crate) use responder::Responder;
