//! Buffers for the payloads of packets that came early.

/// A fixed number of buffers, shared by all queue pairs. When all are taken, early packets are dropped and
/// asked for again: nothing but speed depends on them.
#[derive(Debug)]
pub(crate) struct Held {
    buffers: Vec<Buffer>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Buffer {
    /// Allocated when it is used for the first time.
    bytes: Box<[u8]>,
    len: usize,
}

impl Held {
    pub(crate) fn new(count: u32) -> Self {
        Held { buffers: (0..count).map(|_| Buffer::default()).collect(), free: (0..count).rev().collect() }
    }

    /// Takes a buffer, if there is one.
    pub(crate) fn reserve(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Copies a payload of at most `max` bytes into a buffer.
    pub(crate) fn keep(&mut self, buffer: u32, payload: &[u8], max: usize) {
        if let Some(Buffer { bytes, len }) = self.buffers.get_mut(buffer as usize) {
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
        let mut held = Held::new(2);
        let [a, b] = [held.reserve().unwrap(), held.reserve().unwrap()];
        assert_eq!(held.reserve(), None);
        held.keep(a, b"early", 8);
        held.keep(b, b"later", 8);
        let (bytes, len) = held.take(a);
        assert_eq!(&bytes[..len], b"early");
        held.put_back(a, bytes);
        held.release(b);
        assert_eq!(held.free(), 2);
        let again = held.reserve().unwrap();
        held.keep(again, b"a payload that is too long", 8);
        assert_eq!(held.take(again).1, 8);
    }
}
