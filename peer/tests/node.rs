//! A whole node between a client that compares every byte and an origin that misbehaves on demand.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "node/stage.rs"]
mod stage;

use std::{
    io::Write as _,
    thread,
    time::{Duration, SystemTime},
};

use pondhawk_bench::{
    hub::{Content, Fault, FaultKind, PlainRules, Rates},
    lab::{root_or_skip, run, wait_until},
};
use stage::{CDN, File, Node, Stage, read_answer, request};

const MIB: u64 = 1 << 20;

/// The download's requests, not the one-byte questions of consent.
fn fault(kind: FaultKind) -> Fault {
    Fault::new(kind).min_bytes(2)
}

#[test]
fn what_goes_wrong_once_stays_invisible() {
    let stage = Stage::open(&[]);
    let once = [
        FaultKind::Status503 { retry_after: None },
        FaultKind::Status503 { retry_after: Some(1) },
        FaultKind::Cut { after: 700_000 },
        FaultKind::Reset { after: 300_000 },
        FaultKind::Stall { after: 100_000, millis: 9_000 },
        FaultKind::Redirect,
        FaultKind::IgnoreRange,
    ];
    for (seed, kind) in once.into_iter().enumerate() {
        let file = stage.file(&format!("once-{seed}"), 9 * MIB + 17, seed as u64);
        stage.hub.faults().add(fault(kind.clone()).times(1).object(&*file.label));
        let answer = stage.get(&file);
        assert_eq!((answer.status, answer.complete), (200, true), "{kind:?}");
        assert!(answer.body == file.bytes(0, file.len), "{kind:?}: other bytes");
        stage.hub.faults().clear();
    }
}

#[test]
fn what_goes_wrong_for_good_is_an_error_or_right_but_never_wrong_bytes_that_look_complete() {
    let stage = Stage::open(&["origin.retries=2", "origin.retry_max=1s", "origin.stall_timeout=1s"]);
    let always = [
        FaultKind::Status503 { retry_after: None },
        FaultKind::Cut { after: 700_000 },
        FaultKind::Reset { after: 300_000 },
        FaultKind::Stall { after: 100_000, millis: 60_000 },
        FaultKind::CorruptByte { offset: 3_000_000 },
        FaultKind::NoLength,
        FaultKind::IgnoreRange,
        FaultKind::Forbidden,
        FaultKind::ChangeEtag,
        FaultKind::Gzip,
    ];
    for (seed, kind) in always.into_iter().enumerate() {
        let file = stage.file(&format!("always-{seed}"), 9 * MIB, seed as u64);
        stage.hub.faults().add(fault(kind.clone()).object(&*file.label));
        let answer = stage.get(&file);
        let gist = (answer.status, answer.complete, answer.body.len());
        let zipped = answer.header("content-encoding") == Some("gzip");
        assert!(zipped || answer.is_right_or_clean(&file), "{kind:?}: {gist:?}");
        stage.hub.faults().clear();
        assert!(stage.get(&file).is_right_or_clean(&file), "{kind:?}, afterwards");
    }
}

#[test]
fn a_corrupt_byte_cuts_the_reply_is_blamed_on_the_origin_and_fetched_anew() {
    let stage = Stage::open(&[]);
    let file = stage.file("corrupt", 12 * MIB, 1);
    stage.hub.faults().add(fault(FaultKind::CorruptByte { offset: 5 * MIB }).times(1).object(&*file.label));
    let answer = stage.get(&file);
    assert_eq!((answer.status, answer.complete), (200, false), "{} bytes came", answer.body.len());
    let blamed = || (stage.node.metric("pondhawk_verification_failures_total{party=\"origin\"}") == 1).then_some(());
    wait_until(Duration::from_secs(5), blamed).expect("the origin is blamed");
    assert!(stage.node.log().contains("the bytes are not those of the hash in the name"));
    let again = stage.get(&file);
    assert!(again.complete && again.body == file.bytes(0, file.len));
}

