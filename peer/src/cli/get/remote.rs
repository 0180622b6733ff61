//! For commands that have the node fetch: where the bytes of what a person names are.

use std::sync::Arc;

use tokio::task::JoinSet;
use url::Url;

use super::{
    Patterns, Rights,
    error::GetError,
    hub::{Hub, Listing},
    progress::Progress,
    reference::Reference,
    settings::check_online,
    web::{Lines, Way, Web},
    work,
};

/// Files that the Hub is asked for at a time.
const AT_ONCE: usize = 8;

/// The bytes of one file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) url: Url,
    /// With which they are to be asked for.
    pub(crate) lines: Lines,
    /// How many there are, where the Hub tells.
    pub(crate) size: Option<u64>,
}

/// What a name stands for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// On a CDN or any other server than the Hub.
    pub(crate) places: Vec<Place>,
    /// Small files that the Hub itself serves, which no node keeps.
    pub(crate) on_hub: usize,
    /// Paths that the Hub names and that leave the repository.
    pub(crate) refused: Vec<String>,
}

/// Asks the Hub where the bytes of an `hf://` name or of one of its pages are; any other URL is its own place. The Hub's
/// token goes to the Hub and into no place.
pub(crate) async fn places(
    what: &str,
    rights: &Rights,
    patterns: &Patterns,
    progress: &Progress,
) -> Result<Places, GetError> {
    let endpoint = rights.endpoint()?;
    let Some(reference) = work::reference(what, &endpoint)? else {
        let place = Place { url: work::plain(what)?, lines: rights.lines()?, size: None };
        return Ok(Places { places: vec![place], ..Places::default() });
    };
    check_online()?;
    let web = Web::new(Way::default(), &endpoint, progress.clone())?;
    let hub = Hub::new(endpoint, rights.token()?.as_deref(), rights.lines()?);
    let commit = hub.commit(&web, &reference).await?;
    let (paths, refused) = paths(&web, &hub, &reference, &commit, patterns).await?;
    let asked = Arc::new((web, hub, reference, commit));
    let mut found = Places { refused, ..Places::default() };
    for some in paths.chunks(AT_ONCE) {
        let mut under_way = JoinSet::new();
        for path in some {
            let (path, asked) = (path.clone(), Arc::clone(&asked));
            under_way.spawn(async move {
                let (web, hub, reference, commit) = &*asked;
                hub.locate(web, reference, commit, &path).await
            });
        }
        while let Some(located) = under_way.join_next().await {
            let located = located.map_err(|error| GetError::Runtime(std::io::Error::other(error)))??;
            match asked.0.is_hub(&located.url) {
                true => found.on_hub += 1,
                false => found.places.push(Place { url: located.url, lines: Lines::new(), size: located.size }),
            }
        }
    }
    Ok(found)
}

/// The files that are meant, the one at the path or all below it, and the paths that are refused.
async fn paths(
    web: &Web,
    hub: &Hub,
    reference: &Reference,
    commit: &str,
    patterns: &Patterns,
) -> Result<(Vec<String>, Vec<String>), GetError> {
    let filter = patterns.filter()?;
    let mut listing = match hub.files(web, reference, commit).await {
        Ok(listing) => listing,
        // The Hub lists folders only.
        Err(GetError::Absent { .. }) if !reference.path.is_empty() => Listing::default(),
        Err(error) => return Err(error),
    };
    listing.retain(|path| filter.passes(path));
    let mut paths: Vec<_> = listing.entries.into_iter().map(|file| file.path).collect();
    let nothing = paths.is_empty() && listing.refused.is_empty();
    if nothing && !reference.path.is_empty() && filter.passes(&reference.path) {
        paths.push(reference.path.clone());
    } else if nothing {
        return Err(GetError::Absent { what: reference.page(), why: "no file there is wanted".to_owned() });
    }
    Ok((paths, listing.refused))
}
