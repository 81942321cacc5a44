//! The table against a model that is too simple to be wrong.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const BLOCK_LEN: usize = 256;
const REGIONS: u32 = 6;
const WINDOWS: u32 = 4;
const PLACES: u32 = 32;

/// A key of a region that exists (0, 1), of a window (2, 3), or any small one (4).
type Which = (u8, u32);

/// An address: some bytes behind the first one of what the key names, or any.
type Where = (bool, u64);

#[derive(Clone, Debug)]
enum Step {
    Register { key: u32, pd: u32, access: Access, iova: u64, start: usize, len: usize },
    Reregister { which: Which, to: Option<(usize, usize, u64)>, pd: Option<u32>, access: Option<Access> },
    Deregister { which: Which, force: bool },
    Alloc { key: u32, pd: u32, kind: WindowType },
    Free { nth: usize },
    Bind { nth: usize, low: u32, region: Which, addr: Where, len: u64, access: Access, pd: u32, qpn: u32 },
    Invalidate { which: Which, pd: u32, qpn: u32 },
    ForgetQueuePair { qpn: u32 },
    Check { which: Which, pd: u32, qpn: Option<u32>, va: Where, len: u32, need: Access },
    Use { nth: usize },
}

/// Few keys and addresses that are close together or at the ends, so that they meet.
fn any_step() -> impl Strategy<Value = Step> {
    let key = || (0u32..48, 0u32..2).prop_map(|(index, low)| index << 8 | low);
    let which = || (0u8..5, any::<u32>());
    let pd = || prop_oneof![15 => Just(1u32), 1 => Just(2)];
    let qpn = || prop_oneof![3 => Just(1u32), 1 => Just(2)];
    let rights = || {
        let all = Access::all().bits();
        any::<u32>().prop_map(move |bits| Access::from_bits_truncate(bits & all))
    };
    // Often enough what nearly everything is granted with.
    let access = || prop_oneof![rights(), Just(ALL), Just(Access::LOCAL_WRITE | Access::MW_BIND)];
    let need = || (0u32..7).prop_map(|bit| Access::from_bits_truncate(1 << bit & 15));
    let iova =
        || prop_oneof![3 => Just(0u64), 3 => 0u64..300, 1 => (u64::MAX - 300)..=u64::MAX, 1 => any::<u64>()];
    let place = || (proptest::bool::weighted(0.8), prop_oneof![5 => 0u64..30, 1 => iova()]);
    let len32 = prop_oneof![8 => 0u32..20, 3 => 0u32..100, 1 => Just(u32::MAX)];
    let len64 = prop_oneof![9 => 0u64..60, 1 => any::<u64>()];
    let range = || (0usize..140, 0usize..140);
    let kind = prop_oneof![Just(WindowType::One), Just(WindowType::Two)];
    prop_oneof![
        4 => (key(), pd(), access(), iova(), range())
            .prop_map(|(key, pd, access, iova, (start, len))| Step::Register { key, pd, access, iova, start, len }),
        1 => (which(), proptest::option::of((range(), iova())), proptest::option::of(pd()),
            proptest::option::of(access()))
            .prop_map(|(which, to, pd, access)| {
                let to = to.map(|((start, len), iova)| (start, len, iova));
                Step::Reregister { which, to, pd, access }
            }),
        1 => (which(), any::<bool>()).prop_map(|(which, force)| Step::Deregister { which, force }),
        2 => (key(), pd(), kind).prop_map(|(key, pd, kind)| Step::Alloc { key, pd, kind }),
        1 => (0usize..8).prop_map(|nth| Step::Free { nth }),
        8 => ((0usize..4, 0u32..4, which()), place(), len64, access(), pd(), qpn())
            .prop_map(|((nth, low, region), addr, len, access, pd, qpn)| {
                Step::Bind { nth, low, region, addr, len, access, pd, qpn }
            }),
        2 => (which(), pd(), qpn()).prop_map(|(which, pd, qpn)| Step::Invalidate { which, pd, qpn }),
        1 => qpn().prop_map(|qpn| Step::ForgetQueuePair { qpn }),
        8 => (which(), pd(), proptest::option::weighted(0.7, qpn()), place(), len32, need())
            .prop_map(|(which, pd, qpn, va, len, need)| Step::Check { which, pd, qpn, va, len, need }),
        4 => (0usize..1000).prop_map(|nth| Step::Use { nth }),
    ]
}

