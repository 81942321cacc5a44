//! The side that measures.

use std::net::IpAddr;
use std::time::Duration;

use anyverbs::{DeviceOptions, LinkKind};

use super::{Scheduled, describe, open_device, placement};
use crate::control::{Connection, ControlError, DeviceDescription, Done, Message, Phase};
use crate::measure::{Local, MeasureError, Recorder, Row, Slice};
use crate::plan::{Action, Group, Length, Measure, RowSpec, Wishes};
use crate::signals;

/// How long the server may take for each answer. Registering memory takes longest.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Above this share of time without a processor, a report says so.
const BUSY: f64 = 0.03;
/// Two rows whose shares of such time differ by more do not compare.
const UNEQUAL: f64 = 0.1;
/// How long a slice may take beyond its time before it counts as stuck; more than any limit that it keeps itself.
const STUCK_LIMIT: Duration = Duration::from_secs(30);
/// Operations of a verified pass, one at a time.
const VERIFIED_PINGS: u64 = 32;
/// The warm-up of a slice after a row's first.
const REWARM: Duration = Duration::from_millis(5);

/// What was measured of one row.
#[derive(Clone, Debug)]
pub(crate) struct RowResult {
    /// The row.
    pub spec: RowSpec,
    /// Times of single operations, for latency: whole round trips.
    pub times: Recorder,
    /// Sums over all slices.
    pub total: Slice,
    /// Bandwidth of each slice, in bytes a second.
    pub slices: Vec<f64>,
    /// How much of the time this side had its processor.
    pub scheduled: Scheduled,
}

/// What came out of a benchmark.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Rows, in the order in which they were measured; the last may be incomplete.
    pub rows: Vec<RowResult>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// How much of the time other programs had this side's processor.
    pub waited_share: f64,
    /// What the NIC of this side counted.
    pub counters: Vec<(&'static str, u64)>,
    /// Why it ended early.
    pub error: Option<MeasureError>,
}

/// Told about what goes on.
pub(crate) trait Progress {
    /// This row is measured next.
    fn begins(&mut self, spec: &RowSpec);
    /// A slice is over; `share` of all work is done.
    fn advanced(&mut self, share: f64);
}

/// A client that is ready to measure.
pub(crate) struct Client<'c> {
    control: &'c Connection,
    local: Local,
    /// This side's device.
    pub here: DeviceDescription,
    /// The server's device.
    pub there: DeviceDescription,
    segment: usize,
    notes: Vec<String>,
    /// Of the slices that count.
    scheduled: Scheduled,
}

/// A row that is open on both sides.
struct Open {
    id: u32,
    row: Row,
    result: RowResult,
}

