//! The table against a model that is too simple to be wrong, and its edges one by one.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const ALL: Access = Access::all();

fn table_with(key: u32, access: Access, iova: u64, len: usize) -> RegionTable {
    let mut table = RegionTable::new(8).unwrap();
    let block = Arc::new(Block::new(len.max(1)).unwrap());
    table.register(key, 1, access, iova, block, 0..len).unwrap();
    table
}

#[test]
fn an_access_inside_is_granted_and_reaches_the_block() {
    let block = Arc::new(Block::new(4096).unwrap());
    let mut table = RegionTable::new(8).unwrap();
    table.register(0xABCD, 1, ALL, 1000, Arc::clone(&block), 96..196).unwrap();
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
    assert_eq!(check(0x10 + 16, 1, 1000, 100, Access::REMOTE_READ), Err(AccessError::UnknownKey));
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
    let table = table_with(5, ALL, u64::MAX - 99, 100);
    let check = |va, len| table.check(5, 1, va, len, ALL).map(|span| span.offset());
    assert_eq!(check(u64::MAX - 99, 100), Ok(0));
    assert_eq!(check(u64::MAX, 1), Ok(99));
    assert_eq!(check(u64::MAX, 2), Err(AccessError::OutOfBounds));
    assert_eq!(check(u64::MAX - 9, u32::MAX), Err(AccessError::OutOfBounds));
    assert_eq!(check(0, 0), Err(AccessError::OutOfBounds));

    let mut table = RegionTable::new(8).unwrap();
    let block = Arc::new(Block::new(100).unwrap());
    let refused = table.register(5, 1, ALL, u64::MAX - 98, block, 0..100);
    assert_eq!(refused, Err(RegisterError::OutOfBounds));
    assert!(table.is_empty());
}

#[test]
fn accesses_of_no_bytes_are_checked_and_the_empty_span_is_not() {
    let mut table = table_with(5, ALL, 0, 100);
    let end = table.check(5, 1, 100, 0, ALL).unwrap();
    table.copy_in(end, &[]).unwrap();
    assert_eq!(table.check(6, 1, 0, 0, ALL), Err(AccessError::UnknownKey));
    assert_eq!(table.check(5, 1, 101, 0, ALL), Err(AccessError::OutOfBounds));

    assert_eq!(table.copy_out(Span::EMPTY, &mut []), Ok(()));
    assert_eq!(table.copy_in(Span::EMPTY, &[]), Ok(()));
    assert_eq!(table.copy_out_crc(Span::EMPTY, &mut [], 77), Ok(77));
    assert_eq!(table.copy_in(Span::EMPTY, &[1]), Err(SpanError::Length));
    assert_eq!(table.fetch_add(Span::EMPTY, 1), Err(SpanError::Length));

    table.deregister(5).unwrap();
    assert_eq!(table.copy_in(end, &[]), Err(SpanError::Stale));
    assert_eq!(table.copy_in(Span::EMPTY, &[]), Ok(()));
}

#[test]
fn a_region_of_no_bytes_has_room_for_none() {
    let table = table_with(5, ALL, 64, 0);
    assert!(table.check(5, 1, 64, 0, ALL).is_ok());
    assert_eq!(table.check(5, 1, 64, 1, ALL), Err(AccessError::OutOfBounds));
}

#[test]
fn a_span_dies_with_its_registration_even_if_the_key_comes_back() {
    let mut table = table_with(5, ALL, 0, 100);
    let old = table.check(5, 1, 0, 8, ALL).unwrap();
    assert!(matches!(table.deregister(5), Some(Owner::Block(_))));
    assert!(table.deregister(5).is_none());
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
    table.register(5, 1, ALL, 0, Arc::clone(&block), 0..100).unwrap();
    stale(&table);
    assert_eq!(block.load_u64(0), Ok(0));
}

