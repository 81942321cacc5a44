//! Tables for people.

use std::io::{self, IsTerminal, Write};

use anyverbs::Candidate;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};

use super::Header;
use crate::plan::{Action, Length, Measure};
use crate::session::{Outcome, Ratio, RowResult, ratio};
use crate::units;

/// Whether text may carry colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    coloured: bool,
}

impl Style {
    /// Colours on a terminal, unless the environment says no (<https://no-color.org>).
    pub(crate) fn of_stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style { coloured: io::stdout().is_terminal() && !set("NO_COLOR") && !dumb }
    }

    fn head(self, text: &str) -> Cell {
        let cell = Cell::new(text);
        if self.coloured { cell.add_attribute(Attribute::Bold) } else { cell }
    }

    fn dim(self, cell: Cell) -> Cell {
        if self.coloured { cell.fg(Color::DarkGrey) } else { cell }
    }

    fn good(self, cell: Cell, good: bool) -> Cell {
        if self.coloured { cell.fg(if good { Color::Green } else { Color::Red }) } else { cell }
    }

    fn title(self, text: &str) -> String {
        if self.coloured { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn table(self, heads: &[&str], left: usize) -> Table {
        let mut table = Table::new();
        table.load_preset("     ──            ").set_content_arrangement(ContentArrangement::Disabled);
        if !self.coloured {
            table.force_no_tty();
        }
        table.set_header(heads.iter().map(|head| self.head(head)));
        for (i, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if i >= left {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

/// Says what is measured, on what.
///
/// # Errors
/// Standard output is closed or full.
pub(crate) fn print_header(header: &Header, style: Style) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let Header { machine, here, there, server, fault, cpus, wishes } = header;
    writeln!(out, "{}", style.title(&format!("anyverbs bench {}", env!("CARGO_PKG_VERSION"))))?;
    writeln!(out, "machine  {}, {} cores, {}", machine.cpu, machine.cores, machine.kernel)?;
    writeln!(
        out,
        "device   {}, link {} ({}), path MTU {} B",
        here.name, here.link, here.detail, here.path_mtu
    )?;
    let where_to = match server {
        None => match cpus {
            Some((a, b)) => format!("two processes of this machine, on processors {a} and {b}"),
            None => "two processes of this machine".to_owned(),
        },
        Some(host) if there.link == here.link && there.detail == here.detail => format!("host {host}"),
        Some(host) => format!("host {host}, link {} ({})", there.link, there.detail),
    };
    writeln!(out, "between  {} and {}: {where_to}", here.address, there.address)?;
    if let Some(fault) = fault {
        writeln!(out, "faults   {fault}, on both sides, in verbs rows only")?;
    }
    let length = match wishes.length {
        Length::Time(time) => units::duration(time),
        Length::Operations(n) => format!("{} operations", units::count(n)),
    };
    let turns = match wishes.rounds() {
        1 => "at once".to_owned(),
        n => format!("in {n} turns with the others of its size"),
    };
    writeln!(out, "each row {length}, {turns}\n")
}

/// Prints what was measured.
///
/// # Errors
/// Standard output is closed or full.
pub(crate) fn print_tables(outcome: &Outcome, style: Style, faulty: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (measure, print) in [
        (Measure::Latency, latency as fn(&[RowResult], &[&RowResult], Style) -> Table),
        (Measure::Bandwidth, bandwidth),
    ] {
        let rows: Vec<&RowResult> = outcome.rows.iter().filter(|r| r.spec.measure == measure).collect();
        if rows.is_empty() {
            continue;
        }
        let title = match measure {
            Measure::Latency => {
                "Latency in us (send, write, raw-echo: half a round trip; others: the whole operation)"
            }
            Measure::Bandwidth => "Bandwidth (payload; 1 GB is 1e9 bytes)",
        };
        writeln!(out, "{}\n{}\n", style.title(title), print(&outcome.rows, &rows, style).trim_fmt())?;
    }
    let (whole, ends) = outcome.rows.iter().fold((0, 0), |(w, e), r| (w + r.total.whole, e + r.total.ends));
    if whole > 0 {
        writeln!(
            out,
            "Content: {} messages checked whole, {} more at both ends, none wrong.",
            units::count(whole),
            units::count(ends)
        )?;
    }
    if faulty {
        let interesting = outcome.counters.iter().filter(|(_, n)| *n > 0);
        let counters: Vec<String> =
            interesting.map(|(name, n)| format!("{name} {}", units::count(*n))).collect();
        writeln!(out, "NIC of this side: {}.", counters.join(", "))?;
    }
    for note in &outcome.notes {
        writeln!(out, "Note: {note}")?;
    }
    Ok(())
}

fn latency(all: &[RowResult], rows: &[&RowResult], style: Style) -> Table {
    let mut table =
        style.table(&["operation", "size", "min", "p50", "p99", "p99.9", "max", "samples", "p50/raw"], 1);
    let mut size = None;
    for row in rows {
        separate(&mut table, &mut size, row, 9);
        let ns = |value: u64| units::micros(value as f64 * row.scale());
        let cells = [
            row.spec.action.name().to_owned(),
            units::size(row.spec.size),
            ns(row.times.min()),
            ns(row.times.percentile(50.0)),
            ns(row.times.percentile(99.0)),
            ns(row.times.percentile(99.9)),
            ns(row.times.max()),
            units::count(row.times.count()),
            ratio(row, all).map_or(String::new(), |r| format!("{:.2}{}", r.value, doubt(&r))),
        ];
        add(&mut table, cells, row.spec.action, style);
    }
    table
}

fn bandwidth(all: &[RowResult], rows: &[&RowResult], style: Style) -> Table {
    let mut table =
        style.table(&["operation", "size", "depth", "GB/s", "messages/s", "messages", "lost", "of raw"], 1);
    let mut size = None;
    for row in rows {
        separate(&mut table, &mut size, row, 8);
        let raw = row.spec.action.is_raw();
        let sent = row.total.bytes + row.total.lost;
        let lost = if raw && sent > 0 {
            format!("{:.0} %", 100.0 * row.total.lost as f64 / sent as f64)
        } else {
            String::new()
        };
        let cells = [
            row.spec.action.name().to_owned(),
            units::size(row.spec.size),
            if raw { String::new() } else { row.spec.depth.to_string() },
            units::significant(row.bytes_per_second() / 1e9),
            units::rate(row.operations_per_second()),
            units::count(row.total.operations),
            lost,
            ratio(row, all).map_or(String::new(), |r| format!("{:.0} %{}", 100.0 * r.value, doubt(&r))),
        ];
        add(&mut table, cells, row.spec.action, style);
    }
    table
}

fn doubt(ratio: &Ratio) -> &'static str {
    if ratio.doubtful { " ?" } else { "" }
}

/// An empty line between sizes.
fn separate(table: &mut Table, size: &mut Option<usize>, row: &RowResult, columns: usize) {
    if size.is_some_and(|size| size != row.spec.size) {
        table.add_row(vec![""; columns]);
    }
    *size = Some(row.spec.size);
}

fn add<const N: usize>(table: &mut Table, cells: [String; N], action: Action, style: Style) {
    let cells = cells.into_iter().map(Cell::new);
    if action.is_raw() {
        table.add_row(cells.map(|cell| style.dim(cell)));
    } else {
        table.add_row(cells);
    }
}

/// Prints every candidate for a device. Those of one name that are in the same state share a line, and
/// neighbours that the same thing mends share its words.
///
/// # Errors
/// Standard output is closed or full.
pub(crate) fn print_candidates(candidates: &[Candidate], style: Style) -> io::Result<()> {
    let mut table = style.table(&["device", "usable", "what it is, or why not"], 3);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let alike =
        |a: &Candidate, b: &Candidate| a.name == b.name && a.usable == b.usable && a.remedy == b.remedy;
    let mut lines: Vec<(&Candidate, usize)> = Vec::new();
    for candidate in candidates {
        match lines.iter_mut().find(|(first, _)| alike(first, candidate)) {
            Some((_, more)) => *more += 1,
            None => lines.push((candidate, 0)),
        }
    }
    for (i, &(candidate, more)) in lines.iter().enumerate() {
        let more = if more == 0 { String::new() } else { format!(" (and {more} more; --json lists them)") };
        let usable = Cell::new(if candidate.usable { "yes" } else { "no" });
        table.add_row([
            Cell::new(&candidate.name),
            style.good(usable, candidate.usable),
            Cell::new(format!("{}{more}", candidate.detail)),
        ]);
        let next = lines.get(i + 1).and_then(|(next, _)| next.remedy.as_ref());
        if let Some(remedy) = &candidate.remedy
            && next != Some(remedy)
        {
            table.add_row([Cell::new(""), Cell::new(""), style.dim(Cell::new(format!("-> {remedy}")))]);
        }
    }
    writeln!(io::stdout().lock(), "{}", table.trim_fmt())
}
