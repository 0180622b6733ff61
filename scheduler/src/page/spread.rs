//! Nodes told from the page to hold a task that others hold [no I/O].

use std::time::Duration;

use serde::Deserialize;

use crate::cluster::{Cluster, Scope, TaskName};

const MAX_LABELS: usize = 16;

/// What the form says.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    /// Only seed peers.
    seeds: bool,
    /// `key=value`: only nodes with all of them.
    labels: Vec<String>,
    /// So many; 0: all.
    count: u32,
    /// They keep it whatever room they need.
    pin: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Those that fit are told.
    Spreading,
    /// There is no such task.
    Unknown,
    /// Nobody has said what its name is made of, without which nodes cannot check that they are told the truth.
    Nameless,
}

impl Wanted {
    /// A JSON document.
    pub(super) fn parse(document: &[u8]) -> Result<Self, String> {
        let wanted: Self = serde_json::from_slice(document).map_err(|error| error.to_string())?;
        let fits =
            |label: &String| label.split_once('=').is_some_and(|(key, value)| !key.is_empty() && !value.is_empty());
        match () {
            () if wanted.labels.len() > MAX_LABELS => Err(format!("at most {MAX_LABELS} labels")),
            () if !wanted.labels.iter().all(fits) => Err("a label is key=value".to_owned()),
            () => Ok(wanted),
        }
    }

    /// Has the cluster do it.
    pub(super) fn tell(&self, cluster: &mut Cluster, now: Duration, task: &TaskName) -> Told {
        let labels = self.labels.iter().filter_map(|label| label.split_once('='));
        let scope = Scope {
            seeds: self.seeds,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            count: self.count as usize,
        };
        match cluster.spread_known(now, task, &scope, self.pin) {
            true => Told::Spreading,
            false if cluster.knows(task) => Told::Nameless,
            false => Told::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_names_whom_it_is_for() {
        let wanted = Wanted::parse(br#"{"seeds": true, "labels": ["zone=a"], "count": 2, "pin": true}"#);
        let labels = vec!["zone=a".to_owned()];
        assert_eq!(wanted, Ok(Wanted { seeds: true, labels, count: 2, pin: true }));
        assert_eq!(Wanted::parse(b"{}"), Ok(Wanted::default()));
        for bad in
            [&br#"{"labels": ["zone"]}"#[..], br#"{"labels": ["=a"]}"#, br#"{"count": -1}"#, br#"{"url": "x"}"#, b""]
        {
            assert!(Wanted::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn what_is_not_known_is_told_to_nobody() {
        let mut cluster = Cluster::new(crate::cluster::Options::default());
        assert_eq!(Wanted::default().tell(&mut cluster, Duration::ZERO, &[1; 32]), Told::Unknown);
    }
}
