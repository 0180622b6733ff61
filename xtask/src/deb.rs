//! `cargo xtask deb`: the node and the scheduler as a Debian package, linked to this machine's libc.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    ebpf,
    setup::{self, Part},
    shell,
};

const PROGRAMS: [&str; 2] = ["pondhawk", "pondhawk-scheduler"];
const UNITS: [&str; 2] = ["pondhawk.service", "pondhawk-scheduler.service"];
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// Of the package itself: what is packaged anew without a new version of the program counts this up.
const REVISION: &str = "1";
const CONFIGURATION: &str = "/etc/pondhawk/config.yaml";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder that the package is written to.
    #[arg(long, value_name = "DIR", default_value = "target/deb")]
    output: PathBuf,
    /// Who answers for the package; the environment's DEBFULLNAME and DEBEMAIL by default.
    #[arg(long, value_name = "NAME <ADDRESS>")]
    maintainer: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::prepare(&[Part::Build, Part::Deb])?;
    let root = shell::root()?;
    let target = shell::target_dir(&root);
    let mut cargo = shell::cargo(&root);
    cargo.args(["build", "--release", "--package=pondhawk", "--package=pondhawk-scheduler"]);
    ebpf::build(cargo.args(PROGRAMS.map(|name| format!("--bin={name}"))))?;
    let tree = target.join("deb/tree");
    lay_out(&root, &target.join("release"), &tree)?;
    let architecture = shell::output(Command::new("dpkg").arg("--print-architecture"))?;
    let mut about = About {
        architecture: architecture.trim().to_owned(),
        depends: depends(&tree, &target.join("deb"))?,
        installed_kib: 0,
        maintainer: args.maintainer.clone().unwrap_or_else(maintainer),
    };
    write_changelogs(&root, &tree, &about)?;
    about.installed_kib = size(&tree)?.div_ceil(1024);
    write_control(&root, &tree, &about)?;
    let package = args.output.join(about.file_name());
    fs::create_dir_all(&args.output).with_context(|| format!("cannot write to {}", args.output.display()))?;
    // xz, whatever this system's default is: every Debian and Ubuntu unpacks it.
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&package);
    shell::run(&mut build)?;
    shell::run(Command::new("dpkg-deb").arg("--info").arg(&package))
}

/// What the package holds, below `tree`.
fn lay_out(root: &Path, built: &Path, tree: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).context("the last package's files cannot be removed")?;
    }
    for name in PROGRAMS {
        let to = shell::write(tree, &format!("usr/bin/{name}"), &read(&built.join(name))?, 0o755)?;
        // Symbols stay, for profiles.
        shell::run(Command::new("strip").arg("--strip-debug").arg(to))?;
    }
    for name in UNITS {
        let unit = fs::read_to_string(root.join("deploy").join(name)).with_context(|| format!("{name} is gone"))?;
        shell::write(tree, &format!("usr/lib/systemd/system/{name}"), packaged(&unit).as_bytes(), 0o644)?;
    }
    let files = [
        ("deploy/debian/config.yaml", "etc/pondhawk/config.yaml"),
        ("deploy/README.md", "usr/share/doc/pondhawk/README.md"),
        ("deploy/debian/copyright", "usr/share/doc/pondhawk/copyright"),
    ];
    for (from, to) in files {
        shell::write(tree, to, &read(&root.join(from))?, 0o644)?;
    }
    Ok(())
}

/// The program's changes, and those of the package in the form that Debian's tools read.
fn write_changelogs(root: &Path, tree: &Path, about: &About) -> Result<()> {
    let committed = shell::output(Command::new("git").arg("-C").arg(root).args(["log", "-1", "--format=%cD"]));
    let date = committed.or_else(|_| shell::output(Command::new("date").arg("--rfc-email")))?;
    let debian = about.changelog(date.trim());
    let folder = "usr/share/doc/pondhawk";
    for (name, content) in [("changelog", read(&root.join("CHANGELOG.md"))?), ("changelog.Debian", debian.into_bytes())]
    {
        let path = shell::write(tree, &format!("{folder}/{name}"), &content, 0o644)?;
        shell::run(Command::new("gzip").args(["--best", "--no-name"]).arg(path))?;
    }
    Ok(())
}

/// What is installed by hand is below /usr/local, what a package brings is not.
fn packaged(unit: &str) -> String {
    unit.replace("/usr/local/", "/usr/")
}

