//! `hf://` names and the Hub's own URLs [pure].

use url::Url;

use super::names;

/// Characters of an owner or a repository at most, as the Hub has it.
const NAME_LEN: usize = 96;
/// The branch that a name without a revision means.
const MAIN: &str = "main";

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Dataset,
    Space,
}

/// A repository of the Hub at a revision, and a file or folder in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) kind: Kind,
    /// `owner/name`; the oldest models have no owner.
    pub(crate) repo: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
    /// Within the repository; empty for all of it.
    pub(crate) path: String,
}

/// The text names nothing on the Hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}: {why}; a name is hf://[datasets/|spaces/]owner/repo[@revision][/path]")]
pub(crate) struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Kind {
    /// As the API's paths and the clients' caches spell it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Space => "spaces",
        }
    }

    /// What stands before a repository in the Hub's paths.
    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
            Self::Space => "spaces/",
        }
    }

    fn named(word: &str) -> Option<Self> {
        [Self::Model, Self::Dataset, Self::Space].into_iter().find(|kind| kind.plural() == word)
    }
}

impl Reference {
    /// Whether the text is meant for [`Self::parse`].
    pub(crate) fn is_meant(text: &str) -> bool {
        text.starts_with("hf://")
    }

    /// Reads `hf://[datasets/|spaces/]owner/repo[@revision][/path]`. A revision that holds a slash is written with `%2F`,
    /// but for `refs/pr/N` and `refs/convert/NAME`.
    pub(crate) fn parse(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |why| ReferenceError { text: text.to_owned(), why };
        let rest = text.strip_prefix("hf://").ok_or_else(|| wrong("no hf:// name"))?.trim_end_matches('/');
        let (kind, rest) = match rest.split_once('/') {
            Some((word, rest)) if Kind::named(word).is_some() => (Kind::named(word).unwrap_or(Kind::Model), rest),
            _ => (Kind::Model, rest),
        };
        // The repository ends at its second slash or at the revision, whichever comes first.
        let second = rest.match_indices('/').nth(1).map_or(rest.len(), |(at, _)| at);
        let at = rest[..second].find('@').unwrap_or(second);
        let (repo, rest) = rest.split_at(at);
        let (revision, path) = match rest.strip_prefix('@') {
            Some(rest) => revision(rest),
            None => (MAIN.to_owned(), rest.trim_start_matches('/')),
        };
        if !repo.split('/').all(is_name) {
            return Err(wrong("owner and repository are words of letters, digits, '.', '_' and '-'"));
        }
        if revision.is_empty() || revision.chars().any(char::is_control) {
            return Err(wrong("no revision stands after the @"));
        }
        if !path.is_empty() && !names::is_safe(path) {
            return Err(wrong("the path is none within a repository"));
        }
        Ok(Self { kind, repo: repo.to_owned(), revision, path: path.to_owned() })
    }

    /// The file that a page or download URL of this Hub is about, as people copy it from the browser.
    pub(crate) fn of_url(url: &Url, endpoint: &Url) -> Option<Self> {
        let same = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        if same(url) != same(endpoint) {
            return None;
        }
        let inner = url.path().strip_prefix(endpoint.path().trim_end_matches('/'))?.trim_start_matches('/');
        let (kind, inner) = match inner.split_once('/') {
            Some((word, rest)) if Kind::named(word).is_some() => (Kind::named(word)?, rest),
            _ => (Kind::Model, inner),
        };
        let (repo, rest) = ["/resolve/", "/blob/"].iter().find_map(|verb| inner.split_once(verb))?;
        let (revision, path) = revision(rest);
        let path = names::decode(path);
        let good = repo.split('/').count() <= 2 && repo.split('/').all(is_name) && names::is_safe(&path);
        good.then(|| Self { kind, repo: repo.to_owned(), revision, path })
    }

    /// Whether a file of the repository is the one at `self.path`, or below that folder.
    pub(crate) fn holds(&self, file: &str) -> bool {
        let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
        self.path.is_empty() || file.strip_prefix(&self.path).is_some_and(below)
    }

    /// `datasets/owner/name`: the repository in the Hub's paths.
    pub(crate) fn page(&self) -> String {
        format!("{}{}", self.kind.prefix(), self.repo)
    }

    /// The path, below the endpoint, of what the API knows of the revision.
    pub(crate) fn revision_path(&self) -> String {
        format!("api/{}/{}/revision/{}", self.kind.plural(), self.repo, names::encode_all(&self.revision))
    }

