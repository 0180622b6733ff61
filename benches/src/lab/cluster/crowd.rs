//! Clients of a node: curl, and what it brought.

use std::{
    io::{self, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aws_lc_rs::digest;

use super::{Host, Node, node::PROXY_PORT};
use crate::lab::LabError;

/// How a client reaches its node, and what it does with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the proxy port; every byte is hashed.
    Proxy,
    /// By the proxy port; the bytes are only counted, which leaves the processor to what is measured.
    ProxyCounted,
    /// By interception: the client knows of no node. Every byte is hashed.
    Caught,
}

/// What a client has in the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fetched {
    /// Whether curl says that all is well: status 200, and as many bytes as promised.
    pub ok: bool,
    /// In hexadecimal, of what came; empty if the bytes were only counted.
    pub sha256: String,
    /// How many came.
    pub bytes: u64,
    /// From the start to the end of the client's process.
    pub seconds: f64,
    /// What curl wrote of itself.
    pub said: String,
}

impl Node {
    /// Downloads a signed URL as a client on this node's machine, once and without a second try, for at most `deadline`.
    pub fn fetch(&self, url: &str, way: Way, deadline: Duration) -> Result<Fetched, LabError> {
        self.start_fetch(url, way, deadline)?.finish()
    }

    /// The same, under way when this returns.
    pub fn start_fetch(&self, url: &str, way: Way, deadline: Duration) -> Result<Fetching, LabError> {
        let mut command = curl(self.host(), deadline);
        if way == Way::Caught {
            command.arg("--cacert").arg(self.data_dir().join("ca/bundle.pem")).arg(url);
            return spawn(&mut self.caught(&command)?, true);
        }
        command.arg("--proxy").arg(format!("http://127.0.0.1:{PROXY_PORT}"));
        // In absolute form; with https in the URL curl would ask for a tunnel, in which the node sees nothing.
        command.arg(url.replacen("https://", "http://", 1));
        spawn(&mut command, way == Way::Proxy)
    }

    /// Downloads as a client on another machine, such as a pod, whose connections this node catches and which trusts nothing
    /// but the certificates in `ca`.
    pub fn fetch_from(&self, host: &Host, ca: &Path, url: &str, deadline: Duration) -> Result<Fetched, LabError> {
        let mut command = curl(host, deadline);
        command.arg("--cacert").arg(ca).arg(url);
        spawn(&mut self.caught(&command)?, true)?.finish()
    }

    fn caught(&self, command: &Command) -> Result<Command, LabError> {
        let clients = self.clients().ok_or_else(|| LabError::Command {
            command: "curl".to_owned(),
            output: format!("{} catches no connections in this plan", self.name()),
        })?;
        Ok(clients.wrap(command))
    }
}

fn curl(host: &Host, deadline: Duration) -> Command {
    let mut command = host.netns().command("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", &deadline.as_secs_f64().to_string()]);
    command.args(["--write-out", "%{stderr} bytes=%{size_download} status=%{http_code}"]);
    command
}

fn spawn(command: &mut Command, hash: bool) -> Result<Fetching, LabError> {
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(if hash { Stdio::piped() } else { Stdio::null() });
    let started = Instant::now();
    let spawned = command.spawn();
    let failed = |error: io::Error| LabError::Command { command: format!("{command:?}"), output: error.to_string() };
    let mut child = spawned.map_err(failed)?;
    let hash = child.stdout.take().map(|mut body| thread::spawn(move || hashed(&mut body)));
    Ok(Fetching { child, hash, started })
}

/// A client at work. If dropped, it is killed.
#[derive(Debug)]
pub struct Fetching {
    child: Child,
    hash: Option<thread::JoinHandle<io::Result<(String, u64)>>>,
    started: Instant,
}

impl Fetching {
    /// Waits for its end, which its deadline brings at the latest.
    pub fn finish(mut self) -> Result<Fetched, LabError> {
        let read = |error: io::Error| LabError::Command { command: "curl".to_owned(), output: error.to_string() };
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).map_err(read)?;
        }
        let status = self.child.wait().map_err(read)?;
        let seconds = self.started.elapsed().as_secs_f64();
        let (sha256, bytes) = match self.hash.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(read)?,
            None => (String::new(), number_after(&said, "bytes=")),
        };
        Ok(Fetched { ok: status.success(), sha256, bytes, seconds, said: said.trim().to_owned() })
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hashed(body: &mut impl io::Read) -> io::Result<(String, u64)> {
    let mut context = digest::Context::new(&digest::SHA256);
    let (mut buffer, mut total) = (vec![0; 256 << 10], 0);
    loop {
        match body.read(&mut buffer)? {
            0 => break,
            n => {
                context.update(&buffer[..n]);
                total += n as u64;
            }
        }
    }
    Ok((context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect(), total))
}

fn number_after(text: &str, key: &str) -> u64 {
    let digits = text.rsplit(key).next().unwrap_or_default();
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::number_after;

    #[test]
    fn the_count_is_read_from_behind_what_curl_complains_about() {
        assert_eq!(number_after("curl: (18) bytes=3 missing\n bytes=1234 status=200", "bytes="), 1234);
        assert_eq!(number_after("nothing", "bytes="), 0);
    }
}
