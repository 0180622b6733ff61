//! Where files go: below a folder and never out of it, complete or not at all.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use rustix::{
    fs::{self as sys, AtFlags, FlockOperation, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::error::GetError;

/// Bytes of a target's name that its part's name begins with; the rest is for the tag.
const STEM: usize = 200;
/// Tries to get hold of a part that another process is just finishing.
const TRIES: usize = 4;
/// Copied by one call.
const COPY: u64 = 64 << 20;
/// Read at once while what is there is hashed.
const CHUNK: usize = 1 << 20;

/// A folder that everything stays below.
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// A file's place: its folder, held open, and its name.
pub(crate) struct Spot {
    folder: Folder,
    name: String,
}

/// How an unfinished file is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// `NAME.TAG.part`: the tag says which content it is of. Without one it cannot be gone on with.
    Beside(Option<String>),
    /// `NAME.incomplete`, as the Hub's clients do: the name itself says which content it is.
    Incomplete,
}

/// An unfinished file that nobody else writes.
pub(crate) struct Part {
    spot: Spot,
    naming: Naming,
    file: File,
    len: u64,
    hash: Option<Context>,
}

impl Folder {
    /// Makes the folder and those above it. Links on the way are the user's own.
    pub(crate) fn make(path: &Path) -> Result<Self, GetError> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        std::fs::create_dir_all(path).map_err(GetError::disk(path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = sys::open(path, flags, Mode::empty()).map_err(|error| GetError::disk(path)(error.into()))?;
        // Shown as people write it: `x`, and not `./x`.
        let path = if path == Path::new(".") { PathBuf::new() } else { path.to_owned() };
        Ok(Self { fd, path })
    }

    /// Bytes that its user may still write in its file system; none where that does not tell.
    pub(crate) fn free(&self) -> Option<u64> {
        sys::fstatvfs(&self.fd).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// A folder below, made if it is not there. A link that leads out of this folder is not followed.
    pub(crate) fn below(&self, path: &str) -> Result<Self, GetError> {
        let shown = self.path.join(path);
        let failed = |error: Errno| match error {
            Errno::XDEV => GetError::disk(&shown)(io::Error::other("a symbolic link leads out of the folder")),
            error => GetError::disk(&shown)(error.into()),
        };
        let mut fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).map_err(failed)?;
        let mut reached = String::new();
        for component in path.split('/').filter(|component| !component.is_empty()) {
            match sys::mkdirat(&fd, component, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
            reached = if reached.is_empty() { component.to_owned() } else { format!("{reached}/{component}") };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            fd = sys::openat2(&self.fd, &reached, flags, Mode::empty(), ResolveFlags::BENEATH).map_err(failed)?;
        }
        Ok(Self { fd, path: shown })
    }

    /// The place of a file below.
    pub(crate) fn spot(&self, path: &str) -> Result<Spot, GetError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok(Spot { folder: self.below(folder)?, name: name.to_owned() })
    }
}

impl Spot {
    /// For people.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// A lock file here, held until it is dropped. Waits for others that hold it.
    pub(crate) fn lock(&self) -> Result<File, GetError> {
        let file = self.open(&self.name, OFlags::CREATE | OFlags::RDWR)?;
        sys::flock(&file, FlockOperation::LockExclusive).map_err(|error| self.failed(error))?;
        Ok(file)
    }

    /// Whether a regular file of this length and SHA-256 is here already.
    pub(crate) fn has(&self, len: u64, sha256: &[u8; 32]) -> bool {
        let Ok(mut file) = self.open(&self.name, OFlags::RDONLY) else { return false };
        let same_len = file.metadata().is_ok_and(|data| data.is_file() && data.len() == len);
        let mut hash = Context::new(&SHA256);
        same_len && hash_all(&mut file, &mut hash).is_ok() && hash.finish().as_ref() == sha256
    }

    /// The length of the regular file here.
    pub(crate) fn len(&self) -> Option<u64> {
        let file = self.open(&self.name, OFlags::RDONLY).ok()?;
        file.metadata().ok().filter(std::fs::Metadata::is_file).map(|data| data.len())
    }

    /// Puts a small file here, whole or not at all.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<(), GetError> {
        let mut part = Part::open(self, Naming::Beside(None), false)?;
        part.write(bytes)?;
        part.finish().map(drop)
    }

    /// Puts a link here, in place of what was.
    pub(crate) fn link(&self, to: &str) -> Result<(), GetError> {
        let fresh = format!("{}.{}.link", stem(&self.name), std::process::id());
        // Usually there is none.
        let _ = sys::unlinkat(&self.folder.fd, &fresh, AtFlags::empty());
        sys::symlinkat(to, &self.folder.fd, &fresh).map_err(|error| self.failed(error))?;
        sys::renameat(&self.folder.fd, &fresh, &self.folder.fd, &self.name).map_err(|error| self.failed(error))
    }

