//! The questions to an origin that come before a download, as parts of the request's trace.

use std::sync::Arc;

use super::Terms;
use crate::{
    authorize::{Allowed, Ground, Refusal},
    node::Node,
    swarm::{OriginError, OriginRequest, Probe},
    trace::{Kind, Span, asked_of_origin},
};

/// Whether the client may have it: see [`Authorizer::authorize`](crate::authorize::Authorizer::authorize).
pub(super) async fn authorize(
    node: &Node,
    request: &OriginRequest,
    held: bool,
    terms: &Terms,
) -> Result<Allowed, Refusal> {
    let mut span = begin(node, "authorize", request, terms);
    let allowed = node.authorizer.authorize(&node.origin, request, held).await;
    match &allowed {
        Ok(Allowed { ground, probe }) => {
            span.set("pondhawk.ground", ground_name(*ground));
            if let (Ground::Asked, Some(probe)) = (ground, probe) {
                span.set("http.response.status_code", u64::from(probe.status.as_u16()));
            }
        }
        Err(refusal) => failed(&mut span, refusal.error()),
    }
    allowed
}

/// What the origin tells of it: see [`Origin::probe`](crate::swarm::Origin::probe).
pub(super) async fn probe(node: &Node, request: &OriginRequest, terms: &Terms) -> Result<Arc<Probe>, OriginError> {
    let mut span = begin(node, "probe", request, terms);
    let probe = node.origin.probe(request).await;
    match &probe {
        Ok(probe) => span.set("http.response.status_code", u64::from(probe.status.as_u16())),
        Err(error) => failed(&mut span, error),
    }
    probe.map(Arc::new)
}

fn begin(node: &Node, name: &'static str, request: &OriginRequest, terms: &Terms) -> Span {
    let mut span = node.tracer.span(name, Kind::Client, terms.trace);
    asked_of_origin(&mut span, "GET", request);
    span
}

fn failed(span: &mut Span, error: &OriginError) {
    if let Some(answer) = error.answer() {
        span.set("http.response.status_code", u64::from(answer.status.as_u16()));
    }
    span.fail(|| error.to_string());
}

fn ground_name(ground: Ground) -> &'static str {
    match ground {
        Ground::Asked => "asked",
        Ground::Remembered => "remembered",
        Ground::Public => "public",
        Ground::OriginDown => "origin_down",
    }
}
