//! The `pondhawk-scheduler` binary as an operator uses it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use pondhawk_scheduler::authority::Authority;
use rustix::process::{Pid, Signal, kill_process};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pondhawk-scheduler"));
    command.env_clear();
    command
}

/// A scheduler that runs; its log lines come over the channel.
struct Up {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Up {
    fn start(dir: &Path) -> Self {
        let mut command = binary();
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    fn line_with(&self, words: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(LONG).unwrap_or_else(|_| panic!("no {words:?} in the log"));
            if line.contains(words) {
                return line;
            }
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn token(dir: &Path, more: &[&str]) -> String {
    let output = binary().args(["token", "--data-dir"]).arg(dir).args(more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn it_serves_hands_out_tokens_while_it_runs_and_ends_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let line = up.line_with("scheduler up");
    let address = line.split_once("address=").unwrap().1.split_whitespace().next().unwrap();
    TcpStream::connect(address.parse::<SocketAddr>().unwrap()).unwrap();

    let first = token(dir.path(), &["--ttl", "1h"]);
    let authority = Authority::open(dir.path()).unwrap();
    assert_eq!(authority.check_token(&first, unix_now()), Ok(()));
    assert!(authority.check_token(&first, unix_now() + 3601).is_err());
    let second = token(dir.path(), &["--rotate"]);
    assert!(authority.check_token(&first, unix_now()).is_err());
    assert_eq!(authority.check_token(&second, unix_now()), Ok(()));

    kill_process(Pid::from_child(&up.child), Signal::TERM).unwrap();
    up.line_with("scheduler down");
    assert!(up.child.wait().unwrap().success());
}

#[test]
fn a_token_of_no_cluster_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = binary().args(["token", "--data-dir"]).arg(dir.path()).output().unwrap();
    assert!(!output.status.success());
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("has no cluster: start the scheduler once"), "{why}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_certificate_that_pods_trust_is_printed_once_the_scheduler_has_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = |more: &[&str]| binary().args(["ca", "--data-dir"]).arg(dir.path()).args(more).output().unwrap();
    let why = String::from_utf8(ca(&[]).stderr).unwrap();
    assert!(why.contains("has no trust root: start the scheduler once"), "{why}");
    let up = Up::start(dir.path());
    up.line_with("scheduler up");
    let printed = ca(&[]);
    assert!(printed.status.success());
    assert_eq!(printed.stdout, std::fs::read(dir.path().join("trust-root.pem")).unwrap());
    let text = String::from_utf8(ca(&["--text"]).stdout).unwrap();
    assert!(text.contains("speaks for    cdn-lfs-eu-1.hf.co,"), "{text}");
}
