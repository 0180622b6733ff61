//! The configuration file: one YAML document, every key documented.
