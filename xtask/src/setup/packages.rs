//! The tools that come from the system, and how each one is recognised.

use std::path::Path;
use std::process::Command;

use super::Part;
use crate::shell;

/// A tool from the system's packages.
pub(crate) struct Tool {
    /// Debian's name of the package.
    pub(crate) package: &'static str,
    /// What it is needed for, and how to get it where there is no such package.
    pub(crate) hint: &'static str,
    present: Presence,
    parts: &'static [Part],
}

/// How a tool is recognised.
enum Presence {
    /// A program of this name, on PATH or where only root's PATH looks.
    Program(&'static str),
    /// This file is there.
    File(&'static str),
    /// Python can import these modules.
    PythonModules(&'static str),
    /// Debian's package is installed, or the toolchain that upstream documents is there.
    BpfToolchain,
}

const BPF_HINT: &str = "compiles the BPF programs. Elsewhere: `rustup toolchain install nightly --component rust-src` and \
                        `cargo install bpf-linker --version 0.10.4 --locked`. Without it the peer builds without interception";

const TOOLS: &[Tool] = &[
    tool("build-essential", Presence::Program("cc"), &[Part::Build], "a C compiler and linker"),
    tool(
        "ca-certificates",
        Presence::File("/etc/ssl/certs/ca-certificates.crt"),
        &[Part::Build],
        "the system's certificate authorities",
    ),
    tool("rustc-web", Presence::BpfToolchain, &[Part::Build], BPF_HINT),
    tool("libstd-rust-web-dev-bpf", Presence::BpfToolchain, &[Part::Build], BPF_HINT),
    tool("rust-web-llvm", Presence::BpfToolchain, &[Part::Build], BPF_HINT),
    tool(
        "iproute2",
        Presence::Program("ip"),
        &[Part::Demo, Part::Test, Part::Bench, Part::Kube],
        "network namespaces of the lab",
    ),
    tool(
        "python3",
        Presence::Program("python3"),
        &[Part::Demo, Part::Test, Part::Bench, Part::Chart, Part::Kube],
        "the clients; 3.10 or newer",
    ),
    tool(
        "python3-venv",
        Presence::PythonModules("venv, ensurepip"),
        &[Part::Demo, Part::Test, Part::Bench, Part::Chart, Part::Kube],
        "the clients' virtual environments",
    ),
    tool("git", Presence::Program("git"), &[Part::Test], "the tree's own checks and the git-lfs client"),
    tool("git-lfs", Presence::Program("git-lfs"), &[Part::Test], "a client that the tests run; https://git-lfs.com"),
    tool(
        "curl",
        Presence::Program("curl"),
        &[Part::Demo, Part::Test, Part::Bench, Part::Kube],
        "a client, and how the lab asks its nodes",
    ),
    tool("wget", Presence::Program("wget"), &[Part::Test], "a client that the tests run"),
    tool("tinyproxy-bin", Presence::Program("tinyproxy"), &[Part::Test], "a proxy that the tests put before origins"),
    tool("aria2", Presence::Program("aria2c"), &[Part::Test], "a client that the tests run"),
    tool(
        "openssl",
        Presence::Program("openssl"),
        &[Part::Test, Part::Kube],
        "a TLS client that the tests run, and keys",
    ),
    tool(
        "chromium",
        Presence::Program("chromium"),
        &[Part::Test],
        "the browser that the tests look at the scheduler's page with",
    ),
    tool("chromium-driver", Presence::Program("chromedriver"), &[Part::Test], "by which the tests lead the browser"),
    tool("valgrind", Presence::Program("valgrind"), &[Part::Bench], "counts instructions for the benchmarks"),
    tool("golang-1.19-go", Presence::File("/usr/lib/go-1.19/bin/go"), &[Part::Kube], "builds Kubernetes"),
    tool("dpkg-dev", Presence::Program("dpkg-source"), &[Part::Kube], "unpacks Kubernetes' source"),
    tool("rsync", Presence::Program("rsync"), &[Part::Kube], "Kubernetes' build uses it"),
    tool("etcd-server", Presence::Program("etcd"), &[Part::Kube], "what the API server keeps things in"),
    tool("containerd", Presence::Program("containerd"), &[Part::Kube], "runs pods"),
    tool("containernetworking-plugins", Presence::File("/usr/lib/cni/bridge"), &[Part::Kube], "the pods' network"),
    tool("kubernetes-client", Presence::Program("kubectl"), &[Part::Kube], "asks the API server"),
    tool("bpftool", Presence::Program("bpftool"), &[Part::Kube], "says which BPF programs are attached"),
    tool("podman", Presence::Program("podman"), &[Part::Image, Part::Kube], "makes and runs the image"),
    // Not crun, which podman would take by itself: it refuses hybrid cgroups.
    tool("runc", Presence::Program("runc"), &[Part::Image, Part::Kube], "runs containers for podman"),
    tool("dpkg-dev", Presence::Program("dpkg-shlibdeps"), &[Part::Deb], "finds the libraries that the package needs"),
    tool(
        "qemu-system-x86",
        Presence::Program("qemu-system-x86_64"),
        &[Part::Vm],
        "emulates machines for other kernels",
    ),
    tool("busybox-static", Presence::Program("busybox"), &[Part::Vm], "the tools in those machines"),
    tool("cpio", Presence::Program("cpio"), &[Part::Vm], "packs their first file system"),
    tool("kmod", Presence::Program("modprobe"), &[Part::Vm], "finds the modules that they load"),
    tool("xz-utils", Presence::Program("xz"), &[Part::Vm], "unpacks these modules"),
    tool("e2fsprogs", Presence::Program("mke2fs"), &[Part::Vm], "formats their disks"),
    tool("nginx-light", Presence::Program("nginx"), &[Part::Bench], "the server that the benchmarks compare with"),
];

const fn tool(package: &'static str, present: Presence, parts: &'static [Part], hint: &'static str) -> Tool {
    Tool { package, hint, present, parts }
}

/// The tools that these parts need and that are not here.
pub(crate) fn missing(parts: &[Part]) -> Vec<&'static Tool> {
    let wanted = |tool: &&Tool| tool.parts.iter().any(|part| parts.contains(part));
    TOOLS.iter().filter(wanted).filter(|tool| !is_present(tool)).collect()
}

fn is_present(tool: &Tool) -> bool {
    match tool.present {
        Presence::Program(name) => {
            shell::on_path(name) || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).is_file())
        }
        Presence::File(path) => Path::new(path).is_file(),
        Presence::PythonModules(modules) => succeeds("python3", &["-c", &format!("import {modules}")]),
        Presence::BpfToolchain => is_installed(tool.package) || has_upstream_bpf_toolchain(),
    }
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    query.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn has_upstream_bpf_toolchain() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(Into::into).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cargo"))
    });
    let linker = shell::on_path("bpf-linker") || home.is_some_and(|home| home.join("bin/bpf-linker").is_file());
    let sources = || {
        let sysroot = shell::output(Command::new("rustc").args(["+nightly", "--print", "sysroot"]));
        sysroot.is_ok_and(|dir| Path::new(dir.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").is_file())
    };
    linker && sources()
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_no_part_asks_for_is_never_missing() {
        assert!(missing(&[]).is_empty());
    }

    #[test]
    fn a_program_that_does_not_exist_is_missing() {
        let absent = tool("absent", Presence::Program("pondhawk-no-such-program"), &[Part::Test], "nothing");
        assert!(!is_present(&absent));
    }
}
