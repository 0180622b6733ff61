//! What `get` does, in its order: what is meant, which files, each of them.

use std::{path::Path, sync::Arc};

use tokio::task::{JoinSet, block_in_place};
use url::Url;

use super::{
    Get, cache,
    error::GetError,
    hub::{Entry, Hub, Listing, Located},
    names,
    place::{Folder, Naming, Part, Spot},
    progress::Progress,
    reference::Reference,
    report::{FileReport, Report},
    settings::check_online,
    transfer::{Got, Promise, Source, Transfer, tag},
    web::Web,
};
use crate::{cli::human, task::id::hex};

/// What all files of one command share.
struct Run {
    web: Web,
    hub: Hub,
    progress: Progress,
    digest: Option<[u8; 32]>,
    to: Destination,
}

/// Where files go.
enum Destination {
    /// Below a folder by their paths in the repository.
    Folder(Folder),
    /// To one name in a folder.
    File(Folder, String),
    /// Into the cache of the Hub's clients.
    Cache(Folder, cache::Layout),
}

/// One file of the Hub.
struct Job {
    reference: Arc<Reference>,
    commit: String,
    path: String,
    known: Option<Entry>,
    at: Option<Located>,
}

/// Downloads what the arguments mean; the report has what came even if not all did.
pub(super) async fn run(get: &Get, progress: Progress, report: &mut Report) -> Result<(), GetError> {
    let endpoint = get.rights.endpoint()?;
    let lines = get.rights.lines()?;
    let web = Web::new(get.way(), &endpoint, progress.clone())?;
    let digest = get.wanted_digest()?;
    let Some(reference) = reference(&get.what, &endpoint)? else {
        if get.recursive || get.hf_cache.is_some() || get.patterns.are_given() {
            let why = "--recursive, --include, --exclude and --hf-cache are for names of the Hub (hf://...)";
            return Err(GetError::Usage(why.to_owned()));
        }
        let file = url(get, &web, &progress, digest).await?;
        report.path = Some(file.path.clone());
        report.files.push(file);
        return Ok(());
    };
    check_online()?;
    let hub = Hub::new(endpoint, get.rights.token()?.as_deref(), lines);
    if reference.path.is_empty() || get.recursive {
        many(get, web, hub, progress, reference, report).await
    } else {
        one(get, web, hub, progress, reference, digest, report).await
    }
}

/// The Hub's name that is meant; none: the text is the URL of something else.
pub(super) fn reference(what: &str, endpoint: &Url) -> Result<Option<Reference>, GetError> {
    match Reference::is_meant(what) {
        true => Ok(Some(Reference::parse(what)?)),
        false => Ok(Reference::of_url(&plain(what)?, endpoint)),
    }
}

pub(super) fn plain(text: &str) -> Result<Url, GetError> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| GetError::Usage(format!("{text}: neither a URL nor an hf:// name")))
}

/// A file of any server.
async fn url(get: &Get, web: &Web, progress: &Progress, digest: Option<[u8; 32]>) -> Result<FileReport, GetError> {
    let url = plain(&get.what)?;
    let name = names::decode(names::base(url.path()));
    let (folder, name) = place(get.output.as_deref(), &name)?;
    let spot = folder.spot(&name)?;
    let bar = progress.file(&name, None);
    let begun = || spot.tags().into_iter().next();
    let naming = Naming::Beside(digest.map_or_else(begun, |digest| Some(tag(&hex(&digest)))));
    let part = block_in_place(|| Part::open(spot, naming, digest.is_some()))?;
    let hub = Hub::new(url.clone(), None, Vec::new());
    let source = Source::Url { url, lines: get.rights.lines()? };
    let promise = Promise { size: None, sha256: digest };
    let transfer = Transfer { web, hub: &hub, source, promise, tagged: digest.is_none(), bar: &bar, restarts: 0 };
    let (part, got) = transfer.run(part).await?;
    let bytes = part.len();
    Ok(FileReport { name, path: part.finish()?, bytes, sha256: digest.map(|digest| hex(&digest)), kept: false, got })
}

/// One file of the Hub.
async fn one(
    get: &Get,
    web: Web,
    hub: Hub,
    progress: Progress,
    reference: Reference,
    digest: Option<[u8; 32]>,
    report: &mut Report,
) -> Result<(), GetError> {
    let at = hub.locate(&web, &reference, &reference.revision, &reference.path).await?;
    let commit = at.commit.clone().unwrap_or_else(|| reference.revision.clone());
    let to = match get.cache_dir() {
        Some(dir) => cached(&dir, &reference, &commit)?,
        None => {
            let (folder, name) = place(get.output.as_deref(), names::base(&reference.path))?;
            Destination::File(folder, name)
        }
    };
    let path = reference.path.clone();
    let run = Run { web, hub, progress, digest, to };
    let job = Job { reference: Arc::new(reference), commit: commit.clone(), path, known: None, at: Some(at) };
    let revision = job.reference.revision.clone();
    let file = file(&run, job).await?;
    run.note_revision(&revision)?;
    (report.commit, report.path) = (Some(commit), Some(file.path.clone()));
    report.files.push(file);
    Ok(())
}

