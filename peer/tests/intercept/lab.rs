//! A node and a pod in network namespaces of their own, a stand-in for the CDN, and clients in a cgroup of their own.
//!
//! ```text
//! pod namespace                  node namespace: the test's thread
//! 10.99.0.2, fd99::2  --veth--   10.99.0.1, fd99::1
//!                                203.0.113.9, 2001:db8:9::9: the CDN, port 443
//! ```

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::fd::AsFd as _,
    panic,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use pondhawk::intercept::{Flow, InterceptError, Interceptor, Mode, Options, bypass::cgroup2_mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) const CDN_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub(crate) const CDN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);
pub(crate) const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const MARK: u32 = 0x7001;
/// Longer than any test.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// Connects to argv[1] and prints what it is told there. Then come `key=value` settings.
const CLIENT: &str = r"
import os, socket, sys
host, options = sys.argv[1], dict(o.split('=') for o in sys.argv[2:])
family = {'4': socket.AF_INET, '6': socket.AF_INET6}.get(options.get('family'), 0)
family, _, _, _, address = socket.getaddrinfo(host, 443, family, socket.SOCK_STREAM)[0]
s = socket.socket(family, socket.SOCK_STREAM)
s.settimeout(10)
if 'mark' in options: s.setsockopt(socket.SOL_SOCKET, 36, int(options['mark']))
if 'device' in options: s.setsockopt(socket.SOL_SOCKET, 25, options['device'].encode())
if 'bind' in options: s.bind((options['bind'], 0))
if 'uid' in options: os.setuid(int(options['uid']))
s.connect(address)
print(s.makefile().readline().strip())
";

pub(crate) struct Lab {
    name: String,
    pub(crate) cgroup: PathBuf,
}

/// Runs a test in a lab on a thread of its own, since the thread moves to the node's namespace. Says so, and does
/// nothing, where a lab cannot be made; with PONDHAWK_TEST_REQUIRE_ALL=1 that is a failure.
pub(crate) fn in_lab(test: impl FnOnce(&Lab) + Send + 'static) {
    if let Some(missing) = missing() {
        eprintln!("not tested: {missing}");
        assert_ne!(env::var("PONDHAWK_TEST_REQUIRE_ALL").as_deref(), Ok("1"), "{missing}");
        return;
    }
    let result = thread::spawn(move || test(&Lab::new())).join();
    if let Err(payload) = result {
        panic::resume_unwind(payload);
    }
}

/// What a lab needs and this machine lacks.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    if cgroup2_mount().is_none() {
        return Some("needs a cgroup2 mount".to_owned());
    }
    for tool in ["ip", "nsenter", "python3", "timeout", "unshare"] {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| PathBuf::from(dir).join(tool).exists());
        if !found {
            return Some(format!("needs {tool}"));
        }
    }
    // Attaching to no cgroup tells what else is missing.
    let nowhere = Options { cgroup: Some("/nonexistent".into()), ..options(1) };
    match Interceptor::attach(&nowhere) {
        Err(error @ (InterceptError::NotBuilt | InterceptError::MissingCapability(_))) => Some(error.to_string()),
        _ => None,
    }
}

/// Mode `dns` for the suffix `hf.test`, no address for other namespaces.
pub(crate) fn options(port: u16) -> Options {
    Options {
        cgroup: None,
        mode: Mode::Dns,
        port,
        mark: MARK,
        suffixes: vec!["hf.test".to_owned()],
        node_v4: None,
        node_v6: None,
        max_silence: LONG,
        allow_private: false,
    }
}

