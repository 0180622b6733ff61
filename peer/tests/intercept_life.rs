//! A whole node over its life: clients that distrust it, its death and return, and connections that are not its own.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[path = "intercept_life/hostile.rs"]
mod hostile;
#[path = "intercept_life/passthrough.rs"]
mod passthrough;
#[path = "intercept_life/raw.rs"]
mod raw;
#[path = "intercept_life/site.rs"]
mod site;

use std::process::Stdio;

use pondhawk_bench::{clients::Client, lab::wait_until};
use site::{SOON, Setting, Site, Trust, installed, on_site};

#[test]
fn curl_without_the_ca_fails_once_then_goes_direct_while_a_trusting_client_is_caught() {
    let test = "curl_without_the_ca_fails_once_then_goes_direct_while_a_trusting_client_is_caught";
    on_site(test, Setting::default(), |site| {
        let error = site.curl(&site.stranger, site.host(), Trust::OriginOnly).unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        wait_until(SOON, || (bypasses(site, "unknown_ca") == 1).then_some(())).expect("the alert is noticed");
        assert_eq!(site.caught(&site.stranger, site.host(), Trust::OriginOnly), 0);
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
        assert_eq!(site.caught(&site.stranger, site.host(), Trust::OriginOnly), 0);
        assert!(site.decisions("bypassed") >= 2);
        blames(site, "/stranger, uid 0");
    });
}

fn bypasses(site: &Site, reason: &str) -> u64 {
    site.metric(&format!("pondhawk_bypasses_total{{reason=\"{reason}\"}}"))
}

