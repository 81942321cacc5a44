//! Memory of a peer, as this side names it.

use std::fmt;
use std::str::FromStr;

use super::error::{OutOfBounds, ParseError};

/// The first byte of every token.
const VERSION: u8 = 1;
const WHAT: &str = "a remote token";

/// The right to reach a peer's [`Window`](crate::Window), as something that travels.
///
/// It is opaque, and its length is not always the same: keys are longer on some hardware than on other. Send it to
/// the peer as bytes or as text (hexadecimal), by whatever means. It names memory behind one device; using it on
/// a connection to another one fails with a remote access error.
///
/// ```
/// use anyverbs::RemoteToken;
/// assert!("deadbeef".parse::<RemoteToken>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RemoteToken {
    base: u64,
    len: u64,
    key: u64,
}

impl RemoteToken {
    pub(crate) fn new(base: u64, len: u64, key: u64) -> RemoteToken {
        RemoteToken { base, len, key }
    }

    /// How many bytes the window has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the window has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes of the window from `offset` on, as requests take them.
    ///
    /// # Errors
    /// [`OutOfBounds`] if they are not all inside of the window.
    pub fn at(&self, offset: u64, len: u64) -> Result<RemoteSlice, OutOfBounds> {
        match offset.checked_add(len) {
            // `base + len` was checked when the token was made, so `base + offset` cannot overflow.
            Some(end) if end <= self.len => {
                Ok(RemoteSlice { address: self.base + offset, len, key: self.key })
            }
            _ => Err(OutOfBounds { offset, len, size: self.len }),
        }
    }

    /// The whole window.
    pub fn all(&self) -> RemoteSlice {
        RemoteSlice { address: self.base, len: self.len, key: self.key }
    }

    /// The token as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let key = self.key.to_be_bytes();
        let zeros = key.iter().take_while(|&&byte| byte == 0).count().min(key.len() - 1);
        let key = &key[zeros..];
        let mut bytes = vec![VERSION];
        bytes.extend(self.base.to_be_bytes());
        bytes.extend(self.len.to_be_bytes());
        bytes.extend(key);
        bytes
    }

    /// The token from its bytes.
    ///
    /// # Errors
    /// [`ParseError`] if they are not the bytes of a token.
    pub fn from_bytes(bytes: &[u8]) -> Result<RemoteToken, ParseError> {
        let error = |problem: String| ParseError::new(WHAT, problem);
        let Some((&version, rest)) = bytes.split_first() else {
            return Err(error("it is empty".to_owned()));
        };
        if version != VERSION {
            return Err(error(format!(
                "it starts with {version}, not with {VERSION}: the peer's version differs"
            )));
        }
        let (base, rest) = rest.split_first_chunk().ok_or_else(|| error("it is cut short".to_owned()))?;
        let (len, key) = rest.split_first_chunk().ok_or_else(|| error("it is cut short".to_owned()))?;
        if key.is_empty() || key.len() > 8 {
            return Err(error(format!("its key has {} bytes, not 1 to 8", key.len())));
        }
        let key = key.iter().fold(0, |key, &byte| key << 8 | u64::from(byte));
        let (base, len) = (u64::from_be_bytes(*base), u64::from_be_bytes(*len));
        if base.checked_add(len).is_none() {
            return Err(error("its window wraps around the end of the address space".to_owned()));
        }
        Ok(RemoteToken { base, len, key })
    }
}

impl fmt::Display for RemoteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for RemoteToken {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<RemoteToken, ParseError> {
        RemoteToken::from_bytes(
            &from_hex(text.trim())
                .ok_or_else(|| ParseError::new(WHAT, "it is not an even number of hexadecimal digits"))?,
        )
    }
}

/// The bytes of hexadecimal text.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

/// A part of a peer's window: where a request reads or writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RemoteSlice {
    pub(crate) address: u64,
    pub(crate) len: u64,
    pub(crate) key: u64,
}

impl RemoteSlice {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_text_give_the_token_back() {
        for key in [0, 1, 0xff, 0x100, 0xdead_beef, u64::MAX] {
            let token = RemoteToken::new(0x1000, 77, key);
            assert_eq!(RemoteToken::from_bytes(&token.to_bytes()), Ok(token.clone()));
            assert_eq!(token.to_string().parse(), Ok(token.clone()));
            assert_eq!(format!(" {}\n", token.to_string().to_uppercase()).parse(), Ok(token));
        }
    }

    #[test]
    fn every_prefix_and_every_excess_is_an_error_or_a_token() {
        let bytes = RemoteToken::new(1, 2, u64::MAX).to_bytes();
        for n in 0..=17 {
            assert!(RemoteToken::from_bytes(&bytes[..n]).is_err(), "{n} bytes");
        }
        let mut long = bytes.clone();
        long.push(0);
        assert!(RemoteToken::from_bytes(&long).is_err());
        let mut other = bytes;
        other[0] = 9;
        assert!(RemoteToken::from_bytes(&other).unwrap_err().to_string().contains("version"));
    }

    #[test]
    fn a_window_at_the_end_of_the_address_space_is_refused() {
        assert!(RemoteToken::from_bytes(&RemoteToken::new(u64::MAX, 1, 1).to_bytes()).is_err());
    }

    #[test]
    fn slices_stay_inside() {
        let token = RemoteToken::new(100, 10, 1);
        assert_eq!(token.at(4, 6).unwrap().address, 104);
        assert_eq!(token.at(10, 0).unwrap().len(), 0);
        assert!(token.at(4, 7).is_err());
        assert!(token.at(u64::MAX, 1).is_err());
        assert!(token.at(1, u64::MAX).is_err());
        assert_eq!(token.all().len(), 10);
    }

    #[test]
    fn text_that_is_not_hexadecimal() {
        for text in ["", "0", "zz", "0é", "é", "01 02"] {
            assert!(text.parse::<RemoteToken>().is_err(), "{text:?}");
        }
    }
}
