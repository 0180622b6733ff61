//! Which key owns which name, which tokens are used up, and who is denied [pure].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::authority::{TokenGrant, hex, is_peer_name, unhex};

/// How long a name stays with its key after the key's last certificate has ended. Long enough for a machine that is
/// repaired, and short enough that clusters whose machines come and go do not fill the registry.
pub const NAME_HOLD: u64 = 30 * DAY;
/// An owner's renewals are recorded at most this often, so that the file is not written for each of them.
const NAME_REFRESH: u64 = 14 * DAY;
const DAY: u64 = 86_400;
/// Longest reason of a denial, bytes.
pub const MAX_REASON: usize = 200;

/// How many entries of each kind a registry has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) names: usize,
    pub(super) tokens: usize,
    pub(super) denials: usize,
}

impl Bounds {
    /// In a directory: some 20 MB of text at the most.
    pub(super) const DIRECTORY: Self = Self { names: 131_072, tokens: 65_536, denials: 1_024 };
    /// In a Secret of Kubernetes, which holds 1 MiB together with the cluster's keys. Kubernetes itself is made for clusters
    /// of up to 5,000 nodes.
    pub(super) const SECRET: Self = Self { names: 6_000, tokens: 1_000, denials: 128 };
}

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyDigest(pub [u8; 32]);

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDigest({self})")
    }
}

impl From<KeyDigest> for String {
    fn from(key: KeyDigest) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for KeyDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        unhex(&text).map(Self).ok_or("not 64 hexadecimal digits")
    }
}

/// A peer as an operator names it: by name, or by the SHA-256 of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say it")]
pub enum PeerSubject {
    Name(String),
    Key(KeyDigest),
}

impl FromStr for PeerSubject {
    type Err = &'static str;

    /// A key's digest has 64 hexadecimal digits, with or without colons; a name has at most 63 characters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.replace(':', "").to_ascii_lowercase();
        match unhex(&digits) {
            Some(key) => Ok(Self::Key(KeyDigest(key))),
            None if is_peer_name(text) => Ok(Self::Name(text.to_owned())),
            None => Err("a node's name, or the SHA-256 of its key: 64 hexadecimal digits"),
        }
    }
}

/// A peer that may take no part in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// Any peer of this name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Any peer with this key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<KeyDigest>,
    /// What the operator gave as the reason; may be empty.
    pub reason: String,
    /// Unix seconds.
    pub since: u64,
}

impl Denial {
    /// Whether it is about a peer of this name and key.
    pub fn covers(&self, name: &str, key: &KeyDigest) -> bool {
        self.name.as_deref() == Some(name) || self.key.as_ref() == Some(key)
    }

    fn is_about(&self, subject: &PeerSubject) -> bool {
        match subject {
            PeerSubject::Name(name) => self.name.as_ref() == Some(name),
            PeerSubject::Key(key) => self.key.as_ref() == Some(key),
        }
    }
}

/// Whose a name is: the key (none: it was released, and is there for the next token), and until when, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NameOwner(pub(super) Option<KeyDigest>, pub(super) u64);

/// How often a token was used, and when it expires, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TokenUse(u32, u64);

/// The whole registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entries {
    pub(super) names: BTreeMap<String, NameOwner>,
    tokens: BTreeMap<String, TokenUse>,
    pub(super) denials: Vec<Denial>,
}

/// A peer that asks for a certificate or a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// A valid peer's name.
    pub name: String,
    /// Of the key that it proved to have.
    pub key: KeyDigest,
    /// End of its certificate, Unix seconds.
    pub not_after: u64,
    /// The token that it brought; `None`: it showed a certificate instead.
    pub token: Option<TokenGrant>,
}

impl Admission {
    /// Whether its token is good for its name.
    pub(super) fn check_token_name(&self) -> Result<(), RegistryRefusal> {
        match self.token.as_ref().and_then(|token| token.terms.name.as_ref()) {
            Some(only) if *only != self.name => Err(RegistryRefusal::OtherName(only.clone())),
            _ => Ok(()),
        }
    }
}

