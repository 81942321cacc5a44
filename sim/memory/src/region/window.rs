//! Memory windows: parts of a region, with rights of their own that come and go (IBA 10.6.7.2).
//!
//! | | type 1 | type 2 (2B) |
//! |---|---|---|
//! | bound through | any queue pair of the domain | any, and from then on tied to it |
//! | usable through | any queue pair of the domain | that queue pair |
//! | key after a bind | another one, in the same place | same index, the consumer's low 8 bits |
//! | bound again while bound | moves | refused: invalidate it first |
//! | bound to no bytes | is unbound | refused |
//! | addresses | the region's | the region's, or offsets in the window |
//! | invalidated by | nobody | LOCAL_INV, SEND with invalidate |

use std::sync::atomic::{AtomicU64, Ordering};

use crate::region::entry::{Access, AccessError, Entry, Kind};
use crate::region::home::{Body, Home};
use crate::region::table::{KEY_BITS, RegionTable, RegisterError};

/// The type of a memory window (`ibv_mw_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowType {
    /// Bound by a verb, for all queue pairs of its domain.
    One,
    /// Bound by a work request, for the queue pair that it was posted to (type 2B).
    Two,
}

/// A window, whatever key it has at present. Plain data; no other window of this process ever has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId {
    /// Where it is in its table.
    pub home: u32,
    /// Its number, which never comes back.
    pub serial: u64,
}

/// What to bind a window to (`ibv_mw_bind_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The window.
    pub window: WindowId,
    /// The key that it gets.
    pub key: u32,
    /// The key of the region.
    pub region: u32,
    /// Where in the region it starts, in the region's addresses.
    pub addr: u64,
    /// Its length in bytes; none unbinds a window of type 1.
    pub len: u64,
    /// What peers may do. Rights that are not for windows do not count.
    pub access: Access,
}

/// Why a window was not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BindError {
    /// There is no such window (any more).
    #[error("there is no such window")]
    UnknownWindow,
    /// A window of type 2 keeps the upper 24 bits of its key, one of type 1 its place and not all of its key.
    #[error("the window cannot have this key")]
    WrongKey,
    /// Window, region and queue pair are not all of one protection domain (C10-72).
    #[error("window, region and queue pair are of different protection domains")]
    WrongDomain,
    /// A window of type 2 is bound already: it has to be invalidated first (o10-37.2.30).
    #[error("the window is bound already")]
    AlreadyBound,
    /// A window of type 2 cannot be unbound by binding it to nothing (o10-37.2.40).
    #[error("a window of type 2 cannot be bound to no bytes")]
    NoBytes,
    /// The addresses of a window of type 1 are those of its region (o10-36.2.2).
    #[error("a window of type 1 cannot be zero-based")]
    ZeroBased,
    /// No region has this key.
    #[error("no region has this key")]
    UnknownRegion,
    /// The region was registered without `MW_BIND` (C10-73), or what is to be written without `LOCAL_WRITE`
    /// (C10-74).
    #[error("the region does not allow such a window")]
    NotPermitted,
    /// The window is not wholly inside the region (C10-75).
    #[error("the window is outside the region")]
    OutOfBounds,
}

/// What is known of a window (IBA 11.2.8.10, "Query Memory Window").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowInfo {
    /// Its type.
    pub kind: WindowType,
    /// Its key at present.
    pub key: u32,
    /// Its protection domain.
    pub pd: u32,
    /// What it is bound to.
    pub bound: Option<WindowBinding>,
}

/// What a window is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowBinding {
    /// The key of the region.
    pub region: u32,
    /// The address of its first byte, for peers.
    pub iova: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What peers may do.
    pub access: Access,
    /// The queue pair that it is tied to, if it is of type 2.
    pub qpn: Option<u32>,
}

/// The private part of a window.
pub(super) struct WindowState {
    serial: u64,
    kind: WindowType,
    pd: u32,
    bound: Option<Bound>,
}

/// What a window is bound to.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    /// The home of the region.
    pub(super) region: u32,
    /// The queue pair, for a window of type 2.
    qpn: Option<u32>,
}

