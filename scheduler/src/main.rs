//! The `pondhawk-scheduler` binary.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pondhawk_scheduler::authority::{Authority, TokenTerms};
use pondhawk_scheduler::hosts::{HUB_HOSTS, Suffixes};
use pondhawk_scheduler::kube::{self, StateFlags};
use pondhawk_scheduler::page::{self, Page};
use pondhawk_scheduler::registry::command::{Allow, Deny, Forget, RegistryCommand};
use pondhawk_scheduler::service::{Options, Scheduler};
use pondhawk_scheduler::trace::{self, Exporter, Tracer};
use pondhawk_scheduler::trust::RootInfo;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Tells the nodes of a Pondhawk cluster about each other, and which of them fetches what from an origin.
///
/// It moves no data and needs little memory: about 300 bytes for each task of each node. What it knows of the cluster is
/// lost when it stops, and told again by the nodes within seconds; only DATA_DIR (the cluster's CA) has to be kept.
#[derive(Parser)]
#[command(name = "pondhawk-scheduler", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT.
    Up(Box<Up>),
    /// Print the certificate that pods trust on every node: the cluster's trust root, PEM.
    Ca(Ca),
    /// Print a join token, for a node's `pondhawk up --scheduler HOST:PORT --token FILE`.
    ///
    /// By default it is good for one node: a copy of it is worth nothing once that node has joined. Under which name it joins is the
    /// node's choice, unless --name says it, but never one that another node's key owns. Several schedulers that do not share
    /// their state (see --kube-state-secret) count the uses of a token each for itself. Works while the scheduler runs.
    Token(Token),
    /// Release a node's name: the next node that joins under it with a token owns it.
    ///
    /// For a machine whose data directory, and with it its key, was lost. The key that had the name loses its session at once and
    /// gets no other under it; `deny` keeps it out of the cluster altogether.
    Forget(Managed<Forget>),
    /// Keep a node out: its sessions and its connections with other nodes end within a minute, and it gets no others.
    ///
    /// By name, the key that owns the name is denied with it. It lasts until `allow`. Of several schedulers that do not share
    /// their state, each has to be told; a node obeys all of its schedulers.
    Deny(Managed<Deny>),
    /// Lift a denial.
    Allow(Managed<Allow>),
    /// List who is denied: name, SHA-256 of the key, since when, why.
    Denied(Managed<Plain>),
    /// List the names that belong to a key: name, SHA-256 of the key, until when.
    Peers(Managed<Plain>),
    /// Print the token with which people look at the page, at http://ADDRESS:65101.
    ///
    /// Whoever has it sees every node's name, address and labels, and what the cluster moves, and can have nodes hold tasks that others hold.
    PageToken(PageToken),
}

/// A command about the registry of names, and where that is.
#[derive(Args)]
struct Managed<T: Args> {
    #[command(flatten)]
    command: T,
    #[command(flatten)]
    state: State,
    #[command(flatten)]
    shared: StateFlags,
}

/// A command that needs nothing else.
#[derive(Args)]
struct Plain {}

#[derive(Args)]
struct State {
    /// Directory of the cluster's CA and the tokens' secret. Made where there is none; keep it, and keep it private.
    #[arg(long, env = "PONDHAWK_SCHEDULER_DATA_DIR", default_value = "/var/lib/pondhawk-scheduler")]
    data_dir: PathBuf,
}

#[derive(Args)]
struct Up {
    /// Where nodes connect: gRPC over mutual TLS.
    #[arg(long, env = "PONDHAWK_SCHEDULER_LISTEN", default_value = "0.0.0.0:65100")]
    listen: SocketAddr,
    #[command(flatten)]
    state: State,
    /// Labels that say where a node stands, coarse to fine: nodes that share more of them are linked first.
    #[arg(long, value_delimiter = ',', default_value = "zone,rack")]
    labels: Vec<String>,
    /// Connections to one origin host at once, over all nodes.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    origin_connections: u32,
    /// Milliseconds between two reports of a node.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(50..=10_000))]
    progress: u64,
    /// What the nodes may intercept: a name stands for itself and for every name below it. The trust root is constrained
    /// to them when it is made; a node that asks for others is not signed.
    #[arg(long, value_name = "HOSTS", env = "PONDHAWK_SCHEDULER_HOSTS", value_delimiter = ',', default_values = HUB_HOSTS)]
    hosts: Vec<String>,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    trace: TraceArgs,
    /// What is logged, as in RUST_LOG: `info`, `debug`, `pondhawk_scheduler=debug`.
    #[arg(long, env = "PONDHAWK_SCHEDULER_LOG", default_value = "info")]
    log: String,
    /// How it is logged.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    #[command(flatten)]
    kube: kube::Flags,
}

