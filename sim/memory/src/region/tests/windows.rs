//! Memory windows of both types, rule by rule.

use super::*;

const PD: u32 = 1;
const QPN: u32 = 77;
const READ: Access = Access::REMOTE_READ;
const WRITE: Access = Access::REMOTE_WRITE;
const REGION: u32 = key(1);
const WINDOW: u32 = key(2);

struct World {
    table: RegionTable,
    block: Arc<Block>,
    window: WindowId,
}

/// A region of 100 bytes at 1000, and a window that is not bound.
fn world(kind: WindowType) -> World {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(4, 4).unwrap();
    table.register(REGION, PD, ALL, 1000, memory(&block, 0..100)).unwrap();
    let window = table.alloc_window(WINDOW, PD, kind).unwrap();
    World { table, block, window }
}

/// Another key that the window may have.
fn next_key(kind: WindowType) -> u32 {
    match kind {
        // Another index in the same place of sixteen.
        WindowType::One => key(2 + 16),
        WindowType::Two => WINDOW + 1,
    }
}

impl World {
    /// Ten bytes from 1020 on, to read and to write.
    fn usual(&self, kind: WindowType) -> Bind {
        let (window, key) = (self.window, next_key(kind));
        Bind { window, key, region: REGION, addr: 1020, len: 10, access: READ | WRITE }
    }

    fn bind(&mut self, bind: Bind) -> Result<(), BindError> {
        self.table.bind(&bind, PD, QPN)
    }

    fn peer(&self, key: u32, qpn: u32, va: u64, len: u32, need: Access) -> Result<Span, AccessError> {
        self.table.check_remote(key, PD, qpn, va, len, need)
    }
}

const TYPES: [WindowType; 2] = [WindowType::One, WindowType::Two];

#[test]
fn a_bound_window_is_a_part_of_its_region() {
    for kind in TYPES {
        let mut world = world(kind);
        assert_eq!(world.peer(WINDOW, QPN, 1020, 1, READ), Err(AccessError::UnknownKey), "not bound yet");
        let bind = world.usual(kind);
        world.bind(bind).unwrap();
        let span = world.peer(bind.key, QPN, 1020, 10, WRITE).unwrap();
        world.table.copy_in(span, b"windowpane").unwrap();
        let mut out = [0; 12];
        world.block.read(19, &mut out).unwrap();
        assert_eq!(&out, b"\0windowpane\0");
        for (va, len) in [(1019, 1), (1020, 11), (1030, 1), (0, 1), (u64::MAX, 2)] {
            assert_eq!(world.peer(bind.key, QPN, va, len, READ), Err(AccessError::OutOfBounds), "{va} {len}");
        }
        assert_eq!(
            world.peer(WINDOW, QPN, 1020, 1, READ),
            Err(AccessError::UnknownKey),
            "the key has changed"
        );
        assert_eq!(
            world.table.check_remote(bind.key, PD + 1, QPN, 1020, 1, READ),
            Err(AccessError::WrongDomain)
        );
        assert_eq!(world.table.region(REGION).unwrap().windows, 1);
    }
}

#[test]
fn a_window_has_rights_of_its_own() {
    for kind in TYPES {
        let mut world = world(kind);
        // The region itself grants peers nothing.
        let access = Some(Access::LOCAL_WRITE | Access::MW_BIND);
        world.table.reregister(REGION, Change { access, ..Change::default() }).unwrap();
        let bind = Bind { access: READ, ..world.usual(kind) };
        world.bind(bind).unwrap();
        assert_eq!(world.peer(REGION, QPN, 1020, 1, READ), Err(AccessError::NotPermitted));
        let span = world.peer(bind.key, QPN, 1020, 1, READ).unwrap();
        assert_eq!(world.table.copy_in(span, &[1]), Err(SpanError::ReadOnly));
        for need in [WRITE, Access::REMOTE_ATOMIC, Access::FLUSH_GLOBAL] {
            assert_eq!(world.peer(bind.key, QPN, 1020, 1, need), Err(AccessError::NotPermitted));
        }
    }
}

