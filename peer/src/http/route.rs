//! Which URL of which origin a request means [pure].

use url::Url;

use super::{
    destination::{self, Destination, DestinationError},
    head::RequestHead,
    rules::{Front, Purpose, Treatment},
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
    /// They make one that must not be asked for.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The node's own entry is in Via.
    #[error(
        "this request comes from this node and has been led back to it: an origin, a rule, origin.proxy or the proxy that it \
         names leads here"
    )]
    Loop,
    /// What follows [`ORIGIN_PREFIX`] is no bare host name.
    #[error("{ORIGIN_PREFIX} must be followed by a host name without a port, and by a path")]
    OriginHost,
}

impl Misrouted {
    /// The status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoHost | Self::Url | Self::Destination(_) | Self::OriginHost => 400,
            Self::NotAllowed(_) | Self::NotServed(_) => 403,
            Self::OtherHost { .. } => 421,
            Self::NoUrl(_) => 501,
            Self::Loop => 508,
        }
    }
}

/// Where paths begin that stand for another served host: `/_origin/cas-server.xethub.hf.co/v2/...`. The mirror leads its
/// clients there in place of the host itself.
pub const ORIGIN_PREFIX: &str = "/_origin/";

/// Where the paths of LFS objects begin at a CDN, and none at the Hub.
const CDN_PREFIX: &str = "/repos/";

/// What the request is for. `is_own` says of a host and port whether they are this node: under its own address it is the Hub's
/// mirror, whatever the form of the request, and no rule applies to that address.
///
/// # Errors
/// [`Misrouted`], whose text is for the client.
pub fn route(
    head: &RequestHead,
    arrival: &Arrival,
    wishes: &Wishes,
    front: &Front,
    is_own: &dyn Fn(&str, u16) -> bool,
) -> Result<Route, Misrouted> {
    let names_node = |host: &Authority| is_own(&host.host, host.port.unwrap_or(80));
    match (&head.target, arrival) {
        (Target::Authority { host, port }, Arrival::Proxy) => tunnel(front, host, *port),
        (Target::Authority { .. } | Target::Asterisk, _) => Err(Misrouted::NoUrl(head.method.clone())),
        (
            Target::Origin { path_and_query } | Target::Absolute { path_and_query, .. },
            Arrival::Terminated { name, .. },
        ) => {
            let Authority { host, .. } = head.host().ok_or(Misrouted::NoHost)?;
            if !name.trim_end_matches('.').eq_ignore_ascii_case(host) {
                return Err(Misrouted::OtherHost { name: name.clone(), host: host.clone() });
            }
            let url = parsed(&format!("https://{host}{path_and_query}"))?;
            front
                .serves_origin(&url)
                .then(|| Route::Url(front.treat(url)))
                .ok_or_else(|| Misrouted::NotServed(host.clone()))
        }
        (Target::Absolute { scheme: "http", authority, path_and_query }, Arrival::Proxy) if names_node(authority) => {
            here(head, path_and_query, wishes, front, true)
        }
        (Target::Absolute { scheme, authority, path_and_query }, Arrival::Proxy) => {
            permitted(front, parsed(&format!("{scheme}://{authority}{path_and_query}"))?)
        }
        (Target::Origin { path_and_query }, Arrival::Proxy) => {
            here(head, path_and_query, wishes, front, head.host().is_some_and(names_node))
        }
    }
}

/// A request in the form that servers get, to the proxy port: for the origin that a header or Host names, else for the Hub.
fn here(head: &RequestHead, path: &str, wishes: &Wishes, front: &Front, own: bool) -> Result<Route, Misrouted> {
    if let Some(registry) = &wishes.registry {
        return permitted(front, destination::at(registry, path).ok_or(Misrouted::Url)?);
    }
    if let Some(rest) = path.strip_prefix(ORIGIN_PREFIX)
        && let Some(url) = at_origin(rest, front)?
    {
        return Ok(Route::Url(front.treat(url)));
    }
    let authority = head.host().ok_or(Misrouted::NoHost)?;
    let named = parsed(&format!("http://{authority}{path}"))?;
    if front.serves_url(&named) {
        return Ok(Route::Url(front.treat(named)));
    }
    if !own && front.has_rule_for_host(&named) {
        return permitted(front, named);
    }
    let beneath = |base: &Url| destination::at(base, path).ok_or(Misrouted::Url);
    if let Some(cdn) = front.cdn().filter(|_| path.starts_with(CDN_PREFIX)) {
        return Ok(Route::Url(front.treat(beneath(cdn)?)));
    }
    let hub = front.hub().ok_or_else(|| Misrouted::NotServed(authority.host.clone()))?;
    Ok(Route::Mirror(beneath(hub)?))
}

/// The URL at a served host that follows [`ORIGIN_PREFIX`]. `None`: the host is not served, so this is a path of the Hub.
fn at_origin(rest: &str, front: &Front) -> Result<Option<Url>, Misrouted> {
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let named = Authority::parse(host.as_bytes()).filter(|named| named.port.is_none() && !host.ends_with(':'));
    let host = named.ok_or(Misrouted::OriginHost)?.host;
    let url = parsed(&format!("https://{host}{path}"))?;
    Ok(front.serves_origin(&url).then_some(url))
}

