//! A node and an origin that fails before the download begins, cannot be trusted, or is not there.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{io::Write as _, net::TcpListener, thread, time::Duration};

use pondhawk_bench::{
    hub::{Content, Fault, FaultKind, Hub, HubOptions, PlainRules, Rates},
    lab::wait_until,
};
use stage::{CDN, File, Stage, read_answer, request};

const MIB: u64 = 1 << 20;

#[test]
fn a_question_for_consent_that_goes_wrong_once_is_asked_again() {
    let stage = Stage::open(&[]);
    let once = [
        FaultKind::Status503 { retry_after: None },
        FaultKind::Status503 { retry_after: Some(1) },
        FaultKind::Cut { after: 0 },
        FaultKind::Reset { after: 0 },
        FaultKind::Redirect,
        FaultKind::IgnoreRange,
        FaultKind::NoLength,
        FaultKind::Gzip,
        FaultKind::CorruptByte { offset: 0 },
    ];
    for (seed, kind) in once.into_iter().enumerate() {
        let file = stage.file(&format!("asked-{seed}"), 3 * MIB + 5, seed as u64);
        stage.hub.faults().add(Fault::new(kind.clone()).times(1).object(&*file.label));
        let answer = stage.get(&file);
        let gist = (answer.status, answer.complete, answer.body.len());
        assert_eq!((answer.status, answer.complete), (200, true), "{kind:?}: {gist:?}");
        assert!(answer.body == file.bytes(0, file.len), "{kind:?}: other bytes, {gist:?}");
        stage.hub.faults().clear();
    }
}

#[test]
fn an_origin_with_a_certificate_of_an_unknown_authority_gets_no_byte_through() {
    let stranger = Hub::start(HubOptions { cdn_port: Some(443), ..HubOptions::default() }).unwrap();
    let address = stranger.tls_address();
    let stage = Stage::open(&[&format!("origin.overrides={{{CDN}: '{address}'}}"), "origin.retries=2"]);
    let file = stage.file("mistrusted", MIB, 1);
    let answer = stage.get(&file);
    assert_eq!(answer.status, 502, "{}", String::from_utf8_lossy(&answer.body));
    assert!(answer.header("x-pondhawk-error").unwrap().starts_with("origin;"));
    // The client may have its answer before the stranger has noticed that it was refused.
    let refused = wait_until(Duration::from_secs(10), || (stranger.stats().tls_failures > 0).then_some(()));
    assert!(refused.is_some() && stranger.stats().body_bytes == 0, "{:?}", stranger.stats());
}

#[test]
fn an_origin_that_is_not_there_is_blamed_in_a_clean_error() {
    let vacant = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = vacant.local_addr().unwrap();
    drop(vacant);
    let stage = Stage::open(&[&format!("origin.overrides={{{CDN}: '{address}'}}"), "origin.retries=2"]);
    let file = stage.file("away", MIB, 2);
    let answer = stage.get(&file);
    assert!(matches!(answer.status, 502 | 504) && answer.complete, "{}", answer.status);
    assert!(answer.header("x-pondhawk-error").unwrap().starts_with("origin;"));
    let posted = stage.node.request("POST", &format!("https://{CDN}/_echo"), &[], b"body");
    assert!(matches!(posted.status, 502 | 504), "{}", posted.status);
}

/// Downloads a file with a node, then takes its origin away.
fn orphaned(settings: &[&str]) -> (Stage, File, String) {
    let mut stage = Stage::open(settings);
    let file = stage.file("orphan", 2 * MIB, 3);
    let url = stage.url(&file);
    assert!(stage.get(&file).body == file.bytes(0, file.len));
    stage.hub = Hub::start(HubOptions::default()).unwrap();
    (stage, file, url)
}

#[test]
fn what_is_held_is_served_without_its_origin_only_if_the_setting_says_so() {
    let (stage, _, url) = orphaned(&["authorize.cap=0s"]);
    let refused = stage.node.get(&url, &[]);
    assert!(refused.status >= 500, "{}", refused.status);
    let (stage, file, url) = orphaned(&["authorize.cap=0s", "authorize.serve_when_origin_down=true"]);
    let served = stage.node.get(&url, &[]);
    assert!(served.status == 200 && served.complete && served.body == file.bytes(0, file.len), "{}", served.status);
    assert!(served.header("age").is_some());
}

#[test]
fn a_changed_etag_makes_a_new_task_and_never_a_mixture() {
    let stage = Stage::open(&[]);
    let strong = PlainRules { etag: Some("one".into()), ..PlainRules::default() };
    stage.hub.add_plain("named", Content::seeded(4 * MIB, 4), strong).unwrap();
    let url = format!("https://{CDN}/plain/named");
    let old = stage.node.get(&url, &[]);
    assert!(stage.hub.change("plain/named"));
    // Another cookie is another question: the consent for the first one is remembered with the old validator.
    let new = stage.node.get(&url, &["Cookie: a=1"]);
    assert_ne!(old.header("etag"), new.header("etag"));
    assert!(new.status == 200 && new.complete && new.body.len() == old.body.len());
    let mixed = old.body.iter().zip(&new.body).any(|(old, new)| old == new);
    assert!(!mixed, "every byte of the object has changed");
}

#[test]
fn an_etag_that_changes_under_way_cuts_the_reply() {
    let stage = Stage::open(&[]);
    stage.hub.limits().set(Rates { connection: Some(MIB), total: Some(8 * MIB) });
    let strong = PlainRules { etag: Some("one".into()), ..PlainRules::default() };
    stage.hub.add_plain("changing", Content::seeded(32 * MIB, 5), strong).unwrap();
    let file = File { label: "plain/changing".into(), len: 32 * MIB, seed: 5 };
    let url = format!("https://{CDN}/plain/changing");
    let mut connection = stage.node.connect();
    connection.write_all(&request("GET", &url, &[], b"")).unwrap();
    let reader = thread::spawn(move || read_answer(&mut connection, false));
    wait_until(Duration::from_secs(20), || (stage.ratio(&file) > 0.2).then_some(())).unwrap();
    stage.hub.change(&file.label);
    stage.hub.limits().set(Rates::default());
    let answer = reader.join().unwrap();
    // 7 pieces of 32 are there and 16 under way: the others are asked for when the object has changed.
    assert!(!answer.complete, "{} bytes, of two objects", answer.body.len());
    assert!(answer.body == file.bytes(0, answer.body.len() as u64), "what came is of the first object");
    // The consent with the first validator is remembered: it must not lead to the first object.
    let again = stage.node.get(&url, &[]);
    assert!(again.complete && again.body[..4096] != file.bytes(0, 4096), "the new object");
    let mixed = again.body.iter().zip(file.bytes(0, file.len)).any(|(new, old)| *new == old);
    assert!(!mixed, "every byte of the object has changed");
}

#[test]
fn a_download_that_the_origin_refuses_is_healed_by_the_next_clients_url() {
    let stage = Stage::open(&[]);
    let file = stage.file("renewed", 12 * MIB, 6);
    let refused = Fault::new(FaultKind::Forbidden).min_bytes(2).object(&*file.label);
    stage.hub.faults().add(refused);
    let answer = stage.get(&file);
    assert!(answer.is_right_or_clean(&file), "{}", answer.status);
    stage.hub.faults().clear();
    let answer = stage.get(&file);
    assert!(answer.status == 200 && answer.complete && answer.body == file.bytes(0, file.len), "{}", answer.status);
}