#[test]
fn a_window_is_for_peers_only() {
    for kind in TYPES {
        let mut world = world(kind);
        let bind = Bind { access: ALL, ..world.usual(kind) };
        world.bind(bind).unwrap();
        let local = world.table.check(bind.key, PD, 1020, 1, Access::empty());
        assert_eq!(local, Err(AccessError::UnknownKey));
        let info = world.table.window(world.window).unwrap();
        assert!(!info.bound.unwrap().access.intersects(Access::LOCAL_WRITE | Access::MW_BIND));
    }
}

#[test]
fn only_type_2_is_tied_to_its_queue_pair() {
    for kind in TYPES {
        let mut world = world(kind);
        let bind = world.usual(kind);
        world.bind(bind).unwrap();
        let other = world.peer(bind.key, QPN + 1, 1020, 1, READ).map(Span::len);
        let expected = if kind == WindowType::One { Ok(1) } else { Err(AccessError::WrongQueuePair) };
        assert_eq!(other, expected);
    }
}

#[test]
fn what_may_not_be_bound_is_refused_and_changes_nothing() {
    for kind in TYPES {
        let mut world = world(kind);
        let bind = world.usual(kind);
        let plain = key(3);
        let block = Arc::clone(&world.block);
        world.table.register(plain, PD, ALL - Access::MW_BIND, 0, memory(&block, 0..8)).unwrap();
        let constant = key(4);
        world.table.register(constant, PD, Access::MW_BIND, 0, memory(&block, 0..8)).unwrap();
        world.table.register_null(key(5), PD).unwrap();
        let (zero, unknown) = (Bind { addr: 0, len: 8, ..bind }, WindowId { serial: 0, ..world.window });
        let cases = [
            (Bind { window: unknown, ..bind }, BindError::UnknownWindow),
            (Bind { window: WindowId { home: 99, ..world.window }, ..bind }, BindError::UnknownWindow),
            (Bind { key: bind.key + 0x100, ..bind }, BindError::WrongKey),
            (Bind { region: key(9), ..bind }, BindError::UnknownRegion),
            (Bind { region: REGION + 1, ..bind }, BindError::UnknownRegion),
            (Bind { region: WINDOW, ..bind }, BindError::UnknownRegion),
            (Bind { region: plain, ..zero }, BindError::NotPermitted),
            (Bind { region: key(5), ..zero }, BindError::NotPermitted),
            (Bind { region: constant, ..zero }, BindError::NotPermitted),
            (Bind { region: constant, access: Access::REMOTE_ATOMIC, ..zero }, BindError::NotPermitted),
            (Bind { addr: 999, ..bind }, BindError::OutOfBounds),
            (Bind { addr: 1091, ..bind }, BindError::OutOfBounds),
            (Bind { addr: u64::MAX, ..bind }, BindError::OutOfBounds),
            (Bind { len: 101, ..bind }, BindError::OutOfBounds),
            (Bind { len: u64::MAX, ..bind }, BindError::OutOfBounds),
        ];
        let before = world.table.window(world.window);
        for (bind, expected) in cases {
            assert_eq!(world.bind(bind), Err(expected), "{kind:?} {bind:?}");
            assert_eq!(world.table.window(world.window), before);
        }
        assert_eq!(world.table.bind(&bind, PD + 1, QPN), Err(BindError::WrongDomain));
        world.bind(Bind { region: constant, access: READ, ..zero }).unwrap();
    }
    // A region of another domain, for a window and a queue pair of one.
    let mut world = world(WindowType::Two);
    world.table.reregister(REGION, Change { pd: Some(2), ..Change::default() }).unwrap();
    assert_eq!(world.bind(world.usual(WindowType::Two)), Err(BindError::WrongDomain));
}

