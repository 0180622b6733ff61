//! Which URL of which origin a request means [pure].

use url::Url;

use super::{
    head::RequestHead,
    rules::{Front, Treatment},
    target::{Authority, Target},
    wishes::Wishes,
};
use crate::metrics::Way;

/// How a connection reached the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Meant for one of the served hosts, its TLS terminated.
    Terminated {
        /// The server name of its handshake, one of the configured hosts.
        name: String,
        /// Caught, or led here by CONNECT.
        way: Way,
    },
    /// To the proxy port.
    Proxy,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// For this URL.
    Url(Treatment),
    /// For the Hub, whose place this node takes: the URL there.
    Mirror(Url),
    /// CONNECT: the connection is for this place from now on.
    Tunnel {
        /// A name, or an IPv6 address in brackets.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// The request is for nobody that this node serves. The text is meant for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misrouted {
    /// No Host on HTTP/1.0.
    #[error("the request names no host")]
    NoHost,
    /// Another host than the handshake's (RFC 9110 section 15.5.20).
    #[error("this connection was opened to {name}, and the request is for {host}")]
    OtherHost {
        /// Of the handshake.
        name: String,
        /// Of the request.
        host: String,
    },
    /// Not in proxy.allow, or a port that is not in proxy.ports.
    #[error("{0} may not be reached through this node: proxy.allow and proxy.ports say what may")]
    NotAllowed(String),
    /// No Hub is mirrored.
    #[error("{0} is not one of the hosts in intercept.hosts, and mirror.hub is not set")]
    NotServed(String),
    /// CONNECT within a tunnel, or `*`.
    #[error("only requests for a URL are served here, not {0}")]
    NoUrl(String),
    /// Host and path do not make a URL.
    #[error("host and path do not make a URL")]
    Url,
}

impl Misrouted {
    /// The status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoHost | Self::Url => 400,
            Self::NotAllowed(_) | Self::NotServed(_) => 403,
            Self::OtherHost { .. } => 421,
            Self::NoUrl(_) => 501,
        }
    }
}

/// Where paths begin that stand for another served host: `/_origin/cas-server.xethub.hf.co/v2/...`. The mirror leads its
/// clients there in place of the host itself.
pub const ORIGIN_PREFIX: &str = "/_origin/";

/// Where the paths of LFS objects begin at a CDN, and none at the Hub.
const CDN_PREFIX: &str = "/repos/";

/// What the request is for.
///
/// # Errors
/// [`Misrouted`], to be told to the client.
pub fn route(head: &RequestHead, arrival: &Arrival, wishes: &Wishes, front: &Front) -> Result<Route, Misrouted> {
    match (&head.target, arrival) {
        (Target::Authority { host, port }, Arrival::Proxy) => {
            let allowed = (front.serves(host) && *port == 443) || front.allows(host, *port);
            let place = || Misrouted::NotAllowed(format!("{host}:{port}"));
            allowed.then(|| Route::Tunnel { host: host.clone(), port: *port }).ok_or_else(place)
        }
        (Target::Authority { .. } | Target::Asterisk, _) => Err(Misrouted::NoUrl(head.method.clone())),
        (
            Target::Origin { path_and_query } | Target::Absolute { path_and_query, .. },
            Arrival::Terminated { name, .. },
        ) => {
            let Authority { host, .. } = head.host().ok_or(Misrouted::NoHost)?;
            if !name.trim_end_matches('.').eq_ignore_ascii_case(host) {
                return Err(Misrouted::OtherHost { name: name.clone(), host: host.clone() });
            }
            Ok(Route::Url(front.treat(parsed(&format!("https://{host}{path_and_query}"))?)))
        }
        (Target::Absolute { scheme, authority, path_and_query }, Arrival::Proxy) => {
            permitted(front, parsed(&format!("{scheme}://{authority}{path_and_query}"))?)
        }
        (Target::Origin { path_and_query }, Arrival::Proxy) => here(head, path_and_query, wishes, front),
    }
}

/// A request in the form that servers get, to the proxy port: for the origin that a header or Host names, else for the Hub.
fn here(head: &RequestHead, path: &str, wishes: &Wishes, front: &Front) -> Result<Route, Misrouted> {
    if let Some(registry) = &wishes.registry {
        return permitted(front, registry.join(path).map_err(|_| Misrouted::Url)?);
    }
    if let Some((host, rest)) = path.strip_prefix(ORIGIN_PREFIX).and_then(|rest| rest.split_once('/'))
        && front.serves(host)
    {
        return Ok(Route::Url(front.treat(parsed(&format!("https://{host}/{rest}"))?)));
    }
    let authority = head.host().ok_or(Misrouted::NoHost)?;
    if front.serves(&authority.host) {
        return Ok(Route::Url(front.treat(parsed(&format!("http://{authority}{path}"))?)));
    }
    let named = parsed(&format!("http://{authority}{path}"))?;
    if front.has_rule(&named) {
        return permitted(front, named);
    }
    if let Some(cdn) = front.cdn().filter(|_| path.starts_with(CDN_PREFIX)) {
        return Ok(Route::Url(front.treat(parsed(&format!("{}{path}", cdn.as_str().trim_end_matches('/')))?)));
    }
    let hub = front.hub().ok_or_else(|| Misrouted::NotServed(authority.host.clone()))?;
    Ok(Route::Mirror(parsed(&format!("{}{path}", hub.as_str().trim_end_matches('/')))?))
}

