//! Transfers over a cable between two namespaces, as benches of several packages write them and the scenario `peer-link` reads them.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

/// One file that went from a seed to a leech.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// Who moved it: `ours`, `bare`, `iroh`.
    pub who: String,
    /// MTU of the cable in bytes.
    pub mtu: u16,
    /// Size of the file.
    pub bytes: u64,
    /// By the clock.
    pub seconds: f64,
    /// CPU time of the sending side.
    pub seed_cpu: f64,
    /// CPU time of the receiving side.
    pub leech_cpu: f64,
}

impl Transfer {
    /// Gigabytes (10^9 bytes) a second.
    pub fn speed(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.seconds
    }

    /// CPU-seconds of both sides a gigabyte.
    pub fn cpu_a_gigabyte(&self) -> f64 {
        (self.seed_cpu + self.leech_cpu) / (self.bytes as f64 / 1e9)
    }
}

/// Writes them in the order in which they were measured.
pub fn save(path: &Path, transfers: &[Transfer]) -> io::Result<()> {
    fs::write(path, serde_json::to_vec_pretty(transfers)?)
}

/// Reads what [`save`] wrote.
pub fn load(path: &Path) -> io::Result<Vec<Transfer>> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let transfer = Transfer {
            who: "ours".into(),
            mtu: 1500,
            bytes: 2_000_000_000,
            seconds: 4.0,
            seed_cpu: 1.0,
            leech_cpu: 3.0,
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        save(file.path(), std::slice::from_ref(&transfer)).unwrap();
        assert_eq!((transfer.speed(), transfer.cpu_a_gigabyte()), (0.5, 2.0));
        assert_eq!(load(file.path()).unwrap(), [transfer]);
    }
}