/// What can be changed.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Admit(Admission),
    /// The next peer that joins under the name with a token owns it.
    Release(String),
    Deny(PeerSubject, String),
    Allow(PeerSubject),
}

/// Why a change was refused. Each message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum RegistryRefusal {
    #[error(
        "the name {0:?} belongs to another key: give this node another name (swarm.name), or, if it is the same machine and its key was lost, release the name on the scheduler with `pondhawk-scheduler forget {0}` (`pondhawk peers forget {0}` where a node is the scheduler)"
    )]
    Taken(String),
    #[error("the name {0:?} was released on the scheduler: join again with a token")]
    Released(String),
    #[error(
        "the join token has been used as often as it may be: make a new one with `pondhawk-scheduler token` (see --uses and --reusable)"
    )]
    Spent,
    #[error("the join token is for the node {0:?} only: make another one with `pondhawk-scheduler token`")]
    OtherName(String),
    #[error("{0} is denied on the scheduler{1}: `pondhawk-scheduler allow` lifts that")]
    Denied(String, String),
    #[error(
        "the scheduler remembers {0} names, as many as it can: release some with `pondhawk-scheduler forget`, see `pondhawk-scheduler peers`"
    )]
    TooManyNames(usize),
    #[error(
        "the scheduler remembers the use of {0} tokens, as many as it can: use a --reusable one, or wait until some expire"
    )]
    TooManyTokens(usize),
    #[error("{0} peers are denied, as many as there can be: lift some with `allow`, see `denied`")]
    TooManyDenials(usize),
    #[error("no node has the name {0:?}")]
    NoSuchName(String),
    #[error("{0} is not denied")]
    NotDenied(String),
}

impl Entries {
    /// Makes one change, at `now` in Unix seconds.
    pub(super) fn apply(&mut self, change: &Change, now: u64, bounds: Bounds) -> Result<(), RegistryRefusal> {
        match change {
            Change::Admit(admission) => self.admit(admission, now, bounds),
            Change::Release(name) => match self.names.get_mut(name) {
                Some(owner) => {
                    owner.0 = None;
                    Ok(())
                }
                None => Err(RegistryRefusal::NoSuchName(name.clone())),
            },
            Change::Deny(subject, reason) => self.deny(subject, reason, now, bounds),
            Change::Allow(subject) => {
                let before = self.denials.len();
                self.denials.retain(|denial| !denial.is_about(subject));
                let lifted = self.denials.len() < before;
                lifted.then_some(()).ok_or_else(|| RegistryRefusal::NotDenied(shown(subject)))
            }
        }
    }

    /// Drops names whose time is over, and tokens that have expired anyway.
    pub(super) fn purge(&mut self, now: u64) {
        self.names.retain(|_, owner| owner.1 > now);
        self.tokens.retain(|_, token| token.1 > now);
    }

