//! A row as the two sessions drive it, whatever is underneath.

use super::content::Author;
use super::limit::RawRow;
use super::verbs::{Unconnected, Verbs};
use super::{Local, MeasureError, Recorder, Slice, Watch};
use crate::control::{Connection, Done, End, Phase};
use crate::plan::{Action, Length, Measure, RowSpec};

/// One side of a row.
pub(crate) enum Row {
    /// Verbs.
    Verbs(Box<Verbs>),
    /// Plain sockets.
    Raw(Box<RawRow>),
}

/// A client's side of a row that does not know the server's yet.
pub(crate) enum Half {
    /// Verbs.
    Verbs(Box<Unconnected>),
    /// Plain sockets.
    Raw(Box<RawRow>),
}

impl Half {
    /// What the other side has to know.
    ///
    /// # Errors
    /// The system does not say it.
    pub(crate) fn end(&self) -> Result<End, MeasureError> {
        match self {
            Half::Verbs(half) => Ok(half.end()),
            Half::Raw(raw) => raw.end(),
        }
    }

    /// Connects to the other side.
    ///
    /// # Errors
    /// The other side's end is not one that this can talk to.
    pub(crate) fn connect(self, control: &Connection, end: &End) -> Result<Row, MeasureError> {
        Ok(match self {
            Half::Verbs(half) => Row::Verbs(Box::new(half.connect(end)?)),
            Half::Raw(mut raw) => {
                raw.connect(control, end)?;
                Row::Raw(raw)
            }
        })
    }
}

impl Row {
    /// Prepares one side of a row; `segment` is the length of a raw datagram.
    ///
    /// # Errors
    /// Memory, queues or sockets cannot be had.
    pub(crate) fn prepare(
        local: &Local,
        control: &Connection,
        spec: RowSpec,
        segment: usize,
        server: bool,
    ) -> Result<Half, MeasureError> {
        if spec.action.is_raw() {
            return Ok(Half::Raw(Box::new(RawRow::open(spec, local, control, segment)?)));
        }
        let author = if server { Author::Server } else { Author::Client };
        Ok(Half::Verbs(Box::new(Unconnected::new(local, spec, author)?)))
    }

    /// The sequence number of the next operation.
    pub(crate) fn next(&self) -> u64 {
        match self {
            Row::Verbs(verbs) => verbs.next,
            Row::Raw(raw) => raw.next,
        }
    }

    /// The client's part of a slice.
    ///
    /// # Errors
    /// Something went wrong that makes the row worthless.
    pub(crate) fn measure(
        &mut self,
        control: &Connection,
        spec: &RowSpec,
        phase: Phase,
        length: Length,
        recorder: &mut Recorder,
    ) -> Result<Slice, MeasureError> {
        let watch = &mut Watch::client(control);
        match (self, spec.measure) {
            (Row::Verbs(verbs), Measure::Latency) => verbs.measure_latency(watch, phase, length, recorder),
            (Row::Verbs(verbs), Measure::Bandwidth) => verbs.measure_bandwidth(watch, phase, length),
            (Row::Raw(raw), Measure::Latency) => raw.measure_latency(watch, length, recorder),
            (Row::Raw(raw), Measure::Bandwidth) => raw.pour(watch, length),
        }
    }

    /// What the server does before it says that it runs.
    ///
    /// # Errors
    /// None that a peer could cause.
    pub(crate) fn before(&mut self, spec: &RowSpec, first: u64) -> Result<(), MeasureError> {
        match self {
            Row::Verbs(verbs) => {
                verbs.next = first;
                if spec.action == Action::Write && spec.measure == Measure::Bandwidth {
                    verbs.parts.wipe()?;
                }
            }
            Row::Raw(raw) => raw.next = first,
        }
        Ok(())
    }

    /// The server's part of a slice, until the client says that it is over.
    ///
    /// # Errors
    /// Something went wrong that the client has to know.
    pub(crate) fn serve(
        &mut self,
        control: &Connection,
        spec: &RowSpec,
        phase: Phase,
    ) -> Result<Done, MeasureError> {
        let watch = &mut Watch::server(control);
        match (self, spec.measure, spec.action) {
            (Row::Verbs(verbs), Measure::Latency, Action::Send) => verbs.answer_sends(watch, phase),
            (Row::Verbs(verbs), Measure::Latency, Action::Write) => verbs.answer_writes(watch, phase),
            (Row::Verbs(verbs), Measure::Bandwidth, Action::Send) => verbs.sink_sends(watch, phase),
            (Row::Verbs(verbs), ..) => verbs.stand_by(watch),
            (Row::Raw(raw), Measure::Latency, _) => raw.answer(watch),
            (Row::Raw(raw), Measure::Bandwidth, _) => raw.drain(watch),
        }
    }
}
