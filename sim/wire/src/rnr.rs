//! Receiver-not-ready timer codes (IBA 9.7.5.2.8).

use std::time::Duration;

/// The delays in units of ten microseconds, by code. Code 0 is the longest.
const DELAY_10US: [u64; 32] = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
    3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

/// How long a requester waits before it tries again; only the low five bits of `code` count.
pub const fn delay(code: u8) -> Duration {
    Duration::from_micros(10 * DELAY_10US[(code & 0x1F) as usize])
}

/// The code of the shortest delay that is at least `wanted`, or of the longest delay there is
/// (655.36 ms, code 0).
pub fn code_at_least(wanted: Duration) -> u8 {
    (1..32).find(|&code| delay(code) >= wanted).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_of_the_specification() {
        assert_eq!(delay(0), Duration::from_micros(655_360));
        assert_eq!(delay(1), Duration::from_micros(10));
        assert_eq!(delay(12), Duration::from_micros(640));
        assert_eq!(delay(25), Duration::from_micros(61_440));
        assert_eq!(delay(31), Duration::from_micros(491_520));
        assert_eq!(delay(0xFF), delay(31));
    }

    #[test]
    fn codes_rise_with_the_delay() {
        assert!((1..31).all(|code| delay(code) < delay(code + 1)));
        assert!(delay(31) < delay(0));
    }

    #[test]
    fn code_at_least_is_the_inverse_and_rounds_up() {
        for code in 0..32 {
            assert_eq!(code_at_least(delay(code)), code);
            let more = code_at_least(delay(code) + Duration::from_nanos(1));
            assert_eq!(more, if code == 0 { 0 } else { (code + 1) % 32 });
        }
        assert_eq!(code_at_least(Duration::ZERO), 1);
        assert_eq!(code_at_least(Duration::from_secs(1)), 0);
    }
}
