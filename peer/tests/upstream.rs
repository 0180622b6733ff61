//! A network whose only way out is an HTTP proxy: tinyproxy between node and hub, with and without its password.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "get/errand.rs"]
mod errand;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{net::TcpListener, time::Duration};

use errand::{Errand, MIB, direct_hub};
use pondhawk_bench::{
    hub::Content,
    lab::{Daemon, clean_command},
};
use stage::Stage;

const LOGIN: &str = "alice:open-sesame";

/// tinyproxy on a port of its own, for whoever has the login.
struct Proxy {
    daemon: Daemon,
    port: u16,
    dir: tempfile::TempDir,
}

impl Proxy {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (name, password) = LOGIN.split_once(':').unwrap();
        let lines = ["Listen 127.0.0.1", "Timeout 60", "MaxClients 100", "LogLevel Connect"].join("\n");
        let config = dir.path().join("tinyproxy.conf");
        std::fs::write(&config, format!("Port {port}\n{lines}\nBasicAuth {name} {password}\n")).unwrap();
        std::fs::write(dir.path().join("login"), format!("{LOGIN}\n")).unwrap();
        std::fs::write(dir.path().join("wrong"), "alice:guessed\n").unwrap();
        let mut command = clean_command("tinyproxy");
        command.arg("-d").arg("-c").arg(&config);
        let mut daemon = Daemon::spawn("tinyproxy", &mut command, &dir.path().join("log")).unwrap();
        daemon.wait_for_port(port, Duration::from_secs(20)).unwrap();
        Self { daemon, port, dir }
    }

    /// Settings of a node that uses it, with the login in this file.
    fn settings(&self, login: &str) -> [String; 2] {
        let file = self.dir.path().join(login);
        [format!("origin.proxy=http://127.0.0.1:{}", self.port), format!("origin.proxy_login={}", file.display())]
    }

    /// The variable for other programs.
    fn url(&self, login: &str) -> String {
        format!("http://{login}@127.0.0.1:{}", self.port)
    }

    /// Tunnels that it was asked for and gave, to this place.
    fn tunnels(&self, place: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        let (host, _) = place.rsplit_once(':').unwrap();
        log.matches(&format!("Established connection to host \"{host}\"")).count()
    }
}

fn node_by(settings: &[String], more: &[&str]) -> Stage {
    let settings: Vec<&str> = settings.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Stage::open(&settings)
}

#[test]
fn a_node_reaches_the_hub_by_the_proxy_and_not_around_it() {
    let mut proxy = Proxy::start();
    let stage = node_by(&proxy.settings("login"), &["origin.retries=1", "origin.connect_timeout=5s"]);
    let hub = stage.hub.tls_address().to_string();
    let file = stage.file("model.bin", 24 * MIB, 1);
    let answer = stage.get(&file);
    assert_eq!((answer.status, answer.body == file.bytes(0, file.len)), (200, true), "{}", stage.node.log());
    let tunnels = proxy.tunnels(&hub);
    assert!(tunnels > 1, "a file in parallel ranges is more than one tunnel: {tunnels}\n{}", proxy.daemon.tail());
    assert!(stage.ratio(&file) < 1.01, "{}", stage.ratio(&file));
    proxy.daemon.kill().unwrap();
    let other = stage.file("other.bin", MIB, 2);
    let answer = stage.get(&other);
    let said = answer.header("x-pondhawk-error").unwrap_or_default();
    assert!(answer.status == 502 && said.contains(&format!("proxy 127.0.0.1:{}", proxy.port)), "{answer:?}");
    assert!(stage.ratio(&other) == 0.0, "the hub was reached around the proxy");
    assert!(!stage.node.log().contains("sesame"), "the password is in the log");
}

#[test]
fn a_proxy_that_refuses_the_login_is_named() {
    let proxy = Proxy::start();
    for settings in [&proxy.settings("wrong")[..], &proxy.settings("login")[..1]] {
        let stage = node_by(settings, &[]);
        let file = stage.file("model.bin", MIB, 1);
        let answer = stage.get(&file);
        let said = answer.header("x-pondhawk-error").unwrap_or_default();
        assert!(answer.status == 502 && said.contains("wants a name and password"), "{answer:?}");
        assert!(!format!("{answer:?}{}", stage.node.log()).contains("guessed"));
    }
}

#[test]
fn what_needs_no_proxy_is_reached_without() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stage = node_by(&[format!("origin.proxy=http://{closed}")], &["origin.no_proxy=[huggingface.co]"]);
    let file = stage.file("model.bin", MIB, 1);
    let answer = stage.get(&file);
    assert_eq!((answer.status, answer.body == file.bytes(0, file.len)), (200, true), "{}", stage.node.log());
}

#[test]
fn get_takes_the_environment_s_proxy_to_what_it_asks_itself() {
    let (proxy, hub) = (Proxy::start(), direct_hub());
    hub.add_file("owner/model", "main", "model.bin", Content::seeded(MIB, 1)).unwrap();
    let errand = Errand::without(&hub);
    let get = ["hf://owner/model/model.bin", "--direct", "-o", "model.bin"];
    let done = errand.with(&get, &[("HTTPS_PROXY", &proxy.url("alice:guessed"))]);
    assert!(done.code == 1 && done.err.contains("wants a name and password"), "{}", done.err);
    let done = errand.with(&get, &[("HTTPS_PROXY", &proxy.url(LOGIN))]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(std::fs::read(errand.path("model.bin")).unwrap(), pondhawk_bench::hub::seeded(1, 0, MIB as usize));
    let (api, cdn) = (proxy.tunnels("127.0.0.1:0"), proxy.tunnels("localhost:0"));
    assert!(api > 0 && cdn > 0, "the Hub and its CDN: {api}, {cdn}\n{}", proxy.daemon.tail());
    let done = errand.with(&get, &[("HTTPS_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "127.0.0.1,localhost")]);
    assert_eq!(done.code, 0, "{}", done.err);
}
