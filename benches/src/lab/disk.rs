//! Small file systems on loop devices, which can be filled and broken.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::{LabError, clean_command, run, wait_until};

/// What fills the disk.
const FILLER: &str = "filler";
/// How often the disk is filled again with what the node has freed meanwhile.
const REFILL_EVERY: Duration = Duration::from_millis(100);

/// An ext4 image on a loop device, mounted. Unmounted when dropped; the kernel frees the loop device then.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    /// `/dev/loopN`
    device: String,
}

impl Disk {
    /// Makes the image with `bytes` bytes, and mounts it at `mount`. No block is reserved for root, or a node that runs as root would
    /// never find the disk full. `inodes` is how many files it can hold at most; none: more than there will be.
    pub fn new(image: &Path, mount: &Path, bytes: u64, inodes: Option<u32>) -> Result<Self, LabError> {
        let wrong = |source| LabError::File { path: image.to_owned(), source };
        File::create(image).and_then(|file| file.set_len(bytes)).map_err(wrong)?;
        fs::create_dir_all(mount).map_err(wrong)?;
        let mut mkfs = clean_command("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0"]);
        if let Some(inodes) = inodes {
            mkfs.args(["-N", &inodes.to_string()]);
        }
        run(mkfs.arg(image))?;
        run(clean_command("mount").args(["-o", "loop,errors=remount-ro"]).arg(image).arg(mount))?;
        let device = run(clean_command("findmnt").args(["--noheadings", "--output", "SOURCE"]).arg(mount));
        let device = device.map(|text| text.trim().to_owned()).unwrap_or_default();
        Ok(Self { image: image.to_owned(), mount: mount.to_owned(), device })
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Has ext4 find an error in itself, whereupon it becomes read-only, as at a failing disk. For good.
    pub fn break_file_system(&self) -> Result<(), LabError> {
        let name = self.device.rsplit('/').next().unwrap_or_default();
        let path = PathBuf::from(format!("/sys/fs/ext4/{name}/trigger_fs_error"));
        fs::write(&path, "1").map_err(|source| LabError::File { path, source })
    }

    /// Cuts the device after `bytes` bytes: what lies behind can be neither read nor written from now on (EIO), except that pages
    /// in memory can still be read.
    pub fn cut_device(&self, bytes: u64) -> Result<(), LabError> {
        let wrong = |source| LabError::File { path: self.image.clone(), source };
        File::options().write(true).open(&self.image).and_then(|image| image.set_len(bytes)).map_err(wrong)?;
        run(clean_command("losetup").args(["--set-capacity", &self.device])).map(drop)
    }

    /// Uses up all inodes but `left`, with empty files.
    pub fn use_inodes(&self, left: u64) -> Result<(), LabError> {
        let free = || statvfs(&self.mount).map_or(0, |stat| stat.f_favail);
        let folder = self.mount.join("inodes");
        let wrong = |source| LabError::File { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(wrong)?;
        let mut number = 0;
        while free() > left {
            File::create(folder.join(number.to_string())).map_err(wrong)?;
            number += 1;
        }
        Ok(())
    }

    /// Whether not one block is free.
    pub fn is_full(&self) -> bool {
        statvfs(&self.mount).is_ok_and(|stat| stat.f_bavail == 0)
    }

    /// Fills the disk, once: what is freed afterwards stays free.
    pub fn fill_up(&self) -> Result<(), LabError> {
        let path = self.mount.join(FILLER);
        let filler = File::create(&path).map_err(|source| LabError::File { path: path.clone(), source })?;
        let full = wait_until(Duration::from_secs(10), || {
            self.take_free_blocks(&filler);
            self.is_full().then_some(())
        });
        full.ok_or_else(|| LabError::File { path, source: std::io::Error::other("the disk does not become full") })
    }

    /// Keeps the disk full for as long as `lasts`, or until `ended`.
    pub fn fill(&self, lasts: Duration, ended: impl Fn() -> bool) -> Result<(), LabError> {
        let path = self.mount.join(FILLER);
        let filler = File::create(&path).map_err(|source| LabError::File { path: path.clone(), source })?;
        let end = Instant::now() + lasts;
        while Instant::now() < end && !ended() {
            self.take_free_blocks(&filler);
            wait_until(REFILL_EVERY, || None::<()>);
        }
        fs::remove_file(&path).map_err(|source| LabError::File { path, source })
    }

    fn take_free_blocks(&self, filler: &File) {
        let Ok(free) = statvfs(&self.mount).map(|stat| stat.f_bavail * stat.f_frsize) else { return };
        let Ok(len) = filler.metadata().map(|filler| filler.len()) else { return };
        // Larger requests fail whole where the node takes blocks at the same time.
        for part in [free, free / 2, free / 4] {
            if part > 0 && fallocate(filler, FallocateFlags::empty(), len, part).is_ok() {
                return;
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run(clean_command("umount").arg(&self.mount)) {
            eprintln!("{error}");
        }
    }
}
