//! One file: asked for, gone on with after cuts, checked.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use hyper::header;
use serde::Serialize;
use url::Url;

use super::{
    error::{GetError, label},
    hub::{Hub, Located, redirect},
    place::Part,
    progress::Bar,
    reference::Reference,
    taken,
    web::{Lines, Reply, Via, Web},
};
use crate::{
    http::{head::decimal, range::ContentRange},
    swarm::retry::{Backoff, Class, Jitter, classify_status},
    task::id::{self, hex},
};

/// Redirects from a plain URL to its bytes.
const REDIRECTS: usize = 5;
/// How often what came may be dropped, and the file begun anew: a server that changes, cuts or lies each time has an end too.
const RESTARTS: u32 = 3;

/// Where a file's bytes are asked for.
pub(crate) enum Source {
    /// A file of the Hub; its signed URL is renewed when it expires.
    Hub { reference: Arc<Reference>, commit: String, path: String, at: Located },
    /// A plain URL, and header lines for its host alone.
    Url { url: Url, lines: Lines },
}

/// What a file has to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promise {
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<[u8; 32]>,
}

/// How a file came.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Got {
    /// The way of the last request; none if nothing had to be asked for.
    pub(crate) via: Option<Via>,
    /// Bytes received now.
    pub(crate) received: u64,
    /// Bytes that an earlier run had left.
    pub(crate) resumed: u64,
    /// Where the node had the received bytes from, where it tells: the origin, other nodes, its store. A file that
    /// several ask for at once is counted for each of them.
    pub(crate) from: Option<From>,
}

/// What the bytes by way of a node cost it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct From {
    pub(crate) origin: u64,
    pub(crate) peers: u64,
    pub(crate) store: u64,
}

/// What one request came to.
enum Failed {
    /// Asking again cannot help.
    Final(GetError),
    /// It may work the next time, the sooner if the server said when.
    Again(GetError, Option<Duration>),
    /// The URL is no longer good.
    Expired(GetError),
    /// What was there is of another content: from zero, at once.
    Other,
}

/// What a file is worked on with.
pub(crate) struct Transfer<'a> {
    pub(crate) web: &'a Web,
    pub(crate) hub: &'a Hub,
    pub(crate) source: Source,
    pub(crate) promise: Promise,
    /// Whether the part's tag has to be that of the answer's ETag, as for a URL that says nothing of the content.
    pub(crate) tagged: bool,
    pub(crate) bar: &'a Bar,
    pub(crate) restarts: u32,
}

