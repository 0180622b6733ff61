//! A load generator for HTTP/1.1 servers of large objects.
//!
//! [`run`] plays a [`Plan`] and returns an [`Outcome`]. An *operation* is what a client wants: an object, a range of it, or an
//! object in parallel ranges. In an open loop ([`Pace::Open`]) operations arrive whether or not earlier ones are done, and each
//! one's time runs from when it was meant to start: a server that stalls is late for all that arrive meanwhile. In a closed loop
//! ([`Pace::Closed`]) clients ask one after the other; that measures throughput, and its times leave out what a stall kept from
//! being asked.
//!
//! ```no_run
//! use std::time::Duration;
//! use pondhawk_bench::load::{self, Pace, Plan};
//!
//! let plan = Plan {
//!     urls: vec!["http://127.0.0.1:8080/model.bin".to_owned()],
//!     pace: Pace::Closed { clients: 8 },
//!     duration: Some(Duration::from_secs(5)),
//!     processes: load::named("nginx"),
//!     ..Plan::default()
//! };
//! let outcome = load::run(&plan)?;
//! println!("{:.2} GB/s", outcome.gigabytes_per_second());
//! # Ok::<(), load::LoadError>(())
//! ```

mod arrivals;
mod body;
mod check;
mod client;
mod engine;
mod head;
mod html;
mod idle;
mod lane;
mod operation;
mod outcome;
mod process;
mod progress;
pub(crate) mod random;
mod record;
mod target;
mod workload;

use std::{io, path::PathBuf, sync::atomic::AtomicBool, time::Duration};

pub use self::{
    arrivals::Arrivals,
    check::Check,
    html::page,
    idle::Idle,
    outcome::{Outcome, Sample, Setup},
    process::{ProcessUse, named},
    record::{ErrorKind, Errors, Failures, Latency},
    workload::{Popularity, Shape},
};

/// What makes the next operation start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Its time.
    Open {
        /// Operations a second.
        rate: f64,
        /// How they follow each other.
        arrivals: Arrivals,
        /// With so many connections busy, further operations wait. With [`Shape::Parallel`] each takes several.
        connections: usize,
        /// With so many waiting, further ones are not started at all.
        queue: usize,
    },
    /// The end of the one before, for each of so many clients.
    Closed {
        /// Clients, each with a connection of its own; with [`Shape::Parallel`], several.
        clients: usize,
    },
}

/// A load.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The objects, `http://` or `https://`; at least one.
    pub urls: Vec<String>,
    /// Which of them is asked for how often.
    pub popularity: Popularity,
    /// What is asked for of one.
    pub shape: Shape,
    /// When.
    pub pace: Pace,
    /// How long operations are started. A closed loop drops what is under way then; an open loop waits for it.
    pub duration: Option<Duration>,
    /// How many operations are started. Without it and a duration the load goes on until it is stopped.
    pub requests: Option<u64>,
    /// Threads of the generator.
    pub threads: usize,
    /// Connections that are opened before and kept idle.
    pub idle: usize,
    /// HOST:PORT to connect to, whatever the URLs say.
    pub connect: Option<String>,
    /// HOST:PORT of a forward proxy that is asked for `http://` URLs, in absolute form; others are asked as without it.
    pub proxy: Option<String>,
    /// Files with CA certificates (PEM) that are trusted besides those of the system.
    pub authorities: Vec<PathBuf>,
    /// Further header fields: name and value.
    pub fields: Vec<(String, String)>,
    /// From an operation's intended start; later it counts as a timeout.
    pub deadline: Duration,
    /// Whether redirects are followed, up to five.
    pub follow: bool,
    /// What the bytes are held against.
    pub check: Check,
    /// Ids of the processes under test, whose CPU time and memory are to be measured.
    pub processes: Vec<u32>,
    /// The same seed gives the same arrivals and the same choice of objects and ranges.
    pub seed: u64,
    /// Whether a line a second is printed on standard error.
    pub progress: bool,
}

impl Default for Plan {
    /// One client, whole objects, 10 s; nothing to ask for yet.
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            popularity: Popularity::default(),
            shape: Shape::default(),
            pace: Pace::Closed { clients: 1 },
            duration: Some(Duration::from_secs(10)),
            requests: None,
            threads: default_threads(),
            idle: 0,
            connect: None,
            proxy: None,
            authorities: Vec::new(),
            fields: Vec::new(),
            deadline: Duration::from_secs(60),
            follow: false,
            check: Check::default(),
            processes: Vec::new(),
            seed: 1,
            progress: false,
        }
    }
}

/// Two, or one on a machine with one core.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
}

/// Why a load cannot be played. What goes wrong with single operations is in the [`Outcome`] instead.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is nothing to ask for.
    #[error("no URL to load")]
    NoUrl,
    /// Not a URL, or of another scheme.
    #[error("{url:?} is no http:// or https:// URL: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A number of the plan that has to be larger.
    #[error("{0} has to be more than zero")]
    Zero(&'static str),
    /// A number of the plan that makes no sense.
    #[error("{0} has to be a positive number, not {1}")]
    Number(&'static str, f64),
    /// Not a host and a port.
    #[error("{0:?} is no HOST:PORT to connect to")]
    Connect(String),
    /// A field's name or value that would break a request, or one that the generator sets itself.
    #[error(
        "the header field {0:?} cannot be sent: a name is a token other than host, range and connection, a value one line"
    )]
    Field(String),
    /// A file that cannot serve as a CA certificate.
    #[error("{}: not a CA certificate in PEM: {reason}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library refused its settings.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A check for some of the objects only.
    #[error("{given} digests or copies to check {objects} URLs: there has to be one for each, in the same order")]
    Checks {
        /// How many there are.
        given: usize,
        /// How many there should be.
        objects: usize,
    },
    /// Not a SHA-256.
    #[error("{0:?} is no SHA-256: 64 hexadecimal digits")]
    Digest(String),
    /// Digests of whole objects, and requests for parts.
    #[error("a SHA-256 is of a whole object: requests for ranges can be held against a copy only")]
    DigestOfRanges,
    /// A file to compare with cannot be opened.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing answers that tells where an object is or how large it is.
    #[error("the load cannot start: {0}")]
    Target(String),
    /// There is no such process.
    #[error("there is no process {0} to measure")]
    Process(u32),
    /// More connections than the system lets a process have files.
    #[error(
        "{wanted} connections, but a process may have {limit} files open: raise `ulimit -n`, or use fewer connections"
    )]
    Files {
        /// Files that the plan needs.
        wanted: u64,
        /// The hard limit.
        limit: u64,
    },
    /// The system gives no thread, timer or socket.
    #[error("the generator cannot run: {0}")]
    System(#[from] io::Error),
}

/// Plays a load to its end. Blocks; not to be called from within a tokio runtime.
pub fn run(plan: &Plan) -> Result<Outcome, LoadError> {
    run_until(plan, &AtomicBool::new(false))
}

/// Plays a load to its end, or until `stop` is true: then what is under way is dropped, and the outcome is of what was done.
pub fn run_until(plan: &Plan, stop: &AtomicBool) -> Result<Outcome, LoadError> {
    engine::run(plan, stop)
}
