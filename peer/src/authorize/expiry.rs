//! When a signed URL says that it ends [pure].

use url::Url;

/// Seconds since 1970 at which the URL's own signature ends: the earliest of what its parameters say, `None` if they say
/// nothing that can be read.
pub(crate) fn of(url: &Url) -> Option<u64> {
    let plain = parameter(url, "expires").and_then(|text| text.parse().ok());
    let policy = parameter(url, "policy").and_then(|text| policy_end(&text));
    let dated = ["amz", "goog"].iter().filter_map(|cloud| dated_end(url, cloud)).min();
    let azure = parameter(url, "se").and_then(|text| iso_seconds(&text));
    [plain, policy, dated, azure].into_iter().flatten().min()
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.into_owned())
}

/// X-Amz-Date and X-Amz-Expires (AWS Signature Version 4 query parameters); Google's have the same form.
fn dated_end(url: &Url, cloud: &str) -> Option<u64> {
    let start = basic_seconds(&parameter(url, &format!("x-{cloud}-date"))?)?;
    let lasts: u64 = parameter(url, &format!("x-{cloud}-expires"))?.parse().ok()?;
    start.checked_add(lasts)
}

/// `20261124T133225Z`.
fn basic_seconds(text: &str) -> Option<u64> {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let moment = time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc();
    u64::try_from(moment.unix_timestamp()).ok()
}

/// `2026-11-24T13:32:25Z`, as in Azure's shared access signatures.
fn iso_seconds(text: &str) -> Option<u64> {
    let moment = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(moment.unix_timestamp()).ok()
}

/// CloudFront's custom policy: JSON in a base64 of its own alphabet, `Statement[].Condition.DateLessThan["AWS:EpochTime"]`.
fn policy_end(text: &str) -> Option<u64> {
    let policy: serde_json::Value = serde_json::from_slice(&decode_base64(text)?).ok()?;
    let statements = policy.get("Statement")?.as_array()?;
    let end = |statement: &serde_json::Value| statement.pointer("/Condition/DateLessThan/AWS:EpochTime")?.as_u64();
    statements.iter().filter_map(end).min()
}

/// Base64 (RFC 4648 section 4), CloudFront's replacements for `+`, `=` and `/` accepted: `-`, `_` and `~`.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for symbol in text.bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' | b'-' | b' ' => 62,
            b'/' | b'~' => 63,
            b'=' | b'_' => continue,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(query: &str) -> Option<u64> {
        of(&Url::parse(&format!("https://h/p?{query}")).unwrap())
    }

    #[test]
    fn every_clouds_way_of_saying_when_a_url_ends_is_understood() {
        assert_eq!(end("Expires=1800000000&Signature=x"), Some(1_800_000_000));
        assert_eq!(end("X-Amz-Date=20261124T133225Z&X-Amz-Expires=3600"), Some(1_795_527_145 + 3600));
        assert_eq!(end("X-Goog-Date=20261124T133225Z&X-Goog-Expires=60"), Some(1_795_527_145 + 60));
        assert_eq!(end("se=2026-11-24T13%3A32%3A25Z&sig=x"), Some(1_795_527_145));
        assert_eq!(end("Signature=x"), None);
        assert_eq!(end("Expires=soon"), None);
    }

    #[test]
    fn the_end_of_a_cloudfront_policy_counts_and_the_earliest_end_wins() {
        // {"Statement":[{"Resource":"https://h/p","Condition":{"DateLessThan":{"AWS:EpochTime":1700000000}}}]}
        let policy = "eyJTdGF0ZW1lbnQiOlt7IlJlc291cmNlIjoiaHR0cHM6Ly9oL3AiLCJDb25kaXRpb24iOnsiRGF0ZUxlc3NUaGFuIjp7IkFXUzpFcG9jaFRpbWUiOjE3MDAwMDAwMDB9fX1dfQ__";
        assert_eq!(end(&format!("Policy={policy}&Expires=1800000000")), Some(1_700_000_000));
        assert_eq!(end("Policy=%00"), None);
    }
}
