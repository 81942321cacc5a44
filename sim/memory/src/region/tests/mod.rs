//! The table's edges one by one; windows, and the table against a model, in files of their own.

mod model;
mod windows;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::entry::{Entry, Kind, Slot};
use super::*;
use crate::Block;

/// Every right, and no other meaning.
const ALL: Access = Access::all().difference(Access::ZERO_BASED);

/// A key of this index.
const fn key(index: u32) -> u32 {
    index << 8 | 0x5a
}

fn memory(block: &Arc<Block>, range: Range<usize>) -> Memory {
    Memory::Block(Arc::clone(block), range)
}

fn table_with(key: u32, access: Access, iova: u64, len: usize) -> RegionTable {
    let mut table = RegionTable::new(8, 8).unwrap();
    let block = Arc::new(Block::new(len.max(1)).unwrap());
    table.register(key, 1, access, iova, memory(&block, 0..len)).unwrap();
    table
}

#[test]
fn an_access_inside_is_granted_and_reaches_the_block() {
    let block = Arc::new(Block::new(4096).unwrap());
    let mut table = RegionTable::new(8, 8).unwrap();
    table.register(0xABCD, 1, ALL, 1000, memory(&block, 96..196)).unwrap();
    let span = table.check(0xABCD, 1, 1010, 5, Access::REMOTE_WRITE).unwrap();
    assert_eq!((span.offset(), span.len()), (10, 5));
    table.copy_in(span, b"hello").unwrap();
    let mut out = [0; 5];
    block.read(106, &mut out).unwrap();
    assert_eq!(&out, b"hello");

    let mut out = [0; 3];
    table.copy_out(span.sub(1, 3).unwrap(), &mut out).unwrap();
    assert_eq!(&out, b"ell");
    assert_eq!(table.copy_out_crc(span, &mut [0; 5], 0), Ok(crc32fast::hash(b"hello")));
}

#[test]
fn each_reason_to_refuse_has_its_error() {
    let table = table_with(0x10, Access::REMOTE_READ, 1000, 100);
    let check = |key, pd, va, len, need| table.check(key, pd, va, len, need).map(|span| span.offset());
    assert_eq!(check(0x10, 1, 1000, 100, Access::REMOTE_READ), Ok(0));
    assert_eq!(check(0x10, 1, 1000, 100, Access::empty()), Ok(0));
    assert_eq!(check(0x11, 1, 1000, 100, Access::REMOTE_READ), Err(AccessError::UnknownKey));
    // Another key of the same place in the table.
    assert_eq!(check(0x10 + (32 << 8), 1, 1000, 100, Access::REMOTE_READ), Err(AccessError::UnknownKey));
    assert_eq!(check(0, 1, 1000, 100, Access::REMOTE_READ), Err(AccessError::UnknownKey));
    assert_eq!(check(0x10, 2, 1000, 100, Access::REMOTE_READ), Err(AccessError::WrongDomain));
    for need in [Access::LOCAL_WRITE, Access::REMOTE_WRITE, Access::REMOTE_ATOMIC] {
        assert_eq!(check(0x10, 1, 1000, 100, need), Err(AccessError::NotPermitted));
        assert_eq!(check(0x10, 1, 1000, 100, need | Access::REMOTE_READ), Err(AccessError::NotPermitted));
    }
    for (va, len) in [(999, 1), (1000, 101), (1099, 2), (1100, 1), (1101, 0), (999, 0), (0, 1), (u64::MAX, 1)]
    {
        assert_eq!(check(0x10, 1, va, len, Access::REMOTE_READ), Err(AccessError::OutOfBounds), "{va}+{len}");
    }
}

