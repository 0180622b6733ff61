//! Host suffixes that a certificate authority speaks for, and the host names under them. [pure]

use std::fmt;

/// Longest DNS name in text form (RFC 1035, section 3.1).
const MAX_NAME: usize = 253;
/// Longest label (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// The hosts of the Hub's content delivery networks, and of Xet's storage: its CAS server says which bytes make a file, its
/// transfer host and bridge serve them.
pub const HUB_HOSTS: [&str; 8] = [
    "cdn-lfs.huggingface.co",
    "cdn-lfs-us-1.huggingface.co",
    "cdn-lfs-eu-1.huggingface.co",
    "cdn-lfs.hf.co",
    "cdn-lfs-us-1.hf.co",
    "cdn-lfs-eu-1.hf.co",
    "cdn.hf.co",
    "xethub.hf.co",
];

/// Host suffixes, normalised: lower case, no leading or trailing dot, sorted, none covered by another.
///
/// A suffix covers itself and every name below it, as a dNSName constraint of RFC 5280, section 4.2.1.10, does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suffixes(Vec<String>);

/// A suffix no certificate can be constrained to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Not a DNS name: an address, a URL, a wildcard inside, or too long.
    #[error("host suffix {0:?} is not a DNS name such as `hf.co`, `.hf.co` or `*.hf.co`")]
    NotAName(String),
    /// A CA without a constraint would speak for every host.
    #[error("no host suffixes are configured: the CA would have no limits")]
    NoSuffixes,
}

impl Suffixes {
    /// [`HUB_HOSTS`].
    pub fn hub() -> Self {
        Self::new(HUB_HOSTS).expect("the list holds names")
    }

    /// Takes `hf.co`, `.hf.co` and `*.hf.co` alike: all three mean `hf.co` and everything below.
    pub fn new<S: AsRef<str>>(suffixes: impl IntoIterator<Item = S>) -> Result<Self, NameError> {
        let mut names = suffixes.into_iter().map(|suffix| normalise(suffix.as_ref())).collect::<Result<Vec<_>, _>>()?;
        names.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
        let mut kept = Self(Vec::with_capacity(names.len()));
        for name in names {
            if !kept.covers(&name) {
                kept.0.push(name);
            }
        }
        kept.0.sort();
        if kept.0.is_empty() { Err(NameError::NoSuffixes) } else { Ok(kept) }
    }

    /// Whether `host` (any case, trailing dot or not) is one of the suffixes or below one.
    pub fn covers(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        self.0.iter().any(|suffix| is_under(&host, suffix))
    }

    /// Those of `others` that are not covered, as text; empty where all are.
    pub fn missing(&self, others: &Self) -> String {
        others.iter().filter(|suffix| !self.covers(suffix)).collect::<Vec<_>>().join(", ")
    }

    /// The name a certificate for `sni` carries, or `None` where the CA may not speak for it.
    pub fn leaf_name(&self, sni: &str) -> Option<String> {
        let host = sni.strip_suffix('.').unwrap_or(sni).to_ascii_lowercase();
        (is_host(&host) && self.covers(&host)).then_some(host)
    }

    /// The suffixes, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Suffixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// Whether a host is the suffix or a name below it: `hf.co` covers `cdn.hf.co` and not `xhf.co`. Both in lower case.
pub fn is_under(host: &str, suffix: &str) -> bool {
    let suffix = suffix.trim_start_matches('.');
    !suffix.is_empty() && host.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn normalise(suffix: &str) -> Result<String, NameError> {
    let name = suffix.strip_prefix("*.").or_else(|| suffix.strip_prefix('.')).unwrap_or(suffix);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if is_host(&name) { Ok(name) } else { Err(NameError::NotAName(suffix.to_owned())) }
}

/// Letters, digits, hyphens and underscores (which exist in host names in use), and no address: the last label is
/// not all digits (RFC 1123, section 2.1).
fn is_host(name: &str) -> bool {
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= MAX_NAME && name.split('.').all(label_ok) && !last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_ways_to_write_a_suffix_mean_the_same_and_redundant_ones_go() {
        let suffixes = Suffixes::new(["*.HF.co", ".hf.co", "hf.co.", "cdn.hf.co", "xhf.co"]).unwrap();
        assert_eq!(suffixes.iter().collect::<Vec<_>>(), ["hf.co", "xhf.co"]);
    }

    #[test]
    fn a_suffix_covers_itself_and_names_below_but_no_lookalike() {
        let suffixes = Suffixes::new(["hf.co"]).unwrap();
        for host in ["hf.co", "HF.CO.", "a.hf.co", "us.gcp.cdn.hf.co"] {
            assert!(suffixes.covers(host), "{host}");
        }
        for host in ["evilhf.co", "hf.co.evil.org", "co", "", ".", "hf.com"] {
            assert!(!suffixes.covers(host), "{host}");
        }
    }

    #[test]
    fn a_leaf_is_named_only_by_a_valid_host_under_a_suffix() {
        let suffixes = Suffixes::new(["hf.co"]).unwrap();
        assert_eq!(suffixes.leaf_name("CDN-LFS.hf.co.").as_deref(), Some("cdn-lfs.hf.co"));
        let long = format!("{}.hf.co", "a".repeat(64));
        for host in ["*.hf.co", "a..hf.co", ".hf.co", "a b.hf.co", "é.hf.co", "a\0.hf.co", "-a.hf.co", long.as_str()] {
            assert_eq!(suffixes.leaf_name(host), None, "{host:?}");
        }
    }

    #[test]
    fn addresses_urls_and_nothing_at_all_are_no_suffixes() {
        for bad in ["", ".", "*", "10.0.0.1", "::1", "https://hf.co", "hf.co/x", "a.*.hf.co", "hf.co:443"] {
            assert_eq!(Suffixes::new([bad]), Err(NameError::NotAName(bad.to_owned())), "{bad:?}");
        }
        assert_eq!(Suffixes::new::<&str>([]), Err(NameError::NoSuffixes));
    }
}