/// The log says who does not trust the node, and what would help.
fn blames(site: &Site, who: &str) {
    let log = site.log();
    let line = log.lines().find(|line| line.contains("does not trust this node's certificate authority"));
    let line = line.unwrap_or_else(|| panic!("nobody is blamed in\n{log}"));
    for part in [who, "cdn-lfs.huggingface.co", "pondhawk ca install", "pondhawk ca env"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn huggingface_hub_without_the_ca_succeeds_by_its_own_retry() {
    let test = "huggingface_hub_without_the_ca_succeeds_by_its_own_retry";
    let clients = [Client::Hub1, Client::Hub2];
    if !installed(test, &clients) {
        return;
    }
    on_site(test, Setting::default(), |site| {
        for client in clients {
            let group = site.trusting.child(if client == Client::Hub1 { "one" } else { "two" }).unwrap();
            let before = bypasses(site, "unknown_ca");
            site.download(&site.recipe(client, Trust::OriginOnly), &group).unwrap();
            assert!(bypasses(site, "unknown_ca") > before, "{} was never caught", client.name());
        }
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1, "their parent group is still caught");
    });
}

/// GnuTLS looks at the certificate after the handshake and leaves without an alert.
#[test]
fn wget_and_aria2c_without_the_ca_succeed_when_run_again() {
    let test = "wget_and_aria2c_without_the_ca_succeed_when_run_again";
    let clients = [Client::Wget, Client::Aria2];
    if !installed(test, &clients) {
        return;
    }
    on_site(test, Setting::default(), |site| {
        for client in clients {
            let group = site.trusting.child(if client == Client::Wget { "wget" } else { "aria2" }).unwrap();
            let bypassed = || ["unknown_ca", "bad_certificate", "gave_up"].map(|reason| bypasses(site, reason));
            let before = bypassed();
            // Where the client tries again by itself the first run succeeds.
            let first = site.download(&site.recipe(client, Trust::OriginOnly), &group);
            let noticed = wait_until(SOON, || (bypassed() != before).then_some(()));
            noticed.unwrap_or_else(|| panic!("{} was not noticed: {first:?}", client.name()));
            site.download(&site.recipe(client, Trust::OriginOnly), &group).unwrap();
        }
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
    });
}

#[test]
fn a_bypass_ends_after_its_time() {
    let setting = Setting { bypass_for: "4s", ..Setting::default() };
    on_site("a_bypass_ends_after_its_time", setting, |site| {
        site.curl(&site.stranger, site.host(), Trust::OriginOnly).unwrap_err();
        wait_until(SOON, || (bypasses(site, "unknown_ca") == 1).then_some(())).unwrap();
        let caught = wait_until(SOON, || (site.caught(&site.stranger, site.host(), Trust::Node) == 1).then_some(()));
        caught.expect("the source is caught again");
        assert!(site.decisions("bypassed") >= 1, "it was never let through");
    });
}

#[test]
fn after_kill_9_connections_go_direct_and_a_new_node_catches_them_again() {
    let test = "after_kill_9_connections_go_direct_and_a_new_node_catches_them_again";
    on_site(test, Setting::default(), |site| {
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
        site.node().kill().unwrap();
        for _ in 0..5 {
            site.curl(&site.trusting, site.host(), Trust::OriginOnly).unwrap();
        }
        site.start_node();
        let before = site.wanted_bytes();
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
        assert!(site.wanted_bytes() - before <= 1, "the file was still there");
    });
}

impl Site {
    /// Bytes of the file that the hub has sent.
    fn wanted_bytes(&self) -> u64 {
        self.hub().stats().unwrap().object("owner/model/model.bin").body_bytes
    }
}

/// A client whose patience ended while the node hung was taken for one that distrusts its certificate, and let through for
/// minutes after the node had come back.
#[test]
fn a_node_that_hangs_is_gone_round_until_it_answers_again() {
    on_site("a_node_that_hangs_is_gone_round_until_it_answers_again", Setting::default(), |site| {
        site.node().freeze().unwrap();
        let direct = wait_until(SOON, || {
            let bundle = site.bundle(Trust::OriginOnly);
            let url = site.url();
            let words = ["curl", "-fsS", "-o", "/dev/null", "--max-time", "2", "--cacert"];
            let words = [&words[..], &[bundle.to_str().unwrap(), &url]].concat();
            site.run(&site.trusting, site.host(), &words).status.success().then_some(())
        });
        direct.expect("connections go direct");
        site.curl(&site.trusting, site.host(), Trust::OriginOnly).unwrap();
        site.node().thaw().unwrap();
        wait_until(SOON, || site.catches().then_some(())).expect("they are caught again");
        assert!(site.decisions("stale_heartbeat") >= 2);
        assert_eq!(["unknown_ca", "gave_up"].map(|reason| bypasses(site, reason)), [0, 0]);
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
    });
}

#[test]
fn a_node_that_drains_finishes_its_downloads_and_new_connections_go_direct() {
    let test = "a_node_that_drains_finishes_its_downloads_and_new_connections_go_direct";
    // The 16 connections of a download bring 8 MiB in several seconds.
    let setting = Setting { hub: &["--limit-connection", "128KiB"], ..Setting::default() };
    on_site(test, setting, |site| {
        let (file, bundle, url) = (site.fresh("slow"), site.bundle(Trust::Node), site.url());
        let [file, bundle] = [&file, &bundle].map(|path| path.to_str().unwrap());
        let words = ["curl", "-fsS", "-o", file, "--cacert", bundle, &url];
        let running = site.command(&site.trusting, site.host(), &words).stdout(Stdio::null()).spawn().unwrap();
        wait_until(SOON, || (site.wanted_bytes() > 100_000).then_some(())).expect("it downloads");
        site.node().signal(rustix::process::Signal::TERM).unwrap();
        site.node().wait_for_log("draining", SOON).unwrap();
        let origin_only = site.bundle(Trust::OriginOnly);
        let first = ["curl", "-fsS", "-r0-9", "--cacert", origin_only.to_str().unwrap(), &url];
        let direct = site.run(&site.trusting, site.host(), &first);
        assert!(direct.status.success(), "{}", String::from_utf8_lossy(&direct.stderr));
        assert!(site.node().is_running(), "the download was over before it could be drained");
        let done = running.wait_with_output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(site::sha256(file.as_ref()), site.wanted.sha256);
        assert!(site.node().wait_for_exit(SOON).unwrap().success());
        site.hub().set_limits(pondhawk_bench::hub::Rates::default()).unwrap();
        site.start_node();
        let before = site.wanted_bytes();
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
        assert!(site.wanted_bytes() - before <= 1, "what was drained was kept");
    });
}

/// Makes requests one after the other on new connections for argv[3] seconds; prints how many, and the first failure.
const BUSY: &str = r"
import ssl, socket, sys, time
bundle, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
context = ssl.create_default_context(cafile=bundle)
host, count, end = 'cdn-lfs.huggingface.co', 0, time.time() + seconds
try:
    while time.time() < end:
        s = context.wrap_socket(socket.create_connection((host, 443), 20), server_hostname=host)
        s.sendall(f'GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes=0-9\r\nConnection: close\r\n\r\n'.encode())
        answer = b''
        while more := s.recv(65536): answer += more
        assert answer.startswith(b'HTTP/1.1 206'), answer[:200]
        count += 1
    print(count)
except Exception as error:
    print(f'after {count}: {error!r}')
";

#[test]
fn no_request_is_lost_when_a_node_drains() {
    on_site("no_request_is_lost_when_a_node_drains", Setting::default(), |site| {
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
        let (bundle, url) = (site.bundle(Trust::Node), site.url());
        let path = url.strip_prefix("https://cdn-lfs.huggingface.co").unwrap();
        let words = ["python3", "-c", BUSY, bundle.to_str().unwrap(), path, "4"];
        let before = site.requests();
        let busy: Vec<_> = (0..4).map(|_| site.command(&site.trusting, site.host(), &words).spawn().unwrap()).collect();
        wait_until(SOON, || (site.requests() > before + 40).then_some(())).expect("they are busy");
        assert!(site.node().terminate(SOON).unwrap().success());
        for client in busy {
            let done = client.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&done.stdout);
            assert!(said.trim().parse::<u32>().is_ok_and(|count| count > 0), "{said}");
        }
    });
}