#[test]
fn ranges_put_together_by_the_client_are_right_or_not_all_there() {
    let stage = Stage::open(&[]);
    let file = stage.file("ranges", 16 * MIB, 2);
    stage.hub.faults().add(fault(FaultKind::CorruptByte { offset: 7 * MIB }).times(1).object(&*file.label));
    let parts = in_sixteen_ranges(&stage, &file);
    let whole: Vec<u8> = parts.iter().flat_map(|(_, body)| body.clone()).collect();
    let complete = parts.iter().all(|(complete, _)| *complete);
    assert!(!complete || whole == file.bytes(0, file.len), "complete and wrong");
    let parts = in_sixteen_ranges(&stage, &file);
    assert!(parts.iter().all(|(complete, _)| !complete), "a client must not complete what it has");
    assert!(stage.get(&file).body == file.bytes(0, file.len));
}

fn in_sixteen_ranges(stage: &Stage, file: &File) -> Vec<(bool, Vec<u8>)> {
    let (url, step) = (stage.url(file), file.len / 16);
    thread::scope(|scope| {
        let get = |part: u64| {
            let range = format!("Range: bytes={}-{}", part * step, (part + 1) * step - 1);
            let url = &url;
            scope.spawn(move || {
                let answer = stage.node.get(url, &[&range]);
                (answer.status == 206 && answer.complete, answer.body)
            })
        };
        let parts: Vec<_> = (0..16).map(get).collect();
        parts.into_iter().map(|part| part.join().unwrap()).collect()
    })
}

#[test]
fn the_end_of_a_file_alone_comes_without_the_file() {
    let stage = Stage::open(&[]);
    let file = stage.file("table.parquet", 64 * MIB, 3);
    let answer = stage.node.get(&stage.url(&file), &["Range: bytes=-70000"]);
    assert_eq!((answer.status, answer.complete), (206, true));
    assert!(answer.body == file.bytes(file.len - 70_000, 70_000));
    assert!(stage.ratio(&file) < 0.3, "{} files for its end", stage.ratio(&file));
}

#[test]
fn signatures_are_no_part_of_a_name_and_are_checked_on_every_hit() {
    let stage = Stage::open(&[]);
    let file = stage.file("signed", 10 * MIB, 4);
    let later = SystemTime::now() + Duration::from_secs(100);
    let urls = [stage.url(&file), stage.hub.signed_url_at(&file.label, later).unwrap()];
    assert_ne!(urls[0], urls[1]);
    for url in &urls {
        assert!(stage.node.get(url, &[]).body == file.bytes(0, file.len));
    }
    assert!(stage.ratio(&file) < 1.01, "one task: {}", stage.ratio(&file));
    let expired = stage.hub.signed_url_at(&file.label, SystemTime::now() - Duration::from_secs(9_000)).unwrap();
    for refused in [urls[0].replace("Signature=", "Signature=A"), expired] {
        let answer = stage.node.get(&refused, &[]);
        assert_eq!(answer.status, 403);
        assert!(String::from_utf8_lossy(&answer.body).contains("AccessDenied"), "the origin's own words are handed on");
    }
    let signature = urls[0].split("Signature=").nth(1).unwrap().split('&').next().unwrap();
    assert!(!stage.node.log().contains(signature), "a credential in the log");
}

#[test]
fn sixty_four_clients_share_one_download() {
    let stage = Stage::open(&[]);
    stage.hub.limits().set(Rates { connection: None, total: Some(60 << 20) });
    let file = stage.file("crowd", 24 * MIB, 5);
    let (url, expected) = (stage.url(&file), file.bytes(0, file.len));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..64).map(|_| scope.spawn(|| stage.node.get(&url, &[]).body == expected)).collect();
        assert!(clients.into_iter().all(|client| client.join().unwrap()), "everyone has the right bytes");
    });
    assert!(stage.ratio(&file) < 1.01, "{} files from the origin", stage.ratio(&file));
}

