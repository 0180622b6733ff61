//! `pondhawk ca`: shows the node's CA and the cluster's root, and brings them to clients: the system's store, variables, a bundle.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand, ValueEnum};
use pondhawk_scheduler::trust::variables::{Names, VARIABLES, Variable};

use crate::tls::bundle::{Bundle, bundle_path, write_bundle, write_trust};
use crate::tls::{Authority, AuthorityError, CaInfo, Cluster, NameError, Suffixes};

/// Shows the node's CA and makes clients trust it.
#[derive(Debug, Args)]
pub(super) struct Ca {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Show where the CA is, its fingerprint, what it may speak for and until when
    Show(Show),
    /// Put the CA into this system's trust store (as root), or take it out
    Install(Install),
    /// Print the variables for clients that do not use the system's store, as in `eval "$(pondhawk ca env)"`
    Env(Env),
    /// Write the system's roots, the CA and the cluster's root into one file, and print its path
    Bundle(BundleArgs),
    /// Print the certificate that pods trust on every node of the cluster
    Root,
    /// Write the system's roots and a cluster's root into one file, and that root into another: what the init container of a
    /// pod runs, with no node's data at hand
    Trust(Trust),
}

#[derive(Debug, Args)]
struct Show {
    /// Print the certificates themselves: the node's CA, then the cluster's root if there is one
    #[arg(long)]
    pem: bool,
}

#[derive(Debug, Args)]
struct Install {
    /// Take the CA out again
    #[arg(long)]
    uninstall: bool,
}

#[derive(Debug, Args)]
struct Env {
    #[command(flatten)]
    bundle: BundleArgs,
    /// How to print the variables
    #[arg(long, value_enum, default_value_t = Format::Shell)]
    format: Format,
}

#[derive(Debug, Args)]
struct BundleArgs {
    /// Write the bundle here [default: ca/bundle.pem in the data directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Take the roots from this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Trust {
    /// The cluster's root, PEM
    #[arg(long, value_name = "PEM", env = "POD_TRUST_ROOT", allow_hyphen_values = true)]
    root: String,
    /// The directory for bundle.pem and root.pem
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Take the roots from this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// `export NAME='value'`, with comments
    Shell,
    /// `NAME=value`, as `docker run --env-file` takes it
    Dotenv,
    /// One object
    Json,
}

/// Why a `ca` command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Suffixes(#[from] NameError),
    #[error("this node has no CA yet: the first `pondhawk up` or `pondhawk ca install` makes it")]
    None,
    #[error(
        "this node's CA does not chain to a cluster's root: join it to a scheduler (`pondhawk up --scheduler HOST:PORT --token FILE`), or trust this node's CA alone (`pondhawk ca show --pem`)"
    )]
    NoCluster,
    #[error(
        "this system's trust store is unknown (none of {0}): give clients the variables of `pondhawk ca env` instead"
    )]
    UnknownStore(String),
    #[error("cannot change {}: {source}{}", path.display(), hint(source))]
    Store { path: PathBuf, source: io::Error },
    #[error("`{command}` failed: {why}")]
    Update { command: String, why: String },
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { " (run it as root)" } else { "" }
}

/// Runs a `ca` command on the CA of `data_dir`, made now where there is none (except by `show`), and prints to `out`.
/// Warnings go to the log. Blocking.
pub(super) fn run(ca: &Ca, data_dir: &Path, suffixes: &Suffixes, out: &mut dyn Write) -> Result<(), CaError> {
    match &ca.command {
        CaCommand::Show(show) => run_show(show, data_dir, out),
        CaCommand::Install(Install { uninstall: false }) => install(&Cas::of(data_dir, suffixes)?, Path::new("/"), out),
        CaCommand::Install(Install { uninstall: true }) => uninstall(Path::new("/"), out),
        CaCommand::Env(env) => {
            let cas = Cas::of(data_dir, suffixes)?;
            let bundle = bundle_of(&cas, data_dir, &env.bundle)?;
            Ok(out.write_all(render(&variables(&bundle.path, &cas.node.path), env.format).as_bytes())?)
        }
        CaCommand::Bundle(args) => {
            let bundle = bundle_of(&Cas::of(data_dir, suffixes)?, data_dir, args)?;
            Ok(writeln!(out, "{}", bundle.path.display())?)
        }
        CaCommand::Root => {
            let cluster = Cluster::of(data_dir)?.ok_or(CaError::NoCluster)?;
            Ok(out.write_all(cluster.root.pem.as_bytes())?)
        }
        CaCommand::Trust(trust) => {
            let bundle = write_trust(&trust.root, &trust.out, trust.roots.as_deref())?;
            Ok(writeln!(out, "{}: {} certificates", bundle.path.display(), bundle.certificates)?)
        }
    }
}

