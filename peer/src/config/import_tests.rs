//! Documents of both generations, and what is left of them.

use super::*;

/// The values of the guide to Dragonfly and the Hub.
const GUIDE: &str = "
dfdaemon:
  metrics: {enable: true}
  config:
    verbose: true
    pprofPort: 18066
    proxy:
      defaultFilter: 'Expires&Key-Pair-Id&Policy&Signature'
      security: {insecure: true}
      tcpListen: {listen: 0.0.0.0, port: 65001}
      registryMirror:
        dynamic: true
        url: https://cdn-lfs.huggingface.co
        insecure: true
        certs: []
        direct: false
        useProxies: true
      proxies:
        - regx: repos.*
          useHTTPS: true
";

/// As the chart of the Rust client writes it.
const RUST: &str = "
host: {idc: dc1, location: '', schedulerClusterID: 1}
upload: {bandwidthLimit: 50GB}
storage: {dir: /var/lib/dragonfly/, keep: true}
gc: {policy: {taskTTL: 720h, diskHighThresholdPercent: 90}}
proxy:
  server: {port: 4001}
  rules:
    - {regex: 'blobs/sha256.*', useTLS: true, filteredQueryParams: [ns]}
  registryMirror: {addr: 'https://index.docker.io', cert: /etc/ssl/r.pem}
  prefetch: true
  basicAuth: {username: admin, password: dragonfly}
";

fn yaml(text: &str) -> (Value, Imported) {
    let imported = import(text, None).unwrap();
    imported.check().unwrap();
    let config = Config::parse(&imported.to_yaml(), std::path::Path::new("imported")).unwrap();
    assert_eq!(config.problems(), []);
    (serde_json::to_value(config).unwrap(), imported)
}

#[test]
fn the_guides_values_become_a_proxy_and_a_mirror_of_the_cdn() {
    let (config, imported) = yaml(GUIDE);
    assert_eq!(config["listen"]["proxy"], "0.0.0.0:65001");
    assert_eq!(config["mirror"]["cdn"], "https://cdn-lfs.huggingface.co");
    assert_eq!(config["filter"]["drop_params"], json!(["Expires", "Key-Pair-Id", "Policy", "Signature"]));
    assert_eq!(imported.values["rules"], json!([{"match": "repos.*", "https": true}]));
    assert_eq!(config["log"]["level"], "debug");
    assert!(imported.notes.iter().any(|note| note.contains("always verified")), "{:?}", imported.notes);
    let dropped = [
        "pprofPort",
        "proxy.security.insecure: the proxy port speaks plain HTTP",
        "dfdaemon.metrics.enable: a setting of the chart",
    ];
    assert_eq!(imported.dropped, dropped);
}

#[test]
fn the_rust_clients_document_is_read_as_well() {
    let (config, imported) = yaml(RUST);
    assert_eq!(config["listen"]["proxy"], "0.0.0.0:4001");
    assert_eq!(config["mirror"]["hub"], "https://index.docker.io");
    assert_eq!(config["origin"]["extra_cas"], json!(["/etc/ssl/r.pem"]));
    assert_eq!(config["store"]["quota"], "90%");
    assert_eq!(imported.values["swarm"]["upload_rate"], "50GB");
    assert_eq!(config["swarm"]["labels"], json!({"idc": "dc1"}));
    assert_eq!(imported.values["rules"][0]["drop_params"], json!(["ns"]));
    assert!(
        !imported.to_yaml().contains("dragonfly\n") && !imported.to_yaml().contains("admin"),
        "a password is not printed"
    );
    assert!(imported.dropped.iter().any(|key| key.starts_with("gc.policy.taskTTL: ")), "{:?}", imported.dropped);
}

#[test]
fn destinations_and_hijacked_hosts_are_taken_by_name() {
    let text = "
proxy:
  whiteList: [{host: a.example, ports: [80, '443']}, {host: b.example}, {regx: 'c.*'}]
  hijackHTTPS: {hosts: [{regx: 'mirror\\.aliyuncs\\.com:443', insecure: true, certs: [/x.pem]}, {regx: 'a|b'}]}
  proxies: [{regx: no-proxy, direct: true}, {regx: '^http://r/(.*)', redirect: 'http://s/$1'}, {regx: r, redirect: s}]
";
    let (config, imported) = yaml(text);
    assert_eq!(config["proxy"]["allow"], json!(["a.example:80", "a.example:443", "b.example"]));
    let hosts = config["intercept"]["hosts"].as_array().unwrap();
    assert!(hosts.contains(&json!("mirror.aliyuncs.com")) && hosts.contains(&json!("cdn-lfs.huggingface.co")));
    assert_eq!(
        imported.values["rules"],
        json!([{"match": "no-proxy", "store": false}, {"match": "r", "redirect": "s"}])
    );
    assert_eq!(imported.notes.len(), 6, "{:?}", imported.notes);
}

#[test]
fn a_config_map_is_looked_into_and_what_is_no_document_is_refused() {
    let map = "kind: ConfigMap\ndata:\n  dfdaemon.yaml: |\n    seedPeer: {enable: true}\n";
    assert_eq!(yaml(map).0["swarm"]["seed"], true);
    assert!(matches!(import("- a\n", None), Err(ImportError::Empty)));
    assert!(matches!(import("a: [\n", None), Err(ImportError::Document(_))));
}

