//! The side that answers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use anyverbs::{DeviceOptions, FaultProfile, LinkKind};

use super::{describe, open_device, placement};
use crate::control::{Connection, Message};
use crate::measure::{Local, MeasureError, Row};
use crate::plan::RowSpec;

/// Rows that a client may have open at a time; a group has fewer.
const ROWS_MAX: usize = 16;

/// How long a client may be silent between rows. It only computes then; while a row runs, the connection's
/// keep-alive notices a host that vanished.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// Serves one client until it says goodbye. Tells the client if it cannot go on.
///
/// # Errors
/// The client left, or asked for what cannot be, or the user wants to stop.
pub(crate) fn serve(
    control: &Connection,
    link: Option<LinkKind>,
    address: Option<IpAddr>,
) -> Result<(), MeasureError> {
    let result = converse(control, link, address);
    if let Err(error) = &result {
        let _ = control.send(&Message::Failed { message: error.to_string() });
    }
    result
}

fn converse(
    control: &Connection,
    link: Option<LinkKind>,
    address: Option<IpAddr>,
) -> Result<(), MeasureError> {
    let local = set_up(control, link, address)?;
    let mut rows: HashMap<u32, (RowSpec, Row)> = HashMap::new();
    loop {
        match control.receive("message", Some(SILENCE_LIMIT))? {
            Message::Open { row, spec, segment, end } => {
                if !spec.is_sane() || rows.len() >= ROWS_MAX || rows.contains_key(&row) {
                    return Err(MeasureError::BadEnd(format!("row {row} asks for what cannot be: {spec:?}")));
                }
                let half = match Row::prepare(&local, control, spec, segment, true) {
                    // The client goes on without the limit.
                    Err(error) if error.concerns_raw_only() => {
                        control.send(&Message::NoRaw { row, reason: error.to_string() })?;
                        continue;
                    }
                    other => other?,
                };
                let ours = half.end()?;
                rows.insert(row, (spec, half.connect(control, &end)?));
                control.send(&Message::Opened { row, end: ours })?;
            }
            Message::Run { row, phase, first } => {
                let (spec, row_state) = rows.get_mut(&row).ok_or_else(|| unknown(row))?;
                row_state.before(spec, first)?;
                control.send(&Message::Running { row })?;
                let done = row_state.serve(control, spec, phase)?;
                control.send(&Message::Stopped { row, done })?;
            }
            Message::Close { row } => {
                rows.remove(&row);
                control.send(&Message::Closed { row })?;
            }
            Message::Bye => return Ok(()),
            other => return Err(control.unexpected(&other, "open, run or close").into()),
        }
    }
}

fn unknown(row: u32) -> MeasureError {
    MeasureError::BadEnd(format!("row {row} is not open"))
}

fn set_up(
    control: &Connection,
    link: Option<LinkKind>,
    address: Option<IpAddr>,
) -> Result<Local, MeasureError> {
    let message = control.receive("setup", Some(SILENCE_LIMIT))?;
    let Message::Setup { link: wanted, fault, cpu } = message else {
        return Err(control.unexpected(&message, "setup").into());
    };
    let link = match link {
        Some(link) => link,
        None => wanted.parse().map_err(|_| MeasureError::BadEnd(format!("there is no link `{wanted}`")))?,
    };
    let mut options = DeviceOptions::new().link(link);
    if let Some(fault) = fault {
        let profile: FaultProfile =
            fault.parse().map_err(|_| MeasureError::BadEnd(format!("`{fault}` is no fault profile")))?;
        options = options.fault(profile);
    }
    let mut local = open_device(options, address, control)?;
    // After the device has its threads: they are not to share this processor.
    local.apart |= cpu.is_some_and(placement::stay_on);
    control.send(&Message::Device(describe(&local.device)))?;
    Ok(local)
}