#[test]
fn a_fresh_name_is_caught_by_its_dns_answer_and_other_destinations_are_not_touched() {
    let test = "a_fresh_name_is_caught_by_its_dns_answer_and_other_destinations_are_not_touched";
    let names = ["--dns-record", "new.cdn.hf.co=10.77.0.77", "--dns-record", "elsewhere.example=10.77.0.78"];
    let setting = Setting { hub: Box::leak(Box::new(names)), ..Setting::default() };
    on_site(test, setting, |site| {
        let to = site.second_address();
        let other = "10.77.0.78:443".parse().unwrap();
        site.lab().hub().netns.ip("addr add 10.77.0.78/24 dev eth0").unwrap();
        let by_name = "name = sys.argv[2]\ns.close()\ns = socket.create_connection((name, 443), 40)\n\
                       s.sendall(b'plain'); s.shutdown(1); print(rest(s).decode())";
        let _second = raw::serve(&site.lab().hub().netns, to, 3, raw::echo);
        let _third = raw::serve(&site.lab().hub().netns, other, 3, raw::echo);
        let names = ["redirected_v4", "dns_learnt"];
        let before = names.map(|name| site.decisions(name));
        // The first connection is made by address, before the name was asked for.
        assert_eq!(raw::client(site, to, "s.sendall(b'early'); s.shutdown(1); print(rest(s).decode())", &[]), "early");
        assert_eq!(names.map(|name| site.decisions(name)), before, "an address that no DNS answer gave is left alone");
        assert_eq!(raw::client(site, other, by_name, &["elsewhere.example"]), "plain");
        assert_eq!(names.map(|name| site.decisions(name)), before, "other names' addresses are left alone");
        let passed = site.passed("not_tls");
        assert_eq!(raw::client(site, other, by_name, &["new.cdn.hf.co"]), "plain");
        assert_eq!(site.decisions("redirected_v4"), before[0] + 1);
        assert!(site.decisions("dns_learnt") > before[1]);
        assert_eq!(site.passed("not_tls"), passed + 1);
    });
}

