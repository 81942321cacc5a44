//! The connection manager (in progress).
