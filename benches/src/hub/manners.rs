//! What a Hub does that is no fault, and still differs from one request or one caller to the next.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use hyper::{
    Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, LOCATION},
};
use serde_json::json;

use super::{
    catalogue::{Home, Object},
    routes::{Answer, Context, finish, full},
};

/// The type of the answer in which a Hub names a file's hash in Xet's storage, for clients that accept nothing else.
const FILE_INFO: &str = "application/vnd.xet-fileinfo+json";

/// Behaviour that can be switched on; all of it is off at first.
#[derive(Debug, Default)]
pub struct Manners {
    edges: AtomicU32,
    next_edge: AtomicU32,
    negotiates: AtomicBool,
    renamed: Mutex<HashMap<String, String>>,
}

impl Manners {
    /// The CDN answers from this many edges in turn, each of which has a strong ETag of its own for one object; 0: from one.
    pub fn set_edges(&self, edges: u32) {
        self.edges.store(edges, Ordering::Relaxed);
    }

    /// Whether answers vary by Accept (a file's hash as JSON in place of the file) and by Accept-Encoding (small files in gzip,
    /// with a weak ETag and no length).
    pub fn set_negotiates(&self, negotiates: bool) {
        self.negotiates.store(negotiates, Ordering::Relaxed);
    }

    /// From now on every request about the repository `old` is led to `new` by a 307.
    pub fn rename(&self, old: &str, new: &str) {
        self.renamed().insert(old.to_owned(), new.to_owned());
    }

    /// What the edge that this request reached puts into the object's ETag.
    pub(super) fn edge(&self, object: &Object) -> Option<u32> {
        let edges = self.edges.load(Ordering::Relaxed);
        let many = edges > 0 && matches!(object.home, Home::Cdn { .. });
        many.then(|| self.next_edge.fetch_add(1, Ordering::Relaxed) % edges)
    }

    /// Whether the object goes out in gzip.
    pub(super) fn zips(&self, context: &Context, object: &Object) -> bool {
        let offered = context.header(ACCEPT_ENCODING).is_some_and(|codings| codings.contains("gzip"));
        offered && matches!(object.home, Home::Hub) && self.negotiates.load(Ordering::Relaxed)
    }

    /// The JSON that a client gets which accepts nothing else.
    pub(super) fn file_info(&self, context: &Context, object: &Object) -> Option<Answer> {
        let wanted = context.header(ACCEPT) == Some(FILE_INFO) && self.negotiates.load(Ordering::Relaxed);
        if !wanted {
            return None;
        }
        let text = json!({ "hash": object.sha256, "size": object.len() }).to_string();
        let response = Response::builder()
            .header("content-type", FILE_INFO)
            .header("content-length", text.len())
            .header("etag", format!("\"{}\"", &object.sha256[..40]));
        Some(finish(response, full(if context.head { String::new() } else { text })))
    }

    /// The redirect of a repository that has another name now.
    pub(super) fn moved(&self, context: &Context) -> Option<Answer> {
        let renamed = self.renamed();
        let named = |path: &str, old: &str| {
            let rest = path.strip_prefix('/')?;
            let rest = rest.strip_prefix("api/models/").unwrap_or(rest).strip_prefix(old)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(())
        };
        let (old, new) = renamed.iter().find(|(old, _)| named(&context.path, old).is_some())?;
        let query = if context.query.is_empty() { String::new() } else { format!("?{}", context.query) };
        let location = format!("{}{query}", context.raw_path.replacen(&**old, new, 1));
        let response = Response::builder().status(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, location);
        Some(finish(response, full("Temporary Redirect. Redirecting to the repository's name")))
    }

    fn renamed(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.renamed.lock().expect("no holder panics")
    }
}