impl Lab {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pondhawk-ebpf-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { cgroup: cgroup2_mount().unwrap().join(&name), name };
        fs::create_dir(&lab.cgroup).unwrap();
        lab.make_namespaces();
        let node = File::open(lab.namespace("node")).unwrap();
        move_into_link_name_space(node.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        for address in [IpAddr::from(CDN_V4), IpAddr::from(CDN_V6)] {
            let listener = TcpListener::bind((address, 443)).unwrap();
            thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(b"origin\n");
                }
            });
        }
        lab
    }

    fn make_namespaces(&self) {
        let (node, pod) = (format!("{}-node", self.name), format!("{}-pod", self.name));
        let script = format!(
            "netns add {node}
             netns add {pod}
             link add veth0 netns {node} type veth peer name veth0 netns {pod}
             -n {node} link set lo up
             -n {pod} link set lo up
             -n {node} link set veth0 up
             -n {pod} link set veth0 up
             -n {node} address add {CDN_V4}/32 dev lo
             -n {node} address add {CDN_V6}/128 dev lo nodad
             -n {node} address add {NODE_V4}/24 dev veth0
             -n {node} address add {NODE_V6}/64 dev veth0 nodad
             -n {pod} address add 10.99.0.2/24 dev veth0
             -n {pod} address add fd99::2/64 dev veth0 nodad
             -n {pod} route add default via {NODE_V4}
             -n {pod} -6 route add default via {NODE_V6}"
        );
        for line in script.lines() {
            ip(line);
        }
    }

    fn namespace(&self, end: &str) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}-{end}", self.name))
    }

    /// Attaches to the lab's cgroup, with one heartbeat, and listens. `adjust` changes [`options`].
    pub(crate) fn node(&self, adjust: impl FnOnce(&mut Options)) -> Node {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let mut options = options(listener.local_addr().unwrap().port());
        options.cgroup = Some(self.cgroup.clone());
        adjust(&mut options);
        let interceptor = Arc::new(Interceptor::attach(&options).unwrap());
        interceptor.beat();
        let (sender, flows) = mpsc::channel();
        let asked = Arc::downgrade(&interceptor);
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let Some(interceptor) = asked.upgrade() else { return };
                let flow = interceptor.original(peer, stream.local_addr().unwrap());
                let _ = match flow {
                    Some(flow) => writeln!(stream, "node, to {}", flow.destination),
                    None => writeln!(stream, "node, to nowhere"),
                };
                let _ = flow.map(|flow| sender.send(flow));
            }
        });
        Node { interceptor, flows, port: options.port }
    }

    /// What a client in the cgroup, in the node's namespace, is told: by the node or by the origin.
    pub(crate) fn client(&self, host: &impl ToString, settings: &[&str]) -> String {
        self.run(&[], CLIENT, &[&[host.to_string().as_str()], settings].concat())
    }

    /// As [`client`](Self::client), in the pod's namespace.
    pub(crate) fn pod_client(&self, host: &impl ToString, settings: &[&str]) -> String {
        let enter = format!("--net={}", self.namespace("pod").display());
        self.run(&["nsenter", &enter], CLIENT, &[&[host.to_string().as_str()], settings].concat())
    }

    /// The output of a Python script that runs in the cgroup and the pod's namespace.
    pub(crate) fn pod_run(&self, script: &str, arguments: &[&str]) -> String {
        let enter = format!("--net={}", self.namespace("pod").display());
        self.run(&["nsenter", &enter], script, arguments)
    }

    /// `ip` in the pod's namespace.
    pub(crate) fn ip_in_pod(&self, line: &str) {
        ip(&format!("-n {}-pod {line}", self.name));
    }

    /// As [`client`](Self::client), with a name server at `server`.
    pub(crate) fn resolving_client(&self, server: IpAddr, host: &str, settings: &[&str]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("nameserver {server}\noptions timeout:2 attempts:2\n")).unwrap();
        let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.path().display());
        self.run(&["unshare", "--mount", "sh", "-c", &mount, "sh"], CLIENT, &[&[host], settings].concat())
    }

    /// The output of a Python script that runs in the cgroup.
    pub(crate) fn run(&self, wrapper: &[&str], script: &str, arguments: &[&str]) -> String {
        let join = "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"";
        let output = Command::new("timeout")
            .args(["60", "sh", "-c", join, "sh"])
            .arg(&self.cgroup)
            .args(wrapper)
            .args(["python3", "-c", script])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin")
            .output()
            .unwrap();
        let mut told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            write!(told, "{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).unwrap();
        }
        told
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for end in ["node", "pod"] {
            let _ = Command::new("ip").args(["netns", "delete", &format!("{}-{end}", self.name)]).status();
        }
        // A cgroup is busy for a moment after its last process has ended.
        let begun = Instant::now();
        while fs::remove_dir(&self.cgroup).is_err() && begun.elapsed() < Duration::from_secs(5) {
            thread::yield_now();
        }
    }
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An attached interceptor and the listener that it leads to.
pub(crate) struct Node {
    pub(crate) interceptor: Arc<Interceptor>,
    pub(crate) flows: mpsc::Receiver<Flow>,
    pub(crate) port: u16,
}

impl Node {
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.interceptor.counters().into_iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    /// The flow that was last accepted.
    pub(crate) fn last_flow(&self) -> Flow {
        self.flows.try_iter().last().unwrap()
    }
}

/// What the client is told by the node.
pub(crate) fn caught(destination: impl std::fmt::Display) -> String {
    format!("node, to {destination}")
}

/// Answers every question with the records that `answer` makes of its question section, at `address`, port 53.
pub(crate) fn serve_dns(address: IpAddr, answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) {
    serve_dns_with(address, [0x81, 0x80], answer);
}

/// As [`serve_dns`], with other flags than those of a successful answer.
pub(crate) fn serve_dns_with(address: IpAddr, flags: [u8; 2], answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((len, client)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..len];
            let name_len = query[12..].iter().position(|byte| *byte == 0).unwrap();
            let question = &query[12..12 + name_len + 5];
            let records = answer(question);
            let head = [query[0], query[1], flags[0], flags[1], 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
            let _ = socket.send_to(&[&head, question, &records.concat()].concat(), client);
        }
    });
}

/// One resource record of class IN with a TTL of 60 s; `owner` in wire form.
pub(crate) fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let fixed = [&kind.to_be_bytes()[..], &[0, 1, 0, 0, 0, 60], &(data.len() as u16).to_be_bytes()].concat();
    [owner, &fixed, data].concat()
}
