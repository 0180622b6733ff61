//! The HTTP proxy by which origins are reached where a network has no other way out: each connection is a tunnel through it
//! (CONNECT, RFC 9110 section 9.3.6) [pure].

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use url::{Host, Url};

/// The longest head of the proxy's answer.
pub(super) const MAX_HEAD: usize = 16 << 10;
/// Header lines of it.
const MAX_LINES: usize = 64;

/// A proxy, and which hosts are reached without it.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    host: String,
    port: u16,
    /// The value of Proxy-Authorization.
    login: Option<String>,
    direct: Vec<String>,
}

/// The text names no proxy that can be used. Holds no password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No URL, one without a host, or one with a path.
    #[error("must be scheme, host and port of a proxy, as in http://proxy.example:3128")]
    Url,
    /// HTTPS, SOCKS.
    #[error("must begin with http://: a proxy that is itself spoken to by TLS or SOCKS is not supported")]
    Scheme,
    /// Nothing before the first colon.
    #[error("must be name:password")]
    Login,
}

impl Upstream {
    /// Reads `http://[name:password@]host[:port]`, the port 80 by default as in any http URL.
    ///
    /// # Errors
    /// [`UpstreamError`], which does not repeat the text.
    pub fn new(url: &str) -> Result<Self, UpstreamError> {
        let url = Url::parse(url).map_err(|_| UpstreamError::Url)?;
        if url.scheme() != "http" {
            return Err(UpstreamError::Scheme);
        }
        let host = match url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string(),
            None => return Err(UpstreamError::Url),
        };
        if url.path() != "/" || url.query().is_some() {
            return Err(UpstreamError::Url);
        }
        let proxy = Self { host, port: url.port().unwrap_or(80), login: None, direct: Vec::new() };
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        match (url.username(), url.password()) {
            ("", None) => Ok(proxy),
            (name, password) => {
                proxy.with_login(&format!("{}:{}", decoded(name), decoded(password.unwrap_or_default())))
            }
        }
    }

    /// With these credentials, `name:password` (Basic, RFC 7617).
    ///
    /// # Errors
    /// There is no name.
    pub fn with_login(mut self, login: &str) -> Result<Self, UpstreamError> {
        if login.find(':').is_none_or(|at| at == 0) {
            return Err(UpstreamError::Login);
        }
        self.login = Some(format!("Basic {}", STANDARD.encode(login)));
        Ok(self)
    }

    /// Not for these: a name stands for itself and every name below it, with or without `.` or `*.` in front; `*` for all.
    #[must_use]
    pub fn without(mut self, hosts: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let plain = |host: &str| match host.trim() {
            "*" => "*".to_owned(),
            host => host.trim_start_matches('*').trim_start_matches('.').trim_matches(['[', ']']).to_ascii_lowercase(),
        };
        self.direct = hosts.into_iter().map(|host| plain(host.as_ref())).filter(|host| !host.is_empty()).collect();
        self
    }

    /// Whether the URL named credentials, or they were given.
    pub fn has_login(&self) -> bool {
        self.login.is_some()
    }

    /// Where it is: a name or address without brackets, and the port.
    pub fn place(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Whether this host, without brackets, is reached by way of it.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let named = |name: &String| {
            let below = host.strip_suffix(name.as_str()).is_some_and(|front| front.is_empty() || front.ends_with('.'));
            name == "*" || below
        };
        !self.direct.iter().any(named)
    }

    /// The request for a tunnel to `target`, a host and port as in a URL. `via` is the value of that field, where the request
    /// that needs the tunnel has passed proxies, this node among them.
    pub(super) fn request(&self, target: &str, via: Option<&str>) -> String {
        let via = via.map(|via| format!("Via: {via}\r\n")).unwrap_or_default();
        let login = self.login.as_ref().map(|login| format!("Proxy-Authorization: {login}\r\n")).unwrap_or_default();
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{via}{login}\r\n")
    }
}

/// Without its credentials.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({self})")
    }
}

