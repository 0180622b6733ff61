//! `pondhawk get` as a process, in a folder of its own, with an environment that names nothing but what the test says.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use pondhawk_bench::{
    hub::{Hub, HubOptions, Names},
    lab::{clean_command, wait_until},
};

use crate::stage::Stage;

pub(crate) const MIB: u64 = 1 << 20;

/// A hub whose CDN is reached at this machine's own name, without a node that maps it.
pub(crate) fn direct_hub() -> Hub {
    let names = Names { cdn: vec!["localhost".into()], ..Names::default() };
    Hub::start(HubOptions { names, ..HubOptions::default() }).unwrap()
}

/// One folder to download into.
pub(crate) struct Errand {
    dir: tempfile::TempDir,
    pub(crate) endpoint: String,
    node: String,
}

/// What the command said.
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

impl Errand {
    pub(crate) fn new(hub: &Hub, node: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        hub.write_ca(&dir.path().join("hub.pem")).unwrap();
        Self { dir, endpoint: format!("https://{}", hub.tls_address()), node: node.to_owned() }
    }

    /// By way of the stage's node.
    pub(crate) fn by(stage: &Stage) -> Self {
        Self::new(&stage.hub, &stage.node.proxy.to_string())
    }

    /// With a node's address where none is.
    pub(crate) fn without(hub: &Hub) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        Self::new(hub, &free)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn get(&self, arguments: &[&str]) -> Done {
        self.with(arguments, &[])
    }

    /// Another command, for the stage's node.
    pub(crate) fn of(&self, name: &str, arguments: &[&str], stage: &Stage) -> Done {
        let mut command = self.command(name, arguments);
        Self::done(command.env("PONDHAWK_ADMIN", stage.node.admin.to_string()))
    }

    pub(crate) fn with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Done {
        Self::done(self.command("get", arguments).envs(variables.iter().copied()))
    }

    fn done(command: &mut Command) -> Done {
        Done::of(command.output().unwrap())
    }

    /// Kills the command when an unfinished file has this many bytes; false if it ended before.
    pub(crate) fn killed_after(&self, arguments: &[&str], bytes: u64) -> bool {
        let mut child = self.command("get", arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = || self.parts().into_iter().any(|len| len >= bytes);
        let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        let deadline = std::time::Duration::from_secs(30);
        let seen = wait_until(deadline, || (begun() || ended(&mut child)).then_some(())).is_some();
        let running = !ended(&mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        seen && running
    }

    /// Does something when an unfinished file has this many bytes, and lets the command go on.
    pub(crate) fn while_running(&self, arguments: &[&str], bytes: u64, then: impl FnOnce()) -> Done {
        let mut command = self.command("get", arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = std::time::Duration::from_secs(30);
        let seen = wait_until(deadline, || {
            let over = child.try_wait().unwrap().is_some();
            (over || self.parts().into_iter().any(|len| len >= bytes)).then_some(!over)
        });
        assert_eq!(seen, Some(true), "the command ended too early");
        then();
        Done::of(child.wait_with_output().unwrap())
    }

    /// What a real huggingface_hub finds in the cache without a network: the snapshot, and a file of it.
    pub(crate) fn offline(&self, python: &Path, home: &str) -> String {
        let script = "from huggingface_hub import snapshot_download, hf_hub_download\n\
                      print(snapshot_download('owner/model', local_files_only=True))\n\
                      print(hf_hub_download('owner/model', 'config.json', local_files_only=True))\n";
        let mut command = clean_command(python);
        command.args(["-c", script]).env("HF_HOME", home).env("HF_HUB_OFFLINE", "1").current_dir(self.dir.path());
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = clean_command(env!("CARGO_BIN_EXE_pondhawk"));
        command.arg(name).args(arguments).current_dir(self.dir.path());
        command.env("HF_ENDPOINT", &self.endpoint).env("PONDHAWK_NODE", &self.node);
        command.env("SSL_CERT_FILE", self.path("hub.pem")).env("HOME", self.dir.path());
        command
    }

    fn parts(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap().flatten();
        let parts = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "part"));
        parts.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).collect()
    }
}
