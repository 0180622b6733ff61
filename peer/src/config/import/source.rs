//! Where in a file dfdaemon's configurations are [pure].
//!
//! People have them as the file itself, as several documents, in a ConfigMap under any name, in a List of objects, under a bare
//! `dfdaemon.yaml:` key, and in the values of a chart, which has one for clients and one for seeds.

use serde_json::{Map, Value};

use super::{ImportError, leaves};

/// Levels of lists, maps and files within each other that are looked into.
const MAX_DEPTH: usize = 4;
/// Where a chart's values keep a configuration; those of ordinary nodes first.
const CHART_SECTIONS: [&str; 4] = ["client", "dfdaemon", "seedClient", "seedPeer"];

/// One configuration.
#[derive(Debug)]
pub(super) struct Candidate {
    /// The key or file that it was found under; empty for a whole document.
    pub(super) name: String,
    pub(super) keys: Map<String, Value>,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// In the order of the file.
    pub(super) candidates: Vec<Candidate>,
    /// What belongs to none of them, each with the reason.
    pub(super) foreign: Vec<String>,
}

impl Contents {
    pub(super) fn of(text: &str) -> Result<Self, ImportError> {
        let mut contents = Self::default();
        for document in documents(text)? {
            contents.look_into(document, "", MAX_DEPTH)?;
        }
        Ok(contents)
    }

    /// Takes out the configuration that is meant: the named one, else that of ordinary nodes, else the first.
    pub(super) fn choose(&mut self, part: Option<&str>) -> Result<Candidate, ImportError> {
        let is_seed = |candidate: &Candidate| candidate.name.to_ascii_lowercase().contains("seed");
        let at = match part {
            Some(part) => self.candidates.iter().position(|candidate| candidate.name == part).ok_or_else(|| {
                let names: Vec<_> = self.candidates.iter().map(|candidate| candidate.name.as_str()).collect();
                ImportError::Part { part: part.to_owned(), known: names.join(", ") }
            })?,
            None => self.candidates.iter().position(|candidate| !is_seed(candidate)).unwrap_or(0),
        };
        if self.candidates.is_empty() { Err(ImportError::Empty) } else { Ok(self.candidates.remove(at)) }
    }

    fn look_into(&mut self, document: Value, name: &str, depth: usize) -> Result<(), ImportError> {
        let Value::Object(mut keys) = document else {
            if !document.is_null() {
                self.foreign.push(format!("{}: no mapping", if name.is_empty() { "a document" } else { name }));
            }
            return Ok(());
        };
        if keys.is_empty() {
            return Ok(());
        }
        let Some(depth) = depth.checked_sub(1) else {
            self.foreign.push(format!("{name}: too many levels"));
            return Ok(());
        };
        let kind = keys.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        match (kind.as_str(), keys.remove("items")) {
            (list, Some(Value::Array(items))) if list.ends_with("List") => {
                items.into_iter().try_for_each(|item| self.look_into(item, "", depth))
            }
            ("ConfigMap", _) => match keys.remove("data") {
                Some(Value::Object(files)) => self.look_into_files(files, depth),
                _ => {
                    self.foreign.push("a ConfigMap: it has no data".to_owned());
                    Ok(())
                }
            },
            (kind, items) => {
                items.into_iter().for_each(|items| drop(keys.insert("items".to_owned(), items)));
                self.look_into_keys(keys, name, kind, depth)
            }
        }
    }

    fn look_into_keys(
        &mut self,
        keys: Map<String, Value>,
        name: &str,
        kind: &str,
        depth: usize,
    ) -> Result<(), ImportError> {
        let is_config = |section: &Value| matches!(section.get("config"), Some(Value::Object(_) | Value::String(_)));
        if !kind.is_empty() && keys.contains_key("apiVersion") {
            self.foreign.push(format!("a {kind}: no ConfigMap"));
            Ok(())
        } else if CHART_SECTIONS.iter().any(|section| keys.get(*section).is_some_and(is_config)) {
            self.look_into_values(keys, depth)
        } else if keys.iter().any(|(key, value)| is_file(key) && value.is_string()) {
            self.look_into_files(keys, depth)
        } else {
            self.candidates.push(Candidate { name: name.to_owned(), keys });
            Ok(())
        }
    }

    fn look_into_files(&mut self, files: Map<String, Value>, depth: usize) -> Result<(), ImportError> {
        for (name, content) in files {
            match content {
                _ if ["scheduler", "manager"].iter().any(|other| name.starts_with(other)) => {
                    self.foreign.push(format!("{name}: no configuration of dfdaemon"));
                }
                Value::String(text) => {
                    for document in documents(&text)? {
                        self.look_into(document, &name, depth)?;
                    }
                }
                other => leaves(&other, &name, &mut self.foreign),
            }
        }
        Ok(())
    }

    /// A chart's values: its configurations, and what it says of containers, images and so on.
    fn look_into_values(&mut self, mut keys: Map<String, Value>, depth: usize) -> Result<(), ImportError> {
        for section in CHART_SECTIONS {
            match keys.get_mut(section).and_then(|section| section.as_object_mut()?.remove("config")) {
                Some(Value::String(text)) => {
                    documents(&text)?.into_iter().try_for_each(|document| self.look_into(document, section, depth))?;
                }
                Some(config) => self.look_into(config, section, depth)?,
                None => {}
            }
        }
        for (key, value) in keys {
            let mut lost = Vec::new();
            leaves(&value, &key, &mut lost);
            match lost.as_slice() {
                [] => {}
                [one] => self.foreign.push(format!("{one}: a setting of the chart")),
                more => self.foreign.push(format!("{key}, {} keys: settings of the chart", more.len())),
            }
        }
        Ok(())
    }
}

fn is_file(key: &str) -> bool {
    key.ends_with(".yaml") || key.ends_with(".yml") || key.ends_with(".json")
}

fn documents(text: &str) -> Result<Vec<Value>, ImportError> {
    serde_saphyr::from_multiple(text).map_err(|error| ImportError::Document(error.without_snippet().to_string()))
}