#[test]
fn addresses_that_wrap_are_outside() {
    // A region that ends with the address space: its last byte is at 2^64 - 1.
    let table = table_with(key(5), ALL, u64::MAX - 99, 100);
    let check = |va, len| table.check(key(5), 1, va, len, ALL).map(|span| span.offset());
    assert_eq!(check(u64::MAX - 99, 100), Ok(0));
    assert_eq!(check(u64::MAX, 1), Ok(99));
    assert_eq!(check(u64::MAX, 2), Err(AccessError::OutOfBounds));
    assert_eq!(check(u64::MAX - 9, u32::MAX), Err(AccessError::OutOfBounds));
    assert_eq!(check(0, 0), Err(AccessError::OutOfBounds));

    let mut table = RegionTable::new(8, 8).unwrap();
    let block = Arc::new(Block::new(100).unwrap());
    let refused = table.register(key(5), 1, ALL, u64::MAX - 98, memory(&block, 0..100));
    assert_eq!(refused, Err(RegisterError::OutOfBounds));
    assert!(table.is_empty());
}

#[test]
fn accesses_of_no_bytes_are_checked_and_the_empty_span_is_not() {
    let mut table = table_with(key(5), ALL, 0, 100);
    let end = table.check(key(5), 1, 100, 0, ALL).unwrap();
    table.copy_in(end, &[]).unwrap();
    assert_eq!(table.check(key(6), 1, 0, 0, ALL), Err(AccessError::UnknownKey));
    assert_eq!(table.check(key(5), 1, 101, 0, ALL), Err(AccessError::OutOfBounds));

    assert_eq!(table.copy_out(Span::EMPTY, &mut []), Ok(()));
    assert_eq!(table.copy_in(Span::EMPTY, &[]), Ok(()));
    assert_eq!(table.copy_out_crc(Span::EMPTY, &mut [], 77), Ok(77));
    assert_eq!(table.copy_in(Span::EMPTY, &[1]), Err(SpanError::Length));
    assert_eq!(table.fetch_add(Span::EMPTY, 1), Err(SpanError::Length));

    table.deregister(key(5)).unwrap();
    assert_eq!(table.copy_in(end, &[]), Err(SpanError::Stale));
    assert_eq!(table.copy_in(Span::EMPTY, &[]), Ok(()));
}

#[test]
fn a_region_of_no_bytes_has_room_for_none() {
    let table = table_with(key(5), ALL, 64, 0);
    assert!(table.check(key(5), 1, 64, 0, ALL).is_ok());
    assert_eq!(table.check(key(5), 1, 64, 1, ALL), Err(AccessError::OutOfBounds));
}

#[test]
fn a_span_dies_with_its_registration_even_if_the_key_comes_back() {
    let mut table = table_with(key(5), ALL, 0, 100);
    let old = table.check(key(5), 1, 0, 8, ALL).unwrap();
    assert!(matches!(table.deregister(key(5)), Ok(Owner::Block(_))));
    assert!(matches!(table.deregister(key(5)), Err(DeregisterError::UnknownKey)));
    let stale = |table: &RegionTable| {
        assert_eq!(table.copy_out(old, &mut [0; 8]), Err(SpanError::Stale));
        assert_eq!(table.copy_out_crc(old, &mut [0; 8], 0), Err(SpanError::Stale));
        assert_eq!(table.copy_in(old, &[0; 8]), Err(SpanError::Stale));
        assert_eq!(table.fetch_add(old, 1), Err(SpanError::Stale));
        assert_eq!(table.compare_swap(old, 0, 1), Err(SpanError::Stale));
        assert_eq!(table.copy_out(old.sub(8, 0).unwrap(), &mut []), Err(SpanError::Stale));
    };
    stale(&table);
    let block = Arc::new(Block::new(100).unwrap());
    let mut register = |key| table.register(key, 1, ALL, 0, memory(&block, 0..100));
    assert_eq!(register(key(5)), Err(RegisterError::KeyTaken), "the last key of this place");
    assert_eq!(register(key(5) + 1), Err(RegisterError::KeyTaken), "the same index");
    // Another index in the same place, and then the key may come back.
    register(key(5 + 32)).unwrap();
    stale(&table);
    table.deregister(key(5 + 32)).unwrap();
    table.register(key(5), 1, ALL, 0, memory(&block, 0..100)).unwrap();
    stale(&table);
    assert_eq!(block.load_u64(0), Ok(0));
}

