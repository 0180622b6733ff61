//! The download: a pure machine, the origin client, and the driver between them.
