//! Other tools' configuration: what is taken over is a document that can be read.

use std::path::Path;

use pondhawk::config::Config;
use pondhawk::config::import::import;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(imported) = import(text, None) else { return };
    let written = imported.to_yaml();
    if imported.check().is_ok() {
        let config = Config::parse(&written, Path::new("imported.yaml"));
        let config = config.unwrap_or_else(|error| panic!("{error} in\n{written}"));
        let values: Config = serde_json::from_value(imported.values).expect("checked");
        assert_eq!(config, values, "{written}");
    }
}
