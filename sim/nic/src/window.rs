//! Memory windows.

use std::sync::{Mutex, PoisonError};

use anyverbs_memory::{Access, RegisterError, WindowId, WindowInfo, WindowType};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::error::{NicError, PostError, PostReason};
use crate::queue_pair::Qp;
use crate::region::Pd;
use crate::work::{SendOp, SendWr};

/// A memory window (`ibv_mw`): a part of a region that peers may reach, with rights of its own, which can
/// be given and taken back by work requests, without registering anything.
///
/// One of type 1 is bound by [`Qp::bind_mw`], which gives it another key each time, and serves all queue
/// pairs of its domain. One of type 2 is bound by [`SendOp::BindMw`] with a key that the program makes
/// of its last one ([`inc_rkey`]), serves the queue pair that bound it, and is invalidated by
/// [`SendOp::LocalInvalidate`], or by the peer's SEND with invalidate, before it is bound again. When
/// that queue pair is reset or destroyed, it is invalid, too.
///
/// Dropping it deallocates it: its key is invalid from there on.
pub struct Mw {
    pd: Pd,
    handle: MwHandle,
    /// The bits of its key that say where the device has it.
    place_bits: u32,
    /// The key that it got last, and what the next one of type 1 is drawn from.
    key: Mutex<(u32, ChaCha20Rng)>,
}

/// A window, as work requests name it: plain data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MwHandle {
    pub(crate) id: WindowId,
    pub(crate) kind: WindowType,
}

/// What a window of type 2 is bound to (`ibv_send_wr.bind_mw`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MwBind {
    /// The window: [`Mw::handle`].
    pub mw: MwHandle,
    /// The key that it gets: its own, with other low eight bits.
    pub rkey: u32,
    /// The key of the region.
    pub region: u32,
    /// Where in the region it starts, in the region's addresses.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What peers may do; with [`Access::ZERO_BASED`] their addresses are offsets in the window.
    pub access: Access,
}

/// What a window of type 1 is bound to, and how to report it (`ibv_mw_bind`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindWr {
    /// The caller's name for it; it comes back in the completion.
    pub wr_id: u64,
    /// The key of the region.
    pub region: u32,
    /// Where in the region it starts, in the region's addresses.
    pub addr: u64,
    /// Its length in bytes; none unbinds it.
    pub len: u64,
    /// What peers may do.
    pub access: Access,
    /// Write a completion queue entry on success.
    pub signaled: bool,
    /// Wait for all earlier READs and atomics first.
    pub fence: bool,
}

/// The key that a window of type 2 should get next (`ibv_inc_rkey`): the low eight bits count.
pub fn inc_rkey(rkey: u32) -> u32 {
    rkey & !0xff | rkey.wrapping_add(1) & 0xff
}

impl Pd {
    /// Makes a memory window that is not bound (`ibv_alloc_mw`).
    ///
    /// # Errors
    /// [`NicError::Exhausted`] if the device has no room for another one.
    pub fn alloc_mw(&self, kind: WindowType) -> Result<Mw, NicError> {
        let nic = self.nic();
        nic.control(|core| {
            loop {
                let key = core.rng.next_u32();
                match core.regions.alloc_window(key, self.number(), kind) {
                    Ok(id) => {
                        let key = Mutex::new((key, ChaCha20Rng::from_rng(&mut core.rng)));
                        let place_bits = core.regions.place_bits();
                        return Ok(Mw { pd: self.clone(), handle: MwHandle { id, kind }, place_bits, key });
                    }
                    Err(RegisterError::KeyTaken | RegisterError::InvalidKey) => {}
                    Err(_) => {
                        let limit = nic.attributes().max_mw;
                        return Err(NicError::Exhausted { object: "memory window", limit });
                    }
                }
            }
        })
    }
}

impl Mw {
    /// Its type.
    pub fn kind(&self) -> WindowType {
        self.handle.kind
    }

    /// Its name in work requests.
    pub fn handle(&self) -> MwHandle {
        self.handle
    }

    /// Its key: for type 1 the one of the last bind that was posted, for type 2 the one that it was made
    /// with, of which the program makes the others.
    pub fn rkey(&self) -> u32 {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// The domain that it belongs to.
    pub fn pd(&self) -> &Pd {
        &self.pd
    }

    /// What the device knows of it: its key at present, and what it is bound to.
    ///
    /// # Errors
    /// None today; [`NicError::Unsupported`] if the device does not know it.
    pub fn query(&self) -> Result<WindowInfo, NicError> {
        let unknown = NicError::Unsupported { object: "memory window", action: "queried" };
        self.pd.nic().control(|core| core.regions.window(self.handle.id)).ok_or(unknown)
    }
}

impl Drop for Mw {
    fn drop(&mut self) {
        self.pd.nic().control(|core| core.regions.free_window(self.handle.id));
    }
}

impl Qp {
    /// Posts the binding of a window of type 1 to the send queue, and returns the key that it will have
    /// (`ibv_bind_mw`). The old key is invalid as soon as it is carried out.
    ///
    /// # Errors
    /// [`PostError`] as from [`post_send`](Qp::post_send); [`PostReason::BadWindow`] for a window of type 2.
    /// What is wrong with the binding shows in the completion, as
    /// [`MwBindErr`](crate::WcStatus::MwBindErr), and the window is as it was.
    pub fn bind_mw(&self, mw: &Mw, wr: &BindWr) -> Result<u32, PostError> {
        if mw.kind() != WindowType::One {
            return Err(PostError { index: 0, reason: PostReason::BadWindow });
        }
        let mut key = mw.key.lock().unwrap_or_else(PoisonError::into_inner);
        let (old, rng) = &mut *key;
        let rkey = loop {
            let drawn = *old & mw.place_bits | rng.next_u32() & !mw.place_bits;
            if drawn != *old && drawn != 0 {
                break drawn;
            }
        };
        let BindWr { wr_id, region, addr, len, access, signaled, fence } = *wr;
        let op = SendOp::BindMw(MwBind { mw: mw.handle, rkey, region, addr, len, access });
        self.post_bind(&SendWr { signaled, fence, ..SendWr::new(wr_id, op, &[]) })?;
        *old = rkey;
        Ok(rkey)
    }
}
