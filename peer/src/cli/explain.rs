//! `pondhawk explain`: the rule, the task, what would happen, and what a running node holds of it.

use clap::Args;
use serde::Serialize;
use url::Url;

use super::{CliError, Node, Settings, client, human};
use crate::{
    admin,
    authorize::PublicRule,
    config::{Config, Period},
    http::{
        mirror::rewrite::HubFile,
        rules::{Front, Treatment},
    },
    store::Priority,
    task::{Filter, Identity, Rules, id},
};

/// The command's arguments.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// As a client asks for it, with its query
    url: Url,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    node: Node,
}

/// What would happen to a GET of the URL. Holds no query, so no signature.
#[derive(Debug, Serialize)]
struct Explanation {
    asked: String,
    rule: String,
    caught: bool,
    connect: &'static str,
    kept: bool,
    name: Option<String>,
    task: Option<String>,
    verified: &'static str,
    consent: String,
    room: String,
    held: String,
}

impl Explain {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let config = self.settings.load()?.config;
        let mut explanation = explain(&self.url, &config).map_err(CliError::Task)?;
        if let Some(task) = &explanation.task {
            let known = client::get::<Vec<admin::Task>>(&self.node.place(), "/v1/tasks");
            explanation.held = known.map_or_else(|error| format!("not known: {error}"), |tasks| held(task, &tasks));
        }
        Ok(if self.json { super::json(&explanation) } else { explanation.table() })
    }
}

fn explain(url: &Url, config: &Config) -> Result<Explanation, String> {
    let host = url.host_str().ok_or("the URL has no host")?;
    let front = Front::new(config).map_err(|error| format!("{}: {error}", error.key()))?;
    let served = front.serves(host);
    let treatment = front.treat(url.clone());
    let rules = Rules {
        content_hosts: config.intercept.hosts.clone(),
        filter: treatment.filter.clone().unwrap_or(every_filter(config)?),
        ..Rules::default()
    };
    // The mirror keeps the Hub's own small files by their commit.
    let hubs = front.hub().and_then(Url::host_str) == Some(host) && HubFile::of(url).is_some();
    let kept = treatment.store || hubs;
    let identity = Identity::of(&treatment.url, &rules);
    let port = url.port_or_known_default().unwrap_or(0);
    Ok(Explanation {
        asked: format!("{}://{}", treatment.url.scheme(), id::label(&treatment.url)),
        rule: rule(&treatment, config, served, hubs),
        caught: served && port == 443,
        connect: match (served && port == 443, front.allows(host, port)) {
            (true, _) => "terminated, so that files are shared",
            (false, true) => "a tunnel, untouched",
            (false, false) => "refused: proxy.allow and proxy.ports",
        },
        kept,
        name: kept.then(|| name(&identity)),
        task: identity.task_id(None).filter(|_| kept).map(|id| id.to_string()),
        verified: match &identity {
            Identity::ContentSha256(_) => "against the SHA-256 in its path",
            Identity::Xorb { .. } => "as a xorb's chunks",
            Identity::XetFile(_) | Identity::Named(_) => "by its pieces' BLAKE3 between nodes alone",
        },
        consent: consent(&treatment, config),
        room: room(&treatment),
        held: "not known before the origin's answer".to_owned(),
    })
}

/// When the file goes.
fn room(treatment: &Treatment) -> String {
    let order = match treatment.priority {
        Priority::Low => "before others",
        Priority::Normal => "least recently used first",
        Priority::High => "after others",
    };
    let keep = treatment.keep.map(|keep| format!(", and {} after it came at the latest", Period(keep)));
    format!("gives way {order} when room is needed{}", keep.unwrap_or_default())
}

fn held(id: &str, tasks: &[admin::Task]) -> String {
    let Some(task) = tasks.iter().find(|task| task.id == id) else { return "nothing by the running node".to_owned() };
    let pinned = if task.pinned { ", pinned" } else { "" };
    let (here, all, verdict) = (human::size(task.held_bytes), human::size(task.bytes), &task.verdict);
    format!("{here} of {all}, {verdict}{pinned}")
}

fn every_filter(config: &Config) -> Result<Filter, String> {
    Filter::default().and(&config.filter.drop_params).map_err(|error| error.to_string())
}

