//! The binary as a person meets it: output, messages and exit codes.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::{
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use pondhawk::{
    admin::{
        Admin, AdminAccess, AdminSocket, Control, Interception, Preheat, PreheatRefusal, PreheatWanted, Removal,
        Status, StoreStatus, Task,
    },
    config::Config,
    metrics::{Metrics, Totals},
    task::TaskId,
};

struct Wax(Mutex<Vec<Task>>, String);

impl Control for Wax {
    fn tasks(&self) -> Vec<Task> {
        self.0.lock().unwrap().clone()
    }

    fn remove(&self, id: &TaskId) -> Removal {
        let mut tasks = self.0.lock().unwrap();
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
        let mut tasks = self.0.lock().unwrap();
        let found = tasks.iter_mut().find(|task| task.id == id.to_string());
        Ok(found.map(|task| task.pinned = pinned).is_some())
    }

    fn preheat(&self, wanted: PreheatWanted) -> Result<u64, PreheatRefusal> {
        match wanted.url.contains("cdn.") {
            true => Ok(7),
            false => Err(PreheatRefusal::NotServed("another host".into())),
        }
    }

    fn preheats(&self) -> Vec<Preheat> {
        let label = "cdn.example/x".into();
        vec![Preheat { id: 7, label, state: "failed".into(), error: Some("no".into()), ..Preheat::default() }]
    }

    fn socket(&self) -> Option<String> {
        Some(self.1.clone())
    }

    fn status(&self) -> Status {
        Status {
            pid: std::process::id(),
            admin_socket: self.socket(),
            version: "1.2.3".into(),
            uptime_seconds: 7200,
            store: StoreStatus { dir: "/pond".into(), tasks: 2, bytes: 3 << 30, quota: 10 << 30 },
            totals: Totals { requests: 4, hits: 3, misses: 1, ..Totals::default() },
            interception: Interception { why_off: Some("CAP_BPF is missing".into()), ..Interception::default() },
            ..Status::default()
        }
    }

    fn unready(&self) -> Vec<String> {
        Vec::new()
    }
}

fn task(digit: char, label: &str, in_use: bool) -> Task {
    Task {
        id: digit.to_string().repeat(64),
        label: label.into(),
        bytes: 5 << 30,
        held_bytes: 5 << 30,
        pieces: 1000,
        held_pieces: 1000,
        verdict: "verified".into(),
        in_use,
        pinned: false,
        origin_bytes: 0,
        peer_bytes: 0,
        created_unix: 1,
        used_unix: u64::from(digit),
    }
}

struct Node {
    address: SocketAddr,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

fn node(tasks: Vec<Task>) -> Node {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let admin = runtime.block_on(Admin::bind("127.0.0.1:0".parse().unwrap())).unwrap();
    let address = admin.address();
    // Reached by every user, as the directory of a node's state is.
    let dir = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let socket = runtime.block_on(async { AdminSocket::bind(&path, AdminAccess::default()) }).unwrap();
    let wax = Arc::new(Wax(Mutex::new(tasks), path.display().to_string()));
    runtime.spawn(admin.serve(Metrics::new(), Arc::clone(&wax) as Arc<dyn Control>));
    runtime.spawn(socket.serve(Metrics::new(), wax));
    Node { address, dir, _runtime: runtime }
}

fn pondhawk(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pondhawk"));
    let Output { status, stdout, stderr } =
        command.args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

impl Node {
    fn ask(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        pondhawk(arguments, &[("PONDHAWK_ADMIN", &self.address.to_string())])
    }
}

#[test]
fn the_example_passes_the_check_and_shows_as_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pond.yaml");
    let (code, example, _) = pondhawk(&["config", "--example"], &[]);
    assert_eq!(code, Some(0));
    std::fs::write(&file, &example).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(pondhawk(&["config", "--check", file], &[]), (Some(0), format!("{file}: ok\n"), String::new()));
    let (code, shown, _) = pondhawk(&["config", "--show", "--config", file], &[]);
    assert_eq!((code, shown), (Some(0), Config::default().to_yaml()));
}

#[test]
fn a_wrong_file_is_refused_by_check_and_up_with_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pond.yaml");
    std::fs::write(&file, "store:\n  qouta: 1GiB\n").unwrap();
    let file = file.to_str().unwrap();
    let message = format!("pondhawk: {file}:2:3: unknown key `qouta`; did you mean `quota`?\n");
    assert_eq!(pondhawk(&["config", "--check", file], &[]), (Some(1), String::new(), message.clone()));
    assert_eq!(pondhawk(&["up", "--config", file], &[]), (Some(1), String::new(), message));
    let (code, _, message) = pondhawk(&["up", "--config", "/nowhere/pond.yaml"], &[]);
    assert_eq!((code, message.contains("/nowhere/pond.yaml: No such file")), (Some(1), true), "{message}");
}

