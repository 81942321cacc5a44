//! The safe API, a file a noun.

pub(crate) mod batch;
pub(crate) mod completion;
pub(crate) mod connection;
pub(crate) mod device;
pub(crate) mod domain;
pub(crate) mod error;
#[allow(unsafe_code)]
pub(crate) mod exclusive;
pub(crate) mod pool;
pub(crate) mod posting;
pub(crate) mod queue_pair;
pub(crate) mod region;
pub(crate) mod remote;
pub(crate) mod request;
pub(crate) mod slots;
pub(crate) mod window;
