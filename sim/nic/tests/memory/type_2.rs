//! Windows of type 2, and what is the same for both.

use super::*;

#[test]
fn a_window_of_type_2_is_bound_used_and_invalidated_by_work_requests() {
    let [a, b] = pair();
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let rkey = inc_rkey(mw.rkey());
    assert_eq!(rkey >> 8, mw.rkey() >> 8);
    post(&b.qp, 1, SendOp::BindMw(b.bind(&mw, rkey)), &[]).unwrap();
    let bound = b.completions(1)[0];
    assert_eq!((bound.status, bound.opcode), (WcStatus::Success, WcOpcode::BindMw));
    a.block.write(0, &[6; 64]).unwrap();
    assert_eq!(a.does(write(4096, rkey), &[a.sge(0, 64)]), WcStatus::Success);
    assert_eq!(b.bytes(4096, 65)[63..], [6, 0]);
    post(&b.qp, 2, SendOp::LocalInvalidate(rkey), &[]).unwrap();
    let invalid = b.completions(1)[0];
    assert_eq!((invalid.wr_id, invalid.status, invalid.opcode), (2, WcStatus::Success, WcOpcode::LocalInv));
    assert_eq!(mw.query().unwrap().bound, None);
    let again = inc_rkey(rkey);
    assert_eq!(b.does(SendOp::BindMw(b.bind(&mw, again)), &[]), WcStatus::Success);
    assert_eq!(a.does(read(4096, again), &[a.sge(0, 64)]), WcStatus::Success);
    assert_eq!(a.does(write(4096, rkey), &[a.sge(0, 64)]), WcStatus::RemAccessErr, "the old key");
}

#[test]
fn a_bind_and_the_send_that_tells_of_it_may_be_posted_together() {
    let [a, b] = pair();
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let rkey = inc_rkey(mw.rkey());
    a.qp.post_recv(&[RecvWr { wr_id: 9, sges: &[a.sge(0, 8)] }]).unwrap();
    let wr = |wr_id, op, inline| SendWr { inline, ..SendWr::new(wr_id, op, &[]) };
    let told = rkey.to_ne_bytes();
    let (bind, send) = (SendOp::BindMw(b.bind(&mw, rkey)), SendOp::Send);
    b.qp.post_send(&[wr(1, bind, None), wr(2, send, Some(&told))]).unwrap();
    assert_eq!(a.ends(1), [(9, WcStatus::Success)]);
    let heard = u32::from_ne_bytes(a.bytes(0, 4).try_into().unwrap());
    assert_eq!(a.does(write(4096, heard), &[a.sge(0, 64)]), WcStatus::Success);
    assert_eq!(b.ends(2), [(1, WcStatus::Success), (2, WcStatus::Success)]);
}

#[test]
fn a_window_of_type_2_is_for_one_queue_pair() {
    let [a, b] = pair();
    let qps = another([&a, &b]);
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let rkey = inc_rkey(mw.rkey());
    assert_eq!(b.does(SendOp::BindMw(b.bind(&mw, rkey)), &[]), WcStatus::Success);
    assert_eq!(mw.query().unwrap().bound.and_then(|bound| bound.qpn), Some(b.qp.qpn()));
    assert_eq!(a.does(read(4096, rkey), &[a.sge(0, 64)]), WcStatus::Success);
    assert_eq!(a.does_by(&qps[0], read(4096, rkey), &[a.sge(0, 64)]), WcStatus::RemAccessErr);
    // The other one cannot invalidate it either, nor bind it while it is bound.
    let more = another([&a, &b]);
    assert_eq!(b.does_by(&more[1], SendOp::LocalInvalidate(rkey), &[]), WcStatus::LocQpOpErr);
    let more = another([&a, &b]);
    let bind = SendOp::BindMw(b.bind(&mw, inc_rkey(rkey)));
    assert_eq!(b.does_by(&more[1], bind, &[]), WcStatus::MwBindErr);
    assert_eq!(a.does(read(4096, rkey), &[a.sge(0, 64)]), WcStatus::Success, "it is as it was");
    // With its queue pair it goes.
    let Side { qp, .. } = &b;
    qp.to_reset();
    assert_eq!(mw.query().unwrap().bound, None);
}

#[test]
fn the_windows_of_a_queue_pair_that_is_destroyed_are_invalid() {
    let [a, b] = pair();
    let [_, own] = another([&a, &b]);
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let bind = SendOp::BindMw(b.bind(&mw, inc_rkey(mw.rkey())));
    assert_eq!(b.does_by(&own, bind, &[]), WcStatus::Success);
    assert_eq!(b.mr.query().unwrap().windows, 1);
    drop(own);
    assert_eq!((b.mr.query().unwrap().windows, mw.query().unwrap().bound), (0, None));
}

