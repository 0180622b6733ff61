//! What the schedulers of a cluster share, as the files of a state directory and as a Secret [pure].
//!
//! In the Secret each file stands under its own name, so that one made by hand of a state directory is as good.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Map, Value, json};

use crate::authority::{self, fingerprint, hex};
use crate::{page, registry, trust, webhook};

/// A file of the state directory that all schedulers have alike.
pub(super) struct Shared {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    /// Another content is another cluster. What is not so may be renewed, and the Secret's counts.
    fixed: bool,
}

/// A key comes before its certificate, which is looked for.
const FILES: [Shared; 8] = [
    Shared { name: authority::KEY, mode: 0o600, fixed: true },
    Shared { name: authority::CERT, mode: 0o644, fixed: true },
    Shared { name: authority::SECRET, mode: 0o600, fixed: false },
    Shared { name: trust::KEY, mode: 0o600, fixed: true },
    Shared { name: trust::CERT, mode: 0o644, fixed: true },
    Shared { name: page::TOKEN_FILE, mode: 0o600, fixed: false },
    Shared { name: registry::FILE, mode: 0o600, fixed: false },
    Shared { name: webhook::certificate::FILE, mode: 0o600, fixed: false },
];

/// The files that there can be, with or without the webhook's.
pub(super) fn files(webhook: bool) -> impl Iterator<Item = &'static Shared> {
    FILES.iter().filter(move |shared| webhook || shared.name != webhook::certificate::FILE)
}

/// Contents by name.
pub(super) type Files = BTreeMap<&'static str, Vec<u8>>;

/// Whether nothing has to be made. The registry of names is made by the first node that joins.
pub(super) fn is_whole(files: &Files, webhook: bool) -> bool {
    self::files(webhook).all(|shared| shared.name == registry::FILE || files.contains_key(shared.name))
}

/// The Secret as it was read.
pub(super) struct Kept {
    /// Which it must still be when it is written.
    version: String,
    pub(super) files: Files,
}

/// What is in the Secret and not a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoBase64(pub(super) &'static str);

impl Kept {
    /// Reads a Secret; what else is in it is nobody's here.
    pub(super) fn parse(secret: &Value) -> Result<Self, NoBase64> {
        let version = secret["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let mut files = Files::new();
        for Shared { name, .. } in &FILES {
            if let Some(text) = secret["data"][name].as_str().filter(|text| !text.is_empty()) {
                files.insert(name, STANDARD.decode(text).map_err(|_| NoBase64(name))?);
            }
        }
        Ok(Self { version, files })
    }

    /// The patch that puts into the Secret what it has not, or otherwise; none where it has all. The API server refuses it
    /// (409) if the Secret is not the one that was read.
    pub(super) fn patch(&self, wanted: &Files) -> Option<Value> {
        let lacks = wanted.iter().filter(|(name, content)| self.files.get(*name) != Some(content));
        let data: Map<String, Value> =
            lacks.map(|(name, content)| ((*name).to_owned(), STANDARD.encode(content).into())).collect();
        (!data.is_empty()).then(|| json!({ "metadata": { "resourceVersion": self.version }, "data": data }))
    }
}

/// A directory and a Secret of different clusters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Differs {
    pub(super) name: &'static str,
    /// What tells the two apart, where they are certificates.
    pub(super) here: String,
    pub(super) there: String,
}

/// Both together, where they are of one cluster: what may be renewed is as in the Secret.
pub(super) fn agreed(local: &Files, kept: &Files) -> Result<Files, Differs> {
    let differ = |shared: &&Shared| match (local.get(shared.name), kept.get(shared.name)) {
        (Some(here), Some(there)) => shared.fixed && here != there,
        _ => false,
    };
    let mut different: Vec<&Shared> = FILES.iter().filter(differ).collect();
    // Of a pair the certificate says which is which.
    different.sort_by_key(|shared| shared.name.ends_with(".key"));
    if let Some(Shared { name, .. }) = different.first() {
        return Err(Differs { name, here: print(&local[name]), there: print(&kept[name]) });
    }
    Ok(local.iter().chain(kept).map(|(name, content)| (*name, content.clone())).collect())
}

