//! dfdaemon's configuration in our terms, from its Go and its Rust generation, and from the values of its chart [pure].
//!
//! What has an equivalent is taken; every other key that is set is named, with the reason where there is one to give.

mod source;

use serde_json::{Map, Value, json};

use super::{Config, Size};
use source::{Candidate, Contents};

/// A document that is none of dfdaemon's.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// No YAML.
    #[error("{0}")]
    Document(String),
    /// No mapping.
    #[error("is no configuration of dfdaemon: it has no keys")]
    Empty,
    /// None under this name.
    #[error("has no configuration {part}; there are: {known}")]
    Part {
        /// What was asked for.
        part: String,
        /// What there is.
        known: String,
    },
}

/// What came of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// Our keys that differ from their defaults.
    pub values: Value,
    /// What is different from before, or to be done by hand.
    pub notes: Vec<String>,
    /// Keys that were set and have no equivalent.
    pub dropped: Vec<String>,
    /// Whether a note says that something was left out.
    incomplete: bool,
}

/// A file of the Hub, which rules for the Hub's own host would match.
const HUB_FILE: &str = "https://huggingface.co/owner/name/resolve/main/model.safetensors";
const HUB: &str = "huggingface.co";

/// Why a key is not taken: by its beginning.
const REASONS: [(&str, &str); 22] = [
    ("manager", "there is none"),
    ("scheduler", "set scheduler.join and scheduler.token to join a cluster"),
    ("proxy.security", "the proxy port speaks plain HTTP"),
    ("proxy.hijackHTTPS.cert", "the node has a CA of its own: `pondhawk ca`"),
    ("proxy.hijackHTTPS.key", "the node has a CA of its own: `pondhawk ca`"),
    ("proxy.server", "one port serves proxy and mirror: listen.proxy"),
    ("proxy.caCert", "the node has a CA of its own: `pondhawk ca`"),
    ("proxy.caKey", "the node has a CA of its own: `pondhawk ca`"),
    ("proxy.disableBackToSource", "a node always falls back to the origin"),
    ("proxy.readBufferSize", "limits.buffer_size is another thing"),
    ("proxy.registryMirror.enableTaskIDBasedBlobDigest", "hashes in URLs of the Hub's hosts are always used"),
    ("download", "downloads are bounded by origin.connections_per_host and limits"),
    ("upload", "pieces go by QUIC, mutual TLS: swarm"),
    ("storage.taskExpireTime", "tasks leave by quota, the used longest ago first"),
    ("gc", "tasks leave by quota, the used longest ago first"),
    ("metrics", "listen.admin has metrics, health and status"),
    ("health", "listen.admin has metrics, health and status"),
    ("stats", "listen.admin has metrics, health and status"),
    ("pprof-port", "listen.admin has profiles"),
    ("security", "the scheduler's CA issues the nodes' certificates"),
    ("backend.requestHeader", "requests reach the origin as clients send them"),
    ("objectStorage", "there is none"),
];

/// Translates the configuration of a file, or the one of several that `part` names; the others are named as left out.
///
/// # Errors
/// [`ImportError`] for what is no such document.
pub fn import(text: &str, part: Option<&str>) -> Result<Imported, ImportError> {
    let mut contents = Contents::of(text)?;
    let Candidate { keys, .. } = contents.choose(part)?;
    let others = contents.candidates.iter().filter(|other| other.keys != keys).map(|other| {
        let mut lost = Vec::new();
        leaves(&Value::Object(other.keys.clone()), "", &mut lost);
        match other.name.as_str() {
            "" => format!("another document, {} keys: put it into a file of its own", lost.len()),
            name => format!("{name}, {} keys: another configuration; --part {name} imports it", lost.len()),
        }
    });
    let mut dropped: Vec<String> = others.chain(contents.foreign.iter().cloned()).collect();
    let mut translation = Translation {
        from: Value::Object(keys),
        into: Map::new(),
        notes: Vec::new(),
        lost: Vec::new(),
        incomplete: false,
    };
    translation.host();
    translation.proxy();
    translation.destinations();
    translation.rules();
    translation.store();
    let mut left = Vec::new();
    leaves(&translation.from, "", &mut left);
    let mut all = explained(&left);
    all.append(&mut translation.lost);
    all.append(&mut dropped);
    let Translation { into, notes, incomplete, .. } = translation;
    Ok(Imported { values: Value::Object(into), notes, dropped: all, incomplete })
}