#[test]
fn the_table_keeps_the_memory_until_it_is_deregistered() {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(8).unwrap();
    table.register(5, 1, ALL, 0, Arc::clone(&block), 0..100).unwrap();
    assert_eq!(Arc::strong_count(&block), 2);
    let Some(Owner::Block(owner)) = table.deregister(5) else { panic!("not a block") };
    assert!(Arc::ptr_eq(&owner, &block));
    drop(owner);
    assert_eq!(Arc::strong_count(&block), 1);
    table.register(5, 1, ALL, 0, Arc::clone(&block), 0..100).unwrap();
    drop(table);
    assert_eq!(Arc::strong_count(&block), 1);
}

#[test]
fn registration_refuses_what_it_cannot_keep() {
    let block = Arc::new(Block::new(100).unwrap());
    let mut table = RegionTable::new(2).unwrap();
    let mut register = |key, range| table.register(key, 1, ALL, 0, Arc::clone(&block), range);
    assert_eq!(register(0, 0..1), Err(RegisterError::InvalidKey));
    assert_eq!(register(1, 0..101), Err(RegisterError::OutOfBounds));
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let reversed = 2..1;
    assert_eq!(register(1, reversed), Err(RegisterError::OutOfBounds));
    assert_eq!(register(1, 0..100), Ok(()));
    assert_eq!(register(1, 0..100), Err(RegisterError::KeyTaken));
    // Four places for two regions: 5 shares the place of 1.
    assert_eq!(register(5, 0..100), Err(RegisterError::KeyTaken));
    assert_eq!(register(2, 100..100), Ok(()));
    assert_eq!(register(3, 0..1), Err(RegisterError::Full));
    assert_eq!((table.len(), table.limit()), (2, 2));
    for limit in [0, RegionTable::MAX_LIMIT + 1, u32::MAX] {
        assert_eq!(RegionTable::new(limit).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidInput));
    }
}

#[test]
fn a_region_without_any_right_to_write_is_never_written() {
    let table = table_with(5, Access::REMOTE_READ, 0, 100);
    let span = table.check(5, 1, 0, 8, Access::empty()).unwrap();
    assert_eq!(table.copy_out(span, &mut [1; 8]), Ok(()));
    assert_eq!(table.copy_in(span, &[1; 8]), Err(SpanError::ReadOnly));
    assert_eq!(table.fetch_add(span, 1), Err(SpanError::ReadOnly));
    assert_eq!(table.compare_swap(span, 0, 1), Err(SpanError::ReadOnly));
}

#[test]
fn buffers_must_fit_their_span() {
    let table = table_with(5, ALL, 0, 100);
    let span = table.check(5, 1, 0, 8, ALL).unwrap();
    assert_eq!(table.copy_out(span, &mut [0; 7]), Err(SpanError::Length));
    assert_eq!(table.copy_out_crc(span, &mut [0; 9], 0), Err(SpanError::Length));
    assert_eq!(table.copy_in(span, &[0; 9]), Err(SpanError::Length));
}

#[test]
fn atomics_return_what_was_there() {
    let table = table_with(5, ALL, 4, 100);
    let span = table.check(5, 1, 12, 8, Access::REMOTE_ATOMIC).unwrap();
    assert_eq!(table.fetch_add(span, u64::MAX), Ok(0));
    assert_eq!(table.fetch_add(span, 3), Ok(u64::MAX));
    assert_eq!(table.compare_swap(span, 3, 9), Ok(2));
    assert_eq!(table.compare_swap(span, 2, 9), Ok(2));
    assert_eq!(table.compare_swap(span, 9, 9), Ok(9));
    // The memory counts, not the address: 12 is where byte 8 is.
    let misaligned = table.check(5, 1, 16, 8, Access::REMOTE_ATOMIC).unwrap();
    assert_eq!(table.fetch_add(misaligned, 1), Err(SpanError::Misaligned));
    assert_eq!(table.compare_swap(misaligned, 0, 1), Err(SpanError::Misaligned));
    let short = table.check(5, 1, 12, 4, ALL).unwrap();
    assert_eq!(table.fetch_add(short, 1), Err(SpanError::Length));
}