#[test]
fn what_is_not_a_valid_window_of_type_2_cannot_be_invalidated() {
    for case in 0..4 {
        let [_a, b] = pair();
        let one = b.pd.alloc_mw(WindowType::One).unwrap();
        let two = b.pd.alloc_mw(WindowType::Two).unwrap();
        let (rkey, status) = b.bind_1(&one, b.bind_wr());
        assert_eq!(status, WcStatus::Success);
        let key = [b.mr.key(), rkey, two.rkey(), 0][case];
        post(&b.qp, 1, SendOp::LocalInvalidate(key), &[]).unwrap();
        post(&b.qp, 2, SendOp::Send, &[]).unwrap();
        assert_eq!(b.ends(2), [(1, WcStatus::LocQpOpErr), (2, WcStatus::WrFlushErr)], "case {case}");
        assert!(b.mr.query().is_ok() && one.query().unwrap().bound.is_some());
    }
}

#[test]
fn a_window_of_type_2_is_not_bound_twice_or_with_a_key_that_is_not_its_own() {
    let change: [fn(&Mw, MwBind) -> MwBind; 4] = [
        |mw, bind| MwBind { rkey: mw.rkey() + 0x100, ..bind },
        |_, bind| MwBind { len: 0, ..bind },
        |_, bind| MwBind { rkey: 0, ..bind },
        |_, bind| MwBind { region: bind.rkey, ..bind },
    ];
    for change in change {
        let [_a, b] = pair();
        let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
        let bind = change(&mw, b.bind(&mw, inc_rkey(mw.rkey())));
        assert_eq!(b.does(SendOp::BindMw(bind), &[]), WcStatus::MwBindErr, "{bind:?}");
        assert_eq!(mw.query().unwrap().bound, None);
    }
    let [_a, b] = pair();
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let rkey = inc_rkey(mw.rkey());
    assert_eq!(b.does(SendOp::BindMw(b.bind(&mw, rkey)), &[]), WcStatus::Success);
    assert_eq!(b.does(SendOp::BindMw(b.bind(&mw, inc_rkey(rkey))), &[]), WcStatus::MwBindErr);
}

#[test]
fn a_zero_based_window_starts_at_zero() {
    let [a, b] = pair();
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let rkey = inc_rkey(mw.rkey());
    let bind = MwBind { access: READ | WRITE | Access::ZERO_BASED, ..b.bind(&mw, rkey) };
    assert_eq!(b.does(SendOp::BindMw(bind), &[]), WcStatus::Success);
    a.block.write(0, b"zero").unwrap();
    assert_eq!(a.does(write(60, rkey), &[a.sge(0, 4)]), WcStatus::Success);
    assert_eq!(b.bytes(4156, 4), b"zero");
    assert_eq!(a.does(write(61, rkey), &[a.sge(0, 4)]), WcStatus::RemAccessErr);
}

#[test]
fn the_key_of_a_window_is_of_no_use_to_its_own_side() {
    let [a, b] = pair();
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let rkey = inc_rkey(mw.rkey());
    assert_eq!(b.does(SendOp::BindMw(b.bind(&mw, rkey)), &[]), WcStatus::Success);
    let through = Sge { addr: 4096, len: 8, key: rkey };
    assert_eq!(b.does(write(0, a.mr.key()), &[through]), WcStatus::LocProtErr);
}

#[test]
fn a_send_invalidates_a_window_of_its_queue_pair() {
    let [a, b] = pair();
    let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
    let rkey = inc_rkey(mw.rkey());
    assert_eq!(b.does(SendOp::BindMw(b.bind(&mw, rkey)), &[]), WcStatus::Success);
    b.qp.post_recv(&[RecvWr { wr_id: 5, sges: &[b.sge(0, 8)] }]).unwrap();
    // The last WRITE through it arrives before it is invalid.
    post(&a.qp, 1, write(4096, rkey), &[a.sge(0, 64)]).unwrap();
    post(&a.qp, 2, SendOp::SendInvalidate(rkey), &[a.sge(0, 8)]).unwrap();
    assert_eq!(a.ends(2), [(1, WcStatus::Success), (2, WcStatus::Success)]);
    let received = b.completions(1)[0];
    assert_eq!((received.wr_id, received.status), (5, WcStatus::Success));
    assert_eq!((received.invalidated, received.imm), (Some(rkey), None));
    assert_eq!(mw.query().unwrap().bound, None);
    assert!(b.mr.query().is_ok_and(|region| region.windows == 0));
    assert_eq!(b.does(SendOp::BindMw(b.bind(&mw, inc_rkey(rkey))), &[]), WcStatus::Success);
    assert_eq!(a.does(write(4096, rkey), &[a.sge(0, 64)]), WcStatus::RemAccessErr);
}

