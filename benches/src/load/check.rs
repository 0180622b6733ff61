//! Whether the bytes are the right ones.

use std::{cell::RefCell, fs::File, os::unix::fs::FileExt as _, path::PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

use super::{
    LoadError,
    record::{ErrorKind, Failure},
};

/// What each byte is held against. Costs the generator CPU time: about 0.6 s a gigabyte for SHA-256, 0.2 for a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// Nothing; only lengths are checked.
    #[default]
    Nothing,
    /// SHA-256 in hexadecimal digits of each object, in their order. For whole objects only.
    Sha256(Vec<String>),
    /// A copy of each object, in their order.
    Copies(Vec<PathBuf>),
}

/// The check with its files open.
#[derive(Debug)]
pub(super) enum Checks {
    Nothing,
    Sha256(Vec<[u8; 32]>),
    Copies(Vec<File>),
}

impl Checks {
    pub(super) fn open(check: &Check, objects: usize) -> Result<Self, LoadError> {
        let given = match check {
            Check::Nothing => return Ok(Self::Nothing),
            Check::Sha256(digests) => digests.len(),
            Check::Copies(paths) => paths.len(),
        };
        if given != objects {
            return Err(LoadError::Checks { given, objects });
        }
        Ok(match check {
            Check::Nothing => Self::Nothing,
            Check::Sha256(digests) => {
                let parsed = digests.iter().map(|text| digest(text).ok_or_else(|| LoadError::Digest(text.clone())));
                Self::Sha256(parsed.collect::<Result<_, _>>()?)
            }
            Check::Copies(paths) => {
                let open =
                    |path: &PathBuf| File::open(path).map_err(|source| LoadError::File { path: path.clone(), source });
                Self::Copies(paths.iter().map(open).collect::<Result<_, _>>()?)
            }
        })
    }

    /// For a body that starts at this offset of an object.
    pub(super) fn start(&self, object: usize, offset: u64) -> Checker<'_> {
        match self {
            Self::Nothing => Checker::Nothing,
            Self::Sha256(digests) => {
                Checker::Sha256 { context: Context::new(&SHA256).into(), expected: &digests[object] }
            }
            Self::Copies(files) => Checker::Copy { file: &files[object], at: offset },
        }
    }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        *byte = (value(pair[0])? << 4 | value(pair[1])?) as u8;
    }
    Some(bytes)
}

/// The check of one body.
pub(super) enum Checker<'a> {
    Nothing,
    Sha256 { context: Box<Context>, expected: &'a [u8; 32] },
    Copy { file: &'a File, at: u64 },
}

thread_local! {
    static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Checker<'_> {
    /// Takes the next bytes of the body.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            Self::Sha256 { context, .. } => {
                context.update(bytes);
                Ok(())
            }
            Self::Copy { file, at } => COPY.with_borrow_mut(|copy| {
                copy.resize(copy.len().max(bytes.len()), 0);
                let copy = &mut copy[..bytes.len()];
                let read = file.read_exact_at(copy, *at);
                read.map_err(|error| wrong(format!("the copy has no bytes at {at}: {error}")))?;
                if *copy != *bytes {
                    let same = copy.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                    return Err(wrong(format!("the byte at {} is not the copy's", *at + same as u64)));
                }
                *at += bytes.len() as u64;
                Ok(())
            }),
        }
    }

    /// At the end of the body; `whole`: it should be all of the object.
    pub(super) fn finish(self, whole: bool) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            Self::Sha256 { context, expected } => {
                let found = context.finish();
                if found.as_ref() == expected {
                    return Ok(());
                }
                let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                Err(wrong(format!("the SHA-256 is {}, not {}", hex(found.as_ref()), hex(expected))))
            }
            Self::Copy { file, at } => match file.metadata() {
                Ok(metadata) if whole && metadata.len() != at => {
                    Err(wrong(format!("the object ends after {at} bytes, its copy has {}", metadata.len())))
                }
                _ => Ok(()),
            },
        }
    }
}

fn wrong(message: String) -> Failure {
    Failure::new(ErrorKind::Digest, message)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_digest_is_64_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(digest(&text).unwrap()[..4], [0, 255, 0, 255]);
        assert!(digest("00").is_none() && digest(&"0g".repeat(32)).is_none() && digest(&"é".repeat(32)).is_none());
    }

    #[test]
    fn a_copy_tells_where_the_bytes_differ_and_whether_they_are_all() {
        let mut copy = tempfile::NamedTempFile::new().unwrap();
        copy.write_all(b"0123456789").unwrap();
        let checks = Checks::open(&Check::Copies(vec![copy.path().to_owned()]), 1).unwrap();
        let check = |offset, bytes: &[u8], whole| {
            let mut checker = checks.start(0, offset);
            checker.take(bytes)?;
            checker.finish(whole)
        };
        assert_eq!(check(3, b"345", false), Ok(()));
        assert_eq!(check(0, b"0123456789", true), Ok(()));
        let message = |result: Result<(), Failure>| result.unwrap_err().message;
        assert_eq!(message(check(3, b"3x5", false)), "the byte at 4 is not the copy's");
        assert!(message(check(0, b"012345", true)).contains("after 6 bytes"));
        assert!(message(check(8, b"8901", false)).contains("no bytes at 8"));
    }

    #[test]
    fn there_is_one_check_for_each_object() {
        assert!(matches!(Checks::open(&Check::Sha256(Vec::new()), 1), Err(LoadError::Checks { given: 0, objects: 1 })));
    }
}
