//! The eBPF programs at work: real connections of real processes, in namespaces and a cgroup of the test's own.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[path = "intercept/lab.rs"]
mod lab;

use std::{
    env,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lab::{CDN_V4, CDN_V6, LONG, Lab, MARK, NODE_V4, NODE_V6, Node, caught, in_lab, record, serve_dns, serve_dns_with};
use pondhawk::intercept::{Interceptor, Mode, Options, Source};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

const ORIGIN: &str = "origin";
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const OPT: u16 = 41;

fn cdn_v4() -> SocketAddr {
    (CDN_V4, 443).into()
}

fn cdn_v6() -> SocketAddr {
    (CDN_V6, 443).into()
}

fn learn_cdn(node: &Node) {
    node.interceptor.learn(CDN_V4.into(), LONG);
    node.interceptor.learn(CDN_V6.into(), LONG);
}

#[test]
fn a_learnt_destination_is_redirected_and_its_original_is_known_once() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        learn_cdn(&node);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
        assert_eq!(lab.client(&CDN_V6, &[]), caught(cdn_v6()));
        assert_eq!(lab.client(&format!("::ffff:{CDN_V4}"), &[]), caught(cdn_v4()), "v4-mapped");
        let source = node.last_flow().source;
        assert_eq!(source.uid, 0);
        let name = lab.cgroup.file_name().unwrap();
        assert_eq!(source.cgroup().unwrap().file_name().unwrap(), name);
        assert!(source.to_string().starts_with(&format!("cgroup /{}, uid 0", name.display())));
        let counts = ["redirected_v4", "redirected_v6", "flow_established", "flow_lost"].map(|name| node.count(name));
        assert_eq!(counts, [2, 1, 3, 0]);
    });
}

/// Opens argv[2] connections to argv[1] before it reads from any; prints how many were told the same thing, and it.
const CONNECT_AT_ONCE: &str = r"
import collections, socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[2]))]
for s in sockets:
    s.setblocking(False)
    s.connect_ex((sys.argv[1], 443))
told = collections.Counter()
for s in sockets:
    s.settimeout(20)
    told[s.makefile().readline().strip()] += 1
print(*(f'{count} {line}' for line, count in told.items()), sep='; ')
";

#[test]
fn of_many_connections_at_once_each_has_its_flow() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        learn_cdn(&node);
        let told = lab.run(&[], CONNECT_AT_ONCE, &[&CDN_V4.to_string(), "200"]);
        assert_eq!(told, format!("200 {}", caught(cdn_v4())));
        assert_eq!(node.count("flow_lost"), 0);
    });
}

#[test]
fn a_flow_that_nobody_redirected_is_unknown() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        let client: SocketAddr = "10.99.0.2:40000".parse().unwrap();
        assert_eq!(node.interceptor.original(client, cdn_v4()), None);
    });
}

#[test]
fn mode_dns_leaves_unknown_and_expired_destinations_alone() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
        node.interceptor.learn(CDN_V4.into(), Duration::ZERO);
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
        assert!(node.interceptor.learnt().is_empty());
        assert_eq!(node.count("unknown_destination"), 2);
        learn_cdn(&node);
        node.interceptor.learn(CDN_V4.into(), Duration::ZERO);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()), "a shorter time does not replace a longer one");
    });
}

#[test]
fn mode_all_redirects_what_nobody_learnt() {
    in_lab(|lab| {
        let node = lab.node(|options| options.mode = Mode::All);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
        assert_eq!(lab.client(&CDN_V6, &[]), caught(cdn_v6()));
        assert_eq!(node.count("unknown_destination"), 0);
    });
}

#[test]
fn without_a_fresh_heartbeat_connections_go_direct() {
    in_lab(|lab| {
        let node = lab.node(|options| options.max_silence = Duration::from_millis(1));
        learn_cdn(&node);
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN, "a new process takes longer than a millisecond");
        assert_eq!(lab.client(&CDN_V6, &[]), ORIGIN);
        assert_eq!(node.count("stale_heartbeat"), 2);
    });
}

#[test]
fn a_dropped_interceptor_leaves_nothing_behind() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        learn_cdn(&node);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
        drop(node.interceptor);
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
    });
}

