//! What is registered, who may reach it and how.

mod entry;
mod table;

pub use entry::{Access, AccessError};
pub use table::{Owner, RegionTable, RegisterError, Span, SpanError};
