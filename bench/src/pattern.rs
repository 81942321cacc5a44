//! The content of messages: every byte follows from operation, direction, size, sequence and offset, so that
//! a message that was lost, torn, repeated, shifted or mixed up with another one is seen.

use std::fmt;

/// Messages up to this size are written and checked whole, always: it costs a few nanoseconds.
const SMALL: usize = 64;

/// An odd number with well-mixed bits: neighbouring words differ in all of their bytes.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// The content of the messages of one size, operation and direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    key: u64,
    size: usize,
}

/// A byte that is not what it has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mismatch {
    /// The message.
    pub sequence: u64,
    /// Where in the message, in bytes.
    pub offset: usize,
    /// What should be there.
    pub expected: u8,
    /// What is there.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { sequence, offset, expected, found } = self;
        write!(f, "message {sequence} has byte {found:#04x} at offset {offset}, not {expected:#04x}")
    }
}

impl Pattern {
    /// The pattern of messages of `size` bytes; `kind` tells operations and directions apart.
    pub(crate) fn new(kind: u8, size: usize) -> Self {
        Pattern { key: mix(u64::from(kind) << 56 ^ size as u64), size }
    }

    /// Writes the whole of message `sequence`.
    ///
    /// # Panics
    /// If `out` is not as long as the pattern's size.
    pub(crate) fn fill(&self, sequence: u64, out: &mut [u8]) {
        self.fill_with(sequence, sequence, out);
    }

    /// Writes the body of message `body` between the ends of message `sequence`.
    ///
    /// # Panics
    /// If `out` is not as long as the pattern's size.
    pub(crate) fn fill_with(&self, body: u64, sequence: u64, out: &mut [u8]) {
        assert_eq!(out.len(), self.size);
        let (words, rest) = out.as_chunks_mut::<8>();
        let mut word = self.base(body);
        for chunk in words {
            *chunk = word.to_le_bytes();
            word = word.wrapping_add(STRIDE);
        }
        let len = rest.len();
        rest.copy_from_slice(&word.to_le_bytes()[..len]);
        self.stamp(sequence, out);
    }

    /// Writes what differs from message to message even if the rest of the buffer is an older message: the
    /// first and the last eight bytes. Small messages are written whole.
    pub(crate) fn refresh(&self, sequence: u64, out: &mut [u8]) {
        if self.is_small() {
            self.fill(sequence, out);
        } else {
            self.stamp(sequence, out);
        }
    }

    /// Whether messages are so small that they are always written and checked whole.
    pub(crate) fn is_small(&self) -> bool {
        self.size <= SMALL
    }

    /// Makes the ends of a buffer such that no message has them (but for one in 256 of the one-byte ones); all
    /// of a small one.
    pub(crate) fn spoil(&self, out: &mut [u8]) {
        let end = if self.is_small() { out.len() } else { 8 };
        let len = out.len();
        out[..end.min(len)].fill(0xEE);
        out[len - end.min(len)..].fill(0xEE);
    }

    /// Writes the ends of message `sequence`: its first and its last eight bytes.
    ///
    /// # Panics
    /// If `out` is not as long as the pattern's size.
    pub(crate) fn stamp(&self, sequence: u64, out: &mut [u8]) {
        let stamp = self.mark(sequence).to_le_bytes();
        let len = self.size.min(8);
        out[..len].copy_from_slice(&stamp[..len]);
        out[self.size - len..].copy_from_slice(&stamp[..len]);
    }

    /// How many bytes at the end of a message tell that it is there: eight, or all of a shorter one.
    pub(crate) fn tail_len(&self) -> usize {
        self.size.min(8)
    }

    /// The last bytes of message `sequence`, of which the first [`tail_len`](Self::tail_len) count. They
    /// differ from those of the messages just before.
    pub(crate) fn tail(&self, sequence: u64) -> [u8; 8] {
        self.mark(sequence).to_le_bytes()
    }

    /// Checks every byte of message `sequence`.
    pub(crate) fn check(&self, sequence: u64, found: &[u8]) -> Result<(), Mismatch> {
        self.check_with(sequence, sequence, found)
    }

    /// Checks every byte of a message that [`fill_with`](Self::fill_with) wrote, even if its ends were
    /// [stamped](Self::stamp) anew.
    pub(crate) fn check_with(&self, body: u64, sequence: u64, found: &[u8]) -> Result<(), Mismatch> {
        if self.is_small() {
            let mut expected = [0; SMALL];
            let expected = &mut expected[..self.size];
            self.fill_with(body, sequence, expected);
            return compare(sequence, 0, expected, found);
        }
        self.check_stamps(sequence, found)?;
        // The words between the two ends; the last one may be cut short.
        let middle = &found[..self.size - 8];
        let (words, rest) = middle.as_chunks::<8>();
        let mut word = self.base(body).wrapping_add(STRIDE);
        let mut difference = 0;
        for chunk in &words[1..] {
            difference |= u64::from_le_bytes(*chunk) ^ word;
            word = word.wrapping_add(STRIDE);
        }
        compare(sequence, middle.len() - rest.len(), &word.to_le_bytes()[..rest.len()], rest)?;
        if difference == 0 { Ok(()) } else { Err(self.locate(body, sequence, words)) }
    }

