//! The admin port over real sockets, with a node of wax behind it.

use std::{
    io::{Read, Write},
    sync::Mutex,
};

use super::*;
use crate::metrics::{Outcome, Way};

#[derive(Default)]
struct Wax {
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
    wax: Arc<Wax>,
    metrics: Arc<Metrics>,
    _runtime: tokio::runtime::Runtime,
}

fn node() -> Node {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let admin = runtime.block_on(Admin::bind("127.0.0.1:0".parse().unwrap())).unwrap();
    let (address, wax, metrics) = (admin.address(), Arc::new(Wax::default()), Metrics::new());
    runtime.spawn(admin.serve(Arc::clone(&metrics), Arc::clone(&wax) as Arc<dyn Control>));
    Node { address, wax, metrics, _runtime: runtime }
}

impl Node {
    /// Status and body of one request; `extra` are header lines.
    fn ask(&self, line: &str, extra: &str) -> (u16, Vec<u8>) {
        let mut socket = std::net::TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        write!(socket, "{line} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{extra}\r\n").unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(head))
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
    let delete = |digit: &str| node.ask(&format!("DELETE /v1/tasks/{}", digit.repeat(64)), "").0;
    assert_eq!((delete("a"), delete("a"), delete("b")), (204, 404, 409));
    assert_eq!(node.wax.tasks(), [task('b', true)]);
    assert_eq!(node.text("DELETE /v1/tasks/abc"), (400, "a task id is 64 hexadecimal digits\n".into()));
}

#[test]
fn a_web_page_cannot_remove_a_task() {
    let node = node();
    node.wax.tasks.lock().unwrap().push(task('a', false));
    let line = format!("DELETE /v1/tasks/{}", "a".repeat(64));
    assert_eq!(node.ask(&line, "Origin: http://evil.example\r\n").0, 403);
    assert_eq!(node.ask(&line, "Origin: null\r\n").0, 403);
    assert_eq!(node.wax.tasks().len(), 1);
}

#[test]
fn another_machine_cannot_remove_a_task() {
    let refused = |peer: &str| routes::may_change(&hyper::HeaderMap::new(), peer.parse().unwrap()).is_err();
    assert!(refused("192.0.2.1:1"));
    assert!(refused("[::ffff:192.0.2.1]:1"));
    assert!(!refused("[::ffff:127.0.0.1]:1"));
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
    assert_eq!(node.text("GET /debug/pprof/profile?seconds=61").0, 400);
    assert_eq!(node.text("GET /debug/pprof/profile?seconds=x").0, 400);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..4).map(|_| scope.spawn(|| node.ask("GET /debug/pprof/profile?seconds=2", ""))).collect();
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
    assert_eq!(node.text("GET /debug/pprof/profile?seconds=1000").0, 400);
}

#[test]
fn files_to_preheat_are_taken_from_this_machine_and_from_no_web_page() {
    let node = node();
    let post = |url: &str, extra: &str| {
        let body = format!("{{\"url\":\"{url}\"}}");
        let length = body.len();
        node.ask("POST /v1/preheats", &format!("Content-Length: {length}\r\n{extra}\r\n{body}"))
    };
    // The blank line that `ask` adds comes after the body and is read by nobody.
    let (status, taken) = post("https://cdn.example/x", "");
    assert_eq!((status, taken.as_slice()), (202, &b"{\"id\":9}"[..]));
    assert_eq!((post("other", "").0, post("full", "").0), (421, 503));
    assert_eq!(post("https://cdn.example/x", "Origin: http://evil.example\r\n").0, 403);
    assert_eq!(node.ask("POST /v1/preheats", "Content-Length: 2\r\n\r\n[]").0, 400);
    assert!(node.text("GET /v1/preheats").1.contains("\"state\":\"waiting\""));
    let line = format!("PUT /v1/tasks/{}/pin", "a".repeat(64));
    assert_eq!(node.ask(&line, "Origin: http://evil.example\r\n").0, 403);
}

#[test]
fn a_pinned_task_is_not_removed_before_it_is_unpinned() {
    let node = node();
    node.wax.tasks.lock().unwrap().push(task('a', false));
    let id = "a".repeat(64);
    assert_eq!(node.ask(&format!("PUT /v1/tasks/{id}/pin"), "").0, 204);
    assert_eq!(node.ask(&format!("DELETE /v1/tasks/{id}"), "").0, 409);
    assert_eq!(node.ask(&format!("DELETE /v1/tasks/{id}/pin"), "").0, 204);
    assert_eq!(node.ask(&format!("DELETE /v1/tasks/{id}"), "").0, 204);
    assert_eq!(node.ask(&format!("PUT /v1/tasks/{id}/pin"), "").0, 404);
}
