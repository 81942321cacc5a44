//! Buffers for the payloads of packets that came early.

/// A fixed number of buffers, shared by all queue pairs. When all are taken, or all that one peer may have,
/// early packets are dropped and asked for again: nothing but speed depends on them.
#[derive(Debug)]
pub(crate) struct Held {
    buffers: Vec<Buffer>,
    free: Vec<u32>,
    /// How many buffers each share of [`Peers`](crate::peers::Peers) has.
    taken: Vec<u32>,
    /// How many a share may have.
    limit: u32,
    refused: u64,
}

#[derive(Debug, Default)]
struct Buffer {
    /// Allocated when it is used for the first time.
    bytes: Box<[u8]>,
    len: usize,
    /// Whose share it counts in.
    share: u32,
}

impl Held {
    /// `count` buffers, of which each of up to `shares` peers may have `limit`.
    pub(crate) fn new(count: u32, shares: u32, limit: u32) -> Self {
        Held {
            buffers: (0..count).map(|_| Buffer::default()).collect(),
            free: (0..count).rev().collect(),
            taken: vec![0; shares as usize],
            limit,
            refused: 0,
        }
    }

    /// Bytes that so many buffers take before any is used.
    pub(crate) fn bytes(count: u32) -> usize {
        (count as usize).saturating_mul(size_of::<Buffer>() + size_of::<u32>())
    }

    /// Takes a buffer for a peer, if there is one and its share has room.
    pub(crate) fn reserve(&mut self, share: u32) -> Option<u32> {
        let taken = self.taken.get_mut(share as usize)?;
        if *taken >= self.limit {
            self.refused += 1;
            return None;
        }
        let buffer = self.free.pop()?;
        *taken += 1;
        self.buffers[buffer as usize].share = share;
        Some(buffer)
    }

    /// How often a peer wanted more than its share.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Copies a payload of at most `max` bytes into a buffer.
    pub(crate) fn keep(&mut self, buffer: u32, payload: &[u8], max: usize) {
        if let Some(Buffer { bytes, len, .. }) = self.buffers.get_mut(buffer as usize) {
            if bytes.is_empty() {
                *bytes = vec![0; max].into_boxed_slice();
            }
            *len = payload.len().min(bytes.len());
            bytes[..*len].copy_from_slice(&payload[..*len]);
        }
    }

    /// Takes a buffer's bytes out, to be given back by [`put_back`](Held::put_back); with its length.
    pub(crate) fn take(&mut self, buffer: u32) -> (Box<[u8]>, usize) {
        self.buffers
            .get_mut(buffer as usize)
            .map(|held| (std::mem::take(&mut held.bytes), held.len))
            .unwrap_or_default()
    }

    /// Gives a buffer back, and frees it.
    pub(crate) fn put_back(&mut self, buffer: u32, bytes: Box<[u8]>) {
        if let Some(held) = self.buffers.get_mut(buffer as usize) {
            held.bytes = bytes;
        }
        self.release(buffer);
    }

    /// Frees a buffer.
    pub(crate) fn release(&mut self, buffer: u32) {
        debug_assert!(!self.free.contains(&buffer), "a buffer is freed once");
        let share = self.buffers.get(buffer as usize).map_or(0, |held| held.share);
        if let Some(taken) = self.taken.get_mut(share as usize) {
            *taken = taken.saturating_sub(1);
        }
        self.free.push(buffer);
    }

    /// How many buffers are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Held;

    #[test]
    fn a_buffer_keeps_what_was_put_in_until_it_is_freed() {
        let mut held = Held::new(2, 1, 2);
        let [a, b] = [held.reserve(0).unwrap(), held.reserve(0).unwrap()];
        assert_eq!(held.reserve(0), None);
        held.keep(a, b"early", 8);
        held.keep(b, b"later", 8);
        let (bytes, len) = held.take(a);
        assert_eq!(&bytes[..len], b"early");
        held.put_back(a, bytes);
        held.release(b);
        assert_eq!(held.free(), 2);
        let again = held.reserve(0).unwrap();
        held.keep(again, b"a payload that is too long", 8);
        assert_eq!(held.take(again).1, 8);
    }

    #[test]
    fn a_peer_does_not_get_the_buffers_of_all() {
        let mut held = Held::new(8, 2, 3);
        let taken: Vec<u32> = std::iter::from_fn(|| held.reserve(0)).collect();
        assert_eq!((taken.len(), held.refused()), (3, 1));
        assert_eq!(std::iter::from_fn(|| held.reserve(1)).count(), 3);
        held.release(taken[1]);
        assert!(held.reserve(0).is_some());
        assert_eq!((held.reserve(0), held.refused()), (None, 3));
        assert_eq!(held.reserve(2), None, "no such share");
    }
}
