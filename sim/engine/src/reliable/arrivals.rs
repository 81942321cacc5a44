//! Which responses have arrived ahead of others that are missing.

/// A set of positions in a window that moves forward: one bit each, in a ring.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    bits: Vec<u64>,
    len: u32,
}

impl Arrivals {
    /// Room for positions less than `window` apart.
    pub(crate) fn new(window: u32) -> Self {
        // One word more than the window, so that its two ends never share a word.
        let words = (window as usize).div_ceil(64) + 1;
        Arrivals { bits: vec![0; words.next_power_of_two()], len: 0 }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    fn place(&self, position: u64) -> (usize, u64) {
        let word = (position / 64) as usize & (self.bits.len() - 1);
        (word, 1 << (position % 64))
    }

    pub(crate) fn insert(&mut self, position: u64) {
        let (word, bit) = self.place(position);
        self.len += u32::from(self.bits[word] & bit == 0);
        self.bits[word] |= bit;
    }

    pub(crate) fn contains(&self, position: u64) -> bool {
        let (word, bit) = self.place(position);
        self.bits[word] & bit != 0
    }

    /// Takes the positions out that are there from `from` on without a gap, at most up to `end`;
    /// returns the first that is not.
    pub(crate) fn take_run(&mut self, from: u64, end: u64) -> u64 {
        let mut position = from;
        while position < end && self.contains(position) {
            let (word, bit) = self.place(position);
            self.bits[word] &= !bit;
            self.len -= 1;
            position += 1;
        }
        position
    }
}

#[cfg(test)]
mod tests {
    use super::Arrivals;

    #[test]
    fn a_window_may_be_anywhere_and_as_wide_as_was_said() {
        for start in [0u64, 1, 63, 64, 1000, (1 << 24) - 3] {
            let mut arrivals = Arrivals::new(100);
            for position in (start..start + 100).filter(|position| position % 3 != 0) {
                arrivals.insert(position);
            }
            for position in start..start + 100 {
                assert_eq!(arrivals.contains(position), position % 3 != 0, "{start} {position}");
            }
        }
    }

    #[test]
    fn a_run_ends_at_the_first_gap_and_is_gone_afterwards() {
        let mut arrivals = Arrivals::new(256);
        (10..20).chain(21..300).for_each(|position| {
            if position < 266 {
                arrivals.insert(position);
            }
        });
        assert_eq!(arrivals.take_run(10, 200), 20);
        assert_eq!(arrivals.take_run(10, 200), 10, "taken");
        assert_eq!(arrivals.take_run(21, 30), 30, "not further than asked");
        assert!(arrivals.contains(30));
    }
}
