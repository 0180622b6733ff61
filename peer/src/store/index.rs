//! The index: which tasks there are. The only file that names redb.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Database, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{About, Keeping, Priority, TaskMeta, held::State};
use crate::task::{Layout, Proof, TaskId, id::parse_hex32, xorb::Claim};

const TASKS: TableDefinition<[u8; 32], &[u8]> = TableDefinition::new("tasks");
const USED: TableDefinition<[u8; 32], (u64, u64)> = TableDefinition::new("used");
const TRUSTED: TableDefinition<[u8; 32], u64> = TableDefinition::new("trusted");
/// Pinned tasks by their generation; what is older than this table does not miss it.
const PINNED: TableDefinition<[u8; 32], u64> = TableDefinition::new("pinned");
const STATE: TableDefinition<&str, u64> = TableDefinition::new("state");
const EPOCH: &str = "epoch";

/// redb's page cache: an index of 10,000 tasks is a few MiB, and it is read only at start.
const CACHE_BYTES: usize = 2 << 20;
const RECORD_VERSION: u32 = 1;

/// The index could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct IndexError(Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for IndexError {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

impl IndexError {
    /// Whether the disk was full.
    pub(super) fn is_full(&self) -> bool {
        matches!(&*self.0, redb::Error::Io(error) if super::error::is_full(error))
    }
}

/// What the index holds of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(super) meta: TaskMeta,
    /// Tells two tasks of the same id apart that followed each other.
    pub(super) generation: u64,
    /// The whole was found right.
    pub(super) verified: bool,
}

/// A record as found at start.
pub(crate) struct Loaded {
    pub(super) record: Record,
    pub(super) last_used: u64,
    pub(super) held_bytes: u64,
    /// The task's files were synced when the last epoch ended.
    pub(super) trusted: bool,
    pub(super) pinned: bool,
}

/// A change of the index, in the order of arrival.
pub(super) enum Op {
    /// A new task; its state learns whether that is durable.
    Put(Box<Record>, Arc<State>),
    /// The verdict of a task, if it is still of this generation.
    Verified { id: TaskId, generation: u64, verified: bool },
    /// What the origin says of a task, if it is still of this generation.
    Described { id: TaskId, generation: u64, about: Box<About> },
    /// Whether a task is never evicted; tells whether that is durable.
    Pinned { id: TaskId, generation: u64, pinned: bool, done: oneshot::Sender<bool> },
    /// Forgets a task, if it is still of this generation; tells when its blocks are free.
    Remove { id: TaskId, generation: u64, freed: Option<oneshot::Sender<()>> },
    /// Last use and bytes held.
    Used(Vec<(TaskId, u64, u64)>),
    /// These tasks' files are synced.
    Trust(Vec<TaskId>),
    /// The last one.
    Stop,
}

/// The database, and what is needed to open it again after an I/O error.
pub(crate) struct Index {
    path: PathBuf,
    database: Option<Database>,
    epoch: u64,
}

impl Index {
    /// Opens or makes the index, starts a new epoch, and reads all records.
    ///
    /// An index that can't be read is moved to `aside`, and an empty one takes its place.
    pub(crate) fn open(path: PathBuf, aside: PathBuf) -> Result<(Self, Vec<Loaded>), IndexError> {
        match Self::open_as_is(path.clone()) {
            Ok(opened) => Ok(opened),
            Err(error) if is_damage(&error) => {
                tracing::error!(%error, aside = %aside.display(), "the index is damaged; the store starts empty");
                fs::rename(&path, aside)?;
                Self::open_as_is(path)
            }
            Err(error) => Err(error),
        }
    }

    /// How often this store was opened.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes the changes durable, all or none. After an error the database is opened afresh for the next call.
    pub(super) fn apply(&mut self, ops: &[Op]) -> Result<(), IndexError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(&self.path)?,
        };
        let transaction = database.begin_write()?;
        for op in ops {
            apply_one(&transaction, op, self.epoch)?;
        }
        transaction.commit()?;
        self.database = Some(database);
        Ok(())
    }

    fn open_as_is(path: PathBuf) -> Result<(Self, Vec<Loaded>), IndexError> {
        let database = open_database(&path)?;
        let transaction = database.begin_write()?;
        let (epoch, loaded) = {
            let mut state = transaction.open_table(STATE)?;
            let last = state.get(EPOCH)?.map_or(0, |epoch| epoch.value());
            state.insert(EPOCH, last + 1)?;
            (last + 1, load(&transaction, last)?)
        };
        transaction.commit()?;
        Ok((Self { path, database: Some(database), epoch }, loaded))
    }
}

