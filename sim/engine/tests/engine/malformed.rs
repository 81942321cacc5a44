//! Packets that contradict themselves or what was asked for: each ends in a counter, and in nothing else
//! than the specification says.

use crate::pair::{Pair, RKEY, pattern};
use anyverbs_engine::*;
use anyverbs_wire::*;

const MTU: usize = 256;

/// A datagram for one side of a pair whose PSNs start at 0.
fn datagram(service: Service, operation: Operation, psn: u32, ext: Ext, payload: usize) -> Vec<u8> {
    let bth = Bth::new(Opcode::new(service, operation), Qpn::new(0), Psn::new(psn));
    let repr = Repr::new(Bth { pad: pad(payload), ..bth }, ext);
    let mut bytes = vec![0; repr.datagram_len(payload)];
    repr.emit(&mut bytes);
    bytes
}

fn response(operation: Operation, psn: u32, syndrome: Option<Syndrome>, payload: usize) -> Vec<u8> {
    let ext = syndrome.map_or(Ext::None, |syndrome| Ext::Aeth(Aeth { syndrome, msn: 1 }));
    datagram(Service::Rc, operation, psn, ext, payload)
}

/// Side 0 with one work request on the wire, which side 1 has not seen.
fn asked(op: Op, len: usize) -> Pair {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = Some(Box::new(|_, _| true));
    pair.post(0, op, pattern(1, len));
    pair.with_context(0, |qp, cx| qp.transmit(cx));
    pair
}

#[test]
fn a_response_with_a_negative_acknowledgement_is_a_bad_one() {
    for syndrome in [0x20, 0x40, 0x60, 0x62, 0xff].map(Syndrome::from_u8) {
        let mut pair = asked(Op::Read { va: 0, rkey: RKEY }, 100);
        pair.deliver(0, &response(Operation::ReadResponseOnly, 0, Some(syndrome), 100));
        assert_eq!(pair.completed(0, Queue::Send), [(0, Status::BadResponse)], "{syndrome}");
        assert_eq!(pair.sides[0].memory.sends[&0], pattern(1, 100), "{syndrome}: nothing was placed");
        assert_eq!(pair.sides[0].counters.req_cqe_error, 1);

        let mut pair = asked(Op::FetchAdd { va: 0, rkey: RKEY, add: 1 }, 8);
        let ext = Ext::AtomicAck(Aeth { syndrome, msn: 1 }, 5);
        pair.deliver(0, &datagram(Service::Rc, Operation::AtomicAcknowledge, 0, ext, 0));
        assert_eq!(pair.completed(0, Queue::Send), [(0, Status::BadResponse)], "{syndrome}");
        assert_eq!(pair.sides[0].memory.sends[&0], pattern(1, 8), "{syndrome}: nothing was placed");
    }
}

#[test]
fn a_response_that_goes_on_where_its_request_ends_is_a_bad_one() {
    use Operation as O;
    let ack = Some(Syndrome::ACK);
    let flush = Op::Flush {
        va: 0,
        rkey: RKEY,
        feth: Feth { placement: Feth::GLOBAL, selectivity: Selectivity::Range },
    };
    let read = Op::Read { va: 0, rkey: RKEY };
    for (op, len, operation, syndrome, payload) in [
        (read, MTU, O::ReadResponseFirst, ack, MTU),
        (read, MTU, O::ReadResponseMiddle, None, MTU),
        (read, MTU, O::ReadResponseLast, ack, MTU),
        (read, 0, O::ReadResponseMiddle, None, 0),
        (flush, 8, O::ReadResponseMiddle, None, 0),
        (flush, 8, O::ReadResponseLast, ack, 0),
        (Op::AtomicWrite { va: 0, rkey: RKEY }, 8, O::ReadResponseFirst, ack, 0),
    ] {
        let mut pair = asked(op, len);
        pair.deliver(0, &response(operation, 0, syndrome, payload));
        assert_eq!(pair.completed(0, Queue::Send), [(0, Status::BadResponse)], "{operation} to {op:?}");
        assert_eq!(pair.sides[0].qp.state(), QpState::Error);
        assert_eq!(pair.sides[0].counters.req_cqe_error, 1, "{operation} to {op:?}");
    }
}

