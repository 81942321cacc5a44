//! Threads that poll, wait and sleep, in any mix, over a pipe.

mod mix;
mod pipe;

use std::sync::Arc;

use anyverbs_nic::*;
use mix::End;

#[test]
fn any_mix_of_threads_gets_every_message() {
    mix::run_many(40, 300, || {
        pipe::pair().map(|link| {
            let nic = Nic::open(Box::new(link), NicConfig::default()).unwrap();
            let pd = nic.alloc_pd().unwrap();
            let block = Arc::new(Block::new(mix::MEMORY).unwrap());
            let mr = pd.register(Arc::clone(&block), 0..mix::MEMORY, Access::all()).unwrap();
            End { nic, pd, block, mr: Arc::new(mr) }
        })
    });
}
