//! Signed URLs in CloudFront's and S3's shape.
//!
//! The signature is an HMAC-SHA256 of the hub's own over the path and everything that limits its use; real ones are RSA (CloudFront) and a
//! derived HMAC (S3). Clients and caches treat all of them as opaque.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::hmac;
use time::{OffsetDateTime, PrimitiveDateTime, format_description::BorrowedFormatItem, macros::format_description};

use super::query;

const AMZ_DATE: &[BorrowedFormatItem<'static>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// Why a signed URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    Forged,
    Expired,
}

#[derive(Debug)]
pub(super) struct Signer {
    key: hmac::Key,
    serial: AtomicU64,
}

impl Signer {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret), serial: AtomicU64::new(1) }
    }

    /// A query as CloudFront takes it. No two are the same: the policy carries a serial number.
    pub(super) fn cloudfront(&self, path: &str, expires: u64, disposition: &str, content_type: &str) -> String {
        let policy = self.policy(path, expires);
        let signature = self.cloudfront_signature(path, &expires.to_string(), &policy);
        format!(
            "response-content-disposition={}&response-content-type={}&Expires={expires}&Policy={policy}&Signature={signature}&Key-Pair-Id=KPONDHAWKTEST1",
            query::encode(disposition),
            query::encode(content_type),
        )
    }

    /// A query that is good for these bytes of a xorb only: `range` is the Range header that the client must send.
    pub(super) fn signed_range(&self, path: &str, expires: u64, range: &str) -> String {
        let signed = with_range(path, range);
        let policy = self.policy(&signed, expires);
        let signature = self.cloudfront_signature(&signed, &expires.to_string(), &policy);
        format!(
            "X-Xet-Signed-Range={}&Expires={expires}&Policy={policy}&Signature={signature}&Key-Pair-Id=KPONDHAWKTEST1",
            query::encode(range)
        )
    }

    /// Proof that these words were said by this hub.
    pub(super) fn seal(&self, parts: &[&str]) -> String {
        query::hex(self.tag(parts).as_ref())
    }

    /// A query as S3 takes it.
    pub(super) fn amz(&self, path: &str, now: SystemTime, lifetime: Duration, disposition: &str) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let date = OffsetDateTime::from(now).format(AMZ_DATE).expect("the format has only components of a date");
        let credential = format!("pondhawk{serial}/{}/us-east-1/s3/aws4_request", &date[..8]);
        let seconds = lifetime.as_secs();
        let signature = self.amz_signature(path, &date, &seconds.to_string(), &credential);
        format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&X-Amz-Credential={}&X-Amz-Date={date}&X-Amz-Expires={seconds}&X-Amz-Signature={signature}&X-Amz-SignedHeaders=host&response-content-disposition={}&x-id=GetObject",
            query::encode(&credential),
            query::encode(disposition),
        )
    }

    /// Whether `query` allows `path` now.
    pub(super) fn check(&self, path: &str, query: &str, now: SystemTime) -> Result<(), Refusal> {
        let expires = match query::get(query, "X-Amz-Signature") {
            Some(signature) => self.check_amz(path, query, &signature)?,
            None => self.check_cloudfront(path, query)?,
        };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now < expires { Ok(()) } else { Err(Refusal::Expired) }
    }

    fn policy(&self, path: &str, expires: u64) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let policy = format!(
            r#"{{"Statement":[{{"Condition":{{"DateLessThan":{{"AWS:EpochTime":{expires}}}}},"Resource":"*{path}?{serial}"}}]}}"#
        );
        query::base64(policy.as_bytes())
    }

    fn check_cloudfront(&self, path: &str, query: &str) -> Result<u64, Refusal> {
        let get = |name| query::get(query, name).ok_or(Refusal::Missing);
        let (expires, policy, signature) = (get("Expires")?, get("Policy")?, get("Signature")?);
        get("Key-Pair-Id")?;
        let range = query::get(query, "X-Xet-Signed-Range");
        let path = range.map_or_else(|| path.to_owned(), |range| with_range(path, &range));
        if self.cloudfront_signature(&path, &expires, &policy) != signature {
            return Err(Refusal::Forged);
        }
        expires.parse().map_err(|_| Refusal::Forged)
    }

    fn check_amz(&self, path: &str, query: &str, signature: &str) -> Result<u64, Refusal> {
        let get = |name| query::get(query, name).ok_or(Refusal::Missing);
        let (date, seconds, credential) = (get("X-Amz-Date")?, get("X-Amz-Expires")?, get("X-Amz-Credential")?);
        if self.amz_signature(path, &date, &seconds, &credential) != signature {
            return Err(Refusal::Forged);
        }
        let start = PrimitiveDateTime::parse(&date, AMZ_DATE).map_err(|_| Refusal::Forged)?.assume_utc();
        let seconds: u64 = seconds.parse().map_err(|_| Refusal::Forged)?;
        Ok(u64::try_from(start.unix_timestamp()).map_err(|_| Refusal::Forged)? + seconds)
    }

    fn cloudfront_signature(&self, path: &str, expires: &str, policy: &str) -> String {
        query::base64(self.tag(&[path, expires, policy]).as_ref())
    }

    fn amz_signature(&self, path: &str, date: &str, seconds: &str, credential: &str) -> String {
        query::hex(self.tag(&[path, date, seconds, credential]).as_ref())
    }

    fn tag(&self, parts: &[&str]) -> hmac::Tag {
        hmac::sign(&self.key, parts.join("\n").as_bytes())
    }
}

fn with_range(path: &str, range: &str) -> String {
    format!("{path}?X-Xet-Signed-Range={range}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_cloudfront_url_is_good_until_it_expires_and_for_its_path_only() {
        let signer = Signer::new(b"secret");
        let query = signer.cloudfront("/repos/a", 2_000_000_000, "attachment", "x/y");
        assert_eq!(signer.check("/repos/a", &query, at(1_999_999_999)), Ok(()));
        assert_eq!(signer.check("/repos/a", &query, at(2_000_000_000)), Err(Refusal::Expired));
        assert_eq!(signer.check("/repos/b", &query, at(1)), Err(Refusal::Forged));
        let longer = query.replace("Expires=2000000000", "Expires=3000000000");
        assert_eq!(signer.check("/repos/a", &longer, at(1)), Err(Refusal::Forged));
        assert_eq!(signer.check("/repos/a", "", at(1)), Err(Refusal::Missing));
        assert_eq!(Signer::new(b"other").check("/repos/a", &query, at(1)), Err(Refusal::Forged));
    }

    #[test]
    fn an_amz_url_expires_after_its_seconds() {
        let signer = Signer::new(b"secret");
        let query = signer.amz("/x", at(1_700_000_000), Duration::from_secs(60), "inline");
        assert_eq!(signer.check("/x", &query, at(1_700_000_059)), Ok(()));
        assert_eq!(signer.check("/x", &query, at(1_700_000_060)), Err(Refusal::Expired));
        let longer = query.replace("X-Amz-Expires=60", "X-Amz-Expires=600");
        assert_eq!(signer.check("/x", &longer, at(1_700_000_001)), Err(Refusal::Forged));
    }

    #[test]
    fn two_urls_of_one_moment_differ() {
        let signer = Signer::new(b"secret");
        let one = signer.cloudfront("/a", 5, "", "");
        assert_ne!(one, signer.cloudfront("/a", 5, "", ""));
    }
}
