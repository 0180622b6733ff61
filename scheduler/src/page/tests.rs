//! The page's port over real connections: who gets what, and what comes with it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::service::{Options as SchedulerOptions, Scheduler};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

struct Running {
    address: SocketAddr,
    token: String,
    dir: tempfile::TempDir,
    scheduler: Arc<Scheduler>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    async fn start(options: Options) -> Self {
        let running = Self::without_nodes(options).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheduler = Arc::clone(&running.scheduler);
        let serving = tokio::spawn(async move {
            scheduler.serve(listener, std::future::pending()).await.unwrap();
        });
        while !running.scheduler.viewer().serving() {
            tokio::task::yield_now().await;
        }
        let mut running = running;
        running.tasks.push(serving);
        running
    }

    async fn without_nodes(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let scheduler = Arc::new(Scheduler::open(dir.path(), SchedulerOptions::default()).unwrap());
        let page = Page::open(dir.path(), scheduler.viewer(), options).unwrap();
        let token = token(dir.path(), false).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = vec![tokio::spawn(page.serve(listener))];
        Self { address, token, dir, scheduler, tasks }
    }

    /// Head and body, of a connection that ends with the answer.
    async fn ask(&self, request: &str, headers: &str, body: &str) -> (String, String) {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.1\r\nhost: page\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LONG, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (String, String) {
        self.ask(&format!("GET {path}"), "", "").await
    }

    async fn get_as(&self, path: &str, token: &str) -> (String, String) {
        self.ask(&format!("GET {path}"), &format!("authorization: Bearer {token}\r\n"), "").await
    }

    async fn login(&self, token: &str) -> (String, String) {
        self.ask("POST /login", "content-type: text/plain\r\n", &format!("token={token}\r\n")).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

#[tokio::test]
async fn without_the_token_nothing_of_the_cluster_is_shown() {
    let running = Running::start(Options::default()).await;
    for path in ["/v1/cluster", "/v1/events", "/v1/nodes/a"] {
        let (head, body) = running.get(path).await;
        assert_eq!(status(&head), "401", "{path}");
        assert!(body.contains("token is needed") && !body.contains("gauges"), "{body}");
        let (head, _) = running.get_as(path, &"0".repeat(64)).await;
        assert_eq!(status(&head), "401", "{path}");
    }
    let (head, body) = running.get("/").await;
    assert_eq!(status(&head), "200");
    assert!(body.contains("<form") && !body.contains("<script>"), "the form that asks for it");
    assert!(head.contains("default-src 'none'") && head.contains("frame-ancestors 'none'"), "{head}");
}

#[tokio::test]
async fn the_token_opens_everything_and_a_cookie_stands_for_it_until_it_is_renewed() {
    let running = Running::start(Options::default()).await;
    let (head, body) = running.get_as("/v1/cluster", &running.token).await;
    assert_eq!(status(&head), "200");
    let seen: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&seen["gauges"]["connected"], seen["nodes"].as_array().unwrap().len()), (&0.into(), 0));

    let (head, _) = running.login(&running.token).await;
    assert_eq!(status(&head), "303");
    let set = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(set.contains("httponly") && set.contains("samesite=strict"), "{set}");
    let cookie = format!("cookie: {}\r\n", set.split(';').next().unwrap());
    let (head, body) = running.ask("GET /", &cookie, "").await;
    assert!(head.contains("script-src 'sha256-") && body.contains("<script>"), "{head}");
    assert_eq!(status(&running.ask("GET /v1/cluster", &cookie, "").await.0), "200");
    assert_eq!(status(&running.get_as("/v1/nodes/unknown", &running.token).await.0), "404");

    let renewed = token(running.dir.path(), true).unwrap();
    assert_ne!(renewed, running.token);
    assert_eq!(status(&running.ask("GET /v1/cluster", &cookie, "").await.0), "401");
    assert_eq!(status(&running.get_as("/v1/cluster", &renewed).await.0), "200");
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_the_form_says_so() {
    let running = Running::start(Options::default()).await;
    for wrong in ["", "0123456789abcdef", &running.token[..63]] {
        let (head, body) = running.login(wrong).await;
        assert_eq!(status(&head), "401");
        assert!(body.contains("role=\"alert\"") && !head.contains("set-cookie"), "{head}");
    }
    let (head, _) = running.ask("POST /login", "", &"x".repeat(8 << 10)).await;
    assert_eq!(status(&head), "400");
    assert_eq!(status(&running.get("/login").await.0), "405");
    assert_eq!(status(&running.ask("POST /v1/cluster", "", "").await.0), "405");
    assert_eq!(status(&running.get("/elsewhere").await.0), "404");
}

#[tokio::test]
async fn a_change_needs_the_token_or_its_cookie_from_this_very_page() {
    let running = Running::start(Options::default()).await;
    let path = format!("POST /v1/tasks/{}/spread", "ab".repeat(32));
    let spread = async |headers: &str, body: &str| status(&running.ask(&path, headers, body).await.0).to_owned();
    let bearer = format!("authorization: Bearer {}\r\n", running.token);
    let (head, _) = running.login(&running.token).await;
    let set = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = format!("cookie: {}\r\n", set.split(';').next().unwrap());
    assert_eq!(spread("", "{}").await, "401");
    assert_eq!(spread(&cookie, "{}").await, "403", "it does not say from where it comes");
    assert_eq!(spread(&format!("{cookie}origin: http://evil.example\r\n"), "{}").await, "403");
    assert_eq!(spread(&format!("{cookie}origin: http://page\r\n"), "{}").await, "404", "there is no such task");
    assert_eq!(spread(&bearer, "{}").await, "404");
    assert_eq!(spread(&bearer, "{\"labels\":[\"x\"]}").await, "400");
    let get = running.get_as(path.trim_start_matches("POST "), &running.token).await;
    assert_eq!(status(&get.0), "405");
}

#[tokio::test]
async fn metrics_and_health_are_open_and_metrics_ask_for_the_token_only_if_told_to() {
    let running = Running::start(Options::default()).await;
    let (head, body) = running.get("/metrics").await;
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(body.contains("pondhawk_scheduler_serving 1") && body.contains("pondhawk_scheduler_peers_connected 0"));
    assert_eq!(status(&running.get("/healthz").await.0), "200");
    assert_eq!(status(&running.get("/readyz").await.0), "200");

    let closed = Running::start(Options { metrics_need_token: true, token_file: None }).await;
    assert_eq!(status(&closed.get("/metrics").await.0), "401");
    assert_eq!(status(&closed.get_as("/metrics", &closed.token).await.0), "200");
    assert_eq!(status(&closed.get("/healthz").await.0), "200");
}

#[tokio::test]
async fn a_scheduler_that_serves_nobody_is_not_ready_but_alive() {
    let running = Running::without_nodes(Options::default()).await;
    assert_eq!(status(&running.get("/readyz").await.0), "503");
    assert_eq!(status(&running.get("/healthz").await.0), "200");
    assert!(running.get("/metrics").await.1.contains("pondhawk_scheduler_serving 0"));
}

#[tokio::test]
async fn events_begin_with_the_history_and_go_on_with_snapshots_for_a_bounded_number_of_viewers() {
    let running = Running::start(Options::default()).await;
    let mut viewers = Vec::new();
    for _ in 0..feed::MAX_VIEWERS {
        viewers.push(Events::open(&running).await.unwrap());
    }
    let one = &mut viewers[0];
    assert!(one.next_with("event: history\ndata: [").await);
    assert!(one.next_with("event: snapshot\ndata: {\"sample\":[").await);
    assert!(one.next_with("event: snapshot\ndata: {\"sample\":[").await);
    let (head, _) = running.get_as("/v1/events", &running.token).await;
    assert_eq!(status(&head), "503");
    viewers.pop();
    let mut again = Events::open(&running).await;
    while again.is_err() {
        sleep(Duration::from_millis(50)).await;
        again = Events::open(&running).await;
    }
}

/// A connection on which events come.
struct Events {
    socket: TcpStream,
    heard: String,
}

impl Events {
    async fn open(running: &Running) -> io::Result<Self> {
        let mut socket = TcpStream::connect(running.address).await?;
        let token = &running.token;
        let request = format!("GET /v1/events HTTP/1.1\r\nhost: page\r\nauthorization: Bearer {token}\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut events = Self { socket, heard: String::new() };
        if !events.next_with("\r\n\r\n").await {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(events)
    }

    /// Reads on until these words have come, and forgets what came up to them; false: it has ended.
    async fn next_with(&mut self, words: &str) -> bool {
        loop {
            if let Some(at) = self.heard.find(words) {
                let before = self.heard[..at].to_owned();
                self.heard.drain(..at + words.len());
                return !before.contains(" 503 ");
            }
            let mut bytes = [0; 4096];
            match timeout(LONG, self.socket.read(&mut bytes)).await {
                Ok(Ok(count)) if count > 0 => self.heard.push_str(&String::from_utf8_lossy(&bytes[..count])),
                _ => return false,
            }
        }
    }
}
