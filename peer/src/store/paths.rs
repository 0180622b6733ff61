//! Where everything is in a store's directory. DESIGN.md has the list.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::task::TaskId;

/// A store's directory.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    dir: PathBuf,
}

impl Paths {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(super) fn version(&self) -> PathBuf {
        self.dir.join("version")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.dir.join("index.redb")
    }

    pub(super) fn broken_index(&self) -> PathBuf {
        self.dir.join("index.redb.broken")
    }

    pub(super) fn tasks(&self) -> PathBuf {
        self.dir.join("tasks")
    }

    pub(super) fn data(&self, id: &TaskId) -> PathBuf {
        self.task_dir(id).join(format!("{id}.data"))
    }

    pub(super) fn table(&self, id: &TaskId) -> PathBuf {
        self.task_dir(id).join(format!("{id}.pieces"))
    }

    /// The folder of a task's files.
    pub(super) fn task_dir(&self, id: &TaskId) -> PathBuf {
        self.tasks().join(format!("{:02x}", id.0[0]))
    }

    /// Takes a task's files out of the way at once; [`Self::empty_trash`] frees their blocks later.
    pub(super) fn discard(&self, id: &TaskId, generation: u64) {
        let trash = self.trash();
        for (path, kind) in [(self.data(id), "data"), (self.table(id), "pieces")] {
            let moved = fs::rename(&path, trash.join(format!("{generation}.{kind}")));
            if let Err(error) = moved.or_else(|_| fs::remove_file(&path))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a removed task's file stays until the next start");
            }
        }
    }

    /// Unlinks everything in the trash.
    pub(super) fn empty_trash(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.trash())? {
            match fs::remove_file(entry?.path()) {
                // Somebody else empties it too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Makes the directories that are missing, private to this user.
    pub(super) fn make_dirs(&self) -> io::Result<()> {
        make_dir(&self.dir)?;
        for ours in [self.tasks(), self.trash()] {
            make_dir(&ours)?;
            // The store's own directory may have been made by others, with their mode; what is in it is private.
            fs::set_permissions(ours, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    fn trash(&self) -> PathBuf {
        self.dir.join("trash")
    }
}

/// Makes `path` and its parents with mode 0700, if it isn't there.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