fn open_database(path: &Path) -> Result<Database, IndexError> {
    // Made here rather than by redb, for its mode: labels and headers are nobody else's business.
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)?)
}

/// Whether the file's content is at fault, rather than the disk or our rights to it.
fn is_damage(error: &IndexError) -> bool {
    match &*error.0 {
        // The store's own version says which format the file has, so that another one in the file is damage too.
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. } => true,
        redb::Error::Io(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
        _ => false,
    }
}

fn load(transaction: &WriteTransaction, last_epoch: u64) -> Result<Vec<Loaded>, IndexError> {
    let mut tasks = transaction.open_table(TASKS)?;
    let used = transaction.open_table(USED)?;
    let trusted = transaction.open_table(TRUSTED)?;
    let pinned = transaction.open_table(PINNED)?;
    tasks.retain(|key, value| {
        let known = decode(TaskId(key), value).is_some();
        if !known {
            tracing::warn!(task = %TaskId(key), "a task of an unknown record format is dropped");
        }
        known
    })?;
    let mut loaded = Vec::new();
    for row in tasks.iter()? {
        let (key, value) = row?;
        let id = TaskId(key.value());
        let Some(record) = decode(id, value.value()) else { continue };
        let (last_used, held_bytes) = used.get(id.0)?.map_or((0, 0), |used| used.value());
        let trusted = trusted.get(id.0)?.is_some_and(|epoch| epoch.value() == last_epoch);
        let pinned = pinned.get(id.0)?.is_some_and(|generation| generation.value() == record.generation);
        loaded.push(Loaded { record, last_used, held_bytes, trusted, pinned });
    }
    Ok(loaded)
}

fn apply_one(transaction: &WriteTransaction, op: &Op, epoch: u64) -> Result<(), IndexError> {
    match op {
        Op::Put(record, _) => {
            transaction.open_table(TRUSTED)?.remove(record.meta.id.0)?;
            put(&mut transaction.open_table(TASKS)?, record)
        }
        Op::Verified { id, generation, verified } => {
            let mut tasks = transaction.open_table(TASKS)?;
            match find(&tasks, *id, *generation)? {
                Some(record) => put(&mut tasks, &Record { verified: *verified, ..record }),
                None => Ok(()),
            }
        }
        Op::Described { id, generation, about } => {
            let mut tasks = transaction.open_table(TASKS)?;
            match find(&tasks, *id, *generation)? {
                Some(mut record) => {
                    record.meta.about = (**about).clone();
                    put(&mut tasks, &record)
                }
                None => Ok(()),
            }
        }
        Op::Pinned { id, generation, pinned: true, .. } => {
            transaction.open_table(PINNED)?.insert(id.0, generation)?;
            Ok(())
        }
        Op::Pinned { id, .. } => {
            transaction.open_table(PINNED)?.remove(id.0)?;
            Ok(())
        }
        Op::Remove { id, generation, .. } => remove(transaction, *id, *generation),
        Op::Used(rows) => {
            let mut used = transaction.open_table(USED)?;
            for (id, last_used, held_bytes) in rows {
                used.insert(id.0, (*last_used, *held_bytes))?;
            }
            Ok(())
        }
        Op::Trust(ids) => {
            let mut trusted = transaction.open_table(TRUSTED)?;
            for id in ids {
                trusted.insert(id.0, epoch)?;
            }
            Ok(())
        }
        Op::Stop => Ok(()),
    }
}

fn put(tasks: &mut Table<'_, [u8; 32], &[u8]>, record: &Record) -> Result<(), IndexError> {
    tasks.insert(record.meta.id.0, encode(record).as_slice())?;
    Ok(())
}

fn find(tasks: &Table<'_, [u8; 32], &[u8]>, id: TaskId, generation: u64) -> Result<Option<Record>, IndexError> {
    let record = tasks.get(id.0)?.and_then(|value| decode(id, value.value()));
    Ok(record.filter(|record| record.generation == generation))
}