/// The process that the next test kills: attaches to the cgroup of its environment and beats. On its own it does nothing.
#[test]
#[expect(clippy::disallowed_methods, reason = "this process has no shards")]
fn hold_an_interceptor() {
    let Some(cgroup) = env::var_os("PONDHAWK_TEST_CGROUP") else { return };
    let port = env::var("PONDHAWK_TEST_PORT").unwrap().parse().unwrap();
    let max_silence = Duration::from_millis(500);
    let options = Options { cgroup: Some(cgroup.into()), mode: Mode::All, max_silence, ..lab::options(port) };
    let interceptor = Interceptor::attach(&options).unwrap();
    // At most two minutes.
    for _ in 0..2400 {
        interceptor.beat();
        thread::sleep(Duration::from_millis(50));
    }
}

/// Starts [`hold_an_interceptor`] in this thread's network namespace.
fn holder(lab: &Lab, port: u16) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "hold_an_interceptor"])
        .env("PONDHAWK_TEST_CGROUP", &lab.cgroup)
        .env("PONDHAWK_TEST_PORT", port.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Connects until the client is told this; half a minute at most.
fn is_told_in_time(lab: &Lab, told: &str) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        if lab.client(&CDN_V4, &[]) == told {
            return true;
        }
    }
    false
}

#[test]
fn a_killed_or_stopped_process_leaves_connections_alone() {
    in_lab(|lab| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"node\n");
            }
        });
        for signal in [Signal::STOP, Signal::KILL] {
            let mut process = holder(lab, port);
            let caught = is_told_in_time(lab, "node");
            kill_process(Pid::from_child(&process), signal).unwrap();
            let direct = is_told_in_time(lab, ORIGIN);
            process.kill().unwrap();
            process.wait().unwrap();
            assert!(caught, "never redirected");
            assert!(direct, "still redirected after {signal:?}");
        }
    });
}

#[test]
fn the_nodes_own_sockets_are_left_alone() {
    in_lab(|lab| {
        let node = lab.node(|options| options.mode = Mode::All);
        assert_eq!(lab.client(&CDN_V4, &[&format!("mark={MARK}")]), ORIGIN);
        assert_eq!(lab.client(&CDN_V6, &[&format!("mark={MARK}")]), ORIGIN);
        assert_eq!(node.count("own_mark"), 2);
        assert_eq!(lab.client(&CDN_V4, &["mark=1"]), caught(cdn_v4()), "another mark is not ours");
    });
}

#[test]
fn a_socket_bound_to_a_device_is_left_alone() {
    in_lab(|lab| {
        let node = lab.node(|options| options.mode = Mode::All);
        assert_eq!(lab.client(&CDN_V4, &["device=lo"]), ORIGIN);
        assert_eq!(node.count("bound_to_device"), 1);
    });
}

#[test]
fn a_socket_bound_to_an_address_is_redirected() {
    in_lab(|lab| {
        let node = lab.node(|options| {
            options.node_v4 = Some(NODE_V4);
            options.node_v6 = Some(NODE_V6);
        });
        learn_cdn(&node);
        assert_eq!(lab.client(&CDN_V4, &[&format!("bind={NODE_V4}")]), caught(cdn_v4()));
        assert_eq!(lab.client(&CDN_V6, &[&format!("bind={NODE_V6}")]), caught(cdn_v6()));
        assert_eq!(lab.pod_client(&CDN_V4, &["bind=10.99.0.2"]), caught(cdn_v4()));
        assert_eq!(lab.pod_client(&CDN_V6, &["bind=fd99::2"]), caught(cdn_v6()));
    });
}

#[test]
fn link_local_addresses_are_left_alone() {
    in_lab(|lab| {
        let node = lab.node(|options| options.mode = Mode::All);
        assert!(lab.client(&"169.254.1.1", &[]).contains("unreachable"));
        assert_eq!(node.count("local_scope"), 1);
    });
}

/// Runs `go` with these effective capabilities, which are a thread's own.
fn with_capabilities<T>(effective: CapabilitySet, go: impl FnOnce() -> T) -> T {
    let all = capabilities(None).unwrap();
    set_capabilities(None, CapabilitySets { effective, ..all }).unwrap();
    let result = go();
    set_capabilities(None, all).unwrap();
    result
}