impl Transfer<'_> {
    /// Brings the part to its end and checks it. A part that fails the check is discarded.
    pub(crate) async fn run(mut self, mut part: Part) -> Result<(Part, Got), GetError> {
        let mut got = Got { resumed: part.len(), ..Got::default() };
        self.bar.had(part.len());
        let before = self.web.brought(self.url());
        self.take_stored(&mut part, &mut got).await;
        loop {
            if let Err(error) = self.fill(&mut part, &mut got).await {
                if matches!(error, GetError::Wrong { .. }) {
                    part.discard();
                }
                return Err(error);
            }
            let after = before.and_then(|_| self.web.brought(self.url()));
            got.from = before
                .zip(after)
                .filter(|_| matches!(got.via, Some(Via::Node | Via::Store)))
                .map(|(before, after)| From::between(before, after, got.received));
            match (self.verdict(&part), got.resumed) {
                (Ok(()), _) => return Ok((part, got)),
                (Err(error), 0) => {
                    part.discard();
                    return Err(error);
                }
                // What an earlier run left may be the wrong part of it.
                (Err(_), _) => {
                    got.resumed = 0;
                    self.restart(&mut part)?;
                }
            }
        }
    }

    /// What has a hash for a name may lie in the store of this machine's node.
    async fn take_stored(&self, part: &mut Part, got: &mut Got) {
        let (Some(sha256), Some(size), 0) = (self.promise.sha256, self.promise.size, part.len()) else { return };
        let (url, lines) = match &self.source {
            Source::Hub { at, .. } if self.web.is_hub(&at.url) => return,
            Source::Hub { at, .. } => (&at.url, Lines::new()),
            Source::Url { url, lines } => (url, lines.clone()),
        };
        if taken::take(self.web, url, &lines, (sha256, size), part, self.bar).await {
            (got.via, got.received) = (Some(Via::Store), size);
        }
    }

    /// Asks until everything is there, or too often without a new byte.
    async fn fill(&mut self, part: &mut Part, got: &mut Got) -> Result<(), GetError> {
        let backoff = Backoff::default();
        let mut jitter = Jitter::new(std::process::id().into());
        let mut failures = 0;
        loop {
            let before = part.len();
            let (error, advice) = match self.attempt(part, got).await {
                Ok(()) => return Ok(()),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Other) => {
                    got.resumed = 0;
                    self.note_restart()?;
                    continue;
                }
                Err(Failed::Expired(error)) => match &self.source {
                    Source::Hub { .. } => (self.renew().await.err().unwrap_or(error), None),
                    Source::Url { .. } => return Err(error),
                },
                Err(Failed::Again(error, advice)) => (error, advice),
            };
            failures = if part.len() > before { 1 } else { failures + 1 };
            match backoff.delay(failures, advice, &mut jitter) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        }
    }

    async fn attempt(&mut self, part: &mut Part, got: &mut Got) -> Result<(), Failed> {
        if self.promise.size.is_some_and(|size| part.len() > size) {
            self.restart(part).map_err(Failed::Final)?;
            got.resumed = 0;
        }
        if self.promise.size == Some(part.len()) {
            return Ok(());
        }
        let from = part.len();
        let reply = self.ask(from).await?;
        got.via = Some(reply.via);
        let Some(total) = self.accept(&reply, part, from)? else {
            return Err(self.refused(reply, part).await);
        };
        let whole = total.or(self.promise.size);
        whole.iter().for_each(|&whole| self.bar.expect(whole));
        self.read(reply, part, got, whole).await
    }

    /// One request, redirects followed.
    async fn ask(&self, from: u64) -> Result<Reply, Failed> {
        let (mut url, mut lines) = match &self.source {
            Source::Hub { at, .. } if self.web.is_hub(&at.url) => (at.url.clone(), self.hub.lines()),
            Source::Hub { at, .. } => (at.url.clone(), Lines::new()),
            Source::Url { url, lines } => (url.clone(), lines.clone()),
        };
        let what = label(&url);
        for _ in 0..=REDIRECTS {
            let mut all = lines.clone();
            if from > 0 {
                all.push(("range".to_owned(), format!("bytes={from}-").into_bytes()));
            }
            let reply = self.web.bytes(&url, all, !lines.is_empty()).await.map_err(classed)?;
            let Some(next) = redirect(&url, reply.status, &reply.headers) else { return Ok(reply) };
            if url.scheme() == "https" && next.scheme() != "https" {
                let why = "redirected from https to another scheme".to_owned();
                return Err(Failed::Final(GetError::Answer { what, why }));
            }
            if (next.host_str(), next.port_or_known_default()) != (url.host_str(), url.port_or_known_default()) {
                lines.clear();
            }
            url = next;
        }
        Err(Failed::Final(GetError::Answer { what, why: "too many redirects".to_owned() }))
    }

    /// Makes the part ready for the answer's body. The length of the whole, where it is told; `None`: a refusal.
    fn accept(&mut self, reply: &Reply, part: &mut Part, from: u64) -> Result<Option<Option<u64>>, Failed> {
        let wrong = |why: String| GetError::Answer { what: self.what(), why };
        if let Some(coding) = reply.header(header::CONTENT_ENCODING).filter(|coding| *coding != "identity") {
            return Err(Failed::Final(wrong(format!("comes encoded ({coding}) although that was not asked for"))));
        }
        let total = match reply.status {
            200 => reply.header(header::CONTENT_LENGTH).and_then(|text| decimal(text.as_bytes())),
            206 => {
                let told = reply.header(header::CONTENT_RANGE).and_then(|text| ContentRange::parse(text.as_bytes()));
                let right = told.filter(|told| told.range.as_ref().is_some_and(|range| range.start == from));
                right.ok_or_else(|| Failed::Again(wrong("206 with another range".to_owned()), None))?.total
            }
            _ => return Ok(None),
        };
        if let (Some(total), Some(size)) = (total, self.promise.size)
            && total != size
        {
            return Err(Failed::Final(wrong(format!("has {total} bytes there, and {size} were promised"))));
        }
        if self.tagged && !part.adopt(self.tag(reply)).map_err(Failed::Final)? {
            self.bar.restart();
            if reply.status == 206 {
                return Err(Failed::Other);
            }
        } else if reply.status == 200 && part.len() > 0 {
            self.restart(part).map_err(Failed::Final)?;
        }
        Ok(Some(total))
    }

    async fn read(&self, mut reply: Reply, part: &mut Part, got: &mut Got, whole: Option<u64>) -> Result<(), Failed> {
        while let Some(data) = reply.chunk().await.map_err(classed)? {
            part.write(&data).map_err(Failed::Final)?;
            got.received += data.len() as u64;
            self.bar.add(data.len() as u64);
            if whole.is_some_and(|whole| part.len() > whole) {
                let why = "more bytes than announced".to_owned();
                return Err(Failed::Final(GetError::Answer { what: self.what(), why }));
            }
        }
        match whole {
            Some(whole) if part.len() < whole => {
                let why = format!("broken off after {} of {whole} bytes", part.len());
                Err(Failed::Again(GetError::Answer { what: self.what(), why }, None))
            }
            _ => Ok(()),
        }
    }

    /// What an answer without the file's bytes means.
    async fn refused(&mut self, reply: Reply, part: &mut Part) -> Failed {
        let (status, via) = (reply.status, reply.via);
        let after = reply.header(header::RETRY_AFTER).and_then(|text| decimal(text.trim().as_bytes()));
        let error = reply.refusal(&self.what()).await;
        // 416: more is here than the file has. 502 by a node: earlier bytes of it were wrong, and it sends no parts.
        let anew = status == 416 || status == 502 && via == Via::Node;
        if anew && part.len() > 0 {
            // Why it was to begin anew says more than that it was so too often.
            return match self.restart(part) {
                Err(GetError::Answer { .. }) => Failed::Final(error),
                Err(other) => Failed::Final(other),
                Ok(()) => Failed::Again(error, None),
            };
        }
        match classify_status(status, after.map(Duration::from_secs)) {
            Class::Credentials => Failed::Expired(error),
            Class::Transient { after, .. } => Failed::Again(error, after),
            _ => Failed::Final(error),
        }
    }

    /// Asks the Hub for a new URL.
    async fn renew(&mut self) -> Result<(), GetError> {
        if let Source::Hub { reference, commit, path, at } = &mut self.source {
            *at = self.hub.locate(self.web, reference, commit, path).await?;
        }
        Ok(())
    }

    fn verdict(&self, part: &Part) -> Result<(), GetError> {
        let (Some(wanted), Some(got)) = (self.promise.sha256, part.digest()) else { return Ok(()) };
        match got.as_ref() == wanted {
            true => Ok(()),
            false => Err(GetError::Digest { what: self.what(), wanted: hex(&wanted), got: hex(got.as_ref()) }),
        }
    }

    fn restart(&mut self, part: &mut Part) -> Result<(), GetError> {
        self.note_restart()?;
        self.bar.restart();
        part.restart()
    }

    fn note_restart(&mut self) -> Result<(), GetError> {
        self.restarts += 1;
        match self.restarts > RESTARTS {
            true => Err(GetError::Answer { what: self.what(), why: "had to be begun anew too often".to_owned() }),
            false => Ok(()),
        }
    }

    fn url(&self) -> &Url {
        match &self.source {
            Source::Hub { at, .. } => &at.url,
            Source::Url { url, .. } => url,
        }
    }

    fn what(&self) -> String {
        match &self.source {
            Source::Hub { reference, path, .. } => format!("{}/{path}", reference.page()),
            Source::Url { url, .. } => label(url),
        }
    }

    /// Which content of the URL an answer is of; none without a strong ETag.
    fn tag(&self, reply: &Reply) -> Option<String> {
        let etag = reply.header(header::ETAG).filter(|etag| !etag.starts_with("W/"))?;
        let Source::Url { url, .. } = &self.source else { return None };
        Some(tag(&format!("{} {etag}", id::label(url))))
    }
}

impl From {
    /// Of `received` bytes, what is not new to the node was in its store.
    fn between(before: (u64, u64), after: (u64, u64), received: u64) -> Self {
        let origin = after.0.saturating_sub(before.0).min(received);
        let peers = after.1.saturating_sub(before.1).min(received - origin);
        Self { origin, peers, store: received - origin - peers }
    }
}

/// 16 digits that stand for a content.
pub(crate) fn tag(identity: &str) -> String {
    hex(&digest(&SHA256, identity.as_bytes()).as_ref()[..8])
}

/// Whether a request without an answer may be made again.
fn classed(error: GetError) -> Failed {
    match &error {
        GetError::Node { .. } => Failed::Again(error, None),
        GetError::Origin(origin) if origin.class().is_transient() => Failed::Again(error, None),
        _ => Failed::Final(error),
    }
}
