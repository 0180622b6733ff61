//! The admin port over real sockets, with a node of wax behind it.

use std::{
    io::{Read, Write},
    sync::Mutex,
};

use super::*;
use crate::metrics::{Outcome, Way};

#[derive(Default)]
struct Wax {
    socket: std::sync::OnceLock<String>,
    tasks: Mutex<Vec<Task>>,
    unready: Mutex<Vec<String>>,
    degraded: Mutex<Vec<String>>,
}

fn task(digit: char, in_use: bool) -> Task {
    Task {
        id: digit.to_string().repeat(64),
        label: "cdn-lfs.hf.co/repos/a/b".into(),
        bytes: 10,
        held_bytes: 5,
        pieces: 2,
        held_pieces: 1,
        verdict: "pending".into(),
        in_use,
        pinned: false,
        origin_bytes: 0,
        peer_bytes: 0,
        created_unix: 1,
        used_unix: 2,
    }
}

impl Control for Wax {
    fn tasks(&self) -> Vec<Task> {
        self.tasks.lock().unwrap().clone()
    }

    fn remove(&self, id: &TaskId) -> Removal {
        let mut tasks = self.tasks.lock().unwrap();
        match tasks.iter().position(|task| task.id == id.to_string()) {
            None => Removal::Unknown,
            Some(at) if tasks[at].in_use => Removal::InUse,
            Some(at) if tasks[at].pinned => Removal::Pinned,
            Some(at) => {
                tasks.remove(at);
                Removal::Removed
            }
        }
    }

    fn pin(&self, id: &TaskId, pinned: bool) -> Result<bool, String> {
        let mut tasks = self.tasks.lock().unwrap();
        let found = tasks.iter_mut().find(|task| task.id == id.to_string());
        Ok(found.map(|task| task.pinned = pinned).is_some())
    }

    fn preheat(&self, wanted: PreheatWanted) -> Result<u64, PreheatRefusal> {
        match wanted.url.as_str() {
            "full" => Err(PreheatRefusal::Full("full".into())),
            "other" => Err(PreheatRefusal::NotServed("other".into())),
            _ => Ok(9),
        }
    }

    fn preheats(&self) -> Vec<Preheat> {
        vec![Preheat { id: 9, state: "waiting".into(), ..Preheat::default() }]
    }

    fn socket(&self) -> Option<String> {
        self.socket.get().cloned()
    }

    fn status(&self) -> Status {
        Status { version: "1.2.3".into(), unready: self.unready(), ..Status::default() }
    }

    fn degraded(&self) -> Vec<String> {
        self.degraded.lock().unwrap().clone()
    }

    fn unready(&self) -> Vec<String> {
        self.unready.lock().unwrap().clone()
    }
}

struct Node {
    address: SocketAddr,
    dir: tempfile::TempDir,
    wax: Arc<Wax>,
    metrics: Arc<Metrics>,
    _runtime: tokio::runtime::Runtime,
}

fn node() -> Node {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let admin = runtime.block_on(Admin::bind("127.0.0.1:0".parse().unwrap())).unwrap();
    let (address, wax, metrics) = (admin.address(), Arc::new(Wax::default()), Metrics::new());
    runtime.spawn(admin.serve(Arc::clone(&metrics), Arc::clone(&wax) as Arc<dyn Control>));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let socket = runtime.block_on(async { AdminSocket::bind(&path, AdminAccess::default()) }).unwrap();
    runtime.spawn(socket.serve(Arc::clone(&metrics), Arc::clone(&wax) as Arc<dyn Control>));
    wax.socket.set(path.display().to_string()).unwrap();
    Node { address, dir, wax, metrics, _runtime: runtime }
}

/// Status and body of one request; `extra` are header lines.
fn exchange(mut socket: impl Read + Write, line: &str, extra: &str) -> (u16, Vec<u8>) {
    write!(socket, "{line} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{extra}\r\n").unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(head))
}

impl Node {
    /// By the TCP port.
    fn ask(&self, line: &str, extra: &str) -> (u16, Vec<u8>) {
        let socket = std::net::TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        exchange(socket, line, extra)
    }

    /// By the Unix socket, as the user of this test: the node's own.
    fn change(&self, line: &str, extra: &str) -> (u16, Vec<u8>) {
        let socket = std::os::unix::net::UnixStream::connect(self.dir.path().join("admin.sock")).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        exchange(socket, line, extra)
    }

    fn text(&self, line: &str) -> (u16, String) {
        let (status, body) = self.ask(line, "");
        (status, String::from_utf8(body).unwrap())
    }
}

