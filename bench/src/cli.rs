//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyverbs::{FaultProfile, LinkKind};
use clap::{Args, Parser, Subcommand};

use crate::control::DEFAULT_PORT;
use crate::plan::{DEPTH_MAX, Length, Measure, Op, Wishes};
use crate::units;

/// Time a row is measured, unless told.
const DURATION: Duration = Duration::from_millis(600);
const QUICK_DURATION: Duration = Duration::from_millis(100);
const WARMUP: Duration = Duration::from_millis(40);
const LATENCY_SIZES: [usize; 4] = [8, 64, 4096, 65536];
const BANDWIDTH_SIZES: [usize; 4] = [64, 4096, 65536, 1 << 20];
const QUICK_SIZES: [usize; 2] = [64, 4096];
const QUICK_BANDWIDTH_SIZES: [usize; 2] = [4096, 65536];

/// RDMA verbs on any machine: measure them, and see what is here.
#[derive(Parser, Debug)]
#[command(
    name = "anyverbs",
    version,
    max_term_width = 110,
    arg_required_else_help = true,
    after_help = "Start with:\n  anyverbs bench --quick     a few seconds, on this machine, without root or hardware\n  \
                  anyverbs devices           what could be used here, and what would mend the rest"
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A subcommand.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Measure latency and bandwidth of send, write, read and fetch-add between two processes
    #[command(long_about = BENCH_ABOUT, after_help = BENCH_EXAMPLES)]
    Bench(Box<BenchArgs>),
    /// List every device that could be used, whether it can be, and if not, why and what mends it
    Devices(DevicesArgs),
    /// The second process of `bench`; not for people
    #[command(name = crate::session::CHILD_COMMAND, hide = true)]
    ServeParent,
}

/// Lines of at most 80 columns, since a terminal that is narrower breaks them anywhere.
const BENCH_ABOUT: &str = "\
Measure latency and bandwidth of send, write, read and fetch-add between two
processes.

Without options it starts a second process on this machine and measures a table
of about half a minute: no root, no hardware, nothing to install. With --listen
on one machine and --connect on another it measures between them.

Latency: one operation at a time.
  send, write      ping-pong, half of the round trip. The receiver of a send has
                   posted a receive; that of a write watches the last bytes of
                   its memory. Both answer in kind.
  read, fetch-add  from the request to its completion.
  Percentiles come from a histogram with three significant digits. The loop is
  closed: a sample is one operation, and a pause of the machine shows once, in
  the operation that it hit.

Bandwidth: --depth operations under way, from the first post to the last
completion; payload only.

Raw rows are the limit: plain UDP sockets between the same two processes, with
datagrams of the path MTU and without any protocol, measured in turns with the
other rows of their size.
  raw-echo    the message there and back, halved; the limit of send and write
  raw-get     8 bytes there, the message back; the limit of read and fetch-add
  raw-stream  with segmentation and receive offload; the limit of bandwidth
  raw-single  one datagram a call
  The last column divides by the limit: medians of latency (1.00 would be as
  fast as raw), or bandwidths.

Content is checked. Before a row is timed: every byte of a number of messages.
While it is timed: the first and the last eight bytes of every message, and
every byte of every 64th; of messages up to 64 bytes, always every byte. In
latency rows the clock stands meanwhile; in bandwidth rows it is part of the
receiver's work. The slots that a stream of writes goes to are checked whole
after each turn. A wrong byte ends the run with exit code 1.

Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted (what was
measured is printed).";

const BENCH_EXAMPLES: &str = "\
Examples:
  anyverbs bench                                     the whole table, two processes on this machine
  anyverbs bench --quick                             the same in a few seconds
  anyverbs bench --op send,read --size 8,4KiB,1MiB   some operations and sizes
  anyverbs bench --measure latency --duration 5s     longer rows for quieter tails
  anyverbs bench --fault loss=0.01,seed=1            lose one packet in a hundred, and still get the right data
  anyverbs bench --pcap run.pcapng --quick           look at the packets with Wireshark
  anyverbs bench --json > result.json                for programs

  server$ anyverbs bench --listen                    between two machines: first here ...
  client$ anyverbs bench --connect server            ... then there";

