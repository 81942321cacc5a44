//! Windows of type 1.

use super::*;

impl Side {
    pub(crate) fn bind_1(&self, mw: &Mw, wr: BindWr) -> (u32, WcStatus) {
        let rkey = self.qp.bind_mw(mw, &wr).unwrap();
        assert_eq!(mw.rkey(), rkey, "at once");
        let [cqe] = self.completions(1)[..] else { panic!("one completion") };
        assert_eq!((cqe.wr_id, cqe.opcode, cqe.qpn), (wr.wr_id, WcOpcode::BindMw, self.qp.qpn()));
        (rkey, cqe.status)
    }

    pub(crate) fn bind_wr(&self) -> BindWr {
        let (region, access) = (self.mr.key(), READ | WRITE);
        BindWr { wr_id: 33, region, addr: 4096, len: 64, access, signaled: true, fence: false }
    }
}

#[test]
fn a_window_of_type_1_is_for_all_queue_pairs_of_its_domain() {
    let [a, b] = pair();
    let qps = another([&a, &b]);
    a.block.write(0, b"through the window").unwrap();
    let mw = b.pd.alloc_mw(WindowType::One).unwrap();
    let unbound = mw.rkey();
    let (rkey, status) = b.bind_1(&mw, b.bind_wr());
    assert_eq!(status, WcStatus::Success);
    assert_ne!(rkey, unbound);
    assert_eq!(mw.query().unwrap().bound.map(|bound| (bound.region, bound.qpn)), Some((b.mr.key(), None)));
    for (qp, at) in [(&a.qp, 4096), (&qps[0], 4106)] {
        assert_eq!(a.does_by(qp, write(at, rkey), &[a.sge(0, 18)]), WcStatus::Success);
        assert_eq!(b.bytes(at as usize, 18), b"through the window");
        assert_eq!(a.does_by(qp, read(4096, rkey), &[a.sge(100, 64)]), WcStatus::Success);
    }
    // Bound anew: the old key is of no use, and the new one is, here by the other queue pair.
    let (moved, status) = b.bind_1(&mw, BindWr { addr: 8192, access: READ, ..b.bind_wr() });
    assert_eq!(status, WcStatus::Success);
    assert_eq!(a.does_by(&qps[0], read(8192, moved), &[a.sge(0, 64)]), WcStatus::Success);
    assert_eq!(a.does_by(&qps[0], read(4096, rkey), &[a.sge(0, 64)]), WcStatus::RemAccessErr);
    assert_eq!(a.does(write(8192, moved), &[a.sge(0, 1)]), WcStatus::RemAccessErr, "read only");
}

#[test]
fn a_window_of_type_1_of_no_bytes_is_unbound() {
    let [a, mut b] = pair();
    let mw = b.pd.alloc_mw(WindowType::One).unwrap();
    b.bind_1(&mw, b.bind_wr());
    let refused = b.mr.rereg(MrChange { access: Some(ALL), ..MrChange::default() }).unwrap_err();
    assert!(matches!(refused, NicError::InUse { users: 1, .. }), "{refused}");
    let in_use = b.mr.deregister().unwrap_err();
    assert_eq!(in_use.windows, 1);
    b.mr = in_use.mr;
    let (rkey, status) = b.bind_1(&mw, BindWr { len: 0, ..b.bind_wr() });
    assert_eq!((status, mw.query().unwrap().bound), (WcStatus::Success, None));
    assert_eq!(a.does(read(4096, rkey), &[a.sge(0, 1)]), WcStatus::RemAccessErr);
    b.mr.deregister().unwrap();
    assert_eq!((b.nic.usage().mr, Arc::strong_count(&b.block)), (0, 1));
}

#[test]
fn what_may_not_be_bound_ends_the_queue_pair_and_leaves_the_window() {
    let bad: [fn(BindWr) -> BindWr; 6] = [
        |wr| BindWr { region: wr.region ^ 1, ..wr },
        |wr| BindWr { addr: 4095, len: LEN as u64, ..wr },
        |wr| BindWr { addr: u64::MAX, ..wr },
        |wr| BindWr { len: u64::MAX, ..wr },
        |wr| BindWr { access: READ | Access::ZERO_BASED, ..wr },
        |wr| BindWr { len: 1 << 40, ..wr },
    ];
    for (nth, change) in bad.into_iter().enumerate() {
        let [a, b] = pair();
        let qps = another([&a, &b]);
        let mw = b.pd.alloc_mw(WindowType::One).unwrap();
        let (good, _) = b.bind_1(&mw, b.bind_wr());
        let before = mw.query().unwrap();
        b.qp.bind_mw(&mw, &change(b.bind_wr())).unwrap();
        post(&b.qp, 2, write(0, a.mr.key()), &[b.sge(0, 8)]).unwrap();
        assert_eq!(b.ends(2), [(33, WcStatus::MwBindErr), (2, WcStatus::WrFlushErr)], "case {nth}");
        assert_eq!(b.qp.state(), QpState::Error);
        assert_eq!(mw.query().unwrap(), before);
        // Bound as it was, for whoever still has a queue pair.
        assert_eq!(a.does_by(&qps[0], read(4096, good), &[a.sge(0, 8)]), WcStatus::Success);
    }
}