    /// Whether a peer may take part. A name without an owner is refused only where it was released.
    pub(super) fn check(&self, name: &str, key: &KeyDigest) -> Result<(), RegistryRefusal> {
        self.check_denied(name, key)?;
        match self.names.get(name) {
            Some(NameOwner(Some(owner), _)) if owner != key => Err(RegistryRefusal::Taken(name.to_owned())),
            Some(NameOwner(None, _)) => Err(RegistryRefusal::Released(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// Whether an admission changes nothing that has to be kept: the key owns the name, and its renewal was recorded lately.
    pub(super) fn is_recorded(&self, admission: &Admission) -> bool {
        self.names.get(&admission.name).is_some_and(|&NameOwner(owner, until)| {
            owner == Some(admission.key) && until.saturating_add(NAME_REFRESH) > admission.not_after + NAME_HOLD
        })
    }

    /// Whether a peer that was admitted earlier may have lost its place by what is different in `self`.
    pub(super) fn withdraws_from(&self, before: &Self) -> bool {
        let kept = |(name, owner): (&String, &NameOwner)| self.names.get(name).is_some_and(|now| now.0 == owner.0);
        self.denials != before.denials || !before.names.iter().all(kept)
    }

    fn check_denied(&self, name: &str, key: &KeyDigest) -> Result<(), RegistryRefusal> {
        let Some(denial) = self.denials.iter().find(|denial| denial.covers(name, key)) else { return Ok(()) };
        let subject = match denial.name.as_deref() {
            Some(denied) if denied == name => format!("the name {name:?}"),
            _ => "this node's key".to_owned(),
        };
        let reason = if denial.reason.is_empty() { String::new() } else { format!(" ({})", denial.reason) };
        Err(RegistryRefusal::Denied(subject, reason))
    }

    fn admit(&mut self, admission: &Admission, now: u64, bounds: Bounds) -> Result<(), RegistryRefusal> {
        let Admission { name, key, not_after, token } = admission;
        self.check_denied(name, key)?;
        admission.check_token_name()?;
        let owner = self.names.get(name).filter(|owner| owner.1 > now).map(|owner| owner.0);
        match (owner, token) {
            // Nothing is used up: the answer to an earlier try may have been lost.
            (Some(Some(owner)), _) if owner == *key => {}
            (Some(Some(_)), _) => return Err(RegistryRefusal::Taken(name.clone())),
            (Some(None), None) => return Err(RegistryRefusal::Released(name.clone())),
            // A certificate that was signed before names were recorded here.
            (None, None) => self.make_room(now, bounds)?,
            (owner, Some(token)) => {
                if owner.is_none() {
                    self.make_room(now, bounds)?;
                }
                self.use_token(token, bounds)?;
            }
        }
        let until = not_after.saturating_add(NAME_HOLD).max(self.names.get(name).map_or(0, |owner| owner.1));
        self.names.insert(name.clone(), NameOwner(Some(*key), until));
        Ok(())
    }

    /// One more name fits: if need be, the one goes whose certificate ended the longest ago. A name with a certificate that may
    /// still be good never goes.
    fn make_room(&mut self, now: u64, bounds: Bounds) -> Result<(), RegistryRefusal> {
        if self.names.len() < bounds.names {
            return Ok(());
        }
        let oldest = self.names.iter().min_by_key(|(_, owner)| owner.1);
        // Up to NAME_REFRESH of a certificate's life is not recorded.
        let ended = oldest.filter(|(_, owner)| owner.1.saturating_sub(NAME_HOLD) + NAME_REFRESH <= now);
        let name = ended.map(|(name, _)| name.clone()).ok_or(RegistryRefusal::TooManyNames(bounds.names))?;
        self.names.remove(&name);
        Ok(())
    }

    fn use_token(&mut self, token: &TokenGrant, bounds: Bounds) -> Result<(), RegistryRefusal> {
        let Some(uses) = token.terms.uses else { return Ok(()) };
        let used = self.tokens.get(&token.id).map_or(0, |used| used.0);
        if used >= uses {
            return Err(RegistryRefusal::Spent);
        }
        if used == 0 && self.tokens.len() >= bounds.tokens {
            return Err(RegistryRefusal::TooManyTokens(bounds.tokens));
        }
        self.tokens.insert(token.id.clone(), TokenUse(used + 1, token.expiry_unix));
        Ok(())
    }

    /// A name is denied together with the key that owns it, which could otherwise come back under another name.
    fn deny(&mut self, subject: &PeerSubject, reason: &str, now: u64, bounds: Bounds) -> Result<(), RegistryRefusal> {
        let (name, key) = match subject {
            PeerSubject::Name(name) => (Some(name.clone()), self.names.get(name).and_then(|owner| owner.0)),
            PeerSubject::Key(key) => (None, Some(*key)),
        };
        self.denials.retain(|denial| !denial.is_about(subject));
        if self.denials.len() >= bounds.denials {
            return Err(RegistryRefusal::TooManyDenials(bounds.denials));
        }
        let printable = reason.chars().filter(|c| !c.is_control());
        let mut room = MAX_REASON;
        let fits = |c: &char| {
            room = room.saturating_sub(c.len_utf8());
            room > 0
        };
        self.denials.push(Denial { name, key, reason: printable.take_while(fits).collect(), since: now });
        Ok(())
    }
}

fn shown(subject: &PeerSubject) -> String {
    match subject {
        PeerSubject::Name(name) => format!("the name {name:?}"),
        PeerSubject::Key(key) => format!("the key {key}"),
    }
}
