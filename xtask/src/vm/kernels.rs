//! Debian's kernels, by apt from whatever mirror this machine has its packages from, unpacked and not installed.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell;

/// Where the kernels are that this project is run on; security updates are in an archive of their own.
const SUITES: [&str; 3] = ["bullseye", "bookworm", "trixie-backports"];
const SECURITY_SUITES: [&str; 2] = ["bullseye-security", "bookworm-security"];
const PREFIX: &str = "linux-image-";
/// Debian's build for virtual machines: the same code, fewer drivers.
const SUFFIX: &str = "-cloud-amd64";

/// An unpacked kernel.
pub(super) struct Kernel {
    /// What `uname -r` says under it.
    pub(super) release: String,
    /// Where its packages were unpacked.
    dir: PathBuf,
}

impl Kernel {
    /// What a virtual machine boots.
    pub(super) fn image(&self) -> PathBuf {
        let usual = self.dir.join("boot").join(format!("vmlinuz-{}", self.release));
        // Where it is since packages bring it apart from what boots it.
        let apart = self.dir.join("lib/modules").join(&self.release).join("vmlinuz");
        if apart.is_file() { apart } else { usual }
    }

    /// The files of a module and all that it needs, in the order of loading; none where it is built in, `None` where this kernel does
    /// not have it.
    pub(super) fn module(&self, name: &str) -> Option<Vec<PathBuf>> {
        let mut modprobe = Command::new(tool("modprobe"));
        modprobe.arg("-d").arg(&self.dir).args(["-S", &self.release, "--show-depends", name]);
        let text = shell::output(&mut modprobe).ok()?;
        Some(text.lines().filter_map(|line| line.strip_prefix("insmod ")).map(|path| path.trim().into()).collect())
    }
}

/// apt with lists and a cache of its own, so that the machine's own sources stay as they are.
pub(super) struct Archive {
    dir: PathBuf,
    names: Vec<String>,
}

impl Archive {
    /// Reads which kernels there are.
    ///
    /// # Errors
    /// A machine that is not Debian's, and lists that were never fetched and cannot be now.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let targets =
            Command::new("apt-get").args(["indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)"]).output();
        let targets = targets.context("kernels come from Debian by apt, which is not on this machine")?;
        let sources = sources(&String::from_utf8_lossy(&targets.stdout))
            .context("no source of Debian's packages is configured on this machine")?;
        for folder in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("cannot write to {}", dir.display()))?;
        }
        fs::write(dir.join("sources.list"), sources).context("cannot write apt's sources")?;
        let mut archive = Self { dir: dir.to_owned(), names: Vec::new() };
        if let Err(error) = shell::run(archive.apt("apt-get").args(["-qq", "update"])) {
            println!("  going on with the package lists that are here: {error:#}");
        }
        let pattern = format!("^{PREFIX}[0-9].*{SUFFIX}$");
        let found = shell::output(archive.apt("apt-cache").args(["search", "--names-only", &pattern]))?;
        archive.names = found.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
        Ok(archive)
    }

    /// The newest kernel of a series as in `6.1`, or of all for `newest`; downloaded and unpacked unless it was before.
    pub(super) fn kernel(&self, series: &str) -> Result<Kernel> {
        let Some(package) = newest(&self.names, series) else {
            bail!("there is no kernel {series}; there are {}", all_series(&self.names).join(", "));
        };
        let release = package.trim_start_matches(PREFIX).to_owned();
        let dir = self.dir.join(&release);
        let kernel = Kernel { release, dir };
        // Made last: what was interrupted is begun anew.
        if !kernel.dir.join("lib/modules").join(&kernel.release).join("modules.dep").is_file() {
            self.unpack(package, &kernel)?;
        }
        ensure!(kernel.image().is_file(), "{package} holds no {}", kernel.image().display());
        Ok(kernel)
    }

    fn unpack(&self, package: &str, kernel: &Kernel) -> Result<()> {
        let about = shell::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let mut packages = vec![package.to_owned()];
        packages.extend(parts(&about, &kernel.release));
        let debs = self.dir.join("debs");
        shell::run(self.apt("apt-get").current_dir(&debs).args(["-qq", "download"]).args(&packages))?;
        for entry in fs::read_dir(&debs).context("the downloads are gone")? {
            let path = entry.context("the downloads cannot be listed")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if packages.iter().any(|package| name.starts_with(&format!("{package}_"))) {
                shell::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&kernel.dir))?;
                fs::remove_file(&path).context("a download cannot be removed")?;
            }
        }
        // Newer packages have them where /lib is a link to.
        let merged = kernel.dir.join("usr/lib/modules").is_dir();
        if merged && !kernel.dir.join("lib").exists() {
            fs::rename(kernel.dir.join("usr/lib"), kernel.dir.join("lib")).context("modules cannot be moved")?;
        }
        shell::run(Command::new(tool("depmod")).arg("-b").arg(&kernel.dir).arg(&kernel.release))
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        let settings = [
            ("Dir::Etc::SourceList", self.dir.join("sources.list")),
            ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
            ("Dir::State::Lists", self.dir.join("lists")),
            ("Dir::Cache", self.dir.join("cache")),
        ];
        for (key, path) in settings {
            apt.arg("-o").arg(format!("{key}={}", path.display()));
        }
        // The user that apt downloads as may not be able to read the tree.
        apt.args(["-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"]);
        apt
    }
}