/// How many of `more` still belong to the head of the proxy's answer, of which `head` was there before; whether that is its end.
/// What follows is the tunnel's. A line ends with LF, with or without CR before it (RFC 9112 section 2.2).
pub(crate) fn of_head(head: &[u8], more: &[u8]) -> (usize, bool) {
    let before = &head[head.len().saturating_sub(2)..];
    let both = [before, more].concat();
    let end = (0..both.len()).find_map(|at| match &both[at..] {
        [b'\n', b'\n', ..] => Some(at + 2),
        [b'\n', b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    });
    end.filter(|end| *end > before.len()).map_or((more.len(), false), |end| (end - before.len(), true))
}

/// Whether another head follows one with this status: 1xx, but for 101 (RFC 9110 section 15.2).
pub(crate) fn is_interim(status: u16) -> bool {
    matches!(status, 100 | 102..=199)
}

/// The status of a whole head; none: it is not HTTP/1.
pub(crate) fn status(head: &[u8]) -> Option<u16> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut answer = httparse::Response::new(&mut lines);
    answer.parse(head).ok().filter(httparse::Status::is_complete)?;
    answer.code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_proxy_is_told_by_its_url_and_its_secret_to_nobody() {
        let proxy = Upstream::new("http://al%3Aice:se%20cret@proxy.example:3128/").unwrap();
        assert_eq!((proxy.place(), proxy.has_login()), (("proxy.example", 3128), true));
        assert!(!format!("{proxy} {proxy:?}").contains("cret"));
        let request = proxy.request("cdn.example:443", None);
        let login = STANDARD.encode("al:ice:se cret");
        let lines = ["CONNECT cdn.example:443 HTTP/1.1", "Host: cdn.example:443", "Proxy-Authorization: Basic "];
        assert_eq!(request, format!("{}{login}\r\n\r\n", lines.join("\r\n")));
        let plain = Upstream::new("http://[fd00::1]").unwrap();
        assert_eq!((plain.place(), plain.to_string()), (("fd00::1", 80), "[fd00::1]:80".to_owned()));
        assert_eq!(plain.request("a:1", None), "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
        assert!(plain.request("a:1", Some("1.1 x")).ends_with("\r\nVia: 1.1 x\r\n\r\n"));
    }

    #[test]
    fn what_names_no_usable_proxy_is_refused() {
        for text in ["", "proxy", "http://", "http://proxy/path", "http://proxy/?q"] {
            assert_eq!(Upstream::new(text), Err(UpstreamError::Url), "{text}");
        }
        for text in ["https://proxy:3128", "socks5://proxy:1080", "proxy.example:3128"] {
            assert_eq!(Upstream::new(text), Err(UpstreamError::Scheme), "{text}");
        }
        let proxy = || Upstream::new("http://proxy").unwrap();
        assert!([":secret", "secret"].iter().all(|login| proxy().with_login(login) == Err(UpstreamError::Login)));
    }

    #[test]
    fn a_name_stands_for_what_is_below_it() {
        let proxy = Upstream::new("http://proxy").unwrap().without(["*.inner.example", "Hub.example", " 10.0.0.7", ""]);
        for host in ["inner.example", "a.INNER.example.", "hub.example", "10.0.0.7"] {
            assert!(!proxy.is_for(host), "{host}");
        }
        for host in ["winner.example", "example", "10.0.0.70", "110.0.0.7"] {
            assert!(proxy.is_for(host), "{host}");
        }
        assert!(!proxy.without(["*"]).is_for("example"));
    }

    #[test]
    fn a_status_is_read_from_a_head_and_from_nothing_else() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 407 Proxy Authentication Required\r\nServer: x\r\n\r\n"), Some(407));
        for other in [&b"SSH-2.0-OpenSSH\r\n\r\n"[..], b"HTTP/1.1 2\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n"] {
            assert_eq!(status(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn lines_may_end_without_a_carriage_return_and_interim_heads_are_told_apart() {
        for head in [&b"HTTP/1.1 200 OK\n\n"[..], b"HTTP/1.0 200 OK\nVia: 1.1 x\n\n", b"HTTP/1.1 200 OK\r\nA: b\n\r\n"]
        {
            let stream = [head, b"\nthe tunnel's own"].concat();
            for cut in 1..head.len() {
                let (first, over) = of_head(b"", &stream[..cut]);
                assert_eq!((first, over), (cut, false));
                assert_eq!(of_head(&stream[..cut], &stream[cut..]), (head.len() - cut, true), "cut at {cut}");
            }
            assert_eq!(status(head), Some(200), "{}", String::from_utf8_lossy(head));
        }
        assert!(is_interim(100) && is_interim(103) && !is_interim(101) && !is_interim(200));
    }

    proptest! {
        /// However the stream is cut, the head ends where it ends, and what follows stays.
        #[test]
        fn a_head_in_pieces_ends_at_the_same_byte(cuts in proptest::collection::vec(1usize..9, 1..40), after in ".{0,20}") {
            let whole = format!("HTTP/1.1 200 Connection established\r\nVia: 1.1 x\r\n\r\n{after}");
            let end = whole.find("\r\n\r\n").unwrap() + 4;
            let (mut head, mut rest) = (Vec::new(), whole.as_bytes());
            let mut cuts = cuts.iter().cycle();
            loop {
                let more = &rest[..rest.len().min(*cuts.next().unwrap())];
                prop_assert!(!more.is_empty(), "the end was not found");
                let (take, over) = of_head(&head, more);
                head.extend_from_slice(&more[..take]);
                rest = &rest[take..];
                if over {
                    break;
                }
            }
            prop_assert_eq!((head.len(), rest), (end, after.as_bytes()));
            prop_assert_eq!(status(&head), Some(200));
        }
    }
}