#[test]
fn an_acknowledgement_that_comes_again_is_counted() {
    let mut pair = asked(Op::Read { va: 0, rkey: RKEY }, 3 * MTU);
    let ack = response(Operation::Acknowledge, 1, Some(Syndrome::ACK), 0);
    pair.deliver(0, &ack);
    assert_eq!(pair.sides[0].counters.unexpected_response, 0, "it says that the READ was executed");
    pair.deliver(0, &ack);
    assert_eq!(pair.sides[0].counters.unexpected_response, 1);
    assert_eq!(pair.completed(0, Queue::Send), [], "its responses are missing");
}

#[test]
fn a_response_behind_one_that_is_missing_is_an_implied_nak() {
    let ack = Some(Syndrome::ACK);
    for recovery in [Recovery::Selective, Recovery::GoBackN] {
        let mut pair = Pair::with(0, 1, Config { recovery, ..Config::default() }, 4);
        pair.drop_if = Some(Box::new(|_, _| true));
        pair.post(0, Op::Read { va: 0, rkey: RKEY }, pattern(1, 3 * MTU));
        pair.with_context(0, |qp, cx| qp.transmit(cx));
        pair.deliver(0, &response(Operation::ReadResponseFirst, 0, ack, MTU));
        assert_eq!(pair.sides[0].counters.implied_nak_seq_err, 0);
        pair.deliver(0, &response(Operation::ReadResponseLast, 2, ack, MTU));
        assert_eq!(pair.sides[0].counters.implied_nak_seq_err, 1, "{recovery:?}");
        pair.deliver(0, &response(Operation::ReadResponseMiddle, 1, None, MTU));
        if recovery == Recovery::GoBackN {
            assert_eq!(pair.completed(0, Queue::Send), [], "it was dropped");
            pair.deliver(0, &response(Operation::ReadResponseLast, 2, ack, MTU));
        }
        assert_eq!(pair.completed(0, Queue::Send), [(0, Status::Success)], "{recovery:?}");
    }
}

#[test]
fn the_rest_of_a_message_without_a_beginning_is_counted() {
    let config = Config { qp_type: QpType::Uc, ..Config::default() };
    let mut pair = Pair::with(0, 1, config, 0);
    pair.post_receive(0, 1000);
    for (psn, operation) in [(0, Operation::SendMiddle), (1, Operation::SendLast)] {
        pair.deliver(1, &datagram(Service::Uc, operation, psn, Ext::None, MTU));
        assert_eq!(pair.sides[1].counters.out_of_seq_request, u64::from(psn) + 1, "even in order");
    }
    pair.deliver(1, &datagram(Service::Uc, Operation::SendLast, 9, Ext::None, MTU));
    assert_eq!(pair.sides[1].counters.out_of_seq_request, 3, "once for two reasons");
    pair.deliver(1, &datagram(Service::Uc, Operation::SendOnly, 10, Ext::None, MTU));
    assert_eq!(pair.completed(1, Queue::Receive), [(0, Status::Success)]);
    assert_eq!(pair.sides[1].counters.out_of_seq_request, 3);
}

#[test]
fn memory_that_goes_before_a_read_is_answered_is_an_access_error() {
    let mut pair = Pair::new(0, 1);
    let reth = Reth { va: 0, rkey: RKEY, len: 100 };
    pair.deliver(1, &datagram(Service::Rc, Operation::ReadRequest, 0, Ext::Reth(reth), 0));
    pair.sides[1].memory.revoked = true;
    pair.with_context(1, |qp, cx| qp.transmit(cx));
    assert_eq!(pair.sides[1].qp.state(), QpState::Error);
    assert_eq!(pair.sides[1].events, [Event::AccessError]);
    assert_eq!(pair.sides[1].counters.resp_remote_access_errors, 1);
}

#[test]
fn work_requests_that_end_with_an_error_of_their_own_are_counted() {
    let mut pair = Pair::new(0, 1);
    pair.post_receive(0, 10);
    pair.post_receive(1, 10);
    pair.post(0, Op::Send { imm: None }, pattern(1, 20));
    pair.post(1, Op::Send { imm: None }, pattern(1, 1));
    pair.drive();
    let counted =
        |side: usize| (pair.sides[side].counters.req_cqe_error, pair.sides[side].counters.resp_cqe_error);
    assert_eq!((counted(0), counted(1)), ((1, 0), (0, 1)), "what was flushed does not count");
}
