//! Request targets and authorities [pure] (RFC 9112 §3.2, RFC 3986 §3.2).

use std::fmt;

use super::head::HeadError;

/// What a request line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/path?query`: the authority is in the Host field.
    Origin {
        /// Starts with `/`; ASCII.
        path_and_query: String,
    },
    /// `http://host/path?query`: what a client sends to a proxy.
    Absolute {
        /// `http` or `https`, in lower case.
        scheme: &'static str,
        /// Named by the target: it outranks the Host field (RFC 9112 §3.2.2).
        authority: Authority,
        /// Starts with `/`; ASCII.
        path_and_query: String,
    },
    /// `host:port` of CONNECT.
    Authority {
        /// In lower case, without a trailing dot.
        host: String,
        /// Always spelt out by the client (RFC 9110 §9.3.6).
        port: u16,
    },
    /// `*` of OPTIONS.
    Asterisk,
}

impl Target {
    /// Reads the target of a request with this method. Raw UTF-8, which some clients send, comes back percent-encoded.
    pub fn parse(method: &str, text: &str) -> Result<Self, HeadError> {
        if method == "CONNECT" {
            let Authority { host, port } = Authority::parse(text.as_bytes()).ok_or(HeadError::Target)?;
            return Ok(Self::Authority { host, port: port.ok_or(HeadError::Target)? });
        }
        if text == "*" {
            return if method == "OPTIONS" { Ok(Self::Asterisk) } else { Err(HeadError::Target) };
        }
        if text.starts_with('/') {
            return Ok(Self::Origin { path_and_query: encoded(text)? });
        }
        Self::absolute(text)
    }

    fn absolute(text: &str) -> Result<Self, HeadError> {
        let (scheme, rest) = text.split_once("://").ok_or(HeadError::Target)?;
        let scheme = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => "http",
            _ if scheme.eq_ignore_ascii_case("https") => "https",
            _ => return Err(HeadError::Target),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let authority = Authority::parse(&rest.as_bytes()[..end]).ok_or(HeadError::Target)?;
        let mut path_and_query = encoded(&rest[end..])?;
        if !path_and_query.starts_with('/') {
            path_and_query.insert(0, '/');
        }
        Ok(Self::Absolute { scheme, authority, path_and_query })
    }

    /// Path and query, where the form has them.
    pub fn path_and_query(&self) -> Option<&str> {
        match self {
            Self::Origin { path_and_query } | Self::Absolute { path_and_query, .. } => Some(path_and_query),
            Self::Authority { .. } | Self::Asterisk => None,
        }
    }
}

/// ASCII as it is, other UTF-8 percent-encoded; a fragment, a space or a control character is an error.
fn encoded(text: &str) -> Result<String, HeadError> {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'#' | 0..=b' ' | 0x7f => return Err(HeadError::Target),
            0x80.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    Ok(out)
}

/// A host and perhaps a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// A name, an IPv4 address, or an IPv6 address in brackets; in lower case, without a trailing dot.
    pub host: String,
    /// `None`: the scheme's default.
    pub port: Option<u16>,
}

impl Authority {
    /// Reads `host`, `host:port` or `[v6]:port`. User information and anything else a host cannot be gives `None`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = match text.find(']') {
            Some(end) if text.starts_with('[') => text.split_at(end + 1),
            _ => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let valid = match host.strip_prefix('[') {
            Some(v6) => is_ipv6_shaped(v6.strip_suffix(']')?),
            None => is_name(host.strip_suffix('.').unwrap_or(host)),
        };
        valid.then_some(())?;
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        Some(Self { host, port: port_of(port)? })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// `""` and `":"` are no port; the outer `None` is an error.
fn port_of(text: &str) -> Option<Option<u16>> {
    let Some(digits) = text.strip_prefix(':') else { return text.is_empty().then_some(None) };
    if digits.is_empty() {
        return Some(None);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|port| *port != 0).map(Some)
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(allowed) && text.split('.').all(|label| !label.is_empty())
}

fn is_ipv6_shaped(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    (2..=45).contains(&text.len()) && text.contains(':') && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn authority(text: &str) -> Option<(String, Option<u16>)> {
        Authority::parse(text.as_bytes()).map(|it| (it.host, it.port))
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        assert_eq!(authority("CDN-LFS.hf.co."), Some(("cdn-lfs.hf.co".into(), None)));
        assert_eq!(authority("cdn:443"), Some(("cdn".into(), Some(443))));
        assert_eq!(authority("cdn:"), Some(("cdn".into(), None)));
        assert_eq!(authority("[::1]:80"), Some(("[::1]".into(), Some(80))));
        for bad in
            ["", ".", "a..b", "user@host", "a b", "h:0", "h:65536", "h:+1", "h:1:2", "[::1", "::1", "[::1]x", "a/b"]
        {
            assert_eq!(authority(bad), None, "{bad}");
        }
    }

    #[test]
    fn each_form_belongs_to_its_methods() {
        let parse = |method, text| Target::parse(method, text).ok();
        assert_eq!(parse("OPTIONS", "*"), Some(Target::Asterisk));
        assert_eq!(parse("GET", "*"), None);
        assert_eq!(parse("CONNECT", "h:443"), Some(Target::Authority { host: "h".into(), port: 443 }));
        assert_eq!(parse("CONNECT", "h"), None);
        assert_eq!(parse("CONNECT", "/h"), None);
        assert_eq!(parse("GET", "h:443"), None);
        assert_eq!(parse("GET", "ftp://h/"), None);
        assert_eq!(parse("GET", "http://u:p@h/"), None);
        assert_eq!(parse("GET", "/a#b"), None);
    }

    #[test]
    fn an_absolute_target_always_has_a_path() {
        let path = |text| Target::parse("GET", text).unwrap().path_and_query().unwrap().to_owned();
        assert_eq!(path("HTTP://h"), "/");
        assert_eq!(path("http://h?a=b"), "/?a=b");
        assert_eq!(path("https://h:1/a?b=http://c"), "/a?b=http://c");
        assert_eq!(path("/d\u{e9}j\u{e0}"), "/d%C3%A9j%C3%A0");
    }

    proptest! {
        #[test]
        fn a_formatted_authority_reads_back_as_itself(
            host in "[a-z0-9_-]{1,9}(\\.[a-z0-9]{1,9}){0,3}",
            port in proptest::option::of(1u16..),
        ) {
            let it = Authority { host, port };
            prop_assert_eq!(Authority::parse(it.to_string().as_bytes()), Some(it));
        }

        #[test]
        fn no_text_panics_and_what_is_taken_is_ascii(text in ".*") {
            if let Ok(target) = Target::parse("GET", &text) {
                prop_assert!(target.path_and_query().unwrap().is_ascii());
            }
            let _ = Target::parse("CONNECT", &text);
        }
    }
}
