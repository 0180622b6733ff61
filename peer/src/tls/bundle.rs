//! The CA bundle for clients that read one file: the system's roots, the node's CA, and the cluster's root if any.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::authority::{Authority, AuthorityError, CaInfo, ca_dir};

/// Where distributions keep their roots in one file; the first that exists counts. Read by path, not through `rustls-native-certs`: that obeys
/// SSL_CERT_FILE, which on a node set up by `pondhawk ca env` names the very bundle being written.
pub(crate) const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// A bundle larger than this is not a bundle.
const MAX_BUNDLE: u64 = 16 << 20;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// A bundle on disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The file.
    pub path: PathBuf,
    /// Where the system's roots came from.
    pub roots: PathBuf,
    /// Certificates in it, the node's CA and the cluster's root included.
    pub certificates: usize,
    /// Whether the file was written now; false where it was already as it should be.
    pub changed: bool,
}

/// Where the bundle of this data directory is.
pub fn bundle_path(data_dir: &Path) -> PathBuf {
    ca_dir(data_dir).join("bundle.pem")
}

impl Authority {
    /// Writes (if it differs) the system's roots, this CA and the cluster's root into `DATA_DIR/ca/bundle.pem`.
    /// Blocking. Call at each start, since the system's roots change with updates, and after [`Self::adopt`].
    pub fn write_bundle(&self, data_dir: &Path) -> Result<Bundle, AuthorityError> {
        let root = self.cluster_root();
        let cas = std::iter::once(self.info()).chain(&root);
        write_bundle(cas, &bundle_path(data_dir), None)
    }
}

/// Writes (if it differs) the roots of `roots`, or of the system, and these CAs into `path`, atomically, mode 0644.
pub fn write_bundle<'a>(
    cas: impl IntoIterator<Item = &'a CaInfo>,
    path: &Path,
    roots: Option<&Path>,
) -> Result<Bundle, AuthorityError> {
    write_pems(cas.into_iter().map(|ca| ca.pem.as_str()), path, roots)
}

/// Writes, for a pod, the roots of `roots` or of the system and the root `pem` into `dir/bundle.pem`, and that root alone
/// into `dir/root.pem`.
pub(crate) fn write_trust(pem: &str, dir: &Path, roots: Option<&Path>) -> Result<Bundle, AuthorityError> {
    let path = dir.join("root.pem");
    let failed = |source| AuthorityError::Write { path: path.clone(), source };
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, format!("no certificate: {error}"))))?;
    replace_file(&path, pem.as_bytes()).map_err(failed)?;
    write_pems([pem], &dir.join("bundle.pem"), roots)
}

fn write_pems<'a>(
    pems: impl IntoIterator<Item = &'a str>,
    path: &Path,
    roots: Option<&Path>,
) -> Result<Bundle, AuthorityError> {
    let (source, mut text) = read_roots(roots, path)?;
    for pem in pems {
        if text.contains(pem.trim()) {
            continue;
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(pem);
    }
    let changed = fs::read(path).map_or(true, |old| old != text.as_bytes());
    if changed {
        replace_file(path, text.as_bytes())
            .map_err(|source| AuthorityError::Write { path: path.to_path_buf(), source })?;
    }
    Ok(Bundle { path: path.to_path_buf(), roots: source, certificates: text.matches(BEGIN).count(), changed })
}

fn read_roots(given: Option<&Path>, target: &Path) -> Result<(PathBuf, String), AuthorityError> {
    if let Some(path) = given {
        let text = read_one(path).map_err(|source| AuthorityError::Read { path: path.to_path_buf(), source })?;
        return Ok((path.to_path_buf(), text));
    }
    SYSTEM_BUNDLES
        .iter()
        .map(Path::new)
        .filter(|path| *path != target)
        .find_map(|path| Some((path.to_path_buf(), read_one(path).ok()?)))
        .ok_or_else(|| AuthorityError::NoSystemRoots(SYSTEM_BUNDLES.join(", ")))
}

fn read_one(path: &Path) -> io::Result<String> {
    let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    if fs::metadata(path)?.len() > MAX_BUNDLE {
        return invalid("larger than a certificate bundle can be");
    }
    // Comments in some bundles are not UTF-8; the certificates are ASCII.
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    if text.contains(BEGIN) { Ok(text) } else { invalid("no certificate in it") }
}

pub(super) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary).and_then(|mut file| {
            file.write_all(content)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Suffixes;

    fn authority(dir: &Path) -> Authority {
        Authority::open(dir, &Suffixes::new(["hf.co"]).unwrap()).unwrap()
    }

    #[test]
    fn a_bundle_holds_the_roots_and_the_ca_once_and_is_rewritten_only_when_one_changes() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, root) = (authority(dir.path()), authority(other.path()));
        let roots = other.path().join("roots.pem");
        fs::write(&roots, root.info().pem.trim_end()).unwrap();
        let path = dir.path().join("out.pem");
        let first = write_bundle([ours.info()], &path, Some(&roots)).unwrap();
        assert!(first.changed);
        assert_eq!(first.certificates, 2);
        assert!(!write_bundle([ours.info()], &path, Some(&roots)).unwrap().changed);
        // As after `ca install`: the system's own bundle has the CA already.
        let again = write_bundle([ours.info()], &dir.path().join("again.pem"), Some(&path)).unwrap();
        assert_eq!(again.certificates, 2);
        fs::write(&roots, format!("# updated\n{}", root.info().pem)).unwrap();
        assert!(write_bundle([ours.info()], &path, Some(&roots)).unwrap().changed);
    }

    #[test]
    fn a_file_without_certificates_is_no_roots_file() {
        let dir = tempfile::tempdir().unwrap();
        let roots = dir.path().join("roots.pem");
        fs::write(&roots, "nothing").unwrap();
        let error =
            write_bundle([authority(dir.path()).info()], &dir.path().join("out.pem"), Some(&roots)).unwrap_err();
        assert!(error.to_string().contains("no certificate in it"), "{error}");
    }
}
