//! The HTTP/1.1 front: heads, ranges, conditions [pure], and the connection loop.

pub mod cacheable;
pub mod chunked;
pub mod condition;
pub mod connection;
pub mod date;
pub mod destination;
pub mod etag;
pub mod forward;
pub mod head;
pub mod mirror;
pub mod multipart;
mod overheard;
pub mod overrides;
pub mod plan;
pub mod range;
pub mod response;
pub mod route;
pub mod rules;
pub mod target;
pub mod transport;
pub mod tunnel;
pub mod users;
pub mod wishes;

pub use cacheable::{Asked, Cacheability, Cacheable};
pub use chunked::Chunked;
pub use condition::{Outcome, Stored};
pub use etag::Etag;
pub use head::{Framing, HeadError, HeadLimits, Parsed, RequestHead, Version};
pub use multipart::{Multipart, Segment};
pub use plan::{Plan, plan};
pub use range::{ContentRange, RangeSpec};
pub use target::{Authority, Target};
