//! What the node does with a URL, and who may reach what through it [pure].

use std::time::Duration;

use regex::Regex;
use url::Url;

use super::{
    destination::{Destination, plain_path},
    target::Authority,
};
use crate::{
    config::{self, Config},
    store::Priority,
    task::{Filter, filter::PatternError, id::is_under},
    tls::{NameError, Suffixes},
};

/// Bytes of a compiled pattern: what a person writes takes some kilobytes.
const PATTERN_SIZE: usize = 1 << 20;
/// Rules, as each costs a search in every URL.
const MAX_RULES: usize = 256;
/// Stands for any host (RFC 2606 section 2): a rule that matches a URL there as well is not about the URL's own host.
const ANY_HOST: &str = "any.invalid";

/// The configuration cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// No regular expression.
    #[error("rule {number}: match: {source}")]
    Pattern {
        /// From 1.
        number: usize,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
    /// No query parameter.
    #[error("rule {number}: drop_params: {source}")]
    Parameter {
        /// From 1.
        number: usize,
        /// What is wrong with it.
        source: PatternError,
    },
    /// No host to redirect to.
    #[error("rule {0}: redirect: must be a host, with or without a port")]
    Redirect(usize),
    /// A redirection that says not to ask there.
    #[error("{0} rules, and at most {MAX_RULES} are possible")]
    TooMany(usize),
    /// No host to allow.
    #[error("`{0}` is no host, with or without a port")]
    Allow(String),
    /// The served hosts.
    #[error(transparent)]
    Hosts(#[from] NameError),
    /// The parameters that are left out everywhere.
    #[error(transparent)]
    Filter(#[from] PatternError),
}

impl FrontError {
    /// The key of the configuration that is at fault.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Pattern { .. } | Self::Parameter { .. } | Self::Redirect(_) | Self::TooMany(_) => "rules",
            Self::Allow(_) => "proxy.allow",
            Self::Hosts(_) => "intercept.hosts",
            Self::Filter(_) => "filter.drop_params",
        }
    }
}

/// What the node serves, keeps, and lets clients reach.
#[derive(Debug)]
pub struct Front {
    served: Suffixes,
    rules: Vec<Rule>,
    allow: Vec<Authority>,
    /// Whether every host may be reached that has a public address.
    open: bool,
    ports: Vec<u16>,
    hub: Option<Url>,
    cdn: Option<Url>,
    /// What clients of the mirror call it by, where that is not the name that they ask for; no slash at the end.
    url: Option<String>,
}

/// What a client does with a destination that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A request for a URL.
    Request,
    /// A tunnel, of which the node sees no requests.
    Tunnel,
}

#[derive(Debug)]
struct Rule {
    pattern: Regex,
    store: bool,
    https: bool,
    redirect: Option<Authority>,
    filter: Option<Filter>,
    public: bool,
    keep: Option<Duration>,
    priority: Priority,
}

/// What is done with one URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// The URL to ask, after the rule's redirection and upgrade.
    pub url: Url,
    /// Whether the file may be kept; else the request is passed through.
    pub store: bool,
    /// Whether what is kept is served without the origin's consent.
    pub public: bool,
    /// What is no part of the name, where that is not what holds for all.
    pub filter: Option<Filter>,
    /// For how long the file is kept at most.
    pub keep: Option<Duration>,
    /// What goes first when room is needed.
    pub priority: Priority,
    /// The rule that decided, from 1; none: what holds without one.
    pub rule: Option<usize>,
}

impl Front {
    /// Reads the parts of the configuration that this is about.
    ///
    /// # Errors
    /// [`FrontError`], with the key at fault.
    pub fn new(config: &Config) -> Result<Self, FrontError> {
        if config.rules.len() > MAX_RULES {
            return Err(FrontError::TooMany(config.rules.len()));
        }
        let filter = Filter::default().and(&config.filter.drop_params)?;
        let numbered = config.rules.iter().enumerate();
        let rules = numbered.map(|(index, rule)| Rule::new(index + 1, rule, &filter)).collect::<Result<_, _>>()?;
        let allow = |text: &String| {
            let host = text.trim_start_matches("*.").trim_start_matches('.');
            Authority::parse(host.as_bytes()).ok_or_else(|| FrontError::Allow(text.clone()))
        };
        let named: Vec<&String> = config.proxy.allow.iter().filter(|text| *text != "*").collect();
        let local = config.listen.proxy.0.is_none_or(|address| address.ip().is_loopback());
        Ok(Self {
            served: Suffixes::new(&config.intercept.hosts)?,
            rules,
            allow: named.iter().copied().map(allow).collect::<Result<_, _>>()?,
            open: config.proxy.allow.len() > named.len() || (named.is_empty() && local),
            ports: config.proxy.ports.clone(),
            hub: config.mirror.hub.as_deref().and_then(|hub| Url::parse(hub).ok()),
            cdn: config.mirror.cdn.as_deref().and_then(|cdn| Url::parse(cdn).ok()),
            url: config.mirror.url.as_deref().map(|url| url.trim_end_matches('/').to_owned()),
        })
    }

