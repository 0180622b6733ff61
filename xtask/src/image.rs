//! `cargo xtask image`: node, scheduler and load generator as a container image, from nothing but what was built here: no base
//! image, no registry, no network.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    setup::{self, Part},
    shell,
    statics::{self, Static},
};

/// What the image runs: a node by default, the others with another entry point.
const PROGRAMS: [&str; 3] = ["pondhawk", "pondhawk-scheduler", "pondhawk-bench"];
/// Those with a data directory: it leads to the volume.
const STATEFUL: [&str; 2] = ["pondhawk", "pondhawk-scheduler"];
/// Debian's own certificate authorities, without what somebody added to this machine's.
const AUTHORITIES: &str = "/usr/share/ca-certificates/mozilla";
/// glibc's default asks DNS first; pods expect their /etc/hosts to win.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image's name; its tag is the version.
    #[arg(long, default_value = "localhost/pondhawk")]
    name: String,
    /// Also write the image to this file, for `ctr -n k8s.io images import FILE`, `podman load` or `docker load`.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::prepare(&[Part::Build, Part::Image])?;
    let root = shell::root()?;
    let built = statics::static_binaries()?;
    let folder = shell::target_dir(&root).join("image");
    lay_out(&root, &folder, &built)?;
    let tag = format!("{}:{}", args.name, env!("CARGO_PKG_VERSION"));
    shell::run(&mut build(&folder, &tag, &Source::of(&root)))?;
    println!("{tag}: {:.1} MiB", size(&tag)? / f64::from(1 << 20));
    for name in PROGRAMS {
        println!("    {:<20} {:>5.1} MiB", name, statics::mebibytes(&folder.join("root/usr/bin").join(name))?);
    }
    args.save.as_deref().map_or(Ok(()), |file| save(&tag, file))
}

/// The folder that the image is built in.
fn lay_out(root: &Path, folder: &Path, built: &Static) -> Result<()> {
    let files = folder.join("root");
    if files.exists() {
        fs::remove_dir_all(&files).context("the last image's files cannot be removed")?;
    }
    let write = |path: &str, content: &[u8], mode: u32| shell::write(&files, path, content, mode);
    for name in PROGRAMS {
        let program = built.program(name);
        let content = fs::read(&program).with_context(|| format!("{} is gone", program.display()))?;
        write(&format!("usr/bin/{name}"), &content, 0o755)?;
    }
    write("etc/ssl/certs/ca-certificates.crt", authorities()?.as_bytes(), 0o644)?;
    write("etc/nsswitch.conf", NSSWITCH.as_bytes(), 0o644)?;
    write("etc/passwd", b"root:x:0:0:root:/data:/nonexistent\n", 0o644)?;
    write("etc/group", b"root:x:0:\n", 0o644)?;
    write("usr/share/doc/pondhawk/LICENSE", &fs::read(root.join("LICENSE")).context("LICENSE is gone")?, 0o644)?;
    for folder in ["data", "var/lib"] {
        fs::create_dir_all(files.join(folder)).context("cannot create the volume's folder")?;
    }
    // Not by the environment, which would win over a configuration file.
    for name in STATEFUL {
        symlink("/data", files.join("var/lib").join(name)).context("cannot lead the data directory to the volume")?;
    }
    let recipe = root.join("deploy/image/Containerfile");
    fs::copy(&recipe, folder.join("Containerfile")).with_context(|| format!("{} is gone", recipe.display()))?;
    Ok(())
}

/// The certificate authorities that origins are verified with, in one file.
fn authorities() -> Result<String> {
    let folder = fs::read_dir(AUTHORITIES)
        .with_context(|| format!("{AUTHORITIES} is not there: install ca-certificates, as Debian packages it"))?;
    let mut paths: Vec<_> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let mut all = String::new();
    for path in paths {
        let one = fs::read_to_string(&path).with_context(|| format!("{} is no certificate", path.display()))?;
        writeln!(all, "{}", one.trim_end())?;
    }
    ensure!(all.contains("BEGIN CERTIFICATE"), "{AUTHORITIES} holds no certificate");
    Ok(all)
}

/// What the image was made from.
#[derive(Default)]
struct Source {
    /// The commit, with `-dirty` where files were changed since.
    revision: Option<String>,
    /// When it was made, in seconds since 1970: the same commit makes the same image.
    time: Option<String>,
}

impl Source {
    /// Nothing is known of a tree that git does not know.
    fn of(root: &Path) -> Self {
        let git = |args: &[&str]| {
            let text = shell::output(Command::new("git").arg("-C").arg(root).args(args)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        Self {
            revision: git(&["describe", "--always", "--abbrev=40", "--match=", "--dirty"]),
            time: git(&["log", "-1", "--format=%ct"]),
        }
    }
}

fn build(folder: &Path, tag: &str, source: &Source) -> Command {
    let mut podman = Command::new("podman");
    podman.args(["build", "--quiet", "--format=oci", "--network=none", "--pull=never"]);
    podman.arg("--tag").arg(tag);
    if let Some(time) = &source.time {
        podman.arg("--timestamp").arg(time);
    }
    let labels = [
        ("title", Some("Pondhawk")),
        (
            "description",
            Some("Downloads every model and data set once for a whole cluster: a node, a scheduler, a load generator"),
        ),
        ("licenses", Some(env!("CARGO_PKG_LICENSE"))),
        ("version", Some(env!("CARGO_PKG_VERSION"))),
        ("revision", source.revision.as_deref()),
    ];
    for (key, value) in labels {
        if let Some(value) = value {
            podman.arg(format!("--label=org.opencontainers.image.{key}={value}"));
        }
    }
    podman.arg("--file").arg(folder.join("Containerfile")).arg(folder);
    podman
}

/// In bytes, unpacked.
fn size(tag: &str) -> Result<f64> {
    let text = shell::output(Command::new("podman").args(["image", "inspect", "--format={{.Size}}", tag]))?;
    text.trim().parse().with_context(|| format!("podman tells no size of {tag}"))
}

fn save(tag: &str, file: &Path) -> Result<()> {
    // podman does not write over an archive.
    if file.exists() {
        fs::remove_file(file).with_context(|| format!("cannot replace {}", file.display()))?;
    }
    shell::run(
        Command::new("podman").args(["save", "--quiet", "--format=docker-archive", "--output"]).arg(file).arg(tag),
    )?;
    println!("{:>5.1} MiB  {}", statics::mebibytes(file)?, file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &Source) -> Vec<String> {
        let command = build(Path::new("out"), "localhost/pondhawk:1", source);
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn an_image_names_the_commit_it_is_of() {
        let source = Source { revision: Some("c0ffee".to_owned()), time: Some("17".to_owned()) };
        let words = words(&source);
        assert!(words.contains(&"--label=org.opencontainers.image.revision=c0ffee".to_owned()), "{words:?}");
        assert!(words.windows(2).any(|pair| pair == ["--timestamp", "17"]), "{words:?}");
    }

    #[test]
    fn a_tree_without_git_makes_an_image_too() {
        let words = words(&Source::default());
        assert!(!words.iter().any(|word| word.contains("revision") || word.contains("timestamp")), "{words:?}");
        assert!(words.iter().any(|word| word.contains("image.version=")), "{words:?}");
    }
}
