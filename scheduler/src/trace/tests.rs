//! Against a receiver by gRPC, on the same machine.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use pondhawk_proto::otlp::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Span as Sent,
    any_value,
    span::SpanKind,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::*;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// What a test of another module records, and where it arrives.
pub(crate) async fn recorded() -> (Tracer, Exporter, Receiver) {
    let receiver = Receiver::default();
    let (tracer, exporter) = start(&settings(receiver.serve().await)).unwrap();
    (tracer, exporter, receiver)
}

#[derive(Clone, Default)]
pub(crate) struct Receiver {
    spans: Arc<Mutex<Vec<Sent>>>,
    resource: Arc<Mutex<Vec<KeyValue>>>,
    rejects: i64,
    refuses: Option<tonic::Code>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if let Some(code) = self.refuses {
            return Err(Status::new(code, "no"));
        }
        for resource in request.into_inner().resource_spans {
            *self.resource.lock().unwrap() = resource.resource.unwrap().attributes;
            let scopes = resource.scope_spans.into_iter();
            self.spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        }
        let partial = ExportTracePartialSuccess { rejected_spans: self.rejects, error_message: String::new() };
        Ok(Response::new(ExportTraceServiceResponse { partial_success: Some(partial) }))
    }
}

impl Receiver {
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    /// Each span in text, its attributes among its names.
    pub(crate) fn told(&self) -> Vec<HashMap<String, String>> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let told = |span: &Sent| {
            let own =
                [("name", span.name.clone()), ("trace", hex(&span.trace_id)), ("parent", hex(&span.parent_span_id))];
            let own = own.into_iter().map(|(key, text)| (key.to_owned(), text));
            own.chain(span.attributes.iter().map(|said| (said.key.clone(), text(said)))).collect()
        };
        self.spans.lock().unwrap().iter().map(told).collect()
    }

    fn by_name(&self) -> HashMap<String, Sent> {
        self.spans.lock().unwrap().iter().map(|span| (span.name.clone(), span.clone())).collect()
    }
}

fn settings(address: SocketAddr) -> Settings {
    let endpoint = format!("http://{address}");
    Settings { endpoint, sample: 1.0, follow: false, service: "pondhawk", instance: "node-1".to_owned() }
}

/// Ends the exporter without holding the receiver up.
pub(crate) async fn finish(exporter: Exporter) {
    tokio::task::spawn_blocking(|| exporter.finish()).await.unwrap();
}

fn text(said: &KeyValue) -> String {
    match said.value.clone().unwrap().value.unwrap() {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(flag) => flag.to_string(),
    }
}

fn said(span: &Sent, key: &str) -> Option<any_value::Value> {
    let found = span.attributes.iter().find(|said| said.key == key)?;
    found.value.clone()?.value
}

#[tokio::test]
async fn a_trace_arrives_as_a_tree_with_what_was_said_and_counted() {
    let receiver = Receiver::default();
    let (tracer, exporter) = start(&settings(receiver.serve().await)).unwrap();
    let client = Traceparent { context: Context { trace: [7; 16], span: [8; 8] }, sampled: true };
    let header = client.to_string();
    let mut request = tracer.request("request", || Some(header.as_bytes()));
    request.set("http.response.status_code", 200_u64);
    let mut fetch = request.child("fetch", Kind::Client);
    fetch.add(2, 1000);
    fetch.add(1, 24);
    fetch.set("pondhawk.outcome", "miss");
    fetch.set("pondhawk.outcome", "joined");
    fetch.fail(|| "x".repeat(600));
    let elsewhere = tracer.span("origin run", Kind::Client, fetch.context());
    drop((elsewhere, fetch, request));
    finish(exporter).await;
    let spans = receiver.by_name();
    let (request, fetch, run) = (&spans["request"], &spans["fetch"], &spans["origin run"]);
    assert!([fetch, run].iter().all(|span| span.trace_id == request.trace_id), "{spans:#?}");
    assert_ne!(request.trace_id, vec![7; 16], "a client does not choose what it is part of");
    assert_eq!((&*request.links[0].trace_id, &*request.links[0].span_id), (&[7; 16][..], &[8; 8][..]));
    assert!(request.parent_span_id.is_empty());
    assert_eq!((&fetch.parent_span_id, &run.parent_span_id), (&request.span_id, &fetch.span_id));
    assert_eq!((request.kind(), fetch.kind()), (SpanKind::Server, SpanKind::Client));
    assert_eq!(said(fetch, "pondhawk.bytes"), Some(any_value::Value::IntValue(1024)));
    assert_eq!(said(fetch, "pondhawk.pieces"), Some(any_value::Value::IntValue(3)));
    assert_eq!(said(fetch, "pondhawk.outcome"), Some(any_value::Value::StringValue("joined".into())));
    assert_eq!(fetch.status.as_ref().unwrap().message.len(), 512);
    assert!(fetch.start_time_unix_nano >= request.start_time_unix_nano);
    assert!(fetch.end_time_unix_nano >= fetch.start_time_unix_nano);
    assert_eq!(tracer.counts().unwrap(), Counts { exported: 3, dropped: 0 });
    let resource = receiver.resource.lock().unwrap();
    assert!(resource.iter().any(|said| said.key == "service.instance.id"), "{resource:?}");
}

