//! The HTTP/1.1 front: heads, ranges, conditions [pure], and the connection loop.
