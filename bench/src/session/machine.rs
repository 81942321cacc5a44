//! The machine, for the report.

use std::fs;
use std::thread;

use serde::Serialize;

/// What somebody who reads a result wants to know of the machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// The system's name and release.
    pub kernel: String,
    /// The instruction set.
    pub architecture: &'static str,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        let uname = rustix::system::uname();
        Machine {
            cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            architecture: std::env::consts::ARCH,
        }
    }
}

/// How long the calling thread has run, and how long it was ready and waited for a processor.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Scheduled {
    /// Nanoseconds on a processor.
    pub ran_ns: u64,
    /// Nanoseconds ready, without one.
    pub waited_ns: u64,
}

impl Scheduled {
    /// Since the thread began. Zero where the kernel does not count it.
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        Scheduled { ran_ns: numbers.next().unwrap_or(0), waited_ns: numbers.next().unwrap_or(0) }
    }

    /// Adds what happened from `start` to `end`.
    pub(crate) fn add(&mut self, start: Scheduled, end: Scheduled) {
        self.ran_ns += end.ran_ns.saturating_sub(start.ran_ns);
        self.waited_ns += end.waited_ns.saturating_sub(start.waited_ns);
    }

    /// The part of the time that was spent waiting.
    pub(crate) fn waited_share(&self) -> f64 {
        let all = self.ran_ns + self.waited_ns;
        if all == 0 { 0.0 } else { self.waited_ns as f64 / all as f64 }
    }
}

fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}
