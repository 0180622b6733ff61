//! Tasks and pieces: identity, layout, bitmaps, digests [pure].

pub mod bitmap;
pub mod id;
pub mod piece;

pub use bitmap::Bitmap;
pub use id::TaskId;
pub use piece::Layout;