/// What clients may trust.
struct Cas {
    node: CaInfo,
    cluster: Option<Cluster>,
}

impl Cas {
    /// What is there is used as it is, without its key: only root can read that.
    fn of(data_dir: &Path, suffixes: &Suffixes) -> Result<Self, CaError> {
        Ok(match Self::existing(data_dir)? {
            Some(cas) => cas,
            None => Self { node: Authority::open(data_dir, suffixes)?.info().clone(), cluster: None },
        })
    }

    fn existing(data_dir: &Path) -> Result<Option<Self>, CaError> {
        let Some(node) = CaInfo::of(data_dir)? else { return Ok(None) };
        // As at the node's start, a chain that is no good costs only itself.
        let cluster = Cluster::of(data_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "the cluster's root is left out until this node joins again");
            None
        });
        Ok(Some(Self { node, cluster }))
    }

    fn iter(&self) -> impl Iterator<Item = &CaInfo> {
        std::iter::once(&self.node).chain(self.cluster.as_ref().map(|cluster| &cluster.root))
    }
}

fn run_show(show: &Show, data_dir: &Path, out: &mut dyn Write) -> Result<(), CaError> {
    let cas = Cas::existing(data_dir)?.ok_or(CaError::None)?;
    if show.pem {
        return Ok(cas.iter().try_for_each(|ca| out.write_all(ca.pem.as_bytes()))?);
    }
    show_one(&cas.node, SystemStore::node_file, out)?;
    let Some(Cluster { root, not_after, .. }) = &cas.cluster else {
        return Ok(writeln!(out, "pods trust    this certificate; it is good for this node only")?);
    };
    writeln!(
        out,
        "in a cluster  chains to the root below until {}, renewed while the scheduler runs",
        not_after.date()
    )?;
    writeln!(out, "\ncluster root, which pods should trust: `pondhawk ca root` prints it, every node serves under it")?;
    show_one(root, SystemStore::root_file, out)
}

fn show_one(ca: &CaInfo, file: fn(&SystemStore, &Path) -> PathBuf, out: &mut dyn Write) -> Result<(), CaError> {
    let installed = system_store(Path::new("/")).map_or_else(
        |_| "unknown: this system's trust store is not known".to_owned(),
        |store| match fs::read(file(store, Path::new("/"))) {
            Ok(content) if content == ca.pem.as_bytes() => format!("yes, by {}", store.dir),
            Ok(_) => "an older one: run `pondhawk ca install`".to_owned(),
            Err(_) => "no: run `pondhawk ca install`".to_owned(),
        },
    );
    writeln!(out, "certificate   {}", ca.path.display())?;
    writeln!(out, "subject       {}", ca.subject)?;
    writeln!(out, "sha256        {}", ca.fingerprint_text())?;
    writeln!(out, "speaks for    {} and every name below", ca.permitted.join(", "))?;
    writeln!(out, "valid         {} to {}", ca.not_before.date(), ca.not_after.date())?;
    Ok(writeln!(out, "installed     {installed}")?)
}

