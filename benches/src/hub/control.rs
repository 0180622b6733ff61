//! `/_hub/...`: statistics, limits and faults for other processes, as JSON.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, StatusCode, body::Incoming};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Content, Fault, Rates, query,
    routes::{self, Answer, Context},
};

const MAX_BODY: usize = 8 << 20;

/// `POST /_hub/files`: generated content.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSeeded {
    repo: String,
    #[serde(default = "main")]
    revision: String,
    path: String,
    len: u64,
    #[serde(default)]
    seed: u64,
}

fn main() -> String {
    "main".to_owned()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Fault>),
    One(Fault),
}

pub(super) async fn answer(context: &Context, method: &Method, command: &str, body: Incoming) -> Answer {
    let body = match read_body(body).await {
        Ok(body) => body,
        Err(message) => return routes::text(StatusCode::PAYLOAD_TOO_LARGE, &message),
    };
    match carry_out(context, method, command, &body) {
        Ok(value) => routes::json(StatusCode::OK, &value),
        Err(message) => routes::json(StatusCode::BAD_REQUEST, &json!({ "error": message })),
    }
}

fn carry_out(context: &Context, method: &Method, command: &str, body: &[u8]) -> Result<Value, String> {
    let shared = &context.shared;
    match (method.as_str(), command) {
        ("GET", "stats") => Ok(json!(shared.stats.snapshot())),
        ("GET", "faults") => Ok(json!(shared.faults.list())),
        ("GET", "limits") => Ok(json!(shared.limits.get())),
        ("GET", "objects") => Ok(objects(context)),
        ("GET", "ca") => Ok(json!({ "pem": shared.ca_pem })),
        ("POST", "reset") => {
            shared.stats.reset();
            Ok(json!({}))
        }
        ("POST", "limits") => {
            shared.limits.set(parse::<Rates>(body)?);
            Ok(json!(shared.limits.get()))
        }
        ("POST", "faults") => {
            match parse(body)? {
                OneOrMany::Many(faults) => faults.into_iter().for_each(|fault| shared.faults.add(fault)),
                OneOrMany::One(fault) => shared.faults.add(fault),
            }
            Ok(json!(shared.faults.list()))
        }
        ("DELETE", "faults") => {
            shared.faults.clear();
            Ok(json!([]))
        }
        ("POST", "files") => add_file(context, &parse(body)?),
        _ => Err(format!("no command {method} {command}; see benches/src/hub/control.rs")),
    }
}

fn add_file(context: &Context, file: &NewSeeded) -> Result<Value, String> {
    let content = Content::seeded(file.len, file.seed);
    let added = context.shared.add_file(&file.repo, &file.revision, &file.path, content, None);
    added.map(|sha256| json!({ "sha256": sha256 })).map_err(|error| error.to_string())
}

/// Every object with a fresh URL where it has one; `?label=` picks one.
fn objects(context: &Context) -> Value {
    let only = query::get(&context.query, "label");
    let now = std::time::SystemTime::now();
    let catalogue = context.shared.catalogue();
    let objects = catalogue.objects().filter(|object| only.as_ref().is_none_or(|label| *label == object.label));
    objects
        .map(|object| {
            let url = context.shared.signed_url(object, now);
            json!({ "label": object.label, "size": object.len(), "sha256": object.sha256, "url": url })
        })
        .collect()
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// The whole body, if it is not over 8 MiB.
pub(super) async fn read_body(body: Incoming) -> Result<Bytes, String> {
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| error.to_string())?;
    Ok(body.to_bytes())
}