impl Imported {
    /// The document, with what it lacks above it.
    pub fn to_yaml(&self) -> String {
        let list = |title: &str, items: &[String]| {
            let lines: String = items.iter().map(|item| format!("#   {}\n", on_one_line(item))).collect();
            if items.is_empty() { lines } else { format!("# {title}\n{lines}") }
        };
        let values = match &self.values {
            Value::Object(map) if map.is_empty() => String::new(),
            values => serde_saphyr::to_string(values).expect("plain data"),
        };
        format!("{}{}{values}", list("Note:", &self.notes), list("Not taken over:", &self.dropped))
    }

    /// Whether nothing came of the document: no key differs from its default.
    pub fn is_empty(&self) -> bool {
        self.values.as_object().is_none_or(Map::is_empty)
    }

    /// Whether something that the document says is not in the values.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete || !self.dropped.is_empty()
    }

    /// Whether the values are a configuration that works.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let config: Config = serde_json::from_value(self.values.clone()).map_err(|error| error.to_string())?;
        let problems: Vec<_> = config.problems().iter().map(ToString::to_string).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

struct Translation {
    /// What has not been looked at yet.
    from: Value,
    into: Map<String, Value>,
    notes: Vec<String>,
    /// Values that were looked at and could not be translated.
    lost: Vec<String>,
    incomplete: bool,
}

impl Translation {
    /// Takes a key out; what says nothing (null, empty) counts as not there.
    fn take(&mut self, path: &str) -> Option<Value> {
        let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
        let pointer = if parent.is_empty() { String::new() } else { format!("/{}", parent.replace('.', "/")) };
        let value = self.from.pointer_mut(&pointer)?.as_object_mut()?.remove(key)?;
        (!says_nothing(&value)).then_some(value)
    }

