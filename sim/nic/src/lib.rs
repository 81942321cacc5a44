//! A software RDMA NIC (in progress).
#![forbid(unsafe_code)]

pub mod link;

pub use anyverbs_engine::Time;
