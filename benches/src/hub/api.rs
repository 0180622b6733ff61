//! `/api/models/...`: what snapshot downloads and file systems ask before they download.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::{
    catalogue::{Home, Object, Repo, Revision},
    query,
    resolve::{permitted, refusal},
    routes::{self, Answer, Context},
    xet,
};

/// None: not a path of the API.
pub(super) fn answer(context: &Context) -> Option<Answer> {
    let rest = context.path.strip_prefix("/api/")?;
    let (kind, rest) = rest.split_once('/')?;
    let parts: Vec<&str> = rest.splitn(5, '/').collect();
    let &[owner, name, ref rest @ ..] = parts.as_slice() else { return None };
    let repo = match kind {
        "models" => format!("{owner}/{name}"),
        _ => format!("{kind}/{owner}/{name}"),
    };
    let catalogue = context.shared.catalogue();
    let found = match permitted(context, catalogue.repo(&repo)) {
        Ok(found) => found,
        Err(refusal) => return Some(*refusal),
    };
    match rest {
        ["xet-read-token", revision] => Some(match found.revision(revision) {
            Some(_) => xet::token(context, &repo),
            None => *no_revision(),
        }),
        [] => Some(info(found, &repo, "main")),
        ["revision", revision] => Some(info(found, &repo, revision)),
        ["tree", revision] => Some(tree(context, found, revision, "")),
        ["tree", revision, folder] => Some(tree(context, found, revision, folder)),
        _ => None,
    }
}

fn info(repo: &Repo, name: &str, wanted: &str) -> Answer {
    let Some(revision) = repo.revision(wanted) else { return *no_revision() };
    let files: Vec<Value> = revision.files.iter().map(|(path, object)| sibling(path, object)).collect();
    let private = !matches!(repo.access, super::Access::Public);
    let body = json!({
        "_id": &revision.commit[..24], "id": name, "modelId": name, "author": name.split('/').next(),
        "sha": revision.commit, "lastModified": "2024-05-14T09:00:00.000Z", "createdAt": "2024-05-14T09:00:00.000Z",
        "private": private, "gated": false, "disabled": false, "downloads": 0, "likes": 0, "tags": [],
        "siblings": files,
    });
    routes::json(StatusCode::OK, &body)
}

fn sibling(path: &str, object: &Object) -> Value {
    let mut file = json!({ "rfilename": path, "size": object.len(), "blobId": &object.sha256[..40] });
    if !matches!(object.home, Home::Hub) {
        file["lfs"] = json!({ "sha256": object.sha256, "size": object.len(), "pointerSize": 135 });
    }
    file
}

fn tree(context: &Context, repo: &Repo, wanted: &str, folder: &str) -> Answer {
    let Some(revision) = repo.revision(wanted) else { return *no_revision() };
    let recursive = query::get(&context.query, "recursive").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let rules = &context.shared.api_rules;
    let folder = if rules.lists_everything() { "" } else { folder };
    let entries = entries(revision, folder, recursive);
    match rules.page_length() {
        Some(length) => page(context, entries, length),
        None => routes::json(StatusCode::OK, &Value::Array(entries)),
    }
}

/// Some of the entries, from the query's `cursor` on, and where the rest is.
fn page(context: &Context, mut entries: Vec<Value>, length: usize) -> Answer {
    let from = query::get(&context.query, "cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
    let end = (from + length).min(entries.len());
    let more = end < entries.len();
    entries.truncate(end);
    let mut answer = routes::json(StatusCode::OK, &entries.into_iter().skip(from).collect());
    if more {
        let host = context.header("host").unwrap_or_default();
        let next = format!("<https://{host}{}?recursive=true&cursor={end}>; rel=\"next\"", context.raw_path);
        answer.headers_mut().insert("link", next.parse().expect("a URL is a header's value"));
    }
    answer
}

/// Files and folders below `folder`; without `recursive` only its own.
fn entries(revision: &Revision, folder: &str, recursive: bool) -> Vec<Value> {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut entries = Vec::new();
    let mut last_folder = "";
    for (path, object) in &revision.files {
        let Some(rest) = path.strip_prefix(&prefix) else { continue };
        if let Some((child, _)) = rest.split_once('/') {
            if child != last_folder {
                last_folder = child;
                let path = format!("{prefix}{child}");
                entries.push(json!({ "type": "directory", "oid": &object.sha256[..40], "size": 0, "path": path }));
            }
            if !recursive {
                continue;
            }
        }
        entries.push(file_entry(path, object));
    }
    entries
}

fn file_entry(path: &str, object: &Object) -> Value {
    let mut entry = json!({ "type": "file", "oid": &object.sha256[..40], "size": object.len(), "path": path });
    if !matches!(object.home, Home::Hub) {
        entry["lfs"] = json!({ "oid": object.sha256, "size": object.len(), "pointerSize": 135 });
    }
    entry
}

/// `POST /api/{kind}/{owner}/{name}/paths-info/{revision}`: a form with the field `paths` repeated. None: another path.
pub(super) fn paths_info(context: &Context, form: &str) -> Option<Answer> {
    let (repo, revision) = context.path.strip_prefix("/api/")?.split_once("/paths-info/")?;
    let repo = repo.strip_prefix("models/").unwrap_or(repo);
    let catalogue = context.shared.catalogue();
    let revision = match permitted(context, catalogue.repo(repo)) {
        Ok(repo) => repo.revision(revision),
        Err(refusal) => return Some(*refusal),
    };
    let Some(revision) = revision else { return Some(*no_revision()) };
    let wanted = form.split('&').filter_map(|field| field.strip_prefix("paths="));
    let found = wanted.filter_map(|path| {
        let path = query::decode(&path.replace('+', " "));
        let object = revision.files.get(&path).map(|object| file_entry(&path, object));
        object.or_else(|| folder_entry(revision, &path))
    });
    Some(routes::json(StatusCode::OK, &found.collect()))
}

fn folder_entry(revision: &Revision, path: &str) -> Option<Value> {
    let prefix = format!("{path}/");
    let (_, first) = revision.files.iter().find(|(file, _)| file.starts_with(&prefix))?;
    Some(json!({ "type": "directory", "oid": &first.sha256[..40], "size": 0, "path": path }))
}

fn no_revision() -> Box<Answer> {
    refusal(404, "RevisionNotFound", "Invalid rev id")
}
