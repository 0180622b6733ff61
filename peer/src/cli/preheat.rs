//! `pondhawk preheat`: has the node, or many nodes, fetch files before anybody asks for them.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, ValueEnum};
use tokio::task::block_in_place;

use super::{
    CliError, Node, client,
    get::{
        GetError, Listing, Patterns, Rights,
        progress::Progress,
        remote::{self, Place},
    },
    human,
};
use crate::admin::{self, PreheatScope, PreheatTaken, PreheatWanted};

/// Between two looks at what the node does, and two tries while it has too much to do.
const LOOK: Duration = Duration::from_millis(500);

const EXIT_CODES: &str = "\
Exit codes:
  0  the node has taken everything; with --wait, has it in its store
  1  something failed; the output says what
  2  used wrongly
  3  no node answers, or the Hub does not have it for this user: see HF_TOKEN

The Hub is asked with the token from here; the node hears signed URLs, and never the token. Files that the Hub serves
itself (the small ones) are kept by no node and are left out.

With --scope seeds or all this node reads each file from the origin, once, and other nodes have it from there: they hear
the hash in its name, by the scheduler, and no URL. They serve it to clients who have a URL of their own for it.";

/// The command's arguments.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Preheat {
    /// URLs, or hf://[datasets/|spaces/]owner/repo[@revision][/path]
    #[arg(value_name = "URL|hf://...", required = true)]
    what: Vec<String>,
    #[command(flatten)]
    patterns: Patterns,
    #[command(flatten)]
    rights: Rights,
    /// Pin them when they are there
    #[arg(long)]
    pin: bool,
    /// Which nodes are to hold them: this one, or it and the others named
    #[arg(long, value_enum, default_value_t = Reach::This, value_name = "NODES")]
    scope: Reach,
    /// Of those, only nodes with this label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Of those, so many besides this one: seed peers first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Wait until they are in the store, of every node that is to hold them
    #[arg(short, long)]
    wait: bool,
    /// Print what the node says of each, as a JSON list
    #[arg(long)]
    json: bool,
    /// Neither progress nor notes
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    node: Node,
}

/// Which nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reach {
    /// This node alone
    This,
    /// Seed peers
    Seeds,
    /// Every node of the cluster
    All,
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is expected")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Preheat {
    /// The other nodes that are meant. A label or a count speaks of other nodes, whatever the scope says.
    fn nodes(&self) -> Option<PreheatScope> {
        let others = self.scope != Reach::This || !self.label.is_empty() || self.count.is_some();
        others.then(|| PreheatScope {
            seeds: self.scope == Reach::Seeds,
            labels: self.label.iter().cloned().collect(),
            count: self.count.unwrap_or_default(),
        })
    }

    pub(super) fn run(&self) -> Result<String, CliError> {
        let runtime = super::get::runtime()?;
        let progress = Progress::new(self.quiet);
        let outcome = runtime.block_on(self.work(&progress));
        progress.end();
        runtime.shutdown_background();
        outcome
    }

    async fn work(&self, progress: &Progress) -> Result<String, CliError> {
        // Without a node there is nobody to ask the Hub for.
        let _: admin::Status = block_in_place(|| client::get(&self.node.place(), "/v1/status"))?;
        let (mut taken, mut on_hub, mut refused) = (BTreeMap::new(), 0, Vec::new());
        for what in &self.what {
            let found = remote::places(what, &self.rights, &self.patterns, progress).await;
            let found = found.map_err(|error| CliError::Get { done: self.output(&taken), error })?;
            on_hub += found.on_hub;
            refused.extend(found.refused);
            for place in found.places {
                let preheat = self.hand_over(place).await?;
                taken.insert(preheat.id, preheat);
            }
        }
        if on_hub > 0 {
            progress.note(&format!("{on_hub} files that the Hub serves itself are left out"));
        }
        if self.wait {
            self.see_through(&mut taken, progress).await?;
        }
        let failed = taken.values().filter(|preheat| preheat.state == "failed").count();
        let done = self.output(&taken);
        match failed {
            0 => match Listing::refusal(refused) {
                Ok(()) => Ok(done),
                Err(error) => Err(CliError::Get { done, error }),
            },
            n => Err(CliError::Partly { done, message: format!("{n} of {} files failed", taken.len()) }),
        }
    }

    /// Gives the node one file, as soon as it takes it.
    async fn hand_over(&self, place: Place) -> Result<admin::Preheat, CliError> {
        let wanted =
            PreheatWanted { pin: self.pin, nodes: self.nodes(), ..PreheatWanted::of(&place.url, &place.lines) };
        let admin = self.node.place();
        loop {
            let taken = block_in_place(|| client::post(&admin, "/v1/preheats", &wanted))?;
            if let Some(PreheatTaken { id }) = taken {
                let label = crate::task::id::label(&place.url);
                return Ok(admin::Preheat { id, label, state: "waiting".to_owned(), ..admin::Preheat::default() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Follows what was taken to its end.
    async fn see_through(
        &self,
        taken: &mut BTreeMap<u64, admin::Preheat>,
        progress: &Progress,
    ) -> Result<(), CliError> {
        let bar = progress.file(&format!("{} files", taken.len()), None);
        let admin = self.node.place();
        loop {
            let told: Vec<admin::Preheat> = block_in_place(|| client::get(&admin, "/v1/preheats"))?;
            let mut told: BTreeMap<_, _> = told.into_iter().map(|preheat| (preheat.id, preheat)).collect();
            for preheat in taken.values_mut().filter(|preheat| !is_over(preheat)) {
                // A node that was started anew knows nothing of it.
                *preheat = told.remove(&preheat.id).filter(|now| now.label == preheat.label).unwrap_or_else(|| {
                    let error = Some("the node knows nothing of it any more".to_owned());
                    admin::Preheat { state: "failed".to_owned(), error, ..preheat.clone() }
                });
            }
            bar.expect(taken.values().map(|preheat| preheat.bytes).sum());
            bar.at(taken.values().map(|preheat| preheat.held_bytes).sum());
            if taken.values().all(is_over) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn output(&self, taken: &BTreeMap<u64, admin::Preheat>) -> String {
        if self.json {
            return super::json(&taken.values().collect::<Vec<_>>());
        }
        let row = |preheat: &admin::Preheat| {
            let size = if preheat.bytes > 0 { human::size(preheat.bytes) } else { "-".to_owned() };
            let nodes = preheat.nodes.map(|nodes| format!(", on {} of {} other nodes", nodes.complete, nodes.peers));
            let error = preheat.error.as_ref().map(|error| format!(": {error}"));
            let state = [Some(preheat.state.clone()), nodes, error].into_iter().flatten().collect::<String>();
            [size, human::printable(&state), human::printable(&preheat.label)]
        };
        human::table(["SIZE", "STATE", "FROM"], &taken.values().map(row).collect::<Vec<_>>(), &[0])
    }
}

fn is_over(preheat: &admin::Preheat) -> bool {
    matches!(preheat.state.as_str(), "done" | "failed")
}

/// For `?` on what the Hub says.
impl From<GetError> for CliError {
    fn from(error: GetError) -> Self {
        Self::Get { done: String::new(), error }
    }
}
