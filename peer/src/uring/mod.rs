//! The only unsafe code of the node: ring operations, registered buffers, sockets.
