//! Response headers that a URL's own query asks the origin for [pure].
//!
//! A presigned URL may name the Content-Type or Content-Disposition of its response (S3 GetObject `response-*` parameters,
//! `rscd` and `rsct` of Azure shared access signatures). Such a header belongs to the URL and not to the object: two URLs of
//! one object may ask for different ones.

use url::Url;

/// Query parameter and response header, both in lower case.
const PARAMETERS: [(&str, &str); 5] = [
    ("response-content-disposition", "content-disposition"),
    ("response-content-type", "content-type"),
    ("response-content-language", "content-language"),
    ("response-cache-control", "cache-control"),
    ("response-expires", "expires"),
];
/// The same for Azure, where they count only beside `sig`.
const AZURE: [(&str, &str); 4] = [
    ("rscd", "content-disposition"),
    ("rsct", "content-type"),
    ("rscl", "content-language"),
    ("rscc", "cache-control"),
];

/// Header lines as elsewhere: names in lower case, raw values.
type Headers = Vec<(String, Vec<u8>)>;

/// The headers that the URL asks for, at most one of each name; the first parameter of a name counts.
pub fn requested(url: &Url) -> Headers {
    let azure = url.query_pairs().any(|(name, _)| name == "sig");
    let tables = [&PARAMETERS[..], if azure { &AZURE } else { &[] }];
    let mut headers = Headers::new();
    for (parameter, value) in url.query_pairs() {
        let entry = tables.iter().flat_map(|table| table.iter()).find(|(name, _)| parameter.eq_ignore_ascii_case(name));
        if let Some((_, header)) = entry
            && !headers.iter().any(|(name, _)| name == header)
        {
            headers.push(((*header).to_owned(), value.into_owned().into_bytes()));
        }
    }
    headers
}

/// The headers of a response that hold for its object under any URL: without those that this URL asked for.
pub fn independent(headers: &[(String, Vec<u8>)], url: &Url) -> Headers {
    let asked = requested(url);
    let depends = |name: &str| asked.iter().any(|(other, _)| other == name);
    headers.iter().filter(|(name, _)| !depends(name)).cloned().collect()
}

/// The headers of an object as this URL asks for them.
pub fn applied(headers: &[(String, Vec<u8>)], url: &Url) -> Headers {
    let mut applied = independent(headers, url);
    applied.extend(requested(url));
    applied
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(query: &str) -> Url {
        Url::parse(&format!("https://h/p?{query}")).unwrap()
    }

    fn line(name: &str, value: &str) -> (String, Vec<u8>) {
        (name.to_owned(), value.as_bytes().to_vec())
    }

    #[test]
    fn each_url_gets_the_headers_that_its_query_names_and_no_other_urls() {
        let first = url("response-content-disposition=inline%3B%20filename%3D%22a.bin%22&Response-Content-Type=text/a");
        let answer = [
            line("content-type", "text/a"),
            line("content-disposition", "inline; filename=\"a.bin\""),
            line("etag", "e"),
        ];
        assert_eq!(requested(&first), [answer[1].clone(), answer[0].clone()]);
        assert_eq!(independent(&answer, &first), [line("etag", "e")]);
        let plain = url("Signature=x");
        assert_eq!(independent(&answer, &plain), answer);
        let second = url("response-content-type=text/b&response-content-type=text/c");
        assert_eq!(
            applied(&independent(&answer, &first), &second),
            [line("etag", "e"), line("content-type", "text/b")]
        );
    }

    #[test]
    fn azures_short_names_count_only_in_a_signed_url() {
        assert_eq!(requested(&url("rsct=text/a")), []);
        assert_eq!(requested(&url("rsct=text/a&sig=x")), [line("content-type", "text/a")]);
    }
}
