//! What no single value shows: values that contradict each other or make no sense [pure].

use std::time::Duration;

use pondhawk_scheduler::trace;

use super::{Config, Period, Quota, Size};
use crate::swarm::upstream::Upstream;

/// A value that cannot work; says which and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct CheckError {
    /// The dotted path of the key.
    pub key: &'static str,
    /// Why its value cannot work.
    pub reason: String,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const MAX_SHARDS: u16 = 1024;
/// What the BPF program's map of names holds.
const MAX_HOSTS: usize = 16;
const MAX_SUFFIX: usize = 63;
/// RFC 1035 section 2.3.4.
const MAX_HOST_NAME: usize = 253;

impl Config {
    /// Everything that cannot work, in the order of the document.
    pub fn problems(&self) -> Vec<CheckError> {
        let mut found = Vec::new();
        let mut check = |ok: bool, key, reason: &str| {
            if !ok {
                found.push(CheckError { key, reason: reason.to_owned() });
            }
        };
        check(self.data_dir.is_absolute(), "data_dir", "must be an absolute path");
        check(self.shards <= MAX_SHARDS, "shards", "must be at most 1024");
        check(self.log.level.parse::<tracing_subscriber::EnvFilter>().is_ok(), "log.level", "is no level or filter");
        self.check_store(&mut check);
        self.check_limits(&mut check);
        self.check_times(&mut check);
        self.check_tracing(&mut check);
        found.extend(self.check_ports());
        found.extend(self.check_intercept());
        found.extend(self.check_swarm());
        found.extend(self.check_urls());
        found
    }

    fn check_store(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let room = !matches!(self.store.quota, Quota::Bytes(Size(bytes)) if bytes < 64 * MIB);
        check(
            room,
            "store.quota",
            "must be at least 64MiB: a task's pieces are up to 16MiB and several are written at once",
        );
        check(self.origin.connections_per_host > 0, "origin.connections_per_host", "must be at least 1");
        check(self.origin.connections_per_host <= 256, "origin.connections_per_host", "must be at most 256");
        check((1..=100).contains(&self.origin.retries), "origin.retries", "must be from 1 to 100");
        check(self.origin.redirects <= 20, "origin.redirects", "must be at most 20");
        check(!(1..MIB).contains(&self.origin.rate.0), "origin.rate", "must be 0 or at least 1MiB");
        let ordered = self.origin.retry_backoff <= self.origin.retry_max;
        check(ordered, "origin.retry_max", "must be at least origin.retry_backoff");
    }

    fn check_limits(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let limits = &self.limits;
        let within = |size: Size, low, high| (low..=high).contains(&size.0);
        check(within(limits.head_bytes, 4 * KIB, MIB), "limits.head_bytes", "must be from 4KiB to 1MiB");
        check((16..=1024).contains(&limits.headers), "limits.headers", "must be from 16 to 1024");
        check(limits.connections > 0, "limits.connections", "must be at least 1");
        check(limits.downloads > 0, "limits.downloads", "must be at least 1");
        let buffer = within(limits.buffer_size, 16 * KIB, 4 * MIB) && limits.buffer_size.0.is_multiple_of(4 * KIB);
        check(buffer, "limits.buffer_size", "must be from 16KiB to 4MiB and a multiple of 4KiB");
        let memory = within(limits.buffer_memory, MIB, 64 << 30);
        check(memory, "limits.buffer_memory", "must be from 1MiB to 64GiB");
    }

    fn check_times(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let day = Duration::from_secs(86_400);
        let mut bounded = |key, period: Period, least| {
            let fits = (least..=day).contains(&period.0);
            check(fits, key, &format!("must be from {} to 1d", Period(least)));
        };
        let (none, short, second) = (Duration::ZERO, Duration::from_millis(10), Duration::from_secs(1));
        bounded("drain", self.drain, none);
        bounded("intercept.heartbeat_max_silence", self.intercept.heartbeat_max_silence, second);
        bounded("intercept.bypass_for", self.intercept.bypass_for, second);
        bounded("origin.connect_timeout", self.origin.connect_timeout, short);
        bounded("origin.stall_timeout", self.origin.stall_timeout, short);
        bounded("origin.head_timeout", self.origin.head_timeout, short);
        bounded("origin.retry_backoff", self.origin.retry_backoff, short);
        bounded("origin.retry_max", self.origin.retry_max, short);
        bounded("authorize.cap", self.authorize.cap, none);
        bounded("limits.idle_timeout", self.limits.idle_timeout, short);
        bounded("limits.handshake_timeout", self.limits.handshake_timeout, short);
        bounded("limits.send_stall", self.limits.send_stall, short);
    }