fn bundle_of(cas: &Cas, data_dir: &Path, args: &BundleArgs) -> Result<Bundle, CaError> {
    let path = args.out.clone().unwrap_or_else(|| bundle_path(data_dir));
    let path = std::path::absolute(&path)?;
    let bundle = match write_bundle(cas.iter(), &path, args.roots.as_deref()) {
        // A user who may only read takes what the node wrote when it started.
        Err(AuthorityError::Write { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied && args.out.is_none() && path.exists() =>
        {
            Bundle { roots: PathBuf::new(), certificates: 0, changed: false, path }
        }
        result => result?,
    };
    if let Some(closed) = closed_to_others(&bundle.path) {
        tracing::warn!(
            bundle = %bundle.path.display(),
            directory = %closed.display(),
            "other users cannot reach the bundle through this directory: write it elsewhere with --out"
        );
    }
    Ok(bundle)
}

fn closed_to_others(path: &Path) -> Option<PathBuf> {
    let searchable = |dir: &Path| fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
    path.ancestors().skip(1).find(|dir| !searchable(dir)).map(Path::to_path_buf)
}

/// Each variable with its value.
fn variables(bundle: &Path, ca: &Path) -> Vec<(Variable, PathBuf)> {
    let value = |variable: &Variable| match variable.names {
        Names::Bundle => bundle.to_path_buf(),
        Names::OursAlone => ca.to_path_buf(),
    };
    VARIABLES.iter().map(|variable| (*variable, value(variable))).collect()
}

fn render(variables: &[(Variable, PathBuf)], format: Format) -> String {
    let line = |(variable, value): &(Variable, PathBuf)| {
        let value = value.to_string_lossy();
        match format {
            Format::Shell => format!("# {}\nexport {}={}\n", variable.readers, variable.name, shell_quoted(&value)),
            Format::Dotenv => format!("# {}\n{}={value}\n", variable.readers, variable.name),
            Format::Json => String::new(),
        }
    };
    match format {
        Format::Json => {
            let object = variables.iter().map(|(v, value)| (v.name.to_owned(), value.to_string_lossy().into()));
            format!("{:#}\n", serde_json::Value::Object(object.collect()))
        }
        Format::Shell | Format::Dotenv => variables.iter().map(line).collect::<String>() + NO_VARIABLE,
    }
}

const NO_VARIABLE: &str =
    "# wget and aria2c read no variable: the system's store (pondhawk ca install), or --ca-certificate\n";

fn shell_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// A distribution's way to trust one more CA.
struct SystemStore {
    dir: &'static str,
    command: &'static [&'static str],
}

/// By directory; those that other distributions also have come last.
const STORES: [SystemStore; 4] = [
    SystemStore { dir: "/etc/pki/ca-trust/source/anchors", command: &["update-ca-trust", "extract"] },
    SystemStore { dir: "/etc/ca-certificates/trust-source/anchors", command: &["update-ca-trust", "extract"] },
    SystemStore { dir: "/etc/pki/trust/anchors", command: &["update-ca-certificates"] },
    SystemStore { dir: "/usr/local/share/ca-certificates", command: &["update-ca-certificates"] },
];

fn under(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn system_store(root: &Path) -> Result<&'static SystemStore, CaError> {
    STORES
        .iter()
        .find(|store| under(root, store.dir).is_dir())
        .ok_or_else(|| CaError::UnknownStore(STORES.iter().map(|store| store.dir).collect::<Vec<_>>().join(", ")))
}

impl SystemStore {
    fn root_file(&self, root: &Path) -> PathBuf {
        // Unlike any node's, whatever its host name.
        under(root, self.dir).join("pondhawk_cluster_root.crt")
    }

    fn node_file(&self, root: &Path) -> PathBuf {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let host = host.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.', "_");
        under(root, self.dir).join(format!("pondhawk-{host}.crt"))
    }

    fn update(&self) -> Result<(), CaError> {
        let failed = |why: String| CaError::Update { command: self.command.join(" "), why };
        let output = Command::new(self.command[0]).args(&self.command[1..]).output();
        let output = output.map_err(|error| failed(format!("{error}; is the package ca-certificates installed?")))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
    }
}

fn install(cas: &Cas, root: &Path, out: &mut dyn Write) -> Result<(), CaError> {
    let store = system_store(root)?;
    put(&store.node_file(root), &cas.node, out)?;
    if let Some(cluster) = &cas.cluster {
        put(&store.root_file(root), &cluster.root, out)?;
    }
    // Also where the file was there: an earlier run may have ended between the two.
    store.update()?;
    writeln!(out, "ran {}", store.command.join(" "))?;
    Ok(out.write_all(AFTER_INSTALL.as_bytes())?)
}

fn put(file: &Path, ca: &CaInfo, out: &mut dyn Write) -> Result<(), CaError> {
    if fs::read(file).is_ok_and(|content| content == ca.pem.as_bytes()) {
        return Ok(writeln!(out, "{} is already this CA", file.display())?);
    }
    let written = fs::write(file, &ca.pem).and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(0o644)));
    written.map_err(|source| CaError::Store { path: file.to_owned(), source })?;
    Ok(writeln!(out, "wrote {}", file.display())?)
}

