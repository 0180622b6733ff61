//! Join tokens: none that the authority did not make is good, and what is read from one is what stands in it.

use std::sync::OnceLock;
use std::time::Duration;

use pondhawk_scheduler::authority::{Authority, ParsedToken, TokenError};
use tempfile::TempDir;

const NOW: u64 = 1_800_000_000;

/// Runs the target. Input that begins with `=` stands in for parts of a good token: `N text` replaces part `N` of its five.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let State { authority, good, .. } = state();
    assert_eq!(authority.check_token(good, NOW), Ok(()));
    assert_eq!(authority.check_token(good, NOW + 3600), Err(TokenError::Expired));
    let token = changed(good, text).unwrap_or_else(|| text.to_owned());
    let parsed = ParsedToken::parse(&token);
    if authority.check_token(&token, NOW).is_ok() {
        assert_eq!(token.trim(), good, "a forged token is good");
    }
    if let Ok(parsed) = parsed {
        let mut parts = token.trim().split('.').skip(1);
        let ca: String = parsed.ca.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(parts.next().map(str::to_ascii_lowercase), Some(ca));
        let expiry = parts.next().and_then(|expiry| u64::from_str_radix(expiry, 16).ok());
        assert_eq!(expiry, Some(parsed.expiry_unix));
    }
}

fn changed(good: &str, text: &str) -> Option<String> {
    let (at, part) = text.strip_prefix('=')?.split_at_checked(1)?;
    let at: usize = at.parse().ok()?;
    let mut parts: Vec<&str> = good.split('.').collect();
    *parts.get_mut(at)? = part;
    Some(parts.join("."))
}

struct State {
    authority: Authority,
    good: String,
    /// Holds the secret, which is read at each check.
    _dir: TempDir,
}

fn state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(dir.path()).expect("an authority");
        let good = authority.token(NOW, Duration::from_secs(3600)).expect("a token");
        State { authority, good, _dir: dir }
    })
}
