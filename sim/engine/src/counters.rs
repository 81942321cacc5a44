//! What happened, counted under the names that rxe and mlx5 use.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Events counted since the device was opened.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Datagrams sent.
    sent_pkts,
    /// Datagrams lost on their way out: larger than the path to their destination carries.
    tx_too_large,
    /// Datagrams received that passed all checks below the transport.
    rcvd_pkts,
    /// Requests that had been executed before.
    duplicate_request,
    /// Requests that came too early: one before them is missing.
    out_of_seq_request,
    /// RNR NAKs received.
    rcvd_rnr_err,
    /// RNR NAKs sent.
    send_rnr_err,
    /// Sequence error NAKs received.
    rcvd_seq_err,
    /// Packets received in which a peer says what it misses.
    rcvd_missing,
    /// Times that the requester went back to an earlier packet, or sent one again by itself.
    completer_retry_err,
    /// Work requests that failed since the peer did not answer.
    retry_exceeded_err,
    /// Work requests that failed since the peer had no receive work request.
    retry_rnr_exceeded_err,
    /// Timeouts of the requester.
    local_ack_timeout_err,
    /// Early requests that were kept until those before them had come.
    rx_kept_early,
    /// Messages that did not fit into the receive work request.
    resp_local_length_error,
    /// Requests that were malformed, out of place, or not allowed on their queue pair.
    resp_remote_invalid_requests,
    /// Requests that touched memory that they may not touch.
    resp_remote_access_errors,
    /// NAKs received that end the queue pair.
    req_remote_errors,
    /// Responses that came while one before them was missing.
    implied_nak_seq_err,
    /// Send work requests that ended with an error of their own, among them those whose response was not
    /// what they had asked for.
    req_cqe_error,
    /// Receive work requests that ended with an error of their own.
    resp_cqe_error,
    /// Responses that nobody asked for, or that came again.
    unexpected_response,
    /// Datagrams dropped: not a RoCEv2 packet.
    rx_malformed,
    /// Datagrams dropped: the invariant CRC is wrong.
    rx_icrc_encapsulated,
    /// Datagrams dropped: the invariant CRC is right only for an IP identification that was not seen and
    /// that their sender has not shown to use.
    rx_icrc_unproven_id,
    /// Datagrams dropped: no such queue pair.
    rx_unknown_qp,
    /// Datagrams dropped: not from the address that the queue pair is connected to.
    rx_wrong_source,
    /// Packets dropped: the queue pair is of another type, or does not know the operation.
    rx_wrong_service,
    /// Packets dropped: in a state, or a direction, that does not receive them.
    rx_out_of_state,
    /// Packets dropped: of another partition.
    bad_pkey_cntr,
    /// Datagrams (UD) dropped: the Q_Key is wrong.
    qkey_viol_cntr,
    /// Messages of unreliable queue pairs dropped: no receive work request was posted.
    out_of_buffer,
    /// Data packets received that the network had marked (ECN).
    np_ecn_marked_roce_packets,
    /// Congestion notification packets sent.
    np_cnp_sent,
    /// Congestion notification packets received and obeyed.
    rp_cnp_handled,
    /// Congestion notification packets received by a queue pair that does not obey them.
    rp_cnp_ignored,
}