fn write_control(root: &Path, tree: &Path, about: &About) -> Result<()> {
    let sums =
        shell::output(Command::new("sh").current_dir(tree).args(["-c", "find usr -type f | sort | xargs md5sum"]))?;
    shell::write(tree, "DEBIAN/control", about.control().as_bytes(), 0o644)?;
    shell::write(tree, "DEBIAN/md5sums", sums.as_bytes(), 0o644)?;
    shell::write(tree, "DEBIAN/conffiles", format!("{CONFIGURATION}\n").as_bytes(), 0o644)?;
    shell::write(tree, "DEBIAN/templates", &read(&root.join("deploy/debian/templates"))?, 0o644)?;
    for name in SCRIPTS {
        shell::write(tree, &format!("DEBIAN/{name}"), &read(&root.join("deploy/debian").join(name))?, 0o755)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// The libraries that the programs were linked to, in the versions that they need.
fn depends(tree: &Path, folder: &Path) -> Result<String> {
    let control = "Source: pondhawk\n\nPackage: pondhawk\nArchitecture: any\n";
    shell::write(folder, "debian/control", control.as_bytes(), 0o644)?;
    let mut shlibdeps = Command::new("dpkg-shlibdeps");
    shlibdeps.current_dir(folder).arg("-O");
    for name in PROGRAMS {
        shlibdeps.arg("-e").arg(tree.join("usr/bin").join(name));
    }
    let text = shell::output(&mut shlibdeps)?;
    let libraries = text.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    libraries.map(str::to_owned).context("dpkg-shlibdeps finds no library that the programs need")
}

/// In bytes, of all files.
fn size(tree: &Path) -> Result<u64> {
    let text = shell::output(Command::new("du").args(["--summarize", "--apparent-size", "--bytes"]).arg(tree))?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).context("du tells no size")
}

fn maintainer() -> String {
    let variable = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    format!("{} <{}>", variable("DEBFULLNAME", "Pondhawk"), variable("DEBEMAIL", "pondhawk@localhost"))
}

/// What the package says of itself.
struct About {
    architecture: String,
    depends: String,
    installed_kib: u64,
    maintainer: String,
}

impl About {
    fn version() -> String {
        format!("{}-{REVISION}", env!("CARGO_PKG_VERSION"))
    }

    fn file_name(&self) -> String {
        format!("pondhawk_{}_{}.deb", Self::version(), self.architecture)
    }

    /// deb-changelog(5).
    fn changelog(&self, date: &str) -> String {
        format!(
            "pondhawk ({}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {}  {date}\n",
            Self::version(),
            self.maintainer
        )
    }

    /// deb-control(5).
    fn control(&self) -> String {
        format!(
            "Package: pondhawk\n\
             Version: {version}\n\
             Architecture: {architecture}\n\
             Maintainer: {maintainer}\n\
             Installed-Size: {size}\n\
             Depends: {depends}, adduser, ca-certificates, debconf (>= 0.5) | debconf-2.0\n\
             Section: net\n\
             Priority: optional\n\
             Description: downloads every model and data set once for a whole cluster\n \
             A node catches its machine's own connections to the Hugging Face CDN with\n \
             eBPF, fetches each file once in parallel ranges, verifies it, keeps it on\n \
             disk and serves it to unmodified clients; nodes share what they have.\n \
             .\n \
             Beside the node there is a scheduler of its own for larger clusters. Neither\n \
             is started by installing it.\n",
            version = Self::version(),
            architecture = self.architecture,
            maintainer = self.maintainer,
            size = self.installed_kib,
            depends = self.depends,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_names_its_libraries_and_every_line_of_its_description_is_one() {
        let about = About {
            architecture: "amd64".to_owned(),
            depends: "libc6 (>= 2.34)".to_owned(),
            installed_kib: 7,
            maintainer: "A <a@example.org>".to_owned(),
        };
        let control = about.control();
        assert!(control.contains("\nDepends: libc6 (>= 2.34), adduser, "), "{control}");
        assert!(about.file_name().ends_with("-1_amd64.deb"), "{}", about.file_name());
        let continued = control.lines().skip_while(|line| !line.starts_with("Description:")).skip(1);
        assert!(continued.clone().count() > 3 && continued.clone().all(|line| line.starts_with(' ')), "{control}");
    }

    #[test]
    fn the_packaged_units_run_what_the_package_brings() {
        let root = shell::root().expect("tests run inside the tree");
        for (unit, name) in UNITS.into_iter().zip(PROGRAMS) {
            let text = packaged(&fs::read_to_string(root.join("deploy").join(unit)).expect("a unit"));
            assert!(text.contains(&format!("ExecStart=/usr/bin/{name} up")) && !text.contains("/usr/local"), "{text}");
        }
    }
}