/// All wanted files below a path, a few at a time; after the first that fails no other is begun.
async fn many(
    get: &Get,
    web: Web,
    hub: Hub,
    mut progress: Progress,
    reference: Reference,
    report: &mut Report,
) -> Result<(), GetError> {
    let filter = get.patterns.filter()?;
    if get.digest.is_some() {
        return Err(GetError::Usage("--digest is for one file".to_owned()));
    }
    let commit = hub.commit(&web, &reference).await?;
    let mut listing = hub.files(&web, &reference, &commit).await?;
    listing.retain(|path| filter.passes(path));
    let Listing { entries: files, refused } = listing;
    if files.is_empty() && refused.is_empty() {
        let what = format!("hf://{}@{}/{}", reference.page(), reference.revision, reference.path);
        return Err(GetError::Absent { what, why: "no file there is wanted".to_owned() });
    }
    let (to, path) = match get.cache_dir() {
        Some(dir) => {
            let to = cached(&dir, &reference, &commit)?;
            let Destination::Cache(_, layout) = &to else { unreachable!("made above") };
            let path = dir.join(layout.snapshot());
            (to, path)
        }
        None => {
            let dir = get.output.clone().unwrap_or_else(|| names::base(&reference.repo).into());
            (Destination::Folder(Folder::make(&dir)?), dir)
        }
    };
    (report.commit, report.path) = (Some(commit.clone()), Some(path));
    let wanted = files.iter().map(|file| file.size).sum();
    progress.expect(files.len(), wanted);
    note_room(&progress, &to, wanted);
    let (run, reference) = (Arc::new(Run { web, hub, progress, digest: None, to }), Arc::new(reference));
    let job = |entry: Entry| Job {
        reference: Arc::clone(&reference),
        commit: commit.clone(),
        path: entry.path.clone(),
        known: Some(entry),
        at: None,
    };
    each(&run, files.into_iter().map(job), usize::from(get.jobs), report).await?;
    Listing::refusal(refused)?;
    run.note_revision(&reference.revision)
}

/// What is there already, or shares blocks with the store, needs none: it is no error yet.
fn note_room(progress: &Progress, to: &Destination, wanted: u64) {
    let (Destination::Folder(folder) | Destination::File(folder, _) | Destination::Cache(folder, _)) = to;
    if let Some(free) = folder.free().filter(|free| *free < wanted) {
        progress.note(&format!("{} are wanted, and {} are free there", human::size(wanted), human::size(free)));
    }
}

async fn each(
    run: &Arc<Run>,
    mut jobs: impl ExactSizeIterator<Item = Job>,
    at_once: usize,
    report: &mut Report,
) -> Result<(), GetError> {
    let mut under_way = JoinSet::new();
    let mut first = None;
    loop {
        while under_way.len() < at_once && first.is_none() {
            let Some(job) = jobs.next() else { break };
            let run = Arc::clone(run);
            under_way.spawn(async move { file(&run, job).await });
        }
        match under_way.join_next().await {
            None => break,
            Some(Ok(Ok(file))) => report.files.push(file),
            Some(Ok(Err(error))) => first = first.or(Some(error)),
            Some(Err(error)) => first = first.or(Some(GetError::Runtime(std::io::Error::other(error)))),
        }
    }
    match (first, jobs.len()) {
        (None, _) => Ok(()),
        (Some(error), 0) => Err(error),
        (Some(error), left) => Err(GetError::Several { first: Box::new(error), left }),
    }
}

/// Downloads one file of the Hub to where it belongs.
async fn file(run: &Run, job: Job) -> Result<FileReport, GetError> {
    let at = match job.at {
        Some(at) => at,
        None => run.hub.locate(&run.web, &job.reference, &job.commit, &job.path).await?,
    };
    let known = job.known.as_ref();
    let promise = Promise {
        size: at.size.or(known.map(|known| known.size)),
        sha256: run.digest.or(at.sha256).or(known.and_then(|known| known.sha256)),
    };
    let etag = at.etag.clone();
    let source = Source::Hub { reference: job.reference, commit: job.commit, path: job.path.clone(), at };
    match &run.to {
        Destination::Folder(folder) => plainly(run, folder.spot(&job.path)?, &job.path, source, promise).await,
        Destination::File(folder, name) => plainly(run, folder.spot(name)?, &job.path, source, promise).await,
        Destination::Cache(folder, layout) => {
            let blob = etag.as_deref().and_then(cache::blob);
            let blob = blob.ok_or_else(|| GetError::Answer {
                what: job.path.clone(),
                why: "the Hub tells no ETag, which its clients' cache needs".to_owned(),
            })?;
            into_cache(run, folder, layout, &blob, &job.path, source, promise).await
        }
    }
}