#[derive(Args)]
struct PageArgs {
    /// Where the page, metrics and health are: address:port, or off. Plain HTTP, and so for this machine only by default:
    /// elsewhere the page's token travels unencrypted unless something in front speaks TLS.
    #[arg(long, value_name = "ADDRESS", env = "PONDHAWK_SCHEDULER_PAGE", default_value = "127.0.0.1:65101", value_parser = page_address)]
    page: PageAddress,
    /// A file with the page's token, read at each use. Without it one is made in DATA_DIR: see `page-token`.
    #[arg(long, value_name = "FILE", env = "PONDHAWK_SCHEDULER_PAGE_TOKEN_FILE")]
    page_token_file: Option<PathBuf>,
    /// Ask for the page's token at /metrics, too: `Authorization: Bearer TOKEN`. /healthz and /readyz stay open.
    #[arg(long, env = "PONDHAWK_SCHEDULER_METRICS_NEED_TOKEN")]
    metrics_need_token: bool,
}

#[derive(Args)]
struct TraceArgs {
    /// Where traces go, by OTLP over gRPC: http://HOST:PORT or https://HOST:PORT. Without it nothing is traced. What nodes trace is,
    /// with them: how long they wait for leases and for other nodes to fetch from.
    #[arg(long, value_name = "URL", env = "PONDHAWK_SCHEDULER_TRACE_ENDPOINT", value_parser = trace_endpoint)]
    trace_endpoint: Option<String>,
    /// The share of the nodes' traces that is, from 0 to 1.
    #[arg(long, value_name = "SHARE", env = "PONDHAWK_SCHEDULER_TRACE_SAMPLE", default_value_t = 1.0, value_parser = share)]
    trace_sample: f64,
}

/// An address, or `off`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PageAddress(Option<SocketAddr>);

#[derive(Args)]
struct PageToken {
    #[command(flatten)]
    state: State,
    /// Make another one first: the one of before and all cookies are worthless at once, also for a scheduler that runs.
    #[arg(long)]
    rotate: bool,
    #[command(flatten)]
    shared: StateFlags,
}

#[derive(Args)]
struct Ca {
    #[command(flatten)]
    state: State,
    /// Say what it is instead: fingerprint, what it may speak for, until when
    #[arg(long)]
    text: bool,
}

#[derive(Args)]
struct Token {
    #[command(flatten)]
    state: State,
    /// How long it is good for: a number with s, m, h or d.
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: Duration,
    /// Only a node of this name can join with it.
    #[arg(long, value_name = "NODE")]
    name: Option<String>,
    /// How many nodes can join with it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    uses: u32,
    /// Any number of nodes can join with it until it expires: for machines that are set up alike, where it is kept as a secret.
    #[arg(long, conflicts_with = "uses")]
    reusable: bool,
    /// Make all tokens of before worthless first. Nodes that have joined stay.
    #[arg(long)]
    rotate: bool,
    #[command(flatten)]
    shared: StateFlags,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(up) => run(*up),
        Command::Token(token) => print_token(&token),
        Command::Ca(ca) => print_ca(&ca),
        Command::PageToken(token) => print_page_token(&token),
        Command::Forget(of) => manage(&RegistryCommand::Forget(of.command), &of.state, &of.shared),
        Command::Deny(of) => manage(&RegistryCommand::Deny(of.command), &of.state, &of.shared),
        Command::Allow(of) => manage(&RegistryCommand::Allow(of.command), &of.state, &of.shared),
        Command::Denied(of) => manage(&RegistryCommand::Denied, &of.state, &of.shared),
        Command::Peers(of) => manage(&RegistryCommand::Peers, &of.state, &of.shared),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pondhawk-scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(up: Up) -> anyhow::Result<()> {
    log(&up.log, up.log_format)?;
    let mut options = Options { progress: Duration::from_millis(up.progress), ..Options::default() };
    options.hosts = Suffixes::new(&up.hosts).context("--hosts")?;
    options.cluster.label_keys.clone_from(&up.labels);
    options.cluster.origin_connections = up.origin_connections;
    let (tracer, exporter) = start_traces(&up.trace)?;
    options.tracer = tracer;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let served = runtime.block_on(serve(up, options));
    exporter.into_iter().for_each(Exporter::finish);
    served
}

async fn serve(up: Up, options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stop = Box::pin(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    });
    let dir: &Path = &up.state.data_dir;
    let shared = tokio::select! {
        shared = up.kube.share(dir, &options.hosts) => shared?,
        () = &mut stop => return Ok(()),
    };
    let scheduler = Scheduler::open(dir, options)?;
    let page_options =
        page::Options { metrics_need_token: up.page.metrics_need_token, token_file: up.page.page_token_file };
    let page = match up.page.page.0 {
        Some(address) => Some((Page::open(dir, scheduler.viewer(), page_options)?, address)),
        None => None,
    };
    let listener = TcpListener::bind(up.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", up.listen))?;
    up.kube.start(&scheduler, dir, shared).await?;
    if let Some((page, address)) = page {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("cannot listen on {address} (--page names another, or off)"))?;
        tokio::spawn(page.serve(listener));
    }
    Ok(scheduler.serve(listener, stop).await?)
}