#[test]
fn two_capabilities_are_enough_and_missing_ones_are_named() {
    in_lab(|lab| {
        let both = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
        let node = with_capabilities(both, || lab.node(|_| {}));
        learn_cdn(&node);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
        let refused = |effective| {
            let attach = || Interceptor::attach(&Options { cgroup: Some(lab.cgroup.clone()), ..lab::options(1) });
            with_capabilities(effective, attach).err().unwrap().to_string()
        };
        assert!(refused(CapabilitySet::empty()).contains("needs CAP_BPF and CAP_NET_ADMIN:"));
        assert!(refused(CapabilitySet::BPF).contains("needs CAP_NET_ADMIN:"));
        assert!(refused(CapabilitySet::NET_ADMIN).contains("needs CAP_BPF:"));
    });
}

#[test]
fn a_directory_that_is_no_cgroup_is_refused_by_name() {
    in_lab(|_| {
        let refused = |path: &str| {
            let attached = Interceptor::attach(&Options { cgroup: Some(path.into()), ..lab::options(1) });
            attached.err().unwrap().to_string()
        };
        assert!(refused("/proc").contains("/proc: not a directory of a cgroup2"));
        assert!(refused("/nonexistent").contains("/nonexistent: No such file"));
    });
}

#[test]
fn a_listener_on_port_443_is_not_redirected_to_itself() {
    in_lab(|lab| {
        let node = lab.node(|options| {
            options.mode = Mode::All;
            options.port = 443;
            options.node_v4 = Some(CDN_V4);
        });
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
        assert_eq!(node.count("loop_guard"), 1);
    });
}

#[test]
fn a_bypassed_source_goes_direct_until_its_time_is_over() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        learn_cdn(&node);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
        let source = node.last_flow().source;
        node.interceptor.bypass(&source, LONG);
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
        assert_eq!(lab.client(&CDN_V6, &[]), ORIGIN);
        assert_eq!(node.count("bypassed"), 2);
        assert_eq!(lab.client(&CDN_V4, &["uid=65534"]), caught(cdn_v4()), "another user of the same cgroup");
        let listed: Vec<Source> = node.interceptor.bypassed().into_iter().map(|(source, _)| source).collect();
        assert_eq!(listed, [source]);
        node.interceptor.bypass(&source, Duration::ZERO);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
    });
}

#[test]
fn clients_in_another_network_namespace_are_sent_to_the_nodes_address() {
    in_lab(|lab| {
        let node = lab.node(|options| {
            options.node_v4 = Some(NODE_V4);
            options.node_v6 = Some(NODE_V6);
        });
        learn_cdn(&node);
        assert_eq!(lab.pod_client(&CDN_V4, &[]), caught(cdn_v4()));
        let pod = node.last_flow().source;
        assert_eq!(lab.pod_client(&CDN_V6, &[]), caught(cdn_v6()));
        assert_eq!(lab.pod_client(&format!("::ffff:{CDN_V4}"), &[]), caught(cdn_v4()), "v4-mapped");
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
        let host = node.last_flow().source;
        assert_eq!(pod.cgroup_id, host.cgroup_id);
        assert_ne!(pod.netns_cookie, host.netns_cookie);
    });
}

#[test]
fn without_a_node_address_other_network_namespaces_go_direct() {
    in_lab(|lab| {
        let node = lab.node(|options| options.node_v4 = Some(NODE_V4));
        learn_cdn(&node);
        assert_eq!(lab.pod_client(&CDN_V6, &[]), ORIGIN);
        assert_eq!(node.count("no_node_address"), 1);
        assert_eq!(lab.pod_client(&CDN_V4, &[]), caught(cdn_v4()), "the other family has one");
    });
}

#[test]
fn the_loopback_of_another_network_namespace_is_its_own() {
    in_lab(|lab| {
        let node = lab.node(|options| {
            options.mode = Mode::All;
            options.node_v4 = Some(NODE_V4);
        });
        assert!(lab.pod_client(&"127.0.0.1", &[]).contains("Connection refused"));
        assert_eq!(node.count("local_scope"), 1);
    });
}

/// `name` in wire form.
fn wire(name: &str) -> Vec<u8> {
    name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect()
}

/// The address record that a question asks for, at `owner`.
fn cdn_record(question: &[u8], owner: &[u8]) -> Vec<u8> {
    if question.ends_with(&[0, 28, 0, 1]) {
        record(owner, AAAA, &CDN_V6.octets())
    } else {
        record(owner, A, &CDN_V4.octets())
    }
}

