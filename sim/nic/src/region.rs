//! Protection domains and memory regions.

use std::ops::Range;
use std::sync::Arc;

use anyverbs_memory::{
    Access, Block, Change, DeregisterError, ForeignMemory, Memory, RegionInfo, RegionTable, RegisterError,
};
use rand_core::Rng;

use crate::address::{Ah, AhAttributes};
use crate::completion::Cq;
use crate::device_memory::{Dm, DmShare};
use crate::error::{NicError, in_range};
use crate::nic::Nic;
use crate::queue_pair::{Qp, QpInit};
use crate::shared_receive::{Srq, SrqInit, XrcDomain};
use crate::work::Sge;

struct PdInner {
    nic: Nic,
    number: u32,
}

impl Drop for PdInner {
    fn drop(&mut self) {
        self.nic.free_pd();
    }
}

/// A protection domain (`ibv_pd`): regions, windows and queue pairs of one domain may be used together.
/// Clones are handles to the same domain; it is gone with the last of them and of what was made in it.
#[derive(Clone)]
pub struct Pd(Arc<PdInner>);

/// What to do with memory before it is used (`ibv_advise_mr_advice`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// It will be read.
    Prefetch,
    /// It will be written.
    PrefetchWrite,
    /// It will be read, and what is not in memory may stay where it is.
    PrefetchNoFault,
}

impl Pd {
    pub(crate) fn new(nic: Nic, number: u32) -> Self {
        Pd(Arc::new(PdInner { nic, number }))
    }

    pub(crate) fn nic(&self) -> &Nic {
        &self.0.nic
    }

    /// Its number, which no other domain of the device ever has.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// Registers `range` of a block (`ibv_reg_mr`), with addresses that start at zero.
    ///
    /// The key is random. The NIC keeps a share of the block until the region is dropped. Nothing is pinned: a
    /// region counts towards no limit on locked memory (`ulimit -l`, `RLIMIT_MEMLOCK`), which may be zero.
    ///
    /// # Errors
    /// [`NicError::OutsideMemory`] if the range is not in the block, [`NicError::AccessFlags`] for
    /// remote writes or atomics without local ones, [`NicError::Exhausted`] if the device has no room
    /// for another region.
    pub fn register(&self, memory: Arc<Block>, range: Range<usize>, access: Access) -> Result<Mr, NicError> {
        self.register_iova(memory, range, 0, access)
    }

    /// As [`register`](Pd::register), with addresses that start at `iova` (`ibv_reg_mr_iova`). With
    /// [`Access::ZERO_BASED`] they start at zero whatever `iova` is.
    ///
    /// # Errors
    /// As [`register`](Pd::register); [`NicError::OutOfRange`] for addresses that would pass 2^64.
    pub fn register_iova(
        &self,
        memory: Arc<Block>,
        range: Range<usize>,
        iova: u64,
        access: Access,
    ) -> Result<Mr, NicError> {
        self.register_memory(Memory::Block(memory, range), iova, access)
    }

    /// Registers memory of the program. Its own addresses, as `ibv_reg_mr` gives it, are
    /// [`ForeignMemory::address`] as `iova`. The NIC keeps a share of it until the region is dropped.
    ///
    /// # Errors
    /// As [`register_iova`](Pd::register_iova); [`NicError::ReadOnlyMemory`] for a right to write to memory
    /// that may only be read.
    pub fn register_foreign(
        &self,
        memory: Arc<ForeignMemory>,
        iova: u64,
        access: Access,
    ) -> Result<Mr, NicError> {
        self.register_memory(Memory::Foreign(memory), iova, access)
    }

    fn register_memory(&self, memory: Memory, iova: u64, access: Access) -> Result<Mr, NicError> {
        check_flags(access)?;
        check_memory(&memory, iova, access)?;
        self.insert(access, |regions, key| regions.register(key, self.number(), access, iova, memory.clone()))
    }

    /// Registers device memory from byte `offset` on, with addresses that start at zero (`ibv_reg_dm_mr`).
    ///
    /// # Errors
    /// As [`register`](Pd::register); [`NicError::OtherDevice`] for memory of another device.
    pub fn register_dm(&self, dm: &Dm, offset: usize, len: usize, access: Access) -> Result<Mr, NicError> {
        check_flags(access)?;
        let outside =
            NicError::OutsideMemory { start: offset, end: offset.saturating_add(len), len: dm.len() };
        let end = offset.checked_add(len).filter(|end| *end <= dm.len());
        let (Some(end), Some(block)) = (end, dm.block()) else { return Err(outside) };
        if !self.nic().is_same(dm.nic()) {
            return Err(NicError::OtherDevice { object: "device memory" });
        }
        let mut mr = self.insert(access, |regions, key| {
            regions.register_device_memory(key, self.number(), access, Arc::clone(block), offset..end)
        })?;
        mr.device_memory = Some(DmShare::new(dm));
        Ok(mr)
    }