    fn text(&mut self, path: &str) -> Option<String> {
        match self.take(path)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            other => self.lose(path, &other, "no text"),
        }
    }

    fn flag(&mut self, path: &str) -> bool {
        match self.take(path) {
            Some(Value::Bool(on)) => on,
            Some(other) => self.lose(path, &other, "neither true nor false").unwrap_or(false),
            None => false,
        }
    }

    fn list(&mut self, path: &str) -> Vec<Value> {
        match self.take(path) {
            Some(Value::Array(items)) => items,
            Some(other) => self.lose(path, &other, "no list").unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// A number of bytes as we write it; none for 0, which is dfdaemon's word for no bound.
    fn bytes(&mut self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        match size(&text) {
            Some(SizeText::Bytes(bytes)) => Some(bytes),
            Some(SizeText::Unbounded) => None,
            None => self.lose(path, &json!(text), "no size"),
        }
    }

    /// Names a value that has another form than it should.
    fn lose<T>(&mut self, path: &str, value: &Value, why: &str) -> Option<T> {
        self.lost.push(format!("{path}: {value} is {why}"));
        None
    }

    /// Names the keys of a list's item that are set and not among those that were looked at.
    fn lose_unknown(&mut self, path: &str, item: &Value, known: &[&str]) {
        let keys = item.as_object().into_iter().flatten();
        let unknown = keys.filter(|(key, value)| !known.contains(&key.as_str()) && !says_nothing(value));
        self.lost.extend(unknown.map(|(key, _)| format!("{path}: {key}")));
        if !item.is_object() {
            self.lost.push(format!("{path}: {item}"));
        }
    }

    fn set(&mut self, path: &str, value: Value) {
        match path.split_once('.') {
            Some((section, key)) => {
                let section = self.into.entry(section).or_insert_with(|| json!({}));
                section[key] = value;
            }
            None => drop(self.into.insert(path.to_owned(), value)),
        }
    }

    fn append(&mut self, path: &str, value: Value) {
        let (section, key) = path.split_once('.').unwrap_or((path, ""));
        let slot = self.into.entry(section).or_insert_with(|| if key.is_empty() { json!([]) } else { json!({}) });
        let list = if key.is_empty() { slot } else { &mut slot[key] };
        match list {
            Value::Array(items) => items.push(value),
            other => *other = json!([value]),
        }
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn host(&mut self) {
        for (theirs, ours) in [("host.idc", "idc"), ("host.location", "location")] {
            if let Some(text) = self.text(theirs) {
                let mut labels = self.into.get("swarm").map_or_else(|| json!({}), |swarm| swarm["labels"].clone());
                labels[ours] = json!(text);
                self.set("swarm.labels", labels);
            }
        }
        if let Some(name) = self.text("host.hostname") {
            self.set("swarm.name", json!(name.to_ascii_lowercase()));
        }
        if let Some(address) = self.text("host.advertiseIP").or_else(|| self.text("host.ip")) {
            self.set("swarm.address", json!(address));
        }
        if self.flag("seedPeer.enable") | self.flag("scheduler.manager.seedPeer.enable") {
            self.set("swarm.seed", json!(true));
        }
        if self.flag("verbose") {
            self.set("log.level", json!("debug"));
        }
        if let Some(level) = self.text("log.level").filter(|level| level != "info") {
            self.set("log.level", json!(level));
        }
        if let Some(rate) = self.bytes("upload.rateLimit").or_else(|| self.bytes("upload.bandwidthLimit")) {
            self.set("swarm.upload_rate", json!(rate));
        }
        if let Some(rate) = self.bytes("download.rateLimit").or_else(|| self.bytes("download.bandwidthLimit")) {
            self.set("swarm.download_rate", json!(rate));
        }
        if let Some(rate) = self.bytes("download.backToSourceBandwidthLimit") {
            self.set("origin.rate", json!(rate));
        }
    }

    fn proxy(&mut self) {
        let address = self.text("proxy.tcpListen.listen").or_else(|| self.text("proxy.server.ip"));
        let port = self.text("proxy.tcpListen.port").or_else(|| self.text("proxy.server.port"));
        if address.is_some() || port.is_some() {
            // dfdaemon listens everywhere unless it is told otherwise.
            let (address, port) = (address.unwrap_or_else(|| "0.0.0.0".into()), port.unwrap_or_else(|| "65001".into()));
            let address = if address.contains(':') { format!("[{address}]") } else { address };
            self.set("listen.proxy", json!(format!("{address}:{port}")));
            if !address.starts_with("127.") && self.from.pointer("/proxy/whiteList").is_none_or(says_nothing) {
                self.note("proxy.allow: others reach this proxy, so only intercept.hosts and rules are served; dfdaemon let them reach every host");
            }
        }
        if let Some(filter) = self.text("proxy.defaultFilter") {
            let names: Vec<_> = filter.split('&').map(str::trim).filter(|name| !name.is_empty()).collect();
            self.set("filter.drop_params", json!(names));
        }
        let user = (self.text("proxy.basicAuth.username"), self.text("proxy.basicAuth.password"));
        if let (Some(_), Some(_)) = user {
            self.set("proxy.users", json!("/etc/pondhawk/proxy-users"));
            self.note("proxy.basicAuth: write `username:password` into /etc/pondhawk/proxy-users (mode 0600)");
        }
        if self.flag("proxy.prefetch") | self.flag("download.prefetch") {
            self.set("store.prefetch", json!(true));
        }
        if let Some(most) = self.text("proxy.maxConcurrency").filter(|most| most != "0") {
            match most.parse::<u32>() {
                Ok(most) => self.set("limits.downloads", json!(most)),
                Err(_) => self.lose("proxy.maxConcurrency", &json!(most), "no number").unwrap_or(()),
            }
        }
        self.mirror();
    }

    fn mirror(&mut self) {
        let url = self.text("proxy.registryMirror.url").or_else(|| self.text("proxy.registryMirror.addr"));
        if let Some(url) = url {
            let url = url.trim_end_matches('/').to_owned();
            let hub = Config::default().intercept.hosts;
            let host = url.strip_prefix("https://").unwrap_or_default().to_owned();
            let key = match hub.iter().any(|suffix| crate::task::id::is_under(&host, suffix)) {
                true => "mirror.cdn",
                false => "mirror.hub",
            };
            self.set(key, json!(url));
        }
        let mut certificates = self.list("proxy.registryMirror.certs");
        certificates.extend(self.take("proxy.registryMirror.cert"));
        certificates.into_iter().for_each(|path| self.append("origin.extra_cas", path));
        if self.flag("proxy.registryMirror.insecure") {
            self.note(
                "registryMirror.insecure: origins' certificates are always verified; name their CA in origin.extra_cas",
            );
        }
        if self.flag("proxy.registryMirror.direct") {
            self.note("registryMirror.direct: write a rule with `store: false` for the mirror's URL");
        }
        // Both always hold here: the header is honoured, and the rules decide.
        self.take("proxy.registryMirror.dynamic");
        self.take("proxy.registryMirror.useProxies");
    }

    fn destinations(&mut self) {
        for allowed in self.list("proxy.whiteList") {
            self.lose_unknown("proxy.whiteList", &allowed, &["host", "ports", "regx"]);
            let ports = allowed["ports"].as_array().cloned().unwrap_or_default();
            match allowed["host"].as_str().filter(|host| !host.is_empty()) {
                Some(host) if ports.is_empty() => self.append("proxy.allow", json!(host)),
                Some(host) => {
                    let port = |port: &Value| port.as_str().map_or_else(|| port.to_string(), str::to_owned);
                    ports.iter().for_each(|each| self.append("proxy.allow", json!(format!("{host}:{}", port(each)))));
                }
                None if !says_nothing(&allowed["regx"]) => {
                    self.incomplete = true;
                    self.note(format!("whiteList: proxy.allow takes names, not the expression {}", allowed["regx"]));
                }
                None => {}
            }
        }
        for hijacked in self.list("proxy.hijackHTTPS.hosts") {
            self.lose_unknown("proxy.hijackHTTPS.hosts", &hijacked, &["regx", "certs", "insecure"]);
            let pattern = hijacked["regx"].as_str().unwrap_or_default();
            let name =
                pattern.trim_start_matches('^').trim_end_matches('$').trim_end_matches(":443").replace("\\.", ".");
            let name = name.trim_start_matches(".*").trim_start_matches('.').to_owned();
            if name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)) && !name.is_empty() {
                if !self.into.get("intercept").is_some_and(|section| section["hosts"].is_array()) {
                    self.set("intercept.hosts", json!(Config::default().intercept.hosts));
                }
                self.append("intercept.hosts", json!(name));
            } else if !pattern.is_empty() {
                self.incomplete = true;
                self.note(format!("hijackHTTPS: intercept.hosts takes names, not the expression {pattern}"));
            }
            let certificates = hijacked["certs"].as_array().cloned().unwrap_or_default();
            certificates.into_iter().for_each(|path| self.append("origin.extra_cas", path));
            if hijacked["insecure"] == json!(true) {
                self.note("hijackHTTPS: insecure: origins' certificates are always verified");
            }
        }
    }

    /// Both generations' rules, in their order.
    fn rules(&mut self) {
        let theirs = self.list("proxy.proxies").into_iter().chain(self.list("proxy.rules")).collect::<Vec<_>>();
        for rule in theirs {
            let known = ["regx", "regex", "direct", "useHTTPS", "useTLS", "redirect", "filteredQueryParams"];
            self.lose_unknown("rules", &rule, &known);
            let Some(pattern) = ["regx", "regex"].iter().find_map(|key| rule[*key].as_str()) else {
                self.lost.push(format!("rules: {rule} has no expression"));
                continue;
            };
            let mut ours = json!({ "match": pattern });
            if rule["direct"] == json!(true) {
                ours["store"] = json!(false);
            }
            if rule["useHTTPS"] == json!(true) || rule["useTLS"] == json!(true) {
                ours["https"] = json!(true);
            }
            match rule["redirect"].as_str().filter(|to| !to.is_empty()) {
                Some(to) if to.contains(['/', '$']) => {
                    self.incomplete = true;
                    self.note(format!("the rule {pattern} is left out: redirect takes a host, not {to}"));
                    continue;
                }
                Some(to) => ours["redirect"] = json!(to),
                None => {}
            }
            if !says_nothing(&rule["filteredQueryParams"]) {
                ours["drop_params"] = rule["filteredQueryParams"].clone();
            }
            self.append("rules", ours);
        }
        self.note_tunnels();
        if self.into.contains_key("rules") {
            self.note("rules: the first that matches decides, and what none matches is passed through, as before; the Hub's CDN is kept without one");
        }
    }

    /// Rules that are meant for the Hub's own host see nothing of it where clients use the node as their proxy.
    fn note_tunnels(&mut self) {
        let hosts = self.into.get("intercept").and_then(|section| section["hosts"].as_array().cloned());
        let hosts = hosts.unwrap_or_else(|| Config::default().intercept.hosts.into_iter().map(Value::from).collect());
        let is_served = |host: &Value| {
            let host = host.as_str().unwrap_or_default();
            HUB == host || HUB.strip_suffix(host).is_some_and(|rest| rest.ends_with('.'))
        };
        if hosts.iter().any(is_served) {
            return;
        }
        let meant = |pattern: &&str| {
            pattern.replace('\\', "").contains(HUB) || regex::Regex::new(pattern).is_ok_and(|it| it.is_match(HUB_FILE))
        };
        let rules = self.into.get("rules").and_then(Value::as_array);
        let patterns = rules.into_iter().flatten().filter(|rule| rule["store"] != json!(false));
        let meant: Vec<_> =
            patterns.filter_map(|rule| rule["match"].as_str()).filter(meant).map(str::to_owned).collect();
        if !meant.is_empty() {
            self.note(format!(
                "rules: {} has no effect on https://{HUB} through HTTPS_PROXY: that is a CONNECT tunnel, which is passed on unread \
                 unless the host is in intercept.hosts; set HF_ENDPOINT=http://NODE:65001 to go by the mirror",
                meant.join(", ")
            ));
        }
    }

    fn store(&mut self) {
        if let Some(dir) = self.text("dataDir").or_else(|| self.text("storage.dir")) {
            self.set("data_dir", json!(dir));
            self.note("data_dir: give pondhawk a directory of its own; it does not read dfdaemon's files");
        }
        let bytes = self.bytes("storage.diskGCThreshold").or_else(|| self.bytes("gc.policy.diskThreshold"));
        let percent = [
            "storage.diskGCThresholdPercent",
            "gc.policy.diskHighThresholdPercent",
            "gc.policy.distHighThresholdPercent",
        ]
        .iter()
        .filter_map(|path| self.text(path))
        .last();
        match (bytes, percent) {
            (Some(bytes), _) => self.set("store.quota", json!(bytes)),
            (None, Some(percent)) if percent != "0" => self.set("store.quota", json!(format!("{percent}%"))),
            _ => {}
        }
    }
}