#[test]
fn a_client_that_leaves_stops_a_download_that_nobody_else_wants() {
    let stage = Stage::open(&[]);
    stage.hub.limits().set(Rates { connection: Some(1 << 20), total: Some(8 << 20) });
    let file = stage.file("left", 64 * MIB, 6);
    let mut connection = stage.node.connect();
    connection.write_all(&request("GET", &stage.url(&file), &[], b"")).unwrap();
    wait_until(Duration::from_secs(10), || (stage.ratio(&file) > 0.01).then_some(())).unwrap();
    drop(connection);
    let quiet = || stage.hub.stats().object(&file.label).under_way == 0;
    wait_until(Duration::from_secs(20), || quiet().then_some(())).expect("the origin is left alone");
    assert!(stage.ratio(&file) < 0.9);
    stage.hub.limits().set(Rates { connection: None, total: None });
    assert!(stage.get(&file).body == file.bytes(0, file.len), "what came is used, the rest is fetched");
}

#[test]
fn what_was_verified_before_a_kill_is_not_fetched_again() {
    let mut stage = Stage::open(&[]);
    for round in 0..4 {
        let file = stage.file(&format!("killed-{round}"), 48 * MIB, 70 + round);
        stage.hub.limits().set(Rates { connection: Some(2 << 20), total: Some(24 << 20) });
        let mut connection = stage.node.connect();
        connection.write_all(&request("GET", &stage.url(&file), &[], b"")).unwrap();
        let some = 0.1 + 0.2 * round as f64;
        wait_until(Duration::from_secs(20), || (stage.ratio(&file) > some).then_some(())).unwrap();
        stage.node.kill_and_restart(&stage.hub, &[]);
        stage.hub.limits().set(Rates { connection: None, total: None });
        assert!(stage.get(&file).body == file.bytes(0, file.len));
        // At most a piece of 1 MiB on each of 16 connections was under way.
        assert!(stage.ratio(&file) <= 1.0 + 16.0 / 48.0 + 0.02, "{} files from the origin", stage.ratio(&file));
    }
}

#[test]
fn a_store_at_its_quota_makes_room_and_stays_within_it() {
    let stage = Stage::open(&["store.quota=64MiB"]);
    for seed in 0..6 {
        let file = stage.file(&format!("much-{seed}"), 24 * MIB, seed);
        assert!(stage.get(&file).body == file.bytes(0, file.len));
        assert!(stage.node.metric("pondhawk_store_used_bytes") <= 64 * MIB);
    }
    assert!(stage.node.metric("pondhawk_store_evictions_total") >= 4);
    let larger = stage.file("larger-than-the-quota", 80 * MIB, 9);
    assert!(stage.get(&larger).body == larger.bytes(0, larger.len), "passed through");
}

/// Three verified files went for one byte of an answer that claimed 60 MiB.
#[test]
fn a_request_evicts_for_bytes_that_arrive_and_not_for_a_length_that_is_claimed() {
    let stage = Stage::open(&["store.quota=64MiB"]);
    let files: Vec<_> = (0..3).map(|seed| stage.file(&format!("kept-{seed}"), 18 * MIB, seed)).collect();
    for file in &files {
        assert!(stage.get(file).body == file.bytes(0, file.len));
    }
    let claim = stage.file("claimed", 60 * MIB, 9);
    stage.hub.faults().add(Fault::new(FaultKind::Cut { after: 1 }).object(&*claim.label).min_bytes(2));
    let byte = stage.node.get(&stage.url(&claim), &["Range: bytes=0-0"]);
    assert!(byte.status == 206 && byte.body == claim.bytes(0, 1), "{}", byte.status);
    assert_eq!(stage.node.metric("pondhawk_store_evictions_total"), 0);
    for file in &files {
        assert_eq!(stage.get(file).header("x-pondhawk-cache"), Some("hit"), "{}", file.label);
    }
    stage.hub.faults().clear();
    assert!(stage.get(&claim).body == claim.bytes(0, claim.len));
    assert!(stage.node.metric("pondhawk_store_used_bytes") <= 64 * MIB);
    assert_eq!(stage.get(&claim).header("x-pondhawk-cache"), Some("hit"));
}

