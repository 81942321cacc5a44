//! One benchmark from greeting to goodbye, on both sides.

mod client;
mod machine;
mod placement;
mod process;
mod server;

pub(crate) use client::{Client, Outcome, Progress, Ratio, RowResult, ratio};
pub(crate) use machine::{Machine, Scheduled};
pub(crate) use placement::two_processors;
pub(crate) use process::{CHILD_COMMAND, ChildOrders, ServerProcess};
pub(crate) use server::serve;

use std::net::IpAddr;
use std::thread;

use anyverbs::{Device, DeviceOptions};

use crate::control::{Connection, DeviceDescription};
use crate::measure::{Local, MeasureError};

/// Opens the device of one side, at the address that the other side can reach.
fn open_device(
    mut options: DeviceOptions,
    address: Option<IpAddr>,
    control: &Connection,
) -> Result<Local, MeasureError> {
    // Two processes on one host take different addresses of their own choice; between hosts, the way of the
    // control connection is one that works.
    let (here, there) = (control.local(), control.peer().ip().to_canonical());
    let same_host = here == there || (here.is_loopback() && there.is_loopback());
    if let Some(address) = address.or_else(|| (!same_host).then(|| control.local())) {
        options = options.address(address);
    }
    let device = Device::open(&options)?;
    let domain = device.domain()?;
    // Between hosts they do not, unless this one has a single processor.
    let apart = !same_host && thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    Ok(Local { device, domain, apart })
}

fn describe(device: &Device) -> DeviceDescription {
    let attributes = device.attributes();
    DeviceDescription {
        name: attributes.provider.to_string(),
        link: attributes.link.to_string(),
        detail: attributes.link_detail.clone(),
        address: attributes.address.to_string(),
        path_mtu: attributes.path_mtu as usize,
    }
}
