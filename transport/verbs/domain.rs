//! Protection domains.

use std::fmt;
use std::sync::Arc;

use super::completion::Cq;
use super::device::DeviceInner;
use super::error::Error;
use super::pool::Pool;
use super::queue_pair::{Init, Qp, QpOptions, Transport};
use super::region::Memory;
use super::window::{Rights, Window};
use crate::provider::DomainBackend;

/// A protection domain: queue pairs reach the buffers and windows of their own domain, and no others.
///
/// Cloning it gives another handle to the same domain.
#[derive(Clone)]
pub struct Domain {
    inner: Arc<DomainInner>,
}

pub(crate) struct DomainInner {
    pub(crate) backend: Box<dyn DomainBackend>,
    /// After the backend: a device is closed when all that it made is gone.
    pub(crate) device: Arc<DeviceInner>,
}

impl Domain {
    pub(crate) fn new(device: &Arc<DeviceInner>) -> Result<Domain, Error> {
        let backend = device.backend.allocate_domain()?;
        Ok(Domain { inner: Arc::new(DomainInner { backend, device: Arc::clone(device) }) })
    }

    /// Registers memory for `count` buffers of `size` bytes.
    ///
    /// # Errors
    /// [`Error::Limit`] if either is zero or too large, [`Error::Memory`] if the system has too little,
    /// [`Error::Provider`] if the device can register no more.
    pub fn pool(&self, count: usize, size: usize) -> Result<Pool, Error> {
        Pool::new(&self.inner, count, size)
    }

    /// Allocates `len` bytes, all zero, and exposes them to peers.
    ///
    /// # Errors
    /// As [`Memory::new`] and [`expose`](Domain::expose).
    pub fn window(&self, len: usize, rights: Rights) -> Result<Window, Error> {
        self.expose(Memory::new(len)?, rights)
    }

    /// Exposes memory to peers, with what it holds.
    ///
    /// # Errors
    /// [`Error::Provider`] if the device can register no more.
    pub fn expose(&self, memory: Memory, rights: Rights) -> Result<Window, Error> {
        Window::new(&self.inner, memory, rights)
    }

    /// Makes a queue pair whose requests complete on `send_cq` and whose receives complete on `recv_cq`, which may
    /// be the same.
    ///
    /// ```
    /// # use anyverbs::{Device, DeviceOptions, QpOptions, Rc};
    /// # let device = Device::open(&DeviceOptions::new())?;
    /// # let domain = device.domain()?;
    /// let cq = device.completion_queue(32)?;
    /// let options = QpOptions::new().send_depth(16).recv_depth(16);
    /// let qp = domain.queue_pair::<Rc>(&options, &cq, &cq)?;
    /// println!("{}", qp.endpoint());
    /// # Ok::<(), anyverbs::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Limit`] for options beyond the device's attributes, [`Error::CompletionQueueTooSmall`],
    /// [`Error::ForeignDevice`] for a completion queue of another device, [`Error::Provider`].
    pub fn queue_pair<T: Transport>(
        &self,
        options: &QpOptions,
        send_cq: &Cq,
        recv_cq: &Cq,
    ) -> Result<Qp<T, Init>, Error> {
        Qp::new(&self.inner, options, send_cq, recv_cq)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").finish_non_exhaustive()
    }
}
