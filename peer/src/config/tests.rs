//! What a person who writes a configuration meets.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("pond.yaml"))
}

fn with_settings(settings: &[&str]) -> Result<Loaded, ConfigError> {
    Config::load(None, [], &settings.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn problem(settings: &[&str]) -> String {
    with_settings(settings).unwrap_err().to_string()
}

#[test]
fn the_example_is_the_defaults() {
    assert_eq!(parse(&Config::example()).unwrap(), Config::default());
    assert!(Config::default().problems().is_empty());
}

#[test]
fn the_example_names_and_explains_every_key() {
    let example = Config::example();
    let lines: Vec<&str> = example.lines().map(str::trim).collect();
    for path in Config::key_paths() {
        let key = format!("{}:", path.rsplit('.').next().unwrap());
        let explained = lines.windows(2).any(|pair| pair[1].starts_with(&key) && pair[0].starts_with('#'));
        assert!(explained, "{path} is missing or has no comment");
    }
    let values = serde_json::to_value(Config::default()).unwrap();
    assert_eq!(Config::key_paths().len(), leaves(&values), "a field is not among the keys");
}

/// Values that are no section; the one map that is a value has no entries.
fn leaves(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => fields.values().map(leaves).sum(),
        _ => 1,
    }
}

#[test]
fn every_comment_of_a_key_states_its_default() {
    for key in Config::keys().iter().flat_map(|section| (section.keys)()).filter(|key| key.name != "node_address_v6") {
        assert!(key.docs.concat().contains("Default"), "{}", key.name);
    }
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    let settings = ["intercept.enabled=on", "listen.proxy=off", "origin.overrides={cdn.example: \"127.0.0.1:8443\"}"];
    let config = with_settings(&settings).unwrap().config;
    assert_eq!(parse(&config.to_yaml()).unwrap(), config);
    assert_eq!(config.origin.overrides["cdn.example"], "127.0.0.1:8443".parse().unwrap());
}

#[test]
fn a_file_of_comments_and_an_empty_section_are_the_defaults() {
    assert_eq!(parse("# nothing\n\n").unwrap(), Config::default());
    assert_eq!(parse("log: {}\nstore:\n").unwrap(), Config::default());
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_its_neighbour() {
    let error = parse("log:\n  level: debug\nstore:\n  qouta: 1GiB\n").unwrap_err().to_string();
    assert_eq!(error, "pond.yaml:4:3: unknown key `qouta`; did you mean `quota`?");
    let error = parse("nonsense: 1\n").unwrap_err().to_string();
    assert!(error.starts_with("pond.yaml:1:1: unknown key `nonsense`; known are data_dir, shards"), "{error}");
}

#[test]
fn a_wrong_value_is_named_with_its_place() {
    let error = parse("store:\n  quota: lots\n").unwrap_err().to_string();
    assert!(error.starts_with("pond.yaml:2:10: ") && error.contains("`lots` is not a size"), "{error}");
    let error = parse("log:\n  format: jsn\n").unwrap_err().to_string();
    assert_eq!(error, "pond.yaml:2:11: unknown value `jsn`; did you mean `json`?");
    let error = parse("shards: many\n").unwrap_err().to_string();
    assert!(error.starts_with("pond.yaml:1:9: "), "{error}");
    let error = parse("log: [\n").unwrap_err().to_string();
    assert!(error.starts_with("pond.yaml:"), "{error}");
    let error = parse("shards: 1\nshards: 2\n").unwrap_err().to_string();
    assert!(error.starts_with("pond.yaml:2:"), "{error}");
}

#[test]
fn switches_and_listeners_take_yaml_words_for_off() {
    let config = parse("listen: {proxy: off, admin: \"off\"}\nintercept: {enabled: off, mark: 0x10}\n").unwrap();
    assert_eq!((config.listen.proxy, config.listen.admin), (Listen(None), Listen(None)));
    assert_eq!((config.intercept.enabled, config.intercept.mark), (Switch::Off, Mark(16)));
    assert_eq!(parse("intercept: {enabled: on}\n").unwrap().intercept.enabled, Switch::On);
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "shards: 1\nstore: {quota: 1GiB}\nlog: {level: warn}\n").unwrap();
    let variable = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let environment = [
        variable("PONDHAWK_STORE__QUOTA", "2GiB"),
        variable("PONDHAWK_LOG__LEVEL", "debug"),
        variable("PONDHAWK_PORT_65002_TCP", "tcp://10.0.0.1:65002"),
        variable("PONDHAWK_CONFIG", "elsewhere"),
    ];
    let loaded = Config::load(Some(&file), environment, &["store.quota=3GiB".into()]).unwrap();
    let config = loaded.config;
    assert_eq!((config.shards, config.store.quota), (1, Quota::Bytes(Size(3 << 30))));
    assert_eq!(config.log.level, "debug");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("PONDHAWK_PORT_65002_TCP"));
}

