//! Pods and local users that mean harm, and networks that block the node: interception is never worse than its absence.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
};

use pondhawk_bench::lab::{Attachment, wait_until};

use crate::{
    MANY,
    raw::serve,
    site::{SOON, Setting, Site, Trust, on_site},
};

/// Has itself told by DNS that x.cdn.hf.co is at argv[1], at a socket that asked if argv[2] is `asks`; connects there, and
/// prints what the server says.
const FORGE: &str = r"
import socket, sys
server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
server.bind(('127.0.0.1', 53)); client.bind(('127.0.0.1', 0)); client.settimeout(10)
if sys.argv[2] == 'asks': client.sendto(b'a question', ('127.0.0.1', 53))
name = b'\x01x\x03cdn\x02hf\x02co\x00'
answer = bytes.fromhex('000181800001000100000000') + name + bytes.fromhex('00010001c00c000100010000003c0004')
server.sendto(answer + socket.inet_aton(sys.argv[1]), client.getsockname())
client.recv(2000)
s = socket.socket(); s.settimeout(10)
try: s.connect((sys.argv[1], 443)); s.sendall(b'plain\n'); print(s.makefile().readline().strip())
except OSError as error: print('no connection:', error)
";

/// What a pod is told by the server at `asked`, for which it has forged an answer.
fn forged(site: &Site, pod: &Attachment, asked: Ipv4Addr, asks: &str) -> String {
    let done = site.run(&site.stranger, &pod.netns, &["python3", "-c", FORGE, &asked.to_string(), asks]);
    String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).trim().to_owned()
}

/// Says what it keeps, and to whom.
fn secret(mut stream: std::net::TcpStream) -> std::io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    writeln!(stream, "SECRET, you are {peer}")
}

/// A pod was carried by the node to any address of which it had forged a DNS answer, the node's own loopback included.
#[test]
fn a_forged_dns_answer_carries_a_pod_nowhere() {
    on_site("a_forged_dns_answer_carries_a_pod_nowhere", Setting::default(), |site| {
        let pod = site.lab().pod().unwrap();
        let node = site.lab().node().v4.to_string();
        let secrets: [(Ipv4Addr, Ipv4Addr); 4] = [
            // The node's loopback, by the address that is the pod's own loopback.
            (Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED),
            // The node's own address.
            (site.lab().node().v4, site.lab().node().v4),
            // A management network behind the node.
            (Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 1)),
            // A public address that is none of the CDN's.
            (Ipv4Addr::new(203, 0, 113, 8), Ipv4Addr::new(203, 0, 113, 8)),
        ];
        for address in ["10.9.0.1/32", "203.0.113.8/32"] {
            site.host().ip(&format!("addr add {address} dev lo")).unwrap();
        }
        for (at, asked) in secrets {
            let _server = serve(site.host(), SocketAddr::from((at, 443)), 8, secret);
            for asks in ["asks not", "asks"] {
                let told = forged(site, &pod, asked, asks);
                let carried = told.contains(&format!("you are {node}")) || told.contains("you are 127.0.0.1");
                let elsewhere = told.contains("you are 10.9.0.1") || told.contains("you are 203.0.113.8");
                assert!(!carried && !elsewhere, "{asked}, {asks}: {told}");
            }
        }
        assert!(site.decisions("dns_unasked") >= 4);
        assert!(site.decisions("local_scope") + site.decisions("private_scope") >= 3);
        let refused = |reason| site.metric(&format!("pondhawk_passthrough_refusals_total{{reason=\"{reason}\"}}"));
        assert_eq!(refused("scope"), 1, "the public address is one of the node's own");
    });
}