    fn check_tracing(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let endpoint = self.tracing.endpoint.as_deref().map_or(Ok(()), trace::check_endpoint);
        let why = endpoint.as_ref().err().map(ToString::to_string).unwrap_or_default();
        check(endpoint.is_ok(), "tracing.endpoint", &why);
        check((0.0..=1.0).contains(&self.tracing.sample), "tracing.sample", "must be from 0 to 1");
    }

    fn check_ports(&self) -> Option<CheckError> {
        let intercept = Some(self.listen.intercept_port).filter(|_| self.intercept.enabled != super::Switch::Off);
        let port = |listen: super::Listen| listen.0.map(|address| address.port());
        let used = [
            ("listen.proxy", port(self.listen.proxy)),
            ("listen.admin", port(self.listen.admin)),
            ("listen.intercept_port", intercept),
            ("scheduler.listen", port(self.scheduler.listen).filter(|_| self.scheduler.join.is_none())),
            ("scheduler.page", port(self.scheduler.page).filter(|_| self.scheduler.join.is_none())),
        ];
        for (index, (key, port)) in used.iter().enumerate() {
            let clash = used[..index].iter().find(|(_, other)| port.is_some_and(|port| port != 0) && other == port);
            if let (Some((other, _)), Some(port)) = (clash, port) {
                return Some(CheckError { key, reason: format!("port {port} is already taken by {other}") });
            }
        }
        None
    }

