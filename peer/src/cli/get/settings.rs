//! What the arguments, the environment and the files of the Hub's clients say.

use std::{net::SocketAddr, path::PathBuf};

use url::Url;

use super::{
    Get, Patterns, Rights, cache,
    error::GetError,
    filter::Filter,
    web::{Lines, Way},
};
use crate::{
    cli::{Settings, client::AdminPlace},
    config::Config,
    swarm::upstream::{Upstream, UpstreamError},
    task::id::parse_hex32,
};

const ENDPOINT: &str = "https://huggingface.co";
const NODE: &str = "127.0.0.1:65001";
const ADMIN_PORT: u16 = 65002;
/// Tokens have some 40 characters.
const MAX_TOKEN: usize = 4096;

impl Rights {
    pub(super) fn endpoint(&self) -> Result<Url, GetError> {
        let text = self.endpoint.as_deref().filter(|text| !text.is_empty()).unwrap_or(ENDPOINT);
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host());
        url.ok_or_else(|| GetError::Usage(format!("--endpoint {text}: no http or https URL")))
    }

    /// As the Hub's clients find it: argument, HF_TOKEN, the file.
    pub(super) fn token(&self) -> Result<Option<String>, GetError> {
        let implicit = || match is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(token_file),
        };
        let token = self.token.clone().or_else(implicit).map(|text| text.trim().to_owned());
        let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
        match token.len() <= MAX_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Some(token)),
            false => Err(GetError::Usage("the token is none: it has blanks or control characters".to_owned())),
        }
    }

    pub(super) fn lines(&self) -> Result<Lines, GetError> {
        self.headers.iter().map(|line| header(line)).collect()
    }
}

impl Patterns {
    pub(super) fn filter(&self) -> Result<Filter, GetError> {
        Ok(Filter::new(&self.include, &self.exclude)?)
    }

    pub(super) fn are_given(&self) -> bool {
        !self.include.is_empty() || !self.exclude.is_empty()
    }
}

impl Get {
    /// The node's ports; none with `--direct`.
    pub(super) fn way(&self) -> Way {
        if self.direct {
            return Way::default();
        }
        let Configured { proxy, admin } = match &self.node {
            Some(node) => Configured { proxy: node.clone(), admin: on_the_host_of(node) },
            None => configured(),
        };
        Way { node: Some(proxy), admin: variable("PONDHAWK_ADMIN").map_or(admin, |text| AdminPlace::named(&text)) }
    }

    pub(super) fn wanted_digest(&self) -> Result<Option<[u8; 32]>, GetError> {
        let Some(text) = &self.digest else { return Ok(None) };
        let digest = text.strip_prefix("sha256:").and_then(parse_hex32);
        digest.map(Some).ok_or_else(|| GetError::Usage(format!("--digest {text}: not sha256: and 64 digits")))
    }

    pub(super) fn cache_dir(&self) -> Option<PathBuf> {
        let given = self.hf_cache.as_ref()?;
        Some(given.clone().unwrap_or_else(|| cache::directory(variable)))
    }
}

/// `Name: value`, where nothing can end the line early.
fn header(line: &str) -> Result<(String, Vec<u8>), GetError> {
    let wrong = || GetError::Usage(format!("--header {line:?}: not a name, a colon and a value"));
    let (name, value) = line.split_once(':').ok_or_else(wrong)?;
    let good = name.parse::<hyper::header::HeaderName>().is_ok();
    let value = hyper::header::HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
    if good { Ok((name.to_owned(), value.as_bytes().to_vec())) } else { Err(wrong()) }
}

/// Where the node of this machine is.
pub(crate) struct Configured {
    /// `host:port` of its proxy port.
    pub(crate) proxy: String,
    pub(crate) admin: AdminPlace,
}

