//! SipHash-2-4, written out: a trace hash must be the same on every machine and with every
//! compiler, which the standard library promises of no hasher.

/// A SipHash-2-4 over a stream of bytes.
#[derive(Clone, Debug)]
pub(crate) struct SipHasher {
    v: [u64; 4],
    /// Bytes that do not fill a word yet, the first one lowest.
    tail: u64,
    len: u64,
}

impl SipHasher {
    pub(crate) fn new(key: [u64; 2]) -> Self {
        let v = [
            key[0] ^ 0x736f_6d65_7073_6575,
            key[1] ^ 0x646f_7261_6e64_6f6d,
            key[0] ^ 0x6c79_6765_6e65_7261,
            key[1] ^ 0x7465_6462_7974_6573,
        ];
        SipHasher { v, tail: 0, len: 0 }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let fill = (8 - self.len as usize % 8) % 8;
        let (head, rest) = bytes.split_at(fill.min(bytes.len()));
        self.write_bytewise(head);
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            self.absorb(u64::from_le_bytes(*word));
        }
        self.len += 8 * words.len() as u64;
        self.write_bytewise(tail);
    }

    pub(crate) fn write_u64(&mut self, value: u64) {
        self.write(&value.to_le_bytes());
    }

    pub(crate) fn finish(&self) -> u64 {
        let mut last = self.clone();
        last.absorb(last.tail | last.len << 56);
        last.v[2] ^= 0xff;
        for _ in 0..4 {
            last.round();
        }
        last.v[0] ^ last.v[1] ^ last.v[2] ^ last.v[3]
    }

    fn write_bytewise(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.tail |= u64::from(byte) << (self.len % 8 * 8);
            self.len += 1;
            if self.len.is_multiple_of(8) {
                let word = std::mem::take(&mut self.tail);
                self.absorb(word);
            }
        }
    }

    fn absorb(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13) ^ a;
        d = d.rotate_left(16) ^ c;
        a = a.rotate_left(32);
        c = c.wrapping_add(b);
        a = a.wrapping_add(d);
        b = b.rotate_left(17) ^ c;
        d = d.rotate_left(21) ^ a;
        c = c.rotate_left(32);
        self.v = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn hash(pieces: &[&[u8]]) -> u64 {
        let mut hasher = SipHasher::new(KEY);
        for piece in pieces {
            hasher.write(piece);
        }
        hasher.finish()
    }

    /// The test vectors of the SipHash paper (appendix A) and of its reference implementation.
    #[test]
    fn agrees_with_the_reference() {
        let input: Vec<u8> = (0..64).collect();
        assert_eq!(hash(&[&input[..15]]), 0xa129_ca61_49be_45e5);
        assert_eq!(hash(&[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(hash(&[&input[..1]]), 0x74f8_39c5_93dc_67fd);
        assert_eq!(hash(&[&input[..8]]), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn depends_on_the_bytes_and_not_on_the_pieces_they_come_in() {
        let input: Vec<u8> = (0..64).collect();
        let whole = hash(&[&input]);
        for cut in 0..64 {
            for next in cut..64 {
                assert_eq!(hash(&[&input[..cut], &input[cut..next], &input[next..]]), whole, "{cut} {next}");
            }
        }
        let mut other = input.clone();
        other[41] ^= 0x80;
        assert_ne!(hash(&[&other]), whole);
    }
}
