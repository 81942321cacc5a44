//! Regions of every kind, device memory, and limits.

use super::*;

#[test]
fn regions_have_the_addresses_that_were_asked_for() {
    let [a, b] = pair();
    a.block.write(0, b"anywhere").unwrap();
    for (iova, access, first) in [
        (0, ALL, 0),
        (0x7fff_0000_1234, ALL, 0x7fff_0000_1234),
        (u64::MAX - 63, ALL, u64::MAX - 63),
        (0x1234, ALL | Access::ZERO_BASED, 0),
    ] {
        let mr = b.pd.register_iova(Arc::clone(&b.block), 128..192, iova, access).unwrap();
        assert_eq!(mr.query().unwrap().iova, first);
        assert_eq!(a.does(write(first + 8, mr.key()), &[a.sge(0, 8)]), WcStatus::Success, "{iova:#x}");
        assert_eq!(b.bytes(136, 8), b"anywhere");
        b.block.write(136, &[0; 8]).unwrap();
    }
    let wraps = b.pd.register_iova(Arc::clone(&b.block), 0..64, u64::MAX - 62, ALL).err().unwrap();
    assert!(matches!(wraps, NicError::OutOfRange { attribute: "iova", .. }), "{wraps}");
    let outside = b.pd.register(Arc::clone(&b.block), 1..LEN + 1, ALL).err().unwrap();
    assert!(matches!(outside, NicError::OutsideMemory { .. }));
}

#[test]
fn a_region_that_is_registered_anew_keeps_its_key_and_nothing_else() {
    let [a, mut b] = pair();
    a.block.write(0, b"new").unwrap();
    let (key, block) = (b.mr.key(), Arc::new(Block::new(32).unwrap()));
    let translation = Some((Memory::Block(Arc::clone(&block), 8..32), 0xabc0));
    b.mr.rereg(MrChange { translation, ..MrChange::default() }).unwrap();
    assert_eq!((b.mr.key(), b.mr.len()), (key, 24));
    assert_eq!(a.does(write(0xabc0, key), &[a.sge(0, 3)]), WcStatus::Success);
    assert_eq!(block.load_u64(8).unwrap().to_ne_bytes()[..3], *b"new");
    assert_eq!(Arc::strong_count(&b.block), 1, "the old memory is let go");
    // Failed changes leave it as it is.
    let fails = [
        MrChange { access: Some(WRITE), ..MrChange::default() },
        MrChange { pd: Some(a.pd.clone()), ..MrChange::default() },
        MrChange { translation: Some((Memory::Block(Arc::clone(&block), 8..33), 0)), ..MrChange::default() },
    ];
    let before = b.mr.query().unwrap();
    for change in fails {
        assert!(b.mr.rereg(change).is_err());
        assert_eq!(b.mr.query().unwrap(), before);
    }
    // Without a right to write, and then in another domain.
    b.mr.rereg(MrChange { access: Some(READ), ..MrChange::default() }).unwrap();
    assert_eq!(a.does(read(0xabc0, key), &[a.sge(100, 3)]), WcStatus::Success);
    assert_eq!(a.bytes(100, 3), b"new");
    let pd = b.nic.alloc_pd().unwrap();
    b.mr.rereg(MrChange { pd: Some(pd.clone()), ..MrChange::default() }).unwrap();
    assert_eq!(b.mr.pd().number(), pd.number());
    assert_eq!(a.does(read(0xabc0, key), &[a.sge(100, 3)]), WcStatus::RemAccessErr);
}

#[test]
fn a_right_that_a_region_lost_is_refused() {
    let [a, mut b] = pair();
    assert_eq!(a.does(write(0, b.mr.key()), &[a.sge(0, 8)]), WcStatus::Success);
    b.mr.rereg(MrChange { access: Some(READ), ..MrChange::default() }).unwrap();
    assert_eq!(a.does(write(0, b.mr.key()), &[a.sge(0, 8)]), WcStatus::RemAccessErr);
}

/// One word of the program that nothing but the NIC touches.
static WORDS: [std::sync::atomic::AtomicU64; 2] = [const { std::sync::atomic::AtomicU64::new(0) }; 2];

