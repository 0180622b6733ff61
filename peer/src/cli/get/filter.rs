//! Which files of a repository are wanted [pure].
//!
//! Patterns mean what they do in the Hub's clients (Python's fnmatch): `*` goes over slashes, a trailing slash means the
//! folder and all below it. Alternatives `{a,b}` are ours.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Which paths pass: those that some `include` matches, if there are any, and no `exclude` does.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

/// A pattern that means nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{pattern}` is no pattern: {why}")]
pub(crate) struct PatternError {
    pattern: String,
    why: String,
}

impl Filter {
    /// A filter of these patterns.
    pub(crate) fn new(include: &[String], exclude: &[String]) -> Result<Self, PatternError> {
        let include = if include.is_empty() { None } else { Some(set(include)?) };
        Ok(Self { include, exclude: set(exclude)? })
    }

    /// Whether the path is wanted.
    pub(crate) fn passes(&self, path: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(path)) && !self.exclude.is_match(path)
    }
}

fn set(patterns: &[String]) -> Result<GlobSet, PatternError> {
    let mut all = GlobSetBuilder::new();
    for pattern in patterns {
        let wrong = |error: globset::Error| PatternError { pattern: pattern.clone(), why: error.kind().to_string() };
        let whole = if pattern.ends_with('/') { format!("{pattern}*") } else { pattern.clone() };
        all.add(GlobBuilder::new(&whole).literal_separator(false).build().map_err(wrong)?);
    }
    all.build().map_err(|error| PatternError { pattern: patterns.join(" "), why: error.kind().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(include: &[&str], exclude: &[&str], path: &str) -> bool {
        let owned = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>();
        Filter::new(&owned(include), &owned(exclude)).unwrap().passes(path)
    }

    #[test]
    fn patterns_mean_what_they_do_in_the_hubs_clients() {
        assert!(passes(&[], &[], "anything/at all"));
        assert!(passes(&["*.safetensors"], &[], "deep/er/model.safetensors"));
        assert!(!passes(&["*.safetensors"], &[], "model.bin"));
        assert!(passes(&["onnx/"], &[], "onnx/a/b") && !passes(&["onnx/"], &[], "other/onnx"));
        assert!(passes(&["model-[0-9].bin", "*.{json,txt}"], &[], "a/config.json"));
        assert!(!passes(&["*"], &["*.bin", "*.h5"], "pytorch_model.bin"));
        assert!(passes(&["data/train-0000?"], &["*.md"], "data/train-00007"));
    }

    #[test]
    fn a_pattern_that_means_nothing_is_named() {
        let error = Filter::new(&["a[".to_owned()], &[]).unwrap_err();
        assert!(error.to_string().contains("`a[`"), "{error}");
    }
}