    /// The tags of parts that are here, the last written first.
    pub(crate) fn tags(&self) -> Vec<String> {
        let stem = stem(&self.name);
        let entries = std::fs::read_dir(Path::new(".").join(&self.folder.path)).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let tag = name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".part")?.to_owned();
                let good = tag.len() == 16 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
                good.then(|| (entry.metadata().and_then(|data| data.modified()).ok(), tag))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, tag)| tag).collect()
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<File, GetError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = sys::openat(&self.folder.fd, name, flags, Mode::from_raw_mode(0o666));
        fd.map(File::from).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Errno) -> GetError {
        GetError::disk(self.path())(error.into())
    }

    /// Whether the file that the name stands for now is this one.
    fn is_still(&self, name: &str, file: &File) -> bool {
        let named = sys::statat(&self.folder.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let open = sys::fstat(file);
        matches!((named, open), (Ok(named), Ok(open)) if (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino))
    }
}

impl Part {
    /// Opens the unfinished file of this spot, or begins it. What is there already is hashed where `hashed`.
    pub(crate) fn open(spot: Spot, naming: Naming, hashed: bool) -> Result<Self, GetError> {
        let name = naming.of(&spot.name);
        for _ in 0..TRIES {
            let file = spot.open(&name, OFlags::CREATE | OFlags::RDWR)?;
            match sys::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if spot.is_still(&name, &file) => {
                    let hash = hashed.then(|| Context::new(&SHA256));
                    let mut part = Self { spot, naming, file, len: 0, hash };
                    part.take_up()?;
                    return Ok(part);
                }
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let why = io::Error::other("another process is downloading it");
                    return Err(GetError::disk(spot.path())(why));
                }
                Err(error) => return Err(spot.failed(error)),
            }
        }
        let why = io::Error::other("others keep replacing it");
        Err(GetError::disk(spot.path())(why))
    }

    /// Bytes that are there.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where the file will be.
    pub(crate) fn path(&self) -> PathBuf {
        self.spot.path()
    }

    /// Adds bytes at the end.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), GetError> {
        self.file.write_all(bytes).map_err(GetError::disk(self.path()))?;
        self.hash.iter_mut().for_each(|hash| hash.update(bytes));
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Takes the first `len` bytes of a file for all of it: as blocks that both share where the file system can, else copied by
    /// the kernel (ioctl_ficlone(2), copy_file_range(2)). Whoever vouches for the file vouches for them: they are not hashed.
    pub(crate) fn take(&mut self, from: &File, len: u64) -> io::Result<()> {
        let taken = self.cloned(from, len).or_else(|_| self.copied(from, len));
        match taken {
            Ok(()) => {
                (self.len, self.hash) = (len, None);
                self.file.seek(io::SeekFrom::End(0)).map(drop)
            }
            Err(error) => {
                self.file.set_len(0)?;
                self.file.rewind()?;
                Err(error)
            }
        }
    }

    fn cloned(&self, from: &File, len: u64) -> io::Result<()> {
        sys::ioctl_ficlone(&self.file, from)?;
        match self.file.metadata()?.len() >= len {
            true => self.file.set_len(len),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn copied(&self, from: &File, len: u64) -> io::Result<()> {
        let (mut read, mut written) = (0, 0);
        while written < len {
            let most = usize::try_from((len - written).min(COPY)).unwrap_or(CHUNK);
            match sys::copy_file_range(from, Some(&mut read), &self.file, Some(&mut written), most) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Begins at zero again.
    pub(crate) fn restart(&mut self) -> Result<(), GetError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(GetError::disk(self.path()))?;
        self.len = 0;
        self.hash = self.hash.is_some().then(|| Context::new(&SHA256));
        Ok(())
    }

    /// Says which content the bytes are of from now on; those of another are dropped. Whether what was there stays.
    pub(crate) fn adopt(&mut self, tag: Option<String>) -> Result<bool, GetError> {
        let naming = Naming::Beside(tag);
        if naming == self.naming && naming != Naming::Beside(None) {
            return Ok(true);
        }
        self.restart()?;
        let (old, new) = (self.naming.of(&self.spot.name), naming.of(&self.spot.name));
        let folder = &self.spot.folder.fd;
        sys::renameat(folder, old, folder, new).map_err(|error| self.spot.failed(error))?;
        self.naming = naming;
        Ok(false)
    }

    /// SHA-256 of all bytes, if it was asked for.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.hash.clone().map(Context::finish)
    }

    /// Puts the file in its place, at once and whole, and drops parts of other contents.
    pub(crate) fn finish(self) -> Result<PathBuf, GetError> {
        let Spot { folder, name } = &self.spot;
        let own = self.naming.of(name);
        sys::renameat(&folder.fd, own, &folder.fd, name).map_err(|error| self.spot.failed(error))?;
        if let Naming::Beside(Some(_)) = self.naming {
            for tag in self.spot.tags() {
                // One that stays costs only its room.
                let _ = sys::unlinkat(&folder.fd, Naming::Beside(Some(tag)).of(name), AtFlags::empty());
            }
        }
        Ok(self.path())
    }

    /// Drops what is there.
    pub(crate) fn discard(self) {
        // One that stays is found wrong again.
        let _ = sys::unlinkat(&self.spot.folder.fd, self.naming.of(&self.spot.name), AtFlags::empty());
    }

    fn take_up(&mut self) -> Result<(), GetError> {
        if matches!(self.naming, Naming::Beside(None)) {
            return self.restart();
        }
        let path = self.path();
        self.len = match &mut self.hash {
            Some(hash) => hash_all(&mut self.file, hash).map_err(GetError::disk(path))?,
            None => self.file.seek(io::SeekFrom::End(0)).map_err(GetError::disk(path))?,
        };
        Ok(())
    }
}

impl Naming {
    fn of(&self, name: &str) -> String {
        match self {
            Self::Beside(Some(tag)) => format!("{}.{tag}.part", stem(name)),
            Self::Beside(None) => format!("{}.part", stem(name)),
            Self::Incomplete => format!("{name}.incomplete"),
        }
    }
}

fn stem(name: &str) -> &str {
    &name[..name.floor_char_boundary(STEM)]
}

fn hash_all(file: &mut File, hash: &mut Context) -> io::Result<u64> {
    let (mut chunk, mut len) = (vec![0; CHUNK], 0);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(len),
            Ok(n) => (hash.update(&chunk[..n]), len += n as u64).0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tagged(tag: &str) -> Naming {
        Naming::Beside(Some(tag.repeat(16)))
    }

    #[test]
    fn a_link_that_leads_out_is_not_followed_and_one_that_stays_is() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), inside.path().join("out")).unwrap();
        std::fs::create_dir(inside.path().join("real")).unwrap();
        symlink("real", inside.path().join("in")).unwrap();
        let folder = Folder::make(inside.path()).unwrap();
        for path in ["out/x", "out/deeper/x"] {
            let error = folder.spot(path).err().unwrap();
            assert!(error.to_string().contains("leads out"), "{error}");
        }
        folder.spot("in/x").unwrap().write(b"1").unwrap();
        assert_eq!(std::fs::read(inside.path().join("real/x")).unwrap(), b"1");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_files_own_place_is_replaced_and_its_target_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        std::fs::write(&target, "old").unwrap();
        symlink(&target, dir.path().join("x")).unwrap();
        Folder::make(dir.path()).unwrap().spot("x").unwrap().write(b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert!(!dir.path().join("x").is_symlink());
    }

    #[test]
    fn a_part_is_gone_on_with_only_for_the_same_content() {
        let dir = tempfile::tempdir().unwrap();
        let spot = || Folder::make(dir.path()).unwrap().spot("sub/x").unwrap();
        Part::open(spot(), tagged("a"), false).unwrap().write(b"12").unwrap();
        let mut again = Part::open(spot(), tagged("a"), true).unwrap();
        assert_eq!(again.len(), 2);
        assert!(again.adopt(Some("a".repeat(16))).unwrap());
        again.write(b"3").unwrap();
        let whole = aws_lc_rs::digest::digest(&SHA256, b"123");
        assert_eq!(again.digest().unwrap().as_ref(), whole.as_ref());
        assert!(!again.adopt(Some("b".repeat(16))).unwrap());
        assert_eq!((again.len(), spot().tags()), (0, vec!["b".repeat(16)]));
        again.write(b"9").unwrap();
        again.finish().unwrap();
        assert_eq!(std::fs::read(dir.path().join("sub/x")).unwrap(), b"9");
        assert_eq!(std::fs::read_dir(dir.path().join("sub")).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_taken_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("store"), b"12345678").unwrap();
        let spot = || Folder::make(dir.path()).unwrap().spot("x").unwrap();
        let mut part = Part::open(spot(), tagged("a"), true).unwrap();
        let from = File::open(dir.path().join("store")).unwrap();
        assert!(part.take(&from, 9).is_err());
        assert_eq!(part.len(), 0);
        part.take(&from, 5).unwrap();
        assert!(part.len() == 5 && part.digest().is_none());
        assert_eq!(std::fs::read(part.finish().unwrap()).unwrap(), b"12345");
    }

    #[test]
    fn two_at_once_do_not_write_one_part() {
        let dir = tempfile::tempdir().unwrap();
        let spot = || Folder::make(dir.path()).unwrap().spot("x").unwrap();
        let _first = Part::open(spot(), tagged("a"), false).unwrap();
        let error = Part::open(spot(), tagged("a"), false).err().unwrap();
        assert!(error.to_string().contains("another process"), "{error}");
    }

    #[test]
    fn a_very_long_name_has_a_part_too() {
        let dir = tempfile::tempdir().unwrap();
        let name = "ü".repeat(127);
        let part = Part::open(Folder::make(dir.path()).unwrap().spot(&name).unwrap(), tagged("a"), false).unwrap();
        assert_eq!(part.finish().unwrap(), dir.path().join(name));
    }
}
