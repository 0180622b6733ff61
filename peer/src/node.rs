//! Wiring: build, run and drain a node.
