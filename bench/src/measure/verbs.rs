//! One side of a row that uses verbs: a queue pair of its own, its buffers, and a window for the other side.

use anyverbs::{
    Cq, Device, Domain, Endpoint, Init, Lease, Pool, QpOptions, Rc, Ready, RemoteToken, Rights, Window,
};

use super::content::{Author, Checked, Content};
use super::{MeasureError, Watch};
use crate::control::End;
use crate::plan::{Action, Measure, RowSpec};

/// Send buffers for a ping-pong: one on its way, one being written, and some whose completion is late.
const LATENCY_BUFFERS: usize = 8;

/// Slots that a ping-pong of writes uses in turn: a message is checked after it was answered, while the next one
/// may already arrive.
const PING_SLOTS: usize = 2;

/// The device of this process, and its one protection domain.
pub(crate) struct Local {
    /// The device.
    pub device: Device,
    /// The domain that all rows share.
    pub domain: Domain,
    /// The two sides do not share a processor.
    pub apart: bool,
}

/// A queue pair, its buffers and its window, before the other side is known.
pub(crate) struct Unconnected {
    parts: Parts,
    qp: anyverbs::Qp<Rc, Init>,
}

/// A side of a row that is ready.
pub(crate) struct Verbs {
    /// Everything but the queue pair.
    pub parts: Parts,
    /// The queue pair.
    pub qp: anyverbs::Qp<Rc, Ready>,
    /// The other side's window.
    pub remote: RemoteToken,
    /// The sequence number of the next operation.
    pub next: u64,
}

/// What a side of a row has besides its queue pair.
pub(crate) struct Parts {
    /// What the row does.
    pub spec: RowSpec,
    /// Completions of this row only.
    pub cq: Cq,
    /// Buffers for requests.
    pub outgoing: Pool,
    /// Buffers for receives.
    pub incoming: Option<Pool>,
    /// What the other side writes, reads or adds to.
    pub window: Window,
    /// What this side writes.
    pub ours: Content,
    /// What the other side writes.
    pub theirs: Content,
    /// A copy of a part of the window, to be checked.
    pub scratch: Vec<u8>,
}

impl Unconnected {
    /// Prepares `author`'s side of a row.
    ///
    /// # Errors
    /// Memory or queues cannot be had.
    pub(crate) fn new(local: &Local, spec: RowSpec, author: Author) -> Result<Self, MeasureError> {
        let requests = if spec.measure == Measure::Latency { LATENCY_BUFFERS } else { spec.depth };
        let other = if author == Author::Client { Author::Server } else { Author::Client };
        // Receives are posted again only after the message was looked at, so there are more of them than
        // messages can be on their way.
        let receives = if spec.action == Action::Send { 2 * requests } else { 0 };
        let (send_depth, recv_depth) = (requests as u32, receives.max(1) as u32);
        let cq = local.device.completion_queue(send_depth + recv_depth)?;
        let options = QpOptions::new().send_depth(send_depth).recv_depth(recv_depth);
        let qp = local.domain.queue_pair::<Rc>(&options, &cq, &cq)?;
        let outgoing = local.domain.pool(requests, spec.size)?;
        let incoming = (receives > 0).then(|| local.domain.pool(receives, spec.size)).transpose()?;
        let (len, rights) = exposed(&spec, author);
        let window = local.domain.window(len, rights)?;
        let mut parts = Parts {
            spec,
            cq,
            outgoing,
            incoming,
            window,
            ours: Content::new(spec, author),
            theirs: Content::new(spec, other),
            scratch: vec![0; spec.size],
        };
        if spec.action == Action::Read && author == Author::Server {
            parts.offer()?;
        }
        Ok(Unconnected { parts, qp })
    }

    /// What the other side has to know.
    pub(crate) fn end(&self) -> End {
        End::Verbs { endpoint: self.qp.endpoint().to_string(), token: self.parts.window.token().to_string() }
    }

    /// Connects to the other side, and posts all receives.
    ///
    /// # Errors
    /// The other side's description is not one, or the provider refuses it.
    pub(crate) fn connect(self, end: &End) -> Result<Verbs, MeasureError> {
        let End::Verbs { endpoint, token } = end else {
            return Err(MeasureError::BadEnd("a socket where a queue pair is needed".into()));
        };
        let endpoint: Endpoint = endpoint.parse().map_err(bad_end)?;
        let remote: RemoteToken = token.parse().map_err(bad_end)?;
        let qp = self.qp.connect(&endpoint)?;
        let verbs = Verbs { parts: self.parts, qp, remote, next: 0 };
        if let Some(pool) = &verbs.parts.incoming {
            while let Some(lease) = pool.lease() {
                verbs.receive_into(lease)?;
            }
        }
        Ok(verbs)
    }
}