fn take_out(file: &Path, out: &mut dyn Write) -> Result<(), CaError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CaError::Store { path: file.to_owned(), source }),
        Ok(()) => Ok(writeln!(out, "removed {}", file.display())?),
    }
}

const AFTER_INSTALL: &str = "\
Trusted now by whatever uses the system's store: curl, wget, aria2c, git, git-lfs, Go programs, hf_transfer, hf_xet,
huggingface_hub from 2.0. Programs that run already may have to be restarted.
With CAs of their own, and in need of a variable (pondhawk ca env prints them):
  huggingface_hub before 1.0, requests    REQUESTS_CA_BUNDLE
  huggingface_hub 1.x, httpx              SSL_CERT_FILE
  Node.js                                 NODE_EXTRA_CA_CERTS
A container has a store and variables of its own: give it both.
";

fn uninstall(root: &Path, out: &mut dyn Write) -> Result<(), CaError> {
    let store = system_store(root)?;
    let file = store.node_file(root);
    if !file.exists() {
        writeln!(out, "{} is not there", file.display())?;
    }
    take_out(&file, out)?;
    take_out(&store.root_file(root), out)?;
    store.update()?;
    Ok(writeln!(out, "ran {}", store.command.join(" "))?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use pondhawk_scheduler::trust::TrustRoot;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        ca: Ca,
    }

    fn ca(data: &Path, args: &[&str]) -> Result<String, CaError> {
        let line = Line::try_parse_from([&["ca"], args].concat()).unwrap();
        let mut out = Vec::new();
        run(&line.ca, data, &Suffixes::new(["hf.co"]).unwrap(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn data_with_roots() -> (tempfile::TempDir, String) {
        let data = tempfile::tempdir().unwrap();
        let roots = data.path().join("it's roots.pem");
        let other = tempfile::tempdir().unwrap();
        let root = Authority::open(other.path(), &Suffixes::new(["example.org"]).unwrap()).unwrap();
        fs::write(&roots, &root.info().pem).unwrap();
        let roots = roots.to_str().unwrap().to_owned();
        (data, roots)
    }

    #[test]
    fn show_says_that_there_is_no_ca_yet_and_makes_none() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(ca(data.path(), &["show"]), Err(CaError::None)));
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
    }

    #[test]
    fn show_prints_what_openssl_prints() {
        let (data, roots) = data_with_roots();
        ca(data.path(), &["bundle", "--roots", &roots]).unwrap();
        let pem = ca(data.path(), &["show", "--pem"]).unwrap();
        assert_eq!(pem, fs::read_to_string(data.path().join("ca/ca.pem")).unwrap());
        let shown = ca(data.path(), &["show"]).unwrap();
        assert!(shown.contains("speaks for    hf.co and"), "{shown}");
        let path = data.path().join("ca/ca.pem");
        let openssl =
            Command::new("openssl").args(["x509", "-noout", "-sha256", "-fingerprint", "-in"]).arg(path).output();
        if let Ok(output) = openssl {
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(shown.contains(text.trim().split('=').nth(1).unwrap()), "{shown}{text}");
        }
    }

    #[test]
    fn a_pod_s_files_need_no_node() {
        let (data, roots) = data_with_roots();
        let out = data.path().join("trust");
        fs::create_dir(&out).unwrap();
        let root = fs::read_to_string(&roots).unwrap();
        let (_other, other_roots) = data_with_roots();
        let args = ["trust", "--root", &root, "--roots", &other_roots, "--out", out.to_str().unwrap()];
        let said = ca(&data.path().join("nothing here"), &args).unwrap();
        assert!(said.contains("bundle.pem: 2 certificates"), "{said}");
        assert_eq!(fs::read_to_string(out.join("root.pem")).unwrap(), root);
        assert!(fs::read_to_string(out.join("bundle.pem")).unwrap().contains(root.trim()));
        let error = ca(data.path(), &["trust", "--root", "x", "--roots", &roots, "--out", "/"]).unwrap_err();
        assert!(error.to_string().contains("no certificate"), "{error}");
    }

    #[test]
    fn a_shell_evaluates_the_variables_whatever_is_in_the_path() {
        let (data, roots) = data_with_roots();
        let dir = data.path().join("it's here");
        let script = ca(&dir, &["env", "--roots", &roots]).unwrap();
        let command = format!("{script}printf %s \"$SSL_CERT_FILE\"");
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let bundle = String::from_utf8(output.stdout).unwrap();
        assert_eq!(Path::new(&bundle), dir.join("ca/bundle.pem"));
        assert_eq!(fs::read_to_string(bundle).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    }

    #[test]
    fn json_and_dotenv_carry_the_same_variables() {
        let (data, roots) = data_with_roots();
        let out = data.path().join("bundle.pem");
        let args = ["env", "--roots", &roots, "--out", out.to_str().unwrap(), "--format"];
        let json = ca(data.path(), &[&args[..], &["json"]].concat()).unwrap();
        let object: serde_json::Map<_, _> = serde_json::from_str(&json).unwrap();
        assert_eq!(object["REQUESTS_CA_BUNDLE"], out.to_str().unwrap());
        assert_eq!(object["NODE_EXTRA_CA_CERTS"], data.path().join("ca/ca.pem").to_str().unwrap());
        let dotenv = ca(data.path(), &[&args[..], &["dotenv"]].concat()).unwrap();
        for (name, value) in &object {
            assert!(dotenv.contains(&format!("\n{name}={}\n", value.as_str().unwrap())), "{dotenv}");
        }
    }

    fn joined() -> (tempfile::TempDir, String, TrustRoot) {
        let ((data, roots), state) = (data_with_roots(), tempfile::tempdir().unwrap());
        let suffixes = Suffixes::new(["hf.co"]).unwrap();
        let authority = Authority::open(data.path(), &suffixes).unwrap();
        let root = TrustRoot::open(state.path(), &suffixes).unwrap();
        let chain = root.cross_sign(&authority.csr().unwrap(), ["hf.co"], time::OffsetDateTime::now_utc());
        authority.adopt(&chain.unwrap()).unwrap();
        (data, roots, root)
    }

    #[test]
    fn in_a_cluster_the_root_is_shown_printed_and_bundled_beside_the_node_s_ca() {
        let (data, roots, root) = joined();
        let own = fs::read_to_string(data.path().join("ca/ca.pem")).unwrap();
        assert_eq!(ca(data.path(), &["root"]).unwrap(), root.info().pem);
        assert_eq!(ca(data.path(), &["show", "--pem"]).unwrap(), own.clone() + &root.info().pem);
        let shown = ca(data.path(), &["show"]).unwrap();
        let (node, cluster) = shown.split_once("cluster root, which pods should trust").unwrap();
        assert!(cluster.contains(&root.info().fingerprint_text()) && node.contains("sha256"), "{shown}");
        let bundle = ca(data.path(), &["bundle", "--roots", &roots]).unwrap();
        let bundle = fs::read_to_string(bundle.trim()).unwrap();
        assert!(bundle.contains(own.trim()) && bundle.contains(root.info().pem.trim()));
        assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 3);
    }

    #[test]
    fn outside_a_cluster_there_is_no_root_and_a_broken_chain_is_left_out() {
        let (data, roots) = data_with_roots();
        ca(data.path(), &["bundle", "--roots", &roots]).unwrap();
        assert!(matches!(ca(data.path(), &["root"]), Err(CaError::NoCluster)));
        assert!(ca(data.path(), &["show"]).unwrap().contains("good for this node only"));
        let (data, roots, _root) = joined();
        fs::write(data.path().join("ca/cluster.pem"), "nothing").unwrap();
        ca(data.path(), &["show"]).unwrap();
        let bundle = ca(data.path(), &["bundle", "--roots", &roots]).unwrap();
        assert_eq!(fs::read_to_string(bundle.trim()).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
        assert!(ca(data.path(), &["root"]).unwrap_err().to_string().contains("not usable"));
    }

    #[test]
    fn a_system_without_a_known_store_is_told_what_works_anyway() {
        let (data, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cas = Cas::of(data.path(), &Suffixes::new(["hf.co"]).unwrap()).unwrap();
        let error = install(&cas, root.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("pondhawk ca env"), "{error}");
    }
}
