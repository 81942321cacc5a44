//! A bounded map whose entries end by themselves.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Time;

/// At most `limit` entries, each with the time at which it ends.
#[derive(Debug)]
pub(super) struct Expiring<K, V> {
    entries: BTreeMap<K, (Time, V)>,
    deadlines: BTreeSet<(Time, K)>,
    limit: usize,
}

impl<K: Ord + Copy, V> Expiring<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Expiring { entries: BTreeMap::new(), deadlines: BTreeSet::new(), limit }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Adds or replaces an entry. If there is no room, the one that ends first goes.
    pub(super) fn insert(&mut self, key: K, value: V, end: Time) {
        self.remove(&key);
        if self.limit == 0 {
            return;
        }
        if self.is_full()
            && let Some((_, oldest)) = self.deadlines.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, (end, value));
        self.deadlines.insert((end, key));
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (end, value) = self.entries.remove(key)?;
        self.deadlines.remove(&(end, *key));
        Some(value)
    }

    /// Lets an entry end no earlier than `end`.
    pub(super) fn postpone(&mut self, key: &K, end: Time) {
        if let Some((before, _)) = self.entries.get_mut(key)
            && *before < end
        {
            self.deadlines.remove(&(*before, *key));
            *before = end;
            self.deadlines.insert((end, *key));
        }
    }

    /// Removes an entry for which `wanted` holds.
    pub(super) fn take(&mut self, mut wanted: impl FnMut(&V) -> bool) -> Option<V> {
        let key = self.entries.iter().find(|(_, (_, value))| wanted(value)).map(|(key, _)| *key)?;
        self.remove(&key)
    }

    /// Removes an entry that has ended by `now`.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<V> {
        let (_, key) = *self.deadlines.first().filter(|(end, _)| *end <= now)?;
        self.remove(&key)
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> Time {
        Time::from_nanos(ns)
    }

    #[test]
    fn entries_end_in_order_and_never_twice() {
        let mut map = Expiring::new(3);
        map.insert(1, 'a', at(30));
        map.insert(2, 'b', at(10));
        map.insert(3, 'c', at(20));
        map.postpone(&2, at(25));
        map.postpone(&2, at(15));
        assert_eq!(map.next_deadline(), Some(at(20)));
        assert_eq!(map.pop_due(at(19)), None);
        assert_eq!(map.pop_due(at(99)), Some('c'));
        assert_eq!(map.pop_due(at(99)), Some('b'));
        assert_eq!(map.remove(&1), Some('a'));
        assert_eq!((map.pop_due(at(99)), map.next_deadline(), map.len()), (None, None, 0));
    }

    #[test]
    fn a_full_map_forgets_what_ends_first() {
        let mut map = Expiring::new(2);
        map.insert(1, 'a', at(10));
        map.insert(2, 'b', at(20));
        map.insert(1, 'A', at(30));
        assert_eq!(map.len(), 2);
        map.insert(3, 'c', at(5));
        assert!(!map.contains(&2) && map.get(&1) == Some(&'A') && map.is_full());
        let mut none = Expiring::new(0);
        none.insert(1, 'a', at(10));
        assert_eq!((none.len(), none.next_deadline()), (0, None));
    }
}
