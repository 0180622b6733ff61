//! Where a request leads: only to hosts that the node serves or that its configuration allows, whatever the head says.

use std::path::Path;
use std::sync::OnceLock;

use pondhawk::config::Config;
use pondhawk::http::route::{Arrival, Route, route};
use pondhawk::http::rules::Front;
use pondhawk::http::wishes::Wishes;
use pondhawk::http::{HeadLimits, Parsed};
use pondhawk::metrics::Way;

const CONFIG: &str = "intercept: {hosts: [cdn.hf.co]}
mirror: {cdn: 'https://cdn.hf.co'}
proxy: {allow: [git.example]}
rules: [{match: '^https?://registry.example/', redirect: real.example}]";
/// The hosts of [`CONFIG`]: with what is below them, but for the rule's.
const REACHABLE: [&str; 2] = [SERVED, "git.example"];
const REDIRECTED: &str = "real.example";
const HUB: &str = "huggingface.co";
const SERVED: &str = "cdn.hf.co";
/// What the node itself is called.
const OWN: (&str, u16) = ("node", 65001);

/// Runs the target: the first byte says how the connection arrived, the rest is the request's head.
pub fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let Ok(Parsed::Complete { head, .. }) = pondhawk::http::head::parse(bytes, &HeadLimits::default()) else { return };
    let Ok(wishes) = Wishes::of(&head) else { return };
    let terminated = kind % 4 == 1;
    let arrival = match terminated {
        true => Arrival::Terminated { name: SERVED.to_owned(), way: Way::Intercept },
        false => Arrival::Proxy,
    };
    let is_own = |host: &str, port: u16| (host, port) == OWN;
    match route(&head, &arrival, &wishes, front(), &is_own) {
        Ok(Route::Url(treatment)) => {
            let url = treatment.url;
            let host = url.host_str().unwrap_or_default();
            assert!(is_reachable(host) || host == REDIRECTED, "led to {url}");
            assert!(!terminated || (host == SERVED && url.port().is_none()), "led to {url}");
            assert!(matches!(url.scheme(), "http" | "https"), "led to {url}");
            assert!(url.username().is_empty() && url.password().is_none(), "led to {url}");
        }
        Ok(Route::Mirror(url)) => {
            assert_eq!((url.host_str(), url.port(), url.scheme()), (Some(HUB), None, "https"), "{url}");
            assert!(!terminated && url.username().is_empty());
        }
        Ok(Route::Tunnel { host, .. }) => assert!(!terminated && is_reachable(&host), "a tunnel to {host}"),
        Err(refusal) => assert!((400..600).contains(&refusal.status())),
    }
}

fn is_reachable(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    REACHABLE.iter().any(|name| host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

fn front() -> &'static Front {
    static FRONT: OnceLock<Front> = OnceLock::new();
    FRONT.get_or_init(|| {
        let config = Config::parse(CONFIG, Path::new("fuzz")).expect("the configuration is well-formed");
        Front::new(&config).expect("the configuration can be followed")
    })
}
