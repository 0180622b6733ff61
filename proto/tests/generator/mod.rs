//! .proto files to Rust without protoc: protox parses, tonic-prost-build writes.

use std::path::Path;

const FILES: [&str; 2] = ["pondhawk/v1/scheduler.proto", "opentelemetry/trace.proto"];

/// Writes the code of the package at `root` into `out`.
pub fn generate(root: &Path, out: &Path) {
    let descriptors = protox::compile(FILES.map(|file| root.join(file)), [root]).expect("the .proto files parse");
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out)
        .compile_fds(descriptors)
        .expect("the generator writes where it is told");
}