    /// Checks the ends of message `sequence`; all of a small one.
    pub(crate) fn check_ends(&self, sequence: u64, found: &[u8]) -> Result<(), Mismatch> {
        if self.is_small() { self.check(sequence, found) } else { self.check_stamps(sequence, found) }
    }

    fn check_stamps(&self, sequence: u64, found: &[u8]) -> Result<(), Mismatch> {
        let stamp = self.mark(sequence).to_le_bytes();
        if found.len() != self.size {
            return Err(Mismatch { sequence, offset: found.len().min(self.size), expected: 0, found: 0 });
        }
        compare(sequence, 0, &stamp, &found[..8])?;
        compare(sequence, self.size - 8, &stamp, &found[self.size - 8..])
    }

    #[cold]
    fn locate(&self, body: u64, sequence: u64, words: &[[u8; 8]]) -> Mismatch {
        let mut word = self.base(body);
        for (i, chunk) in words.iter().enumerate() {
            if i > 0
                && let Err(mismatch) = compare(sequence, i * 8, &word.to_le_bytes(), chunk)
            {
                return mismatch;
            }
            word = word.wrapping_add(STRIDE);
        }
        // The caller saw a difference; if it is gone, memory changed under a shared reference.
        Mismatch { sequence, offset: 0, expected: 0, found: 0 }
    }

    fn base(&self, sequence: u64) -> u64 {
        mix(self.key ^ sequence.wrapping_mul(STRIDE))
    }

    /// The stamp of a message: its lowest byte counts, so that even a message of one byte differs from the
    /// 255 before it.
    fn mark(&self, sequence: u64) -> u64 {
        (self.base(sequence) << 8) | (sequence & 0xff)
    }
}

fn compare(sequence: u64, at: usize, expected: &[u8], found: &[u8]) -> Result<(), Mismatch> {
    if expected == found {
        return Ok(());
    }
    let i = expected.iter().zip(found).position(|(a, b)| a != b).unwrap_or(expected.len().min(found.len()));
    let byte = |bytes: &[u8]| bytes.get(i).copied().unwrap_or(0);
    Err(Mismatch { sequence, offset: at + i, expected: byte(expected), found: byte(found) })
}

/// A bijection that mixes well (the finaliser of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 63, 64, 65, 71, 72, 1000, 4096];

    #[test]
    fn what_was_filled_is_accepted() {
        for size in SIZES {
            let pattern = Pattern::new(1, size);
            let mut message = vec![0; size];
            pattern.fill(77, &mut message);
            assert_eq!(pattern.check(77, &message), Ok(()));
            assert_eq!(pattern.check_ends(77, &message), Ok(()));
            let tail = pattern.tail_len();
            assert_eq!(&message[size - tail..], &pattern.tail(77)[..tail]);
        }
    }

    #[test]
    fn every_wrong_byte_is_found_where_it_is() {
        for size in SIZES {
            let pattern = Pattern::new(1, size);
            let mut message = vec![0; size];
            pattern.fill(5, &mut message);
            for offset in 0..size {
                message[offset] ^= 0x10;
                let mismatch = pattern.check(5, &message).expect_err("a byte is wrong");
                assert_eq!((mismatch.offset, mismatch.found), (offset, message[offset]), "size {size}");
                message[offset] ^= 0x10;
            }
        }
    }

    #[test]
    fn another_sequence_size_kind_or_a_shift_is_refused() {
        let pattern = Pattern::new(1, 4096);
        let mut message = vec![0; 4096];
        pattern.fill(5, &mut message);
        assert!(pattern.check(6, &message).is_err());
        assert!(pattern.check_ends(6, &message).is_err());
        assert!(pattern.check(5, &message[..4095]).is_err());
        assert!(Pattern::new(2, 4096).check(5, &message).is_err());
        message[8..4088].rotate_left(8);
        assert!(pattern.check(5, &message).is_err());
    }

    #[test]
    fn a_refreshed_buffer_passes_the_short_check_only() {
        let pattern = Pattern::new(1, 4096);
        let mut message = vec![0; 4096];
        pattern.fill(5, &mut message);
        pattern.refresh(6, &mut message);
        assert_eq!(pattern.check_ends(6, &message), Ok(()));
        assert!(pattern.check(6, &message).is_err());
        let small = Pattern::new(1, 8);
        small.refresh(6, &mut message[..8]);
        assert_eq!(small.check(6, &message[..8]), Ok(()));
    }

    #[test]
    fn a_body_between_other_ends() {
        for size in SIZES {
            let pattern = Pattern::new(1, size);
            let mut message = vec![0; size];
            pattern.fill_with(3, 10, &mut message);
            assert_eq!(pattern.check_with(3, 10, &message), Ok(()));
            pattern.stamp(11, &mut message);
            assert_eq!(pattern.check_with(3, 11, &message), Ok(()), "size {size}");
            assert!(pattern.check_with(3, 10, &message).is_err());
            if size > 16 {
                assert!(pattern.check_with(4, 11, &message).is_err());
            }
            pattern.spoil(&mut message);
            assert!(pattern.check_ends(11, &message).is_err());
        }
    }

    #[test]
    fn one_byte_messages_differ_from_their_neighbours() {
        let pattern = Pattern::new(3, 1);
        for sequence in 0..1000 {
            assert_ne!(pattern.tail(sequence)[0], pattern.tail(sequence + 1)[0]);
        }
    }
}