fn remove(transaction: &WriteTransaction, id: TaskId, generation: u64) -> Result<(), IndexError> {
    let mut tasks = transaction.open_table(TASKS)?;
    if find(&tasks, id, generation)?.is_some() {
        tasks.remove(id.0)?;
        transaction.open_table(USED)?.remove(id.0)?;
        transaction.open_table(TRUSTED)?.remove(id.0)?;
        transaction.open_table(PINNED)?.remove(id.0)?;
    }
    Ok(())
}

/// The JSON form of a record; the id is the key.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    len: u64,
    piece_len: u32,
    sha256: Option<String>,
    /// Newer than the others: a record without it is one of before.
    #[serde(default)]
    xorb: Option<StoredClaim>,
    label: String,
    headers: Vec<(String, String)>,
    etag: Option<String>,
    created_unix: u64,
    generation: u64,
    verified: bool,
    /// Newer, as `xorb` is.
    #[serde(default)]
    until_unix: Option<u64>,
    #[serde(default)]
    priority: Priority,
}

/// A xorb and the place of the task in it.
#[derive(Serialize, Deserialize)]
struct StoredClaim {
    hash: String,
    first: u64,
    total: Option<u64>,
}

fn encode(record: &Record) -> Vec<u8> {
    let meta = &record.meta;
    let stored = Stored {
        version: RECORD_VERSION,
        len: meta.layout.len(),
        piece_len: meta.layout.piece_len(),
        sha256: match meta.proof {
            Some(Proof::Sha256(digest)) => Some(TaskId(digest).to_string()),
            _ => None,
        },
        xorb: match meta.proof {
            Some(Proof::Xorb(Claim { hash, first, total })) => {
                Some(StoredClaim { hash: TaskId(hash).to_string(), first, total })
            }
            _ => None,
        },
        label: meta.about.label.clone(),
        headers: meta.about.headers.iter().map(|(name, value)| (name.clone(), latin1_text(value))).collect(),
        etag: meta.about.etag.clone(),
        created_unix: meta.created_unix,
        generation: record.generation,
        verified: record.verified,
        until_unix: meta.keeping.until_unix,
        priority: meta.keeping.priority,
    };
    serde_json::to_vec(&stored).expect("strings and numbers always serialise")
}

/// `None` for another version, or a layout that this build would cut otherwise.
fn decode(id: TaskId, bytes: &[u8]) -> Option<Record> {
    let stored: Stored = serde_json::from_slice(bytes).ok()?;
    let layout = Layout::for_len(stored.len)?;
    if stored.version != RECORD_VERSION || layout.piece_len() != stored.piece_len {
        return None;
    }
    let proof = match (stored.sha256, stored.xorb) {
        (Some(text), _) => Some(Proof::Sha256(parse_hex32(&text)?)),
        (None, Some(StoredClaim { hash, first, total })) => {
            Some(Proof::Xorb(Claim { hash: parse_hex32(&hash)?, first, total }))
        }
        (None, None) => None,
    };
    let headers = stored.headers.into_iter().map(|(name, value)| Some((name, latin1_bytes(&value)?)));
    let about = About { label: stored.label, headers: headers.collect::<Option<_>>()?, etag: stored.etag };
    let keeping = Keeping { until_unix: stored.until_unix, priority: stored.priority };
    let meta = TaskMeta { id, layout, proof, about, keeping, created_unix: stored.created_unix };
    Some(Record { meta, generation: stored.generation, verified: stored.verified })
}

