//! Fuzz targets of the parsers of outside bytes and of the pure state machines. Each module is one target; `README.md` says
//! how they are run.
//!
//! A target takes any bytes and panics on what must not be. The binaries in `fuzz_targets/` hand them libFuzzer's inputs,
//! and a test replays the corpus without libFuzzer.

#![deny(unsafe_code)]

pub mod admission_review;
pub mod certificate;
pub mod chunked_body;
pub mod client_hello;
pub mod cluster;
pub mod config_document;
pub mod config_import;
pub mod download;
pub mod header_fields;
pub mod hub_answer;
pub mod join_token;
pub mod mirror_rewrite;
pub mod piece_table;
pub mod proxy_users;
pub mod range_header;
pub mod reconstruction;
pub mod request_head;
pub mod request_route;
pub mod scheduler_message;
pub mod store_index;
pub mod task_identity;
pub mod upstream_head;
pub mod url_expiry;
pub mod wire_frame;
pub mod xorb;

mod http_server;

/// One fuzz target.
pub struct Target {
    /// The name of its module, its binary and its corpus.
    pub name: &'static str,
    /// Runs it on one input.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name::run }),*];
    };
}
targets!(
    admission_review,
    certificate,
    chunked_body,
    client_hello,
    cluster,
    config_document,
    config_import,
    download,
    header_fields,
    hub_answer,
    join_token,
    mirror_rewrite,
    piece_table,
    proxy_users,
    range_header,
    reconstruction,
    request_head,
    request_route,
    scheduler_message,
    store_index,
    task_identity,
    upstream_head,
    url_expiry,
    wire_frame,
    xorb,
);