    /// Makes the null region (`ibv_alloc_null_mr`): work requests read zeroes at each of its addresses, and
    /// what they write there is forgotten. Peers have no right to it.
    ///
    /// # Errors
    /// [`NicError::Exhausted`] if the device has no room for another region.
    pub fn alloc_null_mr(&self) -> Result<Mr, NicError> {
        self.insert(Access::LOCAL_WRITE, |regions, key| regions.register_null(key, self.number()))
    }

    /// Registers under a random key.
    fn insert(
        &self,
        access: Access,
        mut register: impl FnMut(&mut RegionTable, u32) -> Result<(), RegisterError>,
    ) -> Result<Mr, NicError> {
        let nic = self.nic();
        let (key, len) = nic.control(|core| {
            loop {
                let key = core.rng.next_u32();
                match register(&mut core.regions, key) {
                    Ok(()) => return Ok((key, length_of(&core.regions, key))),
                    Err(RegisterError::KeyTaken | RegisterError::InvalidKey) => {}
                    Err(error) => return Err(refused(error, access, nic)),
                }
            }
        })?;
        Ok(Mr { pd: self.clone(), key, len, device_memory: None })
    }

    /// Prepares memory for use (`ibv_advise_mr`): checks that each element may be used so.
    ///
    /// Nothing else is to be done: no memory is pinned, all of it is on demand, and the system brings
    /// the pages when they are touched.
    ///
    /// # Errors
    /// [`NicError::Element`] names the first one that may not.
    pub fn advise(&self, advice: Advice, sges: &[Sge]) -> Result<(), NicError> {
        let need = if advice == Advice::PrefetchWrite { Access::LOCAL_WRITE } else { Access::empty() };
        self.nic().control(|core| {
            for (index, sge) in sges.iter().enumerate() {
                let checked = core.regions.check(sge.key, self.number(), sge.addr, sge.len, need);
                checked.map_err(|source| NicError::Element { index, source })?;
            }
            Ok(())
        })
    }

    /// Makes a shared receive queue (`ibv_create_srq`).
    ///
    /// # Errors
    /// [`NicError::OutOfRange`] for sizes outside the device's limits, [`NicError::Exhausted`] when there is no room for
    /// another one.
    pub fn create_srq(&self, init: SrqInit) -> Result<Srq, NicError> {
        Srq::create(self, init, None)
    }

    /// Makes a shared receive queue that peers name (`ibv_create_srq_ex` with `IBV_SRQT_XRC`); its receives complete
    /// to `cq`, and may touch what this domain may.
    ///
    /// # Errors
    /// As [`create_srq`](Pd::create_srq); [`NicError::OtherDevice`] for objects of another device.
    pub fn create_xrc_srq(&self, init: SrqInit, domain: &XrcDomain, cq: &Cq) -> Result<Srq, NicError> {
        Srq::create(self, init, Some((domain, cq)))
    }

    /// Makes an address handle (`ibv_create_ah`).
    ///
    /// # Errors
    /// [`NicError::AddressFamily`] and [`NicError::Destination`] for what the device cannot send to,
    /// [`NicError::Exhausted`] beyond its limit.
    pub fn create_ah(&self, attributes: AhAttributes) -> Result<Ah, NicError> {
        Ah::create(self, attributes)
    }

    /// Creates a queue pair in the Reset state (`ibv_create_qp`).
    ///
    /// # Errors
    /// [`NicError::OutOfRange`] for sizes outside the device's limits, [`NicError::Exhausted`] when
    /// there is no room for another queue pair.
    pub fn create_qp(&self, init: QpInit<'_>) -> Result<Qp, NicError> {
        Qp::create(self.clone(), init)
    }
}

/// Peers may not write where the owner may not.
fn check_flags(access: Access) -> Result<(), NicError> {
    let changes = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    if access.intersects(changes) && !access.contains(Access::LOCAL_WRITE) {
        return Err(NicError::AccessFlags { access });
    }
    Ok(())
}

/// The memory has the range, and the range has addresses.
fn check_memory(memory: &Memory, iova: u64, access: Access) -> Result<(), NicError> {
    let len = match memory {
        Memory::Block(block, Range { start, end }) => {
            let (start, end, len) = (*start, *end, block.len());
            if start > end || end > len {
                return Err(NicError::OutsideMemory { start, end, len });
            }
            end - start
        }
        Memory::Foreign(memory) => memory.len(),
    };
    let iova = if access.contains(Access::ZERO_BASED) { 0 } else { iova };
    in_range("iova", iova, 0, u64::MAX - (len as u64).saturating_sub(1))
}

fn length_of(regions: &RegionTable, key: u32) -> usize {
    regions.region(key).map_or(0, |region| region.len as usize)
}