#[test]
fn foreign_memory_is_registered_by_address() {
    let mut memory = vec![0u8; 64];
    let ptr = memory.as_mut_ptr();
    let va = ptr.addr() as u64;
    let mut table = RegionTable::new(8).unwrap();
    // SAFETY: the vector lives on and is not touched until the region is gone.
    unsafe { table.register_raw(9, 1, ALL, va, ptr, 64) }.unwrap();
    let span = table.check(9, 1, va + 60, 4, Access::LOCAL_WRITE).unwrap();
    table.copy_in(span, b"tail").unwrap();
    assert!(matches!(table.deregister(9), Some(Owner::Foreign)));
    assert_eq!(&memory[60..], b"tail");

    // SAFETY: both are refused.
    unsafe {
        let null = table.register_raw(9, 1, ALL, 0, std::ptr::null_mut(), 64);
        assert_eq!(null, Err(RegisterError::OutOfBounds));
        let huge = table.register_raw(9, 1, ALL, 0, ptr, usize::MAX);
        assert_eq!(huge, Err(RegisterError::OutOfBounds));
    }
}

#[test]
fn part_of_a_span_is_inside_it() {
    let table = table_with(5, ALL, 0, 100);
    let span = table.check(5, 1, 10, 50, ALL).unwrap();
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

#[derive(Clone, Debug)]
enum Step {
    Register { key: u32, pd: u32, access: Access, iova: u64, start: usize, len: usize },
    Deregister { key: u32 },
    Check { key: u32, pd: u32, va: u64, len: u32, need: Access },
    Use { nth: usize },
}

/// Few keys and addresses that are close together or at the ends, so that they meet.
fn any_step() -> impl Strategy<Value = Step> {
    let key = || 0u32..40;
    let pd = || 1u32..3;
    let access = || (0u32..16).prop_map(Access::from_bits_truncate);
    let iova = || prop_oneof![Just(0u64), 0u64..300, (u64::MAX - 300)..=u64::MAX, any::<u64>()];
    let len32 = prop_oneof![0u32..300, Just(u32::MAX)];
    prop_oneof![
        3 => (key(), pd(), access(), iova(), 0usize..300, 0usize..300)
            .prop_map(|(key, pd, access, iova, start, len)| Step::Register { key, pd, access, iova, start, len }),
        1 => key().prop_map(|key| Step::Deregister { key }),
        6 => (key(), pd(), iova(), len32, access())
            .prop_map(|(key, pd, va, len, need)| Step::Check { key, pd, va, len, need }),
        3 => (0usize..1000).prop_map(|nth| Step::Use { nth }),
    ]
}

/// What the model knows of a registration.
#[derive(Clone, Debug)]
struct Known {
    serial: usize,
    pd: u32,
    access: Access,
    iova: u64,
    start: usize,
    len: usize,
}

const BLOCK_LEN: usize = 256;
const LIMIT: u32 = 6;
const PLACES: u32 = 16;

struct Model {
    regions: HashMap<u32, Known>,
    registrations: usize,
    bytes: Vec<u8>,
    /// Every span ever granted, with the registration it is of and where its bytes are.
    spans: Vec<(Span, usize, Range<usize>, Access)>,
}

impl Model {
    fn register(&mut self, key: u32, known: Known) -> Result<(), RegisterError> {
        if known.start + known.len > BLOCK_LEN {
            return Err(RegisterError::OutOfBounds);
        }
        if key == 0 {
            return Err(RegisterError::InvalidKey);
        }
        if u128::from(known.iova) + known.len as u128 > 1 << 64 {
            return Err(RegisterError::OutOfBounds);
        }
        if self.regions.len() == LIMIT as usize {
            return Err(RegisterError::Full);
        }
        if self.regions.keys().any(|other| other % PLACES == key % PLACES) {
            return Err(RegisterError::KeyTaken);
        }
        self.registrations += 1;
        self.regions.insert(key, Known { serial: self.registrations, ..known });
        Ok(())
    }

    fn check(&self, key: u32, pd: u32, va: u64, len: u32, need: Access) -> Result<Range<usize>, AccessError> {
        let region = self.regions.get(&key).ok_or(AccessError::UnknownKey)?;
        if region.pd != pd {
            return Err(AccessError::WrongDomain);
        }
        if !(need - region.access).is_empty() {
            return Err(AccessError::NotPermitted);
        }
        let (first, end) = (i128::from(va), i128::from(va) + i128::from(len));
        let (region_first, region_end) =
            (i128::from(region.iova), i128::from(region.iova) + region.len as i128);
        if first < region_first || end > region_end {
            return Err(AccessError::OutOfBounds);
        }
        let start = region.start + (first - region_first) as usize;
        Ok(start..start + len as usize)
    }

    fn serial_is_live(&self, serial: usize) -> bool {
        self.regions.values().any(|region| region.serial == serial)
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_the_model(steps in proptest::collection::vec(any_step(), 1..120)) {
        let block = Arc::new(Block::new(BLOCK_LEN).unwrap());
        let mut table = RegionTable::new(LIMIT).unwrap();
        let bytes = vec![0; BLOCK_LEN];
        let mut model = Model { regions: HashMap::new(), registrations: 0, bytes, spans: Vec::new() };
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Register { key, pd, access, iova, start, len } => {
                    let expected = model.register(key, Known { serial: 0, pd, access, iova, start, len });
                    let memory = Arc::clone(&block);
                    let done = table.register(key, pd, access, iova, memory, start..start + len);
                    prop_assert_eq!(done, expected);
                }
                Step::Deregister { key } => {
                    let was_there = model.regions.remove(&key).is_some();
                    prop_assert_eq!(table.deregister(key).is_some(), was_there);
                }
                Step::Check { key, pd, va, len, need } => {
                    match (table.check(key, pd, va, len, need), model.check(key, pd, va, len, need)) {
                        (Ok(span), Ok(range)) => {
                            prop_assert_eq!(span.len(), len);
                            let region = &model.regions[&key];
                            prop_assert_eq!(span.offset() as usize, range.start - region.start);
                            model.spans.push((span, region.serial, range, region.access));
                        }
                        (span, range) => prop_assert_eq!(span.err(), range.err()),
                    }
                }
                Step::Use { nth } if !model.spans.is_empty() => {
                    let (span, serial, range, access) = model.spans[nth % model.spans.len()].clone();
                    let live = model.serial_is_live(serial);
                    let mut out = vec![0; range.len()];
                    let read = table.copy_out(span, &mut out);
                    let fresh = vec![number as u8; range.len()];
                    let written = table.copy_in(span, &fresh);
                    if !live {
                        prop_assert_eq!(read, Err(SpanError::Stale));
                        prop_assert_eq!(written, Err(SpanError::Stale));
                        continue;
                    }
                    prop_assert_eq!(read, Ok(()));
                    prop_assert_eq!(&out, &model.bytes[range.clone()]);
                    if (access - Access::REMOTE_READ).is_empty() {
                        prop_assert_eq!(written, Err(SpanError::ReadOnly));
                    } else {
                        prop_assert_eq!(written, Ok(()));
                        model.bytes[range].copy_from_slice(&fresh);
                    }
                }
                Step::Use { .. } => {}
            }
            prop_assert_eq!(table.len() as usize, model.regions.len());
        }
        let mut bytes = vec![0; BLOCK_LEN];
        block.read(0, &mut bytes).unwrap();
        prop_assert_eq!(bytes, model.bytes);
    }
}
