//! Tasks and pieces: identity, layout, bitmaps, digests [pure].

pub mod bitmap;
pub mod digest;
pub mod filter;
pub mod id;
pub mod piece;
pub mod proof;
pub mod reconstruction;
pub mod xorb;

pub use bitmap::Bitmap;
pub use filter::Filter;
pub use id::{Identity, Rules, TaskId};
pub use piece::Layout;
pub use proof::Proof;