/// How much memory a side exposes, and for what. Every row has a window, so that all ends look alike.
fn exposed(spec: &RowSpec, author: Author) -> (usize, Rights) {
    let server = author == Author::Server;
    match spec.action {
        Action::Write if spec.measure == Measure::Latency => (spec.size * PING_SLOTS, Rights::WRITE),
        Action::Write if server => (spec.size * spec.depth, Rights::WRITE),
        Action::Read if server => (spec.size * spec.depth, Rights::READ),
        Action::FetchAdd if server => (8, Rights::ATOMIC),
        _ => (8, Rights::READ),
    }
}

fn bad_end(error: impl std::fmt::Display) -> MeasureError {
    MeasureError::BadEnd(error.to_string())
}

impl Parts {
    /// Fills every slot of the window with what a reader has to find there.
    fn offer(&mut self) -> Result<(), MeasureError> {
        for slot in 0..self.spec.depth {
            self.ours.pattern().fill(slot as u64, &mut self.scratch);
            self.window.write(slot * self.spec.size, &self.scratch)?;
        }
        Ok(())
    }

    /// Wipes the window, so that what is found there later was written later.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub(crate) fn wipe(&mut self) -> Result<(), MeasureError> {
        self.scratch.fill(0);
        let mut at = 0;
        while at < self.window.len() {
            let len = self.scratch.len().min(self.window.len() - at);
            self.window.write(at, &self.scratch[..len])?;
            at += len;
        }
        Ok(())
    }

    /// Checks that every slot holds the last of the messages `first..end` that went there.
    ///
    /// # Errors
    /// One does not.
    pub(crate) fn check_slots(&mut self, first: u64, end: u64) -> Result<Checked, MeasureError> {
        let mut checked = Checked::default();
        for sequence in end.saturating_sub(self.spec.depth as u64).max(first)..end {
            let slot = self.theirs.slot(sequence);
            self.window.read(slot as usize * self.spec.size, &mut self.scratch)?;
            self.theirs.pattern().check_with(slot, sequence, &self.scratch)?;
            checked.whole += 1;
        }
        Ok(checked)
    }

    /// Where message `sequence` of a ping-pong of writes goes.
    #[inline]
    pub(crate) fn ping_offset(&self, sequence: u64) -> usize {
        (sequence % PING_SLOTS as u64) as usize * self.spec.size
    }

    /// Whether the last bytes of message `sequence` are in the window.
    #[inline]
    pub(crate) fn has_arrived(&self, sequence: u64) -> bool {
        let pattern = self.theirs.pattern();
        let len = pattern.tail_len();
        let mut tail = [0; 8];
        self.window.read(self.ping_offset(sequence) + self.spec.size - len, &mut tail[..len]).is_ok()
            && tail[..len] == pattern.tail(sequence)[..len]
    }
}

impl Verbs {
    /// Posts a buffer for the next message.
    ///
    /// # Errors
    /// The queue does not take it.
    #[inline]
    pub(crate) fn receive_into(&self, lease: Lease) -> Result<(), MeasureError> {
        self.qp.post_recv(lease).map_err(|e| MeasureError::Refused { sequence: self.next, reason: e.reason })
    }

    /// A free buffer; waits for a completion if all are on their way.
    ///
    /// # Errors
    /// A request failed, or nothing completes.
    #[inline]
    pub(crate) fn buffer(&self, watch: &mut Watch<'_>) -> Result<Lease, MeasureError> {
        loop {
            if let Some(lease) = self.parts.outgoing.lease() {
                return Ok(lease);
            }
            self.reap()?;
            watch.idle_alone()?;
        }
    }

    /// Takes completions of requests; their buffers go back to their pool.
    ///
    /// # Errors
    /// A request failed.
    #[inline]
    pub(crate) fn reap(&self) -> Result<usize, MeasureError> {
        let mut failure = None;
        let taken = self.parts.cq.poll(|completion| {
            if let Err(error) = self.succeeded(&completion) {
                failure = Some(error);
            }
        });
        failure.map_or(Ok(taken), Err)
    }

    /// Whether a completion is one of success.
    ///
    /// # Errors
    /// It is not.
    #[inline]
    pub(crate) fn succeeded(&self, completion: &anyverbs::Completion) -> Result<(), MeasureError> {
        match completion.status {
            anyverbs::Status::Success => Ok(()),
            status => {
                Err(MeasureError::Failed { operation: completion.operation, sequence: self.next, status })
            }
        }
    }
}
