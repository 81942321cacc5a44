//! Objects under random numbers: direct-mapped, so that a look-up is one probe.

use rand_core::Rng;

use crate::link::NumberPrefix;

/// How often a number is drawn before giving up. At least every fourth is free, unless connections that are
/// over hold many of the few numbers behind a long prefix.
const DRAWS: usize = 1024;

/// A table of objects under random 24-bit numbers.
///
/// The home of a number is its low bits, and a number is given out only if its home is free: with
/// twice as many homes as objects that takes two tries on average, and there is no probing and no
/// order that depends on history.
#[derive(Debug)]
pub(crate) struct Numbered<T> {
    homes: Vec<Option<(u32, T)>>,
    len: u32,
    limit: u32,
    prefix: Option<NumberPrefix>,
}

impl<T> Numbered<T> {
    /// A table of up to `limit` objects.
    pub(crate) fn new(limit: u32) -> Self {
        let homes = Self::homes(limit);
        Numbered { homes: (0..homes).map(|_| None).collect(), len: 0, limit, prefix: None }
    }

    /// The same table, whose numbers all begin with `prefix`.
    pub(crate) fn with_prefix(self, prefix: Option<NumberPrefix>) -> Self {
        Numbered { prefix, ..self }
    }

    fn homes(limit: u32) -> usize {
        (limit as usize * 2).next_power_of_two()
    }

    /// Bytes that such a table takes.
    pub(crate) fn bytes(limit: u32) -> usize {
        Self::homes(limit).saturating_mul(size_of::<Option<(u32, T)>>())
    }

    fn home(&self, number: u32) -> usize {
        number as usize & (self.homes.len() - 1)
    }

    /// Adds an object under a random number that `allowed` accepts; `None` if the table is full, or if no
    /// number was found that is free.
    pub(crate) fn insert(
        &mut self,
        rng: &mut impl Rng,
        allowed: impl Fn(u32) -> bool,
        make: impl FnOnce(u32) -> T,
    ) -> Option<u32> {
        if self.len == self.limit {
            return None;
        }
        for _ in 0..DRAWS {
            let number = rng.next_u32() & 0x00ff_ffff;
            let number = self.prefix.map_or(number, |prefix| prefix.apply(number, 24));
            let home = self.home(number);
            if allowed(number) && self.homes[home].is_none() {
                self.homes[home] = Some((number, make(number)));
                self.len += 1;
                return Some(number);
            }
        }
        None
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let home = self.home(number);
        self.homes[home].as_mut().filter(|(own, _)| *own == number).map(|(_, object)| object)
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let home = self.home(number);
        let object = self.homes[home].take_if(|(own, _)| *own == number)?;
        self.len -= 1;
        Some(object.1)
    }

    /// All objects, in no order.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.homes.iter_mut().flatten().map(|(_, object)| object)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.homes[self.home(number)].as_ref().filter(|(own, _)| *own == number).map(|(_, object)| object)
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::{NumberPrefix, Numbered};

    #[test]
    fn numbers_are_found_until_removed_and_never_above_the_limit() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut table = Numbered::new(100);
        let numbers: Vec<u32> =
            (0..100).map(|i| table.insert(&mut rng, |n| n > 1, |_| i).expect("there is room")).collect();
        assert!(table.insert(&mut rng, |_| true, |_| 100).is_none(), "the limit holds");
        for (i, number) in numbers.iter().enumerate() {
            assert_eq!(table.get_mut(*number), Some(&mut (i as u32)));
            let alias = number ^ 0x0080_0000;
            assert_eq!(table.get_mut(alias), None, "another number with the same home");
        }
        assert_eq!(table.remove(numbers[7]), Some(7));
        assert_eq!(table.remove(numbers[7]), None);
        assert!(table.insert(&mut rng, |_| true, |_| 100).is_some());
    }

    #[test]
    fn numbers_begin_with_the_prefix_and_give_out_in_the_end() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let prefix = NumberPrefix { bits: 16, value: 0xabcd };
        let mut table = Numbered::new(128).with_prefix(Some(prefix));
        for i in 0..128 {
            let number = table.insert(&mut rng, |_| true, |_| i).expect("there is room");
            assert!(prefix.is_of(number, 24), "{number:#x}");
        }
        let mut table = Numbered::new(128).with_prefix(Some(prefix));
        assert!(table.insert(&mut rng, |_| false, |_| 0).is_none(), "all are held");
    }
}