/// What the model knows of a registration, or of what a window is bound to.
#[derive(Clone, Debug)]
struct Known {
    serial: usize,
    pd: u32,
    access: Access,
    iova: u64,
    start: usize,
    len: usize,
}

#[derive(Clone, Debug)]
struct KnownWindow {
    id: WindowId,
    key: u32,
    pd: u32,
    kind: WindowType,
    /// What it shows, the key of the region, and the queue pair that it is tied to.
    bound: Option<(Known, u32, Option<u32>)>,
}

#[derive(Default)]
struct Model {
    regions: HashMap<u32, Known>,
    windows: Vec<KnownWindow>,
    /// The index that lived last in each place.
    last: HashMap<u32, u32>,
    serials: usize,
    bytes: Vec<u8>,
    /// Every span ever granted, with what it is of and where its bytes are.
    spans: Vec<(Span, usize, Range<usize>, Access)>,
}

fn place(key: u32) -> u32 {
    (key >> 8) % PLACES
}

fn zero_if(access: Access, iova: u64) -> u64 {
    if access.contains(Access::ZERO_BASED) { 0 } else { iova }
}

impl Model {
    fn keys(&self) -> Vec<u32> {
        let mut keys: Vec<u32> = self.regions.keys().copied().collect();
        keys.extend(self.windows.iter().map(|window| window.key));
        keys.sort_unstable();
        keys
    }

    fn pick(&self, (kind, n): Which) -> u32 {
        let mut keys: Vec<u32> = match kind {
            0 | 1 => self.regions.keys().copied().collect(),
            2 | 3 => self.windows.iter().map(|window| window.key).collect(),
            _ => Vec::new(),
        };
        keys.sort_unstable();
        match keys.is_empty() {
            false => keys[n as usize % keys.len()],
            true => (n % 48) << 8 | (n >> 8 & 1),
        }
    }

    fn address(&self, key: u32, (relative, offset): Where) -> u64 {
        let window = || self.windows.iter().find(|window| window.key == key)?.bound.as_ref();
        let shown = self.regions.get(&key).or_else(|| window().map(|bound| &bound.0));
        shown.filter(|_| relative).map_or(offset, |shown| shown.iova.wrapping_add(offset))
    }

    fn serial(&mut self) -> usize {
        self.serials += 1;
        self.serials
    }

    fn admit(&mut self, key: u32) -> Result<(), RegisterError> {
        if key == 0 {
            return Err(RegisterError::InvalidKey);
        }
        let taken = self.keys().iter().any(|other| place(*other) == place(key));
        if taken || self.last.get(&place(key)) == Some(&(key >> 8)) {
            return Err(RegisterError::KeyTaken);
        }
        self.last.insert(place(key), key >> 8);
        Ok(())
    }

    fn fits(known: &Known) -> Result<(), RegisterError> {
        let end = known.start + known.len;
        if end > BLOCK_LEN || u128::from(known.iova) + known.len as u128 > 1 << 64 {
            return Err(RegisterError::OutOfBounds);
        }
        Ok(())
    }

    fn register(&mut self, key: u32, mut known: Known) -> Result<(), RegisterError> {
        known.iova = zero_if(known.access, known.iova);
        Self::fits(&known)?;
        if self.regions.len() == REGIONS as usize {
            return Err(RegisterError::Full);
        }
        self.admit(key)?;
        known.serial = self.serial();
        self.regions.insert(key, known);
        Ok(())
    }

    fn windows_of(&self, region: u32) -> u32 {
        let of = |window: &&KnownWindow| window.bound.as_ref().is_some_and(|bound| bound.1 == region);
        self.windows.iter().filter(of).count() as u32
    }

