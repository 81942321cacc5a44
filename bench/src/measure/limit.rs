//! The raw rows: what the same sockets do without a protocol.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyverbs::Device;

use super::{Local, MeasureError, Recorder, Slice, Watch};
use crate::control::{Connection, Done, End, Message};
use crate::plan::{Action, Length, RowSpec};
use crate::raw::RawSocket;
use crate::signals;

/// An answer that takes longer is lost.
const ANSWER_LIMIT: Duration = Duration::from_millis(250);
/// A message of which a part is missing for so long is forgotten by the side that answers.
const PART_LIMIT: Duration = Duration::from_millis(100);
/// After so many lost answers in a row the datagrams do not get through at all.
const LOST_MAX: u64 = 8;
/// Bytes, and datagrams, of a stream that may be on their way, so that the receiver's buffer does not overflow:
/// what is dropped there costs the receiver time. The buffer counts what datagrams take, not what they carry.
const WINDOW_BYTES: u64 = 1 << 20;
const WINDOW_DATAGRAMS: u64 = 4096;
/// A stream that hears nothing for so long goes on: something was lost.
const REPORT_LIMIT: Duration = Duration::from_millis(5);
/// Bytes of the request that is answered by a message.
const REQUEST: usize = 8;

/// One side of a raw row.
pub(crate) struct RawRow {
    spec: RowSpec,
    /// For its patience: where the two sides share a processor, each has to yield it at once.
    device: Device,
    apart: bool,
    socket: RawSocket,
    /// The sequence number of the next message.
    pub next: u64,
}

