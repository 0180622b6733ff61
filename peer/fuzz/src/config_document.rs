//! Configuration files and settings: what is read is written and read again as the same, and errors name the file.

use std::path::Path;

use pondhawk::config::Config;

/// Runs the target: a document; or, after a first line that begins with `--set `, a setting.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let loaded = match text.strip_prefix("--set ") {
        Some(setting) => Config::load(None, [], &[setting.to_owned()]).map(|loaded| loaded.config),
        None => Config::parse(text, Path::new("fuzz.yaml")),
    };
    match loaded {
        Ok(config) => {
            let problems = config.problems();
            assert!(problems.iter().all(|problem| !problem.reason.is_empty()));
            let written = config.to_yaml();
            let again = Config::parse(&written, Path::new("written.yaml"));
            assert_eq!(again.expect("what is written can be read"), config, "{written}");
        }
        Err(error) => {
            let error = error.to_string();
            assert!(text.starts_with("--set ") || error.starts_with("fuzz.yaml:"), "{error}");
        }
    }
}
