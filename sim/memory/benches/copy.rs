//! Measures the fused copy and CRC against a copy and then a CRC, side by side:
//! `cargo bench -p anyverbs-memory --bench copy [-- ROUNDS]`.
//!
//! Compare only figures of one run: rounds are interleaved, and each figure is the median of all rounds.

use std::hint::black_box;
use std::time::Instant;

use anyverbs_memory::copy::{copy_out, copy_out_crc};

/// The bytes that sources are spread over, so that they come from that level of the cache.
const LEVELS: [(&str, usize); 4] =
    [("L1", 16 << 10), ("L2", 384 << 10), ("L3", 8 << 20), ("memory", 128 << 20)];
const SIZES: [usize; 8] = [64, 128, 256, 300, 512, 1024, 2048, 4096];
/// Bytes before a payload in a datagram: a BTH.
const HEADER: usize = 12;

fn fused(dst: &mut [u8], src: *const u8) -> u32 {
    // SAFETY: `measure` gives valid and separate buffers.
    unsafe { copy_out_crc(dst, src, 1) }
}

fn apart(dst: &mut [u8], src: *const u8) -> u32 {
    // SAFETY: as above.
    unsafe { copy_out(dst, src) };
    let mut hasher = crc32fast::Hasher::new_with_initial(1);
    hasher.update(dst);
    hasher.finalize()
}

/// Nanoseconds of each of many calls.
fn measure(
    call: fn(&mut [u8], *const u8) -> u32,
    source: &[u8],
    at: &mut usize,
    target: &mut [u8],
    size: usize,
) -> f64 {
    let step = size.next_multiple_of(64) + 64;
    let calls = (4 << 20) / (size + 200);
    let mut out = HEADER;
    let start = Instant::now();
    for _ in 0..calls {
        black_box(call(&mut target[out..out + size], source[*at..].as_ptr()));
        *at += step;
        if *at + size > source.len() {
            *at = 0;
        }
        // A batch of datagrams, one behind the other.
        out += size + HEADER + 4;
        if out + size > target.len() {
            out = HEADER;
        }
    }
    start.elapsed().as_secs_f64() * 1e9 / calls as f64
}

fn main() {
    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(15);
    let mut target = vec![1; 16 << 10];
    for (level, bytes) in LEVELS {
        let source = vec![7; bytes];
        // It goes on over all rounds, so that a small level holds it and a large one does not.
        let mut at = 0;
        for size in SIZES {
            let mut figures = [Vec::new(), Vec::new()];
            for _ in 0..rounds {
                for (figures, call) in figures.iter_mut().zip([fused, apart]) {
                    figures.push(measure(call, &source, &mut at, &mut target, size));
                }
            }
            let [fused, apart] = figures.map(|mut figures| {
                figures.sort_by(f64::total_cmp);
                figures[figures.len() / 2]
            });
            println!(
                "{size:>5} bytes from {level:<6}  fused {fused:6.1} ns  apart {apart:6.1} ns  {:.2}",
                apart / fused
            );
        }
    }
}
