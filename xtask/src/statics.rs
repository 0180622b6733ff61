//! `cargo xtask static`: release binaries without a dynamic loader and a libc to find, for images and virtual machines.
//!
//! Statically linked glibc, not musl: the allocator, and so the figures, are those of the ordinary build, and rustup has to bring no
//! other target. Its catch is name resolution. "files" and "dns" are in the binary (glibc 2.34 and later); any other service that
//! /etc/nsswitch.conf names for hosts is loaded from the machine, and unless that has the very glibc that was linked, the program
//! aborts in the loader (tried with 2.31 and 2.41). So these binaries are for where /etc/nsswitch.conf is ours or names these two
//! alone; packages for other people's machines are linked dynamically.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ebpf,
    setup::{self, Part},
    shell,
};

/// What is built: programs and the packages they are of.
const PROGRAMS: [(&str, &str); 4] = [
    ("pondhawk", "pondhawk"),
    ("pondhawk-scheduler", "pondhawk-scheduler"),
    ("pondhawk-bench", "pondhawk-bench"),
    ("pondhawk-hub", "pondhawk-bench"),
];

/// Static binaries of this machine's architecture.
#[derive(Clone, Debug)]
pub(crate) struct Static {
    /// The folder that holds them.
    dir: PathBuf,
}

impl Static {
    /// The path of one of the programs, as in `pondhawk`.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

pub(crate) fn run() -> Result<()> {
    setup::prepare(&[Part::Build])?;
    let built = static_binaries()?;
    for (name, _) in PROGRAMS {
        let path = built.program(name);
        println!("{:>7.1} MiB  {}", mebibytes(&path)?, path.display());
    }
    Ok(())
}

/// Builds `pondhawk`, `pondhawk-scheduler`, `pondhawk-bench` and `pondhawk-hub` statically, interception included, in a target
/// directory of their own below the usual one; what is up to date is not built again.
///
/// # Errors
/// A build that fails, one without the BPF programs, and one that came out dynamically linked.
pub(crate) fn static_binaries() -> Result<Static> {
    let root = shell::root()?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = shell::target_dir(&root).join("static");
    println!("  building static binaries in {}", folder.display());
    ebpf::build(&mut command(&root, &target, &folder))?;
    let built = Static { dir: folder.join(target).join("release") };
    for (name, _) in PROGRAMS {
        let path = built.program(name);
        let file = std::fs::read(&path).with_context(|| format!("{} was not built", path.display()))?;
        ensure!(
            interpreter(&file) == Some(false),
            "{} needs a dynamic loader: is RUSTFLAGS or a cargo configuration in the way?",
            path.display()
        );
    }
    Ok(built)
}

fn command(root: &Path, target: &str, folder: &Path) -> Command {
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--release"]);
    // Naming the target keeps the flags from build scripts and procedural macros, which cannot be static.
    cargo.args(["--target", target]).arg("--target-dir").arg(folder);
    for (name, package) in PROGRAMS {
        cargo.arg(format!("--package={package}")).arg(format!("--bin={name}"));
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static").env_remove("RUSTFLAGS");
    // Symbols stay, for profiles and backtraces; line tables would be two thirds of the file.
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "false").env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    cargo
}

/// Whether a 64-bit little-endian ELF file asks for a dynamic loader (a PT_INTERP program header); `None` where it is no such file.
/// Positions are those of elf(5).
pub(crate) fn interpreter(file: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(file.get(at..)?.get(..2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..)?.get(..4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(file.get(at..)?.get(..8)?.try_into().ok()?));
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (headers, size, count) = (usize::try_from(long(32)?).ok()?, usize::from(half(54)?), usize::from(half(56)?));
    let mut found = false;
    for index in 0..count {
        found |= word(headers.checked_add(index * size)?)? == PT_INTERP;
    }
    Some(found)
}

/// The size of a file in MiB.
pub(crate) fn mebibytes(path: &Path) -> Result<f64> {
    let len = std::fs::metadata(path).with_context(|| format!("{} is gone", path.display()))?.len();
    Ok(len as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of a header and one program header of this type.
    fn elf(kind: u32) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&1_u16.to_le_bytes());
        file[64..68].copy_from_slice(&kind.to_le_bytes());
        file
    }

    #[test]
    fn a_static_program_is_told_from_one_that_needs_a_loader() {
        assert_eq!(interpreter(&elf(1)), Some(false));
        assert_eq!(interpreter(&elf(3)), Some(true));
    }

    #[test]
    fn what_is_no_whole_elf_file_is_no_static_program() {
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(&elf(1)[..64]), None);
        let mut far = elf(1);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(interpreter(&far), None);
    }

    #[test]
    fn this_test_is_linked_dynamically() {
        let file = std::fs::read(std::env::current_exe().expect("a test has a path")).expect("it can be read");
        assert_eq!(interpreter(&file), Some(true));
    }

    #[test]
    fn every_program_is_asked_for_by_name() {
        let command = command(Path::new("."), "t", Path::new("out"));
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        for (name, package) in PROGRAMS {
            assert!(words.contains(&format!("--bin={name}")) && words.contains(&format!("--package={package}")));
        }
    }
}
