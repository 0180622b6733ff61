//! `pondhawk preheat`: has the node fetch files before anybody asks for them.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use tokio::task::block_in_place;

use super::{
    CliError, Node, client,
    get::{
        GetError, Patterns, Rights,
        progress::Progress,
        remote::{self, Place},
    },
    human,
};
use crate::admin::{self, PreheatTaken, PreheatWanted};

/// Between two looks at what the node does, and two tries while it has too much to do.
const LOOK: Duration = Duration::from_millis(500);

const EXIT_CODES: &str = "\
Exit codes:
  0  the node has taken everything; with --wait, has it in its store
  1  something failed; the output says what
  2  used wrongly
  3  no node answers, or the Hub does not have it for this user: see HF_TOKEN

The Hub is asked with the token from here; the node hears signed URLs, and never the token. Files that the Hub serves
itself (the small ones) are kept by no node and are left out.";

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
    /// Wait until they are in the store
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

impl Preheat {
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
        let _: admin::Status = block_in_place(|| client::get(&self.node.admin, "/v1/status"))?;
        let (mut taken, mut on_hub) = (BTreeMap::new(), 0);
        for what in &self.what {
            let found = remote::places(what, &self.rights, &self.patterns, progress).await;
            let found = found.map_err(|error| CliError::Get { done: self.output(&taken), error })?;
            on_hub += found.on_hub;
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
            0 => Ok(done),
            n => Err(CliError::Partly { done, message: format!("{n} of {} files failed", taken.len()) }),
        }
    }

    /// Gives the node one file, as soon as it takes it.
    async fn hand_over(&self, place: Place) -> Result<admin::Preheat, CliError> {
        let text = |(name, value): (String, Vec<u8>)| (name, String::from_utf8_lossy(&value).into_owned());
        let wanted = PreheatWanted {
            url: place.url.to_string(),
            headers: place.lines.into_iter().map(text).collect(),
            pin: self.pin,
        };
        loop {
            let taken = block_in_place(|| client::post(&self.node.admin, "/v1/preheats", &wanted))?;
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
        loop {
            let told: Vec<admin::Preheat> = block_in_place(|| client::get(&self.node.admin, "/v1/preheats"))?;
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
            let state = match &preheat.error {
                Some(error) => format!("{}: {error}", preheat.state),
                None => preheat.state.clone(),
            };
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