#[test]
fn the_table_keeps_the_memory_until_it_is_deregistered() {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(8, 8).unwrap();
    table.register(key(5), 1, ALL, 0, memory(&block, 0..100)).unwrap();
    assert_eq!(Arc::strong_count(&block), 2);
    let Ok(Owner::Block(owner)) = table.deregister(key(5)) else { panic!("not a block") };
    assert!(Arc::ptr_eq(&owner, &block));
    drop(owner);
    assert_eq!(Arc::strong_count(&block), 1);
    table.register(key(6), 1, ALL, 0, memory(&block, 0..100)).unwrap();
    drop(table);
    assert_eq!(Arc::strong_count(&block), 1);
}

#[test]
fn registration_refuses_what_it_cannot_keep() {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(2, 0).unwrap();
    let mut register = |key, range| table.register(key, 1, ALL, 0, memory(&block, range));
    assert_eq!(register(0, 0..1), Err(RegisterError::InvalidKey));
    assert_eq!(register(key(1), 0..101), Err(RegisterError::OutOfBounds));
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let reversed = 2..1;
    assert_eq!(register(key(1), reversed), Err(RegisterError::OutOfBounds));
    assert_eq!(register(key(1), 0..100), Ok(()));
    assert_eq!(register(key(1), 0..100), Err(RegisterError::KeyTaken));
    // Four places for two regions: 5 shares the place of 1.
    assert_eq!(register(key(5), 0..100), Err(RegisterError::KeyTaken));
    assert_eq!(register(key(2), 100..100), Ok(()));
    assert_eq!(register(key(3), 0..1), Err(RegisterError::Full));
    assert_eq!((table.len(), table.limit(), table.windows(), table.window_limit()), (2, 2, 0, 0));
    assert_eq!(table.alloc_window(key(3), 1, WindowType::One), Err(RegisterError::Full));
    let max = RegionTable::MAX_LIMIT;
    for (regions, windows) in [(0, 0), (0, 1), (max + 1, 0), (max, 1), (1, u32::MAX), (u32::MAX, 1)] {
        let refused = RegionTable::new(regions, windows).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::InvalidInput), "{regions} {windows}");
    }
}

#[test]
fn a_region_without_any_right_to_write_is_never_written() {
    let table = table_with(key(5), Access::REMOTE_READ, 0, 100);
    let span = table.check(key(5), 1, 0, 8, Access::empty()).unwrap();
    assert_eq!(table.copy_out(span, &mut [1; 8]), Ok(()));
    assert_eq!(table.copy_in(span, &[1; 8]), Err(SpanError::ReadOnly));
    assert_eq!(table.fetch_add(span, 1), Err(SpanError::ReadOnly));
    assert_eq!(table.compare_swap(span, 0, 1), Err(SpanError::ReadOnly));
}

#[test]
fn buffers_must_fit_their_span() {
    let table = table_with(key(5), ALL, 0, 100);
    let span = table.check(key(5), 1, 0, 8, ALL).unwrap();
    assert_eq!(table.copy_out(span, &mut [0; 7]), Err(SpanError::Length));
    assert_eq!(table.copy_out_crc(span, &mut [0; 9], 0), Err(SpanError::Length));
    assert_eq!(table.copy_in(span, &[0; 9]), Err(SpanError::Length));
}

#[test]
fn atomics_return_what_was_there() {
    let table = table_with(key(5), ALL, 4, 100);
    let span = table.check(key(5), 1, 12, 8, Access::REMOTE_ATOMIC).unwrap();
    assert_eq!(table.fetch_add(span, u64::MAX), Ok(0));
    assert_eq!(table.fetch_add(span, 3), Ok(u64::MAX));
    assert_eq!(table.compare_swap(span, 3, 9), Ok(2));
    assert_eq!(table.compare_swap(span, 2, 9), Ok(2));
    assert_eq!(table.compare_swap(span, 9, 9), Ok(9));
    // The memory counts, not the address: 12 is where byte 8 is.
    let misaligned = table.check(key(5), 1, 16, 8, Access::REMOTE_ATOMIC).unwrap();
    assert_eq!(table.fetch_add(misaligned, 1), Err(SpanError::Misaligned));
    assert_eq!(table.compare_swap(misaligned, 0, 1), Err(SpanError::Misaligned));
    let short = table.check(key(5), 1, 12, 4, ALL).unwrap();
    assert_eq!(table.fetch_add(short, 1), Err(SpanError::Length));
}

