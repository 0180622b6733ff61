//! Where huggingface_hub keeps what it downloaded [pure]: `models--owner--name/{blobs,snapshots,refs}`.

use std::path::{Path, PathBuf};

use super::{
    names,
    reference::{Kind, Reference},
};

/// The paths of one repository at one commit, all relative to the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    repo: String,
    commit: String,
}

impl Layout {
    /// `None`: a commit that is no file name.
    pub(crate) fn new(reference: &Reference, commit: &str) -> Option<Self> {
        let kind = match reference.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
            Kind::Space => "spaces",
        };
        let repo = format!("{kind}--{}", reference.repo.replace('/', "--"));
        names::is_component(commit).then(|| Self { repo, commit: commit.to_owned() })
    }

    /// The folder with the contents by ETag.
    pub(crate) fn blobs(&self) -> String {
        format!("{}/blobs", self.repo)
    }

    /// The folder of a whole revision: what `snapshot_download` gives.
    pub(crate) fn snapshot(&self) -> String {
        format!("{}/snapshots/{}", self.repo, self.commit)
    }

    /// The file that holds the commit which a branch or tag meant; `None` for a commit, which needs none.
    pub(crate) fn reference(&self, revision: &str) -> Option<String> {
        (revision != self.commit && names::is_safe(revision)).then(|| format!("{}/refs/{revision}", self.repo))
    }

    /// The lock that the clients hold while they write this blob.
    pub(crate) fn lock(&self, blob: &str) -> String {
        format!(".locks/{}/{blob}.lock", self.repo)
    }

    /// The commit.
    pub(crate) fn commit(&self) -> &str {
        &self.commit
    }

    /// Where the file's link stands, and what it says.
    pub(crate) fn link(&self, path: &str, blob: &str) -> (String, String) {
        let up = "../".repeat(path.split('/').count() + 1);
        (format!("{}/{path}", self.snapshot()), format!("{up}blobs/{blob}"))
    }
}

/// A blob's name: the ETag without its quotes and weak mark, if that is a file name.
pub(crate) fn blob(etag: &str) -> Option<String> {
    let bare = etag.trim_start_matches("W/").trim_matches('"');
    names::is_component(bare).then(|| bare.to_owned())
}

/// Where the cache is, by the variables that the clients obey.
pub(crate) fn directory(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let given = |name: &str| variable(name).filter(|text| !text.is_empty());
    let named = given("HF_HUB_CACHE").or_else(|| given("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
    named.unwrap_or_else(|| home(variable).join("hub"))
}

/// `HF_HOME`: where token and cache are unless they are named.
pub(crate) fn home(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let given = |name: &str| variable(name).filter(|text| !text.is_empty());
    let cache = || given("XDG_CACHE_HOME").map(PathBuf::from);
    let user = || Path::new(&given("HOME").unwrap_or_else(|| "/root".to_owned())).join(".cache");
    given("HF_HOME").map_or_else(|| cache().unwrap_or_else(user).join("huggingface"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(&Reference::parse("hf://datasets/o/r").unwrap(), "c0ffee").unwrap()
    }

    #[test]
    fn links_lead_from_any_depth_to_the_blob() {
        assert_eq!(
            layout().link("a/b c.bin", "e7a6"),
            ("datasets--o--r/snapshots/c0ffee/a/b c.bin".into(), "../../../blobs/e7a6".into())
        );
        assert_eq!(layout().link("x", "e").1, "../../blobs/e");
        assert_eq!(layout().lock("e"), ".locks/datasets--o--r/e.lock");
    }

    #[test]
    fn only_what_is_no_commit_needs_a_reference() {
        assert_eq!(layout().reference("main").as_deref(), Some("datasets--o--r/refs/main"));
        assert_eq!(layout().reference("refs/pr/1").as_deref(), Some("datasets--o--r/refs/refs/pr/1"));
        assert_eq!((layout().reference("c0ffee"), layout().reference("../x")), (None, None));
    }

    #[test]
    fn what_the_hub_says_never_leaves_the_cache() {
        assert_eq!((blob("\"e7\"").as_deref(), blob("W/\"e7\"").as_deref()), (Some("e7"), Some("e7")));
        assert_eq!((blob("\"../../x\""), blob("\"\""), blob("a/b")), (None, None, None));
        assert_eq!(Layout::new(&Reference::parse("hf://o/r").unwrap(), "../.."), None);
    }

    #[test]
    fn the_variables_of_the_clients_decide_where_it_is() {
        let with = |pairs: &'static [(&str, &str)]| {
            directory(move |name| pairs.iter().find(|(held, _)| *held == name).map(|(_, text)| (*text).to_owned()))
        };
        assert_eq!(with(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(with(&[("HF_HOME", "/hf"), ("HOME", "/h")]), Path::new("/hf/hub"));
        assert_eq!(with(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
    }
}
