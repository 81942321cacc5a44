//! The table of registrations and windows: what a key stands for.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::Block;
use crate::region::entry::{Access, AccessError, Entry, Kind, Slot, User};
use crate::region::foreign::ForeignMemory;
use crate::region::home::{Body, Home, Memory, Owner, Place};
use crate::region::span::Span;

/// Why memory was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The key, or its place in the table, is taken, or was the last one in that place: draw another one.
    #[error("the key is taken")]
    KeyTaken,
    /// The key 0 is never valid.
    #[error("0 is not a key")]
    InvalidKey,
    /// There are as many regions, or windows, as the table was made for.
    #[error("there are as many as this device allows")]
    Full,
    /// The range is not within the block, or its addresses would pass 2^64.
    #[error("the range is outside the memory, or its addresses pass the end of the address space")]
    OutOfBounds,
    /// A right to write was asked for, and the memory may only be read.
    #[error("the memory may only be read")]
    ReadOnlyMemory,
    /// No region has this key.
    #[error("no region has this key")]
    UnknownKey,
    /// The null region, and one of device memory, cannot be changed.
    #[error("a region of this kind cannot be changed")]
    Fixed,
    /// So many windows are bound to the region: unbind them first.
    #[error("{0} memory windows are bound to the region")]
    Bound(u32),
}

/// Why a region was not deregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeregisterError {
    /// No region has this key (any more).
    #[error("no region has this key")]
    UnknownKey,
    /// So many windows are bound to it: unbind them first (EBUSY).
    #[error("{0} memory windows are bound to the region")]
    Bound(u32),
}

/// What to change of a registration; the rest stays (`ibv_rereg_mr`).
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The memory, and the address that its first byte has in work requests and packets.
    pub translation: Option<(Memory, u64)>,
    /// The protection domain.
    pub pd: Option<u32>,
    /// The rights.
    pub access: Option<Access>,
}

/// What kind of memory a region has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionKind {
    /// Memory of this host.
    Host,
    /// Memory of the device.
    Device,
    /// None.
    Null,
}

/// What is known of a region (IBA 11.2.8.3, "Query Memory Region").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// What kind of memory it has.
    pub kind: RegionKind,
    /// Its protection domain.
    pub pd: u32,
    /// What it allows.
    pub access: Access,
    /// The address of its first byte in work requests and packets.
    pub iova: u64,
    /// Its length in bytes; all there can be for the null region.
    pub len: u64,
    /// Windows that are bound to it.
    pub windows: u32,
}

/// The registered memory of a NIC: keys, rights, bounds, and the accesses that they allow.
///
/// # Keys
/// The upper 24 bits of a key are its *index*, the low 8 are left to the consumer: those of a window of type 2
/// change with each bind (IBA 10.6.7.2). The table has a fixed size and is mapped directly by the low bits
/// of the index, with one place for each: no probing, no tombstones. Keys are drawn at random, so a caller
/// whose key is refused ([`RegisterError::KeyTaken`]) draws again; the table is at least twice as large as
/// the limits, so half of the draws succeed even when it is full.
///
/// A key that is gone does not come back soon. A place refuses the index that it had last, so another object
/// has to live there first; then that very key has to be drawn out of 2^32. After a million
/// registrations the odds that one given key has come back are below one in a thousand. A consumer may give a
/// window of type 2 a key that it had before; that is its own affair, within its own 256 keys.
pub struct RegionTable {
    slots: Block,
    mask: u32,
    region_limit: u32,
    window_limit: u32,
    pub(super) windows: u32,
    /// Windows that are bound to a queue pair.
    pub(super) queue_pair_windows: u32,
    generation: u64,
    pub(super) homes: Vec<Option<Home>>,
    free_homes: Vec<u32>,
}

/// The part of a key that the consumer owns.
pub(super) const KEY_BITS: u32 = 8;

impl RegionTable {
    /// The largest number of regions and windows together: 2^20. Beyond it, random 32-bit keys would leave
    /// little to guess.
    pub const MAX_LIMIT: u32 = 1 << 20;