impl RegionTable {
    /// Makes a window that is not bound (`ibv_alloc_mw`).
    ///
    /// # Errors
    /// [`RegisterError::Full`], or what is wrong with the key; there is no window then.
    pub fn alloc_window(&mut self, key: u32, pd: u32, kind: WindowType) -> Result<WindowId, RegisterError> {
        // One process may have several devices, and must not take a window of one for that of another.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if self.windows == self.window_limit() {
            return Err(RegisterError::Full);
        }
        self.admit(key)?;
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = WindowState { serial, kind, pd, bound: None };
        let body = Body::Window(state);
        self.windows += 1;
        let home = self.take_home(Home { generation: 0, base: None, len: 0, writable: false, key, body });
        self.clear_window(home, key);
        Ok(WindowId { home, serial })
    }

    /// Destroys a window (`ibv_dealloc_mw`); false if there is no such window.
    pub fn free_window(&mut self, window: WindowId) -> bool {
        let Some((key, _)) = self.window_state(window) else { return false };
        self.unbind(window.home, key);
        self.slot(key).clear();
        self.leave_home(window.home);
        self.windows -= 1;
        true
    }

    /// Binds a window, for work that was posted to queue pair `qpn` of domain `pd`. One of type 1 that is
    /// bound already moves.
    ///
    /// # Errors
    /// See [`BindError`]; the window is as it was then.
    pub fn bind(&mut self, bind: &Bind, pd: u32, qpn: u32) -> Result<(), BindError> {
        let (old_key, state) = self.window_state(bind.window).ok_or(BindError::UnknownWindow)?;
        let kind = state.kind;
        if state.pd != pd {
            return Err(BindError::WrongDomain);
        }
        let fixed = match kind {
            WindowType::One => self.place_bits(),
            WindowType::Two => u32::MAX << KEY_BITS,
        };
        let renewed = kind == WindowType::Two || bind.key != old_key;
        if bind.key == 0 || (bind.key ^ old_key) & fixed != 0 || !renewed {
            return Err(BindError::WrongKey);
        }
        match kind {
            WindowType::One if bind.access.contains(Access::ZERO_BASED) => return Err(BindError::ZeroBased),
            WindowType::Two if state.bound.is_some() => return Err(BindError::AlreadyBound),
            WindowType::Two if bind.len == 0 => return Err(BindError::NoBytes),
            _ => {}
        }
        if bind.len == 0 {
            self.unbind(bind.window.home, bind.key);
            return Ok(());
        }
        let (region, parent) = self.region_entry(bind.region).ok_or(BindError::UnknownRegion)?;
        let offset = offset_in(&parent, bind, pd)?;
        self.unbind(bind.window.home, bind.key);
        self.place_window(bind, kind, (region, &parent), offset, qpn);
        Ok(())
    }

    /// Puts a window over a region that was checked.
    fn place_window(
        &mut self,
        bind: &Bind,
        kind: WindowType,
        (region, parent): (u32, &Entry),
        offset: u64,
        qpn: u32,
    ) {
        let generation = self.next_generation();
        let access = bind.access & Access::OF_WINDOWS;
        let (kind, tied) = match kind {
            WindowType::One => (Kind::Window1, None),
            WindowType::Two => (Kind::Window2, Some(qpn)),
        };
        let Some(Home { base: Some(base), body: Body::Region { windows, .. }, .. }) =
            self.homes.get_mut(region as usize).and_then(Option::as_mut)
        else {
            return;
        };
        *windows += 1;
        // SAFETY: the window was checked to lie in the region, so its start is inside that memory. It stays
        // valid while the window is bound: until then the region is neither deregistered nor changed.
        let base = unsafe { base.add(offset as usize) };
        let Some(home) = self.homes.get_mut(bind.window.home as usize).and_then(Option::as_mut) else {
            return;
        };
        home.generation = generation;
        home.base = Some(base);
        home.len = bind.len as usize;
        home.writable = access.intersects(Access::WRITING);
        if let Body::Window(state) = &mut home.body {
            state.bound = Some(Bound { region, qpn: tied });
        }
        self.queue_pair_windows += u32::from(tied.is_some());
        self.slot(bind.key).store(&Entry {
            generation,
            key: bind.key,
            pd: parent.pd,
            access,
            home: bind.window.home,
            iova: if access.contains(Access::ZERO_BASED) { 0 } else { bind.addr },
            len: bind.len,
            block: parent.block,
            block_offset: parent.block_offset + offset,
            kind,
            qpn: tied.unwrap_or(0),
        });
    }

    /// Invalidates the key of a window of type 2, for queue pair `qpn` of domain `pd`: LOCAL_INV, or the
    /// peer's SEND with invalidate. The window can be bound again.
    ///
    /// # Errors
    /// The first of: unknown key (nor is one known that is not bound), wrong domain, not a window of type 2,
    /// wrong queue pair. Nothing is invalidated then.
    pub fn invalidate(&mut self, key: u32, pd: u32, qpn: u32) -> Result<(), AccessError> {
        let entry = self.slot(key).load().filter(|entry| entry.key == key && entry.kind != Kind::Unbound);
        let entry = entry.ok_or(AccessError::UnknownKey)?;
        if entry.pd != pd {
            return Err(AccessError::WrongDomain);
        }
        if entry.kind != Kind::Window2 {
            return Err(AccessError::NotPermitted);
        }
        if entry.qpn != qpn {
            return Err(AccessError::WrongQueuePair);
        }
        self.unbind(entry.home, key);
        Ok(())
    }

    /// Unbinds the windows that are tied to a queue pair: another one may get its number, and must not get
    /// its rights.
    pub fn forget_queue_pair(&mut self, qpn: u32) {
        if self.queue_pair_windows > 0 {
            self.unbind_all(|bound| bound.qpn == Some(qpn));
        }
    }

    /// What is known of a window.
    pub fn window(&self, window: WindowId) -> Option<WindowInfo> {
        let (key, state) = self.window_state(window)?;
        let entry = self.slot(key).load().filter(|entry| entry.key == key);
        let bound = state.bound.zip(entry).and_then(|(bound, entry)| {
            let region = self.homes.get(bound.region as usize)?.as_ref()?.key;
            let Entry { iova, len, access, .. } = entry;
            Some(WindowBinding { region, iova, len, access, qpn: bound.qpn })
        });
        Some(WindowInfo { kind: state.kind, key, pd: state.pd, bound })
    }

    /// Unbinds the windows of which `which` says so.
    pub(super) fn unbind_all(&mut self, which: impl Fn(&Bound) -> bool) {
        for index in 0..self.homes.len() {
            if let Some(Home { key, body: Body::Window(state), .. }) = &self.homes[index]
                && state.bound.as_ref().is_some_and(&which)
            {
                let key = *key;
                self.unbind(index as u32, key);
            }
        }
    }

    /// Takes a window off its region, if it is bound, and gives it a key in the same place.
    fn unbind(&mut self, index: u32, key: u32) {
        let home = self.homes.get_mut(index as usize).and_then(Option::as_mut);
        let Some(Home { body: Body::Window(state), .. }) = home else { return };
        let bound = state.bound.take();
        self.clear_window(index, key);
        let Some(bound) = bound else { return };
        self.queue_pair_windows -= u32::from(bound.qpn.is_some());
        if let Some(Home { body: Body::Region { windows, .. }, .. }) =
            self.homes.get_mut(bound.region as usize).and_then(Option::as_mut)
        {
            *windows -= 1;
        }
    }

    /// Leaves nothing of a window but its place; spans of it are stale.
    fn clear_window(&mut self, index: u32, key: u32) {
        let generation = self.next_generation();
        let Some(home) = self.homes.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Body::Window(WindowState { pd, .. }) = home.body else { return };
        (home.generation, home.base, home.len, home.writable, home.key) = (generation, None, 0, false, key);
        self.slot(key).store(&Entry {
            generation,
            key,
            pd,
            access: Access::empty(),
            home: index,
            iova: 0,
            len: 0,
            block: 0,
            block_offset: 0,
            kind: Kind::Unbound,
            qpn: 0,
        });
    }

    fn window_state(&self, window: WindowId) -> Option<(u32, &WindowState)> {
        match self.homes.get(window.home as usize)?.as_ref()? {
            Home { key, body: Body::Window(state), .. } if state.serial == window.serial => {
                Some((*key, state))
            }
            _ => None,
        }
    }
}

/// Where in its region a window would start, if it may be bound so.
fn offset_in(parent: &Entry, bind: &Bind, pd: u32) -> Result<u64, BindError> {
    if parent.pd != pd {
        return Err(BindError::WrongDomain);
    }
    let changes = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    let writable = parent.access.contains(Access::LOCAL_WRITE) || !bind.access.intersects(changes);
    if !parent.access.contains(Access::MW_BIND) || !writable {
        return Err(BindError::NotPermitted);
    }
    // Never `addr + len`, which may wrap.
    let offset = bind.addr.checked_sub(parent.iova).ok_or(BindError::OutOfBounds)?;
    let room = parent.len.checked_sub(offset).ok_or(BindError::OutOfBounds)?;
    if bind.len > room {
        return Err(BindError::OutOfBounds);
    }
    Ok(offset)
}