fn latin1_text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn latin1_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u8, generation: u64) -> Record {
        let meta = TaskMeta {
            id: TaskId([id; 32]),
            layout: Layout::for_len(3 << 20).unwrap(),
            proof: Some(Proof::Sha256([3; 32])),
            about: About {
                label: "host/path".into(),
                headers: vec![("X-Odd".into(), (0..=255).collect())],
                etag: Some("\"tag\"".into()),
            },
            keeping: Keeping { until_unix: Some(1_800_000_000), priority: Priority::High },
            created_unix: 1_700_000_000,
        };
        Record { meta, generation, verified: false }
    }

    fn open(dir: &tempfile::TempDir) -> (Index, Vec<Loaded>) {
        Index::open(dir.path().join("index"), dir.path().join("broken")).unwrap()
    }

    fn put(id: u8, generation: u64) -> Op {
        Op::Put(Box::new(record(id, generation)), Arc::new(State::fresh(generation)))
    }

    #[test]
    fn a_record_survives_with_every_header_byte() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).0.apply(&[put(1, 5), Op::Used(vec![(TaskId([1; 32]), 8, 9)])]).unwrap();
        let (index, loaded) = open(&dir);
        assert_eq!(index.epoch(), 2);
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].record, record(1, 5));
        assert_eq!((loaded[0].last_used, loaded[0].held_bytes, loaded[0].trusted), (8, 9, false));
    }

    #[test]
    fn a_record_of_a_xorb_survives_and_one_from_before_xorbs_is_read() {
        let mut record = record(1, 5);
        record.meta.proof = Some(Proof::Xorb(Claim { hash: [4; 32], first: 7, total: Some(9 << 30) }));
        assert_eq!(decode(TaskId([1; 32]), &encode(&record)), Some(record.clone()));
        record.meta.proof = None;
        record.meta.keeping = Keeping::default();
        let text = String::from_utf8(encode(&record)).unwrap().replace("\"xorb\":null,", "");
        let text = text.replace(",\"until_unix\":null,\"priority\":\"normal\"", "");
        assert!(!text.contains("xorb") && !text.contains("until") && !text.contains("priority"), "{text}");
        assert_eq!(decode(TaskId([1; 32]), text.as_bytes()), Some(record));
    }

    #[test]
    fn what_the_origin_says_later_is_kept_with_the_task() {
        let dir = tempfile::tempdir().unwrap();
        let about = About { label: "host/told".into(), headers: vec![("A".into(), b"b".to_vec())], etag: None };
        let op = |generation| Op::Described { id: TaskId([1; 32]), generation, about: Box::new(about.clone()) };
        open(&dir).0.apply(&[put(1, 5), op(4)]).unwrap();
        assert_eq!(open(&dir).1[0].record, record(1, 5));
        open(&dir).0.apply(&[op(5)]).unwrap();
        assert_eq!(open(&dir).1[0].record.meta.about, about);
    }

    #[test]
    fn trust_lasts_for_exactly_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).0.apply(&[put(1, 5), Op::Trust(vec![TaskId([1; 32])])]).unwrap();
        assert!(open(&dir).1[0].trusted);
        assert!(!open(&dir).1[0].trusted);
    }

    #[test]
    fn a_pin_is_of_one_generation_and_goes_with_its_task() {
        let dir = tempfile::tempdir().unwrap();
        let id = TaskId([1; 32]);
        let pin = |generation, pinned| Op::Pinned { id, generation, pinned, done: oneshot::channel().0 };
        open(&dir).0.apply(&[put(1, 5), pin(5, true)]).unwrap();
        assert!(open(&dir).1[0].pinned);
        open(&dir).0.apply(&[put(1, 6)]).unwrap();
        assert!(!open(&dir).1[0].pinned);
        open(&dir).0.apply(&[pin(6, true), pin(6, false)]).unwrap();
        assert!(!open(&dir).1[0].pinned);
    }

    #[test]
    fn a_late_change_for_an_earlier_generation_does_not_touch_the_new_task() {
        let dir = tempfile::tempdir().unwrap();
        let id = TaskId([1; 32]);
        let late = Op::Verified { id, generation: 5, verified: true };
        open(&dir).0.apply(&[put(1, 5), put(1, 6), late, Op::Remove { id, generation: 5, freed: None }]).unwrap();
        let loaded = open(&dir).1;
        assert_eq!(loaded[0].record, record(1, 6));
    }

    #[test]
    fn a_damaged_index_is_set_aside_and_the_store_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).0.apply(&[put(1, 5)]).unwrap();
        fs::write(dir.path().join("index"), vec![0x5a; 100_000]).unwrap();
        assert!(open(&dir).1.is_empty());
        assert!(dir.path().join("broken").exists());
    }

    #[test]
    fn an_index_whose_header_names_another_format_is_put_aside() {
        // Each of redb's two commit slots begins with the version of the file's format; the other one counts alone then.
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("index.redb"), dir.path().join("index.redb.broken"));
        drop(Index::open(path.clone(), aside.clone()).unwrap());
        let mut file = fs::read(&path).unwrap();
        for slot in [64, 192] {
            assert_eq!(file[slot], 3, "the format of redb 4");
            file[slot] = 2;
        }
        fs::write(&path, &file).unwrap();
        let (index, loaded) = Index::open(path, aside.clone()).unwrap();
        assert_eq!((index.epoch(), loaded.len(), aside.exists()), (1, 0, true));
    }
}