    fn reregister(
        &mut self,
        key: u32,
        to: Option<(usize, usize, u64)>,
        pd: Option<u32>,
        access: Option<Access>,
    ) -> Result<(), RegisterError> {
        let mut known = self.regions.get(&key).cloned().ok_or(RegisterError::UnknownKey)?;
        if self.windows_of(key) > 0 {
            return Err(RegisterError::Bound(self.windows_of(key)));
        }
        (known.start, known.len, known.iova) = to.unwrap_or((known.start, known.len, known.iova));
        known.pd = pd.unwrap_or(known.pd);
        known.access = access.unwrap_or(known.access);
        known.iova = zero_if(known.access, known.iova);
        Self::fits(&known)?;
        known.serial = self.serial();
        self.regions.insert(key, known);
        Ok(())
    }

    fn bind(&mut self, bind: &Bind, pd: u32, qpn: u32) -> Result<(), BindError> {
        let window = self.windows.iter().position(|window| window.id == bind.window);
        let nth = window.ok_or(BindError::UnknownWindow)?;
        let KnownWindow { key, pd: own, kind, ref bound, .. } = self.windows[nth];
        let one = kind == WindowType::One;
        if own != pd {
            return Err(BindError::WrongDomain);
        }
        let stays = if one { place(key) == place(bind.key) } else { key >> 8 == bind.key >> 8 };
        if !stays || bind.key == 0 || (one && bind.key == key) {
            return Err(BindError::WrongKey);
        }
        if one && bind.access.contains(Access::ZERO_BASED) {
            return Err(BindError::ZeroBased);
        }
        if !one && bound.is_some() {
            return Err(BindError::AlreadyBound);
        }
        let mut to = None;
        if bind.len == 0 {
            if !one {
                return Err(BindError::NoBytes);
            }
        } else {
            let region = self.regions.get(&bind.region).cloned().ok_or(BindError::UnknownRegion)?;
            if region.pd != pd {
                return Err(BindError::WrongDomain);
            }
            let changes = bind.access.intersects(Access::REMOTE_WRITE | Access::REMOTE_ATOMIC);
            let local = region.access.contains(Access::LOCAL_WRITE);
            if !region.access.contains(Access::MW_BIND) || (changes && !local) {
                return Err(BindError::NotPermitted);
            }
            let first = i128::from(bind.addr) - i128::from(region.iova);
            if first < 0 || first + i128::from(bind.len) > region.len as i128 {
                return Err(BindError::OutOfBounds);
            }
            let rights = Access::REMOTE_READ
                | Access::REMOTE_WRITE
                | Access::REMOTE_ATOMIC
                | Access::FLUSH_GLOBAL
                | Access::FLUSH_PERSISTENT
                | Access::ZERO_BASED;
            let access = bind.access & rights;
            let (start, len) = (region.start + first as usize, bind.len as usize);
            let iova = zero_if(access, bind.addr);
            let shown = Known { serial: self.serial(), pd, access, iova, start, len };
            to = Some((shown, bind.region, (!one).then_some(qpn)));
        }
        self.last.insert(place(bind.key), bind.key >> 8);
        (self.windows[nth].key, self.windows[nth].bound) = (bind.key, to);
        Ok(())
    }

    fn invalidate(&mut self, key: u32, pd: u32, qpn: u32) -> Result<(), AccessError> {
        if let Some(region) = self.regions.get(&key) {
            let own = region.pd == pd;
            return Err(if own { AccessError::NotPermitted } else { AccessError::WrongDomain });
        }
        let window = self.windows.iter_mut().find(|window| window.key == key && window.bound.is_some());
        let window = window.ok_or(AccessError::UnknownKey)?;
        if window.pd != pd {
            return Err(AccessError::WrongDomain);
        }
        match window.bound.take_if(|bound| bound.2 == Some(qpn)) {
            Some(_) => Ok(()),
            None if window.kind == WindowType::One => Err(AccessError::NotPermitted),
            None => Err(AccessError::WrongQueuePair),
        }
    }

    fn unbind(&mut self, which: impl Fn(&(Known, u32, Option<u32>)) -> bool) {
        for window in &mut self.windows {
            window.bound.take_if(|bound| which(bound));
        }
    }

