//! Keeps the configured names' addresses known, beside what DNS answers teach: an answer may have been given before the
//! programs were attached, or over HTTPS.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::{Arc, LazyLock},
    time::Duration,
};

use pondhawk_ebpf::{Address, AddressScope};
use tokio::{sync::Semaphore, task::JoinSet, time};

use super::{Interceptor, ServedHosts};
use crate::swarm::is_public;

/// How often every name is asked for. Content networks answer with a TTL of 60 s and change their answer with it.
const PERIOD: Duration = Duration::from_secs(30);
/// Threads that wait for the system's resolver at a time.
pub(crate) const LOOK_UP_THREADS: usize = 4;
/// How long one name may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long an address counts: clients keep connecting to it for a while after it has left the answers.
const KEPT: Duration = Duration::from_secs(30 * 60);
/// Names beyond these are not asked for.
const MAX_NAMES: usize = 64;
/// Addresses of one name beyond these are not taken, so that one name cannot fill the programs' map.
const MAX_ADDRESSES: usize = 32;

/// Resolves `configured` and the hosts served lately through the system's resolver every 30 s and teaches `interceptor` the
/// addresses, until `stop`. Addresses that are not public are taken only with `allow_private`.
///
/// A suffix is asked for as a name as well; one that has no address of its own is no error worth more than a log line.
pub async fn keep_learning(
    interceptor: Arc<Interceptor>,
    configured: Vec<String>,
    served: &ServedHosts,
    allow_private: bool,
    stop: impl Future<Output = ()>,
) {
    let learn = move |address| {
        if may_be_taken(address, allow_private) {
            interceptor.learn(address, KEPT);
        }
    };
    tokio::select! {
        () = stop => {}
        () = rounds(&configured, served, lookup, learn) => {}
    }
}

/// A name server that answers with an address of the machine or its link, by mistake or as a block list, names no origin.
fn may_be_taken(address: IpAddr, allow_private: bool) -> bool {
    match Address::from(address).scope() {
        AddressScope::Local => false,
        AddressScope::Private | AddressScope::Public => allow_private || is_public(address),
    }
}

/// Asks for ever. Dropping it ends it; a system call under way ends by itself.
async fn rounds<F>(configured: &[String], served: &ServedHosts, ask: impl Fn(String) -> F, learn: impl Fn(IpAddr))
where
    F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
{
    let mut failing = HashMap::new();
    let mut ticks = time::interval(PERIOD);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut names = configured.to_vec();
        names.extend(served.and([]).into_iter().filter(|host| !configured.contains(host)));
        names.truncate(MAX_NAMES);
        round(&names, &ask, &learn, &mut failing).await;
        for name in names.iter().filter(|name| !configured.contains(name)) {
            if failing.remove(name).is_some() {
                served.forget(name);
            }
        }
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
                addresses.into_iter().take(MAX_ADDRESSES).for_each(learn);
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

/// Asks the system's resolver. Each question holds a thread of the control runtime until the resolver answers, also when
/// its caller has given it up, so that it takes one of [`LOOK_UP_THREADS`] places and leaves the other threads to the admin port.
async fn lookup(name: String) -> io::Result<Vec<IpAddr>> {
    static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(LOOK_UP_THREADS)));
    let place = Arc::clone(&PLACES).acquire_owned().await.map_err(io::Error::other)?;
    let asking = tokio::task::spawn_blocking(move || {
        let addresses = (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect());
        drop(place);
        addresses
    });
    asking.await.map_err(io::Error::other)?
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
        let (names, served) = (["name".to_owned()], ServedHosts::default());
        let cut = time::timeout(Duration::from_millis(50), rounds(&names, &served, ask, |_| {})).await;
        assert!(cut.is_err(), "it goes on until it is dropped");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_served_host_is_asked_for_until_it_has_no_address() {
        let (served, asked) = (ServedHosts::default(), Mutex::new(Vec::new()));
        served.record("cas.hf.test");
        served.record("made-up.hf.test");
        let ask = |name: String| {
            asked.lock().unwrap().push(name.clone());
            async move { if name.starts_with("made-up") { Err(io::Error::other("no such name")) } else { Ok(vec![]) } }
        };
        let names = ["hf.test".to_owned()];
        let cut = time::timeout(Duration::from_millis(50), rounds(&names, &served, ask, |_| {})).await;
        assert!(cut.is_err());
        let mut asked = asked.into_inner().unwrap();
        asked.sort();
        assert_eq!(asked, ["cas.hf.test", "hf.test", "made-up.hf.test"]);
        assert_eq!(served.and([]), ["cas.hf.test"]);
    }

    #[test]
    fn no_address_of_the_machine_or_a_private_network_is_taken_from_the_resolver() {
        for text in ["0.0.0.0", "127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "fd00::1"] {
            assert!(!may_be_taken(text.parse().unwrap(), false), "{text}");
        }
        assert!(may_be_taken("1.1.1.1".parse().unwrap(), false));
        assert!(may_be_taken("10.0.0.1".parse().unwrap(), true));
        assert!(!may_be_taken("127.0.0.1".parse().unwrap(), true));
    }

    #[tokio::test]
    async fn the_system_resolver_knows_localhost() {
        assert!(lookup("localhost".to_owned()).await.unwrap().iter().all(IpAddr::is_loopback));
    }
}
