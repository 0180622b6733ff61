//! Network namespaces with name resolution of their own.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{LabError, clean_command, run, serial, tool, wait_until};

/// A network namespace. When dropped, the processes in it are killed and it is deleted.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

/// How the names of the lab's namespaces begin.
pub(super) const NAMESPACES: &str = "phlab-";

/// Enters the namespace's view of /etc and becomes the program. `ip netns exec` would do, but it mounts a new /sys, in which there
/// are no cgroups, so that nothing could attach BPF.
const ENTER: &str =
    r#"for file in /etc/netns/"$0"/*; do mount --bind "$file" /etc/"${file##*/}" || exit 125; done; exec "$@""#;

impl Netns {
    /// A new namespace with loopback up, named `phlab-{name}-{pid}-{number}`, so that runs do not meet.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let name = format!("{NAMESPACES}{name}-{}-{}", std::process::id(), serial());
        tool(&format!("ip netns add {name}"))?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        netns.set_hosts(&[])?;
        netns.set_nameserver(None)?;
        Ok(netns)
    }

    /// Takes over one that is there, to be deleted when dropped.
    pub(super) fn adopt(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// /etc/hosts as programs in this namespace see it: localhost and these. For programs started afterwards.
    pub fn set_hosts(&self, entries: &[(IpAddr, &str)]) -> Result<(), LabError> {
        let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for (address, name) in entries {
            text.push_str(&format!("{address} {name}\n"));
        }
        self.write_etc("hosts", &text)
    }

    /// /etc/resolv.conf likewise: this server, or one that is not there.
    pub fn set_nameserver(&self, address: Option<IpAddr>) -> Result<(), LabError> {
        let address = address.map_or("127.0.0.1".to_owned(), |address| address.to_string());
        self.write_etc("resolv.conf", &format!("nameserver {address}\noptions timeout:2 attempts:2\n"))
    }

    /// A command that runs in this namespace, its environment cleaned (see [`clean_command`]). Its process id is the program's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = clean_command("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name));
        command.args(["--", "unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, &self.name]);
        command.arg(program);
        command
    }

    /// `ip` in this namespace, with these words.
    pub fn ip(&self, words: &str) -> Result<String, LabError> {
        tool(&format!("ip -n {} {words}", self.name))
    }

    /// Limits what leaves by this interface, in bits a second.
    pub fn shape(&self, interface: &str, bits_per_second: u64) -> Result<(), LabError> {
        let name = &self.name;
        tool(&format!(
            "tc -n {name} qdisc replace dev {interface} root tbf rate {bits_per_second}bit burst 1mb latency 20ms"
        ))
        .map(drop)
    }

    /// `curl` of a URL from within, without proxies or verification by default; gives the body.
    pub fn curl(&self, arguments: &[&str]) -> Result<String, LabError> {
        run(self.command("curl").args(["--silent", "--show-error", "--fail", "--max-time", "60"]).args(arguments))
    }

    /// Whether something accepts TCP connections there, as seen from within.
    pub fn reaches(&self, address: SocketAddr) -> bool {
        let probe = format!("exec 3<>/dev/tcp/{}/{}", address.ip(), address.port());
        run(self.command("timeout").args(["3", "bash", "-c", &probe])).is_ok()
    }

    fn write_etc(&self, file: &str, text: &str) -> Result<(), LabError> {
        let folder = self.etc();
        fs::create_dir_all(&folder).map_err(|source| LabError::file(&folder, source))?;
        let path = folder.join(file);
        fs::write(&path, text).map_err(|source| LabError::file(&path, source))
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    fn kill_all(&self) -> bool {
        let listed = tool(&format!("ip netns pids {}", self.name)).unwrap_or_default();
        let pids: Vec<Pid> = listed.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect();
        for pid in &pids {
            // It may have ended by itself since it was listed.
            let _ = kill_process(*pid, Signal::KILL);
        }
        pids.is_empty()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if wait_until(Duration::from_secs(5), || self.kill_all().then_some(())).is_none() {
            eprintln!("processes in {} did not end", self.name);
        }
        if let Err(error) = tool(&format!("ip netns del {}", self.name)) {
            eprintln!("{error}");
        }
        match fs::remove_dir_all(self.etc()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                eprintln!("{}: {error}", self.etc().display());
            }
            _ => {}
        }
    }
}