/// Options of `bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Operations to measure
    #[arg(long, value_enum, value_delimiter = ',', value_name = "OP", help_heading = "What to measure")]
    pub op: Vec<Op>,

    /// Message sizes, 1 B to 64 MiB [default: 8,64,4KiB,64KiB for latency, 64,4KiB,64KiB,1MiB for bandwidth]
    #[arg(long, value_delimiter = ',', value_name = "SIZE", value_parser = units::parse_size)]
    #[arg(help_heading = "What to measure")]
    pub size: Vec<usize>,

    /// Only one of the two
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT", help_heading = "What to measure")]
    pub measure: Vec<Measure>,

    /// Leave out the raw rows
    #[arg(long, help_heading = "What to measure")]
    pub no_raw: bool,

    /// How long each row is measured [default: 600ms]
    #[arg(long, value_name = "TIME", value_parser = units::parse_positive_duration, conflicts_with = "iterations")]
    #[arg(help_heading = "How to measure")]
    pub duration: Option<Duration>,

    /// How many operations each row has, instead of a duration
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    #[arg(help_heading = "How to measure")]
    pub iterations: Option<u64>,

    /// How long each row runs before it is measured [default: 40ms]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, help_heading = "How to measure")]
    pub warmup: Option<Duration>,

    /// Operations under way when bandwidth is measured, 1 to 4096; less for large messages, so that buffers take
    /// at most 8 MiB
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = depth, help_heading = "How to measure")]
    pub depth: usize,

    /// Let the system choose processors. Otherwise two processes on one machine stay on two, since on one they
    /// would measure the scheduler
    #[arg(long, conflicts_with = "connect", help_heading = "How to measure")]
    pub no_pin: bool,

    /// Few sizes, 100 ms each
    #[arg(long, help_heading = "How to measure")]
    pub quick: bool,

    /// How packets travel: auto, udp, udp-uring (io_uring) or udp-sockets (plain calls)
    #[arg(long, value_name = "LINK", value_parser = link, help_heading = "The device")]
    pub link: Option<LinkKind>,

    /// The address of this side's device [default: one that the other side can reach]
    #[arg(long, value_name = "IP", help_heading = "The device")]
    pub address: Option<IpAddr>,

    /// Lose, duplicate, reorder, delay or corrupt packets of both sides, for example loss=0.01,seed=1
    #[arg(long, value_name = "PROFILE", value_parser = fault, help_heading = "The device")]
    pub fault: Option<String>,

    /// Write this side's packets to a pcapng file
    #[arg(long, value_name = "FILE", help_heading = "The device")]
    pub pcap: Option<PathBuf>,

    /// Be the server of other machines, until Ctrl-C. ADDR may be ADDR:PORT; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "", help_heading = "Two machines")]
    #[arg(conflicts_with_all = ["connect", "op", "size", "measure", "no_raw", "duration", "iterations", "warmup",
        "depth", "no_pin", "quick", "fault", "pcap", "json"])]
    pub listen: Option<String>,

    /// Measure against the server on HOST
    #[arg(long, value_name = "HOST", help_heading = "Two machines")]
    pub connect: Option<String>,

    /// The TCP port on which the two sides agree on what to do
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT, help_heading = "Two machines")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// With --listen: end after the first client
    #[arg(long, requires = "listen", help_heading = "Two machines")]
    pub once: bool,

    /// Print one JSON object instead of tables (see SCHEMA.md)
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Options of `devices`.
#[derive(Args, Debug)]
pub(crate) struct DevicesArgs {
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

impl BenchArgs {
    /// What the options ask for.
    pub(crate) fn wishes(&self) -> Wishes {
        let or = |given: &[usize], quick: &[usize], full: &[usize]| {
            let mut sizes = match (given.is_empty(), self.quick) {
                (false, _) => given.to_vec(),
                (true, true) => quick.to_vec(),
                (true, false) => full.to_vec(),
            };
            sizes.sort_unstable();
            sizes.dedup();
            sizes
        };
        let duration = self.duration.unwrap_or(if self.quick { QUICK_DURATION } else { DURATION });
        Wishes {
            ops: unique(&self.op, &[Op::Send, Op::Write, Op::Read, Op::FetchAdd]),
            measures: unique(&self.measure, &[Measure::Latency, Measure::Bandwidth]),
            latency_sizes: or(&self.size, &QUICK_SIZES, &LATENCY_SIZES),
            bandwidth_sizes: or(&self.size, &QUICK_BANDWIDTH_SIZES, &BANDWIDTH_SIZES),
            length: self.iterations.map_or(Length::Time(duration), Length::Operations),
            warmup: self.warmup.unwrap_or(if self.quick { WARMUP / 2 } else { WARMUP }),
            depth: self.depth,
            raw: !self.no_raw,
        }
    }
}

/// What was given, each once and in the order of `all`; all of them if nothing was.
fn unique<T: Copy + PartialEq>(given: &[T], all: &[T]) -> Vec<T> {
    all.iter().copied().filter(|one| given.is_empty() || given.contains(one)).collect()
}

fn depth(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=DEPTH_MAX) => Ok(n),
        _ => Err(format!("a depth is 1 to {DEPTH_MAX}")),
    }
}

fn link(text: &str) -> Result<LinkKind, String> {
    text.parse()
        .map_err(|_| format!("there is no link `{text}`; there are auto, udp, udp-uring and udp-sockets"))
}

/// A profile is passed on as text; here it is only looked at, so that a mistake is one of usage.
fn fault(text: &str) -> Result<String, String> {
    let profile: Result<FaultProfile, _> = text.parse();
    profile.map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn bench(words: &[&str]) -> Result<BenchArgs, clap::Error> {
        let cli = Cli::try_parse_from(["anyverbs", "bench"].iter().chain(words))?;
        match cli.command {
            Command::Bench(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_fit_into_forty_seconds() {
        let wishes = bench(&[]).expect("no options").wishes();
        let rows: usize = wishes.groups().iter().map(|group| group.rows.len()).sum();
        let Length::Time(time) = wishes.length else { panic!("{wishes:?}") };
        // A verified pass and the talk between the slices cost some ten milliseconds a row.
        let all = (time + wishes.warmup + Duration::from_millis(30)) * rows as u32;
        assert!(all < Duration::from_secs(36), "{rows} rows, {all:?}");
    }

    #[test]
    fn lists_are_sorted_and_each_thing_is_measured_once() {
        let args = bench(&["--op", "read,send,read", "--size", "4KiB,8,4096"]).expect("good options");
        assert_eq!(args.wishes().ops, [Op::Send, Op::Read]);
        assert_eq!(args.wishes().latency_sizes, [8, 4096]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for words in [
            &["--size", "0"][..],
            &["--size", "1GiB"],
            &["--depth", "0"],
            &["--depth", "4097"],
            &["--op", "sendd"],
            &["--duration", "1s", "--iterations", "5"],
            &["--iterations", "0"],
            &["--listen", "--connect", "host"],
            &["--listen", "--json"],
            &["--link", "tcp"],
            &["--fault", "loss=2"],
            &["--port", "0"],
            &["--once"],
        ] {
            assert!(bench(words).is_err(), "{words:?}");
        }
    }
}
