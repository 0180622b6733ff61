//! From a file, the environment and the command line to a [`Config`]; errors say where and what was meant.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{CheckError, Config, document, document::Keys};

/// What the environment's variables begin with.
const PREFIX: &str = "PONDHAWK_";
/// The longest configuration file.
const MAX_FILE: u64 = 1 << 20;

/// A configuration and what was odd about how it was given.
#[derive(Debug)]
pub struct Loaded {
    /// The effective configuration, checked.
    pub config: Config,
    /// Variables that look like ours and are none of our keys.
    pub warnings: Vec<String>,
}

/// Why there is no configuration; the person who wrote it is to blame.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not a configuration.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Document {
        /// The file.
        file: PathBuf,
        /// From 1; 0 where the parser gives none.
        line: u64,
        /// From 1.
        column: u64,
        /// What is wrong there, and for an unknown key the nearest known one.
        message: String,
    },
    /// A flag or variable does not fit its key.
    #[error("{given}: {message}")]
    Override {
        /// The flag or the variable as given.
        given: String,
        /// What is wrong with it.
        message: String,
    },
    /// Values that cannot work (together).
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Check(Vec<CheckError>),
}

impl Config {
    /// The defaults, overridden by the file, then by the environment's `PONDHAWK_SECTION__KEY`, then by `section.key=value`
    /// settings, and checked.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        settings: &[String],
    ) -> Result<Loaded, ConfigError> {
        let mut config = file.map_or_else(|| Ok(Self::default()), Self::read)?;
        let mut warnings = Vec::new();
        for (name, text) in sorted(environment) {
            match variable_path(&name) {
                Some(path) => config = config.with(&path, &text, &format!("{name}={text}"))?,
                None => warnings.push(format!("{name} is set in the environment but names no key; ignored")),
            }
        }
        for setting in settings {
            let given = format!("--set {setting}");
            let Some((path, text)) = setting.split_once('=') else {
                return Err(ConfigError::Override {
                    given,
                    message: "must be key=value, as in store.quota=20GiB".into(),
                });
            };
            config = config.with(path.trim(), text.trim(), &given)?;
        }
        match config.problems() {
            problems if problems.is_empty() => Ok(Loaded { config, warnings }),
            problems => Err(ConfigError::Check(problems)),
        }
    }

    /// Reads a file; not yet checked for what [`Config::problems`] finds.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { file: file.to_owned(), source };
        let metadata = fs::metadata(file).map_err(failed)?;
        if metadata.len() > MAX_FILE {
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1MiB, so no configuration")));
        }
        let text = fs::read_to_string(file).map_err(failed)?;
        Self::parse(&text, file)
    }

    /// Parses a document; `file` is named in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if text.lines().all(blank) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let error = error.without_snippet();
            let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
            ConfigError::Document { file: file.to_owned(), line, column, message: explain(error) }
        })
    }

    /// The whole document of the defaults with each key's documentation.
    pub fn example() -> String {
        let values = serde_json::to_value(Self::default()).expect("a configuration is plain data");
        format!("{EXAMPLE_HEAD}{}", document::commented(&Self::keys(), &values))
    }

    /// This configuration as a document without comments.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("a configuration is plain data")
    }

    /// Each key's dotted path.
    pub fn key_paths() -> Vec<String> {
        document::paths(&Self::keys())
    }

    /// This configuration with one key set from text.
    fn with(&self, path: &str, text: &str, given: &str) -> Result<Self, ConfigError> {
        let wrong = |message| ConfigError::Override { given: given.to_owned(), message };
        if !Self::key_paths().iter().any(|known| known == path) {
            return Err(wrong(unknown("key", path, Self::key_paths().iter().map(String::as_str))));
        }
        let mut whole = serde_json::to_value(self).expect("a configuration is plain data");
        let slot = whole.pointer_mut(&format!("/{}", path.replace('.', "/"))).expect("every known path has a value");
        *slot = value_like(slot, text).map_err(wrong)?;
        serde_json::from_value(whole).map_err(|error| wrong(error.to_string()))
    }
}

const EXAMPLE_HEAD: &str = "\
# Pondhawk's configuration: every key with its default. A file needs only the keys that differ.
# Any key can also be given as `--set section.key=value` or in the environment as PONDHAWK_SECTION__KEY=value
# (upper case, two underscores for the dot; lists and maps as [a, b] and {a: b}).
# The command line wins over the environment, the environment over this file.
# Sizes: 64KiB, 20GiB, 500MB. Times: 500ms, 30s, 10min, 2h, 7d.
";

/// The text as a value of the kind that the key has now: lists and maps in YAML's flow style, the rest as it stands.
fn value_like(current: &Value, text: &str) -> Result<Value, String> {
    let flow = || serde_saphyr::from_str(text).map_err(|error| explain(error.without_snippet()));
    match current {
        Value::Array(_) if !text.starts_with('[') => {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect())
        }
        Value::Array(_) | Value::Object(_) => flow(),
        Value::Bool(_) => text.parse().map(Value::Bool).map_err(|_| format!("`{text}` is neither true nor false")),
        Value::Number(number) if number.is_f64() => {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            number.map(Value::from).ok_or_else(|| format!("`{text}` is no number"))
        }
        Value::Number(_) => text.parse::<u64>().map(Value::from).map_err(|_| format!("`{text}` is no whole number")),
        Value::Null | Value::String(_) if text == "null" => Ok(Value::Null),
        Value::Null | Value::String(_) => Ok(Value::from(text)),
    }
}

/// The key that a variable names.
fn variable_path(name: &str) -> Option<String> {
    let variable = |path: &str| format!("{PREFIX}{}", path.replace('.', "__").to_uppercase());
    Config::key_paths().into_iter().find(|path| variable(path) == name)
}

/// Our variables in a fixed order. PONDHAWK_CONFIG and PONDHAWK_ADMIN are flags of the command line, not keys.
fn sorted(environment: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let flags = ["PONDHAWK_CONFIG", "PONDHAWK_ADMIN"];
    let ours = |(name, _): &(String, String)| name.starts_with(PREFIX) && !flags.contains(&name.as_str());
    let mut variables: Vec<_> = environment.into_iter().filter(ours).collect();
    variables.sort();
    variables
}

fn explain(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error::{SerdeUnknownField, SerdeUnknownVariant};
    match error {
        SerdeUnknownField { field, expected, .. } => unknown("key", field, expected.iter().copied()),
        SerdeUnknownVariant { variant, expected, .. } => unknown("value", variant, expected.iter().copied()),
        // The location has a place of its own.
        other => {
            let text = other.to_string();
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
            text.trim_start_matches("error: ").to_owned()
        }
    }
}

/// Says that a name is not known, and which one may have been meant.
fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let nearest = known.clone().map(|key| (distance(name, key), key)).min();
    match nearest {
        Some((distance, key)) if distance <= 1 + name.chars().count() / 3 => {
            format!("unknown {what} `{name}`; did you mean `{key}`?")
        }
        _ => format!("unknown {what} `{name}`; known are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// Levenshtein's distance between the names, in characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().take(128).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