#[test]
fn foreign_memory_is_registered_by_address() {
    let mut memory = vec![0u8; 64];
    let ptr = memory.as_mut_ptr();
    let va = ptr.addr() as u64;
    let mut table = RegionTable::new(8, 8).unwrap();
    // SAFETY: the vector lives on and is not touched until the region is gone.
    unsafe { table.register_raw(key(9), 1, ALL, va, ptr, 64) }.unwrap();
    let span = table.check(key(9), 1, va + 60, 4, Access::LOCAL_WRITE).unwrap();
    table.copy_in(span, b"tail").unwrap();
    assert!(matches!(table.deregister(key(9)), Ok(Owner::Foreign)));
    assert_eq!(&memory[60..], b"tail");

    // SAFETY: both are refused.
    unsafe {
        let null = table.register_raw(key(9), 1, ALL, 0, std::ptr::null_mut(), 64);
        assert_eq!(null, Err(RegisterError::OutOfBounds));
        let huge = table.register_raw(key(9), 1, ALL, 0, ptr, usize::MAX);
        assert_eq!(huge, Err(RegisterError::OutOfBounds));
    }
}

#[test]
fn part_of_a_span_is_inside_it() {
    let table = table_with(key(5), ALL, 0, 100);
    let span = table.check(key(5), 1, 10, 50, ALL).unwrap();
    assert_eq!(span.sub(0, 50), Some(span));
    assert_eq!(span.sub(20, 30).map(|part| (part.offset(), part.len())), Some((30, 30)));
    assert_eq!(span.sub(50, 0).map(|part| (part.offset(), part.len())), Some((60, 0)));
    for (offset, len) in [(0, 51), (51, 0), (20, 31), (u32::MAX, 1), (1, u32::MAX)] {
        assert_eq!(span.sub(offset, len), None);
    }
}

#[test]
fn a_peer_that_maps_the_table_reads_whole_entries() {
    // The writer turns one key on and off; whoever finds an entry finds all of its words together.
    let slot = Slot::default();
    let entry = |generation: u64| Entry {
        generation,
        key: generation as u32,
        pd: generation as u32,
        access: Access::from_bits_truncate(generation as u32),
        home: generation as u32,
        iova: generation,
        len: generation,
        block: generation,
        block_offset: generation,
        kind: Kind::Window2,
        qpn: generation as u32,
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for generation in 1..200_000 {
                slot.store(&entry(generation));
            }
        });
        while !writer.is_finished() {
            if let Some(seen) = slot.load() {
                assert_eq!(seen, entry(seen.generation));
            }
        }
    });
    assert_eq!(slot.load(), Some(entry(199_999)));
    slot.clear();
    assert_eq!(slot.load(), None);
}

#[test]
fn zero_based_addresses_are_offsets() {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(8, 0).unwrap();
    let access = ALL | Access::ZERO_BASED;
    table.register(key(1), 1, access, 5000, memory(&block, 50..100)).unwrap();
    assert_eq!(table.check(key(1), 1, 0, 50, ALL).map(Span::offset), Ok(0));
    assert_eq!(table.check(key(1), 1, 5000, 1, ALL), Err(AccessError::OutOfBounds));
    assert_eq!(table.region(key(1)).map(|region| region.iova), Some(0));
}

