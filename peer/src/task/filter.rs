//! Which query parameters only sign, date, or dress a URL up, and so are no part of its name.

use std::fmt;

/// Parameters that are dropped from a name.
///
/// Some words are a signature's part in one cloud and may select content elsewhere (`sv`, `Expires`): those are dropped
/// only beside the parameter that shows that the cloud's signature is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    /// The group counts only if a parameter matches this.
    beside: Option<Pattern>,
    dropped: Vec<Pattern>,
}

/// A parameter's name, or `prefix*`. Names are compared in their case, prefixes in any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    prefix: bool,
}

/// A pattern of the configuration is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no parameter's name and no `prefix*` (a lone `*` would make all files of a path one)")]
pub struct PatternError(String);

/// What says which bytes a URL is good for is never dropped, whatever the prefixes.
const ALWAYS_KEPT: &[&str] = &["X-Xet-Signed-Range"];

const ALWAYS: &[&str] = &["X-Amz-*", "X-Goog-*", "X-Xet-*", "response-content-*"];
/// CloudFront, S3 version 2, Google version 2, Alibaba OSS version 1.
const SIGNATURE: &[&str] = &[
    "Expires",
    "Policy",
    "Signature",
    "Key-Pair-Id",
    "Hash-Algorithm",
    "AWSAccessKeyId",
    "GoogleAccessId",
    "OSSAccessKeyId",
    "security-token",
];
/// Alibaba OSS version 4. No prefix: `x-oss-process` transforms the content.
const OSS: &[&str] = &[
    "x-oss-signature",
    "x-oss-signature-version",
    "x-oss-credential",
    "x-oss-date",
    "x-oss-expires",
    "x-oss-security-token",
    "x-oss-additional-headers",
    "x-oss-access-key-id",
];
/// Azure shared access signatures.
const AZURE: &[&str] = &[
    "sig", "sv", "se", "st", "sp", "sr", "ss", "srt", "sip", "spr", "si", "sdd", "ses", "skoid", "sktid", "skt", "ske",
    "sks", "skv", "saoid", "suoid", "scid", "rscd", "rsct",
];
/// Tencent COS.
const TENCENT: &[&str] = &["q-*", "x-cos-security-token"];

impl Default for Filter {
    fn default() -> Self {
        let group = |beside: Option<&str>, dropped: &[&str]| Group {
            beside: beside.map(Pattern::new),
            dropped: dropped.iter().map(|text| Pattern::new(text)).collect(),
        };
        let groups = vec![
            group(None, ALWAYS),
            group(Some("Signature"), SIGNATURE),
            group(Some("x-oss-signature"), OSS),
            group(Some("sig"), AZURE),
            group(Some("q-signature"), TENCENT),
        ];
        Self { groups }
    }
}

impl Filter {
    /// A filter of these names and `prefix*` alone, each dropped wherever it stands.
    pub fn only<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        let dropped = patterns.iter().map(|text| Pattern::checked(text.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { groups: vec![Group { beside: None, dropped }] })
    }

    /// This filter and one of these patterns: what either drops is dropped.
    pub fn and<S: AsRef<str>>(mut self, patterns: &[S]) -> Result<Self, PatternError> {
        self.groups.extend(Self::only(patterns)?.groups);
        Ok(self)
    }

    /// What is left of a query, in its order and spelling; `None` if nothing is. Names are compared as they are spelt:
    /// a percent-encoded one is not recognised and stays.
    pub fn apply(&self, query: &str) -> Option<String> {
        let names = || query.split('&').map(name_of);
        let active: Vec<&Group> = self
            .groups
            .iter()
            .filter(|group| group.beside.as_ref().is_none_or(|beside| names().any(|name| beside.matches(name))))
            .collect();
        let drops = |name: &str| active.iter().any(|group| group.dropped.iter().any(|pattern| pattern.matches(name)));
        let keeps = |parameter: &&str| ALWAYS_KEPT.contains(&name_of(parameter)) || !drops(name_of(parameter));
        let kept: Vec<&str> = query.split('&').filter(keeps).collect();
        let kept = kept.join("&");
        (!kept.is_empty()).then_some(kept)
    }
}

fn name_of(parameter: &str) -> &str {
    parameter.split_once('=').map_or(parameter, |(name, _)| name)
}