/// A file of which nothing was read ended with 0, and so did one of which keys were dropped.
#[test]
fn an_import_says_by_its_exit_code_what_came_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dfdaemon.yaml");
    let import = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        pondhawk(&[&["config", "import", file.to_str().unwrap()], more].concat(), &[])
    };
    let (code, out, message) = import("kind: ConfigMap\ndata:\n  dfget.yaml: 'verbose: true'\n", &[]);
    assert_eq!((code, out.as_str(), message.as_str()), (Some(0), "log:\n  level: debug\n", ""));
    let (code, out, message) = import("verbose: true\nmanager: {addr: x}\n", &[]);
    assert!(code == Some(4) && out.contains("manager") && out.contains("level: debug"), "{code:?} {out} {message}");
    assert!(message.contains("not taken over"), "{message}");
    for nothing in
        ["kind: ConfigMap\ndata: {a.yaml: ''}\n", "manager: {addr: x}\n", "verbose: false\n", "- a\n", "a: ["]
    {
        let (code, _, message) = import(nothing, &[]);
        assert_eq!(code, Some(1), "{nothing}: {message}");
    }
    let values = "client: {config: {verbose: true}}\nseedClient: {config: {seedPeer: {enable: true}}}\n";
    let (code, out, _) = import(values, &["--part", "seedClient"]);
    assert!(code == Some(4) && out.contains("seed: true") && !out.contains("debug"), "{code:?} {out}");
    let unreadable = import("proxy: {registryMirror: {addr: 'http://plain.example'}}\n", &[]);
    assert!(unreadable.0 == Some(4) && unreadable.2.contains("mended by hand"), "{unreadable:?}");
}