    /// What a key shows to its user, and where the bytes are.
    fn check(
        &self,
        key: u32,
        (pd, qpn): (u32, Option<u32>),
        va: u64,
        len: u32,
        need: Access,
    ) -> Result<(&Known, Range<usize>), AccessError> {
        let window = || {
            let bound = self.windows.iter().find(|window| window.key == key)?.bound.as_ref()?;
            qpn.map(|_| (&bound.0, bound.2))
        };
        let region = self.regions.get(&key).map(|region| (region, None));
        let (shown, tied) = region.or_else(window).ok_or(AccessError::UnknownKey)?;
        if shown.pd != pd {
            return Err(AccessError::WrongDomain);
        }
        if tied.is_some() && tied != qpn {
            return Err(AccessError::WrongQueuePair);
        }
        if !(need - shown.access).is_empty() {
            return Err(AccessError::NotPermitted);
        }
        let first = i128::from(va) - i128::from(shown.iova);
        if first < 0 || first + i128::from(len) > shown.len as i128 {
            return Err(AccessError::OutOfBounds);
        }
        let start = shown.start + first as usize;
        Ok((shown, start..start + len as usize))
    }

    fn serial_is_live(&self, serial: usize) -> bool {
        let bound = self.windows.iter().filter_map(|window| window.bound.as_ref().map(|bound| &bound.0));
        self.regions.values().chain(bound).any(|shown| shown.serial == serial)
    }
}

/// Does a step in both, and compares what they say.
fn step(
    table: &mut RegionTable,
    model: &mut Model,
    block: &Arc<Block>,
    number: usize,
    step: Step,
) -> Result<(), TestCaseError> {
    match step {
        Step::Register { key, pd, access, iova, start, len } => {
            let expected = model.register(key, Known { serial: 0, pd, access, iova, start, len });
            let done = table.register(key, pd, access, iova, memory(block, start..start + len));
            prop_assert_eq!(done, expected);
        }
        Step::Reregister { which, to, pd, access } => {
            let key = model.pick(which);
            let translation = to.map(|(start, len, iova)| (memory(block, start..start + len), iova));
            let done = table.reregister(key, Change { translation, pd, access });
            prop_assert_eq!(done.map(|_| ()), model.reregister(key, to, pd, access));
        }
        Step::Deregister { which, force } => {
            let key = model.pick(which);
            let (was_there, windows) = (model.regions.contains_key(&key), model.windows_of(key));
            if force {
                prop_assert_eq!(table.revoke(key).is_some(), was_there);
                model.unbind(|bound| bound.1 == key);
                model.regions.remove(&key);
            } else {
                let expected = match (was_there, windows) {
                    (false, _) => Err(DeregisterError::UnknownKey),
                    (true, 0) => Ok(()),
                    (true, _) => Err(DeregisterError::Bound(windows)),
                };
                prop_assert_eq!(table.deregister(key).map(|_| ()), expected);
                if expected.is_ok() {
                    model.regions.remove(&key);
                }
            }
        }
        Step::Alloc { key, pd, kind } => {
            let full = model.windows.len() == WINDOWS as usize;
            let expected = if full { Err(RegisterError::Full) } else { model.admit(key) };
            let made = table.alloc_window(key, pd, kind);
            prop_assert_eq!(made.map(|_| ()), expected);
            if let Ok(id) = made {
                model.windows.push(KnownWindow { id, key, pd, kind, bound: None });
            }
        }
        Step::Free { nth } if nth < model.windows.len() => {
            let window = model.windows.remove(nth);
            prop_assert!(table.free_window(window.id));
            prop_assert!(!table.free_window(window.id));
        }
        Step::Bind { nth, low, region, addr, len, access, pd, qpn } if nth < model.windows.len() => {
            // A region, or any small key.
            let region = model.pick((region.0 & 5, region.1));
            let addr = model.address(region, addr);
            let KnownWindow { id, key, kind, .. } = model.windows[nth];
            // The upper bits of three of four keys are right.
            let key = match (kind, low) {
                (_, 3) => key + 256,
                (WindowType::One, _) => key ^ (low * PLACES) << 8,
                (WindowType::Two, _) => key & !0xff | low,
            };
            let bind = Bind { window: id, key, region, addr, len, access };
            let done = table.bind(&bind, pd, qpn);
            prop_assert_eq!(done, model.bind(&bind, pd, qpn), "{:?}", bind);
        }
        Step::Invalidate { which, pd, qpn } => {
            let key = model.pick(which);
            prop_assert_eq!(table.invalidate(key, pd, qpn), model.invalidate(key, pd, qpn));
        }
        Step::ForgetQueuePair { qpn } => {
            table.forget_queue_pair(qpn);
            model.unbind(|bound| bound.2 == Some(qpn));
        }
        Step::Check { which, pd, qpn, va, len, need } => {
            let key = model.pick(which);
            let va = model.address(key, va);
            let done = match qpn {
                Some(qpn) => table.check_remote(key, pd, qpn, va, len, need),
                None => table.check(key, pd, va, len, need),
            };
            match (done, model.check(key, (pd, qpn), va, len, need)) {
                (Ok(span), Ok((shown, range))) => {
                    prop_assert_eq!(span.len(), len);
                    prop_assert_eq!(span.offset() as usize, range.start - shown.start);
                    let granted = (span, shown.serial, range, shown.access);
                    model.spans.push(granted);
                }
                (span, range) => prop_assert_eq!(span.err(), range.err()),
            }
        }
        Step::Use { nth } if !model.spans.is_empty() => {
            let (span, serial, range, access) = model.spans[nth % model.spans.len()].clone();
            let mut out = vec![0; range.len()];
            let read = table.copy_out(span, &mut out);
            let fresh = vec![number as u8; range.len()];
            let written = table.copy_in(span, &fresh);
            if !model.serial_is_live(serial) {
                prop_assert_eq!(read, Err(SpanError::Stale));
                prop_assert_eq!(written, Err(SpanError::Stale));
                return Ok(());
            }
            prop_assert_eq!(read, Ok(()));
            prop_assert_eq!(&out, &model.bytes[range.clone()]);
            if access.intersects(Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC) {
                prop_assert_eq!(written, Ok(()));
                model.bytes[range].copy_from_slice(&fresh);
            } else {
                prop_assert_eq!(written, Err(SpanError::ReadOnly));
            }
        }
        Step::Free { .. } | Step::Bind { .. } | Step::Use { .. } => {}
    }
    Ok(())
}

