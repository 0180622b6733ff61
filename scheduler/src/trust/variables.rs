//! The environment variables by which clients are told whom to trust. [pure]

/// What a variable names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// A file of public roots and ours: it takes the place of the client's own.
    Bundle,
    /// A file of ours alone: the client has others beside it.
    OursAlone,
}

/// A variable, and who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// As in the environment.
    pub name: &'static str,
    /// What its value is the path of.
    pub names: Names,
    /// For people.
    pub readers: &'static str,
}

/// All that are known; each was tried with the clients that it names.
pub const VARIABLES: [Variable; 7] = [
    bundle("REQUESTS_CA_BUNDLE", "huggingface_hub before 1.0 and everything else on Python's requests"),
    bundle("SSL_CERT_FILE", "huggingface_hub from 1.0 (httpx), hf_transfer, hf_xet, OpenSSL, Go, uv"),
    bundle("CURL_CA_BUNDLE", "curl"),
    bundle("GIT_SSL_CAINFO", "git and git-lfs"),
    bundle("AWS_CA_BUNDLE", "the AWS CLI and boto3"),
    bundle("PIP_CERT", "pip"),
    Variable {
        name: "NODE_EXTRA_CA_CERTS",
        names: Names::OursAlone,
        readers: "Node.js, beside its own roots: hence the CA alone",
    },
];

const fn bundle(name: &'static str, readers: &'static str) -> Variable {
    Variable { name, names: Names::Bundle, readers }
}