#[test]
fn regions_and_domains_have_to_allow_a_window() {
    for (access, wanted, expected) in [
        (ALL - Access::MW_BIND, READ, WcStatus::MwBindErr),
        (Access::MW_BIND, WRITE, WcStatus::MwBindErr),
        (Access::MW_BIND, Access::REMOTE_ATOMIC, WcStatus::MwBindErr),
        (Access::MW_BIND, READ, WcStatus::Success),
        (Access::MW_BIND | Access::LOCAL_WRITE, WRITE | Access::REMOTE_ATOMIC, WcStatus::Success),
    ] {
        let [_a, b] = pair();
        let mw = b.pd.alloc_mw(WindowType::One).unwrap();
        let mr = b.pd.register_iova(Arc::clone(&b.block), 0..8192, 0, access).unwrap();
        let wr = BindWr { region: mr.key(), access: wanted, ..b.bind_wr() };
        assert_eq!(b.bind_1(&mw, wr).1, expected, "{access:?} {wanted:?}");
    }
    let [_a, b] = pair();
    let other = b.nic.alloc_pd().unwrap();
    let foreign = other.alloc_mw(WindowType::One).unwrap();
    assert_eq!(b.bind_1(&foreign, b.bind_wr()).1, WcStatus::MwBindErr, "a window of another domain");
    let [_c, d] = pair();
    let mw = d.pd.alloc_mw(WindowType::One).unwrap();
    let elsewhere = d.nic.alloc_pd().unwrap();
    let mr = elsewhere.register(Arc::clone(&d.block), 0..8192, ALL).unwrap();
    let wr = BindWr { region: mr.key(), ..d.bind_wr() };
    assert_eq!(d.bind_1(&mw, wr).1, WcStatus::MwBindErr, "a region of another domain");
}

#[test]
fn a_window_does_not_outlive_its_objects() {
    let [a, b] = pair();
    let qps = another([&a, &b]);
    let mw = b.pd.alloc_mw(WindowType::One).unwrap();
    let (rkey, _) = b.bind_1(&mw, b.bind_wr());
    assert_eq!(a.does(read(4096, rkey), &[a.sge(0, 8)]), WcStatus::Success);
    drop(mw);
    assert_eq!(b.mr.query().unwrap().windows, 0);
    assert_eq!(a.does(read(4096, rkey), &[a.sge(0, 8)]), WcStatus::RemAccessErr);
    // A region that is dropped cannot refuse: the window is taken off.
    let mw = b.pd.alloc_mw(WindowType::One).unwrap();
    let rkey = qps[1].bind_mw(&mw, &b.bind_wr()).unwrap();
    assert_eq!(b.ends(1), [(33, WcStatus::Success)]);
    let Side { mr, block, .. } = b;
    drop(mr);
    assert_eq!((mw.query().unwrap().bound, Arc::strong_count(&block)), (None, 1));
    assert_eq!(a.does_by(&qps[0], read(4096, rkey), &[a.sge(0, 8)]), WcStatus::RemAccessErr);
}

#[test]
fn a_bind_that_outlives_its_window_binds_nothing() {
    let [a, b] = pair();
    let old = b.pd.alloc_mw(WindowType::Two).unwrap();
    let bind = b.bind(&old, inc_rkey(old.rkey()));
    drop(old);
    let other = b.pd.alloc_mw(WindowType::Two).unwrap();
    assert_eq!(b.does(SendOp::BindMw(bind), &[]), WcStatus::MwBindErr);
    assert_eq!(other.query().unwrap().bound, None);
    // Nor can a window of one device be bound on another.
    let own = a.pd.alloc_mw(WindowType::Two).unwrap();
    let [_c, d] = pair();
    let foreign = d.pd.alloc_mw(WindowType::Two).unwrap();
    let bind = MwBind { mw: foreign.handle(), ..a.bind(&own, inc_rkey(own.rkey())) };
    drop(b);
    assert_eq!(a.does(SendOp::BindMw(bind), &[]), WcStatus::MwBindErr);
    assert_eq!(own.query().unwrap().bound, None);
}