#[test]
fn a_send_invalidates_nothing_else() {
    for case in 0..3 {
        let [a, b] = pair();
        let [_, other] = another([&a, &b]);
        let one = b.pd.alloc_mw(WindowType::One).unwrap();
        let (first, _) = b.bind_1(&one, b.bind_wr());
        let two = b.pd.alloc_mw(WindowType::Two).unwrap();
        let second = inc_rkey(two.rkey());
        // It is tied to the other queue pair.
        assert_eq!(b.does_by(&other, SendOp::BindMw(b.bind(&two, second)), &[]), WcStatus::Success);
        b.qp.post_recv(&[RecvWr { wr_id: 5, sges: &[b.sge(0, 8)] }]).unwrap();
        let key = [b.mr.key(), first, second][case];
        assert_eq!(
            a.does(SendOp::SendInvalidate(key), &[a.sge(0, 8)]),
            WcStatus::RemAccessErr,
            "case {case}"
        );
        assert_eq!(b.completions(1)[0].wr_id, 5);
        assert_eq!(b.mr.query().unwrap().windows, 2, "case {case}");
    }
}

#[test]
fn what_is_no_bind_is_refused_when_it_is_posted() {
    let [_a, b] = pair();
    let [one, two] = [WindowType::One, WindowType::Two].map(|kind| b.pd.alloc_mw(kind).unwrap());
    let reason = |result: Result<(), PostError>| result.unwrap_err().reason;
    let bind = SendOp::BindMw(b.bind(&two, inc_rkey(two.rkey())));
    assert_eq!(reason(post(&b.qp, 1, bind, &[b.sge(0, 0)])), PostReason::BadLength);
    assert_eq!(reason(post(&b.qp, 1, SendOp::LocalInvalidate(1), &[b.sge(0, 8)])), PostReason::BadLength);
    let by_request = SendOp::BindMw(b.bind(&one, inc_rkey(one.rkey())));
    assert_eq!(reason(post(&b.qp, 1, by_request, &[])), PostReason::BadWindow);
    assert_eq!(b.qp.bind_mw(&two, &b.bind_wr()).unwrap_err().reason, PostReason::BadWindow);
    let before = one.rkey();
    let reset = create_qp(&b.pd, &b.cq);
    assert_eq!(reset.bind_mw(&one, &b.bind_wr()).unwrap_err().reason, PostReason::BadState);
    assert_eq!(one.rkey(), before, "what was not posted changes no key");
    b.qp.to_error().unwrap();
    b.qp.bind_mw(&one, &b.bind_wr()).unwrap();
    assert_eq!(b.ends(1), [(33, WcStatus::WrFlushErr)]);
    assert_eq!(one.query().unwrap().bound, None);
}

#[test]
fn inc_rkey_counts_the_low_byte_only() {
    assert_eq!([0x1234_5600, 0x1234_56ff, u32::MAX].map(inc_rkey), [0x1234_5601, 0x1234_5600, 0xffff_ff00]);
}

/// Whatever was under way when the key was invalidated changes nothing once that has completed.
#[test]
fn nothing_is_written_through_a_window_that_is_invalid() {
    for round in 0..10u8 {
        let [a, b] = pair();
        let mw = b.pd.alloc_mw(WindowType::Two).unwrap();
        let rkey = inc_rkey(mw.rkey());
        let bind = MwBind { addr: 0, len: LEN as u64, ..b.bind(&mw, rkey) };
        assert_eq!(b.does(SendOp::BindMw(bind), &[]), WcStatus::Success);
        a.block.write(0, &[round + 1; LEN]).unwrap();
        for wr_id in 0..8 {
            post(&a.qp, wr_id, write(0, rkey), &[a.sge(0, LEN as u32)]).unwrap();
        }
        assert_eq!(b.does(SendOp::LocalInvalidate(rkey), &[]), WcStatus::Success);
        b.block.write(0, &[0; LEN]).unwrap();
        let ends = a.ends(8);
        assert!(b.bytes(0, LEN).iter().all(|byte| *byte == 0), "round {round}: {ends:?}");
        let done = ends.iter().take_while(|end| end.1 == WcStatus::Success).count();
        assert!(ends[done..].iter().all(|end| end.1 != WcStatus::Success), "{ends:?}");
    }
}
