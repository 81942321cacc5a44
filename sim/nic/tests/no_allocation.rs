//! Once a device has warmed up, no operation allocates anything.

mod operations;
mod pipe;

use std::sync::Arc;

use anyverbs_nic::*;
use operations::{End, MEMORY};

#[test]
fn operations_allocate_nothing() {
    let ends = pipe::pair().map(|link| {
        let nic = Nic::open(Box::new(link), NicConfig::default()).unwrap();
        let pd = nic.alloc_pd().unwrap();
        let mr = pd.register(Arc::new(Block::new(MEMORY).unwrap()), 0..MEMORY, Access::all()).unwrap();
        End { nic, pd, mr: Arc::new(mr) }
    });
    operations::check(&ends);
}
