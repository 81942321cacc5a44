//! Congestion control (in progress).
