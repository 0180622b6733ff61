//! Bytes to the client, in order, as they become valid.
