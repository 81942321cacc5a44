//! Protection domains and memory regions.

use std::ops::Range;
use std::sync::Arc;

use anyverbs_memory::{Access, Block, RegisterError};
use rand_core::Rng;

use crate::address::{Ah, AhAttributes};
use crate::completion::Cq;
use crate::error::NicError;
use crate::nic::Nic;
use crate::queue_pair::{Qp, QpInit};
use crate::shared_receive::{Srq, SrqInit, XrcDomain};

struct PdInner {
    nic: Nic,
    number: u32,
}

/// A protection domain (`ibv_pd`): regions and queue pairs of one domain may be used together.
/// Clones are handles to the same domain.
#[derive(Clone)]
pub struct Pd(Arc<PdInner>);

impl Pd {
    pub(crate) fn new(nic: Nic, number: u32) -> Self {
        Pd(Arc::new(PdInner { nic, number }))
    }

    pub(crate) fn nic(&self) -> &Nic {
        &self.0.nic
    }

    pub(crate) fn number(&self) -> u32 {
        self.0.number
    }

    /// Registers `range` of a block (`ibv_reg_mr`), with addresses that start at zero.
    ///
    /// The key is random. The NIC keeps a share of the block until the region is dropped.
    ///
    /// # Errors
    /// [`NicError::OutsideMemory`] if the range is not in the block, [`NicError::AccessFlags`] for
    /// remote writes or atomics without local ones, [`NicError::Exhausted`] if the device has no room
    /// for another region.
    pub fn register(&self, memory: Arc<Block>, range: Range<usize>, access: Access) -> Result<Mr, NicError> {
        let changes = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        if access.intersects(changes) && !access.contains(Access::LOCAL_WRITE) {
            return Err(NicError::AccessFlags { access });
        }
        let nic = self.nic();
        let key = nic.control(|core| {
            loop {
                let key = core.rng.next_u32();
                let share = Arc::clone(&memory);
                match core.regions.register(key, self.number(), access, 0, share, range.clone()) {
                    Ok(()) => return Ok(key),
                    Err(RegisterError::KeyTaken | RegisterError::InvalidKey) => {}
                    Err(RegisterError::Full) => {
                        let limit = nic.attributes().max_mr;
                        return Err(NicError::Exhausted { object: "memory region", limit });
                    }
                    Err(RegisterError::OutOfBounds) => {
                        let Range { start, end } = range;
                        return Err(NicError::OutsideMemory { start, end, len: memory.len() });
                    }
                }
            }
        })?;
        Ok(Mr { pd: self.clone(), key, len: range.len() })
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

/// A memory region (`ibv_mr`). Dropping it deregisters: afterwards nothing touches the memory.
pub struct Mr {
    pd: Pd,
    key: u32,
    len: usize,
}

impl Mr {
    /// Its key, for local and for remote use.
    pub fn key(&self) -> u32 {
        self.key
    }

    /// Its length in bytes.
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
}

impl Drop for Mr {
    fn drop(&mut self) {
        // The share of the block comes out of the lock and is dropped behind it.
        let _owner = self.pd.nic().control(|core| core.regions.deregister(self.key));
    }
}
