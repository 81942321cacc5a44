//! Devices.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::completion::Cq;
use super::domain::Domain;
use super::error::Error;
use crate::provider::{self, DeviceBackend, DeviceOptions};

/// What a device is and what it can do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceAttributes {
    /// Who provides it: `soft`.
    pub provider: &'static str,
    /// The link that it stands on: `udp`, `virtual`.
    pub link: &'static str,
    /// How that link does its work, for people.
    pub link_detail: String,
    /// Its address: the GID of its port.
    pub address: IpAddr,
    /// The largest payload of a packet, in bytes.
    pub path_mtu: u32,
    /// The most queue pairs.
    pub max_qp: u32,
    /// The deepest completion queue.
    pub max_cqe: u32,
    /// The most registrations: pools and windows together.
    pub max_mr: u32,
    /// The most slots of a send or receive queue.
    pub max_qp_wr: u32,
    /// The most bytes that an inline request carries.
    pub max_inline: u32,
    /// The most READs and atomics under way on one queue pair.
    pub max_rd_atomic: u8,
    /// The longest message, in bytes.
    pub max_message: u32,
}

/// An RDMA device, or software that is one: where everything begins.
///
/// Cloning it gives another handle. What is made from a device keeps it open, so handles can be dropped in any
/// order.
#[derive(Clone)]
pub struct Device {
    inner: Arc<DeviceInner>,
}

pub(crate) struct DeviceInner {
    pub(crate) backend: Box<dyn DeviceBackend>,
}

impl Device {
    /// Opens the best device that the options allow.
    ///
    /// ```
    /// use anyverbs::{Device, DeviceOptions};
    /// let device = Device::open(&DeviceOptions::new())?;
    /// println!("{} on {}", device.attributes().provider, device.address());
    /// # Ok::<(), anyverbs::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoDevice`], which names every candidate and says why it cannot be used, or
    /// [`Error::Capture`].
    pub fn open(options: &DeviceOptions) -> Result<Device, Error> {
        provider::any::open(options).map(Device::from_backend)
    }

    pub(crate) fn from_backend(backend: Box<dyn DeviceBackend>) -> Device {
        Device { inner: Arc::new(DeviceInner { backend }) }
    }

    /// What it is and what it can do.
    pub fn attributes(&self) -> &DeviceAttributes {
        self.inner.backend.attributes()
    }

    /// Its address, at which peers reach it.
    pub fn address(&self) -> IpAddr {
        self.attributes().address
    }

    /// Makes a protection domain: what is made from it works together, and with nothing else.
    ///
    /// # Errors
    /// [`Error::Provider`] if the device has none left.
    pub fn domain(&self) -> Result<Domain, Error> {
        Domain::new(&self.inner)
    }

    /// Makes a completion queue with `depth` places.
    ///
    /// It needs a place for every slot of the queues that use it, since it must never overflow.
    ///
    /// # Errors
    /// [`Error::Limit`] if the device has none so deep, [`Error::Provider`] if it has none left.
    pub fn completion_queue(&self, depth: u32) -> Result<Cq, Error> {
        Cq::new(&self.inner, depth)
    }

    /// Says that the program waits for something that is not the device's, and will look again.
    ///
    /// A loop that waits without [`Cq::poll`] or [`Cq::wait`] has to call it: in a simulation, time stands still
    /// until somebody does.
    pub fn relax(&self) {
        self.inner.backend.relax();
    }

    /// Calls `look` until it finds something, and [`relax`](Device::relax)es in between: for what comes over
    /// channels and flags, in real time and in virtual time alike.
    ///
    /// ```
    /// # use anyverbs::{Device, DeviceOptions};
    /// # let device = Device::open(&DeviceOptions::new())?;
    /// let (sender, receiver) = std::sync::mpsc::channel();
    /// std::thread::spawn(move || sender.send(5));
    /// assert_eq!(device.wait_until(|| receiver.try_recv().ok()), 5);
    /// # Ok::<(), anyverbs::Error>(())
    /// ```
    pub fn wait_until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(found) = look() {
                return found;
            }
            self.relax();
        }
    }

    /// The device's clock, since an origin of its own. In a simulation it is virtual.
    pub fn now(&self) -> Duration {
        self.inner.backend.now()
    }

    /// What ended the device's work, if something did: its network interface went away, say. What is posted to its
    /// queue pairs fails then, when it has been tried often enough.
    pub fn failure(&self) -> Option<String> {
        self.inner.backend.failure()
    }

    /// What the device counted: names as drivers have them, and values since it was opened.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.backend.counters()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(self.attributes()).finish()
    }
}
