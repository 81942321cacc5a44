//! Which faults, and how many of them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// The faults of a network, each on its own: `loss=0.01,reorder=0.01,delay=50us,seed=7`.
///
/// Its text form names what differs from the default, which is no faults and seed 0; parsing the
/// text gives the same profile.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct FaultProfile {
    /// Probability that a datagram is lost, 0 to 1.
    pub loss: f64,
    /// Probability that a datagram arrives twice, 0 to 1.
    pub duplicate: f64,
    /// Probability that a datagram is held back until a few later ones have overtaken it, 0 to 1.
    pub reorder: f64,
    /// Probability that one bit of a datagram is flipped, 0 to 1.
    pub corrupt: f64,
    /// How much later every datagram arrives.
    pub delay: Duration,
    /// How much later still it arrives at most: each datagram draws its own part of it, evenly, so
    /// that datagrams overtake one another.
    pub jitter: Duration,
    /// Where the decisions come from: the same seed and the same calls make the same faults.
    pub seed: u64,
}

/// The names of the probabilities and of the durations, as text has them.
const PROBABILITIES: [&str; 4] = ["loss", "duplicate", "reorder", "corrupt"];
const DURATIONS: [&str; 2] = ["delay", "jitter"];

/// Units of duration, the largest first.
const UNITS: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

impl FaultProfile {
    /// Whether it makes no faults at all.
    pub fn is_none(&self) -> bool {
        FaultProfile { seed: 0, ..*self } == FaultProfile::default()
    }

    fn probability(&mut self, name: &str) -> Option<&mut f64> {
        match name {
            "loss" => Some(&mut self.loss),
            "duplicate" => Some(&mut self.duplicate),
            "reorder" => Some(&mut self.reorder),
            "corrupt" => Some(&mut self.corrupt),
            _ => None,
        }
    }

    fn duration(&mut self, name: &str) -> Option<&mut Duration> {
        match name {
            "delay" => Some(&mut self.delay),
            "jitter" => Some(&mut self.jitter),
            _ => None,
        }
    }
}

impl fmt::Display for FaultProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut copy = *self;
        let mut comma = "";
        for name in PROBABILITIES {
            if let Some(&mut p) = copy.probability(name)
                && p != 0.0
            {
                write!(f, "{comma}{name}={p}")?;
                comma = ",";
            }
        }
        for name in DURATIONS {
            if let Some(&mut duration) = copy.duration(name)
                && !duration.is_zero()
            {
                let ns = duration.as_nanos();
                let (unit, size) = UNITS
                    .into_iter()
                    .find(|&(_, size)| ns.is_multiple_of(u128::from(size)))
                    .unwrap_or(("ns", 1));
                write!(f, "{comma}{name}={}{unit}", ns / u128::from(size))?;
                comma = ",";
            }
        }
        if self.seed != 0 || comma.is_empty() {
            write!(f, "{comma}seed={}", self.seed)?;
        }
        Ok(())
    }
}

/// Text that is no fault profile.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ParseFaultError {
    /// A part is not of the form `name=value`.
    #[error("`{part}` is no fault: expected `name=value`, as in `loss=0.01,delay=50us,seed=7`")]
    NotAPair {
        /// The part as it was given.
        part: String,
    },
    /// There is no such fault.
    #[error(
        "there is no fault `{name}`: expected loss, duplicate, reorder or corrupt (probabilities), \
         delay or jitter (durations), or seed"
    )]
    UnknownName {
        /// The name as it was given.
        name: String,
    },
    /// The same fault twice.
    #[error("`{name}` is given twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// The value does not fit the name.
    #[error("`{name}={value}`: expected {expected}")]
    Value {
        /// The name.
        name: String,
        /// The value as it was given.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl FromStr for FaultProfile {
    type Err = ParseFaultError;

    fn from_str(text: &str) -> Result<Self, ParseFaultError> {
        let mut profile = FaultProfile::default();
        let mut seen: Vec<&str> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (name, value) =
                part.split_once('=').ok_or_else(|| ParseFaultError::NotAPair { part: part.to_owned() })?;
            let (name, value) = (name.trim(), value.trim());
            if seen.contains(&name) {
                return Err(ParseFaultError::Twice { name: name.to_owned() });
            }
            let wrong = |expected| ParseFaultError::Value {
                name: name.to_owned(),
                value: value.to_owned(),
                expected,
            };
            if let Some(p) = profile.probability(name) {
                *p = probability(value).ok_or_else(|| wrong("a probability from 0 to 1, such as 0.01"))?;
            } else if let Some(d) = profile.duration(name) {
                *d = duration(value)
                    .ok_or_else(|| wrong("a duration of at most an hour in ns, us, ms or s, such as 50us"))?;
            } else if name == "seed" {
                profile.seed = value.parse().map_err(|_| wrong("a number from 0 to 18446744073709551615"))?;
            } else {
                return Err(ParseFaultError::UnknownName { name: name.to_owned() });
            }
            seen.push(name);
        }
        Ok(profile)
    }
}