#[test]
fn metrics_are_those_of_the_node() {
    let node = node();
    node.metrics.request(Way::Proxy, Outcome::Hit);
    let (status, text) = node.text("GET /metrics");
    assert_eq!(status, 200);
    assert!(text.contains("pondhawk_requests_total{way=\"proxy\",outcome=\"hit\"} 1\n"), "{text}");
}

#[test]
fn a_degraded_node_is_ready_and_says_why() {
    let node = node();
    node.wax.degraded.lock().unwrap().push("the port is closed".to_owned());
    assert_eq!(node.text("GET /readyz"), (200, "ready\ndegraded: the port is closed\n".into()));
}

#[test]
fn a_node_that_drains_is_healthy_but_not_ready() {
    let node = node();
    assert_eq!(node.text("GET /readyz"), (200, "ready\n".into()));
    node.wax.unready.lock().unwrap().extend(["draining".to_owned(), "shard 1 is not up".to_owned()]);
    assert_eq!(node.text("GET /readyz"), (503, "draining\nshard 1 is not up\n".into()));
    assert_eq!(node.text("GET /healthz"), (200, "ok\n".into()));
}

#[test]
fn tasks_and_status_read_back_as_they_are() {
    let node = node();
    node.wax.tasks.lock().unwrap().push(task('a', false));
    let (status, text) = node.text("GET /v1/tasks");
    assert_eq!((status, serde_json::from_str::<Vec<Task>>(&text).unwrap()), (200, vec![task('a', false)]));
    let (status, text) = node.text("GET /v1/status");
    assert_eq!((status, serde_json::from_str::<Status>(&text).unwrap()), (200, node.wax.status()));
}

#[test]
fn a_task_is_removed_once_and_not_while_in_use() {
    let node = node();
    node.wax.tasks.lock().unwrap().extend([task('a', false), task('b', true)]);
    let delete = |digit: &str| node.change(&format!("DELETE /v1/tasks/{}", digit.repeat(64)), "").0;
    assert_eq!((delete("a"), delete("a"), delete("b")), (204, 404, 409));
    assert_eq!(node.wax.tasks(), [task('b', true)]);
    assert_eq!(node.change("DELETE /v1/tasks/abc", ""), (400, b"a task id is 64 hexadecimal digits\n".to_vec()));
}

#[test]
fn a_web_page_cannot_remove_a_task() {
    let node = node();
    node.wax.tasks.lock().unwrap().push(task('a', false));
    let line = format!("DELETE /v1/tasks/{}", "a".repeat(64));
    assert_eq!(node.change(&line, "Origin: http://evil.example\r\n").0, 403);
    assert_eq!(node.change(&line, "Origin: null\r\n").0, 403);
    assert_eq!(node.wax.tasks().len(), 1);
}

/// Any local user could pin or remove everything, since the loopback address was the authorisation.
#[test]
fn the_port_is_for_reading_and_names_the_socket() {
    let node = node();
    node.wax.tasks.lock().unwrap().push(task('a', false));
    let id = "a".repeat(64);
    let body = "Content-Length: 23\r\n\r\n{\"url\":\"https://c.ex/x\"}";
    let changes = [
        (format!("DELETE /v1/tasks/{id}"), ""),
        (format!("PUT /v1/tasks/{id}/pin"), ""),
        (format!("DELETE /v1/tasks/{id}/pin"), ""),
        ("POST /v1/preheats".to_owned(), body),
        ("GET /debug/pprof/profile?seconds=1".to_owned(), ""),
    ];
    for (line, extra) in changes {
        let (status, why) = node.ask(&line, extra);
        let why = String::from_utf8(why).unwrap();
        assert_eq!(status, 403, "{line}");
        assert!(why.contains(node.wax.socket.get().unwrap()), "{line}: {why}");
    }
    assert_eq!(node.wax.tasks(), [task('a', false)]);
    assert_eq!(node.change("GET /v1/tasks", "").0, 200);
}

#[test]
fn root_the_nodes_user_and_the_configured_ones_may_change_it() {
    let access = AdminAccess { users: vec![1000], groups: vec![27] };
    let admitted = |uid, groups: &[u32]| {
        let credentials = crate::uring::PeerCredentials { uid, groups: groups.to_vec() };
        access.admits(&credentials, 998)
    };
    assert!(admitted(0, &[0]) && admitted(998, &[998]) && admitted(1000, &[1000]) && admitted(1001, &[27, 1001]));
    assert!(!admitted(1001, &[1001, 0]) && !admitted(65534, &[65534]));
    assert!(!AdminAccess::default().admits(&crate::uring::PeerCredentials { uid: u32::MAX, groups: vec![] }, u32::MAX));
}

