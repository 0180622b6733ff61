//! The page of a node that is its own scheduler, from the real binary.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A node that runs.
struct Up {
    child: Child,
    page: SocketAddr,
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pondhawk(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pondhawk"));
    command.env_clear().args(arguments).arg("--set").arg(format!("data_dir={}", dir.display()));
    command
}

/// With one shard, on ports that are free now.
fn start(dir: &Path) -> Up {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = pondhawk(dir, &["up", "--set", "shards=1", "--set", "intercept.enabled=off"]);
    command.args(["--set", "listen.proxy=127.0.0.1:0", "--set", "listen.admin=off", "--set", "store.quota=64MiB"]);
    command.args(["--set", "store.keep_free=0", "--set", "swarm.name=only", "--set", "scheduler.page=127.0.0.1:0"]);
    command.arg("--set").arg(format!("scheduler.listen={tcp}")).arg("--set").arg(format!("swarm.listen={udp}"));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let line = lines.by_ref().inspect(|line| said.push(line.clone())).find(|line| line.contains("page up"));
    let Some(line) = line else {
        let _ = child.kill();
        panic!("no page: {said:#?}");
    };
    std::thread::spawn(move || lines.for_each(drop));
    let page = line.split_once("address=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    Up { child, page }
}

/// Status and body.
fn get(page: SocketAddr, path: &str, token: &str) -> (String, String) {
    let mut socket = TcpStream::connect(page).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: page\r\nconnection: close\r\n");
    write!(socket, "{head}authorization: Bearer {token}\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
}

fn token(dir: &Path, more: &[&str]) -> String {
    let output = pondhawk(dir, &["token", "--page"]).args(more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_node_that_is_its_own_scheduler_shows_itself_to_whoever_has_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let up = start(dir.path());
    let first = token(dir.path(), &[]);
    let seen = loop {
        let (status, body) = get(up.page, "/v1/cluster", &first);
        assert_eq!(status, "200");
        let seen: serde_json::Value = serde_json::from_str(&body).unwrap();
        // It joins itself, and says a second later what it has done.
        if seen["nodes"][0]["totals"].is_object() {
            break seen;
        }
    };
    assert_eq!(seen["nodes"][0]["name"], "only");
    assert_eq!(seen["nodes"][0]["state"], "up");
    assert_eq!(seen["nodes"][0]["totals"]["from_origin"], 0);
    let (_, metrics) = get(up.page, "/metrics", "");
    assert!(metrics.contains("pondhawk_scheduler_peers_connected 1\n"), "{metrics}");
    assert!(metrics.contains("pondhawk_scheduler_sessions_total{result=\"taken\"} 1\n"), "{metrics}");
    let second = token(dir.path(), &["--rotate"]);
    assert_eq!(
        (get(up.page, "/v1/cluster", &first).0, get(up.page, "/v1/cluster", &second).0),
        ("401".into(), "200".into())
    );
}
