//! Packets that no honest peer sends, to queue pairs in any state: each ends in a counter, and in nothing
//! that the specification does not allow.
//!
//! ```text
//!   cargo test -p anyverbs-engine --test fuzz                       the corpus, and 1500 inputs
//!   ANYVERBS_FUZZ=1000000 cargo test --release ...                  so many inputs
//!   ANYVERBS_FUZZ=100000 ANYVERBS_FUZZ_GROW=1 cargo test ...        and the corpus is written anew
//!   ANYVERBS_FUZZ_INPUT=file cargo test ... replay                  one input
//! ```
//!
//! An input is a list of choices ([`input`]), which make a queue pair, its limits, and what happens to it
//! ([`program`], [`packet`]). What must hold is in [`world`] and [`model`].

mod input;
mod memory;
mod model;
mod packet;
mod program;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{env, fs};

use input::Rng;
use world::World;

/// Inputs of a run that asks for nothing else.
const INPUTS: u64 = 1500;
/// Inputs that are kept, at most.
const CORPUS_MAX: usize = 200;

fn corpus_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/qp")
}

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(folder) = fs::read_dir(corpus_folder()) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

/// Runs an input. One that fails is printed and kept, with the command that runs it again.
fn run(input: &[u8], what: &dyn std::fmt::Display) -> World {
    match catch_unwind(AssertUnwindSafe(|| program::run(input))) {
        Ok(world) => world,
        Err(cause) => {
            let path = env::temp_dir().join(format!("anyverbs-fuzz-{}.bin", std::process::id()));
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("{what} fails: {hex}");
            match fs::write(&path, input) {
                Ok(()) => eprintln!(
                    "again: ANYVERBS_FUZZ_INPUT={} cargo test -p anyverbs-engine --test fuzz replay",
                    path.display()
                ),
                Err(error) => eprintln!("{} could not be written: {error}", path.display()),
            }
            std::panic::resume_unwind(cause)
        }
    }
}

/// Marks a feature that is a counter.
const COUNTED: u64 = 0xffff_ffff_ffff_0000;

#[test]
fn replay() {
    if let Some(path) = env::var_os("ANYVERBS_FUZZ_INPUT") {
        let input = fs::read(&path).expect("ANYVERBS_FUZZ_INPUT is a file");
        let world = run(&input, &Path::new(&path).display());
        println!("{} packets: {:?}", world.packets, world.counters);
        return;
    }
    let corpus = corpus();
    assert!(corpus.len() <= CORPUS_MAX, "{} inputs are too many", corpus.len());
    let mut counted = BTreeSet::new();
    for (path, input) in &corpus {
        assert!(input.len() <= input::LEN_MAX, "{} is too long", path.display());
        let world = run(input, &path.display());
        counted.extend(world.counters.iter().filter(|(_, n)| *n > 0).map(|(name, _)| name));
    }
    // What packets can bring about below the engine is not the engine's.
    let others =
        ["rx_icrc_encapsulated", "rx_icrc_unproven_id", "rx_unknown_qp", "rx_wrong_source", "tx_too_large"];
    let names = anyverbs_engine::Counters::default();
    let missing: Vec<_> = names
        .iter()
        .map(|(name, _)| name)
        .filter(|name| !others.contains(name) && !counted.contains(name))
        .collect();
    assert!(missing.is_empty(), "the corpus never counts {missing:?}");
}

/// Inputs that are made up, half of them relatives of those that did something new.
#[test]
fn no_packet_breaks_a_queue_pair() {
    let inputs = number("ANYVERBS_FUZZ").unwrap_or(INPUTS);
    let seed = number("ANYVERBS_FUZZ_SEED").unwrap_or(1);
    let grows = number("ANYVERBS_FUZZ_GROW") == Some(1);
    let mut rng = Rng::new(seed);
    let mut pool: Vec<Vec<u8>> = corpus().into_iter().map(|(_, input)| input).collect();
    let mut seen = BTreeSet::new();
    if grows {
        pool.iter().for_each(|input| seen.extend(run(input, &"an input of the corpus").features));
    }
    let (mut packets, mut accepted) = (0, 0);
    for index in 0..inputs {
        let input = match pool.len() {
            n if n > 0 && rng.below(4) > 0 => {
                let (one, other) = (rng.below(n), rng.below(n));
                input::mutated(&mut rng, &pool[one], &pool[other])
            }
            _ => input::random(&mut rng),
        };
        let world = run(&input, &format_args!("input {index} of seed {seed}"));
        packets += world.packets;
        accepted += world.counters.rcvd_pkts;
        if !world.features.is_subset(&seen) {
            seen.extend(world.features);
            pool.push(input);
        }
    }
    println!("{inputs} inputs, {packets} packets, {accepted} of them accepted, {} features", seen.len());
    assert!(inputs < 1000 || accepted * 4 > packets, "few packets got far: {accepted} of {packets}");
    if grows {
        write_corpus(pool);
    }
}

/// Keeps the inputs that together do the most of what was done, without the bytes that they do not need for it.
fn write_corpus(pool: Vec<Vec<u8>>) {
    let pool: Vec<(Vec<u8>, BTreeSet<u64>)> = pool
        .into_iter()
        .map(|input| {
            let world = program::run(&input);
            // Each counter has to be there, whatever else is: as a feature that comes first.
            let counted = (0..).zip(world.counters.iter()).filter(|(_, (_, n))| *n > 0);
            let features = counted.map(|(index, _)| COUNTED | index).chain(world.features).collect();
            (input, features)
        })
        .collect();
    let mut left: BTreeSet<u64> = pool.iter().flat_map(|(_, features)| features).copied().collect();
    let total = left.len();
    let mut kept = BTreeMap::new();
    while kept.len() < CORPUS_MAX && !left.is_empty() {
        let gain = |(_, features): &&(Vec<u8>, BTreeSet<u64>)| {
            let new = features.intersection(&left);
            new.map(|feature| if feature & COUNTED == COUNTED { 1000 } else { 1 }).sum::<usize>()
        };
        let Some((input, features)) = pool.iter().max_by_key(gain) else { break };
        left.retain(|feature| !features.contains(feature));
        let wanted = features.iter().copied().filter(|feature| feature & COUNTED != COUNTED).collect();
        let input = shortened(input, &wanted);
        let name = input.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        kept.insert(format!("{name:016x}.bin"), input);
    }
    let folder = corpus_folder();
    fs::create_dir_all(&folder).unwrap();
    corpus().iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    kept.iter().for_each(|(name, input)| fs::write(folder.join(name), input).unwrap());
    println!("{} inputs kept, {} of {total} features", kept.len(), total - left.len());
}

/// An input without the runs of bytes that it does not need to do what is wanted.
fn shortened(input: &[u8], wanted: &BTreeSet<u64>) -> Vec<u8> {
    let mut input = input.to_vec();
    let mut run = (input.len() / 2).max(1);
    loop {
        let mut at = 0;
        while at < input.len() {
            let mut shorter = input.clone();
            shorter.drain(at..(at + run).min(input.len()));
            if program::run(&shorter).features.is_superset(wanted) {
                input = shorter;
            } else {
                at += run;
            }
        }
        if run == 1 {
            return input;
        }
        run /= 2;
    }
}