impl<'c> Client<'c> {
    /// Opens the devices of both sides.
    ///
    /// # Errors
    /// One cannot be opened, or the server left.
    pub(crate) fn new(
        control: &'c Connection,
        options: DeviceOptions,
        link: LinkKind,
        fault: Option<String>,
        address: Option<IpAddr>,
        cpus: Option<(usize, usize)>,
    ) -> Result<Client<'c>, MeasureError> {
        // First here, then there, so that errors of this side are reported as such.
        let mut local = open_device(options.link(link), address, control)?;
        let (ours, theirs) = cpus.unzip();
        // After the device has its threads: they are not to share this processor.
        local.apart |= ours.is_some_and(placement::stay_on);
        control.send(&Message::Setup { link: link.to_string(), fault, cpu: theirs })?;
        let there = match control.receive("device", Some(ANSWER_LIMIT))? {
            Message::Device(description) => description,
            other => return Err(control.unexpected(&other, "device").into()),
        };
        let here = describe(&local.device);
        let segment = here.path_mtu.min(there.path_mtu).max(1);
        Ok(Client {
            control,
            local,
            here,
            there,
            segment,
            notes: Vec::new(),
            scheduled: Scheduled::default(),
        })
    }

    /// Measures everything, or what is possible.
    pub(crate) fn run(mut self, wishes: &Wishes, progress: &mut dyn Progress) -> Outcome {
        let groups = wishes.groups();
        let steps: usize = groups.iter().map(|g| g.rows.len() * wishes.rounds() as usize).sum();
        let mut steps = Steps { all: steps.max(1), done: 0 };
        let mut rows = Vec::new();
        let mut error = None;
        for group in &groups {
            error = self.group(group, wishes, &mut rows, &mut steps, progress).err();
            if error.is_some() {
                break;
            }
        }
        let counters = self.local.device.counters();
        if error.is_none() || error.as_ref().is_some_and(MeasureError::is_interrupt) {
            let _ = self.control.send(&Message::Bye);
        } else if let Some(error) = &error {
            let _ = self.control.send(&Message::Failed { message: error.to_string() });
        }
        let waited_share = self.scheduled.waited_share();
        if waited_share > BUSY {
            self.notes.push(format!(
                "other programs had this side's processor for {:.0} % of the time. On a quiet machine tails are \
                 shorter, bandwidth is higher, and ratios mean more; those with a question mark compare a row that had \
                 its processor with one that had not.",
                100.0 * waited_share
            ));
        }
        Outcome { rows, notes: self.notes, waited_share, counters, error }
    }

    /// Measures a group; what was measured is in `rows` even if it fails.
    fn group(
        &mut self,
        group: &Group,
        wishes: &Wishes,
        rows: &mut Vec<RowResult>,
        steps: &mut Steps,
        progress: &mut dyn Progress,
    ) -> Result<(), MeasureError> {
        let mut open = Vec::new();
        let mut result = self.open_all(group, &mut open);
        if result.is_ok() {
            result = self.rounds(&mut open, wishes, steps, progress);
        }
        if result.is_ok() {
            result = open.iter().try_for_each(|open| self.close(open.id));
        }
        rows.extend(open.into_iter().map(|open| open.result).filter(|r| r.total.operations > 0));
        result
    }

    fn open_all(&mut self, group: &Group, open: &mut Vec<Open>) -> Result<(), MeasureError> {
        for (id, &spec) in (0..).zip(&group.rows) {
            match self.open(id, spec) {
                Ok(row) => {
                    let result = RowResult {
                        spec,
                        times: Recorder::new(),
                        total: Slice::default(),
                        slices: Vec::new(),
                        scheduled: Scheduled::default(),
                    };
                    open.push(Open { id, row, result });
                }
                Err(error) if error.concerns_raw_only() => self.give_up(&spec, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn rounds(
        &mut self,
        open: &mut Vec<Open>,
        wishes: &Wishes,
        steps: &mut Steps,
        progress: &mut dyn Progress,
    ) -> Result<(), MeasureError> {
        for round in 0..wishes.rounds() {
            let mut i = 0;
            while i < open.len() {
                let row = &mut open[i];
                progress.begins(&row.result.spec);
                match self.turn(row, wishes, round) {
                    Ok(()) => i += 1,
                    Err(error) if error.concerns_raw_only() => {
                        let row = open.remove(i);
                        self.give_up(&row.result.spec, &error);
                    }
                    Err(error) => return Err(error),
                }
                steps.done += 1;
                progress.advanced(steps.done as f64 / steps.all as f64);
                if signals::pending() {
                    return Err(ControlError::Interrupted.into());
                }
            }
        }
        Ok(())
    }

    /// One turn of a row: in the first round a verified pass, then warm-up, then the slice that counts.
    fn turn(&mut self, open: &mut Open, wishes: &Wishes, round: u32) -> Result<(), MeasureError> {
        let spec = open.result.spec;
        let mut warm = wishes.warmup.min(REWARM);
        if round == 0 {
            warm = wishes.warmup;
            if !spec.action.is_raw() {
                let pings = if spec.measure == Measure::Latency { VERIFIED_PINGS } else { spec.depth as u64 };
                let (slice, done) =
                    self.slice(open, Phase::Verify, Length::Operations(pings), &mut Recorder::new())?;
                open.result.total.whole += slice.whole + done.whole;
            }
        }
        if !warm.is_zero() {
            self.slice(open, Phase::Timed, Length::Time(warm), &mut Recorder::new())?;
        }
        let mut times = std::mem::take(&mut open.result.times);
        let start = Scheduled::now();
        let outcome = self.slice(open, Phase::Timed, wishes.slice(round), &mut times);
        let end = Scheduled::now();
        self.scheduled.add(start, end);
        open.result.scheduled.add(start, end);
        open.result.times = times;
        let (slice, done) = outcome?;
        open.result.add(&slice, &done);
        Ok(())
    }

    fn slice(
        &self,
        open: &mut Open,
        phase: Phase,
        length: Length,
        times: &mut Recorder,
    ) -> Result<(Slice, Done), MeasureError> {
        let (row, spec) = (open.id, open.result.spec);
        self.ask(&Message::Run { row, phase, first: open.row.next() }, "running", |answer| {
            matches!(answer, Message::Running { row: r } if *r == row).then_some(())
        })?;
        signals::limit_step(match length {
            Length::Time(time) => Some(time + STUCK_LIMIT),
            Length::Operations(_) if phase == Phase::Verify => Some(STUCK_LIMIT),
            Length::Operations(_) => None,
        });
        let measured = open.row.measure(self.control, &spec, phase, length, times);
        signals::limit_step(None);
        if let Err(error) = &measured
            && !error.concerns_raw_only()
        {
            return measured.map(|slice| (slice, Done::default()));
        }
        let done =
            self.ask(&Message::Stop { row, end: open.row.next() }, "stopped", |answer| match answer {
                Message::Stopped { row: r, done } if *r == row => Some(done.clone()),
                _ => None,
            })?;
        match done.mismatch {
            Some(mismatch) => Err(MeasureError::Content(format!("the server found: {mismatch}"))),
            None if measured.as_ref().is_ok_and(|m| m.bytes > 0) && is_stream(&spec) && done.bytes == 0 => {
                Err(MeasureError::RawSilent("none of a stream arrived".into()))
            }
            None => Ok((measured?, done)),
        }
    }

    fn open(&self, id: u32, spec: RowSpec) -> Result<Row, MeasureError> {
        let half = Row::prepare(&self.local, self.control, spec, self.segment, false)?;
        let end = half.end()?;
        let open = Message::Open { row: id, spec, segment: self.segment, end };
        let theirs = self.ask(&open, "opened", |answer| match answer {
            Message::Opened { row, end } if *row == id => Some(Ok(end.clone())),
            Message::NoRaw { row, reason } if *row == id => Some(Err(reason.clone())),
            _ => None,
        })?;
        half.connect(self.control, &theirs.map_err(MeasureError::RawSilent)?)
    }

    fn close(&self, id: u32) -> Result<(), MeasureError> {
        self.ask(&Message::Close { row: id }, "closed", |answer| {
            matches!(answer, Message::Closed { row } if *row == id).then_some(())
        })
    }

    /// Sends a message, and reads the answer.
    fn ask<T>(
        &self,
        message: &Message,
        awaited: &'static str,
        read: impl FnOnce(&Message) -> Option<T>,
    ) -> Result<T, MeasureError> {
        self.control.send(message)?;
        let answer = self.control.receive(awaited, Some(ANSWER_LIMIT))?;
        read(&answer).ok_or_else(|| self.control.unexpected(&answer, awaited).into())
    }

    fn give_up(&mut self, spec: &RowSpec, error: &MeasureError) {
        self.notes.push(format!("no {} {}: {error}", spec.action.name(), crate::units::size(spec.size)));
    }
}

fn is_stream(spec: &RowSpec) -> bool {
    matches!(spec.action, Action::RawStream | Action::RawSingle)
}

/// How much is done.
struct Steps {
    all: usize,
    done: usize,
}

impl RowResult {
    fn add(&mut self, slice: &Slice, done: &Done) {
        let total = &mut self.total;
        let (bytes, elapsed, operations) = match self.spec.action {
            // Of a raw stream only what arrived counts.
            Action::RawStream | Action::RawSingle => {
                total.lost += slice.bytes.saturating_sub(done.bytes);
                let operations = done.timed_bytes / self.spec.size as u64;
                (done.timed_bytes, Duration::from_nanos(done.elapsed_ns), operations)
            }
            _ => {
                total.lost += slice.lost;
                (slice.bytes, slice.elapsed, slice.operations)
            }
        };
        total.bytes += bytes;
        total.elapsed += elapsed;
        total.operations += operations;
        total.whole += slice.whole + done.whole;
        total.ends += slice.ends + done.ends;
        if !elapsed.is_zero() {
            self.slices.push(bytes as f64 / elapsed.as_secs_f64());
        }
    }

    /// Payload bytes a second.
    pub(crate) fn bytes_per_second(&self) -> f64 {
        per_second(self.total.bytes as f64, self.total.elapsed)
    }

    /// Operations a second.
    pub(crate) fn operations_per_second(&self) -> f64 {
        per_second(self.total.bytes as f64 / self.spec.size as f64, self.total.elapsed)
    }

    /// What a time of the histogram means: half of a round trip, or all of it.
    pub(crate) fn scale(&self) -> f64 {
        if self.spec.action.is_ping_pong() { 0.5 } else { 1.0 }
    }

    /// A percentile of the latency, in nanoseconds.
    pub(crate) fn latency_ns(&self, percent: f64) -> f64 {
        self.times.percentile(percent) as f64 * self.scale()
    }
}

fn per_second(amount: f64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { amount / elapsed.as_secs_f64() }
}

/// A comparison with the limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    /// The result of a row divided by that of its limit: for latency the medians, for bandwidth the rates.
    pub value: f64,
    /// Other programs took the processor from one of the two much more than from the other.
    pub doubtful: bool,
}

/// Compares a row with its limit, if that was measured.
pub(crate) fn ratio(row: &RowResult, rows: &[RowResult]) -> Option<Ratio> {
    let limit = row.spec.action.limit(row.spec.measure)?;
    let limit = rows.iter().find(|r| {
        r.spec.action == limit && r.spec.measure == row.spec.measure && r.spec.size == row.spec.size
    })?;
    let shares = (row.scheduled.waited_share(), limit.scheduled.waited_share());
    let (ours, raw, doubtful) = match row.spec.measure {
        // The median is that of operations which nobody interrupted.
        Measure::Latency => (row.latency_ns(50.0), limit.latency_ns(50.0), shares.0.max(shares.1) > 0.9),
        Measure::Bandwidth => {
            (row.bytes_per_second(), limit.bytes_per_second(), (shares.0 - shares.1).abs() > UNEQUAL)
        }
    };
    (raw > 0.0).then(|| Ratio { value: ours / raw, doubtful })
}
