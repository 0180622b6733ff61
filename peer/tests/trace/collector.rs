//! A receiver of traces, as a collector has one, that keeps all it gets.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use pondhawk_bench::lab::wait_until;
use pondhawk_proto::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, any_value,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Longer than anything here may take.
const LONG: Duration = Duration::from_secs(60);

/// Receives until it is dropped.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    received: Received,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

/// A span, in text.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `service.name` and `service.instance.id`.
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty: none.
    pub(crate) parent: String,
    /// Trace and span that it refers to.
    pub(crate) links: Vec<(String, String)>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) failed: bool,
    /// Nanoseconds.
    pub(crate) lasts: std::ops::Range<u64>,
}

impl Seen {
    pub(crate) fn number(&self, key: &str) -> u64 {
        self.attributes.get(key).map_or(0, |text| text.parse().unwrap())
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// On a listener, wherever that is.
    pub(crate) fn start(listener: TcpListener) -> Self {
        let received = Received::default();
        let service = TraceServiceServer::new(received.clone());
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, received, _runtime: runtime }
    }

    /// Everything so far.
    pub(crate) fn spans(&self) -> Vec<Seen> {
        let received = self.received.0.lock().unwrap();
        let resources = received.iter().flat_map(|request| &request.resource_spans);
        resources
            .flat_map(|resource| {
                let who = texts(&resource.resource.as_ref().unwrap().attributes);
                let spans = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
                spans.map(move |span| Seen {
                    service: who["service.name"].clone(),
                    instance: who["service.instance.id"].clone(),
                    name: span.name.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
                    attributes: texts(&span.attributes),
                    failed: span.status.is_some(),
                    lasts: span.start_time_unix_nano..span.end_time_unix_nano,
                })
            })
            .collect()
    }

    /// Waits until all that is wanted is there.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let found = wait_until(LONG, || Some(self.spans()).filter(|spans| wanted(spans)));
        found.unwrap_or_else(|| panic!("only {:#?}", self.spans()))
    }

    /// All bytes that came, as they came.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.received.0.lock().unwrap().iter().flat_map(prost::Message::encode_to_vec).collect()
    }
}

/// A listener in another network namespace: a socket stays where it was made.
pub(crate) fn listen_in(netns: &str, address: SocketAddr) -> TcpListener {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let namespace = File::open(format!("/run/netns/{netns}")).unwrap();
    let there = thread::spawn(move || {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network)).unwrap();
        TcpListener::bind(address).unwrap()
    });
    there.join().unwrap()
}

/// Insists that the spans of a trace are one tree below its one root, which is given, and within the time of their parents'
/// beginnings.
pub(crate) fn assert_tree<'a>(spans: &'a [Seen], trace: &str) -> &'a Seen {
    let all: Vec<_> = spans.iter().filter(|span| span.trace == trace).collect();
    let roots: Vec<_> = all.iter().filter(|span| span.parent.is_empty()).collect();
    assert_eq!(roots.len(), 1, "{all:#?}");
    for span in &all {
        assert!(span.lasts.end >= span.lasts.start, "{span:#?}");
        let parent = all.iter().find(|other| other.id == span.parent);
        assert!(span.parent.is_empty() || parent.is_some(), "{span:#?} has no parent among {all:#?}");
    }
    roots[0]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(said: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |said: &KeyValue| match said.value.clone().unwrap().value.unwrap() {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(flag) => flag.to_string(),
    };
    said.iter().map(|one| (one.key.clone(), text(one))).collect()
}