fn start_traces(wanted: &TraceArgs) -> anyhow::Result<(Tracer, Option<Exporter>)> {
    let Some(endpoint) = wanted.trace_endpoint.clone() else { return Ok(Default::default()) };
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (sample, service) = (wanted.trace_sample, "pondhawk-scheduler");
    let settings = trace::Settings { endpoint, sample, follow: false, service, instance };
    let (tracer, exporter) = trace::start(&settings).context("--trace-endpoint")?;
    Ok((tracer, Some(exporter)))
}

fn trace_endpoint(text: &str) -> Result<String, String> {
    trace::check_endpoint(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn print_token(token: &Token) -> anyhow::Result<()> {
    let dir: &Path = &token.state.data_dir;
    // Made here by mistake, a CA would be another cluster's.
    if !dir.join("swarm-ca.pem").exists() {
        bail!("{} has no cluster: start the scheduler once, or name its --data-dir", dir.display());
    }
    let authority = Authority::open(dir)?;
    if token.rotate {
        token.shared.renew(dir, &Authority::rotate_tokens)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let terms = TokenTerms { name: token.name.clone(), uses: (!token.reusable).then_some(token.uses) };
    let made = authority.limited_token(now, token.ttl, &terms)?;
    writeln!(io::stdout(), "{made}").context("cannot write the token")
}

fn print_page_token(token: &PageToken) -> anyhow::Result<()> {
    let dir = &token.state.data_dir;
    if !dir.join("swarm-ca.pem").exists() {
        bail!("{} has no cluster: start the scheduler once, or name its --data-dir", dir.display());
    }
    if token.rotate {
        token.shared.renew(dir, &|dir| page::token(dir, true).map(drop))?;
    }
    writeln!(io::stdout(), "{}", page::token(dir, false)?).context("cannot write the token")
}

fn manage(command: &RegistryCommand, state: &State, shared: &StateFlags) -> anyhow::Result<()> {
    let text = command.run(&state.data_dir, Some(shared))?;
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

fn print_ca(ca: &Ca) -> anyhow::Result<()> {
    let dir = &ca.state.data_dir;
    let Some(root) = RootInfo::of(dir)? else {
        bail!("{} has no trust root: start the scheduler once, or name its --data-dir", dir.display());
    };
    let text = match ca.text {
        false => root.pem,
        true => format!(
            "certificate   {}\nsubject       {}\nsha256        {}\nspeaks for    {} and every name below\nvalid         {} to {}\n",
            root.path.display(),
            root.subject,
            root.fingerprint_text(),
            root.permitted,
            root.not_before.date(),
            root.not_after.date()
        ),
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write the certificate")
}

fn log(level: &str, format: Format) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("--log {level:?} is no filter"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        Format::Text => lines.with_ansi(io::stderr().is_terminal()).init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
    Ok(())
}

fn page_address(text: &str) -> Result<PageAddress, String> {
    match text {
        "off" => Ok(PageAddress(None)),
        _ => text.parse().map(|address| PageAddress(Some(address))).map_err(|_| "an address:port, or off".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1".to_owned())
}

/// `90s`, `15m`, `24h`, `7d`; at most a year.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("a number with s, m, h or d, such as 24h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a number with s, m, h or d, such as 24h".to_owned())?;
    let seconds = number.saturating_mul(unit);
    if !(1..=365 * 86_400).contains(&seconds) {
        return Err("between a second and a year".to_owned());
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_a_number_with_a_unit() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        for bad in ["", "h", "24", "24y", "0s", "-1h", "400d", "1€"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_page_has_an_address_or_is_off() {
        assert_eq!(page_address("off"), Ok(PageAddress(None)));
        assert_eq!(page_address("[::1]:65101"), Ok(PageAddress(Some("[::1]:65101".parse().unwrap()))));
        assert!(page_address("65101").is_err() && page_address("localhost:65101").is_err());
    }

    #[test]
    fn traces_go_to_a_bare_address_and_a_share_is_of_one() {
        assert!(trace_endpoint("http://127.0.0.1:4317").is_ok() && trace_endpoint("https://otel.example:4317").is_ok());
        for bad in
            ["", "127.0.0.1:4317", "http://h", "http://h:1/v1/traces", "http://h:1?a", "ftp://h:1", "http://u@h:1"]
        {
            assert!(trace_endpoint(bad).is_err(), "{bad}");
        }
        assert_eq!((share("0.5"), share("1")), (Ok(0.5), Ok(1.0)));
        assert!(share("1.5").is_err() && share("-1").is_err() && share("NaN").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