#[test]
fn flags_win_over_the_environment() {
    let variables = [("PONDHAWK_STORE__QUOTA", "2GiB"), ("PONDHAWK_SHARDS", "3"), ("PONDHAWK_STROE__QUOTA", "1")];
    let (code, shown, warning) = pondhawk(&["config", "--show", "--set", "store.quota=3GiB"], &variables);
    let config = Config::parse(&shown, "shown".as_ref()).unwrap();
    assert_eq!((code, config.shards, config.store.quota.to_string()), (Some(0), 3, "3GiB".into()));
    assert!(warning.contains("PONDHAWK_STROE__QUOTA"), "{warning}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in
        [&[][..], &["fly"], &["config"], &["config", "--example", "--show"], &["rm"], &["rm", "--all", "aa"]]
    {
        assert_eq!(pondhawk(arguments, &[]).0, Some(2), "{arguments:?}");
    }
    let (code, version, _) = pondhawk(&["--version"], &[]);
    assert_eq!((code, version), (Some(0), concat!("pondhawk ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
}

#[test]
fn without_a_node_the_exit_code_is_3_and_the_message_says_what_to_do() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let preheat = ["preheat", "https://cdn.example/x"];
    for command in [&["ls"][..], &["status"], &["rm", "--all"], &["pin", "aaaaaaaa"], &["top"], &preheat] {
        let (code, out, message) = pondhawk(&[command, &["--admin", &free]].concat(), &[]);
        assert_eq!((code, out.as_str()), (Some(3), ""), "{command:?}");
        assert!(message.contains("no node answers") && message.contains("pondhawk up"), "{message}");
    }
}

#[test]
fn something_else_on_the_port_is_called_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stranger = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read(&mut [0; 1024]).unwrap();
        socket.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    let (code, _, message) = pondhawk(&["status", "--admin", &address], &[]);
    stranger.join().unwrap();
    assert_eq!((code, message.contains("is no pondhawk node")), (Some(1), true), "{message}");
}

#[test]
fn tasks_are_listed_the_last_used_first() {
    let node = node(vec![task('a', "one.example/x", false), task('b', "two.example/\u{1b}[2J", true)]);
    let (code, table, _) = node.ask(&["ls"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((code, lines.len()), (Some(0), 4), "{table}");
    assert!(lines[1].starts_with("bbbbbbbbbbbb  5.0 GiB  100%  in use"), "{table}");
    assert!(
        lines[2].starts_with("aaaaaaaaaaaa") && lines[2].contains("verified") && lines[2].ends_with("one.example/x")
    );
    assert!(!table.contains('\u{1b}'));
    assert_eq!(lines[3], "2 tasks, 10.0 GiB");
    let (_, json, _) = node.ask(&["ls", "--json"]);
    assert_eq!(serde_json::from_str::<Vec<Task>>(&json).unwrap().len(), 2);
}

#[test]
fn tasks_are_removed_by_their_first_digits_and_those_in_use_stay() {
    let node = node(vec![task('a', "a", false), task('b', "b", true), task('c', "c", false)]);
    let removed = format!("removed {}\n", "a".repeat(64));
    assert_eq!(node.ask(&["rm", "aaaaaaaaaaaa"]), (Some(0), removed, String::new()));
    let (code, _, message) = node.ask(&["rm", "aaaaaaaaaaaa"]);
    assert_eq!((code, message.as_str()), (Some(1), "pondhawk: no task begins with aaaaaaaaaaaa\n"));
    assert_eq!(node.ask(&["rm", "abc"]).0, Some(1));
    let (code, done, message) = node.ask(&["rm", "--all"]);
    assert_eq!((code, done), (Some(1), format!("removed {}\n", "c".repeat(64))));
    assert_eq!(message, "pondhawk: 1 of 2 tasks are in use or pinned, and stay\n");
}

#[test]
fn a_pinned_task_is_shown_as_such_and_stays() {
    let node = node(vec![task('a', "cdn.example/x", false)]);
    let id = "a".repeat(64);
    assert_eq!(node.ask(&["pin", "aaaaaaaa"]), (Some(0), format!("pinned {id}\n"), String::new()));
    assert!(node.ask(&["ls"]).1.contains("verified, pinned"));
    assert_eq!(node.ask(&["rm", "aaaaaaaa"]).0, Some(1));
    assert_eq!(node.ask(&["unpin", "https://cdn.example/x?Signature=other"]).1, format!("unpinned {id}\n"));
    let (code, _, message) = node.ask(&["pin", "https://cdn.example/other"]);
    assert_eq!((code, message.contains("preheat --pin")), (Some(1), true), "{message}");
    assert_eq!(node.ask(&["rm", "aaaaaaaa"]).0, Some(0));
}

/// The port's address is enough for root: the command asks the node behind it for its socket.
#[test]
fn changes_go_to_the_socket_whichever_of_both_is_named() {
    let node = node(vec![task('a', "a", false), task('b', "b", false)]);
    let socket = node.dir.path().join("admin.sock").display().to_string();
    let named = |arguments: &[&str], admin: &str| pondhawk(&[arguments, &["--admin", admin]].concat(), &[]);
    assert_eq!(named(&["pin", "aaaaaaaa"], &socket).0, Some(0));
    assert_eq!(named(&["unpin", "aaaaaaaa"], &node.address.to_string()).0, Some(0));
    assert!(named(&["ls"], &socket).1.contains("2 tasks"));
    let configured = node.dir.path().join("config.yaml");
    std::fs::write(&configured, format!("admin: {{socket: {socket}}}\nlisten: {{admin: off}}\n")).unwrap();
    let (code, out, message) = pondhawk(&["rm", "bbbbbbbb"], &[("PONDHAWK_CONFIG", configured.to_str().unwrap())]);
    assert_eq!((code, out), (Some(0), format!("removed {}\n", "b".repeat(64))), "{message}");
}

/// On a shared machine everyone could pin and remove everything.
#[test]
fn another_user_reads_and_changes_nothing() {
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var("PONDHAWK_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
        assert!(!required, "needs root, to run a command as another user");
        eprintln!("left out: needs root, to run a command as another user");
        return;
    }
    let node = node(vec![task('a', "a", false)]);
    // The test's binary may be below a directory that only root can enter.
    let binary = node.dir.path().join("pondhawk");
    // Copied by another process: a descriptor that this one has open for writing could be inherited by the children of other tests,
    // and no file that is open for writing can be run.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_pondhawk")).arg(&binary).status().unwrap().success());
    let socket = node.dir.path().join("admin.sock").display().to_string();
    let as_other = |arguments: &[&str], admin: &str| {
        let mut command = Command::new(&binary);
        command.args(arguments).args(["--admin", admin]).env_clear().current_dir("/").uid(65534).gid(65534);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for admin in [&socket, &node.address.to_string()] {
        assert!(as_other(&["ls"], admin).1.contains("1 tasks"));
        for change in [&["rm", "--all"][..], &["pin", "aaaaaaaa"], &["preheat", "https://cdn.example/x"]] {
            let (code, out, message) = as_other(change, admin);
            assert_eq!((code, out.as_str()), (Some(1), ""), "{change:?}: {message}");
            assert!(message.contains("user 65534 may not change this node"), "{message}");
        }
    }
    assert!(node.ask(&["ls"]).1.contains("1 tasks"));
}

#[test]
fn a_preheat_is_followed_to_its_end_and_what_failed_is_named() {
    let node = node(Vec::new());
    let (code, out, _) = node.ask(&["preheat", "https://cdn.example/x"]);
    assert_eq!((code, out.contains("waiting  cdn.example/x")), (Some(0), true), "{out}");
    let (code, out, message) = node.ask(&["preheat", "https://cdn.example/x", "--wait"]);
    assert_eq!((code, out.contains("failed: no")), (Some(1), true), "{out}");
    assert!(message.contains("1 of 1 files failed"), "{message}");
    let (code, _, message) = node.ask(&["preheat", "https://other.example/x"]);
    assert_eq!((code, message.contains("another host")), (Some(1), true), "{message}");
    assert_eq!(node.ask(&["preheat"]).0, Some(2));
}

#[test]
fn top_shows_one_frame_where_there_is_no_terminal() {
    let node = node(vec![task('a', "cdn.example/x", true), task('b', "cdn.example/y", false)]);
    let (code, frame, _) = node.ask(&["top"]);
    assert_eq!((code, frame.contains('\u{1b}')), (Some(0), false), "{frame}");
    assert!(frame.contains("hit ratio 75%") && frame.contains("aaaaaaaaaaaa") && !frame.contains("cdn.example/y"));
    let (_, json, _) = node.ask(&["top", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["busy"][0]["label"].as_str(), json["rates"]["origin"].as_u64()), (Some("cdn.example/x"), Some(0)));
}

#[test]
fn the_status_says_why_nothing_is_intercepted() {
    let node = node(Vec::new());
    let (code, text, _) = node.ask(&["status"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("interception  off: CAP_BPF is missing\n"), "{text}");
    assert!(text.contains("store         2 tasks, 3.0 GiB of 10.0 GiB in /pond\n"), "{text}");
    assert!(text.contains("hit ratio     75%\n"), "{text}");
    let (_, json, _) = node.ask(&["status", "--json"]);
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap().version, "1.2.3");
}

#[test]
fn a_node_that_cannot_start_says_so_and_logs_in_the_form_asked_for() {
    let settings = ["--set", "intercept.enabled=off", "--set", "data_dir=/proc/nowhere", "--set", "log.format=json"];
    let ports = ["--set", "listen.proxy=127.0.0.1:0", "--set", "listen.admin=off"];
    let (code, out, log) = pondhawk(&[&["up"][..], &settings, &ports].concat(), &[("PONDHAWK_STROE__QUOTA", "1GiB")]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{log}");
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(first["level"], "WARN");
    assert!(first["message"].as_str().unwrap().contains("PONDHAWK_STROE__QUOTA"), "{log}");
    assert!(log.lines().last().unwrap().starts_with("pondhawk: "), "{log}");
}