/// In all of these forms the result was empty, with exit code 0.
#[test]
fn a_configuration_is_found_wherever_people_have_it() {
    let files = [
        "kind: ConfigMap\napiVersion: v1\ndata:\n  dfget.yaml: |\n    seedPeer: {enable: true}\n",
        "kind: List\napiVersion: v1\nitems:\n- kind: ConfigMap\n  data:\n    dfdaemon.yaml: 'seedPeer: {enable: true}'\n",
        "dfdaemon.yaml: |\n  seedPeer: {enable: true}\n",
        "kind: Namespace\napiVersion: v1\n---\nkind: ConfigMap\ndata:\n  any.yml: 'seedPeer: {enable: true}'\n",
        "seedClient: {config: {seedPeer: {enable: true}}}\n",
        "---\n# nothing\n---\nseedPeer: {enable: true}\n",
    ];
    for file in files {
        assert_eq!(yaml(file).0["swarm"]["seed"], true, "{file}");
    }
    for nothing in ["", "{}", "---\n---\n", "- a", "kind: List\nitems: []", "kind: ConfigMap\n"] {
        assert!(matches!(import(nothing, None), Err(ImportError::Empty)), "{nothing:?}");
    }
    assert!(import("verbose: false\n", None).unwrap().is_empty());
}

#[test]
fn what_is_not_taken_of_several_configurations_is_named_and_can_be_asked_for() {
    let values = "
client: {image: {tag: v1, repository: x}, config: {verbose: true}}
seedClient: {config: {seedPeer: {enable: true}, proxy: {server: {port: 4001}}}}
manager: {enable: false}
";
    let (config, imported) = yaml(values);
    assert_eq!((config["log"]["level"].as_str(), config["swarm"]["seed"].as_bool()), (Some("debug"), Some(false)));
    let named = |wanted: &str| imported.dropped.iter().any(|key| key.contains(wanted));
    assert!(named("--part seedClient") && named("client, 2 keys") && named("manager.enable"), "{:?}", imported.dropped);
    let seeds = import(values, Some("seedClient")).unwrap();
    assert_eq!((&seeds.values["swarm"]["seed"], seeds.is_incomplete()), (&json!(true), true));
    assert!(matches!(import(values, Some("none")), Err(ImportError::Part { .. })));
    // The same twice is no loss.
    assert!(!import("verbose: true\n---\nverbose: true\n", None).unwrap().is_incomplete());
}

#[test]
fn a_size_is_read_in_every_form_that_dfdaemon_takes() {
    let bytes = |text: &str| Some(SizeText::Bytes(text.to_owned()));
    assert_eq!((size("1024Mi"), size("10gib"), size("50 GB")), (bytes("1024MiB"), bytes("10GiB"), bytes("50GB")));
    assert_eq!((size("1.5GiB"), size("0.5 kb"), size("10M")), (bytes("1536MiB"), bytes("500B"), bytes("10MiB")));
    assert_eq!((size("0"), size("0.0GiB")), (Some(SizeText::Unbounded), Some(SizeText::Unbounded)));
    assert!(["x", "5 parsecs", "1.2.3GiB", "-1", "99999999TiB", ".", "1e9"].iter().all(|text| size(text).is_none()));
    let swarm = yaml("upload: {bandwidthLimit: 10gib}\ndownload: {rateLimit: 50 GB}\n").1.values["swarm"].clone();
    assert_eq!((&swarm["upload_rate"], &swarm["download_rate"]), (&json!("10GiB"), &json!("50GB")));
}

#[test]
fn a_value_that_cannot_be_translated_is_named() {
    let text = "
upload: {rateLimit: 5 parsecs}
verbose: yes please
proxy:
  maxConcurrency: many
  whiteList: {host: a}
  proxies: [{regx: a, hijack: true}, {useHTTPS: true}, plain]
";
    let imported = import(text, None).unwrap();
    for wanted in ["upload.rateLimit", "verbose", "maxConcurrency", "whiteList", "hijack", "useHTTPS", "plain"] {
        assert!(imported.dropped.iter().any(|key| key.contains(wanted)), "{wanted}: {:?}", imported.dropped);
    }
}

#[test]
fn a_rule_for_the_hub_is_said_to_have_no_effect_on_tunnels() {
    let noted = |text: &str| import(text, None).unwrap().notes.iter().any(|note| note.contains("CONNECT"));
    assert!(noted("proxy: {rules: [{regex: 'huggingface\\.co/api'}]}") && noted("proxy: {proxies: [{regx: '.*'}]}"));
    assert!(!noted("proxy: {rules: [{regex: 'blobs/sha256.*'}]}"));
    let served = "proxy: {rules: [{regex: '.*'}], hijackHTTPS: {hosts: [{regx: huggingface.co}]}}";
    assert!(!noted(served));
}

#[test]
fn a_line_break_in_a_key_does_not_end_the_comment_that_names_it() {
    for line_break in ["\\r", "\\n", "\\r\\n", "\\N", "\\L", "\\P"] {
        let text = format!("verbose: true\n\"x{line_break}proxy: {{allow: ['*']}}\": 1\n");
        let imported = import(&text, None).unwrap();
        let config = Config::parse(&imported.to_yaml(), std::path::Path::new("imported")).unwrap();
        assert_eq!(config, serde_json::from_value(imported.values).unwrap(), "{line_break}");
    }
}

proptest::proptest! {
    #[test]
    fn no_document_panics(text in "([a-z]{1,5}: ?|- |\\{|\\}|\\[|\\]|\n|  |proxy:|rules:|regx: |'[^']*'|[0-9]+)*") {
        if let Ok(imported) = import(&text, None) {
            let _ = (imported.check(), imported.to_yaml());
        }
    }
}