fn probability(value: &str) -> Option<f64> {
    // Not every text that is a number to Rust is one here: no `nan`, `inf` or `-0`.
    let p: f64 = value.parse().ok()?;
    ((0.0..=1.0).contains(&p) && p.is_sign_positive()).then_some(p)
}

/// A whole or decimal number of nanoseconds to seconds.
fn duration(value: &str) -> Option<Duration> {
    const HOUR: u64 = 3_600_000_000_000;
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (_, size) = UNITS.into_iter().find(|&(unit, _)| unit == value[digits.len()..].trim())?;
    let (whole, fraction) = digits.trim_end().split_once('.').unwrap_or((digits.trim_end(), ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut ns = whole.parse::<u64>().ok()?.checked_mul(size)?;
    let mut digit_size = size;
    for digit in fraction.bytes() {
        digit_size /= 10;
        ns = ns.checked_add(u64::from(digit - b'0') * digit_size)?;
    }
    (ns <= HOUR).then(|| Duration::from_nanos(ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<FaultProfile, String> {
        text.parse().map_err(|error: ParseFaultError| error.to_string())
    }

    #[test]
    fn every_part_is_understood() {
        let text = "loss=0.01,duplicate=0.001,reorder=0.02,corrupt=0.003,delay=50us,jitter=10us,seed=7";
        let expected = FaultProfile {
            loss: 0.01,
            duplicate: 0.001,
            reorder: 0.02,
            corrupt: 0.003,
            delay: Duration::from_micros(50),
            jitter: Duration::from_micros(10),
            seed: 7,
        };
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(expected.to_string(), text);
        assert_eq!(parse(" jitter = 10 us , loss = 1e-2 ").unwrap().jitter, Duration::from_micros(10));
        assert_eq!(parse("delay=1.25ms").unwrap().delay, Duration::from_micros(1250));
        assert_eq!(parse("delay=0ns,seed=3").unwrap(), FaultProfile { seed: 3, ..FaultProfile::default() });
        assert_eq!(FaultProfile::default().to_string(), "seed=0");
    }

    #[test]
    fn errors_say_what_was_given_and_what_was_expected() {
        for (text, parts) in [
            ("", &["``", "name=value"][..]),
            ("loss", &["`loss`", "name=value"]),
            ("loss=0.1,", &["``"]),
            ("los=0.1", &["`los`", "loss, duplicate"]),
            ("loss=0.1,loss=0.2", &["`loss`", "twice"]),
            ("loss=2", &["loss=2", "0 to 1"]),
            ("loss=-0.1", &["loss=-0.1", "0 to 1"]),
            ("loss=nan", &["loss=nan", "0 to 1"]),
            ("loss=1%", &["loss=1%", "0 to 1"]),
            ("delay=50", &["delay=50", "50us"]),
            ("delay=us", &["delay=us", "50us"]),
            ("delay=-1us", &["delay=-1us", "50us"]),
            ("delay=1e3us", &["delay=1e3us", "50us"]),
            ("delay=2000000s", &["delay=2000000s", "hour"]),
            ("delay=99999999999999999999s", &["hour"]),
            ("jitter=5µs", &["jitter=5µs", "50us"]),
            ("seed=-1", &["seed=-1", "18446744073709551615"]),
        ] {
            let error = parse(text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part:?} in {error:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(
            p in prop::array::uniform4(0.0..=1.0_f64),
            delay in 0..3_600_000_000_000_u64,
            jitter in 0..3_600_000_000_000_u64,
            seed: u64,
        ) {
            let [loss, duplicate, reorder, corrupt] = p;
            let (delay, jitter) = (Duration::from_nanos(delay), Duration::from_nanos(jitter));
            let profile = FaultProfile { loss, duplicate, reorder, corrupt, delay, jitter, seed };
            prop_assert_eq!(parse(&profile.to_string()), Ok(profile));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