#[test]
fn reregistration_changes_what_was_asked_and_keeps_the_key() {
    let mut table = table_with(key(5), ALL, 1000, 100);
    let old = table.check(key(5), 1, 1000, 8, ALL).unwrap();
    let other = Arc::new(Block::new(64).unwrap());
    let translation = Some((memory(&other, 32..64), 7000));
    let before = table.reregister(key(5), Change { translation, ..Change::default() }).unwrap();
    assert!(matches!(before, Some(Owner::Block(_))), "the old memory is given back");
    assert_eq!(table.copy_in(old, &[1; 8]), Err(SpanError::Stale));
    assert_eq!(table.check(key(5), 1, 1000, 8, ALL), Err(AccessError::OutOfBounds));
    let span = table.check(key(5), 1, 7000, 32, ALL).unwrap();
    table.copy_in(span, &[7; 32]).unwrap();
    assert_eq!(other.load_u64(32), Ok(0x0707_0707_0707_0707));
    assert_eq!(other.load_u64(24), Ok(0));

    let before = table.reregister(key(5), Change { pd: Some(2), ..Change::default() }).unwrap();
    assert!(before.is_none(), "the memory stays");
    assert_eq!(table.copy_in(span, &[1; 32]), Err(SpanError::Stale));
    assert_eq!(table.check(key(5), 1, 7000, 1, ALL), Err(AccessError::WrongDomain));
    let access = Access::REMOTE_READ;
    table.reregister(key(5), Change { access: Some(access), ..Change::default() }).unwrap();
    assert_eq!(table.check(key(5), 2, 7000, 1, Access::LOCAL_WRITE), Err(AccessError::NotPermitted));
    let span = table.check(key(5), 2, 7000, 1, access).unwrap();
    assert_eq!(table.copy_in(span, &[1]), Err(SpanError::ReadOnly));
    let info = table.region(key(5)).unwrap();
    assert_eq!((info.pd, info.access, info.iova, info.len), (2, access, 7000, 32));
    assert_eq!(Arc::strong_count(&other), 2);
}

#[test]
fn a_reregistration_that_fails_changes_nothing() {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(8, 8).unwrap();
    table.register(key(5), 1, ALL, 1000, memory(&block, 0..100)).unwrap();
    let span = table.check(key(5), 1, 1000, 8, ALL).unwrap();
    let mut fails = |which, translation, expected| {
        let change = Change { translation, pd: Some(2), access: Some(Access::empty()) };
        assert_eq!(table.reregister(which, change).err(), Some(expected));
        assert_eq!(table.copy_in(span, &[1; 8]), Ok(()));
        assert_eq!(table.check(key(5), 1, 1000, 8, ALL), Ok(span));
    };
    fails(key(6), None, RegisterError::UnknownKey);
    fails(key(5) + 1, None, RegisterError::UnknownKey);
    fails(key(5), Some((memory(&block, 1..101), 0)), RegisterError::OutOfBounds);
    fails(key(5), Some((memory(&block, 0..100), u64::MAX - 98)), RegisterError::OutOfBounds);
    // What is not a registration of memory cannot become one.
    table.register_null(key(7), 1).unwrap();
    table.register_device_memory(key(8), 1, ALL, Arc::clone(&block), 0..8).unwrap();
    for fixed in [key(7), key(8)] {
        let change = Change { pd: Some(2), ..Change::default() };
        assert_eq!(table.reregister(fixed, change).err(), Some(RegisterError::Fixed));
    }
}

