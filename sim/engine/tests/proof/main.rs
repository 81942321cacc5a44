//! Proof of the transport: queue pairs, several hosts and a network that does its worst, in virtual time
//! from a seed, and oracles that judge what happened.
//!
//! | variable | what it does |
//! |---|---|
//! | `ANYVERBS_SEED` | the first seed, 1 by default |
//! | `ANYVERBS_SEEDS` | how many |
//! | `ANYVERBS_LONG=1` | 20000 of them |
//! | `ANYVERBS_TRACE=1` | packets and completions are printed (with `-- --nocapture`), each with the time, the session and the side |

mod bad_logs;
mod book;
mod contents;
mod driver;
mod network;
mod oracles;
mod plan;
mod requests;
mod rng;
mod shrink;
mod swarm;
mod world;