    fn check_swarm(&self) -> Option<CheckError> {
        let (swarm, scheduler) = (&self.swarm, &self.scheduler);
        let wrong = |key, reason: &str| Some(CheckError { key, reason: reason.to_owned() });
        let named = swarm.name.as_deref().is_none_or(pondhawk_scheduler::authority::is_peer_name);
        let fixed = swarm.listen.0.is_none_or(|address| {
            let shards = u16::try_from(self.shard_count()).unwrap_or(MAX_SHARDS);
            address.port() != 0 && address.port().checked_add(shards).is_some()
        });
        let label = |(key, value): (&String, &String)| [key, value].iter().all(|text| (1..=63).contains(&text.len()));
        if !named {
            return wrong(
                "swarm.name",
                "must be 1 to 63 of a-z, 0-9, '.' and '-', and begin and end with a letter or digit",
            );
        }
        if !fixed {
            return wrong(
                "swarm.listen",
                "must name a port, since others are told it, with room for one a shard after it",
            );
        }
        if swarm.link_mtu < 1280 {
            return wrong("swarm.link_mtu", "must be at least 1280");
        }
        if swarm.labels.len() > 16 || !swarm.labels.iter().all(label) {
            return wrong("swarm.labels", "must be at most 16, keys and values of 1 to 63 bytes");
        }
        for (key, rate) in [("swarm.upload_rate", swarm.upload_rate), ("swarm.download_rate", swarm.download_rate)] {
            if (1..MIB).contains(&rate.0) {
                return wrong(key, "must be 0 or at least 1MiB");
            }
        }
        if swarm.uploads == 0 {
            return wrong("swarm.uploads", "must be at least 1; swarm.listen: off shares nothing");
        }
        let place = |place: &str| {
            place.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if scheduler.join.is_some() {
            let places = scheduler.places();
            if !places.iter().all(|text| place(text)) {
                return wrong(
                    "scheduler.join",
                    "must be host:port, as in scheduler.example:65100, or several with commas between",
                );
            }
            let once = |(at, text): (usize, &&str)| !places[..at].contains(text);
            if places.len() > 16 || !places.iter().enumerate().all(once) {
                return wrong("scheduler.join", "must name at most 16 schedulers, each once");
            }
        }
        if scheduler.listen.0.is_some_and(|address| address.port() == 0) {
            return wrong("scheduler.listen", "must name a port, since others are told it");
        }
        None
    }

    fn check_intercept(&self) -> Option<CheckError> {
        let hosts = &self.intercept.hosts;
        let wrong = |key, reason: String| Some(CheckError { key, reason });
        if hosts.is_empty() && self.intercept.enabled != super::Switch::Off {
            return wrong(
                "intercept.hosts",
                "is empty: name the hosts to serve, or set intercept.enabled to off".into(),
            );
        }
        if hosts.len() > MAX_HOSTS {
            return wrong("intercept.hosts", format!("has {} names; at most {MAX_HOSTS} are possible", hosts.len()));
        }
        if let Some((host, reason)) = hosts.iter().find_map(|host| host_problem(host).map(|reason| (host, reason))) {
            return wrong("intercept.hosts", format!("`{host}` {reason}"));
        }
        if let Some(long) = hosts.iter().find(|host| host.len() > MAX_SUFFIX) {
            return wrong("intercept.hosts", format!("`{long}` is longer than {MAX_SUFFIX} characters"));
        }
        if self.intercept.mark.0 == 0 {
            return wrong("intercept.mark", "must not be 0, the mark of every other socket".into());
        }
        match &self.intercept.cgroup {
            Some(path) if !path.is_absolute() => wrong("intercept.cgroup", "must be an absolute path".into()),
            _ => None,
        }
    }

    fn check_urls(&self) -> Option<CheckError> {
        let wrong = |key, reason| Some(CheckError { key, reason });
        for rule in &self.authorize.public {
            let host = rule.split('/').next().unwrap_or_default();
            if rule.contains("://") {
                return wrong("authorize.public", format!("`{rule}` must begin with the host, not with a scheme"));
            }
            if let Some(reason) = host_problem(host) {
                return wrong("authorize.public", format!("`{host}` {reason}"));
            }
        }
        for place in self.origin.overrides.keys() {
            let (host, port) = place.split_once(':').map_or((place.as_str(), "1"), |(host, port)| (host, port));
            let problem = host_problem(host).or(port.parse::<u16>().is_err().then_some("has a port that is none"));
            if let Some(reason) = problem {
                return wrong("origin.overrides", format!("`{place}` {reason}"));
            }
        }
        if let Some(reason) = self.origin.proxy.as_deref().and_then(proxy_problem) {
            return wrong("origin.proxy", reason);
        }
        if self.origin.proxy.is_none() && self.origin.proxy_login.is_some() {
            return wrong("origin.proxy_login", "is for origin.proxy, which is not set".to_owned());
        }
        let mirror = &self.mirror;
        for (key, url) in [("mirror.hub", &mirror.hub), ("mirror.cdn", &mirror.cdn), ("mirror.url", &mirror.url)] {
            if let Some(reason) = url.as_deref().and_then(hub_problem) {
                return wrong(key, reason.to_owned());
            }
        }
        let front = crate::http::rules::Front::new(self).err();
        if let Some(error) = front.filter(|error| matches!(error.key(), "rules" | "proxy.allow")) {
            return wrong(error.key(), error.to_string());
        }
        let odd = |name: &&String| name.is_empty() || *name == "*" || name.contains(['=', '&', '?']);
        let name = self.filter.drop_params.iter().find(odd)?;
        wrong("filter.drop_params", format!("`{name}` is no name of a query parameter"))
    }
}

fn proxy_problem(proxy: &str) -> Option<String> {
    match Upstream::new(proxy) {
        Ok(proxy) if proxy.has_login() => Some(
            "must hold no password, which would be shown with the configuration: see origin.proxy_login".to_owned(),
        ),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn hub_problem(hub: &str) -> Option<&'static str> {
    let Ok(url) = url::Url::parse(hub) else { return Some("must be a URL, as in https://huggingface.co") };
    let plain = url.path() == "/" && url.query().is_none() && url.username().is_empty();
    match url.scheme() {
        "https" if plain => None,
        "https" => Some("must be scheme and host alone, as in https://huggingface.co"),
        _ => Some("must begin with https://: tokens pass through it"),
    }
}

/// Why the text is no host name, if it is none; `.` or `*.` in front change nothing.
fn host_problem(host: &str) -> Option<&'static str> {
    let name = host.trim_start_matches('*').trim_start_matches('.');
    let label = |label: &str| {
        let inner = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        inner && !label.is_empty() && label.len() <= 63 && !label.starts_with('-')
    };
    match () {
        () if host.contains('/') => Some("must be a host name: no scheme, no path, no slash"),
        () if name.contains('*') => Some("must have no * inside: a name stands for all names below it"),
        () if host.contains(':') => Some("must be a host name without a port"),
        () if name.len() > MAX_HOST_NAME || !name.split('.').all(label) => Some("is no host name"),
        () => None,
    }
}
