//! The report for programs; bench/SCHEMA.md describes it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyverbs::Candidate;
use serde::Serialize;

use super::Header;
use crate::control::DeviceDescription;
use crate::plan::{Action, Length, Measure};
use crate::session::{Machine, Outcome, RowResult, ratio};

/// Names the format and its version: a field that changes its meaning changes the number.
const FORMAT: &str = "anyverbs-bench/1";
const DEVICES_FORMAT: &str = "anyverbs-devices/1";

#[derive(Serialize)]
struct Report<'a> {
    format: &'static str,
    version: &'static str,
    complete: bool,
    error: Option<String>,
    machine: &'a Machine,
    client: &'a DeviceDescription,
    server: &'a DeviceDescription,
    server_host: Option<&'a str>,
    fault: Option<&'a str>,
    processors: Option<[usize; 2]>,
    row_duration_ms: Option<f64>,
    row_operations: Option<u64>,
    warmup_ms: f64,
    turns: u32,
    rows: Vec<Row>,
    notes: &'a [String],
    waited_share: f64,
    counters: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Row {
    measure: Measure,
    operation: Action,
    raw: bool,
    size: usize,
    depth: usize,
    operations: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<Bandwidth>,
    checked_whole: u64,
    checked_ends: u64,
    lost: u64,
    waited_share: f64,
    ratio_to_raw: Option<f64>,
    ratio_doubtful: bool,
}

#[derive(Serialize)]
struct Latency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
    half_round_trip: bool,
}

#[derive(Serialize)]
struct Bandwidth {
    bytes_per_second: f64,
    messages_per_second: f64,
    turns_bytes_per_second: Vec<f64>,
}

/// Prints a report to standard output, as one JSON object.
///
/// # Errors
/// Standard output is closed or full.
pub(crate) fn print_report(header: &Header, outcome: &Outcome) -> io::Result<()> {
    let (time, operations) = match header.wishes.length {
        Length::Time(time) => (Some(time.as_secs_f64() * 1e3), None),
        Length::Operations(n) => (None, Some(n)),
    };
    print(&Report {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION"),
        complete: outcome.error.is_none(),
        error: outcome.error.as_ref().map(ToString::to_string),
        machine: &header.machine,
        client: &header.here,
        server: &header.there,
        server_host: header.server.as_deref(),
        fault: header.fault.as_deref(),
        processors: header.cpus.map(|(client, server)| [client, server]),
        row_duration_ms: time,
        row_operations: operations,
        warmup_ms: header.wishes.warmup.as_secs_f64() * 1e3,
        turns: header.wishes.rounds(),
        rows: outcome.rows.iter().map(|row| self::row(row, &outcome.rows)).collect(),
        notes: &outcome.notes,
        waited_share: outcome.waited_share,
        counters: outcome.counters.iter().copied().collect(),
    })
}

fn row(row: &RowResult, all: &[RowResult]) -> Row {
    let ratio = ratio(row, all);
    let scale = row.scale();
    let latency_ns = (row.spec.measure == Measure::Latency).then(|| Latency {
        min: row.times.min() as f64 * scale,
        mean: row.times.mean() * scale,
        p50: row.latency_ns(50.0),
        p90: row.latency_ns(90.0),
        p99: row.latency_ns(99.0),
        p999: row.latency_ns(99.9),
        max: row.times.max() as f64 * scale,
        half_round_trip: row.spec.action.is_ping_pong(),
    });
    let bandwidth = (row.spec.measure == Measure::Bandwidth).then(|| Bandwidth {
        bytes_per_second: row.bytes_per_second(),
        messages_per_second: row.operations_per_second(),
        turns_bytes_per_second: row.slices.clone(),
    });
    Row {
        measure: row.spec.measure,
        operation: row.spec.action,
        raw: row.spec.action.is_raw(),
        size: row.spec.size,
        depth: row.spec.depth,
        operations: row.total.operations,
        seconds: row.total.elapsed.as_secs_f64(),
        latency_ns,
        bandwidth,
        checked_whole: row.total.whole,
        checked_ends: row.total.ends,
        lost: row.total.lost,
        waited_share: row.scheduled.waited_share(),
        ratio_to_raw: ratio.map(|ratio| ratio.value),
        ratio_doubtful: ratio.is_some_and(|ratio| ratio.doubtful),
    }
}

#[derive(Serialize)]
struct Devices<'a> {
    format: &'static str,
    version: &'static str,
    devices: Vec<Device<'a>>,
}

#[derive(Serialize)]
struct Device<'a> {
    name: &'a str,
    provider: String,
    usable: bool,
    detail: &'a str,
    remedy: Option<&'a str>,
}

/// Prints every candidate for a device, as one JSON object.
///
/// # Errors
/// Standard output is closed or full.
pub(crate) fn print_devices(candidates: &[Candidate]) -> io::Result<()> {
    let devices = candidates.iter().map(|candidate| Device {
        name: &candidate.name,
        provider: candidate.provider.to_string(),
        usable: candidate.usable,
        detail: &candidate.detail,
        remedy: candidate.remedy.as_deref(),
    });
    print(&Devices { format: DEVICES_FORMAT, version: env!("CARGO_PKG_VERSION"), devices: devices.collect() })
}

fn print(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}