impl Pattern {
    fn new(text: &str) -> Self {
        let prefix = text.strip_suffix('*');
        Self { text: prefix.unwrap_or(text).to_owned(), prefix: prefix.is_some() }
    }

    fn checked(text: &str) -> Result<Self, PatternError> {
        let pattern = Self::new(text);
        let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '&' | '=' | '#' | '?');
        let valid = !pattern.text.is_empty() && pattern.text.chars().all(allowed);
        valid.then_some(pattern).ok_or_else(|| PatternError(text.to_owned()))
    }

    fn matches(&self, name: &str) -> bool {
        if !self.prefix {
            return name == self.text;
        }
        name.as_bytes().get(..self.text.len()).is_some_and(|start| start.eq_ignore_ascii_case(self.text.as_bytes()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.prefix { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn left(query: &str) -> String {
        Filter::default().apply(query).unwrap_or_default()
    }

    #[test]
    fn every_clouds_signature_is_dropped_and_nothing_else() {
        for signed in [
            "Expires=1&Policy=a&Signature=b&Key-Pair-Id=c&response-content-disposition=d&response-content-type=e",
            "X-Amz-Algorithm=a&X-Amz-Credential=b&X-Amz-Date=c&X-Amz-Expires=1&X-Amz-SignedHeaders=host&x-amz-signature=d",
            "AWSAccessKeyId=a&Signature=b&Expires=1",
            "GoogleAccessId=a&Expires=1&Signature=b",
            "X-Goog-Algorithm=a&X-Goog-Signature=b",
            "sv=2020&sr=b&sig=a%2Fb&se=2030&sp=r&spr=https&skoid=x&sktid=y",
            "OSSAccessKeyId=a&Expires=1&Signature=b&security-token=c",
            "x-oss-signature-version=OSS4&x-oss-credential=a&x-oss-date=b&x-oss-expires=1&x-oss-signature=c",
            "q-sign-algorithm=sha1&q-ak=a&q-sign-time=b&q-key-time=c&q-header-list=&q-url-param-list=&q-signature=d",
        ] {
            assert_eq!(left(signed), "", "{signed}");
            assert_eq!(left(&format!("versionId=7&{signed}&part=a&part=b")), "versionId=7&part=a&part=b", "{signed}");
        }
    }

    #[test]
    fn words_of_a_signature_select_content_where_there_is_no_signature() {
        for query in
            ["sv=2&se=1", "Expires=1&Policy=x", "q-ak=1", "x-oss-process=image/resize&x-oss-date=1", "sig2=a&sv=b"]
        {
            assert_eq!(left(query), query);
        }
        assert_eq!(left("x-oss-process=image&x-oss-signature=a"), "x-oss-process=image");
        assert_eq!(left("X-Xet-Signed-Range=bytes%3D0-1&X-Xet-Session-Id=a"), "X-Xet-Signed-Range=bytes%3D0-1");
    }

    #[test]
    fn the_configuration_may_add_names_and_prefixes_but_not_drop_everything() {
        let filter = Filter::default().and(&["user_id", "trace-*"]).unwrap();
        assert_eq!(filter.apply("user_id=1&Trace-Id=2&a=3&X-Amz-Date=4").as_deref(), Some("a=3"));
        assert_eq!(Filter::only(&["a"]).unwrap().apply("a&X-Amz-Date=4").as_deref(), Some("X-Amz-Date=4"));
        for bad in ["", "*", "a*b", "a=b", "a&b", "a b"] {
            assert!(Filter::only(&[bad]).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_a_part_of_the_query_in_order_and_stays(
            query in "([a-z-]{0,4}|sig|sv|Expires|X-Amz-A)(=[a-z]{0,3})?(&([a-z]{0,4}|sig|sv|Signature)(=[a-z]{0,3})?){0,5}",
        ) {
            let filter = Filter::default();
            let kept = filter.apply(&query).unwrap_or_default();
            let mut all = query.split('&');
            for parameter in kept.split('&').filter(|it| !it.is_empty()) {
                prop_assert!(all.any(|it| it == parameter));
            }
            prop_assert_eq!(filter.apply(&kept).unwrap_or_default(), kept);
        }
    }
}
