//! A virtual machine: a kernel, a file system in memory with the programs, and a console to read.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    FILE_BYTES,
    kernels::{Kernel, tool},
};
use crate::{
    shell,
    statics::{self, Static},
};

const GUEST: &str = include_str!("guest.sh");
const PROGRAMS: [&str; 4] = ["pondhawk", "pondhawk-bench", "pondhawk-hub", "busybox"];
/// A disk to store on, which many kernels have as modules, and what no part of the node uses but users ask about.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "ext4", "tls"];
const DISK_BYTES: u64 = 1 << 30;
/// Emulation takes some 20 s; a machine that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// Boots, and gives what the machine wrote on its console until it turned itself off. A machine that never comes so far is
/// booted once more: emulation at times loses one.
pub(super) fn boot(dir: &Path, kernel: &Kernel, built: &Static) -> Result<String> {
    let files = lay_out(&dir.join("root"), kernel, built)?;
    let memory = dir.join("initramfs");
    pack(&files, &memory)?;
    let disk = dir.join("disk");
    for _ in 0..2 {
        format(&disk)?;
        let console = run(&mut qemu(kernel, &memory, &disk))?;
        if console.contains("vm: finished") {
            return Ok(console);
        }
        println!("    the machine did not come to its end; its last words: {}", last_line(&console));
    }
    Ok(String::new())
}

fn last_line(console: &str) -> &str {
    console.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("none")
}

/// The files of the first file system.
fn lay_out(root: &Path, kernel: &Kernel, built: &Static) -> Result<PathBuf> {
    if root.exists() {
        fs::remove_dir_all(root).context("the last machine's files cannot be removed")?;
    }
    for folder in ["bin", "data", "dev", "etc", "modules", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("cannot write to {}", root.display()))?;
    }
    // /sbin and /usr/bin too are where busybox puts its names.
    symlink("bin", root.join("sbin")).context("cannot make a link")?;
    symlink(".", root.join("usr")).context("cannot make a link")?;
    for name in PROGRAMS {
        let path = if name == "busybox" { busybox()? } else { built.program(name) };
        fs::copy(&path, root.join("bin").join(name)).with_context(|| format!("{} is gone", path.display()))?;
    }
    let init = root.join("init");
    fs::write(&init, GUEST).context("cannot write the machine's script")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("cannot make a script executable")?;
    fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.1\n").context("cannot write resolv.conf")?;
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n").context("cannot write nsswitch.conf")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").context("cannot write hosts")?;
    modules(root, kernel)?;
    Ok(root.to_owned())
}

fn busybox() -> Result<PathBuf> {
    let path = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.is_file());
    let path = path.context("there is no busybox: install busybox-static")?;
    let file = fs::read(&path).context("busybox cannot be read")?;
    ensure!(
        statics::interpreter(&file) == Some(false),
        "busybox needs a dynamic loader: install busybox-static instead"
    );
    Ok(path)
}

/// Numbered in the order of loading, and unpacked: busybox reads no compressed ones.
fn modules(root: &Path, kernel: &Kernel) -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    for file in MODULES.iter().filter_map(|name| kernel.module(name)).flatten() {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    for (index, file) in files.iter().enumerate() {
        let name = file.file_name().context("a module has a name")?.to_string_lossy().into_owned();
        let content = match file.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => {
                let unpacked = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
                let unpacked = unpacked.context("modules are compressed, and there is no xz")?;
                ensure!(unpacked.status.success(), "{} is no xz file", file.display());
                unpacked.stdout
            }
            _ => fs::read(file).with_context(|| format!("{} is gone", file.display()))?,
        };
        let name = name.trim_end_matches(".xz");
        fs::write(root.join(format!("modules/{index:02}-{name}")), content).context("cannot write a module")?;
    }
    Ok(())
}

fn pack(root: &Path, archive: &Path) -> Result<()> {
    let out = fs::File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let list = shell::output(Command::new("find").arg(".").current_dir(root))?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "--create", "--format=newc", "--owner=0:0"]).current_dir(root);
    let mut cpio = cpio.stdin(Stdio::piped()).stdout(out).spawn().context("cpio does not start")?;
    cpio.stdin.take().context("cpio has an input")?.write_all(list.as_bytes()).context("cpio takes no names")?;
    ensure!(cpio.wait().context("cpio is lost")?.success(), "cpio failed");
    Ok(())
}

/// An empty disk.
fn format(disk: &Path) -> Result<()> {
    let file = fs::File::create(disk).with_context(|| format!("cannot write {}", disk.display()))?;
    file.set_len(DISK_BYTES).context("cannot make a disk")?;
    shell::output(Command::new(tool("mke2fs")).args(["-q", "-F", "-t", "ext4"]).arg(disk)).map(drop)
}

fn qemu(kernel: &Kernel, memory: &Path, disk: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated whatever the host can: a machine that is itself a virtual one often has KVM in name only.
    qemu.args(["-accel", "tcg", "-M", "q35", "-cpu", "max", "-smp", "1", "-m", "1536"]);
    qemu.args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none", "-no-reboot"]);
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(memory);
    qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 random.trust_cpu=on FILE_SIZE={FILE_BYTES}"));
    qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
    qemu
}

/// What it prints until it ends, or is ended.
fn run(command: &mut Command) -> Result<String> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("qemu does not start")?;
    let mut machine = Machine(child);
    let mut output = machine.0.stdout.take().context("qemu has an output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut part = vec![0; 1 << 16];
        while let Ok(len @ 1..) = output.read(&mut part) {
            if sender.send(part[..len].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut console = Vec::new();
    let started = std::time::Instant::now();
    while let Ok(part) = receiver.recv_timeout(LIMIT.saturating_sub(started.elapsed())) {
        console.extend(part);
    }
    drop(machine);
    Ok(String::from_utf8_lossy(&console).replace('\r', ""))
}

/// Is not left behind.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