#[test]
fn a_socket_is_replaced_only_where_no_process_listens() {
    let node = node();
    let bind = |path: &std::path::Path| {
        node._runtime
            .block_on(async { AdminSocket::bind(path, AdminAccess::default()) })
            .map_err(|error| error.to_string())
    };
    let path = node.dir.path().join("admin.sock");
    assert!(bind(&path).is_err_and(|why| why.contains("another process listens there")));
    assert_eq!(node.change("GET /healthz", "").0, 200);
    let stale = node.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert_eq!(bind(&stale).unwrap().path(), stale);
    let file = node.dir.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    assert!(bind(&file).is_err_and(|why| why.contains("no socket")));
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    assert!(bind(&node.dir.path().join("x".repeat(120))).is_err());
}

#[test]
fn unknown_pages_and_wrong_methods_are_named() {
    let node = node();
    assert_eq!(node.text("GET /nothing").0, 404);
    assert_eq!(node.text("POST /metrics").0, 405);
    assert_eq!(node.text("GET /v1/tasks/abc").0, 405);
    assert_eq!(node.ask("HEAD /healthz", ""), (200, Vec::new()));
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let node = node();
    let (status, _) = node.ask("GET /healthz", &format!("X-Long: {}\r\n", "x".repeat(http_port::MAX_HEAD)));
    assert_eq!(status, 431);
}

#[test]
fn a_profile_is_taken_one_at_a_time_and_within_bounds() {
    let node = node();
    assert_eq!(node.change("GET /debug/pprof/profile?seconds=61", "").0, 400);
    assert_eq!(node.change("GET /debug/pprof/profile?seconds=x", "").0, 400);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..4).map(|_| scope.spawn(|| node.change("GET /debug/pprof/profile?seconds=2", ""))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let profiles: Vec<_> = answers.iter().filter(|(status, _)| *status == 200).collect();
    assert!(!profiles.is_empty());
    for (_, body) in profiles {
        use pprof::protos::Message;
        let profile = pprof::protos::Profile::decode(&body[..]).unwrap();
        assert!(!profile.sample_type.is_empty());
    }
    assert!(answers.iter().all(|(status, _)| [200, 409].contains(status)));
    assert_eq!(node.change("GET /debug/pprof/profile?seconds=1000", "").0, 400);
}

#[test]
fn files_to_preheat_are_accepted_on_the_socket_and_from_no_web_page() {
    let node = node();
    let post = |url: &str, extra: &str| {
        let body = format!("{{\"url\":\"{url}\"}}");
        let length = body.len();
        node.change("POST /v1/preheats", &format!("Content-Length: {length}\r\n{extra}\r\n{body}"))
    };
    // The blank line that `ask` adds comes after the body and is read by nobody.
    let (status, taken) = post("https://cdn.example/x", "");
    assert_eq!((status, taken.as_slice()), (202, &b"{\"id\":9}"[..]));
    assert_eq!((post("other", "").0, post("full", "").0), (421, 503));
    assert_eq!(post("https://cdn.example/x", "Origin: http://evil.example\r\n").0, 403);
    assert_eq!(node.change("POST /v1/preheats", "Content-Length: 2\r\n\r\n[]").0, 400);
    assert!(node.text("GET /v1/preheats").1.contains("\"state\":\"waiting\""));
    let line = format!("PUT /v1/tasks/{}/pin", "a".repeat(64));
    assert_eq!(node.change(&line, "Origin: http://evil.example\r\n").0, 403);
}

#[test]
fn a_pinned_task_is_not_removed_before_it_is_unpinned() {
    let node = node();
    node.wax.tasks.lock().unwrap().push(task('a', false));
    let id = "a".repeat(64);
    assert_eq!(node.change(&format!("PUT /v1/tasks/{id}/pin"), "").0, 204);
    assert_eq!(node.change(&format!("DELETE /v1/tasks/{id}"), "").0, 409);
    assert_eq!(node.change(&format!("DELETE /v1/tasks/{id}/pin"), "").0, 204);
    assert_eq!(node.change(&format!("DELETE /v1/tasks/{id}"), "").0, 204);
    assert_eq!(node.change(&format!("PUT /v1/tasks/{id}/pin"), "").0, 404);
}
