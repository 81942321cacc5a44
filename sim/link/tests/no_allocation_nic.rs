//! Once a device over real sockets has warmed up, no operation allocates anything.

#[path = "../../nic/tests/operations/mod.rs"]
mod operations;
mod rig;
mod support;

use std::sync::Arc;

use anyverbs_nic::NicConfig;
use operations::{End, MEMORY};
use rig::Host;

#[test]
fn operations_allocate_nothing() {
    let ends = [(); 2].map(|()| {
        let Host { nic, pd, mr, .. } = Host::new(NicConfig::default(), MEMORY);
        End { nic, pd, mr: Arc::new(mr) }
    });
    operations::check(&ends);
}