/// The first half of a certificate's SHA-256; nothing of a key.
fn print(content: &[u8]) -> String {
    let certificate = CertificateDer::from_pem_slice(content).ok();
    certificate.map_or_else(|| "not shown".to_owned(), |certificate| hex(&fingerprint(&certificate)[..16]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(version: &str, data: &[(&str, &str)]) -> Value {
        let data: Map<String, Value> =
            data.iter().map(|(name, text)| ((*name).to_owned(), STANDARD.encode(text).into())).collect();
        json!({ "metadata": { "resourceVersion": version }, "data": data })
    }

    fn some() -> impl Strategy<Value = Files> {
        let content = proptest::option::of(0_u8..3);
        proptest::array::uniform8(content).prop_map(|contents| {
            let pairs = FILES.iter().zip(contents);
            pairs.filter_map(|(shared, content)| content.map(|byte| (shared.name, vec![byte]))).collect()
        })
    }

    #[test]
    fn only_known_names_become_files() {
        let kept =
            Kept::parse(&secret("7", &[("swarm-ca.pem", "A"), ("../swarm-ca.key", "B"), ("token", "C")])).unwrap();
        assert_eq!(kept.files, Files::from([("swarm-ca.pem", b"A".to_vec())]));
        assert!(Kept::parse(&json!({})).unwrap().files.is_empty());
        let bad = json!({ "data": { "token.secret": "?" } });
        assert_eq!(Kept::parse(&bad).err(), Some(NoBase64("token.secret")));
    }

    #[test]
    fn what_is_written_is_written_to_the_secret_that_was_read() {
        let kept = Kept::parse(&secret("7", &[("page.token", "old")])).unwrap();
        let wanted = Files::from([("page.token", b"new".to_vec()), ("token.secret", vec![1])]);
        let patch = kept.patch(&wanted).unwrap();
        assert_eq!(
            patch,
            json!({ "metadata": { "resourceVersion": "7" }, "data": { "page.token": "bmV3", "token.secret": "AQ==" } })
        );
        assert_eq!(kept.patch(&Files::from([("page.token", b"old".to_vec())])), None);
    }

    #[test]
    fn another_certificate_is_another_cluster_and_another_token_is_not() {
        let of = |ca: &str, key: &str, token: &str| {
            let pairs = [("swarm-ca.key", key), ("swarm-ca.pem", ca), ("page.token", token)];
            pairs.map(|(name, text)| (name, text.as_bytes().to_vec())).into_iter().collect::<Files>()
        };
        assert_eq!(agreed(&of("A", "a", "1"), &of("A", "a", "2")), Ok(of("A", "a", "2")));
        assert_eq!(agreed(&of("A", "a", "1"), &of("B", "b", "1")).unwrap_err().name, "swarm-ca.pem");
        assert_eq!(agreed(&of("A", "a", "1"), &of("A", "b", "1")).unwrap_err().name, "swarm-ca.key");
    }

    proptest! {
        #[test]
        fn what_was_agreed_on_and_written_is_what_the_next_one_agrees_with(local in some(), kept in some()) {
            if let Ok(all) = agreed(&local, &kept) {
                prop_assert!(local.keys().chain(kept.keys()).all(|name| all.contains_key(name)));
                // One whose directory has what was agreed on, and an empty one.
                prop_assert_eq!(agreed(&all, &all), Ok(all.clone()));
                prop_assert_eq!(agreed(&Files::new(), &all), Ok(all.clone()));
                prop_assert_eq!(agreed(&local, &all), Ok(all.clone()));
            }
        }

        #[test]
        fn a_patch_brings_the_secret_to_what_is_wanted(kept in some(), more in some()) {
            let wanted: Files = kept.iter().chain(&more).map(|(name, content)| (*name, content.clone())).collect();
            let read = Kept { version: "1".to_owned(), files: kept };
            let mut after = json!({ "metadata": { "resourceVersion": "2" }, "data": {} });
            let whole = read.files.iter().map(|(name, content)| ((*name).to_owned(), STANDARD.encode(content).into()));
            let mut data: Map<String, Value> = whole.collect();
            if let Some(patch) = read.patch(&wanted) {
                data.extend(patch["data"].as_object().unwrap().clone());
            }
            after["data"] = Value::Object(data);
            prop_assert_eq!(Kept::parse(&after).unwrap().files, wanted);
        }
    }
}
