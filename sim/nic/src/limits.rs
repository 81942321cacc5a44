//! How many of each object there may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::attributes::NicConfig;
use crate::error::NicError;

/// Counts the objects of one kind.
#[derive(Debug)]
pub(crate) struct Limit {
    object: &'static str,
    limit: u32,
    used: Arc<AtomicU32>,
}

impl Limit {
    fn new(object: &'static str, limit: u32) -> Self {
        Limit { object, limit, used: Arc::default() }
    }

    /// Counts one more object, as long as its ticket lives.
    pub(crate) fn take(&self) -> Result<Ticket, NicError> {
        let more = |used: u32| (used < self.limit).then_some(used + 1);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Ticket(Arc::clone(&self.used))),
            Err(_) => Err(NicError::Exhausted { object: self.object, limit: self.limit }),
        }
    }
}

impl Limit {
    /// How many there are.
    pub(crate) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }
}

/// The right of one object to be there.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<AtomicU32>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The limits of a device that are not those of a table.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) cq: Limit,
    pub(crate) ah: Limit,
    pub(crate) xrcd: Limit,
    pub(crate) channel: Limit,
}

impl Limits {
    pub(crate) fn new(config: &NicConfig) -> Self {
        Limits {
            cq: Limit::new("completion queue", config.max_cq),
            ah: Limit::new("address handle", config.max_ah),
            xrcd: Limit::new("XRC domain", config.max_xrcd),
            channel: Limit::new("completion channel", config.max_cq),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Limit;

    #[test]
    fn a_place_is_free_again_when_its_object_is_gone() {
        let limit = Limit::new("thing", 2);
        let [first, _second] = [limit.take().unwrap(), limit.take().unwrap()];
        assert_eq!(
            limit.take().unwrap_err().to_string(),
            "the device has no room for another thing: its limit is 2"
        );
        drop(first);
        limit.take().unwrap();
    }
}
