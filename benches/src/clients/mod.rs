//! The clients that people use, as they are: what to run, with which environment, and where the file ends up.
//!
//! A [`Recipe`] is run as it stands, in whatever namespace and cgroup the caller chooses. Its environment is complete and
//! names no proxy and no endpoint: a client that goes through a node does so without knowing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A download takes seconds; one that hangs is killed after this many.
const DEADLINE: &str = "120";

/// A real client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// huggingface_hub 0.17.1 on requests 2.31, the version of the Dragonfly guide.
    Hub017,
    /// huggingface_hub 0.36, the last on requests.
    Hub036,
    /// huggingface_hub 1.x, on httpx.
    Hub1,
    /// huggingface_hub 2.x, on httpx with truststore.
    Hub2,
    /// hf_transfer under huggingface_hub 0.36: many ranges at once.
    HfTransfer,
    /// hf_xet under huggingface_hub 2.x: xorbs in place of the file, from repositories in Xet's storage.
    HfXet,
    /// curl -L.
    Curl,
    /// wget, killed half-way and continued with -c.
    Wget,
    /// aria2c -x16: sixteen ranges at once.
    Aria2,
    /// git lfs pull.
    GitLfs,
}

/// A large file of the Hub.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `owner/name`
    pub repo: String,
    /// Path in the repository, at revision `main`.
    pub file: String,
    /// In hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// Where a client runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Cargo's target directory, below which `cargo xtask setup` put the Python clients.
    pub target: PathBuf,
    /// An empty directory for this run: home, caches and the downloaded file.
    pub dir: PathBuf,
    /// The certificates that the client trusts, in PEM.
    pub bundle: PathBuf,
}

/// How to run a client once.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Program and arguments.
    pub words: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(&'static str, OsString)>,
    /// The run's own folder.
    pub dir: PathBuf,
    /// Where the file ends up; `None`: the client prints the path as its last line.
    pub output: Option<PathBuf>,
}

impl Client {
    /// Every client, oldest version first.
    pub const ALL: [Self; 10] = [
        Self::Hub017,
        Self::Hub036,
        Self::Hub1,
        Self::Hub2,
        Self::HfTransfer,
        Self::HfXet,
        Self::Curl,
        Self::Wget,
        Self::Aria2,
        Self::GitLfs,
    ];

    /// The client's name and version, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hub017 => "huggingface_hub 0.17.1",
            Self::Hub036 => "huggingface_hub 0.36",
            Self::Hub1 => "huggingface_hub 1.x",
            Self::Hub2 => "huggingface_hub 2.x",
            Self::HfTransfer => "hf_transfer",
            Self::HfXet => "hf_xet",
            Self::Curl => "curl",
            Self::Wget => "wget -c",
            Self::Aria2 => "aria2c -x16",
            Self::GitLfs => "git-lfs",
        }
    }

    /// What has to be there to run it, and isn't.
    pub fn missing(self, target: &Path) -> Option<String> {
        let program = match self.environment_name() {
            Some(name) => target.join("clients").join(name).join("bin/python"),
            None => PathBuf::from(self.program()),
        };
        let found = if program.is_absolute() { program.exists() } else { on_path(&program) };
        (!found).then(|| format!("{} is not installed: run `cargo xtask setup`", self.name()))
    }

    /// How to download the file there with this client.
    pub fn recipe(self, wanted: &Wanted, place: &Place) -> Recipe {
        let url = format!("https://huggingface.co/{}/resolve/main/{}", wanted.repo, wanted.file);
        let file = place.dir.join("file.bin");
        let mut words = vec![OsString::from("timeout"), "-k5".into(), DEADLINE.into()];
        let mut add = |more: &[&std::ffi::OsStr]| words.extend(more.iter().map(|&word| OsString::from(word)));
        let bundle = place.bundle.as_os_str();
        match self {
            Self::Curl => {
                add(&["curl", "-fsSL", "--output"].map(AsRef::as_ref));
                add(&[file.as_ref(), url.as_ref()]);
            }
            Self::Wget => {
                add(&["sh", "-c", include_str!("wget_continued.sh"), "sh", &url].map(AsRef::as_ref));
                add(&[file.as_ref(), (wanted.size / 3).to_string().as_ref(), bundle]);
            }
            Self::Aria2 => {
                add(&["aria2c", "-x16", "-s16", "-k1M", "--quiet", "--no-conf", "--file-allocation=none"]
                    .map(AsRef::as_ref));
                add(&["--dir".as_ref(), place.dir.as_ref(), "--out=file.bin".as_ref()]);
                add(&["--ca-certificate".as_ref(), bundle, url.as_ref()]);
            }
            Self::GitLfs => {
                let lfs = format!("https://huggingface.co/{}.git/info/lfs", wanted.repo);
                add(&["sh", "-c", include_str!("git_lfs.sh"), "sh", &lfs, &wanted.sha256].map(AsRef::as_ref));
                add(&[wanted.size.to_string().as_ref(), place.dir.join("clone").as_ref()]);
            }
            Self::Hub017 | Self::Hub036 | Self::Hub1 | Self::Hub2 | Self::HfTransfer | Self::HfXet => {
                let name = self.environment_name().expect("these six have one");
                add(&[place.target.join("clients").join(name).join("bin/python").as_ref()]);
                add(&["-c", include_str!("download.py"), &wanted.repo, &wanted.file].map(AsRef::as_ref));
            }
        }
        Recipe { words, env: self.environment(place), dir: place.dir.clone(), output: self.output(place) }
    }

    fn output(self, place: &Place) -> Option<PathBuf> {
        match self.environment_name() {
            Some(_) => None,
            None if self == Self::GitLfs => Some(place.dir.join("clone/file.bin")),
            None => Some(place.dir.join("file.bin")),
        }
    }

    /// The virtual environment of a Python client.
    fn environment_name(self) -> Option<&'static str> {
        match self {
            Self::Hub017 => Some("hf-0.17.1"),
            Self::Hub036 => Some("hf-0.36"),
            Self::Hub1 => Some("hf-1"),
            Self::Hub2 => Some("hf-2"),
            Self::HfTransfer => Some("hf-transfer"),
            Self::HfXet => Some("hf-xet"),
            _ => None,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Wget => "wget",
            Self::Aria2 => "aria2c",
            Self::GitLfs => "git-lfs",
            _ => "python3",
        }
    }

    /// Everything that `pondhawk ca env` tells a shell to set, and nothing about the network.
    fn environment(self, place: &Place) -> Vec<(&'static str, OsString)> {
        let mut env: Vec<(&'static str, OsString)> = vec![
            ("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into())),
            ("LANG", "C.UTF-8".into()),
            ("HOME", place.dir.clone().into()),
            ("HF_HOME", place.dir.join("huggingface").into()),
            ("HF_HUB_DISABLE_TELEMETRY", "1".into()),
            ("HF_HUB_DISABLE_PROGRESS_BARS", "1".into()),
            ("GIT_TERMINAL_PROMPT", "0".into()),
        ];
        let trust = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];
        env.extend(trust.map(|name| (name, place.bundle.clone().into())));
        if self == Self::HfTransfer {
            env.push(("HF_HUB_ENABLE_HF_TRANSFER", "1".into()));
        }
        env
    }
}

