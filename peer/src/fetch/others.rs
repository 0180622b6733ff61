//! Tasks that other nodes hold or bring, without a URL of this node's own.

use std::rc::Rc;

use tokio::time::timeout;

use super::{Ground, Name, Source, download, dropped_as_wrong, now_unix, proof_of, whole};
use crate::{
    limits,
    shard::Shard,
    store::{About, Keeping, TaskMeta},
    swarm::exchange::Wish,
    task::{Identity, Layout},
    trace::Context,
};

/// Begins or joins the download of a task that the scheduler wishes this node to hold.
///
/// # Errors
/// Why not, naming who is at fault.
pub async fn from_others(shard: &Rc<Shard>, wish: &Wish, trace: Option<Context>) -> Result<Source, String> {
    let node = &shard.node;
    let identity = Identity::from_content_name(&wish.name).filter(|named| named.task_id(None) == Some(wish.task));
    let identity = identity.ok_or("the task's name does not follow from the hash that the scheduler told")?;
    let layout = Layout::for_len(wish.len).ok_or("too long")?;
    if let Identity::Xorb { signed: Some((first, last)), .. } = identity
        // A scheduler can name the range of all 2^64 bytes, whose length is no u64.
        && (last - first).checked_add(1) != Some(wish.len)
    {
        return Err("the length that the scheduler told is not that of the range in the task's name".to_owned());
    }
    let held = match node.store.get(&wish.task).filter(|held| !dropped_as_wrong(node, held)) {
        Some(held) => held,
        None => {
            let (about, created_unix) = (About::untold(&wish.host), now_unix());
            let (proof, keeping) = (proof_of(&identity, None), Keeping::default());
            let meta = TaskMeta { id: wish.task, layout, proof, about, keeping, created_unix };
            node.store.create(meta).await.map_err(|error| error.to_string())?
        }
    };
    if held.meta.layout != layout {
        return Err(format!("held with {} bytes, and {} were told", held.meta.layout.len(), wish.len));
    }
    timeout(limits::CHECK_WAIT, held.checked()).await.map_err(|_| "still being checked after an unclean stop")?;
    if held.bitmap().is_full() {
        return Ok(whole(held, Ground::Asked));
    }
    download(shard, held, Name { host: wish.host.clone(), content: Some(wish.name.clone()) }, None, trace)
}
