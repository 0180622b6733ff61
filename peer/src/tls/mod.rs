//! The node's certificate authority and the TLS side of intercepted connections.
