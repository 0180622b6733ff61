//! Sections of the configuration that carry their own documentation into `pondhawk config --example`.

use std::{collections::BTreeMap, fmt::Write, net::IpAddr, net::Ipv4Addr, net::Ipv6Addr, path::PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::value::{Listen, Mark, Period, Quota, Size, SocketPath};

/// A key: its name, its documentation line by line, and its keys where it is a section.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) docs: &'static [&'static str],
    pub(super) keys: fn() -> Vec<Key>,
}

/// What a field's type says about the keys below it.
pub(super) trait Keys {
    /// The keys, in the order of the document; none for a plain value.
    fn keys() -> Vec<Key> {
        Vec::new()
    }
}

macro_rules! plain_values {
    ($($name:ty),* $(,)?) => {$( impl Keys for $name {} )*};
}
plain_values!(bool, f64, u8, u16, u32, u64, usize, String, PathBuf, Listen, Mark, Period, Quota, Size, SocketPath);
plain_values!(Option<PathBuf>, Option<String>, Option<IpAddr>, Option<Ipv4Addr>, Option<Ipv6Addr>, Option<Size>);
plain_values!(Option<SocketPath>);
impl<T> Keys for Vec<T> {}
impl<K, V> Keys for BTreeMap<K, V> {}

/// Declares a section: a struct whose documentation, defaults and keys come from one place.
macro_rules! section {
    ($(#[doc = $about:literal])* $name:ident { $( $(#[doc = $doc:literal])* $(#[serde($serde:meta)])? $field:ident: $type:ty = $default:expr, )* }) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $doc])* $(#[serde($serde)])? pub $field: $type, )* }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::config::document::Keys for $name {
            fn keys() -> Vec<$crate::config::document::Key> {
                vec![$( $crate::config::document::Key {
                    name: stringify!($field),
                    docs: &[$( $doc ),*],
                    keys: <$type as $crate::config::document::Keys>::keys,
                }, )*]
            }
        }
    };
}
pub(super) use section;

/// A section whose keys are all commented out is one with its defaults.
pub(super) fn section_or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// The document of `values` with each key's documentation above it.
pub(super) fn commented(keys: &[Key], values: &Value) -> String {
    let mut out = String::new();
    write_keys(&mut out, keys, values, 0);
    out
}

/// Each key's dotted path, as `--set` takes it.
pub(super) fn paths(keys: &[Key]) -> Vec<String> {
    keys.iter()
        .flat_map(|key| match (key.keys)() {
            below if below.is_empty() => vec![key.name.to_owned()],
            below => paths(&below).iter().map(|path| format!("{}.{path}", key.name)).collect(),
        })
        .collect()
}

fn write_keys(out: &mut String, keys: &[Key], values: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    for key in keys {
        if depth == 0 {
            out.push('\n');
        }
        for line in key.docs {
            let _ = writeln!(out, "{}", format!("{indent}#{line}").trim_end());
        }
        let (below, value) = ((key.keys)(), &values[key.name]);
        if below.is_empty() {
            let _ = writeln!(out, "{indent}{}:{}", key.name, inline(value, &indent));
        } else {
            let _ = writeln!(out, "{indent}{}:", key.name);
            write_keys(out, &below, value, depth + 1);
        }
    }
}

/// A value as it follows the colon: lists as a block, everything else on the line.
fn inline(value: &Value, indent: &str) -> String {
    match value {
        Value::Array(items) if !items.is_empty() => {
            items.iter().map(|item| format!("\n{indent}  -{}", inline(item, indent))).collect()
        }
        Value::String(text) if is_plain(text) => format!(" {text}"),
        // JSON is YAML's flow style.
        other => format!(" {other}"),
    }
}

/// Whether YAML reads the bare word as this string or as a value that the key's type takes for it.
fn is_plain(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "._/%:-".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '.');
    starts && text.chars().all(word) && !text.ends_with(':') && !["null", "true", "false"].contains(&text)
}
