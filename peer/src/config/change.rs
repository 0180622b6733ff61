//! What differs between two configurations, and what of it a running node takes up [pure].

use std::fmt;

use serde_json::Value;

use super::Config;

/// Keys that a node takes up while it runs. Whatever is not here is read once, at the start: ports, threads, trust, buffers.
pub const LIVE: [&str; 16] = [
    "log.level",
    "origin.rate",
    "store.quota",
    "store.keep_free",
    "authorize.public",
    "authorize.serve_when_origin_down",
    "mirror.hub",
    "mirror.cdn",
    "mirror.url",
    "proxy.allow",
    "proxy.ports",
    "rules",
    "swarm.upload_rate",
    "swarm.download_rate",
    "swarm.uploads",
    "limits.connections",
];

/// A key with another value than before.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its dotted path.
    pub key: String,
    /// What holds now.
    pub from: Value,
    /// What was read.
    pub to: Value,
}

impl Change {
    /// Whether a running node takes it up.
    pub fn is_live(&self) -> bool {
        LIVE.contains(&self.key.as_str())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} to {}", self.key, self.from, self.to)
    }
}

impl Config {
    /// What is other in `new`, in the order of the document.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let (old, new) = (self.values(), new.values());
        let change = |key: String| {
            let (from, to) = (old.pointer(&pointer(&key))?, new.pointer(&pointer(&key))?);
            (from != to).then(|| Change { from: from.clone(), to: to.clone(), key })
        };
        Self::key_paths().into_iter().filter_map(change).collect()
    }

    /// This configuration with those of the changes in it that a running node takes up.
    pub fn with_live(&self, changes: &[Change]) -> Self {
        let mut values = self.values();
        for change in changes.iter().filter(|change| change.is_live()) {
            if let Some(slot) = values.pointer_mut(&pointer(&change.key)) {
                slot.clone_from(&change.to);
            }
        }
        serde_json::from_value(values).expect("every value was read from a configuration")
    }

    fn values(&self) -> Value {
        serde_json::to_value(self).expect("a configuration is plain data")
    }
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("test.yaml")).unwrap()
    }

    #[test]
    fn every_live_key_is_one_of_the_configuration() {
        let known = Config::key_paths();
        assert!(LIVE.iter().all(|key| known.iter().any(|known| known == key)), "{known:?}");
    }

    #[test]
    fn equal_configurations_differ_in_nothing_however_they_were_written() {
        assert_eq!(config("store: {quota: 1GiB}").changes(&config("store:\n  quota: 1024MiB\n")), []);
    }

    #[test]
    fn each_changed_key_is_named_with_both_values_and_whether_it_is_live() {
        let old = config("store: {quota: 1GiB}\nlisten: {admin: 'off'}");
        let new = config("store: {quota: 2GiB}\norigin: {extra_cas: [/a.pem]}\nrules: [{match: a, store: false}]");
        let changes = old.changes(&new);
        let told: Vec<(&str, bool)> = changes.iter().map(|change| (change.key.as_str(), change.is_live())).collect();
        let expected = [("listen.admin", false), ("origin.extra_cas", false), ("store.quota", true), ("rules", true)];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        assert!(expected.iter().all(|one| told.contains(one)), "{told:?}");
        let quota = changes.iter().find(|change| change.key == "store.quota").unwrap();
        assert_eq!(quota.to_string(), r#"store.quota from "1GiB" to "2GiB""#);
    }

    #[test]
    fn only_what_is_live_is_taken_up_so_that_the_rest_is_told_again() {
        let old = config("log: {level: info}\nshards: 1");
        let new = config("log: {level: debug}\nshards: 2");
        let taken = old.with_live(&old.changes(&new));
        assert_eq!(taken, config("log: {level: debug}\nshards: 1"));
        let left: Vec<String> = taken.changes(&new).into_iter().map(|change| change.key).collect();
        assert_eq!(left, ["shards"]);
    }
}
