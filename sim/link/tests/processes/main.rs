//! Several processes on one address carry traffic of reliable connections, while one after the other is killed
//! and started again: on loopback, and in two network namespaces with a cable between them.
//!
//! This program is its own harness, since it starts itself: `processes [PART OF A NAME]` runs the tests,
//! `processes --node ADDRESS` is one process of a test, and `processes --hold` holds a namespace.

mod namespaces;
mod node;
mod scenario;

use std::env;
use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Why a test cannot run here.
type Skip = String;

type Test = fn() -> Result<(), Skip>;

const TESTS: [(&str, Test); 4] = [
    ("three_processes_of_one_address_survive_each_other", on_loopback),
    ("three_processes_behind_a_cable_survive_each_other", namespaces::behind_a_cable),
    ("a_process_of_another_user_is_refused_by_both_sides", scenario::two_users),
    ("a_process_without_descriptors_takes_members_later", scenario::no_descriptors),
];

fn on_loopback() -> Result<(), Skip> {
    let n = std::process::id();
    let address = |last| format!("127.{}.{}.{last}", 64 + (n >> 8) % 64, n % 256);
    let own = env::current_exe().expect("this program has a file");
    scenario::one_after_the_other(|here| {
        let mut command = Command::new(&own);
        command.args(["--node", &address(if here { 1 } else { 2 })]);
        command
    });
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--node", address] => return node::run(address.parse().expect("an address")),
        ["--hold"] => {
            // Until whoever started this is gone.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            return ExitCode::SUCCESS;
        }
        ["--cable"] => {
            namespaces::with_privilege();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    // Numbers belong to options of the usual harness.
    let is_name = |argument: &&String| !argument.starts_with('-') && argument.parse::<u32>().is_err();
    let filter = arguments.iter().find(is_name);
    let chosen = TESTS.iter().filter(|(name, _)| filter.is_none_or(|part| name.contains(part)));
    println!("\nrunning {} tests", chosen.clone().count());
    let start = Instant::now();
    let mut passed = 0;
    for (name, test) in chosen {
        // A test that fails panics, which ends this program with its message and a status that says so.
        if let Err(reason) = test() {
            let _ = writeln!(io::stderr(), "skipped: {reason}");
        }
        println!("test {name} ... ok");
        passed += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {seconds:.2}s",
        TESTS.len() - passed
    );
    ExitCode::SUCCESS
}