/// A destination that no proof was asked of was joined from the node's address, which other networks let in.
#[test]
fn a_destination_that_does_not_prove_itself_is_refused_once_and_direct_from_then_on() {
    let test = "a_destination_that_does_not_prove_itself_is_refused_once_and_direct_from_then_on";
    on_site(test, Setting::default(), |site| {
        let pod = site.lab().pod().unwrap();
        let asked = Ipv4Addr::new(203, 0, 113, 8);
        site.lab().hub().netns.ip(&format!("addr add {asked}/32 dev eth0")).unwrap();
        let _server = serve(&site.lab().hub().netns, SocketAddr::from((asked, 443)), 8, secret);
        let node = site.lab().node().v4;
        for _ in 0..2 {
            let told = forged(site, &pod, asked, "asks");
            assert!(!told.contains(&format!("you are {node}")), "{told}");
        }
        assert_eq!(forged(site, &pod, asked, "asks"), format!("SECRET, you are {}", pod.v4));
        assert_eq!(site.metric("pondhawk_passthrough_refusals_total{reason=\"unproven\"}"), 1);
    });
}

/// Opens 200 connections to the CDN as another user, says so, and holds them.
const HOLD: &str = r"
import os, socket, sys
os.setuid(65534)
held = []
for _ in range(200):
    try: held.append(socket.create_connection(('cdn-lfs.huggingface.co', 443), 20))
    except OSError: pass
print(len(held), flush=True)
sys.stdin.read()
";

/// One client that held connections open took every place, and all others' downloads failed.
#[test]
fn downloads_finish_while_one_client_holds_200_idle_connections() {
    let test = "downloads_finish_while_one_client_holds_200_idle_connections";
    let setting = Setting { more: "limits: {connections: 64}\n", ..Setting::default() };
    on_site(test, setting, |site| {
        let mut holder = site.command(&site.stranger, site.host(), &["python3", "-c", HOLD]);
        let mut holder = holder.stdin(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "200");
        let (bundle, url) = (site.bundle(Trust::Node), site.url());
        let path = url.strip_prefix("https://cdn-lfs.huggingface.co").unwrap();
        let begun = std::time::Instant::now();
        let words = ["python3", "-c", MANY, bundle.to_str().unwrap(), path, "0", "50"];
        let done = site.run(&site.trusting, site.host(), &words);
        eprintln!("50 downloads beside 200 idle connections took {:?}", begun.elapsed());
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "50", "{}", String::from_utf8_lossy(&done.stderr));
        assert!(site.metric("pondhawk_bypasses_total{reason=\"over_share\"}") >= 1);
        drop(holder.stdin.take());
        holder.wait().unwrap();
    });
}

/// Where something dropped the packets to the intercept port every download timed out, and the node was ready all the while.
#[test]
fn a_pod_that_cannot_reach_the_intercept_port_downloads_directly_and_the_node_says_so() {
    let test = "a_pod_that_cannot_reach_the_intercept_port_downloads_directly_and_the_node_says_so";
    on_site(test, Setting::default(), |site| {
        let pod = site.lab().pod().unwrap();
        pod.netns.set_nameserver(Some(site.lab().hub().v4.into())).unwrap();
        for address in [site.lab().node().v4.to_string(), site.lab().node().v6.to_string()] {
            // A machine that is not there gets the packets.
            pod.netns.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:99 dev eth0")).unwrap();
        }
        let ready = || site.host().curl(&["http://127.0.0.1:65002/readyz"]).unwrap();
        assert_eq!(ready(), "ready\n");
        let begun = std::time::Instant::now();
        let direct = wait_until(SOON, || site.curl(&site.trusting, &pod.netns, Trust::OriginOnly).ok());
        direct.expect("a download goes direct");
        eprintln!("a pod that cannot reach the node had its file after {:?}", begun.elapsed());
        for _ in 0..3 {
            site.curl(&site.trusting, &pod.netns, Trust::OriginOnly).unwrap();
        }
        wait_until(SOON, || ready().contains("TCP port 65003").then_some(())).expect("the node says what is wrong");
        let status = site.host().curl(&["http://127.0.0.1:65002/v1/status"]).unwrap();
        assert!(status.contains("\"unreachable\":1"), "{status}");
        assert!(site.log().contains("do not arrive at this node"));
        assert_eq!(site.caught(&site.trusting, site.host(), Trust::Node), 1, "the host is caught all the same");
    });
}
