//! A node as a process, a hub in this one, and a client that believes nothing: it compares every byte.

use std::{
    io::{Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use pondhawk_bench::{
    hub::{Content, Hub, HubOptions, seeded},
    lab::{Daemon, clean_command},
};

/// The hub's CDN.
pub(crate) const CDN: &str = "cdn-lfs.huggingface.co";
/// The hub itself.
pub(crate) const HUB: &str = "huggingface.co";
/// The hub's host of xorbs.
const XORBS: &str = "transfer.xethub.hf.co";
/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(40);

/// One hub and one node in front of it.
pub(crate) struct Stage {
    pub(crate) hub: Hub,
    pub(crate) node: Node,
}

impl Stage {
    /// A node with these further settings, each `key=value`.
    pub(crate) fn open(settings: &[&str]) -> Self {
        let options = HubOptions { cdn_port: Some(443), ..HubOptions::default() };
        let hub = Hub::start(options).unwrap();
        let node = Node::start(&hub, tempfile::tempdir().unwrap(), settings);
        Self { hub, node }
    }

    /// Offers `len` bytes by a seed, and gives the file.
    pub(crate) fn file(&self, name: &str, len: u64, seed: u64) -> File {
        self.hub.add_file_as("owner/model", "main", name, Content::seeded(len, seed), true).unwrap();
        File { label: format!("owner/model/{name}"), len, seed }
    }

    /// Downloads the file whole.
    pub(crate) fn get(&self, file: &File) -> Answer {
        self.node.get(&self.url(file), &[])
    }

    /// A freshly signed URL.
    pub(crate) fn url(&self, file: &File) -> String {
        self.hub.signed_url(&file.label).unwrap()
    }

    /// Bytes that the hub sent of the file, in files.
    pub(crate) fn ratio(&self, file: &File) -> f64 {
        self.hub.stats().object(&file.label).body_bytes as f64 / file.len as f64
    }
}

/// A file of the hub.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) label: String,
    pub(crate) len: u64,
    pub(crate) seed: u64,
}

impl File {
    /// What its bytes from `offset` on are.
    pub(crate) fn bytes(&self, offset: u64, len: u64) -> Vec<u8> {
        seeded(self.seed, offset, usize::try_from(len).unwrap())
    }
}

/// `pondhawk up` on a directory of its own.
pub(crate) struct Node {
    pub(crate) daemon: Daemon,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Node {
    pub(crate) fn start(hub: &Hub, dir: tempfile::TempDir, settings: &[&str]) -> Self {
        let (daemon, proxy, admin) = launch(hub, dir.path(), settings);
        Self { daemon, dir, proxy, admin }
    }

    /// Kills the process without mercy and starts another on the same directory.
    pub(crate) fn kill_and_restart(&mut self, hub: &Hub, settings: &[&str]) {
        self.daemon.kill().unwrap();
        self.restart(hub, settings);
    }

    /// Starts another process on the directory of one that has ended.
    pub(crate) fn restart(&mut self, hub: &Hub, settings: &[&str]) {
        let (daemon, proxy, admin) = launch(hub, self.dir.path(), settings);
        (self.daemon, self.proxy, self.admin) = (daemon, proxy, admin);
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("node-0.log")).unwrap()
    }

    /// A GET through the proxy port, in absolute form.
    pub(crate) fn get(&self, url: &str, headers: &[&str]) -> Answer {
        self.request("GET", url, headers, b"")
    }

    pub(crate) fn request(&self, method: &str, url: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut connection = self.connect();
        connection.write_all(&request(method, url, headers, body)).unwrap();
        read_answer(&mut connection, method == "HEAD")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(self.proxy).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        connection
    }

    /// The value of a metric with exactly this name and these labels.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let mut connection = TcpStream::connect(self.admin).unwrap();
        connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let text = String::from_utf8(read_answer(&mut connection, false).body).unwrap();
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// One request's bytes.
pub(crate) fn request(method: &str, url: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let target = url.replacen("https://", "http://", 1);
    let host = target["http://".len()..].split('/').next().unwrap();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{length}{lines}\r\n");
    [head.as_bytes(), body].concat()
}

/// What a client has in the end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Lower-case names.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body has the length that the head promised.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str())
    }

    /// What every fault must come to: right bytes, or an error that cannot be taken for the file.
    pub(crate) fn is_right_or_clean(&self, file: &File) -> bool {
        let right = self.body == file.bytes(0, file.len);
        let clean = self.status >= 400 || !self.complete;
        if self.status == 200 && self.complete { right } else { clean }
    }
}