    /// Makes a table for up to so many regions and windows.
    ///
    /// # Errors
    /// `InvalidInput` if there are to be no regions, or more of both than [`MAX_LIMIT`](RegionTable::MAX_LIMIT);
    /// otherwise what the system says to an allocation.
    pub fn new(regions: u32, windows: u32) -> io::Result<Self> {
        let total = regions.checked_add(windows).filter(|total| regions > 0 && *total <= Self::MAX_LIMIT);
        let Some(total) = total else {
            let reason = "a table of no or too many regions";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        let size = (2 * total).next_power_of_two();
        let mut table = RegionTable {
            slots: Block::new_read_only_to_others(size as usize * size_of::<Slot>())?,
            mask: size - 1,
            region_limit: regions,
            window_limit: windows,
            windows: 0,
            queue_pair_windows: 0,
            generation: 0,
            homes: Vec::new(),
            free_homes: Vec::new(),
        };
        // All of it now, so that no registration allocates.
        table.homes.try_reserve_exact(total as usize).map_err(out_of_memory)?;
        table.free_homes.try_reserve_exact(total as usize).map_err(out_of_memory)?;
        Ok(table)
    }

    /// The most regions that can be registered at a time.
    pub fn limit(&self) -> u32 {
        self.region_limit
    }

    /// The most windows that can exist at a time.
    pub fn window_limit(&self) -> u32 {
        self.window_limit
    }

    /// The number of regions registered.
    pub fn len(&self) -> u32 {
        (self.homes.len() - self.free_homes.len()) as u32 - self.windows
    }

    /// Whether no region is registered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of windows.
    pub fn windows(&self) -> u32 {
        self.windows
    }

    // ---- Registering ------------------------------------------------------------------------

    /// Registers memory, of which the table keeps a share until it is deregistered.
    ///
    /// `iova` is the address that the first byte has in work requests and packets; with
    /// [`Access::ZERO_BASED`] it is 0 whatever is given.
    ///
    /// # Errors
    /// See [`RegisterError`]; nothing is registered then.
    pub fn register(
        &mut self,
        key: u32,
        pd: u32,
        access: Access,
        iova: u64,
        memory: Memory,
    ) -> Result<(), RegisterError> {
        let place = Place::new(memory)?;
        self.insert_region(Kind::Region, key, pd, access, iova, place)
    }

    /// Registers a range of device memory (`ibv_reg_dm_mr`), whose addresses are offsets in the range.
    ///
    /// # Errors
    /// See [`RegisterError`]; nothing is registered then.
    pub fn register_device_memory(
        &mut self,
        key: u32,
        pd: u32,
        access: Access,
        memory: Arc<Block>,
        range: Range<usize>,
    ) -> Result<(), RegisterError> {
        let place = Place::new(Memory::Block(memory, range))?;
        self.insert_region(Kind::DeviceMemory, key, pd, access | Access::ZERO_BASED, 0, place)
    }

    /// Registers the null region of a domain (`ibv_alloc_null_mr`): at each address zeroes are read, and what
    /// is written is forgotten. It is for work requests only: peers have no right to it.
    ///
    /// # Errors
    /// See [`RegisterError`]; nothing is registered then.
    pub fn register_null(&mut self, key: u32, pd: u32) -> Result<(), RegisterError> {
        self.insert_region(Kind::Null, key, pd, Access::LOCAL_WRITE, 0, Place::null())
    }

    /// Registers memory that somebody else owns, and that nothing keeps: see
    /// [`ForeignMemory`] for the kind that is kept.
    ///
    /// # Errors
    /// See [`RegisterError`]; nothing is registered then.
    ///
    /// # Safety
    /// Until it is deregistered, or registered anew as other memory, or the table is dropped, `len` bytes at
    /// `ptr` must be valid for reads from any thread, and for writes if `access` has any right to write
    /// (`LOCAL_WRITE`, `REMOTE_WRITE`, `REMOTE_ATOMIC`). Nobody may hold a reference (`&` or `&mut`) to bytes
    /// that the NIC writes meanwhile.
    pub unsafe fn register_raw(
        &mut self,
        key: u32,
        pd: u32,
        access: Access,
        iova: u64,
        ptr: *mut u8,
        len: usize,
    ) -> Result<(), RegisterError> {
        // SAFETY: the caller's promise covers the memory for as long as the registration lasts, and writes if
        // it is to be written. The value lives on only as the three fields that are taken out of it.
        let memory = unsafe { ForeignMemory::new(ptr, len) }?;
        let (base, writable) = (Some(memory.base()), access.intersects(Access::WRITING));
        let place = Place { base, len, writable, block: 0, block_offset: 0, owner: Owner::Foreign };
        self.insert_region(Kind::Region, key, pd, access, iova, place)
    }

    fn insert_region(
        &mut self,
        kind: Kind,
        key: u32,
        pd: u32,
        access: Access,
        iova: u64,
        place: Place,
    ) -> Result<(), RegisterError> {
        let iova = checked_iova(kind, access, iova, &place)?;
        if self.len() == self.region_limit {
            return Err(RegisterError::Full);
        }
        self.admit(key)?;
        let home = self.take_home(Home {
            generation: 0,
            base: None,
            len: 0,
            writable: false,
            key,
            body: Body::Region { owner: Owner::Nobody, memory_writable: false, windows: 0 },
        });
        self.settle(home, kind, pd, access, iova, place);
        Ok(())
    }

    /// Puts a region into its home and its slot, under a new generation; returns whose memory was there.
    fn settle(
        &mut self,
        index: u32,
        kind: Kind,
        pd: u32,
        access: Access,
        iova: u64,
        place: Place,
    ) -> Option<Owner> {
        let generation = self.next_generation();
        let home = self.homes.get_mut(index as usize)?.as_mut()?;
        let Place { base, len, writable, block, block_offset, owner } = place;
        let Home { key, body: Body::Region { owner: own, memory_writable, .. }, .. } = home else {
            return None;
        };
        let (key, before) = (*key, std::mem::replace(own, owner));
        *memory_writable = writable;
        (home.generation, home.base, home.len) = (generation, base, len);
        home.writable = access.intersects(Access::WRITING);
        let entry = Entry {
            generation,
            key,
            pd,
            access,
            home: index,
            iova,
            len: len as u64,
            block,
            block_offset,
            kind,
            qpn: 0,
        };
        self.slot(key).store(&entry);
        Some(before)
    }

    /// Changes a registration: its memory, domain or rights (`ibv_rereg_mr`). The key stays; spans that were
    /// made before are stale. Returns whose memory it was, if that is not its memory any more.
    ///
    /// # Errors
    /// See [`RegisterError`]; the registration is as it was then.
    pub fn reregister(&mut self, key: u32, change: Change) -> Result<Option<Owner>, RegisterError> {
        let (index, entry) = self.region_entry(key).ok_or(RegisterError::UnknownKey)?;
        let home = self.homes.get(index as usize).and_then(Option::as_ref);
        let Some(Home { base, len, body: Body::Region { owner, memory_writable, windows }, .. }) = home
        else {
            return Err(RegisterError::UnknownKey);
        };
        if entry.kind != Kind::Region {
            return Err(RegisterError::Fixed);
        }
        if *windows > 0 {
            return Err(RegisterError::Bound(*windows));
        }
        let access = change.access.unwrap_or(entry.access);
        let pd = change.pd.unwrap_or(entry.pd);
        let moves = change.translation.is_some();
        let (place, iova) = match change.translation {
            Some((memory, iova)) => (Place::new(memory)?, iova),
            None => {
                let (base, len, writable, owner) = (*base, *len, *memory_writable, owner.clone());
                let Entry { block, block_offset, iova, .. } = entry;
                (Place { base, len, writable, block, block_offset, owner }, iova)
            }
        };
        let iova = checked_iova(entry.kind, access, iova, &place)?;
        let before = self.settle(index, entry.kind, pd, access, iova, place);
        Ok(before.filter(|_| moves))
    }

    /// Removes a region. Its key is unknown and its spans are stale from here on.
    ///
    /// Returns whose memory it was, so that the caller decides where the last share of a block goes
    /// (unmapping memory takes time).
    ///
    /// # Errors
    /// [`DeregisterError::Bound`] while windows are bound to it (IBA 10.6.7.2.3), and then nothing changes.
    pub fn deregister(&mut self, key: u32) -> Result<Owner, DeregisterError> {
        let (index, _) = self.region_entry(key).ok_or(DeregisterError::UnknownKey)?;
        let place = self.homes.get_mut(index as usize).ok_or(DeregisterError::UnknownKey)?;
        if let Some(Home { body: Body::Region { windows, .. }, .. }) = place
            && *windows > 0
        {
            return Err(DeregisterError::Bound(*windows));
        }
        self.slot(key).clear();
        match self.leave_home(index).map(|home| home.body) {
            Some(Body::Region { owner, .. }) => Ok(owner),
            _ => Err(DeregisterError::UnknownKey),
        }
    }

    /// Removes a region, and unbinds the windows that are bound to it before. For an owner that cannot be
    /// refused; it takes a look at every window.
    pub fn revoke(&mut self, key: u32) -> Option<Owner> {
        let (index, _) = self.region_entry(key)?;
        match self.deregister(key) {
            Err(DeregisterError::Bound(_)) => {
                self.unbind_all(|bound| bound.region == index);
                self.deregister(key).ok()
            }
            other => other.ok(),
        }
    }

    /// What is known of a region.
    pub fn region(&self, key: u32) -> Option<RegionInfo> {
        let (index, entry) = self.region_entry(key)?;
        let home = self.homes.get(index as usize)?.as_ref()?;
        let Body::Region { windows, .. } = home.body else { return None };
        let kind = match entry.kind {
            Kind::DeviceMemory => RegionKind::Device,
            Kind::Null => RegionKind::Null,
            _ => RegionKind::Host,
        };
        let Entry { pd, access, iova, len, .. } = entry;
        Some(RegionInfo { kind, pd, access, iova, len, windows })
    }

    // ---- Checking ---------------------------------------------------------------------------

    /// Checks that the owner of domain `pd` may access `len` bytes at address `va` of region `key` by a work
    /// request, and that the region has all rights in `need` (none are needed for reading by the NIC's own
    /// user). Windows are not for work requests, and their keys unknown here.
    ///
    /// An access of no bytes is checked like any other; one just behind the last byte is inside. For
    /// requests whose key does not count when they have no bytes, see [`Span::EMPTY`].
    ///
    /// # Errors
    /// The first of: unknown key, wrong domain, missing right, out of bounds.
    #[inline]
    pub fn check(&self, key: u32, pd: u32, va: u64, len: u32, need: Access) -> Result<Span, AccessError> {
        self.check_for(User::Local, key, pd, va, len, need)
    }

    /// As [`check`](RegionTable::check), for a peer that comes through the queue pair `qpn` of domain `pd`:
    /// `key` may be that of a region or of a window.
    ///
    /// # Errors
    /// The first of: unknown key, wrong domain, wrong queue pair, missing right, out of bounds.
    #[inline]
    pub fn check_remote(
        &self,
        key: u32,
        pd: u32,
        qpn: u32,
        va: u64,
        len: u32,
        need: Access,
    ) -> Result<Span, AccessError> {
        self.check_for(User::Remote(qpn), key, pd, va, len, need)
    }

    #[inline]
    fn check_for(
        &self,
        user: User,
        key: u32,
        pd: u32,
        va: u64,
        len: u32,
        need: Access,
    ) -> Result<Span, AccessError> {
        let entry = self.slot(key).load().ok_or(AccessError::UnknownKey)?;
        let offset = entry.check(key, pd, va, len, need, user)?;
        Ok(Span { generation: entry.generation, offset, home: entry.home, len })
    }

    // ---- Places -----------------------------------------------------------------------------

    /// Whether a new object may have this key.
    pub(super) fn admit(&self, key: u32) -> Result<(), RegisterError> {
        if key == 0 {
            return Err(RegisterError::InvalidKey);
        }
        let slot = self.slot(key);
        let last = slot.last_key();
        if !slot.is_free() || (last != 0 && last >> KEY_BITS == key >> KEY_BITS) {
            return Err(RegisterError::KeyTaken);
        }
        Ok(())
    }

    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Finds a place for a home: there is one, since the limits were checked.
    pub(super) fn take_home(&mut self, home: Home) -> u32 {
        match self.free_homes.pop() {
            Some(index) => {
                self.homes[index as usize] = Some(home);
                index
            }
            None => {
                self.homes.push(Some(home));
                self.homes.len() as u32 - 1
            }
        }
    }

    pub(super) fn leave_home(&mut self, index: u32) -> Option<Home> {
        let home = self.homes.get_mut(index as usize)?.take()?;
        self.free_homes.push(index);
        Some(home)
    }

    /// The home and the entry of a region.
    pub(super) fn region_entry(&self, key: u32) -> Option<(u32, Entry)> {
        let entry = self.slot(key).load().filter(|entry| entry.key == key)?;
        let home = self.homes.get(entry.home as usize)?.as_ref()?;
        let is_region = matches!(home.body, Body::Region { .. }) && home.generation == entry.generation;
        is_region.then_some((entry.home, entry))
    }

    /// The bits of a key that say where in the table it is.
    pub fn place_bits(&self) -> u32 {
        self.mask << KEY_BITS
    }

    pub(super) fn slot(&self, key: u32) -> &Slot {
        let index = ((key >> KEY_BITS) & self.mask) as usize;
        // SAFETY: the block holds `mask + 1` slots, page-aligned, of zero bytes at first, which is a valid
        // `Slot`; it is only ever accessed through the atomics of `Slot`, and lives as long as `self`.
        unsafe { &*self.slots.as_ptr().cast::<Slot>().add(index) }
    }
}

/// The address of the first byte, if a registration may be so.
fn checked_iova(kind: Kind, access: Access, iova: u64, place: &Place) -> Result<u64, RegisterError> {
    if access.intersects(Access::WRITING) && !place.writable {
        return Err(RegisterError::ReadOnlyMemory);
    }
    let iova = if access.contains(Access::ZERO_BASED) { 0 } else { iova };
    // The last byte has an address; the end of the region may be 2^64 itself.
    if kind != Kind::Null && iova.checked_add((place.len as u64).saturating_sub(1)).is_none() {
        return Err(RegisterError::OutOfBounds);
    }
    Ok(iova)
}

fn out_of_memory(_: std::collections::TryReserveError) -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}
