//! Values that people write with a unit: sizes, periods, listeners, the quota, the socket mark.

use std::{fmt, marker::PhantomData, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes, written `64KiB`, `20GiB`, `500MB` or as a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A length of time, written `500ms`, `30s`, `10min`, `2h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

/// Where to listen: an address with a port (port 0: any free one), or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

/// Where to put a Unix socket: an absolute path, or `off`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(pub Option<PathBuf>);

/// How much the store may hold: a [`Size`], or a share of its file system's size, written `80%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// This many bytes.
    Bytes(Size),
    /// This many hundredths of the file system.
    Percent(u8),
}

/// A socket mark (`SO_MARK`), written in hexadecimal `0x706f6e64` or decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u32);

/// Why a value was not understood; says what would have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ValueError {
    text: String,
    expected: &'static str,
}

const SIZE: &str = "a size: a whole number and B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, as in 20GiB";
const PERIOD: &str = "a length of time: a whole number and ms, s, min, h or d, as in 30s";
const LISTEN: &str = "an address with a port, as in 127.0.0.1:65001, or `off`";
const SOCKET: &str = "an absolute path of at most 107 bytes, as in /run/pondhawk/client.sock, or `off`";
const QUOTA: &str = "a size, as in 100GiB, or a share of the file system from 1% to 100%";
const MARK: &str = "a socket mark: a number from 0 to 0xffffffff";

const SIZE_UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
    ("", 1),
];
const PERIOD_UNITS: [(&str, u64); 6] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Size {
    /// The bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The bytes as a length in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Period {
    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Quota {
    /// The bytes that the store may hold on a file system of `total` bytes of which `free` are free while the store
    /// already holds `held`: never so many that fewer than `keep_free` bytes would be left.
    pub fn resolve(self, total: u64, free: u64, held: u64, keep_free: Size) -> u64 {
        let wanted = match self {
            Self::Bytes(size) => size.0,
            Self::Percent(share) => total / 100 * u64::from(share),
        };
        wanted.min(held.saturating_add(free).saturating_sub(keep_free.0))
    }
}

/// Splits `20GiB` into 20 and its unit's factor, and multiplies them.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The largest unit that leaves a whole number.
fn unscaled(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    let (name, factor) = whole.or(units.iter().rev().find(|(name, _)| !name.is_empty())).expect("units are named");
    format!("{}{name}", value / factor)
}

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        scaled(text, &SIZE_UNITS).map(Self).ok_or_else(|| ValueError { text: text.into(), expected: SIZE })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&unscaled(self.0, &SIZE_UNITS))
    }
}

impl FromStr for Period {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        scaled(text, &PERIOD_UNITS)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| ValueError { text: text.into(), expected: PERIOD })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        f.write_str(&unscaled(millis, &PERIOD_UNITS))
    }
}

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_| ValueError { text: text.into(), expected: LISTEN })?;
        Ok(Self(Some(address)))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for SocketPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "off" {
            return Ok(Self(None));
        }
        // What unix(7) has room for.
        let fits = text.starts_with('/') && text.len() <= 107 && !text.contains('\0');
        fits.then(|| Self(Some(text.into()))).ok_or_else(|| ValueError { text: text.into(), expected: SOCKET })
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => path.display().fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for Quota {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let value = match text.trim().strip_suffix('%') {
            Some(share) => share.parse().ok().filter(|share| (1..=100).contains(share)).map(Self::Percent),
            None => text.parse().ok().map(Self::Bytes),
        };
        value.ok_or_else(|| ValueError { text: text.into(), expected: QUOTA })
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::Percent(share) => write!(f, "{share}%"),
        }
    }
}

impl FromStr for Mark {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.map(Self).map_err(|_| ValueError { text: text.into(), expected: MARK })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Takes the text form; numbers come as their digits, YAML's false as the `off` that was written.
struct Text<T>(PhantomData<T>, &'static str);

impl<T: FromStr<Err = ValueError>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<T, E> {
        self.visit_str(if on { "on" } else { "off" })
    }
}

macro_rules! written_as_text {
    ($($name:ident: $expected:expr),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Text(PhantomData, $expected))
            }
        }
    )*};
}
written_as_text!(Size: SIZE, Period: PERIOD, Listen: LISTEN, SocketPath: SOCKET, Quota: QUOTA, Mark: MARK);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_back_as_it_is_written() {
        for (text, bytes) in [("0B", 0), ("1000B", 1000), ("64KiB", 65536), ("20GiB", 20 << 30), ("3MB", 3_000_000)] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes));
            assert_eq!(Size(bytes).to_string().parse::<Size>().unwrap(), Size(bytes));
        }
        assert_eq!(Size(20 << 30).to_string(), "20GiB");
        assert_eq!("20 gib".parse::<Size>().unwrap(), Size(20 << 30));
    }

    #[test]
    fn a_size_that_is_none_is_refused_with_an_example() {
        for text in ["", "GiB", "1.5GiB", "-1", "20XB", "99999999TiB"] {
            assert!(text.parse::<Size>().unwrap_err().to_string().contains("as in 20GiB"), "{text}");
        }
    }

    #[test]
    fn a_period_reads_back_as_it_is_written() {
        for text in ["0ms", "500ms", "30s", "10min", "2h", "7d"] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
        }
        assert_eq!("60s".parse::<Period>().unwrap().to_string(), "1min");
        assert!("30".parse::<Period>().is_err());
    }

    #[test]
    fn the_quota_leaves_what_is_to_be_kept_free() {
        let quota: Quota = "80%".parse().unwrap();
        assert_eq!(quota.resolve(1000, 900, 0, Size(50)), 800);
        assert_eq!(quota.resolve(1000, 100, 300, Size(50)), 350);
        assert_eq!(quota.resolve(1000, 10, 0, Size(50)), 0);
        assert!(["0%", "101%", "x%"].iter().all(|text| text.parse::<Quota>().is_err()));
    }
}
