//! `/{repo}/resolve/{revision}/{path}`: small files from the Hub itself, large ones by a redirect to the CDN.

use std::{sync::Arc, time::SystemTime};

use hyper::{Response, StatusCode, header::LOCATION, http::response::Builder};

use super::{
    Shared,
    catalogue::{Access, Home, Object, Repo},
    cdn,
    faults::{Ask, FaultKind, Place},
    routes::{Answer, Context, finish, full, text},
    xet,
};

/// None: not a resolve path.
pub(super) fn answer(context: &Context) -> Option<Answer> {
    let (repo, rest) = context.path.strip_prefix('/')?.split_once("/resolve/")?;
    let (revision, path) = split_revision(rest)?;
    Some(resolve(context, repo, revision, path).unwrap_or_else(|refusal| *refusal))
}

/// Revision and path; the Hub's own references have slashes: `refs/pr/1`, `refs/convert/parquet`.
fn split_revision(rest: &str) -> Option<(&str, &str)> {
    let is_reference = ["refs/pr/", "refs/convert/"].iter().any(|prefix| rest.starts_with(prefix));
    let (end, _) = rest.match_indices('/').nth(if is_reference { 2 } else { 0 })?;
    Some((&rest[..end], &rest[end + 1..]))
}

/// Refusals are boxed: a response is large.
type Refused<T> = Result<T, Box<Answer>>;

fn resolve(context: &Context, name: &str, revision: &str, path: &str) -> Refused<Answer> {
    let (commit, object) = {
        let catalogue = context.shared.catalogue();
        let repo = permitted(context, catalogue.repo(name))?;
        let revision = repo.revision(revision).ok_or_else(|| refusal(404, "RevisionNotFound", "no such revision"))?;
        let object = revision.files.get(path).ok_or_else(|| refusal(404, "EntryNotFound", "no such file"))?;
        (revision.commit.clone(), Arc::clone(object))
    };
    if let Some(info) = context.shared.manners.file_info(context, &object) {
        return Ok(info);
    }
    let mut response = Response::builder();
    if let Some(file) = &object.xet {
        response = xet_headers(&context.shared, response, name, &commit, &file.name);
    }
    let response = response.header("x-repo-commit", commit).header("access-control-allow-origin", "*");
    if matches!(object.home, Home::Hub) {
        let response = response.header("content-disposition", disposition(&object.name));
        let answer = cdn::object_answer(context, &object, response);
        cdn::count(context, &object, &answer);
        return Ok(answer);
    }
    let ask = Ask { place: Place::Resolve, label: &object.label, start: 0, end: object.len(), redirected: false };
    for fault in context.shared.faults.take(&ask) {
        match fault {
            FaultKind::Status503 { retry_after } => return Ok(cdn::unavailable(retry_after)),
            FaultKind::Forbidden => return Ok(cdn::access_denied("Access denied")),
            _ => {}
        }
    }
    context.shared.stats.resolved(&object.label);
    Ok(redirect(&context.shared, &object, response))
}

/// Tells hf_xet the file's hash, and where to ask for a token and for what makes the file.
fn xet_headers(shared: &Shared, response: Builder, repo: &str, commit: &str, hash: &str) -> Builder {
    let kind = if repo.matches('/').count() == 1 { "models/" } else { "" };
    let auth = format!("{}/api/{kind}{repo}/xet-read-token/{commit}", shared.base(&shared.names.hub));
    let parts = format!("{}/v1/reconstructions/{hash}", shared.base(xet::CAS_HOST));
    let link = format!("<{auth}>; rel=\"xet-auth\", <{parts}>; rel=\"xet-reconstruction-info\"");
    response.header("x-xet-hash", hash).header("link", link)
}

fn redirect(shared: &Shared, object: &Object, response: Builder) -> Answer {
    let location = shared.signed_url(object, SystemTime::now());
    let response = response
        .status(StatusCode::FOUND)
        .header(LOCATION, location)
        .header("x-linked-etag", format!("\"{}\"", object.sha256))
        .header("x-linked-size", object.len())
        .header("etag", format!("\"{}\"", object.sha256))
        .header("accept-ranges", "bytes")
        .header("vary", "Origin, Accept")
        .header("content-type", "text/plain; charset=utf-8");
    finish(response, full("Found. Redirecting to the CDN"))
}

/// Checks that the request may see the repository.
pub(super) fn permitted<'a>(context: &Context, repo: Option<&'a Repo>) -> Refused<&'a Repo> {
    let repo = repo.ok_or_else(|| refusal(401, "RepoNotFound", "Repository not found"))?;
    match (&repo.access, context.bearer()) {
        (Access::Public, _) => Ok(repo),
        (Access::Private(token) | Access::Gated(token), Some(given)) if given == token => Ok(repo),
        (Access::Private(_), _) => Err(refusal(401, "RepoNotFound", "Repository not found")),
        (Access::Gated(_), None) => Err(refusal(401, "GatedRepo", "Access to this repository is restricted")),
        (Access::Gated(_), Some(_)) => Err(refusal(403, "GatedRepo", "You are not in the authorized list")),
    }
}

pub(super) fn refusal(status: u16, code: &str, message: &str) -> Box<Answer> {
    let status = StatusCode::from_u16(status).expect("written here");
    let mut answer = text(status, message);
    let headers = answer.headers_mut();
    headers.insert("x-error-code", code.parse().expect("written here"));
    headers.insert("x-error-message", message.parse().expect("written here"));
    Box::new(answer)
}

/// As the Hub words it; characters outside ASCII and quotes are left to the extended form.
pub(super) fn disposition(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    let plain: String = file.chars().map(|c| if c.is_ascii_graphic() && c != '"' { c } else { '_' }).collect();
    format!("inline; filename*=UTF-8''{}; filename=\"{plain}\";", super::query::encode(file))
}
