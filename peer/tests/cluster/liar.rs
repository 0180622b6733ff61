//! A store that claims to hold a file and holds something else: what a node that lies serves from.

use std::{path::Path, sync::Arc};

use pondhawk::{
    store::{About, Held, Keeping, Options, Store, TaskMeta},
    task::{Identity, Layout, Rules},
    uring::Pool,
};

const CHUNK: usize = 256 << 10;

/// Fills a node's store with wrong bytes under the name of the file at this URL. They do not have the hash in that name, but
/// the store is not told of it.
pub(crate) fn poison(data_dir: &Path, url: &str, len: u64) {
    let id = Identity::of(&url.parse().unwrap(), &Rules::default()).task_id(None).unwrap();
    let meta = TaskMeta {
        id,
        layout: Layout::for_len(len).unwrap(),
        proof: None,
        about: About { label: "a lie".to_owned(), ..About::default() },
        keeping: Keeping::default(),
        created_unix: 0,
    };
    let dir = data_dir.join("store");
    std::fs::create_dir_all(&dir).unwrap();
    tokio_uring::start(async move {
        let store = Store::open(&dir, Options { quota: 1 << 30, keep_free: 0 }).unwrap();
        let held = store.create(meta).await.unwrap();
        fill(&held).await;
        store.close();
    });
}

async fn fill(held: &Arc<Held>) {
    let (pool, layout) = (Pool::new(1, 2, CHUNK), held.meta.layout);
    for piece in 0..layout.pieces() {
        let bytes = layout.bytes_of(piece);
        let mut hasher = blake3::Hasher::new();
        for at in (bytes.start..bytes.end).step_by(CHUNK) {
            let mut buf = pool.lease().await;
            let n = usize::try_from(bytes.end - at).unwrap().min(CHUNK);
            buf[..n].fill(0x66);
            hasher.update(&buf[..n]);
            held.write(piece, u32::try_from(at - bytes.start).unwrap(), buf, n).await.0.unwrap();
        }
        held.commit(piece, hasher.finalize()).await.unwrap();
    }
}
