//! What the two sides say to each other after the greeting.

use serde::{Deserialize, Serialize};

use crate::plan::RowSpec;

/// One line of the control connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum Message {
    /// Client: open your device, like this. Answer: [`Message::Device`].
    Setup {
        /// The link, as the option names it.
        link: String,
        /// The faults, as the option names them.
        fault: Option<String>,
        /// The processor to stay on.
        cpu: Option<usize>,
    },
    /// Server: this is my device.
    Device(DeviceDescription),
    /// Client: prepare for this row. Answer: [`Message::Opened`].
    Open {
        /// A number for this row, which later messages name.
        row: u32,
        /// What it does.
        spec: RowSpec,
        /// The length of a raw datagram, in bytes.
        segment: usize,
        /// The client's end.
        end: End,
    },
    /// Server: prepared.
    Opened {
        /// The row.
        row: u32,
        /// The server's end.
        end: End,
    },
    /// Server: this raw row cannot be had; the others can.
    NoRaw {
        /// The row.
        row: u32,
        /// Why.
        reason: String,
    },
    /// Client: start your part of the row. Answer: [`Message::Running`].
    Run {
        /// The row.
        row: u32,
        /// How strictly to look at messages.
        phase: Phase,
        /// The sequence number of the first message.
        first: u64,
    },
    /// Server: my part has started.
    Running {
        /// The row.
        row: u32,
    },
    /// Client: these were all. Answer: [`Message::Stopped`].
    Stop {
        /// The row.
        row: u32,
        /// The sequence number after that of the last message.
        end: u64,
    },
    /// Server: my part has ended, and this is what I saw.
    Stopped {
        /// The row.
        row: u32,
        /// What the server saw.
        done: Done,
    },
    /// Client: the row is over; give its memory back. Answer: [`Message::Closed`].
    Close {
        /// The row.
        row: u32,
    },
    /// Server: given back.
    Closed {
        /// The row.
        row: u32,
    },
    /// Either side: I cannot go on, and this is why.
    Failed {
        /// For people.
        message: String,
    },
    /// Client: that was all.
    Bye,
}

impl Message {
    /// Its name, for error messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Message::Setup { .. } => "setup",
            Message::Device(_) => "device",
            Message::Open { .. } => "open",
            Message::Opened { .. } => "opened",
            Message::NoRaw { .. } => "no-raw",
            Message::Run { .. } => "run",
            Message::Running { .. } => "running",
            Message::Stop { .. } => "stop",
            Message::Stopped { .. } => "stopped",
            Message::Close { .. } => "close",
            Message::Closed { .. } => "closed",
            Message::Failed { .. } => "failed",
            Message::Bye => "bye",
        }
    }
}

/// One side's end of a row.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// A queue pair, and the window that the other side may touch (the token of one).
    Verbs {
        /// The queue pair's endpoint, as text.
        endpoint: String,
        /// The window's token, as text.
        token: String,
    },
    /// A UDP socket.
    Raw {
        /// Its port, at the address of the control connection.
        port: u16,
    },
}

/// A device, for people and for the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceDescription {
    /// The device's name.
    pub name: String,
    /// Its link: `udp`.
    pub link: String,
    /// How the link works: `io_uring, GSO, GRO`.
    pub detail: String,
    /// Its address.
    pub address: String,
    /// Its path MTU, in bytes.
    pub path_mtu: usize,
}

/// How strictly messages are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Every byte of every message.
    Verify,
    /// The ends of every message, and every byte of every 64th.
    Timed,
}

/// What the server saw of a part of a row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Messages of which every byte was checked.
    pub whole: u64,
    /// Messages of which the ends were checked.
    pub ends: u64,
    /// Raw streams: bytes that arrived.
    pub bytes: u64,
    /// Raw streams: those of them that came after the first arrival, which started the clock.
    pub timed_bytes: u64,
    /// Raw streams: from the first arrival to the last, in nanoseconds.
    pub elapsed_ns: u64,
    /// The first content that was wrong, for people.
    pub mismatch: Option<String>,
}
