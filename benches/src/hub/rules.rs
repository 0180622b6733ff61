//! How the Hub's API behaves beyond its faults: renamed repositories, pages, rate limits.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::{Response, StatusCode, header};

use super::routes::{Answer, Context, finish, full, text};

/// The beginnings of the Hub's paths, up to a repository's name.
const PREFIXES: [&str; 6] = ["/api/models/", "/api/datasets/", "/api/spaces/", "/datasets/", "/spaces/", "/"];

/// Rules of the API in force. Shared: changes apply to the next request.
#[derive(Debug, Default)]
pub struct ApiRules(Mutex<Rules>);

#[derive(Debug, Default)]
struct Rules {
    renamed: Vec<(String, String)>,
    page_length: Option<usize>,
    throttled: Option<(u32, String)>,
    whole_listings: bool,
}

impl ApiRules {
    /// From now on requests for the repository `old` are redirected to `new` (307, a path without a host), as the Hub does it.
    /// Both are `owner/name`, without the kind.
    pub fn rename(&self, old: &str, new: &str) {
        self.lock().renamed.push((old.to_owned(), new.to_owned()));
    }

    /// Lists so many entries in one answer, and the rest behind `Link: rel="next"`.
    pub fn set_page_length(&self, entries: usize) {
        self.lock().page_length = Some(entries);
    }

    /// Answers the next `times` requests to the API with 429 and this header line, as in `Retry-After: 1`.
    pub fn throttle(&self, times: u32, line: &str) {
        self.lock().throttled = Some((times, line.to_owned()));
    }

    /// Lists the whole repository whatever folder or file is asked for.
    pub fn list_everything(&self) {
        self.lock().whole_listings = true;
    }

    pub(super) fn lists_everything(&self) -> bool {
        self.lock().whole_listings
    }

    pub(super) fn page_length(&self) -> Option<usize> {
        self.lock().page_length
    }

    /// The answer in place of any other.
    pub(super) fn instead(&self, context: &Context) -> Option<Answer> {
        let mut rules = self.lock();
        if context.path.starts_with("/api/")
            && let Some((times, line)) = rules.throttled.as_mut().filter(|(times, _)| *times > 0)
        {
            *times -= 1;
            let mut answer = text(StatusCode::TOO_MANY_REQUESTS, "You have been rate limited");
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            let name: header::HeaderName = name.parse().expect("a test names a header");
            answer.headers_mut().insert(name, value.parse().expect("a test gives a value"));
            return Some(answer);
        }
        let location = rules.renamed.iter().find_map(|(old, new)| renamed(&context.raw_path, old, new))?;
        let query = if context.query.is_empty() { String::new() } else { format!("?{}", context.query) };
        let response = Response::builder().status(StatusCode::TEMPORARY_REDIRECT);
        Some(finish(response.header(header::LOCATION, format!("{location}{query}")), full("")))
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn renamed(path: &str, old: &str, new: &str) -> Option<String> {
    PREFIXES.iter().find_map(|prefix| {
        let rest = path.strip_prefix(prefix)?.strip_prefix(old)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{prefix}{new}{rest}"))
    })
}
