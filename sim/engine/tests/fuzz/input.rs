//! Inputs: bytes that are read as choices, and how they are varied.

/// A small generator (xorshift64*), so that a seed is a run.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng((seed ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// The longest input: longer ones are cut.
pub(crate) const LEN_MAX: usize = 1024;

/// Reads choices off the front of an input. What is not there is zero, so every prefix of an input is an
/// input, too.
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Choices(&bytes[..bytes.len().min(LEN_MAX)])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }
}

/// An input out of nothing.
pub(crate) fn random(rng: &mut Rng) -> Vec<u8> {
    let len = 16 + rng.below(240);
    // Zeros are the plain choices: too few of them, and no packet is right in all of its fields.
    let zeros = rng.below(4);
    (0..len).map(|_| if rng.below(4) < zeros { 0 } else { rng.byte() }).collect()
}

/// A relative of an input that is worth keeping, and perhaps of a second one.
pub(crate) fn mutated(rng: &mut Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        match rng.below(7) {
            0 if at < bytes.len() => bytes[at] = rng.byte(),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.insert(at, rng.byte()),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => {
                let (from, to) = ends(rng, other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            5 => {
                let (from, to) = ends(rng, bytes.len());
                bytes.drain(from..to);
            }
            _ => bytes.extend((0..rng.below(16)).map(|_| rng.byte())),
        }
    }
    bytes.truncate(LEN_MAX);
    bytes
}

/// Both ends of a short range of so many bytes.
fn ends(rng: &mut Rng, len: usize) -> (usize, usize) {
    let from = rng.below(len + 1);
    (from, from + rng.below((len - from).min(64) + 1))
}
