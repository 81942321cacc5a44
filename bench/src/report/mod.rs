//! What the command prints.

mod bar;
mod json;
mod table;

pub(crate) use bar::Bar;
pub(crate) use json::{print_devices, print_report};
pub(crate) use table::{Style, print_candidates, print_header, print_tables};

use crate::control::DeviceDescription;
use crate::plan::Wishes;
use crate::session::Machine;

/// What a report says besides its rows.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// The machine that measured.
    pub machine: Machine,
    /// The device of this side.
    pub here: DeviceDescription,
    /// The device of the other side.
    pub there: DeviceDescription,
    /// The other host, or that there is none.
    pub server: Option<String>,
    /// The faults, as they were asked for.
    pub fault: Option<String>,
    /// The processors that the two processes stay on.
    pub cpus: Option<(usize, usize)>,
    /// What was asked for.
    pub wishes: Wishes,
}