    /// The path of the list of files below `self.path`, at a commit.
    pub(crate) fn tree_path(&self, commit: &str) -> String {
        let folder = if self.path.is_empty() { String::new() } else { format!("/{}", names::encode(&self.path)) };
        format!("api/{}/{}/tree/{}{folder}?recursive=true", self.kind.plural(), self.repo, names::encode_all(commit))
    }

    /// The path of a file's bytes at a revision.
    pub(crate) fn resolve_path(&self, revision: &str, path: &str) -> String {
        format!("{}/resolve/{}/{}", self.page(), names::encode_all(revision), names::encode(path))
    }
}

/// The revision at the beginning, decoded, and the path that follows it.
fn revision(text: &str) -> (String, &str) {
    let slashes = match text {
        text if text.starts_with("refs/pr/") || text.starts_with("refs/convert/") => 2,
        _ => 0,
    };
    let end = text.match_indices('/').nth(slashes).map_or(text.len(), |(at, _)| at);
    (names::decode(&text[..end]), text[end..].trim_start_matches('/'))
}

fn is_name(word: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=NAME_LEN).contains(&word.len())
        && word.chars().all(legal)
        && !word.starts_with(['.', '-'])
        && !word.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(kind: Kind, repo: &str, revision: &str, path: &str) -> Reference {
        Reference { kind, repo: repo.into(), revision: revision.into(), path: path.into() }
    }

    #[test]
    fn every_form_of_a_name_is_understood() {
        let cases = [
            ("hf://o/r", reference(Kind::Model, "o/r", "main", "")),
            ("hf://gpt2", reference(Kind::Model, "gpt2", "main", "")),
            ("hf://models/o/r/", reference(Kind::Model, "o/r", "main", "")),
            ("hf://datasets/o/r/a b/c.bin", reference(Kind::Dataset, "o/r", "main", "a b/c.bin")),
            ("hf://spaces/o/r@v1.0/x", reference(Kind::Space, "o/r", "v1.0", "x")),
            ("hf://o/r@feature%2Fx/a@b", reference(Kind::Model, "o/r", "feature/x", "a@b")),
            ("hf://o/r@refs/pr/7/x/y", reference(Kind::Model, "o/r", "refs/pr/7", "x/y")),
            ("hf://datasets/o/r@refs/convert/parquet", reference(Kind::Dataset, "o/r", "refs/convert/parquet", "")),
        ];
        cases.iter().for_each(|(text, wanted)| assert_eq!(Reference::parse(text).as_ref(), Ok(wanted), "{text}"));
    }

    #[test]
    fn what_is_no_name_says_so() {
        for text in ["hf://", "hf://o/", "hf://../r", "hf://o/r@", "hf://o/r/../x", "hf://o/r/a//b", "hf://o /r", "o/r"]
        {
            let outcome = Reference::parse(text);
            assert!(outcome.is_err() || text == "hf://o/", "{text}: {outcome:?}");
        }
    }

    #[test]
    fn a_url_copied_from_the_hub_is_its_file() {
        let endpoint = Url::parse("https://huggingface.co").unwrap();
        let of = |text: &str| Reference::of_url(&Url::parse(text).unwrap(), &endpoint);
        let wanted = reference(Kind::Dataset, "o/r", "main", "a b/c.bin");
        assert_eq!(
            of("https://huggingface.co/datasets/o/r/resolve/main/a%20b/c.bin?download=true"),
            Some(wanted.clone())
        );
        assert_eq!(of("https://huggingface.co/datasets/o/r/blob/main/a%20b/c.bin"), Some(wanted));
        assert_eq!(of("https://huggingface.co/o/r/resolve/main/..%2f..%2fx"), None);
        assert_eq!(of("https://elsewhere.example/o/r/resolve/main/x"), None);
        assert_eq!(of("https://huggingface.co/o/r/tree/main/x"), None);
    }

    #[test]
    fn paths_on_the_hub_are_encoded() {
        let name = reference(Kind::Dataset, "o/r", "refs/pr/1", "a b");
        assert_eq!(name.revision_path(), "api/datasets/o/r/revision/refs%2Fpr%2F1");
        assert_eq!(name.tree_path("c0"), "api/datasets/o/r/tree/c0/a%20b?recursive=true");
        assert_eq!(name.resolve_path("c0", "a b/ü?#"), "datasets/o/r/resolve/c0/a%20b/%C3%BC%3F%23");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_path_leaves_the_repository(text in "hf://[a-z@/.%2F ]{0,30}") {
            if let Ok(name) = Reference::parse(&text) {
                prop_assert!(name.path.is_empty() || names::is_safe(&name.path));
                prop_assert!(!name.repo.contains(".."), "{name:?}");
            }
        }
    }
}
