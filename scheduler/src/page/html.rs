//! The two documents, and the policy that lets a browser run nothing but what is in them.

use std::sync::LazyLock;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The page itself. It loads nothing but this server's own events.
const PAGE: &str = include_str!("page.html");
/// The form that asks for the token.
const LOGIN: &str = include_str!("login.html");
/// Where the form says that a token was wrong.
const WRONG: &str = "<!--wrong-->";

/// A document with its Content-Security-Policy.
pub(super) struct Document {
    pub(super) html: String,
    pub(super) policy: String,
}

pub(super) static PAGE_DOCUMENT: LazyLock<Document> = LazyLock::new(|| document(PAGE.to_owned()));
pub(super) static LOGIN_DOCUMENT: LazyLock<Document> = LazyLock::new(|| document(LOGIN.to_owned()));
pub(super) static WRONG_DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let notice = "<p role=\"alert\">That is not this scheduler's token.</p>";
    document(LOGIN.replace(WRONG, notice))
});

fn document(html: String) -> Document {
    let sources = |tag| inline(&html, tag).map(|text| format!("'sha256-{}'", hash(text))).collect::<Vec<_>>().join(" ");
    let or_none = |sources: String| if sources.is_empty() { "'none'".to_owned() } else { sources };
    let (script, style) = (or_none(sources("script")), or_none(sources("style")));
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    Document { html, policy }
}

/// What stands between each `<tag>` and its end.
fn inline<'a>(html: &'a str, tag: &'a str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let starts: Vec<usize> = html.match_indices(&open).map(|(at, _)| at + open.len()).collect();
    starts.into_iter().filter_map(move |start| html[start..].split(&close).next())
}

fn hash(text: &str) -> String {
    STANDARD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_exactly_what_is_in_the_document() {
        let one = document("<style>a{}</style><script>1</script>".to_owned());
        // openssl dgst -sha256 -binary | base64
        assert!(
            one.policy.contains("script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"),
            "{}",
            one.policy
        );
        assert!(document("<p>x</p>".to_owned()).policy.contains("script-src 'none'; style-src 'none'"));
    }

    #[test]
    fn the_documents_have_one_script_and_style_each_and_nothing_that_the_policy_forbids() {
        for (html, scripts) in [(PAGE, 1), (LOGIN, 0)] {
            assert_eq!((inline(html, "script").count(), inline(html, "style").count()), (scripts, 1));
            for forbidden in
                [" style=\"", " onclick", "<script ", "http://", "https://", "innerHTML", "<link rel=\"stylesheet"]
            {
                let found = html.find(forbidden).map(|at| &html[at..(at + 60).min(html.len())]);
                assert_eq!(found.filter(|text| !text.contains("www.w3.org/2000/svg")), None, "{forbidden}");
            }
        }
        assert!(WRONG_DOCUMENT.html.contains("role=\"alert\"") && !LOGIN_DOCUMENT.html.contains("role=\"alert\""));
    }
}
