//! Where a URL leads, read from the URL that will be asked for [pure].
//!
//! Text that becomes a URL is parsed first and checked afterwards, here: a check of the text itself would see another host
//! than the parser does (`host:8443?.cdn.hf.co`, `host\.cdn.hf.co`, `user@host`).

use percent_encoding::percent_decode_str;
use url::Url;

use super::target::Authority;

/// Host and port of an http or https URL without user information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// A name in lower case, an IPv4 address, or an IPv6 address in brackets.
    pub host: &'a str,
    /// As written, or the default of the scheme.
    pub port: u16,
    /// Whether the port is the default of the scheme.
    pub default_port: bool,
}

/// The URL names no web server, or more than one. The text is meant for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// `file:`, `ftp:` and the like.
    #[error("the scheme of the URL must be http or https")]
    Scheme,
    /// Empty, or with a character that no host name has.
    #[error("the URL names no host")]
    Host,
    /// `user:password@`.
    #[error("the URL must not carry a user name or a password: send an Authorization header instead")]
    User,
    /// Port 0.
    #[error("the port of the URL must be between 1 and 65535")]
    Port,
}

impl<'a> Destination<'a> {
    /// Reads the destination of a parsed URL.
    ///
    /// # Errors
    /// [`DestinationError`]: the URL must not be asked for.
    pub fn of(url: &'a Url) -> Result<Self, DestinationError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(DestinationError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(DestinationError::User);
        }
        let host = url.host_str().ok_or(DestinationError::Host)?;
        // The url crate accepts characters in host names that neither DNS nor a Host field has.
        Authority::parse(host.as_bytes()).filter(|it| it.port.is_none()).ok_or(DestinationError::Host)?;
        let port = url.port_or_known_default().filter(|port| *port != 0).ok_or(DestinationError::Port)?;
        Ok(Self { host, port, default_port: url.port().is_none() })
    }
}

/// `base` with this path and query in place of its own root. `None`: the result would lead to another origin than `base`.
///
/// Unlike [`Url::join`], a path that begins with two slashes stays a path.
pub fn at(base: &Url, path_and_query: &str) -> Option<Url> {
    let url = Url::parse(&format!("{}{path_and_query}", base.as_str().trim_end_matches('/'))).ok()?;
    let user = |url: &Url| (url.username().to_owned(), url.password().map(str::to_owned));
    (path_and_query.starts_with('/') && url.origin() == base.origin() && user(&url) == user(base)).then_some(url)
}

/// The decoded path, where every server reads it alike. `None`: with an empty segment, a segment of dots, a backslash, a
/// NUL, or an escape of one of these or of `/` or `%`, servers disagree on which resource is meant.
pub fn plain_path(path: &str) -> Option<String> {
    let escapes_separator = |at: usize| {
        let code = path.get(at + 1..at + 3).unwrap_or_default();
        ["2f", "5c", "25", "00"].iter().any(|escape| escape.eq_ignore_ascii_case(code))
    };
    if path.match_indices('%').any(|(at, _)| escapes_separator(at)) {
        return None;
    }
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    let doubtful = |text: &str| text.contains(['\\', '\0']) || text.contains("//");
    let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    (!doubtful(&decoded) && !decoded.split('/').any(is_dots)).then(|| decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_destination_is_the_one_that_is_asked_and_not_the_one_that_is_spelt() {
        let of = |text: &str| {
            let url = Url::parse(text).unwrap();
            Destination::of(&url).map(|it| (it.host.to_owned(), it.port, it.default_port))
        };
        for (text, host, port, default_port) in [
            ("https://CDN.hf.co/a", "cdn.hf.co", 443, true),
            ("https://evil.example:8443?.cdn.hf.co/a", "evil.example", 8443, false),
            ("https://evil.example:8443\\.cdn.hf.co/a", "evil.example", 8443, false),
            ("https://evil.example#.cdn.hf.co/a", "evil.example", 443, true),
            ("http://0x7f.1:80/", "127.0.0.1", 80, true),
            ("http://[::1]:65001/", "[::1]", 65001, false),
            ("https://evil%2eexample/", "evil.example", 443, true),
        ] {
            assert_eq!(of(text), Ok((host.to_owned(), port, default_port)), "{text}");
        }
        assert_eq!(of("https://cdn.hf.co@evil.example/"), Err(DestinationError::User));
        assert_eq!(of("https://:x@evil.example/"), Err(DestinationError::User));
        assert_eq!(of("ftp://cdn.hf.co/"), Err(DestinationError::Scheme));
        assert_eq!(of("https://cdn.hf.co:0/"), Err(DestinationError::Port));
        assert_eq!(of("https://a!b/"), Err(DestinationError::Host));
    }

    #[test]
    fn a_path_never_changes_the_origin_that_it_is_asked_at() {
        let base = Url::parse("https://registry.example:5000").unwrap();
        let text = |path| at(&base, path).map(|url| url.to_string());
        assert_eq!(text("//evil.example/x").as_deref(), Some("https://registry.example:5000//evil.example/x"));
        assert_eq!(text("/a?b=//c").as_deref(), Some("https://registry.example:5000/a?b=//c"));
        for other in ["1/x", "@evil.example/", ".evil.example/", "\\evil.example/"] {
            assert_eq!(text(other), None, "{other}");
        }
    }

    #[test]
    fn a_path_that_two_servers_read_differently_is_not_plain() {
        for (path, plain) in [
            ("/public/a b.bin", "/public/a b.bin"),
            ("/public/a%20b.bin", "/public/a b.bin"),
            ("/public/..a/b..", "/public/..a/b.."),
            ("/d%C3%A9j%C3%A0", "/d\u{e9}j\u{e0}"),
        ] {
            assert_eq!(plain_path(path).as_deref(), Some(plain), "{path}");
        }
        for path in [
            "/public/..%2fprivate",
            "/public/..%2Fprivate",
            "/public/%2e%2e/private",
            "/public/.%2e/private",
            "/public/../private",
            "/public/..;/private",
            "/public//private",
            "/public/..\\private",
            "/public/..%5cprivate",
            "/public/%252e%252e/private",
            "/public/a%00",
            "/public/%ff",
            "/public/.",
        ] {
            assert_eq!(plain_path(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_leads_to_another_origin(path in "/.{0,40}") {
            let base = Url::parse("https://hub.example").unwrap();
            if let Some(url) = at(&base, &path) {
                prop_assert_eq!(Destination::of(&url).unwrap(), Destination { host: "hub.example", port: 443, default_port: true });
            }
            let _ = plain_path(&path);
        }
    }
}