/// A program of the administrator's, which an ordinary user's PATH does not name.
pub(super) fn tool(name: &str) -> PathBuf {
    let folder = ["/usr/sbin", "/sbin"].into_iter().map(|dir| Path::new(dir).join(name));
    folder.into_iter().find(|path| path.is_file()).unwrap_or_else(|| name.into())
}

/// A sources.list of [`SUITES`] on the mirrors that `apt-get indextargets` (origin, release, URI a line) tells of.
fn sources(targets: &str) -> Option<String> {
    let mut archive = None;
    let mut security = None;
    for line in targets.lines() {
        let mut words = line.split_whitespace();
        if let (Some("Debian"), Some(release), Some(uri)) = (words.next(), words.next(), words.next()) {
            let place = if release.ends_with("-security") { &mut security } else { &mut archive };
            place.get_or_insert(uri);
        }
    }
    let of = |mirror: Option<&str>, suites: &[&str]| -> String {
        let Some(mirror) = mirror else { return String::new() };
        suites.iter().map(|suite| format!("deb {mirror} {suite} main\n")).collect()
    };
    let text = of(archive, &SUITES) + &of(security, &SECURITY_SUITES);
    (!text.is_empty()).then_some(text)
}

/// `6.1.0-56` and `6.1.0-57` by their numbers.
fn by_version(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        let words = text.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
        words.filter_map(|word| word.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

fn newest<'a>(names: &'a [String], series: &str) -> Option<&'a str> {
    let of_series = |name: &&str| series_of(name).is_some_and(|own| series == "newest" || series == own);
    // An old release's own build of a newer one's kernel.
    let backport = |name: &&str| name.contains("-0.deb");
    let found = names.iter().map(String::as_str).filter(of_series).filter(|name| !backport(name));
    found.max_by(|a, b| by_version(a, b))
}

/// `6.1` of a package or a release; `None` for a package that only stands for the newest of a series.
pub(super) fn series_of(name: &str) -> Option<&str> {
    let version = name.trim_start_matches(PREFIX);
    let second = version.find('.')? + 1;
    let third = version[second..].find('.')?;
    let number = third > 0 && version[second..second + third].chars().all(|c| c.is_ascii_digit());
    number.then_some(&version[..second + third])
}

fn all_series(names: &[String]) -> Vec<&str> {
    let mut all: Vec<&str> = names.iter().filter_map(|name| series_of(name)).collect();
    all.sort_by(|a, b| by_version(a, b));
    all.dedup();
    all
}

/// Packages of the same kernel that its main one depends on: since 6.18 the image and the modules have ones of their own.
fn parts(about: &str, release: &str) -> Vec<String> {
    let depends = about.lines().find_map(|line| line.strip_prefix("Depends:")).unwrap_or_default();
    let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
    names.filter(|name| name.ends_with(release)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(releases: &[&str]) -> Vec<String> {
        releases.iter().map(|release| format!("{PREFIX}{release}{SUFFIX}")).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_found_by_number() {
        let names = names(&[
            "6.1.0-9",
            "6.1.0-56",
            "6.12.100+deb12",
            "6.12.99+deb12",
            "7.3.4+deb13",
            "6.1.0-0.deb11.99",
            "6.1",
        ]);
        assert_eq!(newest(&names, "6.1"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(&names, "6.12"), Some("linux-image-6.12.100+deb12-cloud-amd64"));
        assert_eq!(newest(&names, "newest"), Some("linux-image-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(&names, "6"), None);
        assert_eq!(all_series(&names), ["6.1", "6.12", "7.3"]);
    }

    #[test]
    fn a_kernels_own_packages_are_told_from_the_others_that_it_needs() {
        let about = "Package: a\nDepends: kmod, linux-base (>= 4.3~), linux-modules-7.3.4-cloud-amd64 (= 7.3.4-1)\n";
        assert_eq!(parts(about, "7.3.4-cloud-amd64"), ["linux-modules-7.3.4-cloud-amd64"]);
        assert!(parts("Package: a\n", "7.3.4-cloud-amd64").is_empty());
    }

    #[test]
    fn sources_are_debians_mirrors_of_this_machine() {
        let targets = "Other stable https://other.example/\nDebian bookworm-security http://mirror.example/security/\n\
                       Debian bookworm http://mirror.example/debian/\n";
        let sources = sources(targets).expect("Debian is among them");
        assert!(sources.contains("deb http://mirror.example/debian/ bullseye main\n"), "{sources}");
        assert!(sources.contains("deb http://mirror.example/security/ bookworm-security main\n"), "{sources}");
        assert!(!sources.contains("other.example"), "{sources}");
        assert_eq!(super::sources("Other stable https://other.example/\n"), None);
    }
}
