//! From the queue to a collector: batches by OTLP, on a thread of their own.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use hyper::http::Uri;
use pondhawk_proto::otlp::{
    self, ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans, ScopeSpans,
    trace_service_client::TraceServiceClient,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tonic::{
    Code, Status,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use crate::service::random;

use super::{
    outage::Outage,
    span::{Kind, Record, Shared, Tracer, Value},
};

/// Spans that wait to be sent, some 600 bytes each.
const QUEUE: usize = 2048;
/// Spans in a request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const EVERY: Duration = Duration::from_secs(1);
/// For one request, the connection included.
const REQUEST: Duration = Duration::from_secs(5);
/// For what is left in the queue at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// Where traces go, and which.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://host:port` or `https://host:port` of an OTLP receiver that speaks gRPC.
    pub endpoint: String,
    /// The share of requests that are recorded, from 0 to 1.
    pub sample: f64,
    /// Whether clients say which of their requests are, and in which trace.
    pub follow: bool,
    /// Who records: `service.name`.
    pub service: &'static str,
    /// Which of them: `service.instance.id`.
    pub instance: String,
}

/// What is wrong with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be http://host:port or https://host:port, as in http://127.0.0.1:4317")]
pub struct EndpointError;

/// Why nothing is traced.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum TraceError {
    #[error("{endpoint}: {source}")]
    Endpoint { endpoint: String, source: EndpointError },
    #[error("{endpoint}: {source}")]
    Tls { endpoint: String, source: tonic::transport::Error },
    #[error("the system gives no thread for traces: {0}")]
    System(#[from] io::Error),
}

/// The thread that sends.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Exporter {
    /// Sends what is left, for at most three seconds.
    pub fn finish(self) {
        let Self { stop, thread } = self;
        // It fails where the thread has ended.
        let _ = stop.send(());
        let _ = thread.join();
    }
}

/// Whether this can be an endpoint. A path is refused: gRPC's is fixed, and whoever gives one means another protocol.
pub fn check_endpoint(text: &str) -> Result<(), EndpointError> {
    let uri: Uri = text.parse().map_err(|_| EndpointError)?;
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let bare = uri.path() == "/" && uri.query().is_none();
    let place = uri.authority().is_some_and(|place| place.port_u16().is_some() && !place.as_str().contains('@'));
    if scheme && bare && place { Ok(()) } else { Err(EndpointError) }
}

/// Starts the thread. The collector need not be there.
///
/// # Errors
/// [`TraceError`]: a setting is wrong, or there is no thread.
pub fn start(settings: &Settings) -> Result<(Tracer, Exporter), TraceError> {
    let endpoint = endpoint(&settings.endpoint)?;
    let (queue, spans) = mpsc::channel(QUEUE);
    let (tracer, shared) = Tracer::new(queue, [random(), random(), random()], settings.sample, settings.follow);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    let (stop, stopped) = oneshot::channel();
    let resource = resource(settings);
    let name = settings.endpoint.clone();
    let thread = std::thread::Builder::new().name("trace".to_owned()).spawn(move || {
        runtime.block_on(async {
            let client = TraceServiceClient::new(endpoint.connect_lazy());
            let sender = Sender { spans, shared, client, resource, batch: Vec::new(), outage: Outage::default(), name };
            sender.run(stopped).await;
        });
        // A look-up of the collector's name may hang.
        runtime.shutdown_background();
    })?;
    tracing::info!(endpoint = settings.endpoint, sample = settings.sample, "traces are sent");
    Ok((tracer, Exporter { stop, thread }))
}

fn endpoint(text: &str) -> Result<Endpoint, TraceError> {
    let wrong = |source| TraceError::Endpoint { endpoint: text.to_owned(), source };
    check_endpoint(text).map_err(wrong)?;
    let endpoint = Endpoint::from_shared(text.to_owned()).map_err(|_| wrong(EndpointError))?;
    let endpoint = endpoint.connect_timeout(REQUEST).timeout(REQUEST);
    if !text.starts_with("https:") {
        return Ok(endpoint);
    }
    // The system's authorities, and those in SSL_CERT_FILE.
    let tls = ClientTlsConfig::new().with_native_roots();
    endpoint.tls_config(tls).map_err(|source| TraceError::Tls { endpoint: text.to_owned(), source })
}

struct Sender {
    spans: mpsc::Receiver<Record>,
    shared: Arc<Shared>,
    client: TraceServiceClient<Channel>,
    resource: otlp::Resource,
    /// What is to be sent next; kept while the collector is away.
    batch: Vec<Record>,
    outage: Outage,
    name: String,
}