/// What dfdaemon's text for a size says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SizeText {
    /// As we write it.
    Bytes(String),
    Unbounded,
}

/// `50GB`, `1024Mi`, `10gib`, `1.5GiB`, `50 GB`, as we write it; `Mi` and `M` are MiB, as dfdaemon takes them.
fn size(text: &str) -> Option<SizeText> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (unit, factor) = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => ("B", 1),
        "k" | "ki" | "kib" => ("KiB", 1 << 10),
        "m" | "mi" | "mib" => ("MiB", 1 << 20),
        "g" | "gi" | "gib" => ("GiB", 1 << 30),
        "t" | "ti" | "tib" => ("TiB", 1_u64 << 40),
        "kb" => ("kB", 1_000),
        "mb" => ("MB", 1_000_000),
        "gb" => ("GB", 1_000_000_000),
        "tb" => ("TB", 1_000_000_000_000),
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        whole.checked_mul(factor)?;
        return Some(if whole == 0 { SizeText::Unbounded } else { SizeText::Bytes(format!("{whole}{unit}")) });
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    // Beyond this a fraction of a byte is lost anyway.
    let exact = bytes.is_finite() && bytes < (1_u64 << 53) as f64;
    exact.then(|| match bytes.round() as u64 {
        0 => SizeText::Unbounded,
        bytes => SizeText::Bytes(Size(bytes).to_string()),
    })
}

/// The text for a comment: a line break in it, as a key of the document may hold, would end the comment and begin a key.
fn on_one_line(text: &str) -> String {
    let is_break = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    text.chars().map(|c| if is_break(c) { '\u{fffd}' } else { c }).collect()
}

/// What is set like this is not set.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(says_nothing),
        Value::Object(map) => map.values().all(says_nothing),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Dotted paths of what is left; of a list the list's.
fn leaves(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                leaves(value, &if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, out);
            }
        }
        value if says_nothing(value) => {}
        _ => out.push(path.to_owned()),
    }
}

/// The keys with their reasons; those that share one are told as one.
fn explained(keys: &[String]) -> Vec<String> {
    let reason = |key: &String| {
        REASONS.iter().find(|(beginning, _)| {
            key.strip_prefix(*beginning).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let mut told = Vec::new();
    for same in keys.chunk_by(|a, b| reason(a).is_some_and(|known| reason(b) == Some(known))) {
        match (reason(&same[0]), same) {
            (Some((_, why)), [one]) => told.push(format!("{one}: {why}")),
            (Some((beginning, why)), more) => told.push(format!("{beginning}, {} keys: {why}", more.len())),
            (None, more) => told.extend_from_slice(more),
        }
    }
    told
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