fn refused(error: RegisterError, access: Access, nic: &Nic) -> NicError {
    const OBJECT: &str = "memory region";
    match error {
        RegisterError::ReadOnlyMemory => NicError::ReadOnlyMemory { access },
        RegisterError::Bound(users) => NicError::InUse { object: OBJECT, users, by: "memory windows" },
        RegisterError::Fixed => NicError::Unsupported {
            object: "null region, or one of device memory,",
            action: "registered as something else",
        },
        RegisterError::Full
        | RegisterError::OutOfBounds
        | RegisterError::UnknownKey
        | RegisterError::KeyTaken
        | RegisterError::InvalidKey => NicError::Exhausted { object: OBJECT, limit: nic.attributes().max_mr },
    }
}

/// What to change of a region; the rest stays (`ibv_rereg_mr`).
#[derive(Clone, Default)]
pub struct MrChange {
    /// The memory, and the address of its first byte (`IBV_REREG_MR_CHANGE_TRANSLATION`).
    pub translation: Option<(Memory, u64)>,
    /// The protection domain (`IBV_REREG_MR_CHANGE_PD`).
    pub pd: Option<Pd>,
    /// The rights (`IBV_REREG_MR_CHANGE_ACCESS`).
    pub access: Option<Access>,
}

/// A memory region (`ibv_mr`). Dropping it deregisters: afterwards nothing touches the memory, and windows
/// that were bound to it are not bound any more. [`deregister`](Mr::deregister) refuses that.
pub struct Mr {
    pd: Pd,
    /// 0 once it is deregistered.
    key: u32,
    len: usize,
    device_memory: Option<DmShare>,
}

/// A region was not deregistered: windows are bound to it (EBUSY). It comes back with the error.
#[derive(thiserror::Error)]
#[error("{windows} memory windows are still bound to this memory region: unbind them first")]
pub struct MrInUse {
    /// The region.
    pub mr: Mr,
    /// How many windows.
    pub windows: u32,
}

impl std::fmt::Debug for MrInUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MrInUse").field("windows", &self.windows).finish_non_exhaustive()
    }
}

impl Mr {
    /// Its key, for local and for remote use.
    pub fn key(&self) -> u32 {
        self.key
    }

    /// Its length in bytes; that of the null region is all there can be.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The domain that it belongs to.
    pub fn pd(&self) -> &Pd {
        &self.pd
    }

    /// What the device knows of it, and how many windows are bound to it.
    ///
    /// # Errors
    /// None today; [`NicError::Unsupported`] if the device does not know it.
    pub fn query(&self) -> Result<RegionInfo, NicError> {
        let unknown = NicError::Unsupported { object: "memory region", action: "queried" };
        self.pd.nic().control(|core| core.regions.region(self.key)).ok_or(unknown)
    }

    /// Registers it as something else (`ibv_rereg_mr`): other memory, another domain, other rights. The key
    /// stays; what had begun under the old registration ends as if it was deregistered.
    ///
    /// # Errors
    /// As [`Pd::register_foreign`]; [`NicError::InUse`] while windows are bound to it,
    /// [`NicError::Unsupported`] for the null region and device memory, [`NicError::OtherDevice`] for
    /// a domain of another device. The region is as it was then.
    pub fn rereg(&mut self, change: MrChange) -> Result<(), NicError> {
        let nic = self.pd.nic();
        if change.pd.as_ref().is_some_and(|pd| !nic.is_same(pd.nic())) {
            return Err(NicError::OtherDevice { object: "protection domain" });
        }
        let MrChange { translation, pd, access } = change;
        let number = pd.as_ref().map(Pd::number);
        let (len, _owner) = nic.control(|core| {
            let now = core.regions.region(self.key);
            let rights = access.or(now.map(|region| region.access)).unwrap_or_default();
            check_flags(rights)?;
            if let Some((memory, iova)) = &translation {
                check_memory(memory, *iova, rights)?;
            }
            let change = Change { translation, pd: number, access };
            let owner = core.regions.reregister(self.key, change);
            let owner = owner.map_err(|error| refused(error, rights, nic))?;
            Ok((length_of(&core.regions, self.key), owner))
        })?;
        self.len = len;
        if let Some(pd) = pd {
            self.pd = pd;
        }
        Ok(())
    }

    /// Deregisters it (`ibv_dereg_mr`), unless windows are bound to it.
    ///
    /// # Errors
    /// [`MrInUse`] gives it back.
    pub fn deregister(mut self) -> Result<(), MrInUse> {
        // The share of the memory comes out of the lock and is dropped behind it.
        match self.pd.nic().control(|core| core.regions.deregister(self.key)) {
            Err(DeregisterError::Bound(windows)) => Err(MrInUse { mr: self, windows }),
            Ok(_) | Err(DeregisterError::UnknownKey) => {
                self.key = 0;
                Ok(())
            }
        }
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        if self.key != 0 {
            // The share of the memory comes out of the lock and is dropped behind it.
            let _owner = self.pd.nic().control(|core| core.regions.revoke(self.key));
        }
    }
}
