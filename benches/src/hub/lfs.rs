//! The Git LFS batch API (git-lfs docs/api/batch.md), download only.

use std::time::SystemTime;

use hyper::{Response, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    control::read_body,
    resolve::permitted,
    routes::{Answer, Context, finish, full},
};

#[derive(Deserialize)]
struct Batch {
    operation: String,
    objects: Vec<Wanted>,
}

#[derive(Deserialize)]
struct Wanted {
    oid: String,
    size: u64,
}

/// `POST /{repo}.git/info/lfs/objects/batch`.
pub(super) async fn batch(context: &Context, body: Incoming) -> Answer {
    let batch = match read_body(body).await.and_then(|body| serde_json::from_slice(&body).map_err(|e| e.to_string())) {
        Ok(batch) => batch,
        Err(message) => return reply(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "message": message })),
    };
    download(context, &batch)
}

fn download(context: &Context, batch: &Batch) -> Answer {
    if batch.operation != "download" {
        return reply(StatusCode::FORBIDDEN, &json!({ "message": "this hub is read-only" }));
    }
    let name = context.path.trim_start_matches('/').trim_end_matches("/info/lfs/objects/batch");
    let name = name.strip_suffix(".git").unwrap_or(name);
    let catalogue = context.shared.catalogue();
    let repo = match permitted(context, catalogue.repo(name)) {
        Ok(repo) => repo,
        Err(refusal) => return reply(refusal.status(), &json!({ "message": "Repository not found" })),
    };
    let objects: Vec<Value> = batch.objects.iter().map(|wanted| action(context, repo, wanted)).collect();
    reply(StatusCode::OK, &json!({ "transfer": "basic", "hash_algo": "sha256", "objects": objects }))
}

fn action(context: &Context, repo: &super::catalogue::Repo, wanted: &Wanted) -> Value {
    match repo.by_sha256(&wanted.oid) {
        Some(object) if object.len() == wanted.size => {
            let href = context.shared.signed_url(object, SystemTime::now());
            let lifetime = context.shared.url_lifetime.as_secs();
            json!({
                "oid": wanted.oid, "size": wanted.size, "authenticated": true,
                "actions": { "download": { "href": href, "expires_in": lifetime } },
            })
        }
        _ => json!({
            "oid": wanted.oid, "size": wanted.size,
            "error": { "code": 404, "message": "Object does not exist" },
        }),
    }
}

fn reply(status: StatusCode, value: &Value) -> Answer {
    let response = Response::builder().status(status).header("content-type", "application/vnd.git-lfs+json");
    finish(response, full(value.to_string()))
}
