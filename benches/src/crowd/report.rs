//! What a crowd took, against what nothing can beat.

use std::fmt;

use serde::Serialize;

use crate::lab::cluster::Account;

/// One crowd.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// How many nodes, each with one client.
    pub nodes: usize,
    /// Size of the file.
    pub file_bytes: u64,
    /// Seconds from the first client's start to the last one's end.
    pub makespan: f64,
    /// Seconds of the fluid bound; 0 where no rate bounds it.
    pub bound: f64,
    /// Of the file, by the origin's own count.
    pub origin_bytes: u64,
    /// Clients with an error, or other bytes.
    pub wrong_clients: usize,
    /// In the order of the nodes.
    pub each: Vec<NodeRun>,
}

/// One node's part.
#[derive(Clone, Debug, Serialize)]
pub struct NodeRun {
    /// Its client's time.
    pub seconds: f64,
    /// Of its process.
    pub cpu_seconds: f64,
    /// Bytes from and to whom.
    pub moved: Account,
}

impl Run {
    /// Files that left the origin: 1 is the best that anyone can do.
    pub fn origin_copies(&self) -> f64 {
        self.origin_bytes as f64 / self.file_bytes as f64
    }

    /// Of all nodes' processes.
    pub fn cpu_seconds(&self) -> f64 {
        self.each.iter().map(|node| node.cpu_seconds).sum()
    }
}

/// The fluid bound max(F/origin, F/down, N*F/(origin + sum of up)), in seconds; rates in bytes a second: origin, then a node's link.
pub fn bound(file: u64, nodes: usize, [origin, link]: &[f64; 2]) -> f64 {
    let (file, nodes) = (file as f64, nodes as f64);
    (file / origin).max(file / link).max(nodes * file / (origin + nodes * link))
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file_bytes as f64;
        write!(f, "{} nodes, {:.0} MiB: {:.2} s", self.nodes, file / f64::from(1 << 20), self.makespan)?;
        if self.bound > 0.0 {
            write!(f, ", {:.3}x of the fluid bound of {:.2} s", self.makespan / self.bound, self.bound)?;
        }
        writeln!(f, "; {:.3} files from the origin", self.origin_copies())?;
        writeln!(
            f,
            "  {:<6} {:>8} {:>8} {:>12} {:>11} {:>9}",
            "node", "seconds", "CPU-s", "from origin", "from peers", "to peers"
        )?;
        for (number, node) in self.each.iter().enumerate() {
            let part = |bytes: u64| bytes as f64 / file;
            let moved = &node.moved;
            writeln!(
                f,
                "  {number:<6} {:>8.2} {:>8.2} {:>12.3} {:>11.3} {:>9.3}",
                node.seconds,
                node.cpu_seconds,
                part(moved.origin_bytes),
                part(moved.from_peers),
                part(moved.to_peers)
            )?;
        }
        write!(
            f,
            "  CPU-s of all nodes: {:.2}; clients without the right bytes: {}",
            self.cpu_seconds(),
            self.wrong_clients
        )
    }
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn the_slowest_of_origin_link_and_all_uplinks_together_is_the_bound() {
        assert_eq!(bound(100, 1, &[10.0, 50.0]), 10.0);
        assert_eq!(bound(100, 1, &[50.0, 10.0]), 10.0);
        assert_eq!(bound(100, 8, &[10.0, 10.0]), 10.0);
        assert_eq!(bound(100, 8, &[f64::INFINITY, f64::INFINITY]), 0.0);
    }
}