/// Answers everything by way of two CNAMEs, as content networks do.
fn answer_by_cnames(question: &[u8]) -> Vec<Vec<u8>> {
    let (first, second) = (wire("d1.cdn.example"), wire("edge.example.net"));
    vec![
        record(&[0xc0, 12], CNAME, &first),
        record(&first, CNAME, &second),
        cdn_record(question, &second),
        record(&[0], OPT, &[]),
    ]
}

fn learnt(node: &Node) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = node.interceptor.learnt().into_iter().map(|(address, _)| address).collect();
    addresses.sort();
    addresses
}

#[test]
fn a_dns_answer_teaches_the_destination() {
    in_lab(|lab| {
        serve_dns(CDN_V4.into(), answer_by_cnames);
        let node = lab.node(|_| {});
        let told = lab.resolving_client(CDN_V4.into(), "CDN-lfs.HF.test", &["family=4"]);
        assert_eq!(told, caught(cdn_v4()));
        assert_eq!(learnt(&node), [IpAddr::from(CDN_V4)]);
        let left = node.interceptor.learnt()[0].1;
        assert!(left > Duration::from_secs(60), "a short TTL is stretched: {left:?}");
        assert_eq!(
            lab.resolving_client(CDN_V4.into(), "hf.test", &["family=6"]),
            caught(cdn_v6()),
            "the suffix itself"
        );
        assert_eq!(node.count("dns_learnt"), 2);
        assert_eq!(node.count("dns_malformed"), 0);
    });
}

#[test]
fn a_dns_answer_over_ipv6_teaches_as_well() {
    in_lab(|lab| {
        serve_dns(CDN_V6.into(), answer_by_cnames);
        let node = lab.node(|_| {});
        assert_eq!(lab.resolving_client(CDN_V6.into(), "a.b.c.hf.test", &["family=6"]), caught(cdn_v6()));
        assert_eq!(learnt(&node), [IpAddr::from(CDN_V6)]);
    });
}

#[test]
fn dns_answers_for_other_names_teach_nothing() {
    in_lab(|lab| {
        serve_dns(CDN_V4.into(), answer_by_cnames);
        let node = lab.node(|_| {});
        for name in ["example.com", "nothf.test", "hf.test.example.com", "test"] {
            assert_eq!(lab.resolving_client(CDN_V4.into(), name, &["family=4"]), ORIGIN, "{name}");
        }
        assert!(learnt(&node).is_empty());
    });
}

/// Sends itself an answer for hf.test from port 53 with the address argv[1]; with argv[2] `asks` to a socket that asked.
const FORGE: &str = r"
import socket, sys
server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
server.bind(('127.0.0.1', 53)); client.bind(('127.0.0.1', 0)); client.settimeout(10)
if sys.argv[2] == 'asks': client.sendto(b'a question', ('127.0.0.1', 53))
answer = '00018180000100010000000002686604746573740000010001c00c000100010000003c0004'
server.sendto(bytes.fromhex(answer) + socket.inet_aton(sys.argv[1]), client.getsockname())
print(len(client.recv(2000)))
";

#[test]
fn a_dns_answer_that_the_socket_did_not_ask_for_teaches_nothing() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        assert_eq!(lab.run(&[], FORGE, &[&CDN_V4.to_string(), "asks not"]), "41");
        assert_eq!(learnt(&node), [] as [IpAddr; 0]);
        assert_eq!(node.count("dns_unasked"), 1);
        assert_eq!(lab.run(&[], FORGE, &[&CDN_V4.to_string(), "asks"]), "41");
        assert_eq!(learnt(&node), [IpAddr::from(CDN_V4)]);
    });
}

#[test]
fn a_dns_answer_in_one_network_namespace_teaches_nothing_to_others() {
    in_lab(|lab| {
        let node = lab.node(|options| options.node_v4 = Some(NODE_V4));
        assert_eq!(lab.pod_run(FORGE, &[&CDN_V4.to_string(), "asks"]), "41");
        assert_eq!(node.interceptor.overheard().len(), 1);
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
        assert_eq!(lab.pod_client(&CDN_V4, &[]), caught(cdn_v4()));
        node.interceptor.refuse(&node.last_flow().source, CDN_V4.into(), LONG);
        assert_eq!(lab.pod_client(&CDN_V4, &[]), ORIGIN, "a destination that the node refuses");
        assert_eq!(lab.pod_run(FORGE, &[&CDN_V4.to_string(), "asks"]), "41");
        assert_eq!(lab.pod_client(&CDN_V4, &[]), ORIGIN, "another answer does not end the refusal");
    });
}

