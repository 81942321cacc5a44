//! Pools and windows.

use anyverbs::{Error, Memory, Rights};

use crate::pair::{At, Pair, check, fill};

pub(crate) fn pools_lend_and_take_back(pair: &mut Pair) {
    let pool = pair.a.domain.pool(3, 100).unwrap();
    let mut leases: Vec<_> = (0..3).map(|_| pool.lease().unwrap()).collect();
    assert!(pool.lease().is_none());
    for (i, lease) in leases.iter_mut().enumerate() {
        assert_eq!((lease.len(), lease.capacity(), lease.index()), (100, 100, i));
        assert!(lease.iter().all(|&byte| byte == 0), "fresh memory is zero");
        fill(lease, i);
        assert!(lease.set_len(101).is_err());
        assert!(lease.copy_from(&[0; 101]).is_err());
        assert_eq!(lease.len(), 100);
    }
    for (i, lease) in leases.iter().enumerate() {
        check(lease, 100, i);
    }
    leases[1].copy_from(b"short").unwrap();
    assert_eq!(&leases[1][..], b"short");
    leases.remove(1);
    assert_eq!((pool.available(), pool.count(), pool.size()), (1, 3, 100));
    let again = pool.lease().unwrap();
    assert_eq!((again.index(), again.len()), (1, 100));

    for (count, size) in [(0, 1), (1, 0), (usize::MAX, 2), (1, usize::MAX), (1 << 40, 1 << 30)] {
        let error = pair.a.domain.pool(count, size).unwrap_err();
        assert!(matches!(error, Error::Limit { .. } | Error::Memory { .. }), "{error}");
    }
}

pub(crate) fn windows_are_copied_and_bounded(pair: &mut Pair) {
    let window = pair.a.domain.window(100, Rights::READ).unwrap();
    assert_eq!((window.len(), window.rights()), (100, Rights::READ));
    window.write(90, &[1; 10]).unwrap();
    let mut ten = [0; 10];
    window.read(85, &mut ten).unwrap();
    assert_eq!(ten, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    for offset in [91, 100, 101, usize::MAX] {
        assert!(window.read(offset, &mut ten).is_err());
        assert!(window.write(offset, &ten).is_err());
    }
    window.read(100, &mut []).unwrap();
    for offset in [93, 96, 4, usize::MAX - 7] {
        assert!(window.load_u64(offset).is_err(), "{offset}");
        assert!(window.store_u64(offset, 1).is_err());
        assert!(window.fetch_add_u64(offset, 1).is_err());
        assert!(window.compare_swap_u64(offset, 0, 1).is_err());
    }
    assert!(matches!(pair.a.domain.window(0, Rights::READ), Err(Error::Limit { .. })));
    assert!(matches!(Memory::new(usize::MAX), Err(Error::Limit { .. })));
    assert!(matches!(Memory::new(1 << 60), Err(Error::Memory { .. })));
}

pub(crate) fn revoked_memory_can_be_exposed_again(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let mut memory = Memory::new(5000).unwrap();
    for seed in 0..3 {
        fill(&mut memory, seed);
        let window = pair.b.domain.expose(memory, Rights::READ).unwrap();
        a.read(pair.a.lease(0, 0), window.token().all()).unwrap();
        check(&pair.requests(At::A, 1).remove(0).ok().unwrap().buffer.unwrap(), 5000, seed);
        memory = window.revoke().unwrap();
        check(&memory, 5000, seed);
    }
    pair.finish((a, b));
}
