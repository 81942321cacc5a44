//! Threads that poll, wait and sleep, in any mix, over real sockets.

#[path = "../../nic/tests/mix/mod.rs"]
mod mix;
mod rig;
mod support;

use std::sync::Arc;

use anyverbs_nic::NicConfig;
use mix::End;
use rig::Host;

#[test]
fn any_mix_of_threads_gets_every_message() {
    mix::run_many(40, 300, || {
        [(); 2].map(|()| {
            let Host { nic, pd, block, mr, .. } = Host::new(NicConfig::default(), mix::MEMORY);
            End { nic, pd, block, mr: Arc::new(mr) }
        })
    });
}