#[test]
fn addresses_that_mean_another_host_to_the_node_are_left_alone_whatever_dns_says() {
    in_lab(|lab| {
        let node = lab.node(|options| {
            options.node_v4 = Some(NODE_V4);
            options.allow_private = true;
        });
        for address in ["0.0.0.0", "127.0.0.1", "169.254.169.254", "224.0.0.1", "10.9.0.1", &NODE_V4.to_string()] {
            assert_eq!(lab.pod_run(FORGE, &[address, "asks"]), "41");
            assert!(!lab.pod_client(&address, &[]).contains("node"), "{address}");
        }
        assert_eq!(["local_scope", "private_scope"].map(|name| node.count(name)), [4, 2]);
        assert_eq!(node.count("redirected_v4"), 0);
        node.interceptor.learn(NODE_V4.into(), LONG);
        lab.pod_client(&NODE_V4, &[]);
        assert_eq!(node.count("loop_guard"), 1, "the node's own address");
    });
}

#[test]
fn private_networks_are_left_alone_unless_the_settings_allow_them() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        node.interceptor.learn("10.1.2.3".parse().unwrap(), LONG);
        assert!(lab.client(&"10.1.2.3", &[]).contains("unreachable"));
        assert_eq!(node.count("private_scope"), 1);
        drop(node);
        let node = lab.node(|options| {
            options.allow_private = true;
            options.node_v4 = Some(NODE_V4);
        });
        assert_eq!(lab.pod_run(FORGE, &["10.1.2.3", "asks"]), "41");
        assert!(!lab.pod_client(&"10.1.2.3", &[]).contains("node"), "an answer alone does not do");
        assert_eq!(node.count("private_scope"), 1);
        node.interceptor.learn("10.1.2.3".parse().unwrap(), LONG);
        assert_eq!(lab.pod_client(&"10.1.2.3", &[]), caught("10.1.2.3:443"));
    });
}

#[test]
fn mode_all_leaves_unknown_destinations_of_other_network_namespaces_alone() {
    in_lab(|lab| {
        let node = lab.node(|options| {
            options.mode = Mode::All;
            options.node_v4 = Some(NODE_V4);
        });
        assert_eq!(lab.pod_client(&CDN_V4, &[]), ORIGIN);
        assert_eq!(node.count("unknown_destination"), 1);
    });
}

#[test]
fn a_paused_node_lets_connections_go_direct() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        learn_cdn(&node);
        node.interceptor.pause();
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
        assert_eq!(node.count("paused"), 1);
        node.interceptor.beat();
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
    });
}

#[test]
fn a_party_is_a_user_of_the_own_network_namespace_or_all_of_another() {
    in_lab(|lab| {
        let node = lab.node(|options| options.node_v4 = Some(NODE_V4));
        learn_cdn(&node);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()));
        node.interceptor.bypass_party(&node.last_flow().source, LONG);
        assert_eq!(lab.client(&CDN_V4, &[]), ORIGIN);
        assert_eq!(lab.client(&CDN_V4, &["uid=65534"]), caught(cdn_v4()));
        assert_eq!(lab.pod_client(&CDN_V4, &[]), caught(cdn_v4()));
        node.interceptor.bypass_party(&node.last_flow().source, LONG);
        assert_eq!(lab.pod_client(&CDN_V4, &["uid=65534"]), ORIGIN);
    });
}

/// Opens ten connections to argv[1] at once; prints how many were told the same thing, or failed.
const TEN_AT_ONCE: &str = r"
import collections, socket, sys
sockets = [socket.socket() for _ in range(10)]
for s in sockets:
    s.setblocking(False)
    s.connect_ex((sys.argv[1], 443))
told = collections.Counter()
for s in sockets:
    s.settimeout(8)
    try: told[s.makefile().readline().strip()] += 1
    except OSError as error: told['failed'] += 1
print(*(f'{count} {line}' for line, count in sorted(told.items())), sep='; ')
";