#[tokio::test]
async fn a_client_is_followed_only_where_settings_say_so() {
    let receiver = Receiver::default();
    let address = receiver.serve().await;
    let (tracer, exporter) = start(&Settings { follow: true, sample: 0.0, ..settings(address) }).unwrap();
    let context = Context { trace: [7; 16], span: [8; 8] };
    let header = |sampled| Traceparent { context, sampled }.to_string();
    let of = |header: &str| tracer.request("request", || Some(header.as_bytes())).context();
    assert_eq!(of(&header(true)).unwrap().trace, [7; 16]);
    assert_eq!((of(&header(false)), of("garbage")), (None, None));
    finish(exporter).await;
    assert_eq!(&*receiver.by_name()["request"].parent_span_id, &[8; 8]);
    let (tracer, exporter) = start(&Settings { sample: 0.0, ..settings(address) }).unwrap();
    let sampled = header(true);
    assert!(!tracer.request("request", || Some(sampled.as_bytes())).is_on());
    assert!(!tracer.remote("serve", Kind::Server, Some(context)).is_on(), "the share holds for other nodes as well");
    finish(exporter).await;
}

#[tokio::test]
async fn what_is_kept_when_busy_lasts_from_the_first_to_the_last_time_or_is_not_there() {
    let receiver = Receiver::default();
    let (tracer, exporter) = start(&settings(receiver.serve().await)).unwrap();
    let request = tracer.request("request", || None);
    let idle = request.child("idle", Kind::Internal).when_busy();
    let mut busy = request.child("busy", Kind::Internal).when_busy();
    busy.busy();
    busy.busy();
    drop((idle, busy, request));
    finish(exporter).await;
    let spans = receiver.by_name();
    assert!(!spans.contains_key("idle"));
    let (whole, part) = (&spans["request"], &spans["busy"]);
    assert!(whole.start_time_unix_nano <= part.start_time_unix_nano);
    assert!(part.start_time_unix_nano <= part.end_time_unix_nano);
    assert!(part.end_time_unix_nano <= whole.end_time_unix_nano, "one clock: a part never ends after the whole");
}

#[tokio::test]
async fn without_a_collector_nobody_waits_and_what_does_not_fit_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (tracer, exporter) = start(&settings(address)).unwrap();
    for _ in 0..10_000 {
        drop(tracer.request("request", || None));
    }
    let dropped = tracer.counts().unwrap().dropped;
    assert!(dropped >= 10_000 - 2048 - 512, "the queue and a batch hold no more: {dropped}");
    finish(exporter).await;
    assert_eq!(tracer.counts().unwrap(), Counts { exported: 0, dropped: 10_000 });
}

#[tokio::test]
async fn what_a_collector_rejects_or_refuses_is_counted_as_lost() {
    let some = Receiver { rejects: 1, ..Receiver::default() };
    let (tracer, exporter) = start(&settings(some.serve().await)).unwrap();
    drop([tracer.request("request", || None), tracer.request("request", || None)]);
    finish(exporter).await;
    assert_eq!(tracer.counts().unwrap(), Counts { exported: 1, dropped: 1 });
    let none = Receiver { refuses: Some(tonic::Code::Unimplemented), ..Receiver::default() };
    let (tracer, exporter) = start(&settings(none.serve().await)).unwrap();
    drop(tracer.request("request", || None));
    let lost = async {
        while tracer.counts().unwrap().dropped == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, lost).await.unwrap();
    finish(exporter).await;
}

#[test]
fn off_there_is_nothing_to_pay_for() {
    let tracer = Tracer::default();
    let mut request = tracer.request("request", || panic!("no header is looked for"));
    request.set_with("key", || -> String { panic!("no value is made") });
    request.fail(|| panic!("nor a reason"));
    assert_eq!((tracer.is_on(), request.is_on(), request.context(), tracer.counts()), (false, false, None, None));
    assert!(!request.child("fetch", Kind::Internal).is_on());
}

#[test]
fn an_endpoint_that_cannot_be_one_is_named() {
    let wrong = Settings { endpoint: "http://collector/v1/traces".to_owned(), ..settings(([127, 0, 0, 1], 1).into()) };
    assert!(start(&wrong).unwrap_err().to_string().starts_with("http://collector/v1/traces: must be http://host:port"));
}
