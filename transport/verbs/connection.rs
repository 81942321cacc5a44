//! What two queue pairs have to know of each other.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::error::ParseError;

/// The number of a queue pair on its device: 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QpNumber(u32);

impl QpNumber {
    pub(crate) fn new(value: u32) -> QpNumber {
        QpNumber(value & MAX_24)
    }

    /// The number.
    pub fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for QpNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

const MAX_24: u32 = 0xff_ffff;
const VERSION: u8 = 1;
const SERVICE_RC: u8 = 0;
const BYTES: usize = 27;
const WHAT: &str = "an endpoint";

/// Where a queue pair is, and what it can do: all that its peer needs to connect to it.
///
/// It travels as bytes or as text, by whatever means: a socket, a file, a command line.
///
/// ```
/// use anyverbs::Endpoint;
/// let endpoint: Endpoint = "rc,10.0.0.1,qp=0x00abcd,psn=0x123456,mtu=4096,reads=16".parse()?;
/// assert_eq!(Endpoint::from_bytes(&endpoint.to_bytes())?, endpoint);
/// assert_eq!(endpoint.to_string().parse::<Endpoint>()?, endpoint);
/// # Ok::<(), anyverbs::ParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) number: QpNumber,
    /// The packet sequence number that it starts sending with.
    pub(crate) psn: u32,
    /// The largest payload of a packet, in bytes, that it can use.
    pub(crate) path_mtu: u16,
    /// How many READs and atomics it answers at a time.
    pub(crate) max_reads: u8,
}

impl Endpoint {
    /// The address of its device.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its number on that device.
    pub fn qp_number(&self) -> QpNumber {
        self.number
    }

    /// The endpoint as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let address = match self.address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend([VERSION, SERVICE_RC]);
        bytes.extend(address.octets());
        bytes.extend(&self.number.0.to_be_bytes()[1..]);
        bytes.extend(&self.psn.to_be_bytes()[1..]);
        bytes.extend(self.path_mtu.to_be_bytes());
        bytes.push(self.max_reads);
        bytes
    }

    /// The endpoint from its bytes.
    ///
    /// # Errors
    /// [`ParseError`] if they are not the bytes of an endpoint.
    pub fn from_bytes(bytes: &[u8]) -> Result<Endpoint, ParseError> {
        match bytes.first() {
            None => return Err(ParseError::new(WHAT, "it is empty")),
            Some(&VERSION) => {}
            Some(other) => {
                let problem =
                    format!("it starts with {other}, not with {VERSION}: the peer's version differs");
                return Err(ParseError::new(WHAT, problem));
            }
        }
        let length = || ParseError::new(WHAT, format!("it has {} bytes, not {BYTES}", bytes.len()));
        let bytes: &[u8; BYTES] = bytes.try_into().map_err(|_| length())?;
        if bytes[1] != SERVICE_RC {
            return Err(ParseError::new(WHAT, format!("service {} is not known here", bytes[1])));
        }
        let (address, rest) = bytes[2..].split_first_chunk::<16>().ok_or_else(length)?;
        let number24 = |b: &[u8]| b.iter().fold(0, |value, &byte| value << 8 | u32::from(byte));
        Endpoint {
            address: Ipv6Addr::from(*address).to_canonical(),
            number: QpNumber::new(number24(&rest[..3])),
            psn: number24(&rest[3..6]),
            path_mtu: u16::from_be_bytes([rest[6], rest[7]]),
            max_reads: rest[8],
        }
        .checked()
    }

    fn checked(self) -> Result<Endpoint, ParseError> {
        if !matches!(self.path_mtu, 256 | 512 | 1024 | 2048 | 4096) {
            let problem = format!("a path MTU of {} is not 256, 512, 1024, 2048 or 4096", self.path_mtu);
            return Err(ParseError::new(WHAT, problem));
        }
        if self.address.is_unspecified() || self.address.is_multicast() {
            return Err(ParseError::new(WHAT, format!("{} is not the address of a device", self.address)));
        }
        Ok(self)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { address, number, psn, path_mtu, max_reads } = self;
        write!(f, "rc,{address},qp={number},psn={psn:#08x},mtu={path_mtu},reads={max_reads}")
    }
}

