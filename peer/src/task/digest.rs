//! SHA-256 of a whole task, fed in order [pure].

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

/// Hashes a task from its start; knows how far it has come.
pub struct WholeDigest {
    context: Context,
    fed: u64,
}

impl WholeDigest {
    /// Nothing fed yet.
    pub fn new() -> Self {
        Self { context: Context::new(&SHA256), fed: 0 }
    }

    /// The next bytes of the task.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.fed += bytes.len() as u64;
    }

    /// How many bytes were fed: the offset that the next ones start at.
    pub fn fed(&self) -> u64 {
        self.fed
    }

    /// The digest of all that was fed.
    pub fn finish(self) -> [u8; 32] {
        self.context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl Default for WholeDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WholeDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WholeDigest({} bytes)", self.fed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::id::parse_hex32;

    #[test]
    fn the_digest_does_not_depend_on_how_the_bytes_are_cut() {
        let mut digest = WholeDigest::new();
        digest.feed(b"a");
        digest.feed(b"");
        digest.feed(b"bc");
        assert_eq!(digest.fed(), 3);
        // FIPS 180-2, appendix B.1.
        let abc = parse_hex32("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Some(digest.finish()), abc);
    }
}
