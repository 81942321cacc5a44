//! The `anyverbs` command: measure RDMA verbs on any machine.

mod bench;
mod cli;
mod control;
mod measure;
mod pattern;
mod plan;
mod raw;
mod report;
mod session;
mod signals;
mod sys;
mod units;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    // A mistake in the options ends here, with exit code 2.
    let cli = Cli::parse();
    if let Err(error) = signals::install() {
        eprintln!("anyverbs: cannot listen to signals: {error}");
        return ExitCode::FAILURE;
    }
    match cli.command {
        Command::Bench(args) => bench::run(&args),
        Command::Devices(args) => {
            let candidates = anyverbs::candidates(&anyverbs::DeviceOptions::new());
            let printed = if args.json {
                report::print_devices(&candidates)
            } else {
                report::print_candidates(&candidates, report::Style::of_stdout())
            };
            printed.map_or_else(output_failed, |()| ExitCode::SUCCESS)
        }
        Command::ServeParent => bench::serve_parent(),
    }
}

/// Standard output could not be written to. That a reader has seen enough is no reason to complain.
fn output_failed(error: io::Error) -> ExitCode {
    if error.kind() != io::ErrorKind::BrokenPipe {
        eprintln!("anyverbs: cannot write to standard output: {error}");
    }
    ExitCode::FAILURE
}