async fn plainly(run: &Run, spot: Spot, name: &str, source: Source, promise: Promise) -> Result<FileReport, GetError> {
    let there = |(size, sha256)| block_in_place(|| spot.has(size, &sha256));
    if promise.size.zip(promise.sha256).is_some_and(there) {
        let (bytes, sha256) = (promise.size.unwrap_or(0), promise.sha256.map(|sha256| hex(&sha256)));
        run.progress.file(name, Some(bytes)).had(bytes);
        return Ok(FileReport {
            name: name.to_owned(),
            path: spot.path(),
            bytes,
            sha256,
            kept: true,
            got: Got::default(),
        });
    }
    let identity = match (&promise.sha256, &source) {
        (Some(sha256), _) => hex(sha256),
        (None, Source::Hub { reference, commit, path, .. }) => format!("{}@{commit}/{path}", reference.page()),
        (None, Source::Url { url, .. }) => url.to_string(),
    };
    let naming = Naming::Beside(Some(tag(&identity)));
    let (part, report) = transfer(run, spot, naming, name, source, promise).await?;
    part.finish()?;
    Ok(report)
}

/// As huggingface_hub does it: the content once by its ETag, under the lock that its own processes take, and a link.
async fn into_cache(
    run: &Run,
    folder: &Folder,
    layout: &cache::Layout,
    blob: &str,
    name: &str,
    source: Source,
    promise: Promise,
) -> Result<FileReport, GetError> {
    let lock = folder.spot(&layout.lock(blob))?;
    let lock = block_in_place(|| lock.lock())?;
    let spot = || folder.spot(&format!("{}/{blob}", layout.blobs()));
    let (link, to) = layout.link(name, blob);
    let link = folder.spot(&link)?;
    let there = spot()?.len();
    let mut report = if there.is_some() && there == promise.size {
        let bytes = there.unwrap_or(0);
        run.progress.file(name, Some(bytes)).had(bytes);
        let path = link.path();
        FileReport { name: name.to_owned(), path, bytes, sha256: None, kept: true, got: Got::default() }
    } else {
        let (part, report) = transfer(run, spot()?, Naming::Incomplete, name, source, promise).await?;
        part.finish()?;
        report
    };
    report.path = link.path();
    link.link(&to)?;
    drop(lock);
    Ok(report)
}

async fn transfer(
    run: &Run,
    spot: Spot,
    naming: Naming,
    name: &str,
    source: Source,
    promise: Promise,
) -> Result<(Part, FileReport), GetError> {
    let bar = run.progress.file(name, promise.size);
    let sha256 = promise.sha256;
    let part = block_in_place(|| Part::open(spot, naming, sha256.is_some()))?;
    let transfer = Transfer { web: &run.web, hub: &run.hub, source, promise, tagged: false, bar: &bar, restarts: 0 };
    let (part, got) = transfer.run(part).await?;
    let sha256 = sha256.map(|sha256| hex(&sha256));
    let report = FileReport { name: name.to_owned(), path: part.path(), bytes: part.len(), sha256, kept: false, got };
    Ok((part, report))
}

impl Run {
    /// Which commit a branch or tag meant, for the Hub's clients: written when everything is there.
    fn note_revision(&self, revision: &str) -> Result<(), GetError> {
        let Destination::Cache(folder, layout) = &self.to else { return Ok(()) };
        match layout.reference(revision) {
            Some(path) => folder.spot(&path)?.write(layout.commit().as_bytes()),
            None => Ok(()),
        }
    }
}

fn cached(dir: &Path, reference: &Reference, commit: &str) -> Result<Destination, GetError> {
    let wrong = || GetError::Answer { what: reference.page(), why: format!("{commit:?} is no commit") };
    let layout = cache::Layout::new(reference, commit).ok_or_else(wrong)?;
    Ok(Destination::Cache(Folder::make(dir)?, layout))
}

/// Folder and name of one file: into a folder that is there or ends with a slash, else to this very name.
fn place(output: Option<&Path>, name: &str) -> Result<(Folder, String), GetError> {
    let unnamed = || GetError::Usage("the URL ends with no file name: give one with --output".to_owned());
    let named = |name: &str| names::is_component(name).then(|| name.to_owned()).ok_or_else(unnamed);
    let Some(output) = output else { return Ok((Folder::make(Path::new("."))?, named(name)?)) };
    if output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Ok((Folder::make(output)?, named(name)?));
    }
    let file = output.file_name().and_then(|name| name.to_str()).ok_or_else(unnamed)?;
    Ok((Folder::make(output.parent().unwrap_or(Path::new(".")))?, named(file)?))
}
