//! The hub as a process, in a namespace.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Attachment, Daemon, LabError, binary, clean_command, run};
use crate::hub::{Fault, Rates, Stats};

/// Port of the listener without TLS.
const PLAIN_PORT: u16 = 8080;

/// A running `pondhawk-hub` on ports 443, 8080 (plain, control) and 53 (DNS, naming itself for all of the Hub's names).
#[derive(Debug)]
pub struct HubProcess {
    daemon: Daemon,
    enter: Vec<String>,
    control: SocketAddr,
    folder: tempfile::TempDir,
}

impl HubProcess {
    /// Starts it at both addresses of a host of the lab. `arguments` are further ones of `pondhawk-hub`, such as
    /// `["--file", "acme/tiny/model.bin:1GiB:7"]`. Ready when this returns.
    pub fn start(host: &Attachment, arguments: &[&str]) -> Result<Self, LabError> {
        let folder = tempfile::tempdir().map_err(|source| LabError::file(&std::env::temp_dir(), source))?;
        let control = SocketAddr::from((host.v4, PLAIN_PORT));
        let mut command = host.netns.command(binary("pondhawk-hub")?);
        for address in host.addresses() {
            command.arg("--listen").arg(SocketAddr::from((address, 443)).to_string());
        }
        command.arg("--plain").arg(control.to_string());
        command.arg("--dns").arg(SocketAddr::from((host.v4, 53)).to_string());
        command.arg("--ca-out").arg(folder.path().join("ca.pem")).args(arguments);
        let mut daemon = Daemon::spawn("pondhawk-hub", &mut command, &folder.path().join("hub.log"))?;
        // Content is hashed first: a GiB takes about a second where the binary is optimised.
        daemon.wait_for_log("hub ready", Duration::from_secs(120))?;
        let enter = vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", host.netns.name()), "--".to_owned()];
        Ok(Self { daemon, enter, control, folder })
    }

    /// Its CA certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Counts since the start or the last reset.
    pub fn stats(&self) -> Result<Stats, LabError> {
        self.call("GET", "stats", None::<&()>)
    }

    /// Sets all counts to zero.
    pub fn reset_stats(&self) -> Result<(), LabError> {
        self.call("POST", "reset", None::<&()>).map(|_: Value| ())
    }

    /// Puts a fault in force.
    pub fn add_fault(&self, fault: &Fault) -> Result<(), LabError> {
        self.call("POST", "faults", Some(fault)).map(|_: Value| ())
    }

    /// Ends all faults.
    pub fn clear_faults(&self) -> Result<(), LabError> {
        self.call("DELETE", "faults", None::<&()>).map(|_: Value| ())
    }

    /// Replaces the rate limits.
    pub fn set_limits(&self, rates: Rates) -> Result<(), LabError> {
        self.call("POST", "limits", Some(&rates)).map(|_: Value| ())
    }

    /// SHA-256 and a fresh URL of the object with this label; none: there is none.
    pub fn object(&self, label: &str) -> Result<Option<(String, String)>, LabError> {
        let objects: Vec<Value> = self.call("GET", "objects", None::<&()>)?;
        let found = objects.into_iter().find(|object| object["label"] == label);
        let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
        Ok(found.map(|object| (text(&object, "sha256"), text(&object, "url"))))
    }

    /// Fresh URLs of all objects.
    pub fn urls(&self) -> Result<Vec<String>, LabError> {
        let objects: Vec<Value> = self.call("GET", "objects", None::<&()>)?;
        Ok(objects.iter().filter_map(|object| object["url"].as_str()).map(str::to_owned).collect())
    }

    /// By curl within the namespace: the hub is reached from nowhere else.
    fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        command: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, LabError> {
        let mut curl = clean_command(&self.enter[0]);
        curl.args(&self.enter[1..]).args(["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "30"]);
        curl.args(["--request", method]).arg(format!("http://{}/_hub/{command}", self.control));
        if let Some(body) = body {
            curl.arg("--data-binary").arg(serde_json::to_string(body)?);
        }
        Ok(serde_json::from_str(&run(&mut curl)?)?)
    }
}