    /// Whether the host is one of intercept.hosts.
    pub fn serves(&self, host: &str) -> bool {
        self.served.covers(host)
    }

    /// The Hub that this node mirrors.
    pub fn hub(&self) -> Option<&Url> {
        self.hub.as_ref()
    }

    /// The CDN whose files this node has under its own address.
    pub fn cdn(&self) -> Option<&Url> {
        self.cdn.as_ref().filter(|cdn| cdn.host_str().is_some_and(|host| self.serves(host)))
    }

    /// The mirror, as a client follows its URLs that called it `host`.
    pub fn mirror(&self, host: &Authority) -> String {
        self.url.clone().unwrap_or_else(|| format!("http://{host}"))
    }

    /// Whether clients of the proxy may reach this place, as far as its name tells.
    pub fn allows(&self, host: &str, port: u16) -> bool {
        let by_name = |allowed: &Authority| {
            is_under(host, &allowed.host) && allowed.port.map_or(self.ports.contains(&port), |only| only == port)
        };
        (self.open && self.ports.contains(&port)) || self.allow.iter().any(by_name)
    }

    /// What is done with a URL. Without a rule the served hosts' files are kept, and asked for by https, as those hosts
    /// offer nothing else and clients cannot send https to a proxy without CONNECT.
    pub fn treat(&self, url: Url) -> Treatment {
        let served = url.host_str().is_some_and(|host| self.serves(host));
        let found = self.rules.iter().position(|rule| rule.pattern.is_match(url.as_str()));
        let mut treatment = Treatment {
            url,
            store: served,
            public: false,
            filter: None,
            keep: None,
            priority: Priority::Normal,
            rule: found.map(|n| n + 1),
        };
        let mut https = served;
        if let Some(rule) = found.map(|index| &self.rules[index]) {
            treatment.store = rule.store;
            // A path that servers read differently may be another one than the rule's author meant.
            treatment.public = rule.public && plain_path(treatment.url.path()).is_some();
            treatment.filter.clone_from(&rule.filter);
            (treatment.keep, treatment.priority) = (rule.keep, rule.priority);
            https |= rule.https;
            if let Some(to) = &rule.redirect {
                redirect(&mut treatment.url, to);
            }
        }
        if https {
            upgrade(&mut treatment.url);
        }
        treatment
    }

    /// Whether the URL leads to one of intercept.hosts, at whatever port.
    pub fn serves_url(&self, url: &Url) -> bool {
        Destination::of(url).is_ok_and(|it| self.serves(it.host))
    }

    /// Whether the URL leads to one of intercept.hosts at the default port of its scheme.
    pub fn serves_origin(&self, url: &Url) -> bool {
        Destination::of(url).is_ok_and(|it| it.default_port && self.serves(it.host))
    }

    /// Whether a client may choose this destination. It is read from the URL that will be asked for.
    pub fn admits(&self, url: &Url, purpose: Purpose) -> bool {
        let Ok(Destination { host, port, .. }) = Destination::of(url) else { return false };
        let by_host = match purpose {
            Purpose::Request => self.serves(host) || self.has_rule_for_host(url),
            Purpose::Tunnel => self.serves(host) && port == 443,
        };
        by_host || self.allows(host, port)
    }

    /// Whether a rule is about the host of this URL: it matches here, and would not match the same path elsewhere. A rule
    /// about paths alone (`\.json$`, `.*`) says what is done with a file and opens no host to clients.
    pub fn has_rule_for_host(&self, url: &Url) -> bool {
        let mut elsewhere = url.clone();
        elsewhere.set_host(Some(ANY_HOST)).is_ok()
            && self
                .rules
                .iter()
                .any(|rule| rule.pattern.is_match(url.as_str()) && !rule.pattern.is_match(elsewhere.as_str()))
    }
}

impl Rule {
    fn new(number: usize, rule: &config::Rule, base: &Filter) -> Result<Self, FrontError> {
        let pattern = regex::RegexBuilder::new(&rule.pattern).size_limit(PATTERN_SIZE).build();
        let redirect = match &rule.redirect {
            Some(to) => Some(Authority::parse(to.as_bytes()).ok_or(FrontError::Redirect(number))?),
            None => None,
        };
        let filter = (!rule.drop_params.is_empty()).then(|| base.clone().and(&rule.drop_params)).transpose();
        Ok(Self {
            pattern: pattern.map_err(|source| FrontError::Pattern { number, source: Box::new(source) })?,
            store: rule.store,
            https: rule.https,
            redirect,
            filter: filter.map_err(|source| FrontError::Parameter { number, source })?,
            public: rule.public,
            keep: rule.keep.map(|keep| keep.0),
            priority: rule.priority,
        })
    }
}