#[test]
fn type_1_moves_gets_another_key_and_is_unbound_by_no_bytes() {
    let mut world = world(WindowType::One);
    let first = world.usual(WindowType::One);
    world.bind(first).unwrap();
    let old = world.peer(first.key, QPN, 1020, 1, WRITE).unwrap();
    assert_eq!(world.bind(Bind { addr: 1000, ..first }), Err(BindError::WrongKey), "the same key again");
    assert!(world.peer(first.key, QPN, 1020, 1, WRITE).is_ok(), "and it stays bound");
    let zero = Bind { key: key(34), access: Access::ZERO_BASED, ..first };
    assert_eq!(world.bind(zero), Err(BindError::ZeroBased));
    let second = Bind { key: key(34), addr: 1050, ..first };
    world.bind(second).unwrap();
    assert_eq!(world.peer(first.key, QPN, 1020, 1, READ), Err(AccessError::UnknownKey));
    assert_eq!(world.table.copy_in(old, &[1]), Err(SpanError::Stale));
    assert!(world.peer(second.key, QPN, 1050, 10, WRITE).is_ok());
    assert_eq!(world.table.region(REGION).unwrap().windows, 1);
    assert_eq!(world.table.invalidate(second.key, PD, QPN), Err(AccessError::NotPermitted));
    world.bind(Bind { key: key(2), len: 0, region: 0, addr: 0, ..second }).unwrap();
    for key in [key(2), second.key] {
        assert_eq!(world.peer(key, QPN, 1050, 1, READ), Err(AccessError::UnknownKey));
    }
    assert_eq!(world.table.region(REGION).unwrap().windows, 0);
    let info = world.table.window(world.window).unwrap();
    assert_eq!((info.key, info.bound), (key(2), None));
}

#[test]
fn type_2_has_to_be_invalidated_before_it_is_bound_again() {
    let mut world = world(WindowType::Two);
    let bind = world.usual(WindowType::Two);
    assert_eq!(world.bind(Bind { len: 0, ..bind }), Err(BindError::NoBytes));
    world.bind(bind).unwrap();
    let span = world.peer(bind.key, QPN, 1020, 1, WRITE).unwrap();
    let again = Bind { key: bind.key + 1, ..bind };
    assert_eq!(world.bind(again), Err(BindError::AlreadyBound));
    let mut invalidate = |key, pd, qpn| world.table.invalidate(key, pd, qpn);
    assert_eq!(invalidate(WINDOW, PD, QPN), Err(AccessError::UnknownKey), "its key before");
    assert_eq!(invalidate(bind.key, PD + 1, QPN), Err(AccessError::WrongDomain));
    assert_eq!(invalidate(bind.key, PD, QPN + 1), Err(AccessError::WrongQueuePair));
    assert_eq!(invalidate(REGION, PD, QPN), Err(AccessError::NotPermitted), "a region is not for that");
    assert_eq!(invalidate(bind.key, PD, QPN), Ok(()));
    assert_eq!(invalidate(bind.key, PD, QPN), Err(AccessError::UnknownKey), "it is invalid already");
    assert_eq!(world.peer(bind.key, QPN, 1020, 1, READ), Err(AccessError::UnknownKey));
    assert_eq!(world.table.copy_in(span, &[1]), Err(SpanError::Stale));
    world.table.bind(&again, PD, QPN + 1).unwrap();
    assert!(world.peer(again.key, QPN + 1, 1020, 1, READ).is_ok());
    assert_eq!(world.peer(bind.key, QPN, 1020, 1, READ), Err(AccessError::UnknownKey), "the old key");
}

#[test]
fn addresses_of_a_zero_based_window_are_offsets() {
    let mut world = world(WindowType::Two);
    let bind = Bind { access: READ | WRITE | Access::ZERO_BASED, ..world.usual(WindowType::Two) };
    world.bind(bind).unwrap();
    let span = world.peer(bind.key, QPN, 0, 10, WRITE).unwrap();
    world.table.copy_in(span, &[8; 10]).unwrap();
    assert_eq!(world.block.load_u64(16), Ok(u64::from_ne_bytes([0, 0, 0, 0, 8, 8, 8, 8])));
    for (va, len) in [(1020, 1), (0, 11), (10, 1)] {
        assert_eq!(world.peer(bind.key, QPN, va, len, READ), Err(AccessError::OutOfBounds));
    }
}

#[test]
fn a_region_with_windows_stays_as_it_is() {
    for kind in TYPES {
        let mut world = world(kind);
        world.bind(world.usual(kind)).unwrap();
        let key = next_key(kind);
        assert!(matches!(world.table.deregister(REGION), Err(DeregisterError::Bound(1))));
        let change = Change { pd: Some(2), ..Change::default() };
        assert_eq!(world.table.reregister(REGION, change).err(), Some(RegisterError::Bound(1)));
        let span = world.peer(key, QPN, 1020, 1, READ).unwrap();
        // An owner that cannot be refused takes the windows away.
        let other = world.table.alloc_window(super::key(3), PD, kind).unwrap();
        assert!(matches!(world.table.revoke(REGION), Some(Owner::Block(_))));
        assert_eq!(world.peer(key, QPN, 1020, 1, READ), Err(AccessError::UnknownKey));
        assert_eq!(world.table.copy_out(span, &mut [0]), Err(SpanError::Stale));
        assert_eq!(world.table.window(world.window).unwrap().bound, None);
        assert_eq!(Arc::strong_count(&world.block), 1);
        assert!(world.table.free_window(other));
        assert!(world.table.revoke(REGION).is_none());
    }
}