#[test]
fn memory_of_the_program_is_registered_by_whoever_vouches_for_it() {
    use std::sync::atomic::Ordering;
    let [a, b] = pair();
    let ptr = WORDS[0].as_ptr().cast::<u8>();
    // SAFETY: the words live for ever, and everybody uses them by atomic accesses.
    let memory = Arc::new(unsafe { ForeignMemory::new(ptr, 16) }.unwrap());
    // SAFETY: as above.
    let constant = Arc::new(unsafe { ForeignMemory::new_read_only(ptr, 16) }.unwrap());
    let mr = b.pd.register_foreign(Arc::clone(&memory), memory.address(), ALL).unwrap();
    let op = SendOp::FetchAdd { addr: memory.address() + 8, rkey: mr.key(), add: 7 };
    assert_eq!(a.does(op, &[a.sge(0, 8)]), WcStatus::Success);
    assert_eq!(WORDS[1].load(Ordering::SeqCst), 7);
    let refused = b.pd.register_foreign(Arc::clone(&constant), 0, ALL).err().unwrap();
    assert!(matches!(refused, NicError::ReadOnlyMemory { .. }), "{refused}");
    let seen = b.pd.register_foreign(Arc::clone(&constant), 0, READ).unwrap();
    assert_eq!(a.does(read(8, seen.key()), &[a.sge(0, 8)]), WcStatus::Success);
    assert_eq!(a.block.load_u64(0), Ok(7));
    assert_eq!(Arc::strong_count(&memory), 2);
    drop(mr);
    assert_eq!(Arc::strong_count(&memory), 1, "nothing holds it any more");
}

#[test]
fn the_null_region_fills_gaps() {
    let [a, b] = pair();
    let null = b.pd.alloc_null_mr().unwrap();
    assert_eq!(null.query().unwrap().kind, RegionKind::Null);
    let hole = |len| Sge { addr: 0xdead_0000, len, key: null.key() };
    // Scattering: the middle of the message is forgotten.
    b.qp.post_recv(&[RecvWr { wr_id: 2, sges: &[b.sge(0, 2), hole(3), b.sge(2, 2)] }]).unwrap();
    a.block.write(0, b"ab---cd").unwrap();
    assert_eq!(a.does(SendOp::Send, &[a.sge(0, 7)]), WcStatus::Success);
    assert_eq!(b.ends(1), [(2, WcStatus::Success)]);
    assert_eq!(b.bytes(0, 5), b"abcd\0");
    // Gathering: zeroes.
    a.block.write(100, &[9; 8]).unwrap();
    assert_eq!(b.does(write(100, a.mr.key()), &[b.sge(0, 2), hole(3), b.sge(2, 2)]), WcStatus::Success);
    assert_eq!(a.bytes(100, 8), b"ab\0\0\0cd\x09");
    // It is not for peers.
    assert_eq!(a.does(read(0, null.key()), &[a.sge(0, 1)]), WcStatus::RemAccessErr);
}

#[test]
fn device_memory_is_counted_and_lives_as_long_as_its_regions() {
    let [a, b] = pair();
    let limit = b.nic.attributes().max_dm_size;
    let dm = b.nic.alloc_dm(4096).unwrap();
    let too_much = b.nic.alloc_dm(limit as usize - 4095).err().unwrap();
    assert!(matches!(too_much, NicError::OutOfRange { max, .. } if max == limit - 4096), "{too_much}");
    assert!(b.nic.alloc_dm(0).is_err());
    dm.write(100, b"deep inside").unwrap();
    assert!(matches!(dm.write(4090, b"too long"), Err(NicError::OutsideMemory { .. })));
    assert!(matches!(dm.read(usize::MAX, &mut [0; 2]), Err(NicError::OutsideMemory { .. })));
    let mr = b.pd.register_dm(&dm, 100, 11, ALL).unwrap();
    assert_eq!(mr.query().unwrap().kind, RegionKind::Device);
    assert!(matches!(b.pd.register_dm(&dm, 100, 3997, ALL), Err(NicError::OutsideMemory { .. })));
    assert!(matches!(a.pd.register_dm(&dm, 0, 1, ALL), Err(NicError::OtherDevice { .. })));
    assert_eq!(a.does(read(5, mr.key()), &[a.sge(0, 6)]), WcStatus::Success);
    assert_eq!(a.bytes(0, 6), b"inside");
    a.block.write(0, b"DEEP").unwrap();
    assert_eq!(a.does(write(0, mr.key()), &[a.sge(0, 4)]), WcStatus::Success);
    let mut out = [0; 11];
    dm.read(100, &mut out).unwrap();
    assert_eq!(&out, b"DEEP inside");
    let refused = dm.free().unwrap_err();
    assert_eq!(refused.regions, 1);
    drop(refused.dm);
    assert_eq!(b.nic.usage().dm_bytes, 4096, "the region holds it");
    assert_eq!(a.does(read(0, mr.key()), &[a.sge(0, 4)]), WcStatus::Success);
    drop(mr);
    assert_eq!(b.nic.usage().dm_bytes, 0);
    let all = b.nic.alloc_dm(limit as usize).unwrap();
    drop(b.pd.register_dm(&all, 0, 8, ALL).unwrap());
    all.free().unwrap();
    assert_eq!(b.nic.usage().dm_bytes, 0);
}

