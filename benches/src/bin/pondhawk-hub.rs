//! The Hub-shaped origin as a program, with a DNS server that names it.

#![deny(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use pondhawk_bench::{
    hub::{Access, CdnStyle, Content, Fault, Hub, HubOptions, Names, Rates, XetShape},
    lab::{DnsRecords, DnsServer},
};

/// Plays huggingface.co and its CDN for tests: signed URLs, ranges, faults, rate limits, counters.
///
/// Control (JSON) on any listener: GET /_hub/{stats,objects,faults,limits,ca}, POST /_hub/{faults,limits,reset,files}, DELETE /_hub/faults.
#[derive(Parser)]
struct Arguments {
    /// Address and port with TLS; may be repeated.
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Address and port without TLS.
    #[arg(long)]
    plain: Option<SocketAddr>,
    /// Address and port of a DNS server that gives the --listen addresses for the Hub's names.
    #[arg(long)]
    dns: Option<SocketAddr>,
    /// NAME=ADDRESS to be answered by --dns as well; may be repeated.
    #[arg(long, value_parser = pair)]
    dns_record: Vec<(String, String)>,
    /// ALIAS=NAME to be answered by --dns as a CNAME; may be repeated.
    #[arg(long, value_parser = pair)]
    dns_alias: Vec<(String, String)>,
    /// OWNER/NAME/PATH:SIZE[:SEED], generated content; SIZE may end in KiB, MiB, GiB; may be repeated.
    #[arg(long)]
    file: Vec<GeneratedFile>,
    /// OWNER/NAME/PATH=TEXT, a small file; may be repeated.
    #[arg(long, value_parser = pair)]
    text: Vec<(String, String)>,
    /// OWNER/NAME/PATH=FILE, a file on disk; may be repeated.
    #[arg(long, value_parser = pair)]
    from_disk: Vec<(String, String)>,
    /// OWNER/NAME[:CHUNKS_IN_A_XORB:CHUNKS_IN_A_TERM], a repository in Xet's storage; may be repeated.
    #[arg(long)]
    xet: Vec<XetRepo>,
    /// OWNER/NAME=TOKEN, a repository that needs a bearer token; may be repeated.
    #[arg(long, value_parser = pair)]
    private: Vec<(String, String)>,
    /// Where the CA certificate is written.
    #[arg(long)]
    ca_out: Option<PathBuf>,
    /// Bytes a second for each connection (K, M, G with iB allowed).
    #[arg(long, value_parser = size)]
    limit_connection: Option<u64>,
    /// Bytes a second in total.
    #[arg(long, value_parser = size)]
    limit_total: Option<u64>,
    /// A fault in JSON, e.g. {"kind":{"kind":"cut","after":1000},"times":1}; may be repeated.
    #[arg(long, value_parser = fault)]
    fault: Vec<Fault>,
    /// Seconds that signed URLs are good for.
    #[arg(long, default_value_t = 3600)]
    url_lifetime: u64,
    /// Port in redirects to the CDN; that of the first --listen by default.
    #[arg(long)]
    cdn_port: Option<u16>,
    /// Scheme in redirects to the CDN.
    #[arg(long, default_value = "https", value_parser = ["https", "http"])]
    cdn_scheme: String,
    /// How much generated content is kept in memory.
    #[arg(long, default_value = "64MiB", value_parser = size)]
    keep_in_memory: u64,
    /// Files of at least this size are on the CDN, smaller ones come from the Hub itself.
    #[arg(long, default_value = "64KiB", value_parser = size)]
    large_from: u64,
    /// Threads that serve.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[derive(Clone)]
struct GeneratedFile {
    name: String,
    len: u64,
    seed: u64,
}

impl std::str::FromStr for GeneratedFile {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let (Some(name), Some(len), seed, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            bail!("expected OWNER/NAME/PATH:SIZE[:SEED]");
        };
        let seed = seed.map_or(Ok(1), |seed| seed.parse().context("the seed is a number"))?;
        Ok(Self { name: name.to_owned(), len: size(len)?, seed })
    }
}

#[derive(Clone)]
struct XetRepo {
    name: String,
    shape: XetShape,
}