/// A CONNECT: the destination is read from a URL, as for any other request.
fn tunnel(front: &Front, host: &str, port: u16) -> Result<Route, Misrouted> {
    let url = parsed(&format!("https://{host}:{port}/"))?;
    let Destination { host, port, .. } = Destination::of(&url)?;
    let place = || Misrouted::NotAllowed(format!("{host}:{port}"));
    let route = || Route::Tunnel { host: host.to_owned(), port };
    front.admits(&url, Purpose::Tunnel).then(route).ok_or_else(place)
}

/// What the client names itself must be allowed, also where a rule leads elsewhere.
fn permitted(front: &Front, url: Url) -> Result<Route, Misrouted> {
    let Destination { host, port, .. } = Destination::of(&url)?;
    if !front.admits(&url, Purpose::Request) {
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
        route(&head, arrival, &Wishes::of(&head).unwrap(), &Front::new(&config).unwrap(), &is_own)
    }

    fn is_own(host: &str, port: u16) -> bool {
        (host, port) == ("own.example", 65001)
    }

    /// With HF_ENDPOINT and HTTP_PROXY both naming the node, clients send absolute targets with its own address.
    #[test]
    fn the_nodes_own_address_is_the_mirror_in_every_form() {
        for target in ["/o/m/resolve/main/f", "http://own.example:65001/o/m/resolve/main/f"] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: own.example:65001\r\n\r\n");
            let Ok(Route::Mirror(url)) = routed(&request, &Arrival::Proxy) else { panic!("{target}") };
            assert_eq!(url.as_str(), "https://huggingface.co/o/m/resolve/main/f");
        }
        let cas = "GET http://own.example:65001/_origin/cdn.hf.co/x HTTP/1.1\r\nHost: own.example:65001\r\n\r\n";
        assert_eq!(url(cas, &Arrival::Proxy), "store https://cdn.hf.co/x");
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

    /// The check of the text once saw `evil.example:8443?.cdn.hf.co` end in `.cdn.hf.co`, and the parser then saw another host.
    #[test]
    fn an_origin_path_names_a_bare_served_host_or_is_refused() {
        let get = |path: &str| routed(&format!("GET {path} HTTP/1.1\r\nHost: node:65001\r\n\r\n"), &Arrival::Proxy);
        for path in [
            "evil.example:8443?.cdn.hf.co/x",
            "evil.example:8443\\.cdn.hf.co/x",
            "evil.example\\.cdn.hf.co/x",
            "user@cdn.hf.co/x",
            "evil.example@cdn.hf.co/x",
            "cdn.hf.co:8443/x",
            "cdn.hf.co:443/x",
            "cdn.hf.co:/x",
            "cdn%2ehf.co/x",
            "evil.example%2f.cdn.hf.co/x",
            "/cdn.hf.co/x",
            "",
        ] {
            assert_eq!(get(&format!("/_origin/{path}")).map_err(|error| error.status()), Err(400), "{path}");
        }
        let whole = |path| url(&format!("GET {path} HTTP/1.1\r\nHost: node:65001\r\n\r\n"), &Arrival::Proxy);
        assert_eq!(whole("/_origin/CDN.hf.co./a/../b?c"), "store https://cdn.hf.co/b?c");
        assert_eq!(whole("/_origin/cdn.hf.co?c=/@evil.example"), "store https://cdn.hf.co/?c=/@evil.example");
    }

    #[test]
    fn a_registry_or_the_hub_stays_itself_whatever_the_path() {
        let registry = "GET //evil.example/a HTTP/1.1\r\nHost: n\r\nX-Dragonfly-Registry: https://git.example\r\n\r\n";
        assert_eq!(url(registry, &Arrival::Proxy), "https://git.example//evil.example/a");
        let hub = routed("GET //evil.example/a HTTP/1.1\r\nHost: node:65001\r\n\r\n", &Arrival::Proxy);
        let Ok(Route::Mirror(url)) = hub else { panic!("{hub:?}") };
        assert_eq!(url.as_str(), "https://huggingface.co//evil.example/a");
    }

    /// `rules: [{match: '\.json$'}]` once matched `http://node:65001/o/m/resolve/main/x.json`, and the node asked itself.
    #[test]
    fn a_rule_about_paths_leaves_the_mirror_to_the_hub() {
        let config =
            Config::parse("rules: [{match: '\\.json$', store: false}, {match: '.*'}]", std::path::Path::new("t"));
        let front = Front::new(&config.unwrap()).unwrap();
        let request = "GET /o/m/resolve/main/x.json HTTP/1.1\r\nHost: node:65001\r\n\r\n";
        let Ok(Parsed::Complete { head, .. }) = parse(request.as_bytes(), &HeadLimits::default()) else { panic!() };
        let routed = route(&head, &Arrival::Proxy, &Wishes::default(), &front, &is_own);
        let Ok(Route::Mirror(url)) = routed else { panic!("{routed:?}") };
        assert_eq!(url.as_str(), "https://huggingface.co/o/m/resolve/main/x.json");
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
