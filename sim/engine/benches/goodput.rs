//! How much of a link one queue pair fills while packets are lost, in virtual time.
//!
//! ```text
//! cargo bench -p anyverbs-engine --bench goodput               a table in Markdown, for people
//! cargo bench -p anyverbs-engine --bench goodput -- --json     every figure, its spread, and more
//! ```
//!
//! Nothing depends on the machine: the same commit prints the same figures everywhere.

#[path = "../tests/goodput/link.rs"]
mod link;

use std::env;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use link::{Loss, MESSAGE, Outcome, Scheme, Setup};

/// Messages of a run: 64 MiB.
const MESSAGES: u64 = (64 << 20) / MESSAGE as u64;

/// Runs of a figure.
const SEEDS: u64 = 5;

/// Gigabits a second, microseconds of a round trip, packets of the window.
const PATHS: [(u64, u64, u32); 7] = [
    (10, 10, 256),
    (10, 100, 256),
    (25, 10, 256),
    (25, 100, 256),
    (100, 10, 256),
    (100, 100, 256),
    (100, 100, 1024),
];

const LOSSES: [(&str, Loss); 6] = [
    ("none", Loss::Random(0.0)),
    ("0.01 %", Loss::Random(0.0001)),
    ("0.1 %", Loss::Random(0.001)),
    ("1 %", Loss::Random(0.01)),
    ("1 %, bursts", Loss::Bursts(0.01, 8.0)),
    ("5 %", Loss::Random(0.05)),
];

const SCHEMES: [(&str, Scheme); 3] =
    [("go-back-N", Scheme::GoBackN), ("selective", Scheme::Selective), ("fallback", Scheme::Fallback)];

const OPERATIONS: [(&str, bool); 2] = [("WRITE", false), ("READ", true)];

/// A figure: where, what, and the outcomes by seed.
struct Cell {
    path: (u64, u64, u32),
    read: bool,
    scheme: usize,
    loss: usize,
    outcomes: Vec<Outcome>,
}

impl Cell {
    fn mean(&self, of: impl Fn(&Outcome) -> f64) -> f64 {
        self.outcomes.iter().map(of).sum::<f64>() / self.outcomes.len() as f64
    }

    fn least(&self) -> f64 {
        self.outcomes.iter().map(|outcome| outcome.goodput).fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.outcomes.iter().map(|outcome| outcome.goodput).fold(0.0, f64::max)
    }

    fn measure(&mut self) {
        let (gigabits, microseconds, window) = self.path;
        let loss = LOSSES[self.loss].1;
        // Without losses every seed is the same run.
        let seeds = if loss == Loss::Random(0.0) { 1 } else { SEEDS };
        let setup = |seed| Setup {
            scheme: SCHEMES[self.scheme].1,
            loss,
            read: self.read,
            gigabits,
            round_trip: Duration::from_micros(microseconds),
            window,
            seed,
        };
        self.outcomes = (1..=seeds).map(|seed| link::run(setup(seed), MESSAGES)).collect();
    }
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (_, read) in OPERATIONS {
        for path in PATHS {
            for scheme in 0..SCHEMES.len() {
                for loss in 0..LOSSES.len() {
                    cells.push(Cell { path, read, scheme, loss, outcomes: Vec::new() });
                }
            }
        }
    }
    cells
}

/// Measures every figure, with all processors: which of them does what changes nothing.
fn measured() -> Vec<Cell> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(mut cell) = cells().into_iter().nth(index) else { return done };
            cell.measure();
            done.push((index, cell));
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<(usize, Cell)> = thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a run does not fail")).collect()
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, cell)| cell).collect()
}

/// Per cent of the link: the mean, and the least and the most if a digit shows them.
fn figure(cell: &Cell) -> String {
    let per_cent = |part: f64| format!("{:.1}", part * 100.0);
    let (mean, least, most) = (cell.mean(|outcome| outcome.goodput), cell.least(), cell.most());
    match per_cent(least) == per_cent(most) {
        true => per_cent(mean),
        false => format!("{} ({}-{})", per_cent(mean), per_cent(least), per_cent(most)),
    }
}

fn print_tables(cells: &[Cell]) {
    let mut rows = cells.chunks(LOSSES.len());
    for (operation, _) in OPERATIONS {
        println!("\n| {operation} | |{}", LOSSES.map(|(name, _)| format!(" {name} |")).concat());
        println!("|---|---|{}", "---|".repeat(LOSSES.len()));
        for (gigabits, microseconds, window) in PATHS {
            for (scheme, _) in SCHEMES {
                let row = rows.next().unwrap_or_default();
                let figures: String = row.iter().map(|cell| format!(" {} |", figure(cell))).collect();
                println!("| {gigabits} Gb/s, {microseconds} us, {window} | {scheme} |{figures}");
            }
        }
    }
}

fn print_json(cells: &[Cell]) {
    let lines: Vec<String> = cells
        .iter()
        .map(|cell| {
            let (gigabits, microseconds, window) = cell.path;
            format!(
                "  {{\"operation\": \"{}\", \"gigabits\": {gigabits}, \"round_trip_us\": {microseconds}, \
                 \"window\": {window}, \"scheme\": \"{}\", \"loss\": \"{}\", \"seeds\": {}, \
                 \"goodput\": {:.4}, \"least\": {:.4}, \"most\": {:.4}, \"sent\": {:.3}, \"timeouts\": {:.1}}}",
                OPERATIONS[usize::from(cell.read)].0,
                SCHEMES[cell.scheme].0,
                LOSSES[cell.loss].0,
                cell.outcomes.len(),
                cell.mean(|outcome| outcome.goodput),
                cell.least(),
                cell.most(),
                cell.mean(|outcome| outcome.sent),
                cell.mean(|outcome| outcome.timeouts as f64),
            )
        })
        .collect();
    println!(
        "{{\"format\": \"anyverbs-goodput/1\", \"bytes\": {}, \"cells\": [",
        MESSAGES * u64::from(MESSAGE)
    );
    println!("{}\n]}}", lines.join(",\n"));
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments[..] {
        [] => print_tables(&measured()),
        [json] if json == "--json" => print_json(&measured()),
        _ => {
            eprintln!("usage: goodput [--json]");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