#[test]
fn every_key_can_be_set_to_its_own_default() {
    let values = serde_json::to_value(Config::default()).unwrap();
    for path in Config::key_paths() {
        let text = match values.pointer(&format!("/{}", path.replace('.', "/"))).unwrap() {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let loaded = with_settings(&[&format!("{path}={text}")]).unwrap();
        assert_eq!(loaded.config, Config::default(), "{path}={text}");
    }
}

#[test]
fn lists_can_be_set_with_commas() {
    let hosts = with_settings(&["intercept.hosts=a.example, .b.example"]).unwrap().config.intercept.hosts;
    assert_eq!(hosts, ["a.example", ".b.example"]);
}

#[test]
fn a_wrong_setting_is_named_as_it_was_given() {
    assert_eq!(
        problem(&["store.qota=1GiB"]),
        "--set store.qota=1GiB: unknown key `store.qota`; did you mean `store.quota`?"
    );
    assert!(problem(&["shards=x"]).contains("`x` is no whole number"));
    assert!(problem(&["shards"]).contains("must be key=value"));
    assert!(problem(&["store=1"]).contains("unknown key `store`"));
    assert!(problem(&["drain=null"]).starts_with("--set drain=null: "));
}

#[test]
fn traces_go_to_a_bare_address_and_are_a_share_of_requests() {
    let traced =
        with_settings(&["tracing.endpoint=http://127.0.0.1:4317", "tracing.sample=0.25"]).unwrap().config.tracing;
    assert_eq!((traced.endpoint.as_deref(), traced.sample), (Some("http://127.0.0.1:4317"), 0.25));
    assert!(problem(&["tracing.endpoint=127.0.0.1:4317"]).contains("tracing.endpoint: must be http://host:port"));
    assert!(problem(&["tracing.sample=1.5"]).contains("tracing.sample: must be from 0 to 1"));
    assert!(problem(&["tracing.sample=half"]).contains("`half` is no number"));
    assert!(problem(&["tracing.sample=NaN"]).contains("`NaN` is no number"));
}

#[test]
fn contradictions_are_named_with_their_keys() {
    let expected = [
        ("listen.admin=127.0.0.1:65001", "listen.admin: port 65001 is already taken by listen.proxy"),
        ("listen.intercept_port=65002", "listen.intercept_port: port 65002 is already taken by listen.admin"),
        ("intercept.hosts=https://cdn.example/", "`https://cdn.example/` must be a host name: no scheme, no path"),
        ("intercept.hosts=cdn-*.example", "must have no * inside"),
        ("origin.overrides={\"a.example:x\": \"127.0.0.1:1\"}", "`a.example:x` has a port that is none"),
        ("origin.overrides={a.example: 127.0.0.1}", "invalid socket address"),
        ("intercept.hosts=[]", "intercept.hosts: is empty"),
        ("intercept.mark=0", "intercept.mark: must not be 0"),
        ("store.quota=0", "store.quota: must be at least 64MiB"),
        ("data_dir=here", "data_dir: must be an absolute path"),
        ("limits.buffer_size=100000", "limits.buffer_size: must be from 16KiB"),
        ("log.level=pondhawk=loud", "log.level: is no level"),
        ("authorize.public=https://a.example/x", "must begin with the host"),
        ("filter.drop_params=a=b", "`a=b` is no name of a query parameter"),
        ("origin.retry_backoff=1min", "origin.retry_max: must be at least origin.retry_backoff"),
        ("scheduler.page=127.0.0.1:65100", "scheduler.page: port 65100 is already taken by scheduler.listen"),
        ("origin.proxy=https://proxy:3128", "origin.proxy: must begin with http://"),
        ("origin.proxy=http://a:b@proxy:3128", "must hold no password"),
        ("origin.proxy_login=/etc/pondhawk/login", "origin.proxy_login: is for origin.proxy, which is not set"),
        ("intercept.bypass_for=0s", "intercept.bypass_for: must be from 1s to 1d"),
    ];
    for (setting, message) in expected {
        assert!(problem(&[setting]).contains(message), "{setting}: {}", problem(&[setting]));
    }
    assert!(
        with_settings(&["intercept.hosts=*.cdn.example,.b.example", "origin.overrides={\"a:1\": \"[::1]:2\"}"]).is_ok()
    );
    assert!(with_settings(&["listen.proxy=0.0.0.0:65001", "authorize.public=a.example/models/"]).is_ok());
    assert!(with_settings(&["listen.proxy=127.0.0.1:0", "listen.admin=127.0.0.1:0"]).is_ok());
}

#[test]
fn the_buffers_of_two_shards_stay_within_the_budget() {
    let limits = Limits::default();
    assert_eq!(limits.buffers_per_shard(2) * limits.buffer_size.as_usize() * 2, 32 << 20);
    assert_eq!(limits.buffers_per_shard(1000), Limits::MIN_BUFFERS);
}