impl FromStr for Endpoint {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Endpoint, ParseError> {
        let mut fields = text.trim().split(',');
        let mut next = |name: &'static str| {
            let field = fields.next().ok_or_else(|| ParseError::new(WHAT, format!("`{name}` is missing")))?;
            field
                .strip_prefix(name)
                .ok_or_else(|| ParseError::new(WHAT, format!("`{field}` is where `{name}` should be")))
        };
        let service = next("rc")?;
        let address = next("")?;
        let (number, psn, mtu, reads) = (next("qp=")?, next("psn=")?, next("mtu=")?, next("reads=")?);
        if !service.is_empty() || fields.next().is_some() {
            return Err(ParseError::new(WHAT, "there is more than rc,ADDRESS,qp=,psn=,mtu=,reads="));
        }
        let address: IpAddr = address
            .parse()
            .map_err(|_| ParseError::new(WHAT, format!("`{address}` is not an IP address")))?;
        Endpoint {
            address: address.to_canonical(),
            number: QpNumber(integer(number, MAX_24)?),
            psn: integer(psn, MAX_24)?,
            // Neither conversion loses anything: the maximum was checked.
            path_mtu: integer(mtu, u32::from(u16::MAX))? as u16,
            max_reads: integer(reads, u32::from(u8::MAX))? as u8,
        }
        .checked()
    }
}

/// A decimal number, or a hexadecimal one after `0x`, up to `max`.
fn integer(text: &str, max: u32) -> Result<u32, ParseError> {
    let value = match text.strip_prefix("0x") {
        // `from_str_radix` would also take a sign.
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16),
        _ => text.parse(),
    };
    value
        .ok()
        .filter(|&value| value <= max)
        .ok_or_else(|| ParseError::new(WHAT, format!("`{text}` is not a number up to {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            number: QpNumber::new(0xabcdef),
            psn: 0x123456,
            path_mtu: 1024,
            max_reads: 16,
        }
    }

    #[test]
    fn bytes_and_text_give_the_endpoint_back() {
        for address in ["127.0.0.1", "fe80::1", "2001:db8::5"] {
            let endpoint = endpoint(address);
            assert_eq!(endpoint.to_bytes().len(), BYTES);
            assert_eq!(Endpoint::from_bytes(&endpoint.to_bytes()), Ok(endpoint));
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint), "{endpoint}");
        }
    }

    #[test]
    fn bytes_of_every_other_length_are_refused() {
        let mut bytes = endpoint("10.1.2.3").to_bytes();
        for n in 0..bytes.len() {
            assert!(Endpoint::from_bytes(&bytes[..n]).is_err());
        }
        bytes.push(0);
        assert!(Endpoint::from_bytes(&bytes).is_err());
    }

    #[test]
    fn every_flipped_byte_is_an_error_or_another_endpoint() {
        let endpoint = endpoint("10.1.2.3");
        let bytes = endpoint.to_bytes();
        for i in 0..bytes.len() {
            for flip in 1..=255 {
                let mut bytes = bytes.clone();
                bytes[i] ^= flip;
                assert_ne!(Endpoint::from_bytes(&bytes), Ok(endpoint));
            }
        }
    }

    #[test]
    fn text_that_is_wrong_says_where() {
        let good = endpoint("10.1.2.3").to_string();
        for (from, to, expected) in [
            ("rc", "ud", "`ud`"),
            ("rc,", "rcx,", "more than"),
            ("10.1.2.3", "10.1.2", "IP address"),
            ("10.1.2.3", "0.0.0.0", "not the address of a device"),
            ("qp=0xabcdef", "qp=0x1abcdef", "0x1abcdef"),
            ("qp=0xabcdef", "qp=0x+1", "0x+1"),
            ("mtu=1024", "mtu=1000", "1000"),
            ("reads=16", "reads=256", "256"),
            (",reads=16", "", "`reads=` is missing"),
            ("reads=16", "reads=16,x", "more than"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good);
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
