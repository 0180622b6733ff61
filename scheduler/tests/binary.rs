//! The `pondhawk-scheduler` binary as an operator uses it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use pondhawk_scheduler::authority::Authority;
use rustix::process::{Pid, Signal, kill_process};

use support::{Up, binary};

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
    let mut up = Up::start(dir.path(), |_| {});
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

    assert!(token(dir.path(), &["--reusable"]).starts_with("ph1.") && second.starts_with("ph2."));
    let named = authority.token_grant(&token(dir.path(), &["--name", "node-x", "--uses", "2"]), unix_now()).unwrap();
    assert_eq!((named.terms.name.as_deref(), named.terms.uses), (Some("node-x"), Some(2)));

    let unknown = binary().args(["forget", "node-x", "--data-dir"]).arg(dir.path()).output().unwrap();
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no node has the name"), "{unknown:?}");
    let denied = binary().args(["deny", "node-x", "--data-dir"]).arg(dir.path()).output().unwrap();
    assert!(denied.status.success(), "{denied:?}");
    up.line_with("the registry of names was changed");

    kill_process(Pid::from_child(up.child()), Signal::TERM).unwrap();
    up.line_with("scheduler down");
    assert!(up.wait().success());
}

#[test]
fn the_page_is_up_asks_for_its_token_and_can_be_told_another() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), |_| ());
    let line = up.line_with("page up");
    let address: SocketAddr =
        line.split_once("address=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    let page_token = |more: &[&str]| {
        let output = binary().args(["page-token", "--data-dir"]).arg(dir.path()).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let status = |token: &str| {
        let mut socket = TcpStream::connect(address).unwrap();
        let head = "GET /v1/cluster HTTP/1.1\r\nhost: page\r\nconnection: close\r\n";
        write!(socket, "{head}authorization: Bearer {token}\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let first = page_token(&[]);
    assert_eq!(
        (page_token(&[]), status(&first), status("0123456789abcdef")),
        (first.clone(), "200".into(), "401".into())
    );
    let second = page_token(&["--rotate"]);
    assert_eq!((status(&first), status(&second)), ("401".into(), "200".into()));
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
    let up = Up::start(dir.path(), |_| {});
    up.line_with("scheduler up");
    let printed = ca(&[]);
    assert!(printed.status.success());
    assert_eq!(printed.stdout, std::fs::read(dir.path().join("trust-root.pem")).unwrap());
    let text = String::from_utf8(ca(&["--text"]).stdout).unwrap();
    assert!(text.contains("speaks for    cdn-lfs-eu-1.hf.co,"), "{text}");
}
