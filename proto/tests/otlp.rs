//! The messages of traces are OpenTelemetry's own: bytes that opentelemetry-proto 0.33.1 made of the same values.

use pondhawk_proto::otlp::{
    AnyValue, ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope,
    KeyValue, Resource, ResourceSpans, ScopeSpans, Span, Status, any_value::Value, span, status,
};
use prost::Message as _;

const REQUEST: &[&str] = &[
    "0abf010a1c0a1a0a0c736572766963652e6e616d65120a0a08706f6e646861776b129e010a0d0a08706f6e646861776b1201",
    "31128c010a100102030405060708090a0b0c0d0e0f10120811121314151617182208191a1b1c1d1e1f202a05666574636830",
    "03390100b49376e2fa18410200b49376e2fa184a080a016112030a01624a100a0163120b18fdffffffffffffffff014a070a",
    "0164120210016a1c0a102122232425262728292a2b2c2d2e2f30120831323334353637387a0612026e6f1802",
];
const RESPONSE: &str = "0a080803120466756c6c";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn said(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) }
}

fn recorded_span() -> Span {
    let bytes = |range: std::ops::Range<u8>| range.collect::<Vec<u8>>().into();
    Span {
        trace_id: bytes(1..17),
        span_id: bytes(17..25),
        parent_span_id: bytes(25..33),
        name: "fetch".into(),
        kind: span::SpanKind::Client.into(),
        start_time_unix_nano: 1_800_000_000_000_000_001,
        end_time_unix_nano: 1_800_000_000_000_000_002,
        attributes: vec![
            said("a", Value::StringValue("b".into())),
            said("c", Value::IntValue(-3)),
            said("d", Value::BoolValue(true)),
        ],
        links: vec![span::Link { trace_id: bytes(33..49), span_id: bytes(49..57) }],
        status: Some(Status { message: "no".into(), code: status::StatusCode::Error.into() }),
    }
}

#[test]
fn a_request_has_the_bytes_that_the_official_messages_have() {
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![said("service.name", Value::StringValue("pondhawk".into()))] }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope { name: "pondhawk".into(), version: "1".into() }),
                spans: vec![recorded_span()],
            }],
        }],
    };
    assert_eq!(hex(&request.encode_to_vec()), REQUEST.concat());
}

#[test]
fn an_answer_is_read_as_the_official_messages_mean_it() {
    let bytes: Vec<u8> =
        (0..RESPONSE.len()).step_by(2).map(|at| u8::from_str_radix(&RESPONSE[at..at + 2], 16).unwrap()).collect();
    let partial_success = Some(ExportTracePartialSuccess { rejected_spans: 3, error_message: "full".into() });
    assert_eq!(ExportTraceServiceResponse::decode(&bytes[..]).unwrap(), ExportTraceServiceResponse { partial_success });
}
