//! What tells whether a whole task is what its name promises [pure].

use super::{
    digest::WholeDigest,
    xorb::{Claim, XorbCheck},
};

/// The promise in a task's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// SHA-256 of all its bytes.
    Sha256([u8; 32]),
    /// They are these bytes of a xorb.
    Xorb(Claim),
}

/// A proof on its way: fed the task's bytes in order.
pub enum Check {
    /// See [`Proof::Sha256`].
    Sha256 {
        /// So far.
        digest: WholeDigest,
        /// What it must be in the end.
        expected: [u8; 32],
    },
    /// See [`Proof::Xorb`].
    Xorb(XorbCheck),
}

impl Check {
    /// Nothing fed yet.
    pub fn new(proof: &Proof) -> Self {
        match proof {
            Proof::Sha256(expected) => Self::Sha256 { digest: WholeDigest::new(), expected: *expected },
            Proof::Xorb(claim) => Self::Xorb(XorbCheck::new(*claim)),
        }
    }

    /// Bytes that need not be fed again: the offset that the next ones start at.
    pub fn fed(&self) -> u64 {
        match self {
            Self::Sha256 { digest, .. } => digest.fed(),
            Self::Xorb(check) => check.fed(),
        }
    }

    /// The next bytes, of which it takes as many as it can use. False: they are wrong, whatever follows.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Sha256 { digest, .. } => {
                digest.feed(bytes);
                true
            }
            Self::Xorb(check) => check.feed(bytes).is_ok(),
        }
    }

    /// Whether all that was fed, which is the whole task, keeps the promise as far as it can be checked.
    pub fn holds(self) -> bool {
        match self {
            Self::Sha256 { digest, expected } => digest.finish() == expected,
            Self::Xorb(check) => check.finish().is_ok(),
        }
    }
}