#[test]
fn two_downloads_that_do_not_fit_together_both_come_to_their_end() {
    let stage = Stage::open(&["store.quota=64MiB"]);
    stage.hub.limits().set(Rates { connection: None, total: Some(32 * MIB) });
    let files = [0, 1].map(|seed| stage.file(&format!("beside-{seed}"), 48 * MIB, seed));
    let answers: Vec<_> = thread::scope(|scope| {
        let asking = files.each_ref().map(|file| scope.spawn(|| stage.get(file)));
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (file, answer) in files.iter().zip(answers) {
        assert_eq!((answer.status, answer.complete), (200, true), "{}: {}", file.label, answer.body.len());
        assert!(answer.body == file.bytes(0, file.len), "{}", file.label);
    }
    assert!(stage.node.metric("pondhawk_store_used_bytes") <= 64 * MIB);
}

#[test]
fn downloads_go_on_when_the_disk_is_full() {
    if !root_or_skip("downloads_go_on_when_the_disk_is_full") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    run(std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "none"]).arg(&path)).unwrap();
    let options = pondhawk_bench::hub::HubOptions { cdn_port: Some(443), ..Default::default() };
    let hub = pondhawk_bench::hub::Hub::start(options).unwrap();
    let stage = Stage { node: Node::start(&hub, dir, &["store.quota=1GiB", "store.keep_free=0B"]), hub };
    let filler = path.join("filler");
    std::fs::write(&filler, vec![0; 8 << 20]).unwrap();
    for seed in 0..3 {
        let file = stage.file(&format!("full-{seed}"), 20 * MIB, seed);
        let answer = stage.get(&file);
        assert!(answer.status == 200 && answer.body == file.bytes(0, file.len), "{}", answer.status);
    }
    let small = stage.file("small", 4 * MIB, 8);
    assert!(stage.get(&small).body == small.bytes(0, small.len));
    drop(stage);
    run(std::process::Command::new("umount").arg("-l").arg(&path)).unwrap();
}

#[test]
fn the_front_speaks_http() {
    let stage = Stage::open(&[]);
    let file = stage.file("front", 5 * MIB + 3, 10);
    let url = stage.url(&file);
    assert!(stage.node.get(&url, &[]).body == file.bytes(0, file.len));
    let head = stage.node.request("HEAD", &url, &[], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some(file.len.to_string().as_str())));
    let etag = format!("If-None-Match: {}", head.header("etag").unwrap());
    assert_eq!(stage.node.get(&url, &[&etag]).status, 304);
    let part = stage.node.get(&url, &["Range: bytes=1048570-2097200"]);
    assert_eq!(part.header("content-range"), Some(format!("bytes 1048570-2097200/{}", file.len).as_str()));
    assert!(part.status == 206 && part.body == file.bytes(1_048_570, 1_048_631));
    assert_eq!(stage.node.get(&url, &["Range: bytes=999999999-"]).status, 416);
    let changed = stage.node.get(&url, &["Range: bytes=0-9", "If-Range: \"other\""]);
    assert_eq!((changed.status, changed.body.len() as u64), (200, file.len));
    let parts = stage.node.get(&url, &["Range: bytes=0-99,3000000-3000199"]);
    assert!(parts.complete && parts.header("content-type").unwrap().starts_with("multipart/byteranges"));
    assert!(contains(&parts.body, &file.bytes(0, 100)) && contains(&parts.body, &file.bytes(3_000_000, 200)));
    assert!(stage.ratio(&file) < 1.01);
    let warm = stage.node.get(&url, &[]);
    assert_eq!(warm.header("via"), Some("1.1 pondhawk"));
    assert!(warm.header("age").is_some() && warm.header("content-disposition").is_some());
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn requests_may_be_pipelined_and_bad_ones_are_refused_by_name() {
    let stage = Stage::open(&["limits.head_bytes=8KiB"]);
    let file = stage.file("small", 200_000, 11);
    let one = String::from_utf8(request("GET", &stage.url(&file), &[], b"")).unwrap();
    let kept = one.replace("Connection: close\r\n", "");
    let mut connection = stage.node.connect();
    connection.write_all(format!("{kept}{kept}{one}").as_bytes()).unwrap();
    for _ in 0..3 {
        assert!(read_answer(&mut connection, false).body == file.bytes(0, file.len));
    }
    let long = format!("GET http://{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\nX: {}\r\n\r\n", "x".repeat(9_000));
    let smuggled =
        format!("GET http://{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (bad, status) in [
        ("nonsense\r\n\r\n", 400),
        (&long, 431),
        (&smuggled, 400),
        ("CONNECT a.example:22 HTTP/1.1\r\nHost: a.example:22\r\n\r\n", 403),
        ("CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: 10.0.0.1:443\r\n\r\n", 403),
    ] {
        let mut connection = stage.node.connect();
        connection.write_all(bad.as_bytes()).unwrap();
        let answer = read_answer(&mut connection, false);
        assert_eq!(answer.status, status, "{bad:.60}");
        assert!(answer.header("x-pondhawk-error").unwrap().starts_with("client;"));
    }
    assert_eq!(stage.node.get("http://169.254.169.254/latest", &[]).status, 403);
}