/// http to https; a port that was spelt out stays, except http's own.
fn upgrade(url: &mut Url) {
    if url.scheme() == "http" {
        // Both setters only fail on URLs without a host, which none of these are.
        let _ = url.set_scheme("https");
        if url.port() == Some(80) {
            let _ = url.set_port(None);
        }
    }
}

fn redirect(url: &mut Url, to: &Authority) {
    let _ = url.set_host(Some(&to.host));
    let _ = url.set_port(to.port);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(yaml: &str) -> Result<Front, FrontError> {
        Front::new(&Config::parse(yaml, std::path::Path::new("test")).unwrap())
    }

    fn treated(front: &Front, url: &str) -> Treatment {
        front.treat(Url::parse(url).unwrap())
    }

    #[test]
    fn without_a_rule_the_served_hosts_are_kept_by_https_and_the_rest_is_left_alone() {
        let front = front("intercept: {hosts: [cdn.example]}").unwrap();
        let ours = treated(&front, "http://a.cdn.example:80/x?Signature=1");
        assert_eq!((ours.url.as_str(), ours.store, ours.rule), ("https://a.cdn.example/x?Signature=1", true, None));
        let other = treated(&front, "http://other.example/x");
        assert_eq!((other.url.as_str(), other.store), ("http://other.example/x", false));
    }

    #[test]
    fn the_first_rule_that_is_found_decides() {
        let front = front(
            "rules:\n- {match: '\\.json$', store: false}\n- {match: mirror.example/, https: true, redirect: 'origin.example:8443', \
             drop_params: [token], public: true, keep: 2h, priority: high}\n",
        )
        .unwrap();
        assert!(!treated(&front, "https://mirror.example/a.json").store);
        let kept = treated(&front, "http://mirror.example/a.bin?token=1&v=2");
        assert_eq!(kept.url.as_str(), "https://origin.example:8443/a.bin?token=1&v=2");
        assert!(kept.store && kept.public && kept.rule == Some(2));
        assert_eq!((kept.keep, kept.priority), (Some(Duration::from_secs(7200)), Priority::High));
        assert_eq!(kept.filter.unwrap().apply("token=1&v=2").as_deref(), Some("v=2"));
        assert_eq!(treated(&front, "https://cdn-lfs.hf.co/x").rule, None);
    }

    #[test]
    fn what_cannot_work_names_its_key() {
        for (yaml, key) in [
            ("rules: [{match: '('}]", "rules"),
            ("rules: [{match: a, redirect: 'a b'}]", "rules"),
            ("rules: [{match: a, drop_params: ['*']}]", "rules"),
            ("proxy: {allow: ['http://x']}", "proxy.allow"),
        ] {
            assert_eq!(front(yaml).unwrap_err().key(), key, "{yaml}");
        }
    }

    #[test]
    fn a_rule_about_paths_opens_no_host_and_one_about_a_host_opens_that_host() {
        let reached =
            "listen: {proxy: '0.0.0.0:65001'}\nrules: [{match: '\\.json$'}, {match: '.*'}, {match: 'git.example/'}]";
        let front = front(reached).unwrap();
        let admits = |url| front.admits(&Url::parse(url).unwrap(), Purpose::Request);
        assert!(admits("http://git.example/x") && admits("https://cdn-lfs.hf.co/x"));
        for refused in ["http://10.0.0.1/x.json", "http://evil.example:8443/?git.example/", "http://u@git.example/x"] {
            assert!(!admits(refused), "{refused}");
        }
        assert!(!front.admits(&Url::parse("https://git.example/").unwrap(), Purpose::Tunnel));
    }

    #[test]
    fn a_public_rule_never_covers_a_path_that_servers_read_differently() {
        let front = front("rules: [{match: 'example.org/public/', public: true}]").unwrap();
        assert!(treated(&front, "https://example.org/public/a%20b").public);
        for doubtful in ["..%2fprivate", "%252e%252e/private", "/private", "..%5cprivate"] {
            assert!(!treated(&front, &format!("https://example.org/public/{doubtful}")).public, "{doubtful}");
        }
    }

    #[test]
    fn destinations_are_bounded_by_port_and_by_name() {
        let open = front("{}").unwrap();
        assert!(open.allows("pypi.org", 443) && open.allows("pypi.org", 80) && !open.allows("pypi.org", 22));
        let narrow = front("proxy: {allow: ['*.example.org', 'git.example:8443']}").unwrap();
        assert!(narrow.allows("a.example.org", 443) && narrow.allows("git.example", 8443));
        assert!(!narrow.allows("a.example.org", 8443) && !narrow.allows("git.example", 443));
        assert!(!narrow.allows("evil-example.org", 443));
        let reached = "listen: {proxy: '0.0.0.0:65001'}\n";
        assert!(!front(reached).unwrap().allows("pypi.org", 443), "no open proxy by default");
        assert!(front(&format!("{reached}proxy: {{allow: ['*']}}")).unwrap().allows("pypi.org", 443));
    }
}