impl std::str::FromStr for XetRepo {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let shape = match parts[1..] {
            [] => XetShape::default(),
            [xorb, term] => XetShape { xorb_chunks: xorb.parse()?, term_chunks: term.parse()? },
            _ => bail!("expected OWNER/NAME or OWNER/NAME:CHUNKS_IN_A_XORB:CHUNKS_IN_A_TERM"),
        };
        Ok(Self { name: parts[0].to_owned(), shape })
    }
}

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    let arguments = Arguments::parse();
    ensure!(
        !arguments.listen.is_empty() || arguments.plain.is_some() || arguments.dns.is_some(),
        "nothing to do: give --listen, --plain or --dns"
    );
    let hub = start_hub(&arguments)?;
    let dns = arguments.dns.map(|address| start_dns(address, &arguments)).transpose()?;
    if let Some(hub) = &hub {
        println!("hub ready: tls {:?}, plain {:?}", hub.tls_addresses(), hub.plain_address());
    }
    if let Some(dns) = &dns {
        println!("dns ready: {}", dns.address());
    }
    wait_for_end()
}

fn start_hub(arguments: &Arguments) -> Result<Option<Hub>> {
    if arguments.listen.is_empty() && arguments.plain.is_none() {
        return Ok(None);
    }
    let hub = Hub::start(HubOptions {
        listen: arguments.listen.clone(),
        plain_listen: arguments.plain,
        cdn_port: arguments.cdn_port,
        cdn_scheme: arguments.cdn_scheme.clone(),
        url_lifetime: Duration::from_secs(arguments.url_lifetime),
        keep_in_memory: arguments.keep_in_memory,
        large_from: arguments.large_from,
        threads: arguments.threads,
        ..HubOptions::default()
    })?;
    for repo in &arguments.xet {
        hub.set_style(&repo.name, CdnStyle::Xet(repo.shape));
    }
    add_files(&hub, arguments)?;
    for (repo, token) in &arguments.private {
        hub.set_access(repo, Access::Private(token.clone()));
    }
    hub.limits().set(Rates { connection: arguments.limit_connection, total: arguments.limit_total });
    arguments.fault.iter().for_each(|fault| hub.faults().add(fault.clone()));
    if let Some(path) = &arguments.ca_out {
        hub.write_ca(path)?;
    }
    Ok(Some(hub))
}

fn add_files(hub: &Hub, arguments: &Arguments) -> Result<()> {
    let generated = arguments.file.iter().map(|file| (&file.name, Content::seeded(file.len, file.seed)));
    let texts = arguments.text.iter().map(|(name, text)| (name, Content::bytes(text.clone())));
    let on_disk = arguments.from_disk.iter().map(|(name, path)| (name, Content::Path(path.into())));
    for (name, content) in generated.chain(texts).chain(on_disk) {
        let owner_end = name.find('/').context("a file is OWNER/NAME/PATH")?;
        let repo_end = name[owner_end + 1..].find('/').context("a file is OWNER/NAME/PATH")? + owner_end + 1;
        let sha256 = hub.add_file(&name[..repo_end], "main", &name[repo_end + 1..], content)?;
        println!("{sha256}  {name}");
    }
    Ok(())
}

fn start_dns(address: SocketAddr, arguments: &Arguments) -> Result<DnsServer> {
    let names = Names::default();
    let all = names.cdn.iter().map(String::as_str).chain([names.hub.as_str()]);
    let addresses: Vec<IpAddr> = arguments.listen.iter().map(SocketAddr::ip).collect();
    let mut records = DnsRecords::new(all, &addresses);
    for (name, address) in &arguments.dns_record {
        let address = address.parse().with_context(|| format!("{address} is no address"))?;
        records.addresses.entry(name.to_lowercase()).or_default().push(address);
    }
    for (alias, name) in &arguments.dns_alias {
        records.addresses.remove(&alias.to_lowercase());
        records.aliases.insert(alias.to_lowercase(), name.to_lowercase());
    }
    DnsServer::start(address, records).with_context(|| format!("cannot answer DNS on {address}"))
}

fn wait_for_end() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    })
}

fn pair(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').context("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn fault(text: &str) -> Result<Fault> {
    Ok(serde_json::from_str(text)?)
}

fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        unit => bail!("{unit} is none of KiB, MiB, GiB"),
    };
    let number: u64 = digits.parse().context("a size is a number with KiB, MiB, GiB or nothing")?;
    number.checked_mul(1 << shift).context("too large")
}
