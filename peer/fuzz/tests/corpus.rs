//! Every input of the corpus passes its target, in a plain build: what was once found is never let back in.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use pondhawk_fuzz::{TARGETS, Target};

/// Bytes of an input in the tree: longer ones say no more and are slow to change.
const MAX_INPUT: u64 = 4 << 10;
/// Inputs of a target in the tree.
const MAX_INPUTS: usize = 80;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn inputs(target: &Target) -> Vec<PathBuf> {
    let dir = corpus().join(target.name);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry of the corpus").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_input_of_the_corpus_passes_its_target() {
    let mut failed = Vec::new();
    for target in TARGETS {
        for path in inputs(target) {
            let bytes = fs::read(&path).expect("an input can be read");
            if panic::catch_unwind(|| (target.run)(&bytes)).is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn every_target_has_a_binary_and_a_small_corpus() {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").path().with_extension("").file_name().unwrap().display().to_string())
            .collect();
        names.sort();
        names
    };
    let targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names(&corpus()), targets);
    assert_eq!(names(&corpus().with_file_name("fuzz_targets")), targets);
    for target in TARGETS {
        let inputs = inputs(target);
        assert!((1..=MAX_INPUTS).contains(&inputs.len()), "{}: {} inputs", target.name, inputs.len());
        for path in inputs {
            assert!(path.metadata().unwrap().len() <= MAX_INPUT, "{} is too long", path.display());
        }
    }
}