#[test]
fn a_region_without_windows_is_revoked_like_any_other() {
    let mut world = world(WindowType::One);
    assert!(matches!(world.table.revoke(REGION), Some(Owner::Block(_))));
    assert_eq!(Arc::strong_count(&world.block), 1);
}

#[test]
fn a_window_that_is_freed_frees_its_region_its_place_and_not_its_key() {
    for kind in TYPES {
        let mut world = world(kind);
        world.bind(world.usual(kind)).unwrap();
        assert_eq!(world.table.windows(), 1);
        assert!(world.table.free_window(world.window));
        assert!(!world.table.free_window(world.window));
        assert_eq!((world.table.windows(), world.table.len()), (0, 1));
        assert_eq!(world.peer(next_key(kind), QPN, 1020, 1, READ), Err(AccessError::UnknownKey));
        assert_eq!(world.bind(world.usual(kind)), Err(BindError::UnknownWindow));
        let again = world.table.alloc_window(next_key(kind), PD, kind);
        assert_eq!(again, Err(RegisterError::KeyTaken));
        let new = world.table.alloc_window(key(50), PD, kind).unwrap();
        assert_ne!(new, world.window);
        assert!(world.table.window(world.window).is_none());
        assert!(world.table.deregister(REGION).is_ok());
    }
}

#[test]
fn windows_of_a_queue_pair_go_with_it() {
    let mut world = world(WindowType::Two);
    world.bind(world.usual(WindowType::Two)).unwrap();
    world.table.forget_queue_pair(QPN + 1);
    assert!(world.peer(WINDOW + 1, QPN, 1020, 1, READ).is_ok());
    world.table.forget_queue_pair(QPN);
    assert_eq!(world.peer(WINDOW + 1, QPN, 1020, 1, READ), Err(AccessError::UnknownKey));
    assert_eq!(world.table.queue_pair_windows, 0);
    world.bind(world.usual(WindowType::Two)).unwrap();
    // One of type 1 belongs to no queue pair.
    let id = world.table.alloc_window(key(3), PD, WindowType::One).unwrap();
    let bind = Bind { window: id, key: key(3) ^ 1, ..world.usual(WindowType::One) };
    world.bind(bind).unwrap();
    world.table.forget_queue_pair(QPN);
    assert!(world.peer(bind.key, QPN, 1020, 1, READ).is_ok());
    assert!(world.table.deregister(REGION).is_err());
}

#[test]
fn the_limits_of_regions_and_windows_are_apart() {
    let block = Arc::new(Block::new(8).unwrap());
    let mut table = RegionTable::new(1, 2).unwrap();
    table.alloc_window(key(1), PD, WindowType::One).unwrap();
    table.alloc_window(key(2), PD, WindowType::Two).unwrap();
    assert_eq!(table.alloc_window(key(3), PD, WindowType::Two), Err(RegisterError::Full));
    table.register(key(3), PD, ALL, 0, memory(&block, 0..8)).unwrap();
    assert_eq!(table.register(key(4), PD, ALL, 0, memory(&block, 0..8)), Err(RegisterError::Full));
    assert_eq!((table.len(), table.windows()), (1, 2));
}

#[test]
fn another_process_finds_where_a_window_is() {
    for kind in TYPES {
        let mut world = world(kind);
        let bind = world.usual(kind);
        world.bind(bind).unwrap();
        let entry = world.table.slot(bind.key).load().unwrap();
        assert_eq!((entry.block, entry.block_offset), (world.block.id(), 20));
        let (shown, qpn) = match kind {
            WindowType::One => (Kind::Window1, 0),
            WindowType::Two => (Kind::Window2, QPN),
        };
        assert_eq!((entry.kind, entry.qpn, entry.iova, entry.len), (shown, qpn, 1020, 10));
        assert!(world.table.free_window(world.window));
        assert_eq!(world.table.slot(bind.key).load(), None);
    }
}
