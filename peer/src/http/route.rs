//! Which URL of which origin a request means [pure].

use url::Url;

use super::{
    head::RequestHead,
    target::{Authority, Target},
};
use crate::tls::Suffixes;

/// How a connection reached the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Caught by the BPF program, its TLS terminated.
    Intercepted {
        /// The server name of its handshake, one of the configured hosts.
        name: String,
    },
    /// To the proxy port.
    Proxy,
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
    /// Not one of intercept.hosts.
    #[error("{0} is not one of the hosts in intercept.hosts, which this node serves")]
    NotServed(String),
    /// CONNECT or `*`.
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
            Self::NotServed(_) => 403,
            Self::OtherHost { .. } => 421,
            Self::NoUrl(_) => 501,
        }
    }
}

/// The URL that the request is for. Requests to the proxy port go to the origin by https whatever scheme they name: the
/// served hosts offer nothing else, and clients cannot send https to a proxy without CONNECT.
pub fn url_of(head: &RequestHead, arrival: &Arrival, served: &Suffixes) -> Result<Url, Misrouted> {
    let path = match &head.target {
        Target::Origin { path_and_query } | Target::Absolute { path_and_query, .. } => path_and_query,
        Target::Authority { .. } | Target::Asterisk => return Err(Misrouted::NoUrl(head.method.clone())),
    };
    let Authority { host, port } = head.host().ok_or(Misrouted::NoHost)?;
    let port = match arrival {
        Arrival::Intercepted { name } => {
            if !name.trim_end_matches('.').eq_ignore_ascii_case(host) {
                return Err(Misrouted::OtherHost { name: name.clone(), host: host.clone() });
            }
            None
        }
        Arrival::Proxy => port.filter(|port| !matches!(port, 80 | 443)),
    };
    if !served.covers(host) {
        return Err(Misrouted::NotServed(host.clone()));
    }
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    Url::parse(&format!("https://{host}{port}{path}")).map_err(|_| Misrouted::Url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{HeadLimits, Parsed, parse};

    fn route(request: &str, arrival: &Arrival) -> Result<String, Misrouted> {
        let Parsed::Complete { head, .. } = parse(request.as_bytes(), &HeadLimits::default()).unwrap() else {
            panic!()
        };
        url_of(&head, arrival, &Suffixes::new(["hf.co"]).unwrap()).map(String::from)
    }

    #[test]
    fn an_intercepted_request_goes_where_its_handshake_went() {
        let arrival = Arrival::Intercepted { name: "CDN.hf.co".into() };
        let request = |host| format!("GET /a?b=c HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(route(&request("cdn.hf.co:443"), &arrival).unwrap(), "https://cdn.hf.co/a?b=c");
        assert_eq!(route(&request("other.hf.co"), &arrival).unwrap_err().status(), 421);
    }

    #[test]
    fn the_proxy_port_serves_absolute_and_origin_form_by_https_and_no_other_hosts() {
        let absolute = "GET http://cdn.hf.co/a HTTP/1.1\r\nHost: ignored.example\r\n\r\n";
        assert_eq!(route(absolute, &Arrival::Proxy).unwrap(), "https://cdn.hf.co/a");
        let ported = "GET http://cdn.hf.co:8443/a HTTP/1.1\r\nHost: cdn.hf.co\r\n\r\n";
        assert_eq!(route(ported, &Arrival::Proxy).unwrap(), "https://cdn.hf.co:8443/a");
        assert_eq!(
            route("GET /a HTTP/1.1\r\nHost: cdn.hf.co\r\n\r\n", &Arrival::Proxy).unwrap(),
            "https://cdn.hf.co/a"
        );
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: 127.0.0.1:65001\r\n\r\n", 403),
            ("GET http://metadata.internal/ HTTP/1.1\r\nHost: cdn.hf.co\r\n\r\n", 403),
            ("CONNECT cdn.hf.co:443 HTTP/1.1\r\nHost: cdn.hf.co:443\r\n\r\n", 501),
            ("GET / HTTP/1.0\r\n\r\n", 400),
        ] {
            assert_eq!(route(request, &Arrival::Proxy).unwrap_err().status(), status, "{request}");
        }
    }
}
