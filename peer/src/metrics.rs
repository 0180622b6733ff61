//! What the node counts, in Prometheus' terms.
