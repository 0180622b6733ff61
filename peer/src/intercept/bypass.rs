//! Who a connection comes from, as fine as the kernel tells it and as coarse as a bypass should be.
//!
//! A client that does not trust the node's CA must reach the origin when it tries again. Its process may be gone by
//! then, so it is known by its cgroup, its network namespace and its user: a container, a service, a login session.

use std::{
    collections::HashMap,
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Directories looked at for the name of a cgroup. A node with 250 pods has about 1,500.
const MAX_CGROUPS: usize = 8192;

/// Sources remembered as trusting.
const MAX_KNOWN: usize = 1024;
/// Weak signs in a row that outweigh an earlier request.
const SIGNS_OF_A_TRUSTING_SOURCE: u32 = 2;
/// How long after its requests a source may still put connections away that it did not need.
const SPARE_CONNECTIONS_LAST: Duration = Duration::from_secs(10);

/// Where connections come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Source {
    /// cgroup v2 id: the inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// The network namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// User id, as seen from the initial user namespace.
    pub uid: u32,
}

impl Source {
    /// The cgroup's path below the cgroup2 mount, `/` for the root itself; None once it is gone, or out of sight.
    ///
    /// Walks the cgroup file system (blocking, at most 8,192 directories): for log lines about rare events.
    pub fn cgroup(&self) -> Option<PathBuf> {
        let root = cgroup2_mount()?;
        let found = find_inode(&root, self.cgroup_id)?;
        Some(Path::new("/").join(found.strip_prefix(&root).ok()?))
    }
}

/// Names the cgroup by its path where it can be found: see [`Source::cgroup`] for the cost.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cgroup() {
            Some(path) => write!(f, "cgroup {}", path.display())?,
            None => write!(f, "cgroup {}", self.cgroup_id)?,
        }
        write!(f, ", uid {}, network namespace {}", self.uid, self.netns_cookie)
    }
}

impl From<pondhawk_ebpf::Source> for Source {
    fn from(source: pondhawk_ebpf::Source) -> Self {
        Self { cgroup_id: source.cgroup_id, netns_cookie: source.netns_cookie, uid: source.uid }
    }
}

impl From<Source> for pondhawk_ebpf::Source {
    fn from(source: Source) -> Self {
        Self { cgroup_id: source.cgroup_id, netns_cookie: source.netns_cookie, uid: source.uid, padding: 0 }
    }
}

/// Who is known to trust the node, against the weak signs of distrust: a handshake given up, or finished and then no byte.
///
/// GnuTLS clients (wget, aria2c) leave so, at once, when they do not trust the certificate. Downloaders that open more
/// connections than they come to need (hf_transfer, aria2c -x16) leave so as well, but beside connections in use.
#[derive(Debug, Default)]
pub struct Trust(Mutex<HashMap<Source, Known>>);

#[derive(Debug)]
struct Known {
    /// Connections that made a request and are open.
    open: usize,
    /// The last request, or the last end of such a connection.
    last: Instant,
    /// Weak signs since.
    signs: u32,
}

/// A connection that made a request is open.
pub struct Proven<'a> {
    trust: &'a Trust,
    source: Source,
}

impl Trust {
    /// The source made its first request on a connection, which is open as long as the guard.
    pub fn requested(&self, source: Source, now: Instant) -> Proven<'_> {
        let mut sources = self.lock();
        // Forgetting only means that one sign is enough again.
        if sources.len() >= MAX_KNOWN {
            sources.retain(|_, known| known.open > 0);
        }
        let known = sources.entry(source).or_insert(Known { open: 0, last: now, signs: 0 });
        *known = Known { open: known.open + 1, last: now, signs: 0 };
        Proven { trust: self, source }
    }

    /// The source left at once after a handshake; whether that means that it does not trust the node.
    pub fn left(&self, source: Source, now: Instant) -> bool {
        let mut sources = self.lock();
        let Some(known) = sources.get_mut(&source) else { return true };
        if known.open > 0 || now.saturating_duration_since(known.last) < SPARE_CONNECTIONS_LAST {
            return false;
        }
        known.signs += 1;
        known.signs >= SIGNS_OF_A_TRUSTING_SOURCE
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Source, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proven<'_> {
    fn drop(&mut self) {
        if let Some(known) = self.trust.lock().get_mut(&self.source) {
            known.open = known.open.saturating_sub(1);
            known.last = Instant::now();
        }
    }
}

/// Where the cgroup v2 hierarchy is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1.
pub fn cgroup2_mount() -> Option<PathBuf> {
    cgroup2_in(&fs::read_to_string("/proc/self/mounts").ok()?)
}

/// The mount point of the first cgroup2 file system in a mounts file (proc(5): device, mount point, type, ...).
fn cgroup2_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        // getmntent(3) escapes; a mount point has no other odd characters in practice.
        (kind == "cgroup2").then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

/// Breadth first, since most cgroups that have clients are near the root.
fn find_inode(root: &Path, inode: u64) -> Option<PathBuf> {
    let mut level = vec![root.to_owned()];
    let mut seen = 0;
    while !level.is_empty() && seen < MAX_CGROUPS {
        seen += level.len();
        if let Some(at) = level.iter().position(|dir| fs::metadata(dir).is_ok_and(|meta| meta.ino() == inode)) {
            return Some(level.swap_remove(at));
        }
        level = level.iter().flat_map(|dir| directories(dir)).take(MAX_CGROUPS - seen.min(MAX_CGROUPS)).collect();
    }
    None
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter_map(Result::ok).filter(is_dir).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_made_requests_is_doubted_only_later_and_only_after_several_signs() {
        let (trust, source) = (Trust::default(), Source { cgroup_id: 1, netns_cookie: 2, uid: 3 });
        let (now, later) = (Instant::now(), Instant::now() + SPARE_CONNECTIONS_LAST * 2);
        assert!(trust.left(source, now), "never made a request");
        let proven = trust.requested(source, now);
        assert!(!trust.left(source, later), "another connection is in use");
        drop(proven);
        assert!(!trust.left(source, now), "one was a moment ago");
        assert_eq!([trust.left(source, later), trust.left(source, later)], [false, true]);
    }

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_in(mounts), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(cgroup2_in("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_directory_is_found_by_its_inode() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir_all(root.path().join("a/x")).unwrap();
        assert_eq!(find_inode(root.path(), fs::metadata(&deep).unwrap().ino()), Some(deep.clone()));
        fs::write(deep.join("file"), "").unwrap();
        assert_eq!(find_inode(root.path(), fs::metadata(deep.join("file")).unwrap().ino()), None);
    }

    #[test]
    fn a_source_without_a_cgroup_to_be_found_is_named_by_number() {
        let source = Source { cgroup_id: u64::MAX, netns_cookie: 1, uid: 1000 };
        assert_eq!(source.to_string(), format!("cgroup {}, uid 1000, network namespace 1", u64::MAX));
    }
}