#[test]
fn bodies_pass_through_in_both_directions() {
    let stage = Stage::open(&[]);
    let body = pondhawk_bench::hub::seeded(12, 0, 3_000_000);
    let echoed = stage.node.request("POST", &format!("https://{CDN}/_echo"), &["Expect: 100-continue"], &body);
    assert_eq!(echoed.status, 100, "told to go on");
    let echoed = stage.node.request("POST", &format!("https://{CDN}/_echo"), &[], &body);
    assert_eq!((echoed.status, echoed.complete, echoed.body.len()), (200, true, body.len()), "{:?}", echoed.headers);
    assert!(echoed.body == body);
    let chunks: String = (1..40).map(|n| format!("{n:x}\r\n{}\r\n", "y".repeat(n))).collect();
    let head = format!(
        "POST http://{CDN}/_echo HTTP/1.1\r\nHost: {CDN}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    let mut connection = stage.node.connect();
    connection.write_all(format!("{head}{chunks}0\r\n\r\n").as_bytes()).unwrap();
    let answer = read_answer(&mut connection, false);
    assert!(answer.complete && answer.body == "y".repeat((1..40).sum()).as_bytes());
}

#[test]
fn what_may_not_be_stored_is_passed_through_each_time() {
    let stage = Stage::open(&[]);
    let content = || Content::seeded(MIB, 13);
    let strong = PlainRules { etag: Some("one".into()), ..PlainRules::default() };
    let rules = [
        ("stored", strong.clone(), 1),
        ("no-store", PlainRules { cache_control: Some("no-store".into()), ..strong.clone() }, 2),
        ("vary", PlainRules { vary: Some("Cookie".into()), ..strong.clone() }, 2),
        ("weak", PlainRules { etag: Some("W/one".into()), ..strong.clone() }, 2),
        ("no-validator", PlainRules { etag: None, ..strong }, 2),
    ];
    for (name, rules, times) in rules {
        stage.hub.add_plain(name, content(), rules).unwrap();
        let file = File { label: format!("plain/{name}"), len: MIB, seed: 13 };
        for _ in 0..2 {
            assert!(stage.node.get(&format!("https://{CDN}/plain/{name}"), &[]).body == file.bytes(0, MIB), "{name}");
        }
        let ratio = stage.ratio(&file);
        assert!((ratio - f64::from(times)).abs() < 0.01, "{name}: {ratio} times from the origin");
    }
}

#[test]
fn a_node_that_is_told_to_stop_finishes_its_replies() {
    let mut stage = Stage::open(&[]);
    stage.hub.limits().set(Rates { connection: None, total: Some(10 << 20) });
    let file = stage.file("drained", 20 * MIB, 14);
    let mut connection = stage.node.connect();
    connection.write_all(&request("GET", &stage.url(&file), &[], b"")).unwrap();
    wait_until(Duration::from_secs(10), || (stage.ratio(&file) > 0.1).then_some(())).unwrap();
    let reader = thread::spawn(move || read_answer(&mut connection, false));
    let status = stage.node.daemon.terminate(Duration::from_secs(30)).unwrap();
    assert!(status.success(), "{status}");
    let answer = reader.join().unwrap();
    assert!(answer.complete && answer.body == file.bytes(0, file.len));
}
