//! What the demo found out: the JSON for machines, the closing lines for people.

use std::fmt;

use serde::Serialize;

/// The whole demo.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Size of the file that every run downloads.
    pub(crate) file_bytes: u64,
    /// What the origin sent of it in all runs together, by the origin's own count.
    pub(crate) origin_bytes: u64,
    pub(crate) runs: Vec<Run>,
    /// Pondhawk nodes that took part.
    pub(crate) nodes: u32,
}

/// One download by one client.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// Name and version.
    pub(crate) client: String,
    /// On whose machine it ran.
    pub(crate) node: String,
    /// From start to end of the client's process.
    pub(crate) seconds: f64,
    /// Bytes that this node had from the origin during the run, by its own count.
    pub(crate) from_origin: u64,
    /// Bytes that it had from other nodes.
    pub(crate) from_peers: u64,
    /// The rest of the file: what its store held before.
    pub(crate) from_store: u64,
    /// Bytes that it sent to other nodes.
    pub(crate) to_peers: u64,
    /// Requests that it answered from its store alone.
    pub(crate) hits: u64,
    /// Whether the downloaded file is the published one.
    pub(crate) sha256_ok: bool,
}

impl Report {
    /// Origin bytes as a multiple of the file: 1.00 is the best that anyone can do.
    pub(crate) fn origin_ratio(&self) -> f64 {
        ratio(self.origin_bytes, self.file_bytes)
    }

    /// The share of all downloaded bytes that did not come from the origin.
    pub(crate) fn hit_ratio(&self) -> f64 {
        let saved: u64 = self.runs.iter().map(|run| run.from_store + run.from_peers).sum();
        ratio(saved, self.file_bytes * self.runs.len() as u64)
    }

    /// What is wrong with the outcome; empty when the demo shows what it is there to show.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<String> = Vec::new();
        for run in self.runs.iter().filter(|run| !run.sha256_ok) {
            complaints.push(format!("{} on {} got wrong bytes", run.client, run.node));
        }
        if self.nodes > 1 && self.runs.iter().all(|run| run.from_peers == 0) {
            complaints.push("no node had anything from another one".to_owned());
        }
        if self.origin_bytes < self.file_bytes {
            complaints.push("the origin sent less than one file: the counter cannot be right".to_owned());
        }
        if self.origin_ratio() > 1.02 {
            complaints.push(format!("the origin sent {:.2} files in all, not 1.00", self.origin_ratio()));
        }
        complaints
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["from origin", "from peers", "from store", "to peers"];
        write!(f, "{:<21} {:<7} {:>7}", "client", "node", "seconds")?;
        titles.iter().try_for_each(|title| write!(f, " {title:>11}"))?;
        writeln!(f, "  sha256")?;
        for run in &self.runs {
            write!(f, "{:<21} {:<7} {:>7.2}", run.client, run.node, run.seconds)?;
            let moved = [run.from_origin, run.from_peers, run.from_store, run.to_peers];
            moved.iter().try_for_each(|bytes| write!(f, " {:>11}", size(*bytes)))?;
            writeln!(f, "  {}", if run.sha256_ok { "right" } else { "WRONG" })?;
        }
        writeln!(
            f,
            "from the origin in all: {} of a file of {}: {:.2}x; hit ratio {:.0} %",
            size(self.origin_bytes),
            size(self.file_bytes),
            self.origin_ratio(),
            self.hit_ratio() * 100.0
        )
    }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(second_from_origin: u64) -> Report {
        let run = |client: &str, from_origin, from_store| Run {
            client: client.to_owned(),
            seconds: 1.5,
            from_origin,
            node: "node-0".to_owned(),
            from_peers: 0,
            from_store,
            to_peers: 0,
            hits: 0,
            sha256_ok: true,
        };
        let runs = vec![run("one", 1000, 0), run("two", second_from_origin, 1000 - second_from_origin)];
        Report { file_bytes: 1000, origin_bytes: 1000 + second_from_origin, runs, nodes: 1 }
    }

    #[test]
    fn one_file_from_the_origin_for_two_clients_is_a_hit_ratio_of_one_half() {
        let report = report(0);
        assert_eq!(report.complaints(), Vec::<String>::new());
        assert!((report.hit_ratio() - 0.5).abs() < 1e-9);
        assert!(report.to_string().contains("1.00x; hit ratio 50 %"), "{report}");
    }

    #[test]
    fn a_second_download_from_the_origin_and_wrong_bytes_are_complained_about() {
        let mut report = report(1000);
        report.runs[1].sha256_ok = false;
        let complaints = report.complaints();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
    }

    #[test]
    fn the_json_has_the_promised_keys() {
        let json = serde_json::to_value(report(0)).expect("plain data");
        let keys: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["file_bytes", "nodes", "origin_bytes", "runs"]);
        let run: Vec<&str> = json["runs"][0].as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(
            run,
            ["client", "from_origin", "from_peers", "from_store", "hits", "node", "seconds", "sha256_ok", "to_peers"]
        );
    }
}
