//! Whether the origin lets this client have what it asks for.
