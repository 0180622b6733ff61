//! Reconstructions that pass through the node: the URLs in them are remembered.

use std::sync::Arc;

use crate::{
    node::Node,
    swarm::OriginRequest,
    task::reconstruction::{is_reconstruction, urls},
};

/// 8 MiB: a longer answer is passed on unheard. A file of 10 GB in xorbs of its own takes some 200 KiB.
const MAX_HEARD: usize = 8 << 20;

/// What came so far of one answer.
pub(super) struct Overheard {
    node: Arc<Node>,
    body: Vec<u8>,
    whole: bool,
}

impl Overheard {
    /// Whether an answer to this request is to be listened to, from a server whose word counts.
    pub(super) fn concerns(node: &Node, method: &str, request: &OriginRequest) -> bool {
        method == "GET" && is_reconstruction(&request.url) && node.rules.believes(&request.url)
    }

    /// `None` if too many are listened to.
    pub(super) fn begin(node: &Arc<Node>) -> Option<Self> {
        node.authorizer.may_hear().then(|| Self { node: Arc::clone(node), body: Vec::new(), whole: true })
    }

    /// The next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.whole &= self.body.len() + bytes.len() <= MAX_HEARD;
        if self.whole {
            self.body.extend_from_slice(bytes);
        } else {
            self.body = Vec::new();
        }
    }

    /// The answer is complete.
    pub(super) fn end(self) {
        let found = if self.whole { urls(&self.body).unwrap_or_default() } else { Vec::new() };
        for (url, bytes) in &found {
            self.node.authorizer.grant(url, *bytes);
        }
    }
}

impl Drop for Overheard {
    fn drop(&mut self) {
        self.node.authorizer.heard();
    }
}
