//! Links: what carries RoCEv2 datagrams between software NICs.
//!
//! - [`udp`]: UDP port 4791 of a real network, over io_uring or plain sockets.
//! - [`fault`]: a wrapper around any link that loses, duplicates, reorders, delays and corrupts
//!   datagrams, by a seed.
//! - [`capture`]: a wrapper around any link that writes what passes to a pcapng file.
//!
//! Wrappers take any [`Link`](anyverbs_nic::link::Link), so they go around one another in any order.
//! Around faults, a capture shows what the NIC sent; inside them, what the network saw.
#![deny(unsafe_code)]

pub mod capture;
pub mod fault;
pub mod udp;
