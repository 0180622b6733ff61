//! Files in Xet's storage: what hf_xet asks of the Hub, of the CAS server and of the transfer host.
//!
//! A file is cut into chunks, chunks are packed into xorbs, and a reconstruction names the runs of chunks that make the file,
//! with a URL for each that is signed for exactly these bytes of the xorb. Hashes are those of the public specification; the
//! cuts are of a fixed length, which no client checks.

mod cas;
mod file;
mod hash;
mod transfer;

use hyper::header::HOST;

pub(super) use self::{
    cas::{token, xorb_url},
    file::{XetFile, XorbBytes},
};
use super::routes::{Answer, Context};

/// Answers reconstructions.
pub(super) const CAS_HOST: &str = "cas-server.xethub.hf.co";
/// Serves xorbs.
pub(super) const TRANSFER_HOST: &str = "transfer.xethub.hf.co";

/// How files are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XetShape {
    /// Chunks of 64 KiB in a xorb at most.
    pub xorb_chunks: u32,
    /// Chunks in one term of a reconstruction at most, and so in one signed range.
    pub term_chunks: u32,
}

impl Default for XetShape {
    /// The real ones: xorbs of 64 MiB, each fetched whole where a file has all of it.
    fn default() -> Self {
        Self { xorb_chunks: 1024, term_chunks: 1024 }
    }
}

/// None: not a path of these hosts.
pub(super) fn answer(context: &Context) -> Option<Answer> {
    let host = context.header(HOST).unwrap_or("");
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let meant = |name: &str| host == name || !context.shared.names.cdn.iter().any(|cdn| cdn == host);
    if let Some(hash) = context.path.strip_prefix("/xorbs/default/") {
        return meant(TRANSFER_HOST).then(|| transfer::answer(context, hash));
    }
    let (version, hash) = context.path.strip_prefix('/')?.split_once("/reconstructions/")?;
    meant(CAS_HOST).then(|| cas::reconstruction(context, version, hash))
}