/// What the client names itself must be allowed, also where a rule leads elsewhere.
fn permitted(front: &Front, url: Url) -> Result<Route, Misrouted> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(0);
    if !front.serves(host) && !front.allows(host, port) && !front.has_rule(&url) {
        return Err(Misrouted::NotAllowed(format!("{host}:{port}")));
    }
    Ok(Route::Url(front.treat(url)))
}

fn parsed(text: &str) -> Result<Url, Misrouted> {
    Url::parse(text).map_err(|_| Misrouted::Url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        http::head::{HeadLimits, Parsed, parse},
    };

    fn routed(request: &str, arrival: &Arrival) -> Result<Route, Misrouted> {
        let Parsed::Complete { head, .. } = parse(request.as_bytes(), &HeadLimits::default()).unwrap() else {
            panic!()
        };
        let yaml = "intercept: {hosts: [cdn.hf.co]}\nmirror: {cdn: 'https://cdn.hf.co'}\nproxy: {allow: [hf.co, git.example]}\n\
                    rules: [{match: '^https?://registry.example/', redirect: real.example}]";
        let config = Config::parse(yaml, std::path::Path::new("test")).unwrap();
        route(&head, arrival, &Wishes::of(&head).unwrap(), &Front::new(&config).unwrap())
    }

    fn url(request: &str, arrival: &Arrival) -> String {
        match routed(request, arrival) {
            Ok(Route::Url(treatment)) => format!("{}{}", if treatment.store { "store " } else { "" }, treatment.url),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_terminated_request_goes_where_its_handshake_went() {
        let arrival = Arrival::Terminated { name: "CDN.hf.co".into(), way: Way::Intercept };
        let request = |host| format!("GET /a?b=c HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(url(&request("cdn.hf.co:443"), &arrival), "store https://cdn.hf.co/a?b=c");
        assert_eq!(routed(&request("other.hf.co"), &arrival).unwrap_err().status(), 421);
        let nested = "CONNECT cdn.hf.co:443 HTTP/1.1\r\nHost: cdn.hf.co:443\r\n\r\n";
        assert_eq!(routed(nested, &arrival).unwrap_err().status(), 501);
    }

    #[test]
    fn the_proxy_port_keeps_served_hosts_by_https_and_passes_on_what_is_allowed() {
        let get = |target, host| url(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"), &Arrival::Proxy);
        assert_eq!(get("http://cdn.hf.co/a", "ignored.example"), "store https://cdn.hf.co/a");
        assert_eq!(get("http://cdn.hf.co:8443/a", "x"), "store https://cdn.hf.co:8443/a");
        assert_eq!(get("/a", "cdn.hf.co"), "store https://cdn.hf.co/a");
        assert_eq!(get("/_origin/cdn.hf.co/a?b", "node:65001"), "store https://cdn.hf.co/a?b");
        assert_eq!(get("http://git.example/a", "x"), "http://git.example/a");
        assert_eq!(get("/v2/a", "registry.example"), "store http://real.example/v2/a");
        let registry = "GET /a HTTP/1.1\r\nHost: n\r\nX-Dragonfly-Registry: https://git.example\r\n\r\n";
        assert_eq!(url(registry, &Arrival::Proxy), "https://git.example/a");
    }

    #[test]
    fn what_names_no_other_host_is_for_the_hub() {
        let mirrored = routed("GET /o/m/resolve/main/f HTTP/1.1\r\nHost: node:65001\r\n\r\n", &Arrival::Proxy);
        let Ok(Route::Mirror(url)) = mirrored else { panic!("{mirrored:?}") };
        assert_eq!(url.as_str(), "https://huggingface.co/o/m/resolve/main/f");
        let lfs = routed("GET /repos/ab/cd/x HTTP/1.1\r\nHost: node:65001\r\n\r\n", &Arrival::Proxy);
        assert!(
            matches!(lfs, Ok(Route::Url(treatment)) if treatment.url.as_str() == "https://cdn.hf.co/repos/ab/cd/x")
        );
        // Not a served host, so a path of the Hub like any other.
        let other = routed("GET /_origin/evil.example/f HTTP/1.1\r\nHost: node:65001\r\n\r\n", &Arrival::Proxy);
        assert!(matches!(other, Ok(Route::Mirror(_))));
    }

    #[test]
    fn tunnels_lead_to_served_and_allowed_places_only() {
        let connect = |place| routed(&format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n"), &Arrival::Proxy);
        assert!(matches!(connect("cdn.hf.co:443"), Ok(Route::Tunnel { port: 443, .. })));
        assert!(matches!(connect("git.example:443"), Ok(Route::Tunnel { .. })));
        for refused in ["git.example:22", "metadata.internal:443", "[fd00::1]:443"] {
            assert_eq!(connect(refused).unwrap_err().status(), 403, "{refused}");
        }
    }

    #[test]
    fn a_request_for_nobody_is_told_so() {
        for (request, status) in [
            ("GET http://metadata.internal/ HTTP/1.1\r\nHost: cdn.hf.co\r\n\r\n", 403),
            ("GET / HTTP/1.0\r\n\r\n", 400),
            ("OPTIONS * HTTP/1.1\r\nHost: cdn.hf.co\r\n\r\n", 501),
        ] {
            assert_eq!(routed(request, &Arrival::Proxy).unwrap_err().status(), status, "{request}");
        }
    }
}