/// Reads one answer; a connection that breaks off leaves an incomplete one.
pub(crate) fn read_answer(connection: &mut impl Read, head_only: bool) -> Answer {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return Answer { status: 0, headers: Vec::new(), body: head, complete: false },
        }
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: Vec::new(), complete: true };
    if head_only || matches!(status, 100 | 204 | 304) {
        return answer;
    }
    let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
    let chunked = answer.header("transfer-encoding") == Some("chunked");
    read_body(connection, &mut answer, length, chunked);
    answer
}

fn read_body(connection: &mut impl Read, answer: &mut Answer, length: Option<usize>, chunked: bool) {
    if let Some(length) = length {
        let read = connection.take(length as u64).read_to_end(&mut answer.body);
        answer.complete = read.is_ok() && answer.body.len() == length;
    } else {
        let whole = connection.read_to_end(&mut answer.body).is_ok();
        answer.complete = whole && (!chunked || dechunk(&mut answer.body));
    }
}

/// Takes the chunk frames out; whether the last chunk was there.
fn dechunk(body: &mut Vec<u8>) -> bool {
    let (mut rest, mut plain) = (body.as_slice(), Vec::new());
    let complete = loop {
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { break false };
        let Ok(size) = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16) else { break false };
        if size == 0 {
            break true;
        }
        let Some(data) = rest.get(end + 2..end + 2 + size) else { break false };
        plain.extend_from_slice(data);
        rest = &rest[end + 4 + size..];
    };
    *body = plain;
    complete
}

/// A log for each process, so that one is not taken for the other.
fn next_log(dir: &Path) -> PathBuf {
    let taken = |n: &usize| dir.join(format!("node-{n}.log")).exists();
    let next = (0..).find(|n| !taken(n)).unwrap();
    dir.join(format!("node-{next}.log"))
}

fn launch(hub: &Hub, dir: &Path, settings: &[&str]) -> (Daemon, SocketAddr, SocketAddr) {
    let ca = dir.join("hub.pem");
    hub.write_ca(&ca).unwrap();
    let mut command = clean_command(env!("CARGO_BIN_EXE_pondhawk"));
    command.arg("up").arg("--config").arg(dir.join("config.yaml"));
    let config = format!(
        "data_dir: {}\nlisten: {{proxy: '127.0.0.1:0', admin: '127.0.0.1:0'}}\nintercept: {{enabled: off}}\n\
         origin: {{extra_cas: [{}], overrides: {{{CDN}: '{hub}', {HUB}: '{hub}', {XORBS}: '{hub}'}}}}\n\
         store: {{keep_free: 1MiB}}\nscheduler: {{listen: off}}\n",
        dir.join("data").display(),
        ca.display(),
        hub = hub.tls_address()
    );
    std::fs::write(dir.join("config.yaml"), config).unwrap();
    settings.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    let mut daemon = Daemon::spawn("pondhawk", &mut command, &next_log(dir)).unwrap();
    let line = daemon.wait_for_log("node up", DEADLINE).unwrap();
    let line = line.lines().rev().find(|line| line.contains("node up")).unwrap().to_owned();
    let address = |key: &str| {
        let rest = line.split(&format!(" {key}=Some(")).nth(1).unwrap();
        rest.split(')').next().unwrap().parse().unwrap()
    };
    (daemon, address("proxy"), address("admin"))
}
