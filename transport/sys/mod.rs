//! The C libraries that drive RDMA hardware, found at run time.
//!
//! Nothing here is linked: one binary runs with and without these libraries. `bindings` holds the
//! declarations of the C headers (see `build.rs`), `library` opens a shared object and resolves its versioned
//! symbols, and each of the other modules is one library's symbol table with a safe layer over it. What is
//! not there is said by [`Unavailable`], which names what is missing and what mends it.

mod bindings;
pub(crate) mod libfabric;
mod library;
pub(crate) mod rdma_core;

pub(crate) use library::Unavailable;