/// Pods whose packets to the node were dropped on the way lost every download for as long as the node ran.
#[test]
fn where_the_node_cannot_be_reached_one_connection_waits_and_all_others_go_direct() {
    in_lab(|lab| {
        // An address whose packets go to a machine that is not there.
        let nowhere = Ipv4Addr::new(10, 99, 0, 77);
        lab.ip_in_pod("neigh add 10.99.0.77 lladdr 02:00:00:00:00:77 dev veth0");
        let node = lab.node(|options| options.node_v4 = Some(nowhere));
        learn_cdn(&node);
        assert_eq!(lab.pod_run(TEN_AT_ONCE, &[&CDN_V4.to_string()]), "1 failed; 9 origin");
        assert_eq!(node.count("untried"), 9);
        assert_eq!(node.interceptor.unreachable().len(), 1);
        assert_eq!(lab.pod_run(TEN_AT_ONCE, &[&CDN_V4.to_string()]), "10 origin");
        assert_eq!(node.count("unreachable"), 10);
        assert_eq!(lab.client(&CDN_V4, &[]), caught(cdn_v4()), "the node's own network namespace reaches it");
        assert_eq!(node.interceptor.unreachable().len(), 1);
    });
}

/// A sidecar that takes the pod's connections for its own finishes their handshakes, and they never come to the node.
#[test]
fn a_connection_that_something_else_answers_does_not_count_as_arrived() {
    in_lab(|lab| {
        lab.ip_in_pod("address add 10.99.0.77/32 dev lo");
        let node = lab.node(|options| options.node_v4 = Some(Ipv4Addr::new(10, 99, 0, 77)));
        learn_cdn(&node);
        let sidecar = "import socket, sys, threading, time\n\
             l = socket.create_server(('10.99.0.77', int(sys.argv[2])))\n\
             s = socket.create_connection((sys.argv[1], 443)); s.close(); time.sleep(3)\n\
             s = socket.create_connection((sys.argv[1], 443)); print(s.makefile().readline().strip())";
        let port = node.port.to_string();
        assert_eq!(lab.pod_run(sidecar, &[&CDN_V4.to_string(), &port]), ORIGIN);
        assert_eq!(node.count("flow_established"), 1);
        assert_eq!(node.count("unreachable"), 1);
        assert_eq!(node.interceptor.unreachable().len(), 1);
    });
}

/// A client that sends a question for hf.test to argv[1] and waits for the answer, whatever it is.
const ASK: &str = r"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.sendto(bytes.fromhex('00010100000100000000000002686604746573740000010001'), (sys.argv[1], 53))
print(len(s.recv(2000)))
";

fn ask(lab: &Lab, server: Ipv4Addr) {
    let told = lab.run(&[], ASK, &[&server.to_string()]);
    assert!(told.parse::<usize>().is_ok(), "{told}");
}

#[test]
fn what_is_no_successful_dns_answer_teaches_nothing() {
    in_lab(|lab| {
        let node = lab.node(|_| {});
        // NXDOMAIN; a query.
        for (last, flags) in [(1, [0x81, 0x83]), (2, [0x01, 0x00])] {
            let server = Ipv4Addr::new(127, 0, 0, last);
            serve_dns_with(server.into(), flags, answer_by_cnames);
            ask(lab, server);
            assert_eq!(learnt(&node), [] as [IpAddr; 0], "flags {flags:x?}");
        }
    });
}

#[test]
fn a_malformed_dns_answer_is_delivered_and_teaches_what_comes_before() {
    in_lab(|lab| {
        let lie = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0xff, 0xff][..], &[9; 4]].concat();
        serve_dns(CDN_V4.into(), move |question| {
            vec![cdn_record(question, &[0xc0, 12]), lie.clone(), cdn_record(question, &[0xc0, 12])]
        });
        let node = lab.node(|_| {});
        ask(lab, CDN_V4);
        assert_eq!(node.count("dns_malformed"), 1);
        assert_eq!(learnt(&node), [IpAddr::from(CDN_V4)]);
    });
}

#[test]
fn a_dns_answer_with_many_records_is_read_up_to_the_bound() {
    in_lab(|lab| {
        let address = |last| Ipv4Addr::new(198, 51, 100, last);
        serve_dns(CDN_V4.into(), move |_| (0..40).map(|n| record(&[0xc0, 12], A, &address(n).octets())).collect());
        let node = lab.node(|_| {});
        ask(lab, CDN_V4);
        let first: Vec<IpAddr> = (0..24).map(|last| address(last).into()).collect();
        assert_eq!(learnt(&node), first);
        assert_eq!(node.count("dns_malformed"), 0);
    });
}
