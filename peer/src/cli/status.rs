//! `pondhawk status`: how the node is.

use clap::Args;

use super::{CliError, Node, client, human};
use crate::admin;

/// The command's arguments.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print what the node says, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: Node,
}

impl Status {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let status: admin::Status = client::get(&self.node.place(), "/v1/status")?;
        if self.json {
            return Ok(super::json(&status));
        }
        let width = 14;
        let lines = lines(&status);
        let line = |(name, text): &(&str, String)| format!("{name:<width$}{}\n", human::printable(text));
        Ok(lines.iter().map(line).collect())
    }
}

fn lines(status: &admin::Status) -> Vec<(&'static str, String)> {
    let (store, totals) = (&status.store, &status.totals);
    let served = totals.hits + totals.joined;
    let mut lines = vec![
        (
            "node",
            format!("pondhawk {}, process {}, up {}", status.version, status.pid, human::age(status.uptime_seconds)),
        ),
        ("ready", if status.unready.is_empty() { "yes".into() } else { format!("no: {}", status.unready.join("; ")) }),
        ("interception", interception(&status.interception)),
        ("proxy", status.proxy.map_or("off".into(), |address| address.to_string())),
        (
            "store",
            format!(
                "{} tasks, {} of {} in {}",
                store.tasks,
                human::size(store.bytes),
                human::size(store.quota),
                store.dir
            ),
        ),
        (
            "requests",
            format!("{}: {} hits, {} joined, {} misses", totals.requests, totals.hits, totals.joined, totals.misses),
        ),
        ("hit ratio", human::percent(served, served + totals.misses)),
        (
            "bytes",
            format!(
                "{} from origins, {} from peers, {} from the store, {} to clients",
                human::size(totals.origin_bytes),
                human::size(totals.peer_bytes),
                human::size(totals.store_bytes),
                human::size(totals.client_bytes)
            ),
        ),
        ("connections", format!("{} open, {} shards", status.connections, status.shards)),
    ];
    lines.extend(status.degraded.iter().map(|why| ("degraded", why.clone())));
    let preheats = &status.preheats;
    if *preheats != admin::PreheatCounts::default() {
        let admin::PreheatCounts { waiting, running, done, failed } = preheats;
        lines.push(("preheats", format!("{running} under way, {waiting} waiting, {done} done, {failed} failed")));
    }
    lines.extend(swarm(status.swarm.as_ref()));
    lines.extend(list("decisions", status.interception.decisions.iter()));
    lines.extend(list("kernel", status.kernel.iter()));
    lines
}

fn swarm(swarm: Option<&admin::SwarmReport>) -> Vec<(&'static str, String)> {
    let Some(swarm) = swarm else { return vec![("swarm", "off: nothing is shared".to_owned())] };
    let error = swarm.error.as_ref().filter(|_| swarm.session != "up").map(|error| format!(": {error}"));
    let mut lines = vec![
        (
            "swarm",
            format!("{}, scheduler {} ({}{})", swarm.name, swarm.scheduler, swarm.session, error.unwrap_or_default()),
        ),
        ("sent", format!("{} to peers, {} pieces under way", human::size(swarm.sent_bytes), swarm.uploads)),
    ];
    let link = |link: &admin::LinkReport| {
        let (bytes, rate) = (human::size(link.bytes), human::size(link.rate));
        ("link", format!("{} at {}, {bytes} fetched, {rate}/s", link.peer, link.address))
    };
    lines.extend(swarm.links.iter().map(link));
    lines
}

fn list<V: std::fmt::Display>(
    name: &'static str,
    pairs: impl ExactSizeIterator<Item = (impl std::fmt::Display, V)>,
) -> Option<(&'static str, String)> {
    let any = pairs.len() > 0;
    any.then(|| (name, pairs.map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(", ")))
}

fn interception(interception: &admin::Interception) -> String {
    match (interception.on, &interception.why_off) {
        (false, why) => format!("off: {}", why.as_deref().unwrap_or("switched off")),
        (true, _) => {
            let cgroup = interception.cgroup.as_deref().unwrap_or("unknown");
            let port = interception.port.map_or_else(|| "?".into(), |port| port.to_string());
            format!("on ({}), cgroup {cgroup}, to port {port}", interception.mode)
        }
    }
}