#[test]
fn a_pod_is_caught_over_both_families_and_shares_the_nodes_download() {
    let test = "a_pod_is_caught_over_both_families_and_shares_the_nodes_download";
    on_site(test, Setting::default(), |site| {
        let pod = site.lab().pod().unwrap();
        pod.netns.set_nameserver(Some(site.lab().hub().v4.into())).unwrap();
        assert_eq!(site.caught(&site.trusting, &pod.netns, Trust::Node), 1);
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
        for family in ["-4", "-6"] {
            let (bundle, url, before) = (site.bundle(Trust::Node), site.url(), site.requests());
            let words = ["curl", family, "-fsS", "-r0-9", "--cacert", bundle.to_str().unwrap(), &url];
            assert!(site.run(&site.trusting, &pod.netns, &words).status.success());
            assert_eq!(site.requests(), before + 1, "{family}");
        }
        let ratio = site.wanted_bytes() as f64 / site.wanted.size as f64;
        assert!((1.0..1.01).contains(&ratio), "{ratio:.4} files from the origin");
        let distrusting = site.curl(&site.stranger, &pod.netns, Trust::OriginOnly);
        assert!(distrusting.is_err_and(|error| error.contains("certificate")));
        wait_until(SOON, || (bypasses(site, "unknown_ca") == 1).then_some(())).unwrap();
        assert_eq!(site.caught(&site.stranger, &pod.netns, Trust::OriginOnly), 0);
        assert_eq!(site.caught(&site.stranger, site.host(), Trust::Node), 1, "another namespace is another source");
    });
}

/// argv: bundle, path, sequential, parallel. Prints how many answers were right.
pub(crate) const MANY: &str = r"
import ssl, socket, sys, threading
bundle, path, sequential, parallel = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
context = ssl.create_default_context(cafile=bundle)
host, good, failures = 'cdn-lfs.huggingface.co', [], []
def one():
    try:
        s = context.wrap_socket(socket.create_connection((host, 443), 50), server_hostname=host)
        s.sendall(f'GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes=0-9\r\nConnection: close\r\n\r\n'.encode())
        answer = b''
        while more := s.recv(65536): answer += more
        assert answer.startswith(b'HTTP/1.1 206') and answer[-14:-10] == b'\r\n\r\n', answer[:200]
        good.append(1)
    except Exception as error: failures.append(repr(error))
for _ in range(sequential): one()
threads = [threading.Thread(target=one) for _ in range(parallel)]
for t in threads: t.start()
for t in threads: t.join()
print(len(good), *failures[:3])
";

#[test]
fn of_many_short_connections_none_is_lost_and_nothing_of_them_stays() {
    on_site("of_many_short_connections_none_is_lost_and_nothing_of_them_stays", Setting::default(), |site| {
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1);
        let (bundle, url) = (site.bundle(Trust::Node), site.url());
        let path = url.strip_prefix("https://cdn-lfs.huggingface.co").unwrap();
        let counted = ["redirected_v4", "redirected_v6", "flow_established", "flow_lost", "flow_insert_failed"];
        let before = counted.map(|name| site.decisions(name));
        let words = ["python3", "-c", MANY, bundle.to_str().unwrap(), path, "500", "200"];
        let done = site.run(&site.trusting, site.host(), &words);
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "700", "{}", String::from_utf8_lossy(&done.stderr));
        let after = counted.map(|name| site.decisions(name));
        let [v4, v6, established, lost, failed] = std::array::from_fn(|at| after[at] - before[at]);
        assert_eq!((v4 + v6, established, lost, failed), (700, 700, 0, 0));
        let open = "pondhawk_connections_open{way=\"intercept\"}";
        wait_until(SOON, || (site.metric(open) == 0).then_some(())).expect("every connection ends");
        assert_eq!(entries(site, "FLOWS"), 0);
        assert_eq!(entries(site, "PENDING"), 0);
    });
}

/// How many entries a map of the node's programs has.
fn entries(site: &Site, name: &str) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{}/fdinfo", site.node_pid())).unwrap();
    let infos = folder.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
    let id = |info: String| info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u32>().ok());
    let maps = infos.filter_map(id).map(|id| aya::maps::MapData::from_id(id).unwrap());
    let mut found = maps.filter(|map| map.info().unwrap().name_as_str() == Some(name));
    let map = found.next().unwrap_or_else(|| panic!("the node holds no map {name}"));
    match name {
        "FLOWS" => keys::<pondhawk_ebpf::FlowKey>(map),
        _ => keys::<u64>(map),
    }
}

fn keys<K: aya::Pod>(map: aya::maps::MapData) -> usize {
    let map = aya::maps::Map::LruHashMap(map);
    let map = aya::maps::HashMap::<_, K, pondhawk_ebpf::Original>::try_from(map).unwrap();
    map.keys().filter(Result::is_ok).count()
}
