//! Sizes with their unit: `2GiB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// The units, the largest first.
const UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A number of bytes, written as a whole number of KiB, MiB, GiB or TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text that is not a size.
#[derive(Debug, Error)]
#[error("{0:?} is not a size; write a whole number and its unit, like 500MiB or 2GiB")]
pub struct InvalidSize(String);

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let parse = || {
            let (unit, bytes) = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit))?;
            let number = text.strip_suffix(unit)?.trim_end();
            // `parse` accepts `+2`.
            let number = number.starts_with(|first: char| first.is_ascii_digit()).then_some(number);
            number?.parse::<u64>().ok()?.checked_mul(bytes)
        };
        parse().map(Self).ok_or_else(|| InvalidSize(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = UNITS.into_iter();
        match units.find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_whole_number_with_its_unit() {
        for (text, bytes, shown) in [
            ("2GiB", 2 << 30, "2GiB"),
            ("2048 MiB", 2 << 30, "2GiB"),
            ("1536MiB", 3 << 29, "1536MiB"),
            ("0KiB", 0, "0 bytes"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size, &*size.to_string()), (ByteSize(bytes), shown), "{text}");
        }
        for text in ["", "2", "GiB", "2GB", "2.5GiB", "+2GiB", "-2GiB", "2 gib", "99999999999TiB"] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains("like 500MiB or 2GiB"), "{error}");
        }
    }
}