impl Sender {
    /// Until it is to stop, or nobody can record any more.
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let more = tokio::select! {
                biased;
                _ = &mut stopped => break,
                more = self.fill() => more,
            };
            if !more {
                break;
            }
            let stops = tokio::select! {
                biased;
                _ = &mut stopped => true,
                () = self.deliver() => false,
            };
            if stops {
                break;
            }
        }
        self.flush().await;
    }

    /// Waits for a batch; false where none will come. What was taken stays if the future is dropped.
    async fn fill(&mut self) -> bool {
        if self.batch.is_empty() && self.spans.recv_many(&mut self.batch, BATCH).await == 0 {
            return false;
        }
        let due = Instant::now() + EVERY;
        while self.batch.len() < BATCH {
            let room = BATCH - self.batch.len();
            match tokio::time::timeout_at(due, self.spans.recv_many(&mut self.batch, room)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        true
    }

    /// Sends the batch, however long the collector is away; meanwhile the queue fills up. May be dropped.
    async fn deliver(&mut self) {
        while let Err(status) = self.send().await {
            if !is_passing(&status) {
                self.lose(&status);
                return;
            }
            let (pause, is_news) = self.outage.failed();
            if is_news {
                tracing::warn!(
                    endpoint = self.name,
                    why = why(&status),
                    "traces are not taken; more are lost when the queue is full"
                );
            }
            sleep(pause).await;
        }
    }

    /// Once more, as long as it goes well and there is time. What is left is lost.
    async fn flush(&mut self) {
        let sending = async {
            while let Ok(()) = self.send().await {
                while self.batch.len() < BATCH
                    && let Ok(record) = self.spans.try_recv()
                {
                    self.batch.push(record);
                }
                if self.batch.is_empty() {
                    return;
                }
            }
        };
        // The queue says what is left.
        let _ = timeout(FLUSH, sending).await;
        let left = self.batch.len() + self.spans.len();
        if left > 0 {
            self.shared.dropped.fetch_add(left as u64, Ordering::Relaxed);
            tracing::warn!(endpoint = self.name, left, "traces are lost: the collector did not take them in time");
        }
    }

    /// One request with the batch; it is empty if that went well.
    async fn send(&mut self) -> Result<(), Status> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let answer = timeout(REQUEST, self.client.export(self.request())).await;
        let late = || Status::deadline_exceeded(format!("no answer within {REQUEST:?}"));
        let answer = answer.unwrap_or_else(|_| Err(late()))?.into_inner();
        self.taken(answer);
        if self.outage.worked() {
            tracing::info!(endpoint = self.name, "traces are taken again");
        }
        Ok(())
    }

    fn taken(&mut self, answer: ExportTraceServiceResponse) {
        let sent = self.batch.len() as u64;
        self.batch.clear();
        let rejected = answer.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0));
        let rejected = rejected.min(sent);
        self.shared.exported.fetch_add(sent - rejected, Ordering::Relaxed);
        self.shared.dropped.fetch_add(rejected, Ordering::Relaxed);
    }

    /// The collector never takes this batch.
    fn lose(&mut self, status: &Status) {
        if self.outage.failed().1 {
            tracing::warn!(endpoint = self.name, why = why(status), "traces are refused, and lost");
        }
        self.shared.dropped.fetch_add(self.batch.len() as u64, Ordering::Relaxed);
        self.batch.clear();
    }

    fn request(&self) -> ExportTraceServiceRequest {
        let scope =
            otlp::InstrumentationScope { name: "pondhawk".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let spans = self.batch.iter().map(span).collect();
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans }],
        }
    }
}

/// As the protocol's specification tells them apart.
fn is_passing(status: &Status) -> bool {
    use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable, Unknown};
    // Unknown is what a connection that fails comes to.
    let passing = [Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable, Unknown];
    passing.contains(&status.code())
}

/// Down to its cause: the status of a connection that failed says nothing.
fn why(status: &Status) -> String {
    let mut why = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let said = cause.to_string();
        if !why.contains(&said) {
            why = format!("{why}: {said}");
        }
        source = cause.source();
    }
    why
}

fn resource(settings: &Settings) -> otlp::Resource {
    let word = |key: &'static str, value: &str| attribute(key, Value::from(value.to_owned()));
    otlp::Resource {
        attributes: vec![
            word("service.name", settings.service),
            word("service.version", env!("CARGO_PKG_VERSION")),
            word("service.instance.id", &settings.instance),
        ],
    }
}

fn span(record: &Record) -> otlp::Span {
    use otlp::span::{Link, SpanKind};
    let mut attributes: Vec<_> = record.attributes.iter().map(|(key, value)| attribute(key, value.clone())).collect();
    let counted = [("pondhawk.pieces", record.pieces), ("pondhawk.bytes", record.bytes)];
    attributes.extend(
        counted.into_iter().filter(|(_, count)| *count > 0).map(|(key, count)| attribute(key, Value::Number(count))),
    );
    let link =
        record.link.map(|link| Link { trace_id: link.trace.to_vec().into(), span_id: link.span.to_vec().into() });
    let kind = match record.kind {
        Kind::Internal => SpanKind::Internal,
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    let failed = |why: &String| otlp::Status { message: why.clone(), code: otlp::status::StatusCode::Error.into() };
    otlp::Span {
        trace_id: record.context.trace.to_vec().into(),
        span_id: record.context.span.to_vec().into(),
        parent_span_id: record.parent.map_or_else(bytes::Bytes::new, |parent| parent.to_vec().into()),
        name: record.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: record.start,
        end_time_unix_nano: record.end,
        attributes,
        links: link.into_iter().collect(),
        status: record.error.as_ref().map(failed),
    }
}

fn attribute(key: &str, value: Value) -> otlp::KeyValue {
    use otlp::any_value::Value as Any;
    let value = match value {
        Value::Text(text) => Any::StringValue(text),
        Value::Word(word) => Any::StringValue(word.to_owned()),
        Value::Number(number) => Any::IntValue(i64::try_from(number).unwrap_or(i64::MAX)),
        Value::Flag(flag) => Any::BoolValue(flag),
    };
    otlp::KeyValue { key: key.to_owned(), value: Some(otlp::AnyValue { value: Some(value) }) }
}