#[test]
fn foreign_memory_is_vouched_for_once_and_shared() {
    let mut bytes = vec![0u8; 64];
    let ptr = bytes.as_mut_ptr();
    // SAFETY: the vector lives on and is not touched until the regions are gone.
    let [writable, read_only] =
        unsafe { [ForeignMemory::new(ptr, 64), ForeignMemory::new_read_only(ptr, 32)] }
            .map(|memory| Arc::new(memory.unwrap()));
    assert_eq!((writable.len(), writable.is_writable(), read_only.is_writable()), (64, true, false));
    let mut table = RegionTable::new(8, 0).unwrap();
    let (at, foreign) =
        (writable.address(), |memory: &Arc<ForeignMemory>| Memory::Foreign(Arc::clone(memory)));
    table.register(key(1), 1, ALL, at, foreign(&writable)).unwrap();
    let refused = table.register(key(2), 1, Access::LOCAL_WRITE, at, foreign(&read_only));
    assert_eq!(refused, Err(RegisterError::ReadOnlyMemory));
    table.register(key(2), 1, Access::REMOTE_READ, at, foreign(&read_only)).unwrap();
    let more = Change { access: Some(Access::LOCAL_WRITE), ..Change::default() };
    assert_eq!(table.reregister(key(2), more).err(), Some(RegisterError::ReadOnlyMemory));
    let span = table.check(key(1), 1, at + 8, 8, ALL).unwrap();
    assert_eq!(table.fetch_add(span, 3), Ok(0));
    let seen = table.check(key(2), 1, at + 8, 8, Access::empty()).unwrap();
    let mut out = [0; 8];
    table.copy_out(seen, &mut out).unwrap();
    assert_eq!(u64::from_ne_bytes(out), 3);
    assert_eq!((Arc::strong_count(&writable), Arc::strong_count(&read_only)), (2, 2));
    assert!(matches!(table.deregister(key(1)), Ok(Owner::Shared(memory)) if Arc::ptr_eq(&memory, &writable)));
    drop(table);
    assert_eq!((Arc::strong_count(&writable), Arc::strong_count(&read_only)), (1, 1));
    // SAFETY: both are refused.
    let refused =
        unsafe { [ForeignMemory::new(std::ptr::null_mut(), 1), ForeignMemory::new(ptr, usize::MAX)] };
    assert!(refused.iter().all(|memory| matches!(memory, Err(RegisterError::OutOfBounds))));
}

#[test]
fn the_null_region_gives_zeroes_and_forgets_what_is_written() {
    let mut table = RegionTable::new(8, 0).unwrap();
    table.register_null(key(3), 1).unwrap();
    for va in [0, 77, u64::MAX] {
        let span = table.check(key(3), 1, va, 5, Access::LOCAL_WRITE).unwrap();
        table.copy_in(span, b"gone!").unwrap();
        let mut out = [9; 5];
        table.copy_out(span, &mut out).unwrap();
        assert_eq!(out, [0; 5]);
        let crc = table.copy_out_crc(span.sub(1, 4).unwrap(), &mut [9; 4], crc32fast::hash(b"x"));
        assert_eq!(crc, Ok(crc32fast::hash(b"x\0\0\0\0")));
    }
    assert!(table.check(key(3), 1, 0, u32::MAX, Access::empty()).is_ok());
    let peer = |need| table.check_remote(key(3), 1, 9, 0, 8, need);
    for need in [Access::REMOTE_READ, Access::REMOTE_WRITE, Access::REMOTE_ATOMIC, Access::FLUSH_GLOBAL] {
        assert_eq!(peer(need), Err(AccessError::NotPermitted));
    }
    assert_eq!(table.check(key(3), 2, 0, 1, Access::empty()), Err(AccessError::WrongDomain));
    let word = table.check(key(3), 1, 0, 8, Access::LOCAL_WRITE).unwrap();
    assert_eq!(table.fetch_add(word, 1), Err(SpanError::ReadOnly));
    assert_eq!(table.region(key(3)).map(|region| region.kind), Some(RegionKind::Null));
    assert!(matches!(table.deregister(key(3)), Ok(Owner::Nobody)));
    assert_eq!(table.copy_in(word, &[0; 8]), Err(SpanError::Stale));
}

#[test]
fn device_memory_is_zero_based() {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(8, 0).unwrap();
    table.register_device_memory(key(4), 1, ALL, Arc::clone(&block), 40..50).unwrap();
    let span = table.check(key(4), 1, 0, 10, ALL).unwrap();
    table.copy_in(span, b"on the NIC").unwrap();
    let mut out = [0; 10];
    block.read(40, &mut out).unwrap();
    assert_eq!(&out, b"on the NIC");
    assert_eq!(table.check(key(4), 1, 1, 10, ALL), Err(AccessError::OutOfBounds));
    assert_eq!(table.region(key(4)).map(|region| region.kind), Some(RegionKind::Device));
}
