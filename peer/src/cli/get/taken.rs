//! Files that lie in the store of this machine's node: taken from there, shared blocks and all where the file system can.
//!
//! The node is asked to bring the file first, with the URL and thus the origin's consent; its verdict on the content stands for the
//! check. Who may not read the store's folder, or whose node is elsewhere, gets the same bytes by the proxy port.

use std::{fs::File, path::Path, time::Duration};

use tokio::task::block_in_place;
use url::Url;

use super::{
    place::Part,
    progress::Bar,
    web::{Lines, Web},
};
use crate::{
    admin::{Preheat, PreheatTaken, PreheatWanted, Status},
    cli::client::{self, AdminPlace},
    store::data_file,
    task::Identity,
};

/// Between two looks at how far the node is.
const LOOK: Duration = Duration::from_millis(100);

/// Puts the file into an empty part; whether it did. Whatever is in the way is left for the proxy port to say.
pub(crate) async fn take(
    web: &Web,
    url: &Url,
    lines: &Lines,
    file: ([u8; 32], u64),
    part: &mut Part,
    bar: &Bar,
) -> bool {
    let Some(admin) = web.own_admin(url, !lines.is_empty()) else { return false };
    let (sha256, size) = file;
    let Some(task) = Identity::ContentSha256(sha256).task_id(None) else { return false };
    let Ok(status) = block_in_place(|| client::get::<Status>(admin, "/v1/status")) else { return false };
    let data = data_file(Path::new(&status.store.dir), &task);
    let shelves = data.parent().and_then(Path::parent);
    if shelves.is_none_or(|shelves| std::fs::read_dir(shelves).is_err()) {
        return false;
    }
    let brought = brought(admin, url, lines, bar).await;
    // Its name says what it is: the node keeps no other content under it.
    let taken = brought.is_some_and(|brought| brought.task.as_deref() == Some(&*task.to_string()))
        && block_in_place(|| File::open(&data).and_then(|data| part.take(&data, size))).is_ok();
    if !taken {
        bar.restart();
    }
    taken
}

/// Has the node bring the file.
async fn brought(admin: &AdminPlace, url: &Url, lines: &Lines, bar: &Bar) -> Option<Preheat> {
    let wanted = PreheatWanted::of(url, lines);
    let taken = block_in_place(|| client::post::<PreheatTaken>(admin, "/v1/preheats", &wanted)).ok().flatten()?;
    loop {
        let all = block_in_place(|| client::get::<Vec<Preheat>>(admin, "/v1/preheats")).ok()?;
        let own = all.into_iter().find(|preheat| preheat.id == taken.id)?;
        bar.at(own.held_bytes);
        match own.state.as_str() {
            "done" => return Some(own),
            "failed" => return None,
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}