/// As the configuration says that `pondhawk up` reads here; where this user may not read it, the defaults.
pub(crate) fn configured() -> Configured {
    let settings = Settings { config: variable("PONDHAWK_CONFIG").map(PathBuf::from), set: Vec::new() };
    let reached = |address: SocketAddr| match address.ip().is_unspecified() {
        true => format!("127.0.0.1:{}", address.port()),
        false => address.to_string(),
    };
    let config = settings.load().map_or_else(|_| Config::default(), |loaded| loaded.config);
    Configured {
        proxy: config.listen.proxy.0.map_or_else(|| NODE.to_owned(), reached),
        admin: AdminPlace { socket: config.admin_socket(), port: config.listen.admin.0.map(reached) },
    }
}

/// The proxy that `HTTPS_PROXY` names, and not for what `NO_PROXY` does; none where that is the node itself.
pub(super) fn upstream(
    variable: impl Fn(&str) -> Option<String>,
    nodes: &[&str],
) -> Result<Option<Upstream>, UpstreamError> {
    let named = |lower: &str, upper: &str| variable(lower).or_else(|| variable(upper));
    let Some(url) = named("https_proxy", "HTTPS_PROXY") else { return Ok(None) };
    // As curl and Python's clients take it.
    let proxy = Upstream::new(&if url.contains("://") { url } else { format!("http://{url}") })?;
    let own = |node: &str| {
        let place = proxy.to_string();
        let same_port = node.rsplit_once(':').is_some_and(|(_, port)| port == proxy.place().1.to_string());
        node == place || (same_port && is_this_machine(node) && is_this_machine(&place))
    };
    if nodes.iter().any(|node| own(node)) {
        return Ok(None);
    }
    let direct = named("no_proxy", "NO_PROXY").unwrap_or_default();
    Ok(Some(proxy.without(direct.split(','))))
}

/// Whether `host:port` is a loopback address.
pub(crate) fn is_this_machine(place: &str) -> bool {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Where the admin port of a node is usually.
fn on_the_host_of(node: &str) -> AdminPlace {
    AdminPlace { socket: None, port: node.rsplit_once(':').map(|(host, _)| format!("{host}:{ADMIN_PORT}")) }
}

fn token_file() -> Option<String> {
    let path = variable("HF_TOKEN_PATH").map_or_else(|| cache::home(variable).join("token"), PathBuf::from);
    std::fs::read_to_string(path).ok()
}

/// Refuses to ask the Hub where the environment forbids its clients to.
pub(super) fn check_online() -> Result<(), GetError> {
    match ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| is_on(name)) {
        Some(name) => Err(GetError::Offline(name)),
        None => Ok(()),
    }
}

/// As the Hub's clients read their switches.
fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|text| matches!(text.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"))
}

/// A variable that is set to something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_s_proxy_is_taken_unless_it_is_the_node() {
        let of = |pairs: &[(&str, &str)]| {
            let variable =
                |name: &str| pairs.iter().find(|(held, _)| *held == name).map(|(_, text)| (*text).to_owned());
            upstream(variable, &["127.0.0.1:65001", "node.example:7"])
        };
        assert_eq!(of(&[]), Ok(None));
        let plain = of(&[("HTTPS_PROXY", "http://other:1"), ("https_proxy", "proxy.example:3128")]).unwrap().unwrap();
        assert_eq!(plain.place(), ("proxy.example", 3128));
        for own in ["http://localhost:65001", "http://127.0.0.1:65001/", "http://node.example:7"] {
            assert_eq!(of(&[("HTTPS_PROXY", own)]), Ok(None), "{own}");
        }
        assert!(of(&[("HTTPS_PROXY", "http://127.0.0.1:65002")]).unwrap().is_some());
        assert!(of(&[("HTTPS_PROXY", "socks5://proxy:1")]).is_err());
        let some = of(&[("HTTPS_PROXY", "http://p"), ("NO_PROXY", "a.example, b.example")]).unwrap().unwrap();
        assert_eq!(some, Upstream::new("http://p").unwrap().without(["a.example", "b.example"]));
    }

    #[test]
    fn a_header_is_a_name_and_a_value_on_one_line() {
        assert_eq!(header("X-Key:  a b ").unwrap(), ("X-Key".to_owned(), b"a b".to_vec()));
        for line in ["X-Key", "X Key: a", ": a", "X-Key: a\r\nHost: b"] {
            assert!(header(line).is_err(), "{line:?}");
        }
    }
}
