//! The origin client and the authorizer against a Hub-shaped origin with every fault that it knows.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Method, StatusCode};
use pondhawk::{
    authorize::{AuthorizeOptions, Authorizer, Ground, Refusal},
    swarm::{Expected, Origin, OriginBody, OriginError, OriginOptions, OriginRequest, Probe, retry::Class},
};
use pondhawk_bench::hub::{Content, Fault, FaultKind, Hub, HubOptions, PlainRules, seeded};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use url::Url;

const LEN: u64 = 3 << 20;
const LABEL: &str = "owner/model/weights.bin";
const HOSTS: [&str; 3] = ["huggingface.co", "cdn-lfs.huggingface.co", "elsewhere.example"];

/// A hub with one file of [`LEN`] bytes, and an origin client that finds it under its names.
struct Lab {
    hub: Hub,
    origin: Origin,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut OriginOptions)) -> Self {
        let hub = Hub::start(HubOptions::default()).unwrap();
        hub.add_file("owner/model", "main", "weights.bin", Content::seeded(LEN, 7)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        hub.write_ca(&ca).unwrap();
        let overrides = HOSTS.map(|host| (host.to_owned(), hub.tls_address())).into();
        let mut options = OriginOptions { extra_cas: vec![ca], overrides, ..OriginOptions::default() };
        change(&mut options);
        let origin = Origin::new(options).unwrap();
        Self { hub, origin, _dir: dir }
    }

    fn request(&self) -> OriginRequest {
        get(&self.hub.signed_url(LABEL).unwrap())
    }

    fn fault(&self, kind: FaultKind) {
        self.hub.faults().add(Fault::new(kind).times(1));
    }

    async fn range(&self, range: std::ops::Range<u64>, expected: &Expected) -> Result<Vec<u8>, OriginError> {
        read(self.origin.get_range(&self.request(), range, expected).await?).await
    }
}

fn get(url: &str) -> OriginRequest {
    OriginRequest::new(Url::parse(url).unwrap(), vec![("User-Agent".into(), b"test".to_vec())])
}

fn forged(mut request: OriginRequest) -> OriginRequest {
    let query = request.url.query().unwrap().replace("Signature=", "Signature=AAAA");
    request.url.set_query(Some(&query));
    request
}

