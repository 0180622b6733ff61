//! Builds the eBPF programs and hands the object to the crate, or leaves interception out where no tool chain is.
//!
//! Two tool chains will do, and the first one found is taken:
//! 1. Debian's `rustc-web` with a prebuilt `core` for BPF. Its LLVM comes with an `llc` but no linker for BPF; with
//!    `lto` rustc hands its linker exactly one bitcode object, so a few lines of shell around `llc` do as one.
//! 2. rustup's nightly with `rust-src`, and `bpf-linker`.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
/// A rustc with a `core` for BPF, to use instead of Debian's.
const RUSTC_VARIABLE: &str = "PONDHAWK_BPF_RUSTC";
/// What `cargo xtask setup` changes on Debian: looked at again only when it does.
const PACKAGES: &str = "/var/lib/dpkg/status";

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    let programs = root.join("peer-ebpf");
    for watched in ["src", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", programs.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={RUSTC_VARIABLE}");
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rustc-check-cfg=cfg(interception)");

    let Some(toolchain) = Toolchain::find() else {
        if Path::new(PACKAGES).exists() {
            println!("cargo::rerun-if-changed={PACKAGES}");
        }
        println!("cargo::warning=no eBPF tool chain found: interception is left out; `cargo xtask setup` installs one");
        return;
    };
    let object = toolchain.build(&programs);
    println!("cargo::rustc-cfg=interception");
    println!("cargo::rustc-env=PONDHAWK_EBPF_OBJECT={}", object.display());
    println!("cargo::rustc-env=PONDHAWK_EBPF_TOOLCHAIN={}", toolchain.name());
}

enum Toolchain {
    /// A rustc with a prebuilt `core` for BPF, and the `llc` of its LLVM.
    Prebuilt { rustc: PathBuf, llc: PathBuf },
    /// rustup's nightly with `rust-src`, and `bpf-linker`.
    BpfLinker,
}

impl Toolchain {
    fn find() -> Option<Self> {
        let rustc = env::var_os(RUSTC_VARIABLE).map_or_else(|| PathBuf::from("/usr/bin/rustc"), PathBuf::from);
        prebuilt(rustc).or_else(bpf_linker)
    }

    fn name(&self) -> String {
        match self {
            Self::Prebuilt { rustc, llc } => format!("{} with {}", rustc.display(), llc.display()),
            Self::BpfLinker => "bpf-linker".to_owned(),
        }
    }

    /// The path of the object.
    fn build(&self, programs: &Path) -> PathBuf {
        let out = PathBuf::from(variable("OUT_DIR"));
        let target_dir = out.join("ebpf");
        let arch = variable("CARGO_CFG_TARGET_ARCH");
        let mut flags = vec![format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2".to_owned()];
        let mut cargo = match self {
            Self::Prebuilt { rustc, llc } => {
                flags.push(format!("-Clinker={}", write_linker(&out, llc).display()));
                let mut cargo = Command::new(variable("CARGO"));
                // aya-ebpf needs one unstable feature, and no other crate may use any.
                cargo.arg("build").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "aya_ebpf");
                cargo
            }
            Self::BpfLinker => {
                flags.push("-Clink-arg=--btf".to_owned());
                let mut cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]).env_remove("RUSTC");
                cargo
            }
        };
        cargo
            .args(["--release", "--locked", "--bin", "pondhawk-ebpf", "--no-default-features"])
            .args(["--features", "programs", "--target", TARGET])
            .arg("--manifest-path")
            .arg(programs.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .envs(PROFILE)
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        let status = cargo.status().unwrap_or_else(|error| panic!("{cargo:?} does not start: {error}"));
        assert!(status.success(), "the eBPF programs do not build with {}: {status}", self.name());
        target_dir.join(TARGET).join("release/pondhawk-ebpf")
    }
}

/// The workspace's own release profile is for the node. `debug` brings BTF.
const PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
];

fn prebuilt(rustc: PathBuf) -> Option<Toolchain> {
    let library = output(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
    let has_core = fs::read_dir(library.trim())
        .ok()?
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
    if !has_core {
        return None;
    }
    let version = output(Command::new(&rustc).arg("-vV"))?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    let llc = in_path(&format!("llc-{}", llvm.split('.').next()?))?;
    Some(Toolchain::Prebuilt { rustc, llc })
}

fn bpf_linker() -> Option<Toolchain> {
    in_path("bpf-linker")?;
    let sysroot = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir().then_some(Toolchain::BpfLinker)
}

/// A linker for exactly one bitcode object, which is what `lto` leaves to link.
fn write_linker(out: &Path, llc: &Path) -> PathBuf {
    let script = format!(
        r#"#!/bin/sh
# Written by peer/build.rs: the linker of the eBPF programs.
set -eu
object= output=
while [ $# -gt 0 ]; do
    case "$1" in
        -o | --output) output=$2; shift ;;
        *.o) [ -z "$object" ] || {{ echo "more than one object: $object $1" >&2; exit 1; }}; object=$1 ;;
    esac
    shift
done
exec '{}' -O2 -march=bpfel -mcpu=v3 -filetype=obj -o "$output" "$object"
"#,
        llc.display()
    );
    let path = out.join("bpf-link");
    fs::write(&path, script).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}

fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// What a command prints, if it can be started and succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A variable that cargo sets for every build script.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"))
}
