//! What is registered, who may reach it and how.

mod entry;
mod foreign;
mod home;
mod span;
mod table;
#[cfg(test)]
mod tests;
mod window;

pub use entry::{Access, AccessError};
pub use foreign::ForeignMemory;
pub use home::{Memory, Owner};
pub use span::{Span, SpanError};
pub use table::{Change, DeregisterError, RegionInfo, RegionKind, RegionTable, RegisterError};
pub use window::{Bind, BindError, WindowBinding, WindowId, WindowInfo, WindowType};