#[test]
fn advice_checks_what_it_is_about_and_changes_nothing() {
    let [a, mut b] = pair();
    b.block.write(0, &[5; 16]).unwrap();
    let good = [b.sge(0, 16), b.sge(LEN as u64 - 1, 1)];
    for advice in [Advice::Prefetch, Advice::PrefetchWrite, Advice::PrefetchNoFault] {
        b.pd.advise(advice, &good).unwrap();
    }
    assert_eq!(b.bytes(0, 16), [5; 16]);
    let first_bad = |advice, sge| match b.pd.advise(advice, &[good[0], sge]) {
        Err(NicError::Element { index, source }) => (index, source),
        other => panic!("{other:?}"),
    };
    let (beyond, other) = (b.sge(LEN as u64, 1), a.sge(0, 1));
    assert_eq!(first_bad(Advice::Prefetch, beyond), (1, AccessError::OutOfBounds));
    assert_eq!(first_bad(Advice::Prefetch, other), (1, AccessError::UnknownKey));
    let other_pd = b.nic.alloc_pd().unwrap();
    assert!(other_pd.advise(Advice::Prefetch, &good).is_err());
    b.mr.rereg(MrChange { access: Some(READ), ..MrChange::default() }).unwrap();
    b.pd.advise(Advice::Prefetch, &good).unwrap();
    assert!(b.pd.advise(Advice::PrefetchWrite, &good).is_err());
}

// ---- Limits ---------------------------------------------------------------------------------

#[test]
fn limits_hold_and_what_is_dropped_makes_room() {
    let [link, _] = pipe::pair();
    let config = NicConfig { max_pd: 2, max_mr: 2, max_mw: 1, ..NicConfig::default() };
    let side = open(link, config);
    let limits = side.nic.attributes();
    assert_eq!((limits.max_pd, limits.max_mr, limits.max_mw), (2, 2, 1));
    let used = || {
        let DeviceUsage { pd, mr, mw, dm_bytes, .. } = side.nic.usage();
        (pd, mr, mw, dm_bytes)
    };
    let second = side.nic.alloc_pd().unwrap();
    let refused = side.nic.alloc_pd().err().unwrap();
    assert!(matches!(refused, NicError::Exhausted { object: "protection domain", limit: 2 }));
    let null = second.alloc_null_mr().unwrap();
    let refused = side.pd.register(Arc::clone(&side.block), 0..8, ALL).err().unwrap();
    assert!(matches!(refused, NicError::Exhausted { object: "memory region", limit: 2 }));
    let mw = second.alloc_mw(WindowType::One).unwrap();
    let refused = second.alloc_mw(WindowType::Two).err().unwrap();
    assert!(matches!(refused, NicError::Exhausted { object: "memory window", limit: 1 }));
    assert_eq!(used(), (2, 2, 1, 0));
    // What is in a domain keeps it.
    drop(second);
    drop(null);
    assert!(side.nic.alloc_pd().is_err());
    drop(mw);
    assert_eq!(used(), (1, 1, 0, 0));
    let again = side.nic.alloc_pd().unwrap();
    assert_ne!(again.number(), side.pd.number());
    again.alloc_mw(WindowType::Two).unwrap();
}

#[test]
fn limits_that_no_table_has_are_refused() {
    for config in [
        NicConfig { max_mr: 0, ..NicConfig::default() },
        NicConfig { max_mr: 1 << 21, ..NicConfig::default() },
        NicConfig { max_mw: 1 << 20, ..NicConfig::default() },
        NicConfig { max_pd: 0, ..NicConfig::default() },
    ] {
        let [link, _] = pipe::pair();
        let refused = Nic::open(Box::new(link), config).err().unwrap();
        assert!(matches!(refused, NicError::OutOfRange { .. }), "{refused}");
    }
    let [link, _] = pipe::pair();
    let none = open(link, NicConfig { max_mw: 0, ..NicConfig::default() });
    assert!(matches!(none.pd.alloc_mw(WindowType::One), Err(NicError::Exhausted { .. })));
}

#[test]
fn keys_of_what_is_gone_are_not_given_out_again() {
    let [link, _] = pipe::pair();
    let side = open(link, NicConfig { max_mr: 4, max_mw: 0, seed: Some(5), ..NicConfig::default() });
    let mut seen = std::collections::HashSet::new();
    for _ in 0..2000 {
        let mr = side.pd.register(Arc::clone(&side.block), 0..8, ALL).unwrap();
        assert!(seen.insert(mr.key()), "a key came back");
    }
}
