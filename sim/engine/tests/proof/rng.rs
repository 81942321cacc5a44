//! Random streams, one for each entity, so that what one of them draws changes nothing for another.

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

/// What draws.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    /// The plan of a run.
    Plan,
    /// A packet of a link.
    Link(u32),
    /// The bursts of a link.
    Burst(u32),
    /// The work requests of an end.
    Workload(u32),
    /// The timing of the program of an end.
    Program(u32),
    /// The host's moods towards an end: busy, or out of memory.
    Mood(u32),
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of an entity; `nth` tells its packets or occasions apart.
    pub(crate) fn stream(seed: u64, stream: Stream, nth: u64) -> Rng {
        let (kind, id) = match stream {
            Stream::Plan => (1, 0),
            Stream::Link(id) => (2, id),
            Stream::Burst(id) => (3, id),
            Stream::Workload(id) => (4, id),
            Stream::Program(id) => (5, id),
            Stream::Mood(id) => (6, id),
        };
        Rng(mix(mix(mix(seed) ^ (kind << 32) ^ u64::from(id)) ^ nth))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `0..n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    /// Whether something happens that does so `per_mille` times in a thousand.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
