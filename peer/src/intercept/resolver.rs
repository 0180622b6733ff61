//! Keeps the configured names' addresses known, beside what DNS answers teach: an answer may have been given before the
//! programs were attached, or over HTTPS.

use std::{collections::HashMap, io, net::IpAddr, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time};

use super::Interceptor;

/// How often every name is asked for. Content networks answer with a TTL of 60 s and change their answer with it.
const PERIOD: Duration = Duration::from_secs(30);
/// How long one name may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long an address counts: clients keep connecting to it for a while after it has left the answers.
const KEPT: Duration = Duration::from_secs(30 * 60);
/// Names beyond these are not asked for.
const MAX_NAMES: usize = 64;

/// Resolves `names` through the system's resolver every 30 s and teaches `interceptor` the addresses, until `stop`.
///
/// A suffix is asked for as a name as well; one that has no address of its own is no error worth more than a log line.
pub async fn keep_learning(interceptor: Arc<Interceptor>, names: Vec<String>, stop: impl Future<Output = ()>) {
    let learn = move |address| interceptor.learn(address, KEPT);
    tokio::select! {
        () = stop => {}
        () = rounds(names, lookup, learn) => {}
    }
}

/// Asks for ever. Dropping it ends it; a system call under way ends by itself.
async fn rounds<F>(mut names: Vec<String>, ask: impl Fn(String) -> F, learn: impl Fn(IpAddr))
where
    F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
{
    names.truncate(MAX_NAMES);
    let mut failing = HashMap::new();
    let mut ticks = time::interval(PERIOD);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        round(&names, &ask, &learn, &mut failing).await;
    }
}

/// Asks for every name at once. `failing` holds the names that failed last time, with the reason.
async fn round<F>(
    names: &[String],
    ask: &impl Fn(String) -> F,
    learn: &impl Fn(IpAddr),
    failing: &mut HashMap<String, String>,
) where
    F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
{
    let mut questions = JoinSet::new();
    for name in names {
        let (name, question) = (name.clone(), ask(name.clone()));
        questions.spawn(async move { (name, time::timeout(DEADLINE, question).await) });
    }
    while let Some(Ok((name, answer))) = questions.join_next().await {
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(addresses) => {
                addresses.into_iter().for_each(learn);
                note_success(&name, failing);
            }
            Err(error) => note_failure(name, &error, failing),
        }
    }
}

fn note_success(name: &str, failing: &mut HashMap<String, String>) {
    if failing.remove(name).is_some() {
        tracing::info!(name, "the name resolves again");
    }
}

/// Logs a failure that is new, or has another reason than before.
fn note_failure(name: String, error: &io::Error, failing: &mut HashMap<String, String>) {
    let reason = error.to_string();
    if failing.get(&name) != Some(&reason) {
        tracing::info!(
            name,
            reason,
            "cannot resolve; connections to it are only caught if DNS answers teach its addresses"
        );
        failing.insert(name, reason);
    }
}

async fn lookup(name: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[tokio::test]
    async fn addresses_are_learnt_and_one_failing_name_does_not_hide_the_others() {
        let learnt = Mutex::new(Vec::new());
        let mut failing = HashMap::new();
        let ask = |name: String| async move {
            if name == "good" { Ok(vec![ADDRESS]) } else { Err(io::Error::other("no such name")) }
        };
        let names = ["bad".to_owned(), "good".to_owned()];
        round(&names, &ask, &|address| learnt.lock().unwrap().push(address), &mut failing).await;
        assert_eq!(*learnt.lock().unwrap(), [ADDRESS]);
        assert_eq!(failing, HashMap::from([("bad".to_owned(), "no such name".to_owned())]));
    }

    #[tokio::test]
    async fn a_name_that_resolves_again_is_no_longer_failing() {
        let mut failing = HashMap::from([("good".to_owned(), "no such name".to_owned())]);
        round(&["good".to_owned()], &|_| async { Ok(vec![]) }, &|_| {}, &mut failing).await;
        assert!(failing.is_empty());
    }

    #[tokio::test]
    async fn the_first_round_is_at_once_and_dropping_ends_the_wait() {
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |_| {
            asked.fetch_add(1, Ordering::Relaxed);
            async { Ok(vec![]) }
        };
        let cut = time::timeout(Duration::from_millis(50), rounds(vec!["name".to_owned()], ask, |_| {})).await;
        assert!(cut.is_err(), "it goes on until it is dropped");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_system_resolver_knows_localhost() {
        assert!(lookup("localhost".to_owned()).await.unwrap().iter().all(IpAddr::is_loopback));
    }
}
