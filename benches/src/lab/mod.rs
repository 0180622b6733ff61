//! Namespaces, cgroups and clients.