async fn read(mut body: OriginBody) -> Result<Vec<u8>, OriginError> {
    let mut bytes = Vec::new();
    while let Some(data) = body.chunk().await? {
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn refused_with(error: &OriginError) -> u16 {
    error.answer().unwrap_or_else(|| panic!("{error}")).status.as_u16()
}

#[tokio::test]
async fn a_probe_tells_what_the_object_is_and_one_connection_serves_all_that_follows() {
    let lab = Lab::new();
    let probe = lab.origin.probe(&lab.request()).await.unwrap();
    assert_eq!((probe.total_len, probe.ranges, probe.encoded), (Some(LEN), true, false));
    assert!(probe.etag.is_some() && !probe.headers.contains_key("content-range"));
    let expected = probe.expected();
    for start in [0, 1000, LEN - 100] {
        assert_eq!(lab.range(start..start + 100, &expected).await.unwrap(), seeded(7, start, 100));
    }
    assert_eq!(lab.hub.stats().connections, 1);
}

#[tokio::test]
async fn a_window_is_the_object_as_far_as_the_task_goes() {
    let lab = Lab::new();
    let request = OriginRequest { window: Some(1000..3000), ..lab.request() };
    let probe = lab.origin.probe(&request).await.unwrap();
    assert_eq!(probe.total_len, Some(2000));
    let body = lab.origin.get_range(&request, 10..20, &probe.expected()).await.unwrap();
    assert_eq!(read(body).await.unwrap(), seeded(7, 1010, 10));
}

#[tokio::test]
async fn a_503_carries_its_retry_after_and_is_worth_another_try() {
    let lab = Lab::new();
    lab.fault(FaultKind::Status503 { retry_after: Some(3) });
    let error = lab.origin.probe(&lab.request()).await.unwrap_err();
    let after = Some(Duration::from_secs(3));
    assert_eq!((refused_with(&error), error.class()), (503, Class::Transient { after, throttled: true }));
}

#[tokio::test]
async fn a_cut_and_a_reset_are_seen_and_never_look_like_the_end() {
    let lab = Lab::new();
    for kind in [FaultKind::Cut { after: 5000 }, FaultKind::Reset { after: 5000 }] {
        lab.fault(kind);
        let error = lab.range(0..100_000, &Expected::default()).await.unwrap_err();
        assert!(matches!(error, OriginError::Cut { .. }), "{error}");
    }
}

#[tokio::test]
async fn silence_in_the_middle_of_a_body_is_a_timeout() {
    let lab = Lab::with(|options| options.idle_timeout = Duration::from_millis(200));
    lab.fault(FaultKind::Stall { after: 5000, millis: 20_000 });
    let error = lab.range(0..100_000, &Expected::default()).await.unwrap_err();
    assert!(matches!(error, OriginError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_without_length_is_an_object_of_unknown_length_without_ranges() {
    let lab = Lab::new();
    lab.fault(FaultKind::NoLength);
    let probe = lab.origin.probe(&lab.request()).await.unwrap();
    assert_eq!((probe.total_len, probe.ranges), (None, false));
}

#[tokio::test]
async fn an_origin_that_ignores_ranges_is_found_out_and_gives_the_whole() {
    let lab = Lab::new();
    let expected = lab.origin.probe(&lab.request()).await.unwrap().expected();
    lab.hub.faults().add(Fault::new(FaultKind::IgnoreRange));
    let probe = lab.origin.probe(&lab.request()).await.unwrap();
    assert_eq!((probe.total_len, probe.ranges), (Some(LEN), false));
    let error = lab.range(5..10, &expected).await.unwrap_err();
    assert!(matches!(error, OriginError::IgnoredRange { .. }), "{error}");
    let whole = read(lab.origin.get_whole(&lab.request(), &expected).await.unwrap()).await.unwrap();
    assert!(whole == seeded(7, 0, usize::try_from(LEN).unwrap()));
}

#[tokio::test]
async fn a_refusal_comes_with_the_origins_own_headers_and_body_and_without_the_signature() {
    let lab = Lab::new();
    let error = lab.origin.probe(&forged(lab.request())).await.unwrap_err();
    let answer = error.answer().unwrap();
    assert_eq!((answer.status, error.class()), (StatusCode::FORBIDDEN, Class::Credentials));
    assert_eq!(answer.headers["content-type"], "text/xml");
    assert!(answer.body.starts_with(b"<?xml"));
    assert!(!format!("{error} {error:?}").contains("Signature"));
}

#[tokio::test]
async fn an_object_that_changed_is_not_mixed_with_the_old_one() {
    let lab = Lab::new();
    let expected = lab.origin.probe(&lab.request()).await.unwrap().expected();
    assert!(lab.hub.change(LABEL));
    let error = lab.range(5..10, &expected).await.unwrap_err();
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
    let other_length = Expected { total: Some(LEN + 1), etag: None };
    let error = lab.range(5..10, &other_length).await.unwrap_err();
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_or_handed_on_as_the_setting_says() {
    let lab = Lab::new();
    lab.fault(FaultKind::Redirect);
    let probe = lab.origin.probe(&lab.request()).await.unwrap();
    assert!(probe.final_url.query().unwrap().contains("hop=1"));
    let strict = Lab::with(|options| options.max_redirects = 0);
    strict.fault(FaultKind::Redirect);
    assert_eq!(refused_with(&strict.origin.probe(&strict.request()).await.unwrap_err()), 307);
    let resolve = get("https://huggingface.co/owner/model/resolve/main/weights.bin");
    let probe = lab.origin.probe(&resolve).await.unwrap();
    assert_eq!((probe.total_len, probe.final_url.host_str()), (Some(LEN), Some("cdn-lfs.huggingface.co")));
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let overrides = ["a.example", "b.example"].map(|host| (host.to_owned(), address)).into();
    let lab = Lab::with(|options| options.overrides = overrides);
    let mut request = get("http://a.example/x");
    request.headers.push(("Authorization".into(), b"Bearer secret".to_vec()));
    request.headers.push(("Cookie".into(), b"session=secret".to_vec()));
    let server = async {
        let to_b = "HTTP/1.1 302 Found\r\nLocation: http://b.example/y\r\nContent-Length: 0\r\n\r\n";
        let first = answer_one(&listener, to_b).await;
        (first, answer_one(&listener, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await)
    };
    let (probe, (first, second)) = tokio::join!(lab.origin.probe(&request), server);
    assert_eq!(probe.unwrap().total_len, Some(5));
    assert!(first.contains("Bearer secret") && first.contains("session=secret"), "{first}");
    assert!(second.contains("host: b.example") && !second.contains("secret"), "{second}");
}

#[tokio::test]
async fn an_origin_that_grants_no_head_is_asked_for_the_window_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let overrides = vec![("a.example".to_owned(), listener.local_addr().unwrap())];
    let lab = Lab::with(|options| options.overrides = overrides);
    let request = OriginRequest { window: Some(10..15), ..get("http://a.example/x") };
    let server = async {
        let no_head = "HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\nConnection: close\r\n\r\n";
        let first = answer_one(&listener, no_head).await;
        let part = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-14/99\r\nContent-Length: 5\r\n\r\nhello";
        (first, answer_one(&listener, part).await)
    };
    let (probe, (first, second)) = tokio::join!(lab.origin.probe(&request), server);
    let probe = probe.unwrap();
    assert_eq!((probe.total_len, probe.object_len), (Some(5), Some(99)));
    assert!(first.starts_with("HEAD /x") && second.starts_with("GET /x"), "{first}{second}");
    assert!([first, second].iter().all(|head| head.contains("range: bytes=10-14\r\n")));
}

/// Takes one connection, answers its first request; the request's head.
async fn answer_one(listener: &TcpListener, answer: &str) -> String {
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    socket.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(head).unwrap()
}

const REFUSED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A one-byte part, with further header lines.
fn part(lines: &str) -> String {
    format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/9\r\nContent-Length: 1\r\nConnection: close\r\n{lines}\r\nx"
    )
}

fn with_header(name: &str, value: &str) -> OriginRequest {
    OriginRequest::new(Url::parse("http://a.example/x").unwrap(), vec![(name.to_owned(), value.as_bytes().to_vec())])
}

#[tokio::test]
async fn a_header_that_no_list_knows_is_sent_and_keyed_once_the_origin_refuses_without_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let overrides = vec![("a.example".to_owned(), listener.local_addr().unwrap())];
    let lab = Lab::with(|options| options.overrides = overrides);
    let authorizer = Authorizer::new(AuthorizeOptions::default());
    let (sweet, sour) = (with_header("x-flavour", "sweet"), with_header("x-flavour", "sour"));
    let allowed = part("");
    let server = async { (answer_one(&listener, REFUSED).await, answer_one(&listener, &allowed).await) };
    let (asked, (first, second)) = tokio::join!(authorizer.authorize(&lab.origin, &sweet, true), server);
    assert_eq!(asked.unwrap().ground, Ground::Asked);
    assert!(!first.contains("x-flavour") && second.contains("x-flavour: sweet\r\n"), "{first}{second}");
    let server = async { (answer_one(&listener, REFUSED).await, answer_one(&listener, REFUSED).await) };
    let (refused, (_, second)) = tokio::join!(authorizer.authorize(&lab.origin, &sour, true), server);
    assert!(matches!(refused, Err(Refusal::Denied(_))) && second.contains("x-flavour: sour\r\n"), "{second}");
    let server = async { answer_one(&listener, REFUSED).await };
    let again = async { authorizer.authorize(&lab.origin, &sweet, true).await };
    let (remembered, _) = tokio::join!(again, server);
    assert_eq!(remembered.unwrap().ground, Ground::Remembered, "under a key that holds the header");
    let server = async { answer_one(&listener, REFUSED).await };
    let plain = get("http://a.example/x");
    let (none, _) = tokio::join!(authorizer.authorize(&lab.origin, &plain, true), server);
    assert!(matches!(none, Err(Refusal::Denied(_))), "no header, no consent");
}

#[tokio::test]
async fn a_consent_is_for_those_who_agree_in_what_the_origins_vary_names() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let overrides = vec![("a.example".to_owned(), listener.local_addr().unwrap())];
    let lab = Lab::with(|options| options.overrides = overrides);
    let authorizer = Authorizer::new(AuthorizeOptions::default());
    let varied = part("Vary: Accept-Language\r\n");
    let ask = |language: &str| {
        let request = with_header("accept-language", language);
        let (authorizer, origin, listener, varied) = (&authorizer, &lab.origin, &listener, &varied);
        async move {
            let asking = authorizer.authorize(origin, &request, true);
            tokio::pin!(asking);
            tokio::select! {
                biased;
                known = &mut asking => known.unwrap().ground,
                head = answer_one(listener, varied) => {
                    assert!(head.contains(&format!("accept-language: {}\r\n", String::from_utf8_lossy(&request.headers[0].1))));
                    asking.await.unwrap().ground
                }
            }
        }
    };
    assert_eq!((ask("de").await, ask("de").await), (Ground::Asked, Ground::Remembered));
    assert_eq!((ask("en").await, ask("en").await), (Ground::Asked, Ground::Remembered));
}

#[tokio::test]
async fn a_coded_body_is_no_object() {
    let lab = Lab::new();
    lab.hub.faults().add(Fault::new(FaultKind::Gzip));
    assert!(lab.origin.probe(&lab.request()).await.unwrap().encoded);
    let error = lab.origin.get_whole(&lab.request(), &Expected::default()).await.err().unwrap();
    assert!(matches!(error, OriginError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn an_inner_address_is_refused_before_anything_is_sent() {
    let lab = Lab::new();
    let port = lab.hub.tls_address().port();
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "169.254.169.254"] {
        let error = lab.origin.probe(&get(&format!("https://{host}:{port}/plain/x"))).await.unwrap_err();
        assert!(matches!(error, OriginError::Refused { .. }), "{host}: {error}");
    }
    assert_eq!(lab.hub.stats().connections, 0);
    let open = Lab::with(|options| options.allow_private = true);
    let url = format!("https://localhost:{}/plain/none", open.hub.tls_address().port());
    assert_eq!(refused_with(&open.origin.probe(&get(&url)).await.unwrap_err()), 403);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_of_another_name_gets_no_request() {
    let trusting = Lab::new();
    // The same hub under a name that its certificate does not have.
    let error = trusting.origin.probe(&get("https://elsewhere.example/plain/x")).await.unwrap_err();
    assert!(matches!(error, OriginError::Tls { .. }), "{error}");
    let other = Hub::start(HubOptions::default()).unwrap();
    let address: SocketAddr = other.tls_address();
    let stranger = Lab::with(|options| options.overrides = vec![("cdn-lfs.huggingface.co".into(), address)]);
    let error = stranger.origin.probe(&stranger.request()).await.unwrap_err();
    assert!(matches!(error, OriginError::Tls { .. }), "{error}");
    assert_eq!(error.class(), Class::Fatal);
}

#[tokio::test]
async fn an_origin_that_is_not_there_is_a_connect_error() {
    let lab = Lab::with(|options| options.overrides = vec![(HOSTS[1].into(), SocketAddr::from(([127, 0, 0, 1], 1)))]);
    let error = lab.origin.probe(&lab.request()).await.unwrap_err();
    assert!(matches!(error, OriginError::Connect { .. }), "{error}");
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn other_methods_pass_through_with_their_bodies() {
    let lab = Lab::new();
    let sent = seeded(9, 0, 1 << 20);
    let echo = get("https://huggingface.co/_echo");
    let response = lab.origin.forward(Method::POST, &echo, Full::new(sent.clone().into())).await.unwrap();
    assert_eq!(response.headers()["x-echo-method"], "POST");
    assert!(read(response.into_body()).await.unwrap() == sent);
    let head = lab.origin.forward(Method::HEAD, &lab.request(), Full::default()).await.unwrap();
    assert_eq!(head.headers()["content-length"], LEN.to_string().as_str());
    assert!(read(head.into_body()).await.unwrap().is_empty());
    let resolve = get("https://huggingface.co/owner/model/resolve/main/weights.bin");
    assert_eq!(lab.origin.forward(Method::GET, &resolve, Full::default()).await.unwrap().status(), StatusCode::FOUND);
}

#[tokio::test]
async fn consent_is_asked_once_for_all_who_ask_the_same_and_again_for_another_signature() {
    let lab = Lab::new();
    let authorizer = Authorizer::new(AuthorizeOptions::default());
    let request = lab.request();
    let ask = || async { authorizer.authorize(&lab.origin, &request, true).await.unwrap() };
    let (a, b, c) = tokio::join!(ask(), ask(), ask());
    let asked: Vec<Probe> = [a, b, c].map(|allowed| (*allowed.probe.unwrap()).clone()).into();
    assert!(asked.iter().all(|probe| probe.total_len == Some(LEN)));
    assert_eq!(ask().await.ground, Ground::Remembered);
    assert_eq!(lab.hub.stats().object(LABEL).all_gets(), 1);
    let refusal = authorizer.authorize(&lab.origin, &forged(request.clone()), true).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Denied(_)));
    assert_eq!((refusal.status(), refusal.answer().is_some()), (StatusCode::FORBIDDEN, true));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_asks_does_not_leave_others_without_an_answer() {
    let lab = Lab::new();
    lab.fault(FaultKind::Status503 { retry_after: Some(1) });
    let authorizer = Arc::new(Authorizer::new(AuthorizeOptions::default()));
    let request = lab.request();
    let first = tokio::time::timeout(Duration::from_millis(300), authorizer.authorize(&lab.origin, &request, false));
    let second = authorizer.authorize(&lab.origin, &request, false);
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_err());
    assert_eq!(second.unwrap().ground, Ground::Asked);
}

#[tokio::test]
async fn an_expired_url_is_refused_although_the_object_is_held() {
    let lab = Lab::new();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(100_000);
    let request = get(&lab.hub.signed_url_at(LABEL, long_ago).unwrap());
    let refusal =
        Authorizer::new(AuthorizeOptions::default()).authorize(&lab.origin, &request, true).await.unwrap_err();
    assert_eq!(refusal.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_bearer_token_of_one_client_is_not_another_clients_consent() {
    let lab = Lab::new();
    let rules = PlainRules { etag: Some("e".into()), token: Some("secret".into()), ..PlainRules::default() };
    lab.hub.add_plain("guarded", Content::seeded(1000, 1), rules).unwrap();
    let authorizer = Authorizer::new(AuthorizeOptions::default());
    let anonymous = get("https://cdn-lfs.huggingface.co/plain/guarded");
    let mut known = anonymous.clone();
    known.headers.push(("authorization".into(), b"Bearer secret".to_vec()));
    assert!(authorizer.authorize(&lab.origin, &known, true).await.is_ok());
    let refusal = authorizer.authorize(&lab.origin, &anonymous, true).await.unwrap_err();
    assert_eq!(refusal.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn without_the_origin_held_objects_are_refused_unless_the_settings_say_otherwise() {
    let lab = Lab::new();
    lab.hub.faults().add(Fault::new(FaultKind::Status503 { retry_after: None }));
    let brisk = || AuthorizeOptions { deadline: Duration::from_secs(2), ..AuthorizeOptions::default() };
    let refusal = Authorizer::new(brisk()).authorize(&lab.origin, &lab.request(), true).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Unreachable(_)), "{refusal}");
    let open = Authorizer::new(AuthorizeOptions { serve_when_origin_down: true, ..brisk() });
    assert_eq!(open.authorize(&lab.origin, &lab.request(), true).await.unwrap().ground, Ground::OriginDown);
    assert!(open.authorize(&lab.origin, &lab.request(), false).await.is_err());
    let public = vec!["huggingface.co/repos".parse().unwrap()];
    let public = Authorizer::new(AuthorizeOptions { public, ..brisk() });
    assert_eq!(public.authorize(&lab.origin, &lab.request(), true).await.unwrap().ground, Ground::Public);
}
