//! The labels of metrics: each value has a fixed spelling and a slot of its own [pure].

/// A closed set of label values.
pub(super) trait Label: Copy + 'static {
    /// Every value, in the order of its slots.
    const ALL: &'static [Self];

    /// The spelling.
    fn text(self) -> &'static str;

    /// The position in [`Label::ALL`].
    fn slot(self) -> usize;
}

macro_rules! labels {
    ($($(#[doc = $about:literal])* $name:ident { $( $(#[doc = $doc:literal])* $variant:ident = $text:literal, )* })*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[doc = $doc])* $variant, )* }

        impl Label for $name {
            const ALL: &'static [Self] = &[$( Self::$variant ),*];

            fn text(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }

            fn slot(self) -> usize {
                self as usize
            }
        }
    )*};
}

labels! {
    /// How a request reached the node.
    Way {
        /// Caught by the BPF program.
        Intercept = "intercept",
        /// Sent to the proxy port.
        Proxy = "proxy",
        /// Through a tunnel that a client of the proxy port asked for (CONNECT).
        Connect = "connect",
        /// For the Hub, whose place the proxy port takes.
        Mirror = "mirror",
    }

    /// What became of a request.
    Outcome {
        /// Everything asked for was in the store.
        Hit = "hit",
        /// A download under way serves it.
        Joined = "joined",
        /// It started a download.
        Miss = "miss",
        /// Not for the store: streamed from the origin.
        Passed = "passed",
        /// The origin or a rule of the node says no (4xx).
        Refused = "refused",
        /// The node or the origin failed: a 5xx, or a reply that was cut.
        Error = "error",
    }

    /// Where the bytes of replies come from.
    Source {
        /// Fetched.
        Origin = "origin",
        /// Read from the node's disk.
        Store = "store",
        /// Other nodes.
        Peers = "peers",
    }

    /// Who gave bytes that do not match their digest.
    Party {
        /// The origin sent them.
        Origin = "origin",
        /// The disk gave back something else than was written.
        Disk = "disk",
        /// Another peer sent them.
        Peer = "peer",
    }

    /// Why a client is let through directly for a while.
    BypassReason {
        /// TLS alert unknown_ca (RFC 8446 section 6.2).
        UnknownCa = "unknown_ca",
        /// TLS alert bad_certificate, certificate_unknown or the like.
        BadCertificate = "bad_certificate",
        /// Closed right after the certificate, without an alert.
        GaveUp = "gave_up",
        /// Holds its whole share of the connections.
        OverShare = "over_share",
    }

    /// Why a TLS handshake with a client failed.
    HandshakeFailure {
        /// The client does not trust the node's certificate authority.
        Untrusted = "untrusted",
        /// Closed or reset before it was done.
        Closed = "closed",
        /// Took too long.
        Timeout = "timeout",
        /// The client speaks something that the node does not.
        Protocol = "protocol",
        /// No certificate could be made.
        Internal = "internal",
    }

    /// Why a caught connection went through untouched.
    PassReason {
        /// The server name is none of the configured hosts.
        OtherHost = "other_host",
        /// A ClientHello without server name.
        NoServerName = "no_server_name",
        /// Nothing came: perhaps the server speaks first.
        Silent = "silent",
        /// Encrypted ClientHello.
        Ech = "ech",
        /// Not TLS.
        NotTls = "not_tls",
        /// The proxy's CONNECT to a host that is not ours.
        Tunnel = "tunnel",
        /// The node could not serve it.
        Failure = "failure",
        /// The client or all clients together have as many connections as they may.
        NoPlace = "no_place",
    }

    /// Why a caught connection that is not for the node was closed instead of passed on.
    PassRefusal {
        /// An address that means another host to the node than to the client.
        Scope = "scope",
        /// An address in a private network.
        Private = "private",
        /// A destination that did not prove that it serves one of the configured hosts.
        Unproven = "unproven",
    }

    /// Which way spliced bytes went.
    Direction {
        /// From the client.
        Up = "up",
        /// To the client.
        Down = "down",
    }

    /// What the origin answered.
    OriginAnswer {
        /// 2xx.
        Success = "2xx",
        /// 3xx.
        Redirect = "3xx",
        /// 4xx.
        Client = "4xx",
        /// 5xx.
        Server = "5xx",
        /// No answer: connect, TLS, cut, stall.
        Failed = "failed",
    }
}

impl Way {
    /// As metrics spell it.
    pub fn name(self) -> &'static str {
        self.text()
    }
}

impl Outcome {
    /// As metrics and `X-Pondhawk-Cache` spell it.
    pub fn name(self) -> &'static str {
        self.text()
    }
}

impl OriginAnswer {
    /// The class of an HTTP status; anything outside 200 to 499 that is no redirect counts as a server's failure.
    pub fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Success,
            300..=399 => Self::Redirect,
            400..=499 => Self::Client,
            _ => Self::Server,
        }
    }
}
