//! Sizes, times and rates as people write and read them.

use std::time::Duration;

/// The largest message that the command measures, in bytes.
pub(crate) const SIZE_MAX: usize = 64 << 20;

/// Reads a size: `64`, `4KiB`, `64k`, `1M`. Letters alone and with `iB` mean powers of 1024; `KB` and `MB`
/// mean powers of 1000, as the standards have it.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: usize =
        number.parse().map_err(|_| format!("`{text}` is not a size; write for example 64, 4KiB or 1MiB"))?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "kb" => 1000,
        "mb" => 1_000_000,
        other => return Err(format!("`{other}` is not a unit of size; use B, KiB or MiB")),
    };
    match number.checked_mul(factor) {
        Some(bytes @ 1..=SIZE_MAX) => Ok(bytes),
        _ => Err(format!("a size is 1 B to {}", size(SIZE_MAX))),
    }
}

/// Reads a time: `1s`, `500ms`, `1.5s`, `2m`, `200us`. A number alone is in seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` is not a time; write for example 1s, 500ms or 2m"))?;
    let seconds = match unit.trim() {
        "" | "s" => number,
        "ms" => number / 1e3,
        "us" | "µs" => number / 1e6,
        "m" | "min" => number * 60.0,
        other => return Err(format!("`{other}` is not a unit of time; use us, ms, s or m")),
    };
    if seconds > 3600.0 {
        return Err("a time is at most one hour".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is not a time"))
}

/// A duration that is not zero.
pub(crate) fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        d if d < Duration::from_millis(1) => Err("the time of a row is at least 1ms".into()),
        d => Ok(d),
    }
}

/// `64 B`, `4 KiB`, `1 MiB`.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

/// Microseconds with three or four digits that mean something.
pub(crate) fn micros(ns: f64) -> String {
    significant(ns / 1e3)
}

/// Four significant digits at most, without an exponent.
pub(crate) fn significant(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// A number a second: `950`, `12.3 k`, `1.25 M`.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        n if n >= 1e6 => format!("{} M", significant(n / 1e6)),
        n if n >= 1e3 => format!("{} k", significant(n / 1e3)),
        n => format!("{n:.0}"),
    }
}

/// `1 234 567` as `1234567` is hard to read: groups of three.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// A time for people: `12 s`, `600 ms`, `2 min 5 s`.
pub(crate) fn duration(d: Duration) -> String {
    match d.as_secs_f64() {
        s if s >= 60.0 => format!("{} min {} s", d.as_secs() / 60, d.as_secs() % 60),
        s if s >= 10.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{} s", (s * 10.0).round() / 10.0),
        s if s >= 1e-3 => format!("{} ms", (s * 1e3).round()),
        s => format!("{} us", (s * 1e6).round()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("8", 8),
            ("64B", 64),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4KB", 4000),
            ("1M", 1 << 20),
            ("1 MiB", 1 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "0", "KiB", "-1", "4GiB", "65MiB", "99999999999999999999", "18446744073709551615M", "4x"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_read() {
        for (text, ms) in [("1s", 1000), ("500ms", 500), ("1.5s", 1500), ("2m", 120_000), ("2", 2000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1h", "1.2.3s", "99999m"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_positive_duration("0s").is_err());
    }

    #[test]
    fn numbers_are_written() {
        assert_eq!(size(8), "8 B");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(1 << 20), "1 MiB");
        assert_eq!(size(5000), "5000 B");
        assert_eq!(count(1234567), "1 234 567");
        assert_eq!(count(12), "12");
        assert_eq!(micros(4_234.0), "4.23");
        assert_eq!(
            (rate(950.0), rate(12_340.0), rate(1.25e6)),
            ("950".into(), "12.3 k".into(), "1.25 M".into())
        );
        assert_eq!(duration(Duration::from_millis(600)), "600 ms");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 5 s");
    }
}
