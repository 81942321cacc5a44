//! Reading and writing the peer's memory.

use anyverbs::{Operation, RemoteToken, Request, Rights};

use crate::pair::{At, Pair, check, fill};

pub(crate) fn writes_land_where_they_should(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(100_000, Rights::WRITE).unwrap();
    // The token travels as text.
    let token: RemoteToken = window.token().to_string().parse().unwrap();
    assert_eq!(token.len(), 100_000);
    for (seed, (at, len)) in
        [(0, 1), (7, 13), (4095, 4098), (100, 0), (30_000, 70_000)].into_iter().enumerate()
    {
        window.write(0, &vec![0xaa; 100_000]).unwrap();
        a.write(pair.a.lease(len, seed), token.at(at as u64, len as u64).unwrap()).unwrap();
        let done = pair.requests(At::A, 1).remove(0).ok().unwrap();
        assert_eq!((done.operation, done.len), (Operation::Write, len));
        check(&done.buffer.unwrap(), len, seed);
        let mut found = vec![0; 100_000];
        window.read(0, &mut found).unwrap();
        check(&found[at..at + len], len, seed);
        let canaries = found[..at].iter().chain(&found[at + len..]);
        assert!(canaries.copied().all(|byte| byte == 0xaa), "nothing else was written");
    }
    drop(window);
    pair.finish((a, b));
}

pub(crate) fn write_imm_tells_the_peer(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(20_000, Rights::WRITE).unwrap();
    for (seed, len) in [0, 1, 9000].into_iter().enumerate() {
        b.post_recv(pair.b.lease(50, 70)).unwrap();
        a.write_imm(pair.a.lease(len, seed), window.token().at(5, len as u64).unwrap(), 0x1234_5678).unwrap();
        let told = pair.receives(At::B, 1).remove(0).ok().unwrap();
        assert_eq!((told.operation, told.len, told.imm), (Operation::RecvWriteImm, len, Some(0x1234_5678)));
        let mut unused = told.buffer.unwrap();
        assert_eq!(unused.len(), 0);
        unused.set_len(50).unwrap();
        check(&unused, 50, 70);
        let mut found = vec![0; len];
        window.read(5, &mut found).unwrap();
        check(&found, len, seed);
        pair.requests(At::A, 1).remove(0).ok().unwrap();
    }
    drop(window);
    pair.finish((a, b));
}

pub(crate) fn reads_bring_every_size(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(70_000, Rights::READ).unwrap();
    let mut bytes = vec![0; 70_000];
    for (seed, len) in [0, 1, 8, 4095, 4096, 4097, 20_001, 70_000].into_iter().enumerate() {
        fill(&mut bytes[..len], seed);
        window.write(0, &bytes).unwrap();
        // Neither the length nor the bytes of the lease matter.
        a.read(pair.a.lease(3, 50), window.token().at(0, len as u64).unwrap()).unwrap();
        let done = pair.requests(At::A, 1).remove(0).ok().unwrap();
        assert_eq!((done.operation, done.len), (Operation::Read, len));
        check(&done.buffer.unwrap(), len, seed);
    }
    drop(window);
    pair.finish((a, b));
}

pub(crate) fn many_reads_outstanding(pair: &mut Pair) {
    // More than the device answers at a time.
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(64 * 6000, Rights::READ).unwrap();
    for seed in 0..64 {
        let mut bytes = vec![0; 6000];
        fill(&mut bytes, seed);
        window.write(seed * 6000, &bytes).unwrap();
    }
    for seed in 0..64 {
        let from = window.token().at(seed * 6000, 6000).unwrap();
        a.post(Request::read(pair.a.lease(0, 0), from).id(seed)).unwrap();
    }
    for (seed, done) in pair.requests(At::A, 64).into_iter().enumerate() {
        let done = done.ok().unwrap();
        assert_eq!(done.id, seed as u64, "requests complete in order");
        check(&done.buffer.unwrap(), 6000, seed);
    }
    drop(window);
    pair.finish((a, b));
}

pub(crate) fn mixed_operations_all_complete(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(65_536, Rights::all()).unwrap();
    let token = window.token();
    let mut expected = Vec::new();
    for round in 0..12u64 {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        let seed = round as usize;
        let at = token.at(8 + 5000 * round, 5000).unwrap();
        for request in [
            Request::write(pair.a.lease(5000, seed), at),
            Request::read(pair.a.lease(0, 0), at).fence(),
            Request::fetch_add(pair.a.lease(0, 0), token.at(0, 8).unwrap(), 1),
            Request::send(pair.a.lease(100, seed)),
        ] {
            let request = request.id(expected.len() as u64);
            expected.push(request.operation());
            a.post(request).unwrap();
        }
    }
    for (i, done) in pair.requests(At::A, expected.len()).into_iter().enumerate() {
        let done = done.ok().unwrap();
        assert_eq!((done.id, done.operation), (i as u64, expected[i]), "requests complete in order");
        match done.operation {
            // A READ sees the WRITE that was posted before it.
            Operation::Read => check(&done.buffer.unwrap(), 5000, i / 4),
            Operation::FetchAdd => assert_eq!(done.original(), Some((i / 4) as u64)),
            _ => {}
        }
    }
    for (seed, received) in pair.receives(At::B, 12).into_iter().enumerate() {
        check(&received.ok().unwrap().buffer.unwrap(), 100, seed);
    }
    drop(window);
    pair.finish((a, b));
}
