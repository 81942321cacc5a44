//! End-to-end flow control credit codes (IBA 9.7.7.2): how many messages beyond the acknowledged one
//! the responder has receive work requests for.

/// The code that sets no limit; a queue pair on a shared receive queue sends nothing else.
pub const UNLIMITED: u8 = 0x1F;

const MESSAGES: [u16; 31] = [
    0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072,
    4096, 6144, 8192, 12288, 16384, 24576, 32768,
];

/// The number of messages that a code allows, or `None` for no limit. Only the low five bits count.
pub fn decode(code: u8) -> Option<u16> {
    MESSAGES.get(usize::from(code & 0x1F)).copied()
}

/// The code of the largest number of messages that is at most `messages`. Never [`UNLIMITED`].
pub fn encode(messages: u32) -> u8 {
    let above = MESSAGES.partition_point(|&m| u32::from(m) <= messages);
    (above - 1) as u8 // the first entry is 0, so `above` is at least 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_specification() {
        assert_eq!(decode(0), Some(0));
        assert_eq!(decode(5), Some(6));
        assert_eq!(decode(0x1E), Some(32768));
        assert_eq!(decode(UNLIMITED), None);
        assert_eq!(decode(0xFF), None);
    }

    #[test]
    fn encode_is_the_inverse_and_rounds_down() {
        for code in 0..31 {
            let messages = u32::from(decode(code).unwrap());
            assert_eq!(encode(messages), code);
            let fewer = messages.saturating_sub(1);
            assert!(u32::from(decode(encode(fewer)).unwrap()) <= fewer);
        }
        assert_eq!(encode(5), 4);
        assert_eq!(encode(u32::MAX), 0x1E);
    }
}