impl Recipe {
    /// Adds program, arguments and environment to a command that enters a namespace or a cgroup first and runs what follows.
    pub fn append_to(&self, command: &mut Command) {
        // `env -i` rather than `env_clear`: the wrapper itself may need its environment.
        command.args(["env", "-i"]);
        for (name, value) in &self.env {
            let mut pair = OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
        command.args(&self.words);
    }

    /// Where the file is, given what the client printed.
    pub fn downloaded(&self, stdout: &[u8]) -> Option<PathBuf> {
        let printed = || String::from_utf8_lossy(stdout).lines().next_back().map(|line| PathBuf::from(line.trim()));
        self.output.clone().or_else(printed)
    }

    /// The variables that would tell a client of a proxy or another endpoint.
    pub fn hints(&self) -> Vec<&'static str> {
        let tells = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.ends_with("_proxy") || name == "hf_endpoint" || name.contains("inference_endpoint")
        };
        self.env.iter().map(|(name, _)| *name).filter(|name| tells(name)).collect()
    }
}

fn on_path(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { target: "/t".into(), dir: "/d".into(), bundle: "/b.pem".into() }
    }

    fn wanted() -> Wanted {
        Wanted { repo: "o/n".to_owned(), file: "m.bin".to_owned(), sha256: "0".repeat(64), size: 9 }
    }

    #[test]
    fn no_client_is_told_of_a_proxy_or_another_endpoint() {
        for client in Client::ALL {
            let recipe = client.recipe(&wanted(), &place());
            assert_eq!(recipe.hints(), Vec::<&str>::new(), "{}", client.name());
        }
    }

    #[test]
    fn a_proxy_in_the_environment_is_found_in_either_case() {
        let mut recipe = Client::Curl.recipe(&wanted(), &place());
        recipe.env.extend([("https_proxy", "x".into()), ("ALL_PROXY", "x".into()), ("HF_ENDPOINT", "x".into())]);
        assert_eq!(recipe.hints(), ["https_proxy", "ALL_PROXY", "HF_ENDPOINT"]);
    }

    #[test]
    fn a_command_starts_with_an_environment_of_its_own() {
        let mut command = Command::new("nice");
        Client::Curl.recipe(&wanted(), &place()).append_to(&mut command);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(words[..2], ["env", "-i"]);
        assert!(words.contains(&"SSL_CERT_FILE=/b.pem".to_owned()));
        assert!(
            words.ends_with(&["/d/file.bin".to_owned(), "https://huggingface.co/o/n/resolve/main/m.bin".to_owned()])
        );
    }
}