impl RawRow {
    /// Opens a socket for datagrams of up to `segment` bytes where the control connection is.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub(crate) fn open(
        spec: RowSpec,
        local: &Local,
        control: &Connection,
        segment: usize,
    ) -> Result<RawRow, MeasureError> {
        let socket = RawSocket::open(control.local(), segment.min(spec.size))?;
        let Local { device, apart, .. } = local;
        Ok(RawRow { spec, device: device.clone(), apart: *apart, socket, next: 0 })
    }

    /// What the other side has to know.
    ///
    /// # Errors
    /// The system does not say it.
    pub(crate) fn end(&self) -> Result<End, MeasureError> {
        Ok(End::Raw { port: self.socket.port()? })
    }

    /// Sets the other side.
    ///
    /// # Errors
    /// It is no socket.
    pub(crate) fn connect(&mut self, control: &Connection, end: &End) -> Result<(), MeasureError> {
        let End::Raw { port } = *end else {
            return Err(MeasureError::BadEnd("a queue pair where a socket is needed".into()));
        };
        let mut peer = control.peer();
        peer.set_port(port);
        let peer = match peer {
            SocketAddr::V6(v6) => match v6.ip().to_canonical() {
                std::net::IpAddr::V4(v4) => SocketAddr::from((v4, port)),
                _ => peer,
            },
            SocketAddr::V4(_) => peer,
        };
        self.socket.set_peer(peer);
        Ok(())
    }

    /// Spins: a limit that gives its processor away at every look is none.
    #[inline]
    fn relax(&self) {
        if self.apart {
            std::hint::spin_loop();
        } else {
            self.device.relax();
        }
    }

    fn window(&self) -> u64 {
        WINDOW_BYTES.min(WINDOW_DATAGRAMS * self.socket.segment() as u64)
    }

    /// Bytes that go to the server and come back, in a ping-pong.
    fn lengths(&self) -> (usize, usize) {
        match self.spec.action {
            Action::RawGet => (self.spec.size.min(REQUEST), self.spec.size),
            _ => (self.spec.size, self.spec.size),
        }
    }

    /// The client's part of a ping-pong.
    ///
    /// # Errors
    /// The socket broke, or nothing comes back.
    pub(crate) fn measure_latency(
        &mut self,
        watch: &mut Watch<'_>,
        length: Length,
        recorder: &mut Recorder,
    ) -> Result<Slice, MeasureError> {
        let (there, back) = self.lengths();
        let begin = Instant::now();
        let mut slice = Slice::default();
        let mut lost_in_a_row = 0;
        loop {
            let over = match length {
                _ if signals::pending() => true,
                Length::Operations(n) => slice.operations >= n,
                Length::Time(time) => begin.elapsed() >= time,
            };
            if over {
                return Ok(slice);
            }
            let start = Instant::now();
            self.send(there, watch)?;
            let answered = self.receive(back, start, watch)?;
            let time = start.elapsed();
            if answered {
                recorder.record(time);
                slice.operations += 1;
                slice.bytes += self.spec.size as u64;
                slice.elapsed += time;
                lost_in_a_row = 0;
            } else {
                slice.lost += 1;
                lost_in_a_row += 1;
                if lost_in_a_row >= LOST_MAX {
                    return Err(MeasureError::RawSilent(format!(
                        "{lost_in_a_row} requests were lost in a row"
                    )));
                }
            }
            watch.progress();
        }
    }

    /// Whether `len` bytes came in time. If not, whatever is late is thrown away.
    fn receive(&mut self, len: usize, start: Instant, watch: &mut Watch<'_>) -> Result<bool, MeasureError> {
        let mut got = 0;
        let mut empty = 0_u32;
        while got < len {
            match self.socket.receive()? {
                0 => {
                    self.relax();
                    watch.idle_alone()?;
                    empty = empty.wrapping_add(1);
                    if empty.is_multiple_of(64) && start.elapsed() > ANSWER_LIMIT {
                        while self.socket.receive()? > 0 {}
                        return Ok(false);
                    }
                }
                n => got += n,
            }
        }
        Ok(true)
    }

    fn send(&mut self, len: usize, watch: &mut Watch<'_>) -> Result<(), MeasureError> {
        let mut left = len;
        while left > 0 {
            match self.socket.send_some(left)? {
                0 => {
                    watch.idle()?;
                }
                n => left -= n,
            }
        }
        Ok(())
    }

    /// The server's part of a ping-pong.
    ///
    /// # Errors
    /// The socket broke.
    pub(crate) fn answer(&mut self, watch: &mut Watch<'_>) -> Result<Done, MeasureError> {
        let (there, back) = self.lengths();
        let mut got = 0;
        let mut since = Instant::now();
        let mut empty = 0_u32;
        loop {
            match self.socket.receive()? {
                0 => {
                    self.relax();
                    if let Some(Message::Stop { .. }) = watch.idle()? {
                        return Ok(Done::default());
                    }
                    empty = empty.wrapping_add(1);
                    if got > 0 && empty.is_multiple_of(64) && since.elapsed() > PART_LIMIT {
                        got = 0;
                    }
                }
                n => {
                    if got == 0 && n < there {
                        since = Instant::now();
                    }
                    got += n;
                    if got >= there {
                        got = 0;
                        self.send(back, watch)?;
                    }
                    watch.progress();
                }
            }
        }
    }

    /// The client's part of a stream: sends as fast as the receiver takes it. The server counts.
    ///
    /// # Errors
    /// The socket broke.
    pub(crate) fn pour(&mut self, watch: &mut Watch<'_>, length: Length) -> Result<Slice, MeasureError> {
        let begin = Instant::now();
        let most = match length {
            Length::Operations(n) => n.saturating_mul(self.spec.size as u64),
            Length::Time(_) => u64::MAX,
        };
        // What the other side said of an earlier stream.
        while self.socket.receive()? > 0 {}
        let (mut sent, mut reported, mut lost) = (0_u64, 0_u64, 0_u64);
        while sent < most && !signals::pending() {
            if let Length::Time(time) = length
                && begin.elapsed() >= time
            {
                break;
            }
            if sent - lost - reported >= self.window() {
                match self.report(watch)? {
                    Some(number) => reported = number.min(sent - lost).max(reported),
                    None => lost = sent - reported,
                }
                continue;
            }
            let left = usize::try_from(most - sent).unwrap_or(usize::MAX);
            let n = match self.spec.action {
                Action::RawSingle => self.socket.send_one(left)?,
                _ => self.socket.send_some(left)?,
            };
            sent += n as u64;
            if n == 0 {
                self.relax();
                watch.idle_alone()?;
            } else {
                watch.progress();
            }
        }
        Ok(Slice { bytes: sent, elapsed: begin.elapsed(), ..Slice::default() })
    }

    /// How much of a stream the other side has, or `None` if it does not say.
    fn report(&mut self, watch: &mut Watch<'_>) -> Result<Option<u64>, MeasureError> {
        let start = Instant::now();
        let mut empty = 0_u32;
        loop {
            if let Some(number) = self.socket.receive_number()? {
                return Ok(Some(number));
            }
            self.relax();
            watch.idle_alone()?;
            empty = empty.wrapping_add(1);
            if empty.is_multiple_of(16) && start.elapsed() > REPORT_LIMIT {
                return Ok(None);
            }
        }
    }

    /// The server's part of a stream: counts what arrives, from the first arrival to the last.
    ///
    /// # Errors
    /// The socket broke.
    pub(crate) fn drain(&mut self, watch: &mut Watch<'_>) -> Result<Done, MeasureError> {
        let (mut bytes, mut timed_bytes, mut reported) = (0_u64, 0_u64, 0_u64);
        // The sender hears of it four times a window.
        let report_every = self.window() / 4;
        let mut times: Option<(Instant, Instant)> = None;
        let mut over = false;
        loop {
            match self.socket.receive()? {
                0 if over => break,
                0 => {
                    self.relax();
                    over = matches!(watch.idle()?, Some(Message::Stop { .. }));
                }
                n => {
                    let now = Instant::now();
                    bytes += n as u64;
                    match &mut times {
                        // What came first was on its way before the clock started.
                        None => times = Some((now, now)),
                        Some((_, last)) => {
                            timed_bytes += n as u64;
                            *last = now;
                        }
                    }
                    if bytes - reported >= report_every {
                        reported = bytes;
                        self.socket.send_number(bytes)?;
                    }
                    watch.progress();
                }
            }
        }
        let elapsed = times.map_or(Duration::ZERO, |(first, last)| last - first);
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Ok(Done { bytes, timed_bytes, elapsed_ns, ..Done::default() })
    }
}
