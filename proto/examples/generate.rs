//! Generates `src/generated/` from the .proto files: `cargo run -p pondhawk-proto --example generate`.

#[path = "../tests/generator/mod.rs"]
mod generator;

fn main() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    generator::generate(root, &root.join("src/generated"));
}