/// Everything that can be asked of the table says what the model knows.
fn compare(table: &RegionTable, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(table.len() as usize, model.regions.len());
    prop_assert_eq!(table.windows() as usize, model.windows.len());
    for (key, known) in &model.regions {
        let expected = RegionInfo {
            kind: RegionKind::Host,
            pd: known.pd,
            access: known.access,
            iova: known.iova,
            len: known.len as u64,
            windows: model.windows_of(*key),
        };
        prop_assert_eq!(table.region(*key), Some(expected));
    }
    for window in &model.windows {
        let bound = window.bound.as_ref().map(|(shown, region, qpn)| WindowBinding {
            region: *region,
            iova: shown.iova,
            len: shown.len as u64,
            access: shown.access,
            qpn: *qpn,
        });
        let KnownWindow { id, key, pd, kind, .. } = *window;
        prop_assert_eq!(table.window(id), Some(WindowInfo { kind, key, pd, bound }));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn the_table_agrees_with_the_model(steps in proptest::collection::vec(any_step(), 1..300)) {
        let block = Arc::new(Block::new(BLOCK_LEN).unwrap());
        let mut table = RegionTable::new(REGIONS, WINDOWS).unwrap();
        let mut model = Model { bytes: vec![0; BLOCK_LEN], ..Model::default() };
        for (number, next) in steps.into_iter().enumerate() {
            step(&mut table, &mut model, &block, number, next)?;
            if number % 8 == 0 {
                compare(&table, &model)?;
            }
        }
        compare(&table, &model)?;
        let mut bytes = vec![0; BLOCK_LEN];
        block.read(0, &mut bytes).unwrap();
        prop_assert_eq!(bytes, model.bytes);
    }
}
