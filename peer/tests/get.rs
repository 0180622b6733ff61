//! `pondhawk get` against a hub, with and without a node in between: every byte compared.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "get/errand.rs"]
mod errand;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use errand::{Errand, MIB, direct_hub};
use pondhawk_bench::hub::{Access, Content, Fault, FaultKind, Hub, PlainRules, Rates, seeded};
use stage::Stage;

/// A repository with a large file, small ones, an odd name and nothing at all.
fn fill(hub: &Hub, repo: &str) {
    let files: [(&str, u64, u64); 5] = [
        ("model.safetensors", 3 * MIB, 1),
        ("config.json", 700, 2),
        ("onnx/deep/model.onnx", MIB, 3),
        ("a b/ü?#.txt", 90, 4),
        ("empty", 0, 5),
    ];
    for (path, len, seed) in files {
        hub.add_file(repo, "main", path, Content::seeded(len, seed)).unwrap();
    }
}

fn is(path: &Path, len: u64, seed: u64) -> bool {
    fs::read(path).unwrap() == seeded(seed, 0, usize::try_from(len).unwrap())
}

/// Every file below, links followed, relative and sorted.
fn files(dir: &Path) -> Vec<String> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => found.push(path.strip_prefix(dir).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_file_of_the_hub_comes_by_way_of_the_node_and_the_second_time_from_its_store() {
    let stage = Stage::open(&[]);
    fill(&stage.hub, "owner/model");
    let errand = Errand::by(&stage);
    for name in ["first.bin", "second.bin"] {
        let done = errand.get(&["hf://owner/model/model.safetensors", "-o", name]);
        assert_eq!((done.code, done.out.as_str()), (0, format!("{name}\n").as_str()), "{}", done.err);
        assert!(is(&errand.path(name), 3 * MIB, 1));
    }
    let asked = stage.hub.stats().object("owner/model/model.safetensors");
    assert!(asked.body_bytes <= 3 * MIB + 64, "the second time cost more than a question: {asked:?}");
    let admin = stage.node.admin.to_string();
    let asked = ["hf://owner/model/onnx/deep/model.onnx", "--json", "-o"];
    for (name, origin) in [("cold.onnx", MIB), ("warm.onnx", 0)] {
        let json = errand.with(&[&asked[..], &[name]].concat(), &[("PONDHAWK_ADMIN", &admin)]).json();
        let from = &json["files"][0]["from"];
        assert_eq!((from["origin"].as_u64(), from["store"].as_u64()), (Some(origin), Some(MIB - origin)), "{json}");
    }
    let json = errand.with(&[&asked[..], &["again.onnx"]].concat(), &[("PONDHAWK_ADMIN", &admin)]).json();
    assert_eq!(json["files"][0]["via"].as_str(), Some("store"), "the node's store is this user's own: {json}");
    assert!(["cold.onnx", "warm.onnx", "again.onnx"].iter().all(|name| is(&errand.path(name), MIB, 3)));
    let json = errand.get(&["hf://owner/model/model.safetensors", "-o", "third.bin", "--json"]).json();
    assert_eq!((json["files"][0]["via"].as_str(), json["bytes"].as_u64()), (Some("node"), Some(3 * MIB)), "{json}");
    assert_eq!(json["commit"].as_str(), stage.hub.commit("owner/model", "main").as_deref());
    // What is there and right is not asked for again.
    let json = errand.get(&["hf://owner/model/model.safetensors", "-o", "third.bin", "--json"]).json();
    assert_eq!((json["files"][0]["kept"].as_bool(), json["received"].as_u64()), (Some(true), Some(0)), "{json}");
    let log = stage.node.log();
    assert!(!log.contains("api/models"), "the node was asked for what is the Hub's");
}

#[test]
fn a_signed_url_and_a_page_of_the_hub_are_downloaded_as_well() {
    let stage = Stage::open(&[]);
    fill(&stage.hub, "owner/model");
    let errand = Errand::by(&stage);
    let signed = stage.hub.signed_url("owner/model/model.safetensors").unwrap();
    let done = errand.get(&[&signed, "-o", "signed"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(is(&errand.path("signed"), 3 * MIB, 1));
    let page = format!("{}/owner/model/blob/main/onnx/deep/model.onnx", errand.endpoint);
    let done = errand.get(&[&page]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(is(&errand.path("model.onnx"), MIB, 3));
}

#[test]
fn a_repository_comes_whole_or_in_what_the_patterns_name() {
    let stage = Stage::open(&[]);
    fill(&stage.hub, "datasets/owner/data");
    let errand = Errand::by(&stage);
    let done = errand.get(&["hf://datasets/owner/data", "--jobs", "3"]);
    assert_eq!((done.code, done.out.as_str()), (0, "data\n"), "{}", done.err);
    let all = ["a b/ü?#.txt", "config.json", "empty", "model.safetensors", "onnx/deep/model.onnx"];
    assert_eq!(files(&errand.path("data")), all);
    assert!(is(&errand.path("data/model.safetensors"), 3 * MIB, 1) && is(&errand.path("data/a b/ü?#.txt"), 90, 4));
    let some = [
        "hf://datasets/owner/data",
        "-o",
        "some",
        "--include",
        "*.{json,onnx}",
        "--include",
        "e*",
        "--exclude",
        "onnx/",
    ];
    assert_eq!(errand.get(&some).code, 0);
    assert_eq!(files(&errand.path("some")), ["config.json", "empty"]);
    let below = errand.get(&["hf://datasets/owner/data@main/onnx", "-r", "-o", "below"]);
    assert_eq!(below.code, 0, "{}", below.err);
    assert_eq!(files(&errand.path("below")), ["onnx/deep/model.onnx"]);
    assert_eq!(errand.get(&["hf://datasets/owner/data", "--include", "*.none"]).code, 3);
}

#[test]
fn a_private_repository_is_for_the_bearer_of_its_token_whom_the_node_never_hears() {
    let stage = Stage::open(&["log.level=trace"]);
    fill(&stage.hub, "owner/secret");
    stage.hub.set_access("owner/secret", Access::Private("hf_very_secret".into()));
    let errand = Errand::by(&stage);
    for what in ["hf://owner/secret", "hf://owner/secret/config.json"] {
        let refused = errand.get(&[what]);
        assert_eq!(refused.code, 3, "{}", refused.err);
        assert!(refused.err.contains("HF_TOKEN"), "{}", refused.err);
        assert_eq!(errand.get(&[what, "--token", "hf_other"]).code, 3);
    }
    assert_eq!(errand.get(&["hf://owner/secret", "--token", "hf_very_secret", "-o", "a"]).code, 0);
    assert_eq!(errand.with(&["hf://owner/secret", "-o", "b"], &[("HF_TOKEN", "hf_very_secret")]).code, 0);
    fs::write(errand.path("token"), "hf_very_secret\n").unwrap();
    let file = errand.path("token").display().to_string();
    let done = errand.with(&["hf://owner/secret", "-o", "c"], &[("HF_TOKEN_PATH", &file)]);
    assert_eq!(done.code, 0, "{}", done.err);
    ["a", "b", "c"].iter().for_each(|dir| assert!(is(&errand.path(&format!("{dir}/model.safetensors")), 3 * MIB, 1)));
    assert!(!stage.node.log().contains("hf_very_secret"));
}

#[test]
fn what_is_not_there_is_said_to_be_so() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    let errand = Errand::without(&hub);
    for what in
        ["hf://owner/none", "hf://owner/model/none", "hf://owner/model@none", "hf://owner/model@none/config.json"]
    {
        let done = errand.get(&[what]);
        assert_eq!((done.code, done.out.as_str()), (3, ""), "{what}: {}", done.err);
    }
    for wrong in [&["ftp://x/y"][..], &["hf://a/../b"], &["hf://owner/model/config.json", "--digest", "md5:x"], &[]] {
        assert_eq!(errand.get(wrong).code, 2, "{wrong:?}");
    }
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_was() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    let label = "owner/model/model.safetensors";
    hub.faults().add(Fault::new(FaultKind::Cut { after: MIB }).object(label).times(1));
    let errand = Errand::without(&hub);
    let done = errand.get(&["hf://owner/model/model.safetensors"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(is(&errand.path("model.safetensors"), 3 * MIB, 1));
    let asked = hub.stats().object(label);
    assert_eq!((asked.gets.get(&200), asked.gets.get(&206)), (Some(&1), Some(&1)), "{asked:?}");
    assert_eq!(files(&errand.path("")), ["hub.pem", "model.safetensors"]);
}

#[test]
fn the_next_run_goes_on_with_what_an_earlier_one_left_unless_it_is_another_file_now() {
    let hub = direct_hub();
    let rules = PlainRules { etag: Some("one".into()), ..PlainRules::default() };
    hub.add_plain("x.bin", Content::seeded(4 * MIB, 6), rules).unwrap();
    let (label, url) = ("plain/x.bin", hub.signed_url("plain/x.bin").unwrap());
    let errand = Errand::without(&hub);
    hub.limits().set(Rates { connection: Some(MIB), total: None });
    let killed = errand.killed_after(&[&url], MIB);
    assert!(killed, "the first run was to be cut short");
    hub.limits().set(Rates::default());
    hub.reset_stats();
    let json = errand.get(&[&url, "--json"]).json();
    assert!(json["files"][0]["resumed"].as_u64().unwrap() >= MIB, "{json}");
    assert!(is(&errand.path("x.bin"), 4 * MIB, 6));
    assert_eq!(hub.stats().object(label).gets.get(&200), None);
    fs::remove_file(errand.path("x.bin")).unwrap();
    hub.limits().set(Rates { connection: Some(MIB), total: None });
    assert!(errand.killed_after(&[&url], MIB));
    hub.limits().set(Rates::default());
    assert!(hub.change(label));
    let json = errand.get(&[&url, "--json"]).json();
    assert_eq!(json["files"][0]["resumed"].as_u64(), Some(0), "{json}");
    assert!(!is(&errand.path("x.bin"), 4 * MIB, 6) && fs::metadata(errand.path("x.bin")).unwrap().len() == 4 * MIB);
    assert_eq!(files(&errand.path("")), ["hub.pem", "x.bin"]);
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    let errand = Errand::without(&hub);
    hub.faults().add(Fault::new(FaultKind::CorruptByte { offset: 1000 }).object("owner/model/model.safetensors"));
    let done = errand.get(&["hf://owner/model/model.safetensors", "--json"]);
    assert_eq!(done.code, 4, "{}", done.err);
    assert_eq!(done.json()["error"]["code"].as_u64(), Some(4));
    hub.faults().clear();
    let wrong = format!("sha256:{}", "0".repeat(64));
    let done = errand.get(&["hf://owner/model/config.json", "--digest", &wrong]);
    assert_eq!(done.code, 4, "{}", done.err);
    let signed = hub.signed_url("owner/model/model.safetensors").unwrap();
    assert_eq!(errand.get(&[&signed, "-o", "x", "--digest", &wrong]).code, 4);
    assert_eq!(files(&errand.path("")), ["hub.pem"]);
}

#[test]
fn bytes_that_the_node_finds_wrong_leave_nothing_and_are_not_asked_for_without_end() {
    let stage = Stage::open(&[]);
    fill(&stage.hub, "owner/model");
    let label = "owner/model/model.safetensors";
    stage.hub.faults().add(Fault::new(FaultKind::CorruptByte { offset: 1000 }).object(label).min_bytes(100));
    let errand = Errand::by(&stage);
    let done = errand.get(&["hf://owner/model/model.safetensors"]);
    assert_eq!(done.code, 4, "{}", done.err);
    assert_eq!(files(&errand.path("")), ["hub.pem"]);
    let sent = stage.hub.stats().object(label).body_bytes;
    assert!(sent < 8 * 3 * MIB, "{sent} bytes");
}

#[test]
fn a_node_that_dies_under_way_costs_no_byte_twice() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    hub.limits().set(Rates { connection: Some(MIB), total: Some(MIB) });
    let settings = ["intercept.hosts=[localhost]", "origin.allow_private=true"];
    let mut node = stage::Node::start(&hub, tempfile::tempdir().unwrap(), &settings);
    let errand = Errand::new(&hub, &node.proxy.to_string());
    let killed = errand.while_running(&["hf://owner/model/model.safetensors", "--json"], MIB / 2, || {
        node.daemon.kill().unwrap();
        hub.limits().set(Rates::default());
    });
    assert_eq!(killed.code, 0, "{}", killed.err);
    assert!(killed.err.contains("no node answers"), "{}", killed.err);
    assert!(is(&errand.path("model.safetensors"), 3 * MIB, 1));
    assert_eq!(killed.json()["files"][0]["via"].as_str(), Some("direct"));
    assert_eq!(killed.json()["received"].as_u64(), Some(3 * MIB));
}

#[test]
fn without_a_node_files_come_straight_from_the_origin_and_that_is_said() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    let errand = Errand::without(&hub);
    let done = errand.get(&["hf://owner/model"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.err.matches("no node answers").count(), 1, "{}", done.err);
    assert!(is(&errand.path("model/model.safetensors"), 3 * MIB, 1));
    let quiet = errand.get(&["hf://owner/model", "--direct", "-o", "other", "--quiet"]);
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));
}

#[test]
fn a_host_that_the_node_does_not_serve_is_asked_straight() {
    let stage = Stage::open(&[]);
    let hub = direct_hub();
    fill(&hub, "owner/model");
    let errand = Errand::new(&hub, &stage.node.proxy.to_string());
    let done = errand.get(&["hf://owner/model/model.safetensors"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("does not serve localhost"), "{}", done.err);
    assert!(is(&errand.path("model.safetensors"), 3 * MIB, 1));
}

#[test]
fn a_hub_that_lies_about_names_writes_nothing_elsewhere() {
    let hub = direct_hub();
    fill(&hub, "owner/liar");
    hub.add_file("owner/liar", "main", "../../evil", Content::seeded(10, 1)).unwrap();
    let errand = Errand::without(&hub);
    let done = errand.get(&["hf://owner/liar", "-o", "deep/er"]);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("../../evil"), "{}", done.err);
    let done = errand.get(&["hf://owner/liar", "--hf-cache=cache"]);
    assert_eq!(done.code, 1);
    // The others are there, and nothing is beside the two folders.
    assert!(is(&errand.path("deep/er/model.safetensors"), 3 * MIB, 1));
    let outside =
        files(&errand.path("")).into_iter().filter(|path| !path.starts_with("deep/er/") && !path.starts_with("cache/"));
    assert_eq!(outside.collect::<Vec<_>>(), ["hub.pem"]);
    // What the patterns leave out is no fault.
    let done = errand.get(&["hf://owner/liar", "-o", "one", "--include", "config.json"]);
    assert_eq!(done.code, 0, "{}", done.err);
}

/// One such name kept every file of its repository from being downloaded.
#[test]
fn odd_names_are_names_on_linux() {
    let hub = direct_hub();
    fill(&hub, "owner/odd");
    for (path, seed) in [("back\\slash.txt", 6), ("..\\up.txt", 7), ("two\nlines", 8)] {
        hub.add_file("owner/odd", "main", path, Content::seeded(40, seed)).unwrap();
    }
    let errand = Errand::without(&hub);
    let done = errand.get(&["hf://owner/odd", "-o", "one", "--include", "config.json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(files(&errand.path("one")), ["config.json"]);
    let done = errand.get(&["hf://owner/odd", "-o", "all"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(is(&errand.path("all/back\\slash.txt"), 40, 6) && is(&errand.path("all/..\\up.txt"), 40, 7));
    assert!(is(&errand.path("all/two\nlines"), 40, 8));
}

#[test]
fn a_renamed_repository_is_followed_to_its_new_name() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    hub.set_access("owner/model", Access::Private("hf_secret".into()));
    hub.api_rules().rename("old/name", "owner/model");
    let errand = Errand::without(&hub);
    let done = errand.get(&["hf://old/name", "-o", "all", "--token", "hf_secret"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(is(&errand.path("all/model.safetensors"), 3 * MIB, 1) && is(&errand.path("all/config.json"), 700, 2));
    let done = errand.get(&["hf://old/name/config.json", "--token", "hf_secret"]);
    assert_eq!(done.code, 0, "{}", done.err);
    // A repository that leads to itself is given up.
    hub.api_rules().rename("round/about", "round/about");
    let done = errand.get(&["hf://round/about"]);
    assert!(done.code == 1 && done.err.contains("too many redirects"), "{}: {}", done.code, done.err);
}

#[test]
fn a_listing_of_many_pages_comes_whole_and_a_limited_hub_is_waited_for() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    hub.api_rules().set_page_length(2);
    hub.api_rules().throttle(1, "Retry-After: 1");
    let errand = Errand::without(&hub);
    let done = errand.get(&["hf://owner/model", "-o", "all"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(files(&errand.path("all")).len(), 5);
    hub.api_rules().throttle(1, "RateLimit: \"api\";r=0;t=2");
    let done = errand.get(&["hf://owner/model", "-o", "all"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("limits requests"), "{}", done.err);
    // Longer than the Hub's own windows is not waited for.
    hub.api_rules().throttle(1, "Retry-After: 86400");
    let done = errand.get(&["hf://owner/model", "-o", "all"]);
    assert!(done.code == 1 && done.err.contains("429"), "{}: {}", done.code, done.err);
}

#[test]
fn only_the_folder_that_is_named_comes_whatever_the_hub_lists() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    hub.api_rules().list_everything();
    let errand = Errand::without(&hub);
    let done = errand.get(&["hf://owner/model/onnx", "-r", "-o", "below"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(files(&errand.path("below")), ["onnx/deep/model.onnx"]);
}

#[test]
fn an_offline_hub_and_a_gated_repository_are_said_to_be_so() {
    let hub = direct_hub();
    fill(&hub, "owner/gated");
    hub.set_access("owner/gated", Access::Gated("hf_member".into()));
    let errand = Errand::without(&hub);
    for arguments in [&["hf://owner/gated"][..], &["hf://owner/gated", "--token", "hf_other"]] {
        let done = errand.get(arguments);
        assert!(done.code == 3 && done.err.contains("asked for on its page"), "{}: {}", done.code, done.err);
    }
    let done = errand.with(&["hf://owner/gated", "--token", "hf_member"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(done.code == 1 && done.err.contains("HF_HUB_OFFLINE"), "{}: {}", done.code, done.err);
    assert_eq!(errand.get(&["hf://owner/gated", "--token", "hf_member"]).code, 0);
}

#[test]
fn a_link_in_the_way_leads_nowhere_else() {
    let hub = direct_hub();
    fill(&hub, "owner/model");
    let errand = Errand::without(&hub);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir(errand.path("out")).unwrap();
    symlink(elsewhere.path(), errand.path("out/onnx")).unwrap();
    let done = errand.get(&["hf://owner/model", "-o", "out"]);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("leads out"), "{}", done.err);
    assert_eq!(files(elsewhere.path()), Vec::<String>::new());
}

/// The real clients, offline, on what `get --hf-cache` wrote.
#[test]
fn huggingface_hub_finds_offline_what_was_written_into_its_cache() {
    let stage = Stage::open(&[]);
    fill(&stage.hub, "owner/model");
    let errand = Errand::by(&stage);
    let home = errand.path("hf").display().to_string();
    let variables = [("HF_HOME", home.as_str())];
    for _ in 0..2 {
        let done = errand.with(&["hf://owner/model", "--hf-cache"], &variables);
        assert_eq!(done.code, 0, "{}", done.err);
    }
    let commit = stage.hub.commit("owner/model", "main").unwrap();
    let snapshot = errand.path(&format!("hf/hub/models--owner--model/snapshots/{commit}"));
    assert!(is(&snapshot.join("onnx/deep/model.onnx"), MIB, 3) && snapshot.join("config.json").is_symlink());
    assert!(stage.hub.stats().object("owner/model/model.safetensors").body_bytes <= 3 * MIB + 64);
    let mut tried = 0;
    for client in ["hf-0.17.1", "hf-0.36", "hf-1", "hf-2"] {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let python: PathBuf = target.join("clients").join(client).join("bin/python");
        if !python.exists() {
            let required = std::env::var("PONDHAWK_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
            assert!(!required, "{client} is not installed: run `cargo xtask setup`");
            eprintln!("left out: {client} is not installed: run `cargo xtask setup`");
            continue;
        }
        let found = errand.offline(&python, &home);
        assert_eq!(found.lines().next(), Some(snapshot.to_str().unwrap()), "{client}: {found}");
        assert_eq!(found.lines().nth(1), snapshot.join("config.json").to_str(), "{client}: {found}");
        tried += 1;
    }
    eprintln!("{tried} versions of huggingface_hub found it");
}
