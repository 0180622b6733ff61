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
    let imported = import(text).unwrap();
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
    assert_eq!(imported.dropped, ["pprofPort", "proxy.security.insecure: the proxy port speaks plain HTTP"]);
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
    assert_eq!(imported.notes.len(), 5, "{:?}", imported.notes);
}

#[test]
fn a_config_map_is_looked_into_and_what_is_no_document_is_refused() {
    let map = "kind: ConfigMap\ndata:\n  dfdaemon.yaml: |\n    seedPeer: {enable: true}\n";
    assert_eq!(yaml(map).0["swarm"]["seed"], true);
    assert!(matches!(import("- a\n"), Err(ImportError::Empty)));
    assert!(matches!(import("a: [\n"), Err(ImportError::Document(_))));
    assert_eq!(size("1024Mi").as_deref(), Some("1024MiB"));
    assert_eq!((size("0"), size("x"), size("5 parsecs")), (None, None, None));
}

proptest::proptest! {
    #[test]
    fn no_document_panics(text in "([a-z]{1,5}: ?|- |\\{|\\}|\\[|\\]|\n|  |proxy:|rules:|regx: |'[^']*'|[0-9]+)*") {
        if let Ok(imported) = import(&text) {
            let _ = (imported.check(), imported.to_yaml());
        }
    }
}
