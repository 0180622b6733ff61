//! Join tokens: what a bearer may do with one, and how it is written [pure].
//!
//! `ph1.<SHA-256 of the CA>.<expiry>.<nonce>.<HMAC>` lets any number of nodes join, each under a name that no other key owns.
//! `ph2.<SHA-256 of the CA>.<expiry>.<uses>.<name>.<nonce>.<HMAC>` is limited: to so many joins (0: any number), and to one
//! name (`-`: any). Every part but the prefix is hexadecimal. A reusable token keeps the older form, so that nodes of
//! version 0.1 can read it.

use super::{is_peer_name, unhex};

const REUSABLE_PREFIX: &str = "ph1";
const LIMITED_PREFIX: &str = "ph2";
/// In place of a name: the token is good for any.
const ANY_NAME: &str = "-";
/// Bytes of the nonce that name a token in the registry, in hexadecimal digits.
const ID_DIGITS: usize = 32;

/// What a token allows, beside its expiry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TokenTerms {
    /// The only name that a node can join under with it; `None`: any name that no other key owns.
    pub name: Option<String>,
    /// How many joins it is good for; `None`: any number.
    pub uses: Option<u32>,
}

impl TokenTerms {
    /// A token for one join under any name that no other key owns.
    pub fn single_use() -> Self {
        Self { name: None, uses: Some(1) }
    }

    /// A token for any number of joins, each under a name that no other key owns.
    pub fn reusable() -> Self {
        Self::default()
    }

    /// The parts of a token between its CA's digest and its tag.
    pub(super) fn body(&self, ca: &str, expiry_unix: u64, nonce: &str) -> String {
        if self.name.is_none() && self.uses.is_none() {
            return format!("{REUSABLE_PREFIX}.{ca}.{expiry_unix:x}.{nonce}");
        }
        let name = self.name.as_deref().map_or_else(|| ANY_NAME.to_owned(), |name| super::hex(name.as_bytes()));
        format!("{LIMITED_PREFIX}.{ca}.{expiry_unix:x}.{:x}.{name}.{nonce}", self.uses.unwrap_or(0))
    }
}

/// What a genuine token grants to its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenGrant {
    /// Names the token where its uses are counted: the first half of its nonce, in hexadecimal.
    pub id: String,
    /// Unix seconds.
    pub expiry_unix: u64,
    /// What it is good for.
    pub terms: TokenTerms,
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum TokenError {
    #[error("this is no join token: expected the output of `pondhawk-scheduler token`")]
    Malformed,
    #[error("wrong join token: it was not made by this scheduler, or its secret was rotated since")]
    Wrong,
    #[error("the join token has expired: make a new one with `pondhawk-scheduler token`")]
    Expired,
    #[error("the scheduler cannot check join tokens now: see its log")]
    Unchecked,
}

/// What a bearer can read from a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedToken {
    /// SHA-256 of the CA certificate that the scheduler must show.
    pub ca: [u8; 32],
    /// Unix seconds.
    pub expiry_unix: u64,
    /// What it is good for.
    pub terms: TokenTerms,
    id: String,
}

impl ParsedToken {
    /// Reads a token; says nothing about whether it is genuine.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = token.trim().split('.').collect();
        let (ca, expiry, terms, nonce, tag) = match parts[..] {
            [REUSABLE_PREFIX, ca, expiry, nonce, tag] => (ca, expiry, TokenTerms::reusable(), nonce, tag),
            [LIMITED_PREFIX, ca, expiry, uses, name, nonce, tag] => (ca, expiry, limited(uses, name)?, nonce, tag),
            _ => return Err(TokenError::Malformed),
        };
        let expiry_unix = u64::from_str_radix(expiry, 16).map_err(|_| TokenError::Malformed)?;
        match (unhex(ca), unhex(nonce), unhex(tag)) {
            (Some(ca), Some(_), Some(_)) => Ok(Self { ca, expiry_unix, terms, id: nonce[..ID_DIGITS].to_owned() }),
            _ => Err(TokenError::Malformed),
        }
    }

    /// What it grants, once its tag was found to be right.
    pub(super) fn into_grant(self) -> TokenGrant {
        TokenGrant { id: self.id, expiry_unix: self.expiry_unix, terms: self.terms }
    }
}

fn limited(uses: &str, name: &str) -> Result<TokenTerms, TokenError> {
    let uses = u32::from_str_radix(uses, 16).map_err(|_| TokenError::Malformed)?;
    let name = match name {
        ANY_NAME => None,
        digits => Some(text_of(digits).filter(|name| is_peer_name(name)).ok_or(TokenError::Malformed)?),
    };
    Ok(TokenTerms { name, uses: (uses > 0).then_some(uses) })
}

fn text_of(digits: &str) -> Option<String> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    let bytes = (0..digits.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(terms: &TokenTerms) -> String {
        format!("{}.{}", terms.body(&"0a".repeat(32), 0x424, &"1b".repeat(32)), "2c".repeat(32))
    }

    #[test]
    fn a_token_says_what_it_is_good_for() {
        let named = TokenTerms { name: Some("node-1.rack.example".to_owned()), uses: None };
        let counted = TokenTerms { name: None, uses: Some(300) };
        for terms in [TokenTerms::reusable(), TokenTerms::single_use(), named, counted] {
            let parsed = ParsedToken::parse(&token(&terms)).unwrap();
            assert_eq!((&parsed.terms, parsed.expiry_unix, parsed.ca), (&terms, 0x424, [0x0a; 32]));
            assert_eq!(parsed.into_grant().id, "1b".repeat(16));
        }
        assert!(token(&TokenTerms::reusable()).starts_with("ph1."), "nodes of version 0.1 read it");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = token(&TokenTerms::single_use());
        let named = |name: &str| good.replacen(".-.", &format!(".{name}."), 1);
        assert!(ParsedToken::parse(&named("6e")).is_ok());
        let bad = [
            named("6"),
            named("zz"),
            named("41"),
            named("ff"),
            named("€€"),
            named(""),
            good.replacen("ph2", "ph3", 1),
            good.replacen(".1.", ".100000000.", 1),
            good.replacen(".1.", ".", 1),
        ];
        for bad in bad {
            assert_eq!(ParsedToken::parse(&bad), Err(TokenError::Malformed), "{bad}");
        }
    }
}
