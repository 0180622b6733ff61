//! Who may look: whoever has the token, in a header or by way of a cookie that stands for it.
//!
//! The token is in a file that is read at each use: replaced there, it is worthless at once, and so are all cookies. A cookie
//! holds no secret but a time and an HMAC over it with the token as key, so nothing about it has to be remembered here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::{constant_time, digest, hmac};
use hyper::HeaderMap;
use hyper::header::{self, HeaderValue};

use crate::authority::{AuthorityError, check_mode, file, hex, lock, random_bytes, write};

/// The cookie's name; cookies are shared by all ports of a host.
const COOKIE: &str = "pondhawk_page";
/// How long a cookie is good for.
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// A token shorter than this could be guessed.
const SHORTEST: usize = 16;
const LONGEST: usize = 1024;
/// Where the own one is, in the state directory.
pub(crate) const FILE: &str = "page.token";

/// Where the token is.
pub(super) struct Access {
    path: PathBuf,
    /// Made here, so that nobody else may read it; a given one is its giver's affair.
    own: bool,
}

impl Access {
    /// The one in the state directory, made where there is none.
    pub(super) fn own(dir: &Path) -> Result<Self, AuthorityError> {
        let path = dir.join(FILE);
        let _turn = lock(dir)?;
        if !path.exists() {
            write(&path, 0o600, format!("{}\n", hex(&random_bytes())).as_bytes())?;
        }
        let access = Self { path, own: true };
        access.token().map(|_| access)
    }

    /// The one in a given file.
    pub(super) fn given(path: PathBuf) -> Result<Self, AuthorityError> {
        let access = Self { path, own: false };
        access.token().map(|_| access)
    }

    /// Replaces the one in the state directory.
    pub(super) fn renew(dir: &Path) -> Result<(), AuthorityError> {
        let _turn = lock(dir)?;
        write(&dir.join(FILE), 0o600, format!("{}\n", hex(&random_bytes())).as_bytes())
    }

    /// The token as it is now.
    pub(super) fn token(&self) -> Result<String, AuthorityError> {
        if self.own {
            check_mode(&self.path)?;
        }
        let text = fs::read_to_string(&self.path).map_err(|source| file(&self.path, source))?;
        let token = text.trim();
        let fits = (SHORTEST..=LONGEST).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !fits {
            let why = format!("a token has {SHORTEST} to {LONGEST} printable ASCII characters");
            return Err(AuthorityError::Corrupt { path: self.path.clone(), why });
        }
        Ok(token.to_owned())
    }
}

/// Whether both are the same, in a time that does not tell where they differ.
pub(super) fn same(token: &str, shown: &str) -> bool {
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    constant_time::verify_slices_are_equal(hash(token).as_ref(), hash(shown).as_ref()).is_ok()
}

/// The token in an `Authorization` header.
pub(super) fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// A `Set-Cookie` that stands for the token from now on.
pub(super) fn cookie(token: &str, now_unix: u64) -> String {
    let expiry = now_unix + LIFE.as_secs();
    let tag = hex(sign(token, expiry).as_ref());
    format!("{COOKIE}={expiry:x}.{tag}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}", LIFE.as_secs())
}

/// A `Set-Cookie` that takes it back.
pub(super) fn no_cookie() -> String {
    format!("{COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0")
}

/// Whether a `Cookie` header has a cookie that stands for this token.
pub(super) fn holds(header: &str, token: &str, now_unix: u64) -> bool {
    let mut pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.any(|(name, value)| name == COOKIE && stands_for(value, token, now_unix))
}

/// Whether a browser sent the request from a page of this very host: it says where each POST comes from.
pub(super) fn same_site(headers: &HeaderMap) -> bool {
    let of = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let origin = of(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, place)| place);
    origin.is_some() && origin == of(header::HOST)
}

fn stands_for(value: &str, token: &str, now_unix: u64) -> bool {
    let Some((expiry, tag)) = value.split_once('.') else { return false };
    let Ok(expiry) = u64::from_str_radix(expiry, 16) else { return false };
    let right = hex(sign(token, expiry).as_ref());
    expiry > now_unix && constant_time::verify_slices_are_equal(right.as_bytes(), tag.as_bytes()).is_ok()
}

fn sign(token: &str, expiry: u64) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    hmac::sign(&key, format!("pondhawk page {expiry:x}").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123";

    fn header(set: &str) -> &str {
        set.split(';').next().unwrap_or_default()
    }

    #[test]
    fn a_cookie_stands_for_one_token_until_its_time() {
        let set = cookie(TOKEN, 1_000);
        assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict"), "{set}");
        let sent = format!("theme=dark; {}; other=1", header(&set));
        assert!(holds(&sent, TOKEN, 1_000) && holds(&sent, TOKEN, 1_000 + 12 * 3600 - 1));
        assert!(!holds(&sent, TOKEN, 1_000 + 12 * 3600), "its time is over");
        assert!(!holds(&sent, "another-token-of-some-length", 1_000));
        assert!(!set.contains(TOKEN));
    }

    #[test]
    fn a_cookie_with_another_time_or_none_is_worthless() {
        let set = cookie(TOKEN, 1_000);
        let (_, tag) = header(&set).split_once('.').unwrap();
        for bad in [format!("{COOKIE}=ffffffff.{tag}"), format!("{COOKIE}={tag}"), format!("{COOKIE}="), String::new()]
        {
            assert!(!holds(&bad, TOKEN, 1_000), "{bad}");
        }
        assert!(!holds(header(&no_cookie()), TOKEN, 1_000));
    }

    #[test]
    fn a_change_comes_from_a_page_of_the_same_host() {
        let sent = |origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("page.example:65101"));
            let origin = origin.map(|origin| HeaderValue::from_str(origin).unwrap());
            origin.into_iter().for_each(|origin| drop(headers.insert(header::ORIGIN, origin)));
            same_site(&headers)
        };
        assert!(sent(Some("http://page.example:65101")) && sent(Some("https://page.example:65101")));
        for other in [None, Some("null"), Some("http://page.example"), Some("http://evil.example:65101")] {
            assert!(!sent(other), "{other:?}");
        }
    }

    #[test]
    fn a_bearer_token_is_compared_whole() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer abc"), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert!(same(TOKEN, TOKEN) && !same(TOKEN, &TOKEN[..19]) && !same(TOKEN, ""));
    }

    #[test]
    fn the_token_is_made_once_kept_private_and_replaced_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let first = Access::own(dir.path()).unwrap().token().unwrap();
        assert_eq!(Access::own(dir.path()).unwrap().token().unwrap(), first);
        assert_eq!(first.len(), 64);
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let access = Access::own(dir.path()).unwrap();
        Access::renew(dir.path()).unwrap();
        assert_ne!(access.token().unwrap(), first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(access.token().unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_given_token_that_could_be_guessed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        fs::write(&path, "short\n").unwrap();
        assert!(Access::given(path.clone()).is_err());
        fs::write(&path, format!(" {TOKEN}\n")).unwrap();
        assert_eq!(Access::given(path).unwrap().token().unwrap(), TOKEN);
    }
}
