//! What every provider, link and path has to do: written once, and run over each of them.
//!
//! A case gets a [`Pair`] of devices and drives both from one thread. `Ground` says where the devices are: on UDP with
//! plain sockets or io_uring, in virtual time, each with and without faults. A ground that this machine does not have is
//! skipped with the reason printed.

mod atomics;
mod batches;
mod errors;
mod ground;
mod limits;
mod memory;
mod one_sided;
mod pair;
mod sends;
mod teardown;

use ground::Ground;
use pair::Pair;

/// Makes a test of every case on every ground.
macro_rules! conformance {
    ($($group:ident: $($case:ident),* $(,)?;)*) => {
        conformance!(@ground udp_sockets, Ground::UdpSockets, $($group: $($case),*;)*);
        conformance!(@ground udp_uring, Ground::UdpUring, $($group: $($case),*;)*);
        conformance!(@ground udp_faulty, Ground::UdpFaulty, $($group: $($case),*;)*);
        conformance!(@ground virtual_time, Ground::Virtual, $($group: $($case),*;)*);
        conformance!(@ground virtual_faulty, Ground::VirtualFaulty, $($group: $($case),*;)*);
    };
    (@ground $name:ident, $ground:expr, $($group:ident: $($case:ident),*;)*) => {
        mod $name {
            use super::*;
            $(mod $group {
                use super::*;
                $(#[test]
                fn $case() {
                    $ground.run(crate::$group::$case);
                })*
            })*
        }
    };
}

conformance! {
    sends: every_size_arrives, immediate_data_arrives, messages_stay_in_order, ids_come_back, inline_needs_no_lease,
        a_receive_that_is_late_is_waited_for, both_directions_at_once, waiting_wakes_up;
    one_sided: writes_land_where_they_should, write_imm_tells_the_peer, reads_bring_every_size, many_reads_outstanding,
        mixed_operations_all_complete;
    atomics: fetch_add_counts, compare_swap_swaps_if_equal, atomics_and_the_owner_agree;
    batches: a_batch_arrives_in_order, a_full_batch_refuses, a_batch_that_finds_no_slot_keeps_the_rest;
    errors: writing_without_the_right_fails_and_flushes, reading_without_the_right_fails,
        a_revoked_window_is_out_of_reach, an_atomic_that_is_not_aligned_fails, a_receive_that_is_too_small_fails,
        no_receive_for_too_long_fails, a_peer_that_is_gone_fails, a_failed_queue_pair_flushes_what_comes_later;
    limits: a_full_queue_hands_the_lease_back, the_completion_queue_must_have_room, credit_comes_back,
        lengths_are_checked_when_posting, leases_stay_in_their_domain, completion_queues_stay_on_their_device,
        options_are_checked, families_do_not_mix;
    memory: pools_lend_and_take_back, windows_are_copied_and_bounded, revoked_memory_can_be_exposed_again;
    teardown: destroying_hands_out_what_is_in_flight, dropping_gives_leases_back,
        what_completed_and_was_not_polled_comes_back_once, forgetting_leaks_and_nothing_else, any_order_will_do,
        a_sink_may_destroy_its_queue_pair, a_sink_that_panics_loses_nothing, queues_take_each_others_places;
}
