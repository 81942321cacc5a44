//! A link that goes nowhere: it keeps what it is given, and hands out what it is told to.

use std::sync::{Arc, Mutex};

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, RxEntry, TxBatch, Waiter};

/// A datagram that a [`Recorder`] was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sent {
    pub at: Time,
    pub ecn: u8,
    pub bytes: Vec<u8>,
}

/// What a test and its [`Recorder`] share.
#[derive(Default)]
pub struct Tape {
    pub sent: Vec<Sent>,
    /// What the next receive brings.
    pub arriving: Vec<Vec<u8>>,
    /// Datagrams that one transmit takes at most; `None`: all.
    pub takes: Option<usize>,
}

pub struct Recorder {
    info: LinkInfo,
    tape: Arc<Mutex<Tape>>,
    waiter: Arc<StillClock>,
}

struct StillClock {
    wants_progress_thread: bool,
}

impl Waiter for StillClock {
    fn now(&self) -> Time {
        Time::ZERO
    }
    fn wait(&self, _: Option<Time>) {}
    fn wake(&self) {}
    fn relax(&self) {}
    fn wants_progress_thread(&self) -> bool {
        self.wants_progress_thread
    }
}

impl Recorder {
    /// A reliable link of 10.0.0.1; `real`: its clock is one that goes by itself.
    pub fn new(real: bool) -> (Recorder, Arc<Mutex<Tape>>) {
        let tape = Arc::<Mutex<Tape>>::default();
        let info = LinkInfo {
            name: "recorder",
            detail: "memory".to_owned(),
            address: [10, 0, 0, 1].into(),
            max_datagram: 65_507,
            reliable: true,
            prefix: None,
            warnings: Vec::new(),
        };
        let waiter = Arc::new(StillClock { wants_progress_thread: real });
        (Recorder { info, tape: Arc::clone(&tape), waiter }, tape)
    }
}

impl Link for Recorder {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::clone(&self.waiter) as Arc<dyn Waiter>
    }

    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        let mut tape = self.tape.lock().unwrap();
        let n = tape.takes.unwrap_or(usize::MAX).min(batch.len());
        for entry in &batch.entries()[..n] {
            let bytes = batch.bytes()[entry.range()].to_vec();
            tape.sent.push(Sent { at: now, ecn: entry.ecn, bytes });
        }
        batch.consume(n);
        Ok(())
    }

    fn receive(&mut self, batch: &mut RxBatch, _: Time) -> Result<(), LinkError> {
        let mut at = batch.entries().iter().map(|e| e.start + e.len).max().unwrap_or(0);
        for bytes in self.tape.lock().unwrap().arriving.drain(..) {
            batch.buffer()[at..at + bytes.len()].copy_from_slice(&bytes);
            let entry = RxEntry {
                source: [10, 0, 0, 2].into(),
                destination: self.info.address,
                source_port: 0xC123,
                ip_id: None,
                ecn: 1,
                start: at,
                len: bytes.len(),
            };
            assert!(batch.push(entry));
            at += bytes.len();
        }
        Ok(())
    }
}