fn rule(treatment: &Treatment, config: &Config, served: bool, hubs: bool) -> String {
    match treatment.rule {
        Some(number) => format!("rule {number}: {}", config.rules[number - 1].pattern),
        None if served => "none: one of intercept.hosts, so kept and asked for by https".to_owned(),
        None if hubs => "none: the mirror keeps the Hub's small files by their commit".to_owned(),
        None => "none: passed through".to_owned(),
    }
}

fn name(identity: &Identity) -> String {
    match identity {
        Identity::ContentSha256(_) => "the SHA-256 in its path, on whichever host".to_owned(),
        Identity::Xorb { signed: Some((first, last)), .. } => format!("the xorb's hash and bytes {first}-{last}"),
        Identity::Xorb { signed: None, .. } => "the xorb's hash".to_owned(),
        Identity::XetFile(_) => "the xet hash in its path".to_owned(),
        Identity::Named(name) => format!("{} and the origin's strong ETag", unsigned(name)),
    }
}

/// Parameters that count may be secrets all the same: their names alone are shown.
fn unsigned(name: &str) -> String {
    let Some((path, query)) = name.split_once('?') else { return name.to_owned() };
    let names: Vec<_> = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default()).collect();
    format!("{path} with {}", names.join(", "))
}

fn consent(treatment: &Treatment, config: &Config) -> String {
    let public = |text: &String| text.parse::<PublicRule>().is_ok_and(|rule| rule.covers(&treatment.url));
    match treatment.public || config.authorize.public.iter().any(public) {
        true => "none: anyone may have what is kept".to_owned(),
        false => format!(
            "the origin is asked with the client's own URL and headers, and its yes remembered for {}",
            Period(config.authorize.cap.0)
        ),
    }
}

impl Explanation {
    fn table(&self) -> String {
        let yes = |yes| if yes { "yes" } else { "no" };
        let rows = [
            ("asked", self.asked.as_str()),
            ("rule", &self.rule),
            ("caught", if self.caught { "yes, where eBPF is on" } else { "no" }),
            ("CONNECT", self.connect),
            ("kept", yes(self.kept)),
            ("name", self.name.as_deref().unwrap_or("-")),
            ("task", self.task.as_deref().unwrap_or(if self.kept { "known with the ETag" } else { "-" })),
            ("verified", if self.kept { self.verified } else { "-" }),
            ("consent", &self.consent),
            ("room", if self.kept { &self.room } else { "-" }),
            ("held", if self.kept { &self.held } else { "-" }),
        ];
        rows.iter().map(|(key, value)| format!("{key:9} {value}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(url: &str, yaml: &str) -> Explanation {
        let config = Config::parse(yaml, std::path::Path::new("test")).unwrap();
        explain(&Url::parse(url).unwrap(), &config).unwrap()
    }

    #[test]
    fn an_lfs_file_is_named_by_its_hash_and_no_signature_is_shown() {
        let (repo, sha) = ("a".repeat(64), "b".repeat(64));
        let url = format!("https://cdn-lfs.hf.co/repos/ab/cd/{repo}/{sha}?Signature=secret&Expires=1");
        let told = explained(&url, "{}");
        assert!(told.kept && told.caught && told.task.is_some() && !told.table().contains("secret"));
        let plain = explained("https://cdn-lfs.hf.co/x?token=secret&v=2", "{}");
        assert!(plain.task.is_none() && !plain.table().contains("secret") && plain.table().contains("token, v"));
    }

    #[test]
    fn the_rule_and_its_consequences_are_named() {
        let yaml = "rules: [{match: registry.example, store: true, public: true, https: true, keep: 7d, priority: low}]\n\
             proxy: {allow: [a.example]}";
        let told = explained("http://registry.example/blob", yaml);
        assert!(
            told.rule.starts_with("rule 1") && told.asked.starts_with("https://") && told.consent.starts_with("none")
        );
        assert_eq!(told.room, "gives way before others when room is needed, and 7d after it came at the latest");
        let other = explained("https://other.example/", yaml);
        assert!(!other.kept && other.connect.starts_with("refused"));
        let hub = explained("https://huggingface.co/o/m/resolve/main/config.json", "{}");
        assert!(hub.kept && !hub.caught);
    }
}
